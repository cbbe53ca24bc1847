"""Advantages, random search, the road, and chapter 07's studies."""
import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from builders import build_world

import solutions.baselines as studies
from solutions.baselines import Thumbnail
from solutions.baselines_cells import Cells, file_name
from solutions.baselines_data import first_episodes
from solutions.settings import StudySettings
from worldmodels import baselines as b
from worldmodels.controller import ControllerSettings, EvolveSettings, RealFitness
from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.mdn_rnn import MDNRNN
from worldmodels.collect import record
from worldmodels.envs import make_envs
from worldmodels.rollouts import Policy, RoadFollower
from worldmodels.tools.settings import load
from worldmodels.tools.store import Episode, RolloutStore
from worldmodels.tools.world import WorldModel

ROOT = Path(__file__).parents[1]


# ---- advantages

def test_advantages_are_stable_baselines3s():
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    rng, T = np.random.default_rng(0), 12
    rewards, values, last, final = rng.normal(size=T), rng.normal(size=T), rng.normal(), rng.normal()
    over = np.arange(T) == 5  # by the clock: the value of its last frame is `final`
    space = gymnasium.spaces.Box(0, 1, (1,))
    buffer = buffers.RolloutBuffer(T, space, space, "cpu", gae_lambda=0.9, gamma=0.8, n_envs=1)
    for t in range(T):  # as collect_rollouts does it: the value after a clock's end is added to the reward
        reward = rewards[t] + (0.8 * final if over[t] else 0)
        buffer.add(np.zeros((1, 1)), np.zeros((1, 1)), np.array([reward]), np.array([t > 0 and over[t - 1]]),
                   torch.tensor([[values[t]]]), torch.zeros(1))
    buffer.compute_returns_and_advantage(torch.tensor([[last]]), np.array([False]))
    following = np.append(values[1:], last)
    following[5] = final
    mine = b.advantages(rewards, values, following, over, 0.8, 0.9)
    np.testing.assert_allclose(mine, buffer.advantages[:, 0], rtol=1e-4, atol=1e-5)


