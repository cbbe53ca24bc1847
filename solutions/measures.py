"""What an M is judged by beside chapter 02's NLL: calibration, dreams, heads, speed; and intervals."""
import math
import time

import numpy as np
import torch

from worldmodels.mdn_rnn import Mixture, dynamics_loss, horizon_error, open_loop
from worldmodels.sequences import resample, segments, whole_episodes
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import Dynamics, Vision, WorldModel
from worldmodels.tools.encoding import Latents, decode_frames


def select(latents: Latents, episodes) -> Latents:
    """Some episodes of encoded ones, in that order."""
    slices = [latents.episode(i) for i in episodes]
    lengths = latents.lengths[torch.as_tensor(episodes)]
    parts = {name: torch.cat([getattr(latents, name)[frames] for frames in slices])
             for name in ("mu", "logvar", "actions", "rewards", "terminated")}
    first = (lengths + 1).cumsum(0) - lengths - 1
    return Latents(**parts, first=first, lengths=lengths, repeat=latents.repeat)


# Teacher-forced: calibration, reward and done

def cdf(mixture: Mixture, z: torch.Tensor) -> torch.Tensor:
    """P(Z_i ≤ z_i) for each dimension, (…, latent): uniform between 0 and 1 where the mixture is right."""
    deviation = (z.unsqueeze(-1) - mixture.mu) * torch.exp(-mixture.log_sigma)  # (…, latent, K), in sds
    below = 0.5 + 0.5 * torch.erf(deviation / math.sqrt(2))
    return (mixture.log_pi.exp() * below).sum(-1)


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The chance that a true case scores above a false one, ties half; None where either is missing."""
    from sklearn.metrics import roc_auc_score
    if labels.all() or not labels.any(): return None
    return float(roc_auc_score(labels, scores))


@torch.inference_mode()
def teacher_forced(model: Dynamics, held: Latents, bins: int = 20, done_weight: float = 10.0) -> dict:
    """The PIT histogram, squared errors of the reward by episode, AUC and accuracy of done.

    The histogram is in shares · bins: 1 everywhere is calibrated.
    """
    counts = np.zeros(bins)
    reward_errors = []
    reward_spreads = []
    done_logits = []
    terminated = []
    mean_reward = held.rewards.sum() / held.lengths.sum()  # frames after a last step have reward 0
    for i, (z, a) in enumerate(whole_episodes(held, range(len(held)))):
        prediction = model(z[None, :-1], a[None])
        density = prediction.mixture
        if hasattr(density, "given"): density = density.given(z[None, 1:])  # TraDE's factors
        counts += np.histogram(cdf(density, z[None, 1:]).numpy(), bins, (0, 1))[0]
        rewards = held.rewards[held.episode(i)][:-1]
        reward_errors.append((prediction.reward[0] - rewards).pow(2).sum().item())
        reward_spreads.append((rewards - mean_reward).pow(2).sum().item())
        done_logits.append(prediction.done[0].numpy())
        terminated.append(held.terminated[held.episode(i)][:-1].numpy())
    done_logits = np.concatenate(done_logits)
    terminated = np.concatenate(terminated)
    right = (done_logits > math.log(done_weight)) == terminated  # the weight of the loss taken out again
    return {"pit": (counts / counts.sum() * bins).tolist(),
            "reward_errors": reward_errors, "reward_spreads": reward_spreads,
            "done_auc": auc(done_logits, terminated), "done_accuracy": float(right.mean()),
            "ends": int(terminated.sum()), "steps": len(terminated)}


# Open loop: dreams beside what happened

def rms(pictures: np.ndarray, real: np.ndarray) -> np.ndarray:
    """RMS distance of floats in [0, 1] from uint8 frames, both (n, H, W, 3), in grey levels of 255: (n,)."""
    return np.sqrt(((255 * pictures - real) ** 2).mean((1, 2, 3)))


class Segments:
    """The places in held-out episodes where dreams are compared with what happened.

    In each, `context` frames are seen and `horizon` dreamt. `held` are the encoded episodes, and `numbers`
    say which of the store's they are.
    """

    def __init__(self, store: RolloutStore, held: Latents, numbers: np.ndarray, context: int, horizon: int):
        self.store = store
        self.held = held
        self.numbers = numbers
        self.context = context
        self.horizon = horizon
        self.at = segments(held, range(len(held)), context + horizon)  # frames, (n, context + horizon)
        self.episode = torch.searchsorted(held.first, self.at[:, 0], right=True).sub(1).numpy()

    def real(self, k: int) -> np.ndarray:
        """The frames of segment k that are to be dreamt, (horizon, size, size, 3) uint8."""
        i = self.episode[k]
        begin = int(self.at[k, self.context]) - int(self.held.first[i])
        return self.store.frames(int(self.numbers[i]), begin, begin + self.horizon)

    def by_episode(self, x) -> list[list[float]]:
        """The mean over each episode's segments: (n, horizon) to (episodes with a segment, horizon)."""
        x = np.asarray(x)
        return [x[self.episode == i].mean(0).round(4).tolist() for i in np.unique(self.episode)]

    def pixels(self, vision: Vision, z: torch.Tensor) -> list[list[float]]:
        """How far the pictures of z (n, horizon, latent) are from the real frames, by episode."""
        return self.by_episode([rms(decode_frames(vision, x), self.real(k)) for k, x in enumerate(z)])

    def resampled(self, seed: int) -> torch.Tensor:
        """A draw of z in every frame of the segments, (n, context + horizon, latent)."""
        return resample(self.held, self.at, torch.Generator().manual_seed(seed))

    def horizon_errors(self, model: Dynamics, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Errors of M's dream and of the last z kept, in V's sd: two (n, horizon)."""
        return horizon_error(model, self.held, range(len(self.held)), self.context, self.horizon, seed=seed)

    def errors(self, world: WorldModel, seed: int = 0) -> dict:
        """Of M's dreams, in z (V's sd) and in pixels (grey levels): lists (episodes, horizon)."""
        actions = self.held.actions[self.at]
        dreams = open_loop(world.dynamics, self.resampled(seed), actions, self.context, seed=seed)
        dreamt, _ = self.horizon_errors(world.dynamics, seed)
        return {"latent": self.by_episode(dreamt), "pixels": self.pixels(world.vision, dreams)}

    def baselines(self, world: WorldModel, seed: int = 0) -> dict:
        """The same for the last z kept, and in pixels for V's reconstruction, which no M beats for long."""
        last = self.resampled(seed)[:, self.context - 1:self.context].expand(-1, self.horizon, -1)
        _, kept = self.horizon_errors(world.dynamics, seed)
        return {"latent": self.by_episode(kept), "pixels": self.pixels(world.vision, last),
                "reconstruction": self.pixels(world.vision, self.held.mu[self.at[:, self.context:]])}


