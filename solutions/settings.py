"""What the stages of the pipeline share: the settings of a run, and its folder."""
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from worldmodels.collect import CollectSettings
from worldmodels.controller import ControllerSettings, EvolveSettings
from worldmodels.dream import DreamSettings
from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.ppo import PPOSettings
from worldmodels.tools.bounds import above, at_least
from worldmodels.tools.games import GameSpec, find_game
from worldmodels.tools.settings import claim_run_folder, load, read_config
from worldmodels.tools.store import RolloutStore, estimate_bytes, require_space
from worldmodels.tools.training import FitSettings
from worldmodels.dynamics_settings import TraDESettings, TransformerSettings, ViTWMSettings
from worldmodels.vae import VAESettings


@dataclass(frozen=True)
class ScoutSettings:
    """A first, short V, M and C on random driving.

    Its controller then drives the episodes that the real ones learn from.
    """

    generations: int = 0
    """generations of the scout's C; 0 is no scout: everything learns from random driving, as in the paper"""
    vae_steps: int = 1000
    """updates of the scout's V"""
    dynamics_steps: int = 500
    """updates of the scout's M"""
    vit_wm_steps: int = 1000
    """updates of the scout's ViT-WM, where that is V and M"""
    episodes: int = 128
    """episodes that the scout drives"""
    action_noise: float = 0.3
    """size of the smooth noise added to what its C decides, so that the data shows mistakes and how to
    mend them"""


@dataclass(frozen=True)
class EvaluateSettings:
    """How a run is scored."""

    episodes: int = 100
    """held-out tracks, on the official environment"""
    max_steps: int = 1000
    """steps after which an episode is cut"""


# class of M: its settings
M_FIELDS = {"MDNRNN": "dynamics", "TransformerMDN": "transformer", "TraDE": "trade", "ViTWM": "vit_wm"}


@dataclass(frozen=True)
class TrainSettings:
    """Everything from the first frame to the report. The defaults are the paper's numbers.

    What differs from its code: C sees V's mean, there it sees a draw; the game ends a lap at 95 % of the
    tiles, there at all of them.
    """

    run: str = "runs/car"
    """folder of the run"""
    fresh: bool = False
    """start anew, even if the folder holds a run"""
    seed: int = 0
    """seed of weights, noise and evolution"""
    game: str = "CarRacing"
    """what is played: a game in the registry (worldmodels.tools.games); its entry says what its settings
    are by default"""
    game_file: str = ""
    """a Python file that enters a game of your own with `register_game`"""
    store: str = ""
    """recorded episodes to learn from, such as imported ones; empty: the run drives for its own"""
    vision: str = ""
    """weights of a V to take, such as another run's vision.safetensors; empty: the run trains its own"""
    latents: str = ""
    """ready latents for `solutions.mdn_rnn` to learn from, with no V and no store; empty: V encodes the
    store"""
    collect: CollectSettings = CollectSettings()
    scout: ScoutSettings = ScoutSettings()
    vae: VAESettings = VAESettings()
    vae_fit: FitSettings = FitSettings(steps=1_000_000, batch=100, lr=1e-4)
    model: Literal["MDNRNN", "TransformerMDN", "TraDE", "ViTWM"] = "MDNRNN"
    """what M is; a ViTWM is V too, and `vae` and `window` are then not used"""
    dynamics: MDNRNNSettings = MDNRNNSettings()
    transformer: TransformerSettings = TransformerSettings()
    trade: TraDESettings = TraDESettings()
    vit_wm: ViTWMSettings = ViTWMSettings()
    dynamics_fit: FitSettings = FitSettings(steps=4000, batch=100, lr=1e-3, clip=1.0)
    window: int = 999
    """steps of an episode that M sees in one piece"""
    warm_up: int = 0
    """first steps of such a piece that only fill M's memory and do not count in its loss"""
    vit_wm_fit: FitSettings = FitSettings(steps=100_000, batch=16, lr=3e-4)
    clip: int = 32
    """steps of an episode in one clip that a ViT-WM is trained on"""
    controller: ControllerSettings = ControllerSettings()
    evolve: EvolveSettings = EvolveSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    def __post_init__(self):
        object.__setattr__(self, "game", find_game(self.game).name)  # as the registry writes it
        if self.store and self.scout.generations:
            raise ValueError(f"a scout would write its driving into {self.store}: --scout.generations 0 "
                             "learns from "
                             "what is there")
        self._check_widths()
        self._check_lengths()

    def _check_widths(self) -> None:
        """V's latent, frames and actions are what M reads."""
        name, m = M_FIELDS[self.model], self.m
        v, vision = (name, m) if self.model == "ViTWM" else ("vae", self.vae)
        if vision.latent != m.latent:
            raise ValueError(f"vae.latent is {vision.latent} and {name}.latent {m.latent}: M reads what V "
                             "writes, so "
                             "they must be equal")
        if not self.store and vision.size != self.collect.size:
            raise ValueError(f"{v}.size is {vision.size} and collect.size {self.collect.size}: V is made for "
                             "the "
                             "frames that are collected")
        if m.action_dim != self.spec.action_dim:
            raise ValueError(f"{name}.action_dim must be {self.spec.action_dim}, the numbers in an action of "
                             f"{self.game}, not {m.action_dim}")

    def _check_lengths(self) -> None:
        """The pieces of episodes that M learns from are as long as it can read."""
        if not 0 <= self.warm_up < self.window:
            raise ValueError(f"warm_up must be 0 to window - 1 = {self.window - 1}, not {self.warm_up}")
        what, steps = ("clip", self.clip) if self.model == "ViTWM" else ("window", self.window)
        longest = getattr(self.m, "longest", math.inf)
        if not 1 <= steps <= longest:
            raise ValueError(f"{what} must be at least 1 and at most {M_FIELDS[self.model]}.longest "
                             f"({longest}), "
                             f"not {steps}")

    @property
    def spec(self) -> GameSpec:
        """The game."""
        return find_game(self.game)

    @property
    def m(self) -> MDNRNNSettings | TransformerSettings:
        """The settings of the chosen M."""
        return getattr(self, M_FIELDS[self.model])


