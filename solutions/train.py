"""The whole pipeline on a game: collect, V, M, C, the official score, a video and a report in the run's
folder.

python -m solutions.train --settings quick
python -m solutions.train --settings quick --game takecover --run runs/takecover
python -m solutions.train --settings ci --game-file my_game.py --game MyGame --run runs/mine
"""
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from worldmodels.collect import collect
from worldmodels.carry_over import carry_over
from worldmodels.controller import ControllerSettings, WorldModelPolicy, controllers_for
from worldmodels.films import film_episode
from worldmodels.latents import apply_action_repeat
from worldmodels.rollouts import HELD_OUT
from worldmodels.tools.settings import load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import append_line
from worldmodels.tools.world import WorldModel
from worldmodels.tools.encoding import encode_store

from .controller import search
from .evaluate import evaluate
from .mdn_rnn import encode, learn_dynamics
from .rollouts import drive_randomly
from .settings import Sections, TrainSettings, claim_run, command, in_folder, open_store
from .transformer import learn_vit_wm
from .vae import learn_vision


class Clock:
    """Prints each stage with the minutes it took, and notes them in the run's stages.jsonl."""

    def __init__(self, folder: Path):
        self.path = folder / "stages.jsonl"
        self.last = time.time()

    def __call__(self, stage: str) -> None:
        now = time.time()
        seconds = now - self.last
        print(f"{stage}: {seconds / 60:.1f} min", flush=True)
        # else it was there already
        if seconds > 1: append_line(self.path, {"stage": stage, "seconds": round(seconds, 1)})
        self.last = now


def run(s: TrainSettings, folder: Path | str | None = None) -> Path:
    """Everything from the first frame to the report, in the run folder of `s` or in `folder`; goes on where
    it was killed.

    Returns the folder. Raises what `claim_run` raises, before anything is written.
    """
    s = in_folder(s, folder)
    folder = claim_run(s)
    clock = Clock(folder)
    store = open_store(folder, s) if s.store else drive_randomly(folder, s)
    clock("recorded driving" if s.store else "random driving")
    scouted = scout(folder / "scout", store, s, clock) if s.scout.generations else None
    world = learn_world(folder, store, s, clock, scouted and scouted[0])

    def start() -> np.ndarray:
        return carry_over_scout(folder, store, *scouted, world, s)

    # only such a C can be found by least squares; others begin at zero
    linear = s.controller == ControllerSettings()
    params = search(folder, world, s, start if scouted and linear else None)
    clock("C")
    evaluate(folder, world, s.controller, params, s.evaluate)
    film_episode(world, s.controller, params, HELD_OUT[0], folder / "drive.mp4", s.evaluate.max_steps)
    clock("score and video")
    print(f"report, video and weights are in {folder}")
    return folder


def learn_world(folder: Path, store: RolloutStore, s: TrainSettings, clock: Clock,
                start: WorldModel | None = None,
                whose: str = "") -> WorldModel:
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


def shortened(s: TrainSettings) -> TrainSettings:
    """The settings of the scout's V, M and C."""
    generations = s.scout.generations
    return replace(s, vae_fit=replace(s.vae_fit, steps=s.scout.vae_steps),
                   dynamics_fit=replace(s.dynamics_fit, steps=s.scout.dynamics_steps),
                   vit_wm_fit=replace(s.vit_wm_fit, steps=s.scout.vit_wm_steps),
                   evolve=replace(s.evolve, generations=generations, validate_every=generations,
                                  target_return=0.0))


def scout(folder: Path, store: RolloutStore, s: TrainSettings, clock: Clock) -> tuple[WorldModel, np.ndarray]:
    """A short V, M and C, and its driving, with mistakes, in the store."""
    short = shortened(s)
    world = learn_world(folder, store, short, clock, whose="the scout's ")
    params = search(folder, world, short)
    clock("the scout's C")
    policy = WorldModelPolicy(world, controllers_for(world, s.controller, params), s.scout.action_noise)
    collect(store, policy, s.scout.episodes, "fast", 20_000, s.evolve.max_steps, s.collect.rows, "scout")
    clock("the scout's driving")
    return world, params


def carry_over_scout(folder: Path, store: RolloutStore, old: WorldModel, params: np.ndarray, new: WorldModel,
                     s: TrainSettings) -> np.ndarray:
    """Where the search on the run's V and M begins: the scout's C, carried over by all driving, as both Vs
    encode it."""
    before, after = encode_store(old.vision, store), encode(folder, new.vision, store)
    repeat = s.m.action_repeat
    return carry_over(old, s.controller, params, new, apply_action_repeat(before, repeat),
                      apply_action_repeat(after, repeat))


def main() -> None: run(load(TrainSettings, description=__doc__, part_of=Sections))


if __name__ == "__main__": command(main)
