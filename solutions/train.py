"""The whole pipeline on CarRacing: collect, V, M, C, the official score, a video and a report in the run's folder.

python -m solutions.train --settings quick
"""
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from solutions.controller import search
from solutions.evaluate import evaluate
from solutions.mdn_rnn import encode, learn_dynamics
from solutions.rollouts import drive_randomly
from solutions.settings import TrainSettings, command, open_run, open_store
from solutions.transformer import learn_vit_wm
from solutions.vae import learn_vision
from worldmodels.controller import ControllerSettings, WorldModelPolicy, carry_over, controllers_for, film
from worldmodels.latents import apply_action_repeat
from worldmodels.rollouts import HELD_OUT, collect
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import append_line
from worldmodels.tools.world import WorldModel
from worldmodels.vae import encode_store


class Clock:
    """Prints each stage with the minutes it took, and notes them in the run's stages.jsonl."""

    def __init__(self, folder: Path): self.path, self.last = folder / "stages.jsonl", time.time()

    def __call__(self, stage: str) -> None:
        now = time.time()
        print(f"{stage}: {(now - self.last) / 60:.1f} min", flush=True)
        if now - self.last > 1: append_line(self.path, {"stage": stage, "seconds": round(now - self.last, 1)})  # else it was there already
        self.last = now


def learn(folder: Path, store: RolloutStore, s: TrainSettings, clock: Clock, start: WorldModel | None = None, whose: str = "") -> WorldModel:
    """V, then M, in `folder`, or both at once where they are one; from the V and M of `start`, if given."""
    folder.mkdir(exist_ok=True)
    if s.model == "ViTWM":
        world = learn_vit_wm(folder, store, s, start and start.vision)
        clock(f"{whose}V and M")
        return world
    vision = learn_vision(folder, store, s, start and start.vision)
    clock(f"{whose}V")
    world = learn_dynamics(folder, vision, store, s, start and start.dynamics)
    clock(f"{whose}M")
    return world


def scout(folder: Path, store: RolloutStore, s: TrainSettings, clock: Clock) -> tuple[WorldModel, np.ndarray]:
    """A short V, M and C, and its driving, with mistakes, in the store."""
    short = replace(s, vae_fit=replace(s.vae_fit, steps=s.scout.vae_steps), dynamics_fit=replace(s.dynamics_fit, steps=s.scout.dynamics_steps),
                    vit_wm_fit=replace(s.vit_wm_fit, steps=s.scout.vit_wm_steps),
                    evolve=replace(s.evolve, generations=s.scout.generations, validate_every=s.scout.generations, target_return=0.0))
    world = learn(folder, store, short, clock, whose="the scout's ")
    params = search(folder, world, short)
    clock("the scout's C")
    policy = WorldModelPolicy(world, controllers_for(world, s.controller, params), s.scout.action_noise)
    collect(store, policy, s.scout.episodes, "fast", 20_000, s.evolve.max_steps, s.collect.rows, "scout")
    collect(store, policy, s.scout.official, "gymnasium", 30_000, s.evolve.max_steps, s.collect.rows, "scout")
    clock("the scout's driving")
    return world, params


def retrace(folder: Path, store: RolloutStore, old: WorldModel, params: np.ndarray, new: WorldModel, s: TrainSettings) -> np.ndarray:
    """Where the search on a new V and M begins: the linear C that decides there most nearly as `params` does on the old ones."""
    before, after = (apply_action_repeat(latents, s.m.action_repeat) for latents in (encode_store(old.vision, store), encode(folder, new.vision, store)))
    return carry_over(old, s.controller, params, new, before, after)


def main() -> None:
    folder, s = open_run(__doc__)
    clock = Clock(folder)
    store = open_store(folder, s) if s.store else drive_randomly(folder, s)
    clock("recorded driving" if s.store else "random driving")
    scouted = scout(folder / "scout", store, s, clock) if s.scout.generations else None
    world = learn(folder, store, s, clock, scouted and scouted[0])
    linear = s.controller == ControllerSettings()  # only such a C can be found by least squares; others begin at zero
    params = search(folder, world, s, (lambda: retrace(folder, store, *scouted, world, s)) if scouted and linear else None)
    clock("C")
    evaluate(folder, world, s.controller, params, s.evaluate)
    film(world, s.controller, params, HELD_OUT[0], folder / "drive.mp4", s.evaluate.max_steps)
    clock("score and video")
    print(f"report, video and weights are in {folder}")


if __name__ == "__main__": command(main)