@dataclass(frozen=True)
class IterateSettings:
    """Rounds of driving with C, learning from it, and dreaming on."""

    rounds: int = 8
    """rounds after the naive one; 0 is the naive dream alone"""
    episodes: int = 48
    """episodes driven for a round on the fast environment"""
    max_steps: int = 400
    """steps after which such an episode is cut"""
    drivers: int = 4
    """checkpoints of the last search that share this driving: the way to a trick shows M more of it than
    the end"""
    action_noise: float = 0.3
    """size of the smooth noise added to what they decide, so that the data shows mistakes and how to mend
    them"""
    recent: float = 1.0
    """how much of M's training the last round's driving is, measured by all that was before; 0 treats all
    alike"""
    context: int = 20
    """steps of M that it looks at before a dream begins; 0 begins dreams at first frames only"""
    first_frame_fraction: float = 0.5
    """share of the dreams that begin at first frames all the same"""
    reward_radius: int = 12
    """each reward is shared by the steps of M at most so many away before M learns it"""
    worst: float = -10.0
    """rewards are raised to at least this before: leaving the field costs 100 at once"""
    dreams: int = 64
    """dreams in which the mean of a search is scored, on validation seeds"""
    temperatures: tuple[float, ...] = (1.5,)
    """τ of other naive searches beside the one at `dream.temperature`: what temperature alone does"""
    leak_tracks: int = 16
    """validation tracks for a real score of every checkpoint, after everything is trained"""

    def __post_init__(self):
        at_least(self, rounds=0, action_noise=0, recent=0, context=0, reward_radius=0)
        at_least(self, episodes=1, max_steps=1, drivers=1, dreams=1, leak_tracks=1)
        for temperature in self.temperatures:
            if not temperature > 0: raise ValueError(f"temperatures must be above 0, not {temperature}")
        if not 0 <= self.first_frame_fraction < 1:
            raise ValueError(f"first_frame_fraction must be a share from 0 to below 1, not "
                             f"{self.first_frame_fraction}")
        if self.episodes > 1000:
            raise ValueError(f"episodes must be at most 1000 (each round has seeds of its own), not "
                             f"{self.episodes}")
        if self.rounds > 30:
            raise ValueError(f"rounds must be at most 30 (each has seeds of its own), not {self.rounds}")
        if self.episodes % self.drivers:
            raise ValueError(f"episodes must be a multiple of drivers = {self.drivers}, who share them, not "
                             f"{self.episodes}")


