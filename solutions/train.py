"""The whole pipeline on CarRacing: collect, V, M, C, the official score, a video and a report in runs/NAME/.

python -m solutions.train --settings quick
"""
import dataclasses, time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from solutions.evaluate import EvaluateSettings, evaluate
from worldmodels.controller import (ControllerSettings, EvolveSettings, RealFitness, WorldModelPolicy, controllers_for, evolve, imitate,
                                    load_controller, memories, save_controller)
from worldmodels.mdn_rnn import MDNRNN, MDNRNNSettings, train_dynamics
from worldmodels.rollouts import CollectSettings, NoisePolicy, collect
from worldmodels.tools.settings import claim_run_folder, load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import FitSettings
from worldmodels.tools.world import WorldModel, load_model, save_model
from worldmodels.vae import Latents, VAESettings, encode_store, train_vae


@dataclass(frozen=True)
class ScoutSettings:
    """A first, short V, M and C on random driving. Its controller then drives the episodes that the real ones learn from."""

    generations: int = 0
    """generations of the scout's C; 0 is no scout: everything learns from random driving, as in the paper"""
    vae_steps: int = 1000
    """updates of the scout's V"""
    dynamics_steps: int = 500
    """updates of the scout's M"""
    episodes: int = 128
    """episodes that the scout drives on the fast environment"""
    official: int = 16
    """episodes that it drives on the official one"""
    swerve: float = 0.3
    """size of the smooth noise added to what its C decides, so that the data shows mistakes and how to mend them"""


@dataclass(frozen=True)
class TrainSettings:
    """Everything from the first frame to the report. The defaults are the paper's numbers."""

    run: str = "runs/car"
    """folder of the run"""
    fresh: bool = False
    """start anew, even if the folder holds a run"""
    seed: int = 0
    """seed of weights, noise and evolution"""
    collect: CollectSettings = field(default_factory=CollectSettings)
    scout: ScoutSettings = field(default_factory=ScoutSettings)
    vae: VAESettings = field(default_factory=VAESettings)
    vae_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=1_000_000, batch=100, lr=1e-4))
    dynamics: MDNRNNSettings = field(default_factory=MDNRNNSettings)
    dynamics_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=4000, batch=100, lr=1e-3, lr_end=0.01, clip=1.0))
    window: int = 999
    """steps of an episode that M sees in one piece"""
    controller: ControllerSettings = field(default_factory=ControllerSettings)
    evolve: EvolveSettings = field(default_factory=EvolveSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)


class Clock:
    """Prints each stage with the minutes it took."""

    def __init__(self): self.began = self.last = time.time()

    def __call__(self, stage: str) -> None:
        now = time.time()
        print(f"{stage}: {(now - self.last) / 60:.1f} min ({(now - self.began) / 60:.1f} in all)", flush=True)
        self.last = now


def learn(folder: Path, store: RolloutStore, s: TrainSettings, clock: Clock, start: WorldModel | None = None) -> tuple[WorldModel, Latents]:
    """V and M on a store, from those of `start` if given; what `folder` holds already is loaded, not made again."""
    folder.mkdir(exist_ok=True)
    train, held = store.split()
    if not (folder / "vision.safetensors").exists():
        vision = train_vae(store, s.vae, s.vae_fit, folder, s.seed, train, start and start.vision)
        save_model(folder / "vision.safetensors", vision)
        clock("V")
    vision = load_model(folder / "vision.safetensors")
    if not (folder / "latents.safetensors").exists():
        encode_store(vision, store).save(folder / "latents.safetensors")
        clock("encode")
    latents = Latents.load(folder / "latents.safetensors")
    if not (folder / "dynamics.safetensors").exists():
        torch.manual_seed(s.seed)
        dynamics = MDNRNN(s.dynamics)
        if start: dynamics.load_state_dict(start.dynamics.state_dict())
        dynamics = train_dynamics(dynamics, latents, train, s.window, s.dynamics_fit, folder, s.seed)
        save_model(folder / "dynamics.safetensors", dynamics)
        clock("M")
    return WorldModel(vision, load_model(folder / "dynamics.safetensors")), latents


def search(folder: Path, world: WorldModel, s: TrainSettings, clock: Clock, start: np.ndarray | None = None) -> np.ndarray:
    """C by CMA-ES in the real environment."""
    if not (folder / "controller.safetensors").exists():
        fitness = RealFitness(world, s.controller)
        params, _ = evolve(fitness, np.zeros(fitness.dimension) if start is None else start, s.evolve, folder, s.seed)
        save_controller(folder / "controller.safetensors", s.controller, params)
        clock("C")
    return load_controller(folder / "controller.safetensors")[1]


def scouting(folder: Path, store: RolloutStore, s: TrainSettings, clock: Clock) -> tuple[WorldModel, np.ndarray]:
    """The scout's V, M and C; its driving is added to the store."""
    short = dataclasses.replace(
        s, vae_fit=dataclasses.replace(s.vae_fit, steps=s.scout.vae_steps), dynamics_fit=dataclasses.replace(s.dynamics_fit, steps=s.scout.dynamics_steps),
        evolve=dataclasses.replace(s.evolve, generations=s.scout.generations))
    world, _ = learn(folder, store, short, clock)
    params = search(folder, world, short, clock)
    policy = WorldModelPolicy(world, controllers_for(world, s.controller, params), s.scout.swerve)
    collect(store, policy, s.scout.episodes, "fast", 20_000, rows=s.collect.rows, tag="scout")
    collect(store, policy, s.scout.official, "gymnasium", 30_000, rows=s.collect.rows, tag="scout")
    clock("the scout's driving")
    return world, params


def main() -> None:
    s = load(TrainSettings, description=__doc__)
    folder = claim_run_folder(Path(s.run), s, s.fresh, ignore=("fresh",))
    clock = Clock()
    store = RolloutStore.create(folder / "store", "CarRacing-v3", s.collect.size, 3)
    noise = NoisePolicy(s.collect.noise, s.collect.max_steps)
    collect(store, noise, s.collect.episodes, "fast", 0, s.collect.max_steps, s.collect.rows, "random")
    collect(store, noise, s.collect.official, "gymnasium", 10_000, s.collect.max_steps, s.collect.rows, "random")
    clock("collect")
    scout = scouting(folder / "scout", store, s, clock) if s.scout.generations else None
    world, latents = learn(folder, store, s, clock, scout and scout[0])
    start = None
    if scout:
        old, params = scout
        seen = memories(old, encode_store(old.vision, store))
        wanted = controllers_for(old, s.controller, params)(seen, torch.zeros(len(seen), dtype=int))
        start = imitate(memories(world, latents), wanted)
        clock("imitate the scout")
    params = search(folder, world, s, clock, start)
    evaluate(folder, world, s.controller, params, s.evaluate)


if __name__ == "__main__": main()
