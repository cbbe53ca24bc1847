"""Published systems as sections of settings.ini: their architectures have the right sizes, and each runs from driving to report."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from solutions.settings import Sections, TrainSettings
from worldmodels.controller import controllers_for
from worldmodels.controller_files import load_controller
from worldmodels.mdn_rnn import MDNRNN, held_out_nll
from worldmodels.tools.settings import load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import WorldModel, load_tensors
from worldmodels.tools.encoding import Latents
from worldmodels.tools.games import CAR_RACING
from worldmodels.vae import VAE, vae_loss

ROOT = Path(__file__).parents[1]
# trainable parameters of V, M and C; an M of ctallec's or jk2500's code has a second bias of 4 · hidden, which acts as one with the first
SIZES = {"paper": (4_348_547, 422_368, 867), "ctallec": (4_348_547, 383_047, 867), "jk2500": (7_397_955, 3_947_781, 3_840),
         "solutions96": (2_274_051, 383_047, 867), "lstm768": (4_348_547, 2_839_008, 2_403)}


def settings(name: str) -> TrainSettings: return load(TrainSettings, ["--settings", name], part_of=Sections)


def count(model) -> int: return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", SIZES)
def test_the_architecture_has_the_published_size(name):
    s = settings(name)
    world = WorldModel(VAE(s.vae), MDNRNN(s.dynamics), CAR_RACING)
    assert (count(world.vision), count(world.dynamics), controllers_for(world, s.controller).dimension) == SIZES[name]


def test_their_layers_add_up_to_these_sizes():
    """The same numbers from the layers that the published code names."""
    conv = lambda i, o, k: i * o * k * k + o
    linear = lambda i, o: i * o + o
    lstm = lambda i, h, biases=1: 4 * h * (i + h) + biases * 4 * h
    encoder = conv(3, 32, 4) + conv(32, 64, 4) + conv(64, 128, 4) + conv(128, 256, 4)
    small = conv(1024, 128, 5) + conv(128, 64, 5) + conv(64, 32, 6) + conv(32, 3, 6)
    assert SIZES["jk2500"][0] == encoder + 2 * linear(1024, 1024) + linear(1024, 1024) + small
    assert SIZES["ctallec"][0] == encoder + 2 * linear(1024, 32) + linear(32, 1024) + small
    large = conv(256, 128, 4) + conv(128, 64, 4) + conv(64, 32, 4) + conv(32, 3, 4)
    assert SIZES["solutions96"][0] == encoder + 2 * linear(9216, 32) + linear(32, 9216) + large
    assert SIZES["ctallec"][1] == lstm(35, 256) + linear(256, 2 * 5 * 32 + 5 + 2)
    assert SIZES["solutions96"][1] == lstm(35, 256) + linear(256, 5) + 2 * linear(256, 5 * 32) + 2 * linear(256, 1)
    assert SIZES["jk2500"][1] == lstm(1027, 256) + linear(256, 5 * (2 * 1024 + 1)) and SIZES["jk2500"][2] == (1024 + 256) * 3
    assert SIZES["lstm768"][1] == lstm(35, 768) + linear(768, 3 * 5 * 32) and SIZES["lstm768"][2] == linear(32 + 768, 3)


def test_each_section_says_what_is_known_of_its_system():
    s = settings("jk2500")
    assert (s.vae.likelihood, s.evolve.population, s.evolve.episodes, s.controller.bias, s.controller.squash) == ("bernoulli", 12, 1, False, "clip")
    s = settings("ctallec")
    assert s.vae.flip and s.vae.kl_floor == 0 and s.dynamics.shared and s.dynamics.reward and s.dynamics.done and s.window == 32
    s = settings("solutions96")
    assert s.vae.size == s.collect.size == 96 and s.controller.squash == "tanh" and s.evolve.sigma == 0.5
    s = settings("lstm768")
    assert (s.dynamics.hidden, s.window, s.warm_up) == (768, 100, 50)


@pytest.mark.parametrize("name, flags", [("ctallec", []), ("jk2500", ["--window", "40", "--vae_fit.lr", "0.001", "--dynamics_fit.steps", "75"]), ("solutions96", []),
                                         ("lstm768", ["--vae_fit.batch", "32", "--dynamics_fit.batch", "4"])])
def test_each_system_runs_from_driving_to_report_and_learns(tmp_path, name, flags):
    run = tmp_path / name
    done = subprocess.run([sys.executable, "-m", "solutions.train", "--settings", f"ci,{name}", "--run", str(run), "--vae_fit.steps", "25",
                           "--dynamics_fit.steps", "25", "--evolve.population", "4", "--evaluate.episodes", "1", *flags], cwd=ROOT, capture_output=True,
                          text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(np.isfinite(line["loss"]) for line in read_lines(run / "metrics.jsonl"))
    world, s = WorldModel.load(run), settings(f"ci,{name}")
    torch.manual_seed(0)
    frames = torch.from_numpy(RolloutStore(run / "store").episode(0).frames[::2])
    with torch.inference_mode(): before, after = (float(vae_loss(v, frames, s.vae)[0]) for v in (VAE(s.vae), world.vision))
    assert after < 0.95 * before, f"V learns nothing: {before:.1f}, {after:.1f}"
    latents = Latents.load(run / "latents.safetensors")
    before, after = (float(held_out_nll(m, latents, range(len(latents))).mean()) for m in (MDNRNN(s.dynamics).eval(), world.dynamics))
    # latents of a V this young are almost pure N(0, I) noise, whose entropy (1.419) no M can go below
    assert after < before - 0.002, f"M learns nothing: {before:.3f}, {after:.3f}"
    kind, params = load_controller(run / "controller.safetensors")
    assert (count(world.vision), count(world.dynamics), len(params)) == SIZES[name]
    assert kind == s.controller
    for file in run.glob("*.safetensors"): assert all(t.isfinite().all() for t in load_tensors(file)[0].values()), file
    report = json.loads((run / "report.json").read_text())
    assert np.isfinite(report["gymnasium"]["returns"]).all() and (run / "drive.mp4").stat().st_size > 1000
