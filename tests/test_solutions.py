"""The commands' settings: every section for every command, and what does not fit refused before anything is written."""
import configparser, subprocess, sys
from pathlib import Path

import pytest
import torch

from solutions.dream import DreamRunSettings
from solutions.evaluate import EvaluateCommand
from solutions.ppo import PPOCommand
from solutions.publish import PublishSettings, drawing, with_heads
from solutions.settings import CompareSettings, Sections, StudySettings, TrainSettings
from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.mdn_rnn import MDNRNN
from worldmodels.tools.settings import load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import FitSettings
from worldmodels.tools.world import WorldModel, data
from worldmodels.tools.encoding import Latents
from worldmodels.vae import VAE, VAESettings

ROOT = Path(__file__).parents[1]
INI = configparser.ConfigParser(interpolation=None)
INI.read(ROOT / "settings.ini")
SECTIONS = [section for section in INI.sections() if ":" not in section]  # [quick:dream] is read with [quick], by `dream` alone


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("command", [TrainSettings, EvaluateCommand, PublishSettings, PPOCommand])
def test_every_section_is_taken_by_every_command(section, command):
    assert load(command, ["--settings", section], part_of=Sections)
    assert load(StudySettings, ["--settings", section], prefix="baselines") and load(CompareSettings, ["--settings", section], prefix="compare")


def test_a_key_that_no_command_has_is_refused_by_all(tmp_path):
    (tmp_path / "settings.ini").write_text("[odd]\nppo.rowz = 3\n")
    with pytest.raises(ValueError, match=r"\[odd\] ppo.rowz"):
        load(TrainSettings, ["--settings", "odd"], ini=tmp_path / "settings.ini", part_of=Sections)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_is_taken_by_the_dream_with_its_own(section):
    if INI[section].get("model") == "ViTWM":  # but for the one whose V never stays
        with pytest.raises(ValueError, match="V changes with its M"):
            load(DreamRunSettings, ["--settings", section], part_of=Sections, command="dream")
        return
    assert load(DreamRunSettings, ["--settings", section], part_of=Sections, command="dream")


def test_a_commands_own_section_wins():
    assert load(DreamRunSettings, ["--settings", "ci"], part_of=Sections, command="dream").dream.max_steps == int(INI["ci:dream"]["dream.max_steps"])


def run(*args) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *args], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("flags, words", [
    (["--vae.latent", "64"], ["vae.latent is 64", "dynamics.latent 32"]),
    (["--vae.size", "96"], ["vae.size is 96", "collect.size 64"]),
    (["--dynamics.action_dim", "1"], ["action_dim must be 3"]),
    (["--evolve.sigma", "0"], ["sigma must be above 0"]),
    (["--warm_up", "16"], ["warm_up must be 0 to window - 1 = 15"]),
    (["--store", "somewhere"], ["a scout would write its driving into somewhere"]),
    (["--model", "LSTM"], ["model", "MDNRNN", "TransformerMDN"]),
    (["--model", "TraDE", "--trade.latent", "16"], ["vae.latent is 32", "trade.latent 16"]),
    (["--model", "TransformerMDN", "--transformer.longest", "8"], ["window must be at least 1", "transformer.longest (8), not 16"]),
    (["--model", "ViTWM", "--vit_wm.size", "96"], ["vit_wm.size is 96", "collect.size 64"]),
    (["--model", "ViTWM", "--vit_wm.longest", "3"], ["clip must be at least 1", "vit_wm.longest (3), not 4"]),
])
def test_settings_that_do_not_fit_each_other_are_refused_at_once(tmp_path, flags, words):
    done = run("solutions.train", "--settings", "ci", "--run", str(tmp_path / "run"), *flags)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["rollouts", "vae", "mdn_rnn", "transformer", "controller"])
def test_a_single_stage_refuses_a_run_with_a_scout(tmp_path, stage):
    done = run(f"solutions.{stage}", "--settings", "ci", "--run", str(tmp_path / "run"))
    assert done.returncode != 0 and "scout" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["vae", "mdn_rnn"])
def test_a_stage_of_v_or_m_alone_refuses_a_model_that_is_both(tmp_path, stage):
    done = run(f"solutions.{stage}", "--settings", "ci,vit-wm", "--scout.generations", "0", "--run", str(tmp_path / "run"))
    assert done.returncode != 0 and "solutions.transformer" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_heads_come_later_and_change_nothing_else():
    torch.manual_seed(0)
    m, n = MDNRNN(MDNRNNSettings(latent=3, action_dim=3, hidden=8)), 4 * 61
    mu = torch.randn(n, 3)
    latents = Latents(mu=mu, logvar=torch.full((n, 3), -9.0), actions=torch.randn(n, 3), rewards=torch.ones(n), terminated=torch.zeros(n, dtype=torch.bool),
                      first=torch.arange(0, n, 61), lengths=torch.full((4,), 60))
    wiser, (z, a) = with_heads(m, latents, range(4), FitSettings(steps=200, batch=4, lr=0.02)), (mu[None, :20], latents.actions[None, :20])
    before, after = m(z, a), wiser(z, a)
    assert torch.equal(before.nll(z), after.nll(z)) and before.reward is None and after.done.shape == (1, 20)
    assert (after.reward - 1).abs().mean() < 0.2 and (after.done < -1).all() and all(p.requires_grad for p in wiser.parameters())


def test_a_drawing_shows_as_many_frames_whatever_a_step_is(monkeypatch):
    """M of four frames a step dreams on every fourth frame, with the mean of four actions."""
    episode, asked = RolloutStore(data("carracing") / "sample").episode(0), {}
    monkeypatch.setattr("solutions.publish.open_loop", lambda m, z, a, context: asked.update(z=z, a=a, context=context) or z[:, context:])
    for repeat in (1, 4):
        drawing(WorldModel(VAE(VAESettings(latent=4)).eval(), MDNRNN(MDNRNNSettings(latent=4, hidden=8, action_repeat=repeat)).eval()), episode)
        assert asked["z"].shape[1] == 150 // repeat + 96 // repeat + 1 and asked["context"] == 150 // repeat + 1
        torch.testing.assert_close(asked["a"][0, 7], torch.from_numpy(episode.actions[7 * repeat:8 * repeat]).mean(0))


def test_publish_leaves_a_folder_alone_that_it_did_not_write(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = run("solutions.publish", "--run", str(tmp_path), "--to", str(tmp_path / "mine"))
    assert done.returncode != 0 and "CARD.md" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
