"""What an M is judged by beside chapter 02's NLL: calibration, dreams in pixels, its heads, speed; and intervals for all of it."""
import math
import time

import numpy as np
import torch

from worldmodels.mdn_rnn import Mixture, dynamics_loss, horizon_error, open_loop, resample, segments, whole_episodes
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import Dynamics, Vision, WorldModel
from worldmodels.vae import Latents, decode_frames


def select(latents: Latents, episodes) -> Latents:
    """Some episodes of encoded ones, in that order."""
    slices = [latents.episode(i) for i in episodes]
    lengths = latents.lengths[torch.as_tensor(episodes)]
    parts = {name: torch.cat([getattr(latents, name)[at] for at in slices]) for name in ("mu", "logvar", "actions", "rewards", "terminated")}
    return Latents(**parts, first=(lengths + 1).cumsum(0) - lengths - 1, lengths=lengths, repeat=latents.repeat)


def cdf(mixture: Mixture, z: torch.Tensor) -> torch.Tensor:
    """P(Z_i ≤ z_i) for each dimension, (…, latent): uniform between 0 and 1 where the mixture is right."""
    below = 0.5 + 0.5 * torch.erf((z.unsqueeze(-1) - mixture.mu) * torch.exp(-mixture.log_sigma) / math.sqrt(2))  # (…, latent, K)
    return (mixture.log_pi.exp() * below).sum(-1)


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The chance that a true case scores above a false one, ties counted half; None where either kind is missing."""
    true, false = np.sort(scores[labels]), np.sort(scores[~labels])
    if not len(true) or not len(false): return None
    below = np.searchsorted(false, true, "left") + np.searchsorted(false, true, "right")
    return float(below.mean() / 2 / len(false))


@torch.inference_mode()
def teacher_forced(model: Dynamics, held: Latents, bins: int = 20, done_weight: float = 10.0) -> dict:
    """PIT histogram (shares · bins: 1 is calibrated), squared errors of the reward by episode, AUC and accuracy of done."""
    counts, errors, spreads, scores, labels = np.zeros(bins), [], [], [], []
    mean = held.rewards.sum() / held.lengths.sum()  # frames after a last step have reward 0
    for i, (z, a) in enumerate(whole_episodes(held, range(len(held)))):
        at = slice(held.episode(i).start, held.episode(i).stop - 1)
        p, truth = model(z[None, :-1], a[None]), held.rewards[at]
        factors = p.mixture.given(z[None, 1:]) if hasattr(p.mixture, "given") else p.mixture
        counts += np.histogram(cdf(factors, z[None, 1:]).numpy(), bins, (0, 1))[0]
        errors.append((p.reward[0] - truth).pow(2).sum().item()); spreads.append((truth - mean).pow(2).sum().item())
        scores.append(p.done[0].numpy()); labels.append(held.terminated[at].numpy())
    scores, labels = np.concatenate(scores), np.concatenate(labels)
    found = (scores > math.log(done_weight)) == labels  # the weight of the loss taken out again
    return {"pit": (counts / counts.sum() * bins).tolist(), "reward_errors": errors, "reward_spreads": spreads,
            "done_auc": auc(scores, labels), "done_accuracy": float(found.mean()), "ends": int(labels.sum()), "steps": len(labels)}


def rms(pictures: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Root mean square distance of floats in [0, 1] from uint8 frames, both (n, H, W, 3), in grey levels of 255: (n,)."""
    return np.sqrt(((255 * pictures - real) ** 2).mean((1, 2, 3)))


