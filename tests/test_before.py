"""A run folder made before settings, classes and files had their present names still opens, goes on and is scored.

`before/` is `python -m solutions.train --settings ci --vision data/carracing/vision.safetensors --dynamics.hidden 16
--scout.generations 0`, as the code of November 2026 left it, without the copy of V and what can be drawn again.
"""
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from solutions.evaluate import EvaluateCommand
from solutions.evaluate import run as evaluate
from solutions.settings import EvaluateSettings, Sections, TrainSettings
from solutions.train import run as train
from worldmodels.controller_files import load_controller
from worldmodels.dream_envs import DreamEnv
from worldmodels.tools.settings import load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import Vision, WorldModel, data, load_model, save_model

BEFORE = Path(__file__).parent / "before"
FLAGS = ["--settings", "ci", "--vision", "data/carracing/vision.safetensors", "--dynamics.hidden", "16",
         "--scout.generations", "0"]


@pytest.fixture
def old(tmp_path) -> Path:
    """The old run, with V beside it again."""
    run = shutil.copytree(BEFORE, tmp_path / "old")
    save_model(run / "vision.safetensors", load_model(data("carracing") / "vision.safetensors", Vision))
    return run


def settings() -> TrainSettings: return load(TrainSettings, FLAGS, part_of=Sections)


def test_it_knows_its_game_and_dreams(old):
    world = WorldModel.load(old)
    assert world.game.name == "CarRacing" and RolloutStore(old / "store").env_id == "CarRacing-v3"
    env = DreamEnv(world=str(old), done="never", reward="alive", max_steps=3)
    env.reset(seed=0)
    assert env.step(np.zeros(3, np.float32))[1] == 1.0


def test_it_is_a_finished_run_to_today_s_command(old):
    before = {path.name: path.read_bytes() for path in old.glob("*.safetensors")}
    log = (old / "evolution.jsonl").read_bytes()
    assert train(settings(), old) == old
    assert {path.name: path.read_bytes() for path in old.glob("*.safetensors")} == before
    assert (old / "evolution.jsonl").read_bytes() == log
    with pytest.raises(ValueError, match="seed: 0 -> 1"): train(replace(settings(), seed=1), old)


def test_unfinished_it_would_need_envpool_and_is_refused_by_name(old):
    (old / "report.json").unlink()
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="was begun on EnvPool.*--fresh starts it anew.*solutions.evaluate --run"):
        train(settings(), old)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_it_is_scored(old):
    (old / "report.json").unlink()
    report = evaluate(EvaluateCommand(run=str(old), evaluate=EvaluateSettings(episodes=2, max_steps=60)))
    written = json.loads((BEFORE / "report.json").read_text())
    assert report["environment"] == written["environment"] and report["seeds"] == written["seeds"]
    np.testing.assert_allclose(report["gymnasium"]["returns"], written["gymnasium"]["returns"], atol=8)


def test_settings_that_are_gone_are_passed_over(tmp_path):
    (tmp_path / "settings.ini").write_text("[old]\ncollect.official = 7\nscout.action_noise = 0.7\n")
    with pytest.warns(FutureWarning, match="no setting collect.official any more"):
        s = load(TrainSettings, ["--settings", "old"], ini=tmp_path / "settings.ini", part_of=Sections)
    assert s.scout.action_noise == 0.7
    with pytest.warns(FutureWarning): s = load(TrainSettings, ["--scout.official", "3", "--seed", "4"], part_of=Sections)
    assert s.seed == 4


def test_settings_of_old_names_load(tmp_path):
    (tmp_path / "settings.ini").write_text("[old]\nscout.swerve = 0.7\n")
    with pytest.warns(FutureWarning, match="scout.swerve is called scout.action_noise now"):
        s = load(TrainSettings, ["--settings", "old"], ini=tmp_path / "settings.ini", part_of=Sections)
    assert s.scout.action_noise == 0.7
    with pytest.warns(FutureWarning): s = load(TrainSettings, ["--scout.swerve", "0.2"], part_of=Sections)
    assert s.scout.action_noise == 0.2
    from solutions.settings import DreamRunSettings
    with pytest.warns(FutureWarning):
        s = load(DreamRunSettings, ["--iterate.beginnings", "0.25", "--iterate.reach", "4", "--iterate.swerve", "0.1"],
                 part_of=Sections, command="dream")
    assert (s.iterate.first_frame_fraction, s.iterate.reward_radius, s.iterate.action_noise) == (0.25, 4, 0.1)
