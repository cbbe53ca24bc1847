"""The report of a run, and what `solutions.evaluate` refuses."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import solutions.evaluate as e
from solutions.settings import EvaluateSettings
from worldmodels.controller import ControllerSettings
from worldmodels.controller_files import save_controller
from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.mdn_rnn import MDNRNN
from worldmodels.rollouts import HELD_OUT
from worldmodels.tools.world import WorldModel
from worldmodels.vae import VAE, VAESettings

ROOT = Path(__file__).parents[1]
WIDTH = 39  # of a C for the world below: (4 + 8 + 1) · 3


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder whose V, M and C have learnt nothing."""
    torch.manual_seed(0)
    folder = tmp_path / "run"
    WorldModel(VAE(VAESettings(latent=4)), MDNRNN(MDNRNNSettings(latent=4, hidden=8)), "CarRacing").save(folder)
    save_controller(folder / "controller.safetensors", ControllerSettings(), np.zeros(WIDTH))
    return folder


@pytest.fixture
def quick_score(monkeypatch):
    """Returns without driving: 800 on average, on the official environment alone."""
    def score(world, settings, params, seeds, backend, max_steps):
        assert backend == "official"
        return np.random.default_rng(0).normal(800, 100, len(seeds))
    monkeypatch.setattr(e, "score", score)


def command(monkeypatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *args])
    monkeypatch.setattr(sys, "orig_argv", ["/somewhere/python3", "-m", "solutions.evaluate", *args])
    e.main()


def test_the_report_names_what_it_takes_to_repeat_it(run, monkeypatch, quick_score, capsys):
    command(monkeypatch, "--run", str(run), "--evaluate.episodes", "50")
    report = json.loads((run / "report.json").read_text())
    assert report["environment"] == "CarRacing-v3" and report["seeds"] == [HELD_OUT[0], HELD_OUT[49]] == [200_000, 200_049]
    assert report["command"] == f"python -m solutions.evaluate --run {run} --evaluate.episodes 50"
    assert {"gymnasium", "torch"} == set(report["versions"]) and report["max_steps"] == 1000
    r = report["gymnasium"]
    assert len(r["returns"]) == r["episodes"] == 50
    assert r["mean"] == round(np.mean(r["returns"]), 1) and r["sd"] == round(np.std(r["returns"]), 1)
    assert r["low"] < r["mean"] < r["high"] < r["mean"] + r["sd"]
    assert f"gymnasium: {r['mean']} ± {r['sd']} over 50 held-out seeds" in capsys.readouterr().out


def test_the_command_is_the_one_that_was_typed(run, monkeypatch, quick_score):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "solutions" / "train.py"), "--run", "a b"])
    monkeypatch.setattr(sys, "orig_argv", ["/x/bin/python", "-m", "solutions.train", "--run", "a b"])
    world = WorldModel.load(run)
    report = e.evaluate(run, world, ControllerSettings(), np.zeros(WIDTH), EvaluateSettings(episodes=2))
    assert report["command"] == "python -m solutions.train --run 'a b'"


@pytest.mark.parametrize("missing, words", [("controller", "solutions.controller"), ("vision", "solutions.vae"), ("dynamics", "solutions.mdn_rnn")])
def test_a_run_that_lacks_something_is_refused(run, monkeypatch, missing, words):
    (run / f"{missing}.safetensors").unlink()
    before = sorted(run.iterdir())
    with pytest.raises(FileNotFoundError, match=words): command(monkeypatch, "--run", str(run))
    assert sorted(run.iterdir()) == before


def test_a_folder_that_is_not_there_is_not_made(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError): command(monkeypatch, "--run", str(tmp_path / "none"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags, words", [(["--evaluate.episodes", "0"], "episodes"), (["--evaluate.episodes", "100001"], "episodes"),
                                          (["--evaluate.max_steps", "0"], "max_steps")])
def test_numbers_of_episodes_that_make_no_sense_are_refused(run, monkeypatch, capsys, flags, words):
    before = sorted(run.iterdir())
    with pytest.raises((ValueError, SystemExit)) as refusal: command(monkeypatch, "--run", str(run), "--video", *flags)
    assert words in str(refusal.value) + capsys.readouterr().err
    assert sorted(run.iterdir()) == before


def test_a_controller_of_another_width_is_refused(run, monkeypatch):
    save_controller(run / "controller.safetensors", ControllerSettings(), np.zeros(867))
    before = sorted(run.iterdir())
    for flags in ([], ["--video"], ["--render", "human"]):
        with pytest.raises(ValueError, match="has 39 parameters, got 867"): command(monkeypatch, "--run", str(run), *flags)
    assert sorted(run.iterdir()) == before


def test_another_way_of_rendering_is_refused(run, monkeypatch, capsys):
    with pytest.raises(SystemExit): command(monkeypatch, "--run", str(run), "--render", "ascii")
    assert "human" in capsys.readouterr().err


def test_watching_does_not_score(run, monkeypatch):
    watched = []
    monkeypatch.setattr(e, "watch", lambda world, settings, params, seeds, steps: watched.append(seeds[0]))
    command(monkeypatch, "--run", str(run), "--render", "human")
    assert watched == [HELD_OUT[0]] and not (run / "report.json").exists()


def evaluate(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "solutions.evaluate", *args], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_from_the_shell_to_the_report_and_the_video(run):
    done = evaluate("--run", str(run), "--video", "--evaluate.episodes", "2", "--evaluate.max_steps", "10")
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((run / "report.json").read_text())
    assert report["command"].startswith("python -m solutions.evaluate --run") and report["max_steps"] == 10
    assert (run / "drive.mp4").stat().st_size > 1000
    assert "gymnasium: " in done.stdout and not [p for p in run.iterdir() if p.suffix == ".tmp"]


def test_from_the_shell_an_error_is_one_line(tmp_path):
    done = evaluate("--run", str(tmp_path / "none"))
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "solutions.vae" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())
