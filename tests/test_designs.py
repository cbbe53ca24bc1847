"""The published designs at scale `ci`: the whole pipeline runs with each, and each learns."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from solutions.settings import Sections, TrainSettings
from worldmodels.mdn_rnn import dynamics_loss
from worldmodels.sequences import windows
from worldmodels.tools.settings import load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import WorldModel, registered
from worldmodels.transformer import ClipLoss, ViTWM
from worldmodels.tools.encoding import Latents
from worldmodels.vae import VAE, vae_loss
from worldmodels.vit_training import clips

ROOT = Path(__file__).parents[1]
SIZES = {"tbwm": (96, 32, 32), "trade": (96, 32, 32), "vit-wm": (64, 256, 32)}  # frame, features, latent


@pytest.fixture(scope="module", params=SIZES)
def run(request, tmp_path_factory):
    """A finished run of a section, and its settings."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    flags = ["--settings", f"ci,{request.param}"]
    command = [sys.executable, "-m", "solutions.train", *flags, "--run", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, folder, load(TrainSettings, flags, part_of=Sections)


def test_it_is_the_published_design_with_the_scale_of_ci(run):
    section, folder, s = run
    world, (size, features, latent) = WorldModel.load(folder), SIZES[section]
    assert type(world.dynamics).__name__ == s.model and world.dynamics.settings == s.m
    assert (world.vision.size, world.dynamics.features_dim, world.vision.latent) == (size, features, latent)
    assert (s.vit_wm_fit.steps, s.dynamics_fit.steps, s.clip) == (8, 10, 4)
    assert (world.vision is world.dynamics) == (section == "vit-wm")


def test_shapes_and_finite_numbers(run):
    _, folder, _ = run
    world = WorldModel.load(folder)
    shape = (3, world.vision.size, world.vision.size, 3)
    mu, logvar = world.vision.encode(torch.zeros(shape, dtype=torch.uint8))
    p, state = world.dynamics.step(mu, torch.zeros(3, 3), world.dynamics.initial(3))
    assert mu.shape == logvar.shape == p.sample().shape == (3, 32)
    assert world.vision.decode(p.sample()).shape == shape
    assert world.dynamics.features(state).shape == (3, world.dynamics.features_dim)
    for model in (world.vision, world.dynamics):
        assert all(x.isfinite().all() for x in model.state_dict().values())
    for line in read_lines(folder / "metrics.jsonl"):
        assert all(abs(v) < float("inf") for k, v in line.items() if k != "model")
    for name in ("report.json", "drive.mp4", "controller.safetensors"): assert (folder / name).exists()


@torch.no_grad()
def test_every_loss_is_lower_than_at_the_start(run):
    section, folder, s = run
    world, store = WorldModel.load(folder), RolloutStore(folder / "store")
    def losses(vision, dynamics):
        torch.manual_seed(1)
        if section == "vit-wm": return {"joint": ClipLoss(vision)(next(clips(store, 4, 8, seed=5)))[0]}
        frames = torch.from_numpy(next(store.batches(32, seed=5)))
        batch = next(windows(latents, range(len(store)), 16, 16, seed=5))
        return {"V": vae_loss(vision, frames, s.vae)[0], "M": dynamics_loss(dynamics, batch)[0]}

    torch.manual_seed(s.seed)
    if section == "vit-wm": fresh = (one := ViTWM(s.vit_wm)), one
    else:
        fresh = VAE(s.vae), registered(s.model)[0](s.m)
        latents = Latents.load(folder / "latents.safetensors")
    before, after = losses(*fresh), losses(world.vision, world.dynamics)
    assert all(after[k].isfinite() and after[k] < before[k] for k in after), (before, after)
