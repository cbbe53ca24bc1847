"""What the stages of the pipeline share: the settings of a run, and its folder."""
from dataclasses import dataclass, field
from pathlib import Path

from worldmodels.controller import ControllerSettings, EvolveSettings
from worldmodels.mdn_rnn import MDNRNNSettings
from worldmodels.rollouts import CollectSettings
from worldmodels.tools.settings import claim_run_folder, load
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


def open_run(description: str | None) -> tuple[Path, TrainSettings]:
    """Settings from the command line, and the run folder they belong to; the folder of another run is refused."""
    s = load(TrainSettings, description=description)
    return claim_run_folder(Path(s.run), s, s.fresh, ignore=("fresh",)), s
