"""The commands' settings: every section for every command, and what does not fit refused before anything is written."""
import configparser, subprocess, sys
from pathlib import Path

import pytest

from solutions.dream import DreamRunSettings
from solutions.evaluate import EvaluateCommand
from solutions.publish import PublishSettings
from solutions.settings import TrainSettings
from worldmodels.tools.settings import load

ROOT = Path(__file__).parents[1]
INI = configparser.ConfigParser(interpolation=None)
INI.read(ROOT / "settings.ini")


SECTIONS = [section for section in INI.sections() if ":" not in section]  # [quick:dream] is read with [quick], by `dream` alone


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("command", [TrainSettings, EvaluateCommand, PublishSettings])
def test_every_section_is_taken_by_every_command(section, command):
    assert load(command, ["--settings", section], part_of=None if command is TrainSettings else TrainSettings)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_is_taken_by_the_dream_with_its_own(section):
    assert load(DreamRunSettings, ["--settings", section], command="dream")


def test_a_commands_own_section_wins():
    assert load(DreamRunSettings, ["--settings", "ci"], command="dream").dream.max_steps == int(INI["ci:dream"]["dream.max_steps"])


def run(*args) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *args], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("flags, words", [
    (["--vae.latent", "64"], ["vae.latent is 64", "dynamics.latent 32"]),
    (["--vae.size", "96"], ["vae.size is 96", "collect.size 64"]),
    (["--dynamics.action_dim", "1"], ["action_dim must be 3"]),
    (["--evolve.sigma", "0"], ["sigma must be above 0"]),
])
def test_settings_that_do_not_fit_each_other_are_refused_at_once(tmp_path, flags, words):
    done = run("solutions.train", "--settings", "ci", "--run", str(tmp_path / "run"), *flags)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["rollouts", "vae", "mdn_rnn", "controller"])
def test_a_single_stage_refuses_a_run_with_a_scout(tmp_path, stage):
    done = run(f"solutions.{stage}", "--settings", "ci", "--run", str(tmp_path / "run"))
    assert done.returncode != 0 and "scout" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_publish_leaves_a_folder_alone_that_it_did_not_write(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = run("solutions.publish", "--run", str(tmp_path), "--to", str(tmp_path / "mine"))
    assert done.returncode != 0 and "CARD.md" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
