"""What the stages of the pipeline share: the settings of a run, and its folder."""
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from worldmodels.baselines import PPOSettings
from worldmodels.controller import ControllerSettings, EvolveSettings
from worldmodels.mdn_rnn import MDNRNNSettings
from worldmodels.rollouts import CollectSettings
from worldmodels.tools.settings import claim_run_folder, load
from worldmodels.tools.store import RolloutStore, estimate_bytes, require_space
from worldmodels.tools.training import FitSettings
from worldmodels.vae import VAESettings


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
    official: int = 32
    """episodes that it drives on the official one"""
    swerve: float = 0.3
    """size of the smooth noise added to what its C decides, so that the data shows mistakes and how to mend them"""


@dataclass(frozen=True)
class EvaluateSettings:
    """How a run is scored."""

    episodes: int = 100
    """held-out tracks, the same on the official environment and on the fast one"""
    max_steps: int = 1000
    """steps after which an episode is cut"""


@dataclass(frozen=True)
class TrainSettings:
    """Sections from the first frame to the report. The defaults are the paper's numbers."""

    run: str = "runs/car"
    """folder of the run"""
    fresh: bool = False
    """start anew, even if the folder holds a run"""
    seed: int = 0
    """seed of weights, noise and evolution"""
    store: str = ""
    """recorded episodes to learn from, such as imported ones; empty: the run drives for its own"""
    vision: str = ""
    """weights of a V to take, such as another run's vision.safetensors; empty: the run trains its own"""
    latents: str = ""
    """ready latents for `solutions.mdn_rnn` to learn from, with no V and no store; empty: V encodes the store"""
    collect: CollectSettings = field(default_factory=CollectSettings)
    scout: ScoutSettings = field(default_factory=ScoutSettings)
    vae: VAESettings = field(default_factory=VAESettings)
    vae_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=1_000_000, batch=100, lr=1e-4))
    dynamics: MDNRNNSettings = field(default_factory=MDNRNNSettings)
    dynamics_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=4000, batch=100, lr=1e-3, lr_end=0.01, clip=1.0))
    window: int = 999
    """steps of an episode that M sees in one piece"""
    warm_up: int = 0
    """first steps of such a piece that only fill M's memory and do not count in its loss"""
    controller: ControllerSettings = field(default_factory=ControllerSettings)
    evolve: EvolveSettings = field(default_factory=EvolveSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self):
        if self.vae.latent != self.dynamics.latent:
            raise ValueError(f"vae.latent is {self.vae.latent} and dynamics.latent {self.dynamics.latent}: M reads what V writes, so they must be equal")
        if not 0 <= self.warm_up < self.window: raise ValueError(f"warm_up must be 0 to window - 1 = {self.window - 1}, not {self.warm_up}")
        if self.store and self.scout.generations:
            raise ValueError(f"a scout would write its driving into {self.store}: --scout.generations 0 learns from what is there")
        if not self.store and self.vae.size != self.collect.size:
            raise ValueError(f"vae.size is {self.vae.size} and collect.size {self.collect.size}: V is made for the frames that are collected")
        if self.dynamics.action_dim != 3: raise ValueError(f"dynamics.action_dim must be 3 (steering, gas, brake), not {self.dynamics.action_dim}")


@dataclass(frozen=True)
class StudySettings:
    """The studies of chapter 07; smaller trainings than a run's, but many of them."""

    run: str = "runs/baselines"
    """folder of the studies"""
    to: str = ""
    """folder that also gets the tables and the figures, if given"""
    fresh: bool = False
    """start anew, even if the folder holds studies"""
    part: Literal["all", "data", "controls", "time"] = "all"
    """which study: data policies, controls, or time to a score"""
    policies: str = "white,brownian,held,ppo,iterated"
    """ways of collecting data that are compared"""
    ppo: str = "runs/ppo"
    """a run of solutions.ppo, for its data, its score and its curve; where there is none, its rows say so"""
    world: str = "data/carracing"
    """V and M that the controls share"""
    seed: int = 0
    """seed of everything"""
    seeds: int = 3
    """trainings of V and of M for each way of collecting data"""
    frames: int = 48_000
    """frames that each way of collecting gets"""
    length: int = 500
    """steps after which a collected episode is cut"""
    test_episodes: int = 16
    """episodes of good driving, on validation tracks, on which every V and M is measured"""
    test_steps: int = 400
    """steps of such an episode"""
    vae_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=500, batch=256, lr=1e-3, lr_end=0.05))
    dynamics_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=400, batch=128, lr=2e-3, lr_end=0.01, clip=1.0))
    window: int = 64
    """steps of an episode that M sees in one piece"""
    evolve: EvolveSettings = field(default_factory=lambda: EvolveSettings(episodes=2, generations=10, diagonal=True, validate_every=2,
                                                                          validate_episodes=16))
    evaluate: EvaluateSettings = field(default_factory=lambda: EvaluateSettings(episodes=48))


@dataclass(frozen=True)
class Sections(TrainSettings):
    """What a section of settings.ini may hold: the keys of every command."""

    ppo: PPOSettings = field(default_factory=PPOSettings)
    baselines: StudySettings = field(default_factory=StudySettings)


def bytes_to_come(s: TrainSettings) -> int:
    """An upper estimate of what the rollouts of a run take on disk."""
    frames = (s.collect.episodes + s.collect.official) * (s.collect.max_steps + 1)
    if s.scout.generations: frames += (s.scout.episodes + s.scout.official) * (s.evolve.max_steps + 1)
    return estimate_bytes(frames, s.collect.size)


def open_run(description: str | None, stage: bool = False) -> tuple[Path, TrainSettings]:
    """Settings from the command line, and the run folder they belong to.

    Raises ValueError for the folder of a run with other settings, and for a single `stage` of a run with a scout, OSError where a new run's
    rollouts would not fit on the disk; nothing is written then.
    """
    s = load(TrainSettings, description=description, part_of=Sections)
    if stage and s.scout.generations:
        raise ValueError("these settings begin with a scout, which only `python -m solutions.train` runs, and goes on with; "
                         "--scout.generations 0 trains this stage without one")
    folder = Path(s.run)
    if not (s.store or s.latents or (folder / "store").exists()): require_space(folder, bytes_to_come(s))
    return claim_run_folder(folder, s, s.fresh, ignore=("fresh", "run")), s


def open_store(folder: Path, s: TrainSettings) -> RolloutStore:
    """The episodes that a run learns from: its own, or those that `s.store` names."""
    return RolloutStore(s.store or folder / "store")


def command(main: Callable) -> None:
    """Run a command; a mistake ends in one line that says what was wrong."""
    try: main()
    except (OSError, ValueError, RuntimeError, ImportError, FloatingPointError) as error: sys.exit(f"error: {error}")