@dataclass(frozen=True)
class DreamRunSettings(TrainSettings):
    """Everything from the first frame to the report of a dreamt controller.

    (`scout` is not used: every round is one.)
    """

    run: str = "runs/dream"
    """folder of the run"""
    dynamics: MDNRNNSettings = MDNRNNSettings(reward=True, done=True)
    dynamics_again: FitSettings = FitSettings(steps=1000, batch=100, lr=1e-3, lr_end=0.01, clip=1.0)
    """how M is trained in every round after the first"""
    dream: DreamSettings = DreamSettings()
    iterate: IterateSettings = IterateSettings()

    def __post_init__(self):
        super().__post_init__()
        if self.model == "ViTWM":
            raise ValueError("a ViTWM's V changes with its M, and here V stays: model must be MDNRNN, "
                             "TransformerMDN or TraDE")
        field = M_FIELDS[self.model]
        if self.dream.reward == "head" and not self.m.reward:
            raise ValueError(f"{field}.reward must be true: M pays for the driving in its dreams")
        if self.dream.done != "never" and not self.m.done:
            raise ValueError(f"{field}.done must be true: dream.done is not never, so M must say when a "
                             "dream ends")
        for name in ("store", "latents"):
            if getattr(self, name):
                raise ValueError(f"{name} is not for a dream run, which drives for itself: leave it empty")
        usual = self.spec.dream.get("reward", "head")
        if self.dream.reward != usual:
            raise ValueError(f"dream.reward must be {usual}, by which {self.game} is scored, not "
                             f"{self.dream.reward}")


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
    fit: FitSettings = FitSettings(batch=32, lr=4e-3, lr_end=0.05, clip=1.0)
    """how the Ms on the frozen V are trained; `steps` is replaced by as many as fit into `seconds`"""
    clip: int = 16
    """steps of an episode in one clip that the joint ViT-WM is trained on"""
    joint_fit: FitSettings = FitSettings(batch=16, lr=1e-3, lr_end=0.05)
    """how the joint ViT-WM is trained; `steps` is replaced by as many as fit into `joint_seconds`"""
    dynamics: MDNRNNSettings = MDNRNNSettings(reward=True, done=True)
    transformer: TransformerSettings = TransformerSettings(width=120, reward=True, done=True)
    trade: TraDESettings = TraDESettings(width=120, density_heads=2, density_share=0.125, reward=True,
                                         done=True)
    vit_wm: ViTWMSettings = ViTWMSettings(width=88)
    """the ViT-WM of which only the dynamics mode is trained and used, on the frozen V"""
    joint: ViTWMSettings = ViTWMSettings(context=16)
    """the ViT-WM that is V and M"""
    episodes: int = 32
    """held-out episodes that every M is scored on, at most"""
    context: int = 50
    """frames seen before a dream"""
    horizon: int = 100
    """frames dreamt"""
    worlds: int = 256
    """worlds that dream side by side where speed is measured"""
    evolve: EvolveSettings = EvolveSettings()
    """the search for a C on each M"""
    tracks: int = 32
    """held-out tracks that each C is scored on, in the fast environment"""

    def __post_init__(self):
        above(self, seconds=0, joint_seconds=0, seeds=0, window=0, clip=0, episodes=0, context=0, horizon=0,
              worlds=0,
              tracks=0)


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
    """a run of solutions.ppo, or what it published, for its data, its score and its curve; where there is
    none, its rows are left out"""
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
    vae_fit: FitSettings = FitSettings(steps=300, batch=256, lr=1e-3, lr_end=0.05)
    dynamics_fit: FitSettings = FitSettings(steps=400, batch=128, lr=2e-3, lr_end=0.01, clip=1.0)
    window: int = 64
    """steps of an episode that M sees in one piece"""
    evolve: EvolveSettings = EvolveSettings(episodes=2, generations=10, diagonal=True, validate_every=2,
                                            validate_episodes=16, patience=100)
    evaluate: EvaluateSettings = EvaluateSettings(episodes=32)
    doom_evolve: EvolveSettings = EvolveSettings(diagonal=True, generations=20, validate_every=10,
                                                 max_steps=2100, patience=0)
    """a search in Doom's dreams; max_steps is in tics"""
    doom_evaluate: EvaluateSettings = EvaluateSettings(max_steps=2100)
    """how its result is scored in the game, in tics"""


