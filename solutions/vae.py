"""Stage 2 of a run: V, on the frames of the run's store; answers to chapter 01's exercises.

python -m solutions.vae --settings quick --run runs/car
python -m solutions.vae --settings quick --run runs/v --store STORE --vae.beta 2.0
"""
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import Vision, load_model, save_model
from worldmodels.vae import VAE, VAESettings, train_vae, vae_loss

from .settings import TrainSettings, claim_stage, command, from_command_line, open_store


def learn_vision(folder: Path, store: RolloutStore, s: TrainSettings, start: Vision | None = None) -> Vision:
    """The V of `folder`: the one that is there, or that of `s.vision`, or trained (from `start`, if
    given)."""
    path = folder / "vision.safetensors"
    if not path.exists():
        if s.vision: vision = load_model(s.vision, Vision)
        else: vision = train_vae(store, s.vae, s.vae_fit, folder, s.seed, store.split()[0], start)
        save_model(path, vision)
    return load_model(path, Vision)


def rate_distortion(train_small: Callable, draw: Callable, kl: Callable,
                    betas: Sequence[float] = (0.1, 0.3, 1, 3, 10, 30, 100)) -> np.ndarray:
    """Exercise 6: KL in nats and squared error of the chapter's `SmallV` at each price of a nat: (betas, 2).

    Both are means over the last 60 steps. At a price of β, V buys nats as long as each saves β of error: the
    slope of the curve at that point is −β.
    """
    points = []
    for beta in betas:
        def loss(error, mu, logvar, beta=beta): return (error + beta * kl(mu, logvar)).mean()
        _, history = train_small(draw, loss)
        errors, mus, logvars = zip(*history[-60:])
        kls = [kl(mu, logvar).mean().item() for mu, logvar in zip(mus, logvars)]
        points.append((np.mean(kls), np.mean(errors)))
    return np.array(points)


def mirrored(settings: VAESettings) -> Callable[[VAE, torch.Tensor], object]:
    """Exercise 7: the chapter's loss on frames (n, H, W, 3) of which a random half is flipped left to right.

    `fit` seeds torch's generator at every step, so the coins fall alike in every run. M may be trained on
    mirrored episodes too if all frames of an episode are flipped or none, and its steering changes the sign
    with them.
    """
    def loss(model, frames):
        coin = torch.rand(len(frames), device=frames.device) < 0.5
        return vae_loss(model, torch.where(coin[:, None, None, None], frames.flip(2), frames), settings)
    return loss


def run(s: TrainSettings, folder: Path | str | None = None) -> Vision:
    """The V of the run folder of `s`, or of `folder`; what is there is not made again."""
    folder, s = claim_stage(s, folder, joint=False)
    return learn_vision(folder, open_store(folder, s), s)


def main() -> None: run(from_command_line(__doc__))


if __name__ == "__main__": command(main)