# Cost

@torch.inference_mode()
def dream_rate(model: Dynamics, worlds: int, steps: int = 40, warm_up: int = 10) -> float:
    """Steps a second, of `worlds` side by side, each fed its own sample: the median step after a warm-up."""
    z = torch.zeros(worlds, model.latent)
    a = torch.zeros(worlds, model.action_dim)
    state = model.initial(worlds)
    times = []
    for _ in range(warm_up + steps):
        began = time.perf_counter()
        prediction, state = model.step(z, a, state)
        z = prediction.sample()
        times.append(time.perf_counter() - began)
    return worlds / float(np.median(times[warm_up:]))


def used_parameters(model: Dynamics, batch: dict) -> int:
    """How many numbers M's loss trains."""
    dynamics_loss(model, batch)[0].backward()
    used = sum(p.numel() for p in model.parameters() if p.grad is not None)
    model.zero_grad(set_to_none=True)
    return used


# Intervals

def bootstrap_means(x: np.ndarray, episodes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of x (seeds, n) on the redrawn `episodes` (draws, 1, n), with seeds redrawn too: (draws,).

    Drawing from n seeds gives their mean only (n - 1) / n of its variance, much too little for three: their
    spread is widened by that.
    """
    seeds = len(x)
    if seeds > 1: x = x + (math.sqrt(seeds / (seeds - 1)) - 1) * (x.mean(1, keepdims=True) - x.mean())
    return x[rng.integers(seeds, size=(len(episodes), seeds, 1)), episodes].mean((1, 2))


def interval(x, y=None, draws: int = 10_000) -> dict:
    """Mean of x (seeds, episodes), or of x - y, with its 95 % interval: a bootstrap over seeds and episodes.

    x and y get the same episodes in each draw: an episode that is hard for both does not widen the interval.
    """
    rng = np.random.default_rng(0)
    x = np.atleast_2d(x)
    episodes = rng.integers(x.shape[1], size=(draws, 1, x.shape[1]))
    mean = x.mean()
    drawn = bootstrap_means(x, episodes, rng)
    if y is not None:
        y = np.atleast_2d(y)
        mean = mean - y.mean()
        drawn = drawn - bootstrap_means(y, episodes, rng)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def explained_variance(errors, spreads, draws: int = 10_000) -> dict:
    """The share of the reward's variance that M explains, with its 95 % interval.

    From squared errors and squared deviations from the mean, summed over each episode: two (seeds, episodes).
    """
    rng = np.random.default_rng(0)
    errors = np.atleast_2d(errors)
    spreads = np.atleast_2d(spreads)
    seeds, episodes = errors.shape
    at = rng.integers(seeds, size=(draws, seeds, 1)), rng.integers(episodes, size=(draws, 1, episodes))
    drawn = 1 - errors[at].sum((1, 2)) / spreads[at].sum((1, 2))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(1 - errors.sum() / spreads.sum()), "low": float(low), "high": float(high)}