class Segments:
    """The places in held-out episodes where dreams are compared with what happened: `context` frames seen, `horizon` dreamt."""

    def __init__(self, store: RolloutStore, held: Latents, names: np.ndarray, context: int, horizon: int):
        self.store, self.held, self.names, self.context, self.horizon = store, held, names, context, horizon
        self.at = segments(held, range(len(held)), context + horizon)  # (n, context + horizon)
        self.episode = torch.searchsorted(held.first, self.at[:, 0], right=True).sub(1).numpy()

    def real(self, k: int) -> np.ndarray:
        """The frames of stretch k to be dreamt, (horizon, size, size, 3) uint8."""
        i, begin = self.episode[k], int(self.at[k, self.context])
        begin -= int(self.held.first[i])
        return self.store.frames(int(self.names[i]), begin, begin + self.horizon)

    def by_episode(self, x) -> list[list[float]]:
        """The mean over each episode's segments: (n, horizon) to (episodes with a stretch, horizon)."""
        x = np.asarray(x)
        return [x[self.episode == i].mean(0).round(4).tolist() for i in np.unique(self.episode)]

    def pixels(self, vision: Vision, z: torch.Tensor) -> list[list[float]]:
        """How far the pictures of z (n, horizon, latent) are from the real frames, by episode."""
        return self.by_episode([rms(decode_frames(vision, x), self.real(k)) for k, x in enumerate(z)])

    def errors(self, world: WorldModel, seed: int = 0) -> dict:
        """Of M's dreams, in z (V's sd) and in pixels (grey levels): lists (episodes, horizon)."""
        z = resample(self.held, self.at, torch.Generator().manual_seed(seed))
        dreams = open_loop(world.dynamics, z, self.held.actions[self.at], self.context, seed=seed)
        latent, _ = horizon_error(world.dynamics, self.held, range(len(self.held)), self.context, self.horizon, seed=seed)
        return {"latent": self.by_episode(latent), "pixels": self.pixels(world.vision, dreams)}

    def baselines(self, world: WorldModel, seed: int = 0) -> dict:
        """The same for the last z kept, and in pixels for V's own reconstruction, which no M on it can beat for long."""
        z = resample(self.held, self.at, torch.Generator().manual_seed(seed))
        last = z[:, self.context - 1:self.context].expand(-1, self.horizon, -1)
        _, kept = horizon_error(world.dynamics, self.held, range(len(self.held)), self.context, self.horizon, seed=seed)
        return {"latent": self.by_episode(kept), "pixels": self.pixels(world.vision, last),
                "reconstruction": self.pixels(world.vision, self.held.mu[self.at[:, self.context:]])}


@torch.inference_mode()
def dream_rate(model: Dynamics, worlds: int, steps: int = 40) -> float:
    """Steps a second of so many worlds side by side, each fed its own sample; the median step, after the memory is full."""
    z, a, state, times = torch.zeros(worlds, model.latent), torch.zeros(worlds, model.action_dim), model.initial(worlds), []
    for _ in range(10 + steps):
        began = time.perf_counter()
        prediction, state = model.step(z, a, state)
        z = prediction.sample()
        times.append(time.perf_counter() - began)
    return worlds / float(np.median(times[10:]))


def used_parameters(model: Dynamics, batch: dict) -> int:
    """How many numbers M's loss trains."""
    dynamics_loss(model, batch)[0].backward()
    used = sum(p.numel() for p in model.parameters() if p.grad is not None)
    model.zero_grad(set_to_none=True)
    return used


def interval(x, y=None, draws: int = 10_000) -> dict:
    """Mean of x (seeds, episodes), or of x - y, with its 95 % interval: seeds and episodes drawn anew, the same episodes for both.

    Drawing from n seeds gives their mean only (n - 1) / n of its variance, much too little for three: their spread is widened by that.
    """
    rng, x = np.random.default_rng(0), np.atleast_2d(x)
    episodes = rng.integers(x.shape[1], size=(draws, 1, x.shape[1]))
    def means(v):
        n = len(v)
        if n > 1: v = v + (math.sqrt(n / (n - 1)) - 1) * (v.mean(1, keepdims=True) - v.mean())
        return v[rng.integers(n, size=(draws, n, 1)), episodes].mean((1, 2))
    drawn, mean = means(x), x.mean()
    if y is not None: drawn, mean = drawn - means(np.atleast_2d(y)), mean - np.mean(y)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def explained(errors, spreads, draws: int = 10_000) -> dict:
    """The share of the reward's variance that M explains, from sums by episode (seeds, episodes), with its 95 % interval."""
    rng, errors, spreads = np.random.default_rng(0), np.atleast_2d(errors), np.atleast_2d(spreads)
    seeds, episodes = errors.shape
    at = rng.integers(seeds, size=(draws, seeds, 1)), rng.integers(episodes, size=(draws, 1, episodes))
    low, high = np.percentile(1 - errors[at].sum((1, 2)) / spreads[at].sum((1, 2)), [2.5, 97.5])
    return {"mean": float(1 - errors.sum() / spreads.sum()), "low": float(low), "high": float(high)}
