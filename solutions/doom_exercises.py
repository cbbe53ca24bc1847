"""Answers to chapter 06's exercises 6, 7 and 8."""
from dataclasses import replace

import numpy as np
import torch

from worldmodels.carry_over import controller_inputs
from worldmodels.collect import record
from worldmodels.controller import ControllerSettings, controllers_for
from worldmodels.doom import C_DOOM, dream_to_the_end, fire, replay_health
from worldmodels.dream import (Dream, DreamFitness, DreamSettings, InitialStates, done_probability,
                               require_heads)
from worldmodels.envs import make_envs
from worldmodels.latents import apply_action_repeat
from worldmodels.rollouts import Policy
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import WorldModel
from worldmodels.tools.encoding import Latents, decode_frames, encode_frames

from .doom_report import lives

# Exercise 6

def r_squared(x: torch.Tensor, y: torch.Tensor, train: torch.Tensor, ridge: float = 1e-3) -> float:
    """R² on the other rows of a linear fit of y (n,) on x (n, inputs) in the rows `train` (n,) bool."""
    x = torch.cat([(x - x[train].mean(0)) / (x[train].std(0) + 1e-6), torch.ones(len(x), 1)], 1).double()
    a, b, y = x[train], x[~train], y.double()
    weight = torch.linalg.solve(a.T @ a + ridge * len(a) * torch.eye(x.shape[1]), a.T @ y[train])
    return 1 - float((b @ weight - y[~train]).pow(2).mean() / y[~train].var(unbiased=False))


def health_in_memory(world: WorldModel, store: RolloutStore, latents: Latents) -> dict[str, float]:
    """How much of the health a linear fit reads off the tic alone, z, and z with M's memory.

    R² on held-out episodes.
    """
    if latents.repeat != 1:
        raise ValueError(f"latents of every tic are needed, not of every {latents.repeat}")
    repeat = world.dynamics.action_repeat
    tics = [[*range(0, int(n), repeat), int(n)] for n in latents.lengths]  # those that M sees
    health = torch.cat([torch.from_numpy(replay_health(episode.seed, episode.actions)[seen])
                        for episode, seen in zip(store.episodes(), tics)])
    time = torch.tensor(sum(tics, []))[:, None].float()
    latents = apply_action_repeat(latents, repeat)
    known = torch.zeros(len(health), dtype=torch.bool)
    for i in store.split()[0]: known[latents.episode(int(i))] = True
    inputs = {"tic": time, "tic and z": torch.cat([time, latents.mu], 1),
              "tic, z and memory": torch.cat([time, controller_inputs(world, latents)], 1)}
    return {name: r_squared(x, health, known) for name, x in inputs.items()}


# Exercise 7

class Still(Policy):
    """Stands where it is."""

    name = "still"

    def act(self, frames, rows): return np.zeros((len(rows), 1), np.float32)


def by_age(fires: list[np.ndarray], every: int) -> list[float]:
    """Means over the steps 0 to `every` - 1, and so on, of those that still live there.

    `fires` holds an array for every life.
    """
    return [float(np.concatenate([f[k:k + every] for f in fires]).mean())
            for k in range(0, max(map(len, fires)), every)]


def fire_by_temperature(world: WorldModel, starts: InitialStates, dream: DreamSettings,
                        temperatures: tuple[float, ...], seeds: range,
                        every: int = 25) -> dict[float | str, list[float]]:
    """Mean share of glowing pixels at each age, in groups of `every` steps of M, around one that stands
    still.

    In the dreams of each τ, and, as "game", in games of as many tics, coded and decoded by the same V.
    """
    vision, repeat = world.vision, world.dynamics.action_repeat
    still = np.zeros(controllers_for(world, C_DOOM).dimension)
    found = {}
    for tau in temperatures:
        warm = replace(dream, temperature=tau)
        z, logits = dream_to_the_end(world, C_DOOM, still, starts, warm, seeds)
        lengths = lives(logits, warm).int().tolist()
        found[tau] = by_age([fire(decode_frames(vision, z[:n + 1, i])) for i, n in enumerate(lengths)], every)
    envs = make_envs(world.game, list(seeds), vision.size)
    try: games = record(envs, Still(), dream.max_steps * repeat)
    finally: envs.close()
    latents = [torch.from_numpy(encode_frames(vision, game.frames[::repeat])[0]) for game in games]
    found["game"] = by_age([fire(decode_frames(vision, z)) for z in latents], every)
    return found


# Exercise 8

class Fading(Dream):
    """A dream in which nobody is drawn dead: a step pays its reward times the chance of being alive.

    It is over where that chance is below `floor`.
    """

    floor = 0.05

    def __init__(self, world: WorldModel, starts: InitialStates, settings: DreamSettings):
        require_heads(world.dynamics, settings)
        super().__init__(world, starts, replace(settings, done="never"))

    def set_state(self, z, state, noise):
        self.alive = torch.ones(len(z))
        return super().set_state(z, state, noise)

    def step(self, actions):
        z, reward, _ = super().step(actions)
        pays = reward * self.alive
        self.alive = self.alive * (1 - done_probability(self.done_logit, self.settings.done_weight))
        return z, pays, self.alive < self.floor

    def take(self, rows):
        self.alive = self.alive[rows]
        return super().take(rows)


class FadingFitness(DreamFitness):
    """What `DreamFitness` with done by sample says in the mean over all draws of death, but for the last
    `floor`.

    `evolve` takes it as well.
    """

    def __init__(self, world: WorldModel, starts: InitialStates, controller: ControllerSettings,
                 settings: DreamSettings):
        super().__init__(world, starts, controller, settings)
        self.dream = Fading(world, starts, settings)


def luck(returns: np.ndarray) -> float:
    """The sd of one dream that neither candidate nor seed explains: returns (P, E) of P on the same E
    seeds."""
    rest = returns - returns.mean(1, keepdims=True) - returns.mean(0) + returns.mean()
    return float(np.sqrt(np.square(rest).sum() / np.prod(np.subtract(returns.shape, 1))))


def luck_by_rule(world: WorldModel, starts: InitialStates, dream: DreamSettings, params: np.ndarray,
                 sigma: float = 0.15, candidates: int = 16,
                 seeds: range = range(64)) -> dict[str, dict[str, float]]:
    """Mean return, luck and dreamt steps, of one generation around `params` under either rule."""
    others = params + sigma * np.random.default_rng(0).normal(size=(candidates, len(params)))
    found = {}
    for rule, kind in {"sample": DreamFitness, "fading": FadingFitness}.items():
        fitness = kind(world, starts, C_DOOM, replace(dream, done="sample"))
        returns = fitness(others, seeds)
        found[rule] = {"mean": float(returns.mean()), "luck": luck(returns), "steps": fitness.steps}
    return found
