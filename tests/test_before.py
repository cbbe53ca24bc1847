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

from solutions.dream import claim_dream_run
from solutions.evaluate import EvaluateCommand
from solutions.evaluate import run as evaluate
from solutions.ppo import PPOCommand
from solutions.ppo import run as train_ppo
from solutions.settings import DreamRunSettings, EvaluateSettings, Sections, TrainSettings
from solutions.train import run as train
from worldmodels.controller_files import load_controller
from worldmodels.dream_envs import DreamEnv
from worldmodels.tools.settings import load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import read_lines
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


@pytest.mark.parametrize("missing", ["report.json", "controller.safetensors"])
def test_unfinished_it_would_need_envpool_and_is_refused_by_name(old, missing):
    (old / missing).unlink()
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="was begun on EnvPool.*--fresh starts it anew.*solutions.evaluate --run"):
        train(settings(), old)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_so_are_a_dream_and_a_ppo(tmp_path):
    shutil.copytree(BEFORE / "store", tmp_path / "dream" / "store")
    (tmp_path / "dream" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="was begun on EnvPool"): claim_dream_run(DreamRunSettings(run=str(tmp_path / "dream")))
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "config.json").write_text('{"official": 0}')
    with pytest.raises(ValueError, match="was begun on EnvPool"): train_ppo(PPOCommand(run=str(tmp_path / "ppo")))
    assert [path.name for path in (tmp_path / "ppo").iterdir()] == ["config.json"]


def test_one_that_never_drove_on_envpool_goes_on_where_it_was_killed(old):
    for part in (old / "store").glob("random-fast-*.zip"): part.unlink()  # EnvPool's
    (old / "latents.safetensors").unlink()
    whole = load_controller(old / "controller.safetensors")[1]
    lines = read_lines(old / "evolution.jsonl")
    (old / "controller.safetensors").unlink()
    first, *_ = (old / "evolution.jsonl").read_text().splitlines(keepends=True)
    (old / "evolution.jsonl").write_text(first)
    train(settings(), old)
    again = read_lines(old / "evolution.jsonl")
    assert [line["generation"] for line in again] == [line["generation"] for line in lines] and again[0] == lines[0]
    np.testing.assert_allclose([line["asked"] for line in again], [line["asked"] for line in lines], rtol=1e-6)
    assert load_controller(old / "controller.safetensors")[1].shape == whole.shape


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
    with pytest.warns(FutureWarning):
        s = load(DreamRunSettings, ["--iterate.beginnings", "0.25", "--iterate.reach", "4", "--iterate.swerve", "0.1"],
                 part_of=Sections, command="dream")
    assert (s.iterate.first_frame_fraction, s.iterate.reward_radius, s.iterate.action_noise) == (0.25, 4, 0.1)