@dataclass(frozen=True)
class Sections(TrainSettings):
    """What a section of settings.ini may hold: the keys of every command."""

    compare: CompareSettings = CompareSettings()
    ppo: PPOSettings = PPOSettings()
    baselines: StudySettings = StudySettings()


def bytes_to_come(s: TrainSettings) -> int:
    """An upper estimate of what the rollouts of a run take on disk."""
    frames = s.collect.episodes * (s.collect.max_steps + 1)
    if s.scout.generations: frames += s.scout.episodes * (s.evolve.max_steps + 1)
    return estimate_bytes(frames, s.collect.size)


def in_folder(s: TrainSettings, folder: Path | str | None) -> TrainSettings:
    """The same settings for another run folder; as they are, if none is given."""
    return s if folder is None else replace(s, run=str(folder))


def claim_run(s: TrainSettings, stage: bool = False, joint: bool = True) -> Path:
    """The run folder that the settings name, made if it is missing, for this process alone.

    Raises ValueError for the folder of a run with other settings, for a single `stage` of a run with a scout,
    and for a stage that is not `joint` where V and M are one, OSError where a new run's rollouts would not
    fit on the disk, ImportError where the game needs a package that is missing; nothing is written then.
    """
    if not joint and s.model == "ViTWM":
        raise ValueError("a ViTWM is V and M in one: `python -m solutions.transformer` trains both at once")
    if stage and s.scout.generations:
        raise ValueError("these settings begin with a scout, which only `python -m solutions.train` runs, "
                         "and goes on "
                         "with; --scout.generations 0 trains this stage without one")
    s.spec.require()
    folder = Path(s.run)
    if not s.fresh: refuse_envpool(folder, "report.json", "controller.safetensors")
    if not (s.store or s.latents or (folder / "store").exists()): require_space(folder, bytes_to_come(s))
    return claim_run_folder(folder, s, s.fresh, ignore=("fresh", "run", "game_file"))


def refuse_envpool(folder: Path, *finished: str) -> None:
    """A ValueError for a run that began on EnvPool and lacks one of the files `finished`: going on would mix
    two roads."""
    if all((folder / name).exists() for name in finished): return
    store = folder / "store"
    if (store / "store.json").exists():
        began = any(source.startswith("envpool/") for source in RolloutStore(store).sources)
    else:  # PPO records nothing of what it learns from
        began = "official" in (read_config(folder) or {})
    if began:
        raise ValueError(f"{folder} was begun on EnvPool, which draws otherwise and is used no more: going "
                         "on would mix the two. --fresh starts it anew; python -m solutions.evaluate --run "
                         f"{folder} scores the controller that it has")


def from_command_line(description: str | None) -> TrainSettings:
    """The settings of a run, or of a stage of one, from flags and sections."""
    return load(TrainSettings, description=description, part_of=Sections)


def claim_stage(s: TrainSettings, folder: Path | str | None,
                joint: bool = True) -> tuple[Path, TrainSettings]:
    """The run folder of one stage, `folder` or that of `s`, and the settings for it.

    Raises what `claim_run` raises.
    """
    s = in_folder(s, folder)
    return claim_run(s, stage=True, joint=joint), s


def open_store(folder: Path, s: TrainSettings) -> RolloutStore:
    """The episodes that a run learns from: its own, or those that `s.store` names."""
    return RolloutStore(s.store or folder / "store")


def command(main: Callable) -> None:
    """Run a command; a mistake ends in one line that says what was wrong."""
    try: main()
    except (OSError, ValueError, RuntimeError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
