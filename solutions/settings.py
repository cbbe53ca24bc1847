"""What the stages of the pipeline share: the settings of a run, and its folder."""
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from worldmodels.controller import ControllerSettings, EvolveSettings
from worldmodels.mdn_rnn import MDNRNNSettings
from worldmodels.ppo import PPOSettings
from worldmodels.rollouts import CollectSettings
from worldmodels.tools.settings import claim_run_folder, load
from worldmodels.tools.store import RolloutStore, estimate_bytes, require_space
from worldmodels.tools.training import FitSettings
from worldmodels.transformer import TraDESettings, TransformerSettings, ViTWMSettings
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
    vit_wm_steps: int = 1000
    """updates of the scout's ViT-WM, where that is V and M"""
    episodes: int = 128
    """episodes that the scout drives on the fast environment"""
    official: int = 32
    """episodes that it drives on the official one"""
    action_noise: float = 0.3
    """size of the smooth noise added to what its C decides, so that the data shows mistakes and how to mend them"""


@dataclass(frozen=True)
class EvaluateSettings:
    """How a run is scored."""

    episodes: int = 100
    """held-out tracks, the same on the official environment and on the fast one"""
    max_steps: int = 1000
    """steps after which an episode is cut"""


M_FIELDS = {"MDNRNN": "dynamics", "TransformerMDN": "transformer", "TraDE": "trade", "ViTWM": "vit_wm"}  # class of M: its settings


@dataclass(frozen=True)
class TrainSettings:
    """Everything from the first frame to the report. The defaults are the paper's numbers."""

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
    model: Literal["MDNRNN", "TransformerMDN", "TraDE", "ViTWM"] = "MDNRNN"
    """what M is; a ViTWM is V too, and `vae` and `window` are then not used"""
    dynamics: MDNRNNSettings = field(default_factory=MDNRNNSettings)
    transformer: TransformerSettings = field(default_factory=TransformerSettings)
    trade: TraDESettings = field(default_factory=TraDESettings)
    vit_wm: ViTWMSettings = field(default_factory=ViTWMSettings)
    dynamics_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=4000, batch=100, lr=1e-3, lr_end=0.01, clip=1.0))
    window: int = 999
    """steps of an episode that M sees in one piece"""
    warm_up: int = 0
    """first steps of such a piece that only fill M's memory and do not count in its loss"""
    vit_wm_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=100_000, batch=16, lr=3e-4))
    clip: int = 32
    """steps of an episode in one clip that a ViT-WM is trained on"""
    controller: ControllerSettings = field(default_factory=ControllerSettings)
    evolve: EvolveSettings = field(default_factory=EvolveSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self):
        name, m = M_FIELDS[self.model], self.m
        v, vision = (name, m) if self.model == "ViTWM" else ("vae", self.vae)
        if vision.latent != m.latent:
            raise ValueError(f"vae.latent is {vision.latent} and {name}.latent {m.latent}: M reads what V writes, so they must be equal")
        if not self.store and vision.size != self.collect.size:
            raise ValueError(f"{v}.size is {vision.size} and collect.size {self.collect.size}: V is made for the frames that are collected")
        if not 0 <= self.warm_up < self.window: raise ValueError(f"warm_up must be 0 to window - 1 = {self.window - 1}, not {self.warm_up}")
        if self.store and self.scout.generations:
            raise ValueError(f"a scout would write its driving into {self.store}: --scout.generations 0 learns from what is there")
        if m.action_dim != 3: raise ValueError(f"{name}.action_dim must be 3 (steering, gas, brake), not {m.action_dim}")
        what, steps, longest = *(("clip", self.clip) if vision is m else ("window", self.window)), getattr(m, "longest", math.inf)
        if not 1 <= steps <= longest: raise ValueError(f"{what} must be at least 1 and at most {name}.longest ({longest}), not {steps}")

    @property
    def m(self) -> MDNRNNSettings | TransformerSettings:
        """The settings of the chosen M."""
        return getattr(self, M_FIELDS[self.model])


