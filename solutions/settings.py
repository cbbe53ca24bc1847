"""What the stages of the pipeline share: the settings of a run, and its folder."""
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from worldmodels.controller import ControllerSettings, EvolveSettings
from worldmodels.mdn_rnn import MDNRNNSettings
from worldmodels.rollouts import CollectSettings
from worldmodels.tools.settings import claim_run_folder, load
from worldmodels.tools.store import estimate_bytes, require_space
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

    def __post_init__(self):
        if self.vae.latent != self.dynamics.latent:
            raise ValueError(f"vae.latent is {self.vae.latent} and dynamics.latent {self.dynamics.latent}: M reads what V writes, so they must be equal")
        if self.vae.size != self.collect.size:
            raise ValueError(f"vae.size is {self.vae.size} and collect.size {self.collect.size}: V is made for the frames that are collected")
        if self.dynamics.action_dim != 3: raise ValueError(f"dynamics.action_dim must be 3 (steering, gas, brake), not {self.dynamics.action_dim}")


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
    s = load(TrainSettings, description=description)
    if stage and s.scout.generations:
        raise ValueError("these settings begin with a scout, which only `python -m solutions.train` runs, and goes on with; "
                         "--scout.generations 0 trains this stage without one")
    folder = Path(s.run)
    if not (folder / "store").exists(): require_space(folder, bytes_to_come(s))
    return claim_run_folder(folder, s, s.fresh, ignore=("fresh", "run")), s


def command(main: Callable) -> None:
    """Run a command; a mistake ends in one line that says what was wrong."""
    try: main()
    except (OSError, ValueError, RuntimeError, FloatingPointError, ImportError) as error: sys.exit(f"error: {error}")
