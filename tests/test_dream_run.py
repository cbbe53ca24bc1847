"""The run of chapter 05 at scale `ci`: killed at every stage it goes on where it was; scores in the dream and by planning."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import solutions.dream as s
from solutions.evaluate import EvaluateCommand
from solutions.settings import Sections
from test_pipeline import KILLER
from worldmodels.carry_over import controller_inputs
from worldmodels.controller import ControllerSettings, controllers_for
from worldmodels.controller_files import load_controller
from worldmodels.dream import DreamFitness, DreamSettings, InitialStates
from worldmodels.dream_envs import initial_states_from_picture
from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.mdn_rnn import MDNRNN
from worldmodels.tools.settings import load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import WorldModel, load_model, load_tensors
from worldmodels.tools.encoding import Latents
from worldmodels.vae import VAE, VAESettings

ROOT = Path(__file__).parents[1]
MODELS = ["latents.safetensors", "dynamics.safetensors", "controller.safetensors", "checkpoints/0000.safetensors", "checkpoints/0002.safetensors"]


def run_it(module: str, run: Path, *before: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    killer = KILLER.replace("solutions.train", module)
    flags = ["--settings", "ci", "--run", str(run), *flags]
    command = ["-c", killer, *before, *flags] if before else ["-m", module, *flags]
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = run_it("solutions.dream", run)
    assert done.returncode == 0, done.stderr[-3000:]
    return run


def test_a_run_leaves_everything_in_its_folder(whole):
    for round in ("00", "01"):
        for name in [*MODELS, "evolution.jsonl", "real.safetensors", "metrics.jsonl"]: assert (whole / round / name).exists(), (round, name)
    assert (whole / "naive" / "held_out.safetensors").exists() and (whole / "01" / "held_out.safetensors").exists()
    for name in ["config.json", "stages.jsonl", "rounds.json", "rounds.png", "leak.png", "drive.mp4", "dream.mp4", "store", "vision.safetensors", "dynamics.safetensors",
                 "controller.safetensors", "starts.safetensors"]:
        assert (whole / name).exists(), name
    assert not list(whole.rglob("*.tmp"))


def test_the_report_says_what_was_seen_and_what_came_of_it(whole):
    report = json.loads((whole / "rounds.json").read_text())
    assert report["seeds"] == [200_000, 200_001] and "solutions.dream" in report["command"]
    for name in ("naive", "iterated"):
        assert len(report[name]["returns"]) == report[name]["episodes"] == 2 and report[name]["low"] <= report[name]["mean"] <= report[name]["high"]
    assert isinstance(report["iterated_is_better"], bool)
    first, naive, hot, second = report["searches"]
    assert 0 < first["real_frames"] == naive["real_frames"] == hot["real_frames"] < second["real_frames"] == report["real_frames"]
    assert [found["search"] for found in report["searches"]] == ["00", "naive", "naive-1.5", "01"]
    assert set(report["rank_correlation"]) == {"naive", "naive-1.5", "iterated"} and set(report["rank_correlation"]["iterated"]) == {"0.5", "1.0", "1.5"}
    for found in report["searches"]:
        assert {len(x) for x in [found["leak"]["real"], *found["leak"]["dream"].values()]} == {2 if found["search"][0] == "0" else 5}


def test_each_round_goes_on_from_the_one_before(whole):
    before, after = (load_tensors(whole / round / "dynamics.safetensors")[0] for round in ("00", "01"))
    assert 0 < max((before[k] - after[k]).abs().max() for k in before) < 0.1
    assert not load_controller(whole / "00" / "checkpoints" / "0000.safetensors")[1].any()
    # the new search begins with a C that decides on the new M's memory as the last one did on the old M's
    settings, last = load_controller(whole / "00" / "controller.safetensors")
    first = load_controller(whole / "01" / "checkpoints" / "0000.safetensors")[1]
    old, new = (WorldModel(WorldModel.load(whole).vision, load_model(whole / round / "dynamics.safetensors")) for round in ("00", "01"))
    driven = Latents.load(whole / "01" / "latents.safetensors")
    decisions = lambda world, params: controllers_for(world, settings, params)(controller_inputs(world, driven), torch.zeros(len(driven.mu), dtype=torch.long))
    wanted = decisions(old, last)
    assert (decisions(new, first) - wanted).pow(2).mean() < 0.2 * wanted.var(0).mean()


def test_every_checkpoint_drives_a_share(whole):
    store = RolloutStore(whole / "store")
    assert all(any(part.startswith(name) for part in store.parts) for name in ("random-fast", "round01-fast"))
    assert sum("controller" in source for source in store.sources) == 4 and set(store.seeds[-4:] // 1000) == {21}


def test_killed_at_every_stage_it_goes_on_and_ends_with_the_same_bits(whole, tmp_path):
    run = tmp_path / "run"

    def killed(*before) -> None:
        done = run_it("solutions.dream", run, *before)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]

    killed("random-fast", "2", "half")                # random driving
    killed("run/vision.checkpoint", "2", "half")      # V
    killed("00/dynamics.checkpoint", "1", "after")    # M
    killed("00/checkpoints/0002", "1", "after")       # a checkpoint is there, the generation's line is not yet
    assert len(read_lines(run / "00" / "evolution.jsonl")) == 1
    killed("naive/checkpoints/0003", "1", "before")   # the naive search, in the middle
    killed("round01-fast", "1", "after")              # driving for the first round
    killed("01/latents", "1", "before")               # driven, not yet encoded
    killed("01/dynamics.checkpoint", "2", "before")   # M again
    killed("01/checkpoints/0000", "1", "after")       # before the first generation of the second search
    killed("01/controller", "1", "before")            # found, not yet saved
    vision = (run / "vision.safetensors").stat().st_mtime_ns
    killed("naive/held_out", "1", "after")            # between the two scores
    done = run_it("solutions.dream", run)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (run / "vision.safetensors").stat().st_mtime_ns == vision, "what was there has been made again"
    for round in ("00", "01"):
        for name in [*MODELS, "real.safetensors"]: same(run / round / name, whole / round / name)
    for name in ("naive/controller", "naive/checkpoints/0003", "naive/held_out", "01/held_out"): same(run / f"{name}.safetensors", whole / f"{name}.safetensors")


def same(mine: Path, theirs: Path) -> None:
    a, b = (load_tensors(path)[0] for path in (mine, theirs))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), mine


def test_a_run_with_other_settings_is_refused_and_left_alone(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    done = run_it("solutions.dream", whole, flags=("--dream.temperature", "1.2"))
    assert done.returncode != 0 and "dream.temperature: 1.0 -> 1.2" in done.stderr and "Traceback" not in done.stderr
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


@pytest.mark.parametrize("flags, words", [(("--dream.temperature", "0"), "temperature must be above 0"), (("--iterate.episodes", "0"), "episodes must be"), (("--iterate.episodes", "5"), "multiple of drivers = 2"),
                                          (("--iterate.rounds", "31"), "rounds must be at most 30"),
                                          (("--iterate.first_frame_fraction", "1"), "share from 0 to below 1"), (("--iterate.episodes", "1002"), "at most 1000"),
                                          (("--model", "ViTWM"), "MDNRNN, TransformerMDN or TraDE"), (("--model", "TraDE"), "trade.reward must be true"),
                                          (("--dream.done", "sample", "--dynamics.done", "false"), "dynamics.done must be true"),
                                          (("--store", "runs/x", "--scout.generations", "0"), "store is not for a dream run"),
                                          (("--dream.reward", "alive"), "must be head"), (("--iterate.action_nois", "1"), "did you mean --iterate.action_noise")])
def test_settings_that_make_no_sense_are_refused_at_once(flags, words):
    with pytest.raises(ValueError, match=words): load(s.DreamRunSettings, ["--settings", "ci", *flags], part_of=Sections, command="dream")


def test_a_run_without_a_reward_head_ends_in_one_line(tmp_path):
    done = run_it("solutions.dream", tmp_path / "run", flags=("--dynamics.reward", "false"))
    assert done.returncode != 0 and "reward" in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_controller_is_scored_in_its_dream(whole):
    done = run_it("solutions.evaluate", whole, flags=("--dream", "--dreaming.done", "never", "--dreaming.max_steps", "20"))
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((whole / "dream.json").read_text())
    assert len(report["returns"]) == 2 and report["seeds"] == [200_000, 200_001] and report["dream"]["temperature"] == 1.0
    world, starts = WorldModel.load(whole), InitialStates(**load_tensors(whole / "starts.safetensors")[0])
    settings, params = load_controller(whole / "controller.safetensors")
    again = DreamFitness(world, starts, settings, DreamSettings(done="never", max_steps=20))(params[None], [200_000, 200_001])[0]
    np.testing.assert_allclose(report["returns"], again, atol=0.02)
    picture = whole / "start.png"
    cv2.imwrite(str(picture), np.full((64, 64, 3), 90, np.uint8))
    done = run_it("solutions.evaluate", whole, flags=("--dream", "--start", str(picture), "--dreaming.done", "never", "--dreaming.max_steps", "20"))
    assert done.returncode == 0, done.stderr[-3000:]
    from_picture = json.loads((whole / "dream.json").read_text())
    pictured = DreamFitness(world, initial_states_from_picture(world, picture), settings, DreamSettings(done="never", max_steps=20))
    np.testing.assert_allclose(from_picture["returns"], pictured(params[None], [200_000, 200_001])[0], atol=0.02)
    assert from_picture["start"] == str(picture)
    picture.unlink()
    gone = run_it("solutions.evaluate", whole, flags=("--dream", "--start", str(picture), "--dreaming.done", "never"))
    assert gone.returncode and f"no picture at {picture}" in gone.stderr and "Traceback" not in gone.stderr
    assert (whole / "rounds.json").exists() and not (whole / "report.json").exists(), "a later score must leave the rounds alone"


@pytest.mark.parametrize("flags, words", [(("--start", "x.png"), "--dream dreams"), (("--dream", "--policy", "plan"), "leave --dream away"),
                                          (("--dream", "--video"), "leave --dream away")])
def test_flags_that_do_not_go_together(flags, words):
    with pytest.raises(ValueError, match=words): load(EvaluateCommand, list(flags), part_of=Sections)


def test_planning_is_scored_with_its_cost(whole):
    done = run_it("solutions.evaluate", whole, flags=("--policy", "plan", "--plan.horizon", "8", "--plan.hold", "4", "--plan.candidates", "8", "--plan.elites", "2",
                                                      "--evaluate.max_steps", "10"))
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((whole / "plan.json").read_text())
    assert len(report["returns"]) == 2 and report["cost"]["ms_a_step"] > 0 and report["cost"]["dreamt_steps_a_step"] == pytest.approx(3 * 8 * 3 * 2 / 10)  # plans at frames 0, 4 and 8, two steps of M long


# ---- answers to exercises

def test_dreams_of_every_length_get_the_same_steps(monkeypatch):
    settings = load(s.DreamRunSettings, ["--settings", "ci", "--dream.max_steps", "40", "--dream.done", "never", "--iterate.context", "0", "--evolve.generations", "1",
                                         "--evolve.population", "4", "--evolve.episodes", "6", "--evolve.max_steps", "8"], part_of=Sections, command="dream")
    torch.manual_seed(0)
    world = WorldModel(VAE().eval(), MDNRNN(MDNRNNSettings(reward=True, done=True)).eval(), "CarRacing")
    latents = Latents(*torch.randn(2, 50, 32), torch.zeros(50, 3), torch.zeros(50), torch.zeros(50, dtype=bool), torch.tensor([0, 25]), torch.tensor([24, 24]))
    asked, search = [], s.evolve
    def spy(fitness, start, e, seed=0):
        asked.append((fitness.settings.max_steps, fitness.settings.max_steps * e.episodes, seed))
        return search(fitness, start, e, seed=seed)
    monkeypatch.setattr(s, "evolve", spy)
    found = s.horizons(world, latents, settings, lengths=(20, 60), seeds=(0, 1))
    assert asked == [(20, 240, 0), (20, 240, 1), (60, 240, 0), (60, 240, 1)]
    assert set(found) == {20, 60} and all(r["episodes"] == 2 and np.isfinite(r["mean"]) for r in found.values())


def test_a_pessimist_pays_the_smaller():
    def fitness(seed, **kind):
        torch.manual_seed(seed)
        world = WorldModel(VAE(VAESettings(latent=4)), MDNRNN(MDNRNNSettings(latent=4, hidden=8, reward=True)))
        return DreamFitness(world, InitialStates(torch.zeros(1, 4), torch.zeros(1, 4)), ControllerSettings(**kind), DreamSettings(done="never", max_steps=5))
    two = [fitness(seed, memory=False) for seed in (0, 1)]
    both, params = s.Pessimist(*two), np.ones((2, two[0].dimension))
    np.testing.assert_array_equal(both(params, [0, 1]), np.minimum(*(f(params, [0, 1]) for f in two)))
    assert both.dimension == 15
    with pytest.raises(ValueError, match="memory=False"): s.Pessimist(fitness(0), fitness(1))