@dataclass(frozen=True)
class CompareSettings:
    """The Ms side by side, on one frozen V, the same episodes and as much time each."""

    run: str = "runs/compare"
    """folder of the comparison"""
    fresh: bool = False
    """start anew, even if the folder holds a comparison"""
    source: str = "runs/laptop"
    """run folder whose V and episodes are used; it is only read"""
    to: str = ""
    """folder that also gets the table, the figure, the report and the trained TransformerMDN, if given"""
    seconds: float = 600.0
    """time to train each M on the frozen V"""
    joint_seconds: float = 3600.0
    """time to train the joint ViT-WM"""
    seeds: int = 3
    """trainings of each M on the frozen V, for the likelihoods' intervals"""
    window: int = 64
    """steps of an episode that M sees in one piece"""
    fit: FitSettings = field(default_factory=lambda: FitSettings(batch=32, lr=4e-3, lr_end=0.05, clip=1.0))
    """how the Ms on the frozen V are trained; `steps` is replaced by as many as fit into `seconds`"""
    clip: int = 16
    """steps of an episode in one clip that the joint ViT-WM is trained on"""
    joint_fit: FitSettings = field(default_factory=lambda: FitSettings(batch=16, lr=1e-3, lr_end=0.05))
    """how the joint ViT-WM is trained; `steps` is replaced by as many as fit into `joint_seconds`"""
    dynamics: MDNRNNSettings = field(default_factory=lambda: MDNRNNSettings(reward=True, done=True))
    transformer: TransformerSettings = field(default_factory=lambda: TransformerSettings(width=120, reward=True, done=True))
    trade: TraDESettings = field(default_factory=lambda: TraDESettings(width=120, density_heads=2, density_share=0.125, reward=True, done=True))
    vit_wm: ViTWMSettings = field(default_factory=lambda: ViTWMSettings(width=88))
    """the ViT-WM of which only the dynamics mode is trained and used, on the frozen V"""
    joint: ViTWMSettings = field(default_factory=lambda: ViTWMSettings(context=16))
    """the ViT-WM that is V and M"""
    episodes: int = 32
    """held-out episodes that every M is scored on, at most"""
    context: int = 50
    """frames seen before a dream"""
    horizon: int = 100
    """frames dreamt"""
    worlds: int = 256
    """worlds that dream side by side where speed is measured"""
    evolve: EvolveSettings = field(default_factory=EvolveSettings)
    """the search for a C on each M"""
    tracks: int = 32
    """held-out tracks that each C is scored on, in the fast environment"""

    def __post_init__(self):
        for name in ("seconds", "joint_seconds", "seeds", "window", "clip", "episodes", "context", "horizon", "worlds", "tracks"):
            if not getattr(self, name) > 0: raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class StudySettings:
    """The studies of chapter 07; smaller trainings than a run's, but many of them."""

    run: str = "runs/baselines"
    """folder of the studies"""
    to: str = ""
    """folder that also gets the tables, the figures and the results of the cells behind them, if given"""
    fresh: bool = False
    """start anew, even if the folder holds studies"""
    part: Literal["all", "data", "controls", "doom", "time"] = "all"
    """which study: data policies, controls on the road, controls in Doom, or time to a score"""
    policies: str = "white,brownian,held,ppo,iterated"
    """ways of collecting data that are compared"""
    ppo: str = "data/ppo"
    """a run of solutions.ppo, or what it published, for its data, its score and its curve; where there is none, its rows are left out"""
    world: str = "data/carracing"
    """V and M that the controls on the road share"""
    doom: str = "data/takecover"
    """V and M that the controls in Doom share"""
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
    vae_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=300, batch=256, lr=1e-3, lr_end=0.05))
    dynamics_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=400, batch=128, lr=2e-3, lr_end=0.01, clip=1.0))
    window: int = 64
    """steps of an episode that M sees in one piece"""
    evolve: EvolveSettings = field(default_factory=lambda: EvolveSettings(episodes=2, generations=10, diagonal=True, validate_every=2,
                                                                          validate_episodes=16))
    evaluate: EvaluateSettings = field(default_factory=lambda: EvaluateSettings(episodes=32))
    doom_evolve: EvolveSettings = field(default_factory=lambda: EvolveSettings(diagonal=True, generations=20, validate_every=10, max_steps=2100, patience=0))
    """a search in Doom's dreams; max_steps is in tics"""
    doom_evaluate: EvaluateSettings = field(default_factory=lambda: EvaluateSettings(max_steps=2100))
    """how its result is scored in the game, in tics"""


@dataclass(frozen=True)
class Sections(TrainSettings):
    """What a section of settings.ini may hold: the keys of every command."""

    compare: CompareSettings = field(default_factory=CompareSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    baselines: StudySettings = field(default_factory=StudySettings)


def bytes_to_come(s: TrainSettings) -> int:
    """An upper estimate of what the rollouts of a run take on disk."""
    frames = (s.collect.episodes + s.collect.official) * (s.collect.max_steps + 1)
    if s.scout.generations: frames += (s.scout.episodes + s.scout.official) * (s.evolve.max_steps + 1)
    return estimate_bytes(frames, s.collect.size)


def open_run(description: str | None, stage: bool = False, joint: bool = True) -> tuple[Path, TrainSettings]:
    """Settings from the command line, and the run folder they belong to.

    Raises ValueError for the folder of a run with other settings, for a single `stage` of a run with a scout, and for a stage that is not `joint`
    where V and M are one, OSError where a new run's rollouts would not fit on the disk; nothing is written then.
    """
    s = load(TrainSettings, description=description, part_of=Sections)
    if not joint and s.model == "ViTWM":
        raise ValueError("a ViTWM is V and M in one: `python -m solutions.transformer` trains both at once")
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