def test_the_chapter_needs_no_stable_baselines3():
    code = ("import sys, worldmodels.baselines; "
            "print({'stable_baselines3', 'worldmodels.ppo'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr


# ---- controls

class Skill:
    """A fitness without cars: minus the distance from 0.5, with noise that belongs to the track."""

    dimension, steps = 3, 0

    def __call__(self, params, seeds):
        self.steps += len(params) * len(seeds)
        noise = np.array([np.random.default_rng(int(s)).normal(0, 0.05) for s in seeds])
        return -np.abs(np.asarray(params) - 0.5).mean(1)[:, None] + noise


SEARCH = EvolveSettings(population=20, episodes=2, generations=5, validate_episodes=8)


def test_random_search_finds_the_better_ones_and_counts_what_it_spent():
    fitness = Skill()
    found, records = b.random_search(fitness, SEARCH)
    assert len(records) == 5 and sum(r["steps"] for r in records) == 5 * 20 * 2
    everything = np.concatenate([b.draw_candidates(3, 20, 0, g) for g in range(5)])
    skill = -np.abs(everything - 0.5).mean(1)
    assert -np.abs(found - 0.5).mean() >= np.sort(skill)[-8]


def test_random_search_goes_on_where_it_was(tmp_path):
    whole, _ = b.random_search(Skill(), SEARCH, tmp_path)
    lines = (tmp_path / "random.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "random.jsonl").write_text("".join(lines[:2]) + lines[2][:30])
    fitness = Skill()
    again, records = b.random_search(fitness, SEARCH, tmp_path)
    np.testing.assert_array_equal(whole, again)
    assert len(records) == 5 and fitness.steps == 3 * 20 * 2 + 8 * 8


def test_a_thumbnail_is_a_v_for_c():
    thumbs = Thumbnail()
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[1, :32] = 255
    mu, logvar = thumbs.encode(torch.from_numpy(frames))
    assert mu.shape == logvar.shape == (2, 64) and torch.allclose(mu[0], torch.full((64,), -2.0))
    assert torch.allclose(mu[1, :32], torch.full((32,), 2.0), atol=1e-5)
    assert torch.allclose(thumbs.decode(mu)[1, :32], torch.ones(32, 64, 3), atol=1e-5)
    world = WorldModel(thumbs, MDNRNN(MDNRNNSettings(latent=64, hidden=1)), "CarRacing")
    fitness = RealFitness(world, ControllerSettings(memory=False), max_steps=5)
    assert fitness.dimension == 65 * 3 and fitness(np.zeros((2, 195)), [1]).shape == (2, 1)


def test_an_untrained_m_is_of_the_same_kind_and_disturbs_no_generator():
    world = build_world()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fresh = studies.untrained(world, 0)
    assert torch.equal(torch.rand(1), expected)
    assert fresh.vision is world.vision and fresh.dynamics.settings == world.dynamics.settings
    assert not torch.equal(fresh.dynamics.lstm.weight_hh_l0, world.dynamics.lstm.weight_hh_l0)


# ---- on the road

class Away(Policy):
    """Full gas to the left."""

    def act(self, frames, rows): return np.tile([-0.4, 1.0, 0.0], (len(rows), 1))


def test_the_rule_drives_on_the_road_and_who_drives_away_does_not():
    episode, = record(make_envs(seeds=[5]), RoadFollower(), 250)
    assert b.on_road(episode.frames[60:]).mean() > 0.9
    episode, = record(make_envs(seeds=[5]), Away(), 250)
    assert b.on_road(episode.frames[200:]).mean() < 0.5


# ---- cells

def test_a_cell_is_made_once_and_whole_or_not_at_all(tmp_path):
    cells, made = Cells(tmp_path), []
    def make(folder, x):
        made.append(folder)
        if len(made) == 1: raise RuntimeError("killed")
        return {"x": x}
    with pytest.raises(RuntimeError): cells("a", make, 1)
    assert not (tmp_path / "a.json").exists()
    assert cells("a", make, 1)["interrupted"] and cells("a", make, 2)["x"] == 1
    assert made == [tmp_path / "a"] * 2
    cells.copy(tmp_path / "also")
    assert (tmp_path / "also" / "a.json").read_text() == (tmp_path / "a.json").read_text()


def blank(steps: int) -> Episode:
    frames, actions = np.zeros((steps + 1, 4, 4, 3), np.uint8), np.zeros((steps, 1), np.float32)
    return Episode(frames, actions, np.zeros(steps, np.float32), *np.zeros((2, steps), bool))


def test_the_frames_that_count_are_the_first_ones(tmp_path):
    store = RolloutStore.create(tmp_path / "s", "Toy", 4, 1)
    store.append([blank(9), blank(9), blank(4), blank(9)])
    counts = {frames: len(first_episodes(store, frames)) for frames in (1, 10, 11, 20, 25, 26, 1000)}
    assert counts == {1: 1, 10: 1, 11: 2, 20: 2, 25: 3, 26: 4, 1000: 4}
    assert first_episodes(store, 1000) == [0, 1, 2, 3]


def test_names_become_file_names():
    assert file_name("8 × 8 grey pixels, no V") == "8-8-grey-pixels-no-v"
    assert file_name("z and h, M untrained") == "z-and-h-m-untrained"


# ---- studies

def study(monkeypatch, run: Path, *flags: str) -> dict[str, dict]:
    """A study at the smallest scale, without PPO."""
    monkeypatch.chdir(ROOT)
    flags = ["--settings", "ci", "--run", str(run), "--ppo", str(run / "none"), *flags]
    return studies.run(load(StudySettings, flags, prefix="baselines"))


def made_when(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.glob("*.json")}


def test_the_data_study_and_the_time_to_a_score(tmp_path, monkeypatch, capsys):
    run, also = tmp_path / "b", tmp_path / "also"
    once = ("--seeds", "1")
    found = study(monkeypatch, run, *once, "--part", "data", "--policies", "brownian,ppo,iterated")
    assert list(found) == ["data"] and list(found["data"]) == ["brownian", "iterated"]
    table = (run / "data.md").read_text()
    assert "| brownian | " in table and "| iterated | " in table and "| ppo | " not in table
    assert "row ppo is left out" in capsys.readouterr().out and (run / "data.png").stat().st_size > 5000
    before = made_when(run)
    study(monkeypatch, run, *once, "--part", "time", "--policies", "brownian,iterated", "--to", str(also))
    assert made_when(run) == before, "no cell has been made again"
    table = (run / "time.md").read_text()
    assert "| V, M and C | not in " in table and "iterated" in table
    assert (run / "time.png").stat().st_size > 5000
    assert (also / "time.md").read_text() == table and (also / "time.png").exists()


def test_the_controls(tmp_path, monkeypatch):
    run = tmp_path / "b"
    study(monkeypatch, run, "--part", "controls")
    table = (run / "controls.md").read_text()
    for name in ("z and h", "M untrained", "z alone", "40 hidden units", "grey pixels", "random search",
                 "rule by hand"): assert name in table, name
    for parameters in (867, 99, 195): assert f"| {parameters} |" in table
    assert (run / "controls.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="window: 16 -> 8"):
        study(monkeypatch, run, "--part", "controls", "--window", "8")


def test_the_command_refuses_an_unknown_way_of_collecting():
    command = [sys.executable, "-m", "solutions.baselines", "--policies", "brownian,telepathy"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1 and "unknown policies telepathy" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_controls_in_doom(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    run, also = tmp_path / "b", tmp_path / "also"
    study(monkeypatch, run, "--part", "doom")
    table = (run / "doom.md").read_text()
    cells = {p.stem: json.loads(p.read_text()) for p in run.glob("doom-*.json")}
    for name in ("z, c and h", "z alone", "M untrained", "random search", "never looking", "fresh action"):
        assert name in table, name
    assert {name: cell.get("parameters") for name, cell in cells.items()} == {
        "doom-z-c-and-h": 1088, "doom-z-alone": 64, "doom-z-c-and-h-m-untrained": 1088,
        "doom-z-c-and-h-random-search": 1088, "doom-to-and-fro-never-looking": None,
        "doom-random-fresh-action": None}
    assert all(0 < t <= 60 for cell in cells.values() for t in cell["game"]["returns"])
    assert all(cell["game"]["episodes"] == 2 for cell in cells.values())
    dreamt = [cell["dream"]["returns"][0] for cell in cells.values() if "dream" in cell]
    assert len(dreamt) == 4 and all(t % 4 == 0 for t in dreamt), "in tics, four to a step of M"
    assert (run / "doom.png").stat().st_size > 5000
    (run / "doom-z-alone.json").unlink()  # as if it had been killed after the search
    before = made_when(run)
    study(monkeypatch, run, "--part", "doom", "--to", str(also))
    again = json.loads((run / "doom-z-alone.json").read_text())
    assert again["interrupted"]
    for where in ("game", "dream"): assert again[where] == cells["doom-z-alone"][where]
    assert {name: t for name, t in made_when(run).items() if name != "doom-z-alone.json"} == before
    assert (also / "doom.md").read_text() == table
    assert {p.name for p in (also / "cells").iterdir()} == {f"{name}.json" for name in cells}
