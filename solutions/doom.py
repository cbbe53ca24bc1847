"""Doom, all of it: random players, V, M, a C for every temperature found in the dream alone, its score in the
game.

What is TakeCover's own stands here: the temperature table, calibration, the runner that never looks. Tables,
films and the card are made in doom_report.

python -m solutions.doom --settings quick --run runs/doom
"""
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from worldmodels.collect import CollectSettings, collect
from worldmodels.controller import (ControllerSettings, EvolveSettings, WorldModelPolicy, controllers_for,
                                    evolve)
from worldmodels.scoring import score_policy, summary
from worldmodels.controller_files import load_controller, save_controller
from worldmodels.doom import (C_DOOM, M_DOOM, V_DOOM, RandomHoldPolicy, Runner, calibrate, done_logits,
                              doom_sections,
                              platt)
from worldmodels.dream import DreamFitness, DreamSettings, InitialStates, done_probability
from worldmodels.latents import apply_action_repeat
from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.mdn_rnn import MDNRNN, held_out_nll, train_dynamics
from worldmodels.rollouts import HELD_OUT, NoisePolicy, Policy
from worldmodels.tools.bounds import at_least, share
from worldmodels.tools.games import TAKE_COVER
from worldmodels.tools.settings import claim_run_folder, load, split_settings, write_json
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import FitSettings
from worldmodels.tools.world import Dynamics, Vision, WorldModel, load_model, save_model
from worldmodels.dynamics_settings import TransformerSettings, ViTWMSettings
from worldmodels.transformer import TransformerMDN
from worldmodels.vit_training import train_vit_wm
from worldmodels.tools.encoding import Latents
from worldmodels.vae import VAESettings, train_vae

from .doom_report import (BLIND, Cell, all_cells, draw_reliability, films, folder_of, gain, report, score_of,
                          ship)
from .mdn_rnn import encode
from .records import cached_json
from .settings import EvaluateSettings, TrainSettings, command, in_folder
from .train import Clock

MAX_TICS = TAKE_COVER.max_steps
ROUND = 20_000  # seeds of games that belong to one round


@dataclass(frozen=True)
class DoomSettings(TrainSettings):
    """Everything from the first game to the table. The defaults are the paper's numbers.

    Times are tics, whatever a step of M spans; what a search writes into evolution.jsonl is in M's steps.
    """

    run: str = "runs/doom"
    """folder of the run"""
    game: str = "TakeCover"
    """TakeCover, and no other game"""
    seeds: tuple[int, ...] = (0, 1)
    """training seeds: each has a V, an M and controllers of its own"""
    temperatures: tuple[float, ...] = (0.1, 0.5, 1.0, 1.15, 1.3)
    """τ of the table's rows; the one of `dream` is run first"""
    models: tuple[Literal["TransformerMDN", "ViTWM"], ...] = ("TransformerMDN", "ViTWM")
    """other kinds of M, each at the temperature of `dream` with the first seed"""
    cheats: tuple[float, ...] = (0.1,)
    """τ of more rows, with the first seed, whose dreams end by threshold, as the paper's do"""
    cells: int = 0
    """cells of the table that this start runs beyond those that have a score; 0 runs all of them"""
    publish: str = ""
    """folder to write weights, a sample and a card to, in the end"""
    collect: CollectSettings = CollectSettings(noise="held", max_steps=MAX_TICS)
    holds: tuple[int, ...] = (10,)
    """tics for which the random player (noise "held") holds an action at most; with several, episodes take
    turns"""
    shortest: int = 100
    """episodes of so many steps, or fewer, are left out"""
    vae: VAESettings = V_DOOM
    vae_fit: FitSettings = FitSettings(steps=300_000, batch=100, lr=1e-4)
    dynamics: MDNRNNSettings = M_DOOM
    transformer: TransformerSettings = TransformerSettings(latent=64, action_dim=1, done=True)
    dynamics_fit: FitSettings = FitSettings(steps=24_000, batch=100, lr=1e-3, lr_end=0.8, clip=1.0)
    vit_wm: ViTWMSettings = ViTWMSettings(latent=64, action_dim=1, reward=False)
    window: int = 500
    """tics of an episode that M sees in one piece"""
    ending: float = 0.0
    """share of those windows, and of the clips, that end where the episode does"""
    calibrate: bool = False
    """fit scale and shift of done's logit on held-out episodes"""
    iterations: int = 0
    """rounds in which the last dream's player plays the game, and V, M and the dream learn from that; no
    score is used"""
    driven: int = 256
    """games that it plays in such a round"""
    action_noise: float = 1.0
    """size of the smooth noise added to C's raw output in them"""
    again: float = 0.5
    """updates of V and M in such a round, as a share of the first training's"""
    controller: ControllerSettings = C_DOOM
    dream: DreamSettings = DreamSettings(temperature=1.15, max_steps=MAX_TICS, reward="alive")
    evolve: EvolveSettings = EvolveSettings(max_steps=MAX_TICS, patience=0)
    evaluate: EvaluateSettings = EvaluateSettings(max_steps=MAX_TICS)

    def __post_init__(self):
        super().__post_init__()
        if self.spec is not TAKE_COVER: raise ValueError(f"game must be TakeCover here, not {self.game}")
        self._check_table()
        self._check_models()
        self._check_tics()
        self._check_rounds()

    def _check_table(self) -> None:
        """Which cells the table has."""
        if not self.seeds or not self.temperatures:
            raise ValueError("seeds and temperatures need at least one value each")
        if not self.holds or min(self.holds) < 1:
            raise ValueError(f"holds needs at least one number of tics, each at least 1, got "
                             f"{list(self.holds)}")
        for name in ("temperatures", "cheats"):
            lowest = min(getattr(self, name), default=1)
            if lowest <= 0: raise ValueError(f"{name} must be above 0, not {lowest}")
        share(self, "ending")
        at_least(self, shortest=0, iterations=0, driven=0, action_noise=0, cells=0)
        if not 1 <= self.evaluate.episodes <= len(HELD_OUT):
            raise ValueError(f"evaluate.episodes must be 1 to {len(HELD_OUT)}, not {self.evaluate.episodes}")
        if self.publish and self.dream.temperature not in self.temperatures:
            raise ValueError(f"what is published is the C of dream.temperature, {self.dream.temperature}: "
                             "temperatures "
                             "must hold it")

    def _check_models(self) -> None:
        """What V, M and C must be for this game."""
        if self.dream.done == "never":
            raise ValueError("dream.done must be threshold or sample: a dream in which nobody dies teaches "
                             "nothing")
        if self.dream.reward != "alive":
            raise ValueError("dream.reward must be alive: the game pays 1 a tic, and scores are in tics")
        if self.controller.squash != "tanh":
            raise ValueError("controller.squash must be tanh, for one number from -1 to 1, not "
                             f"{self.controller.squash}")
        for name in ("dynamics", "transformer", "vit_wm"):
            m = getattr(self, name)
            if name != "vit_wm" and self.vae.latent != m.latent:
                raise ValueError(f"vae.latent is {self.vae.latent} and {name}.latent {m.latent}: M reads "
                                 "what V writes, "
                                 "so they must be equal")
            if m.action_dim != 1:
                raise ValueError(f"{name}.action_dim must be 1 (left to right), not {m.action_dim}")
            if not m.done:
                raise ValueError(f"{name}.done must be true: a dream in which nobody dies teaches nothing")
        sizes = {"collect.size": self.collect.size, "vae.size": self.vae.size}
        if "ViTWM" in self.models: sizes["vit_wm.size"] = self.vit_wm.size
        if set(sizes.values()) != {64}:
            raise ValueError(f"games are played at 64 pixels, so all sizes must be 64, not {sizes}")
        if "ViTWM" in self.models and not 1 <= self.clip <= self.vit_wm.longest:
            raise ValueError(f"clip must be 1 to {self.vit_wm.longest} steps (vit_wm.longest), not "
                             f"{self.clip}")

    def _check_tics(self) -> None:
        """Times are whole steps of every M, and dreams are cut where games are."""
        times = {"window": self.window, "dream.max_steps": self.dream.max_steps,
                 "evolve.max_steps": self.evolve.max_steps}
        for name in ("dynamics", *(["transformer"] if "TransformerMDN" in self.models else [])):
            repeat = getattr(self, name).action_repeat
            for what, tics in times.items():
                if tics < 1 or tics % repeat:
                    raise ValueError(f"{what} must be a multiple of the {repeat} tics in a step of {name}, "
                                     f"not {tics}")
        if self.evaluate.max_steps != self.dream.max_steps:
            raise ValueError(f"dream.max_steps is {self.dream.max_steps} and evaluate.max_steps "
                             f"{self.evaluate.max_steps}: the table compares dreams and games that are cut "
                             "at the same tic")

    def _check_rounds(self) -> None:
        """Each round of games has seeds of its own."""
        if max(self.collect.episodes, self.driven) > ROUND or self.iterations > 4:
            raise ValueError(f"each round has {ROUND:,} training seeds of its own, and there are 5: "
                             "collect.episodes, "
                             "driven or iterations is too high")
        if self.iterations and (not self.driven or self.again <= 0 or self.collect.max_steps > MAX_TICS):
            raise ValueError("rounds need driven of at least 1, again above 0 and collect.max_steps of at "
                             "most "
                             f"{MAX_TICS}")


def run(s: DoomSettings, folder: Path | str | None = None) -> Path:
    """Every cell of the table, and what is told of them, in the run folder of `s` or in `folder`; returns the
    folder.

    What is there is not made again. Raises ValueError and ImportError before anything is written.
    """
    s = in_folder(s, folder)
    s.spec.require()
    if s.publish and Path(s.publish).exists() and not (Path(s.publish) / "CARD.md").exists():
        raise ValueError(f"{s.publish} exists and has no CARD.md, so this did not write it: it is left alone")
    mine = ("fresh", "run", "game_file", "cells", "publish", "seeds", "temperatures", "models", "cheats")
    run = claim_run_folder(Path(s.run), s, s.fresh, ignore=mine)
    clock = Clock(run)
    store = RolloutStore.create(run / "store", s.spec.env_id, s.collect.size, s.spec.action_dim)
    collect(store, explorer(s), s.collect.episodes, "fast", 0, s.collect.max_steps, s.collect.rows, "random")
    clock("games")
    rounds = {}  # training seed: the last round's world and store
    for cell in cells_to_run(run, s):
        if cell.seed not in rounds: rounds[cell.seed] = learn_in_rounds(run, store, s, cell.seed, clock)
        world, games = rounds[cell.seed]
        if cell.model != "MDNRNN": world = other_world(run, cell.model, games, s, cell.seed, clock, world)
        run_cell(folder_of(run, s, cell.seed, cell.model), world, games, s, cell, clock)
        blind = cached_json(run / "random.json", lambda: score_blind_players(s))
        clock("players that do not look")
        report(run, blind, s)
    for name, r in blind.items(): print(f"{BLIND[name]}: {r['mean']:.0f} ± {r['sd']:.0f} tics")
    world, _ = rounds[s.seeds[0]]
    films(run, world, s)
    clock("films")
    if s.publish: ship(run, folder_of(run, s, s.seeds[0]), world, s, Path(s.publish))
    print((run / "table.md").read_text() + f"report, films and weights are in {run}")
    return run


def cells_to_run(run: Path, s: DoomSettings) -> list[Cell]:
    """All cells of the table; with `s.cells`, those that have a score and so many others."""
    missing = [cell for cell in all_cells(s) if not score_of(run, s, cell).exists()]
    return [cell for cell in all_cells(s) if not s.cells or cell not in missing[s.cells:]]


# Data, V, M

def explorer(s: DoomSettings) -> Policy:
    """The player whose games are recorded first."""
    if s.collect.noise == "held": return RandomHoldPolicy(s.holds, s.collect.max_steps)
    return NoisePolicy(s.collect.noise, s.collect.max_steps)


def blind_players(s: DoomSettings) -> dict[str, Policy]:
    """Players that do not look: both kinds of chance, and one that runs to and fro."""
    tics = s.evaluate.max_steps
    return {"fresh": NoisePolicy("white", tics), "held": NoisePolicy("held", tics), "runner": Runner()}


def score_in_game(policy: Policy, s: DoomSettings) -> dict:
    """Tics that a policy survives in the game, on the held-out seeds."""
    seeds = HELD_OUT[:s.evaluate.episodes]
    return in_tics(score_policy(policy, seeds, "fast", s.evaluate.max_steps, s.collect.rows, game=s.spec))


def score_blind_players(s: DoomSettings) -> dict:
    """The scores of the players that do not look."""
    return {name: score_in_game(policy, s) for name, policy in blind_players(s).items()}


def in_tics(tics: np.ndarray) -> dict:
    """The summary of a score, with the tics of every game."""
    return summary(tics) | {"tics": [int(t) for t in tics]}


def usable(store: RolloutStore, s: DoomSettings) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the (training, held-out) episodes that are long enough."""
    train, held_out = (numbers[store.lengths[numbers] > s.shortest] for numbers in store.split())
    if not len(train) or not len(held_out):
        raise ValueError(f"of {len(store)} episodes, {len(train)} for training and {len(held_out)} for "
                         "testing are longer "
                         f"than {s.shortest} steps: record more (--collect.episodes), or keep short ones "
                         "(--shortest)")
    return train, held_out


def learn_v_and_m(folder: Path, store: RolloutStore, s: DoomSettings, seed: int, clock: Clock,
                  start: WorldModel | None = None) -> WorldModel:
    """V and M in `folder`, trained (from those of `start`, if given) unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vision.safetensors"
    if not path.exists():
        train, _ = usable(store, s)
        save_model(path, train_vae(store, s.vae, s.vae_fit, folder, seed, train, start and start.vision))
    clock(f"{folder.name}: V")
    world = learn_m(folder, load_model(path, Vision), store, s, seed, start=start)
    clock(f"{folder.name}: M")
    return world


def learn_m(folder: Path, vision: Vision, store: RolloutStore, s: DoomSettings, seed: int,
            name: str = "MDNRNN",
            start: WorldModel | None = None) -> WorldModel:
    """V with the M of `folder`, trained and calibrated unless it is there; what is known about it in
    m.json."""
    path = folder / "dynamics.safetensors"
    train, held_out = usable(store, s)
    if not path.exists():
        torch.manual_seed(seed)
        model = MDNRNN(s.dynamics) if name == "MDNRNN" else TransformerMDN(s.transformer)
        if start is not None: model.load_state_dict(start.dynamics.state_dict())
        repeat = model.action_repeat
        latents = apply_action_repeat(encode(folder, vision, store), repeat)
        model = train_dynamics(model, latents, train, s.window // repeat, s.dynamics_fit, folder, seed,
                               ending=s.ending, done_weight=s.dream.done_weight).cpu()
        write_json(folder / "m.json", examine(model, latents, held_out, s, folder))
        save_model(path, model, game=s.game)
    return WorldModel(vision, load_model(path, Dynamics), s.spec)


def learn_joint(folder: Path, store: RolloutStore, s: DoomSettings, seed: int) -> WorldModel:
    """The ViT-WM of `folder`, V and M in one, trained and calibrated unless it is there."""
    if not (folder / "dynamics.safetensors").exists():
        train, held_out = usable(store, s)
        model = train_vit_wm(store, s.vit_wm, s.vit_wm_fit, s.clip, folder, seed, train,
                             done_weight=s.dream.done_weight, ending=s.ending).cpu()
        write_json(folder / "m.json", examine(model, encode(folder, model, store), held_out, s, folder))
        WorldModel(model, model, s.spec).save(folder)
    return WorldModel.load(folder)


def other_world(run: Path, name: str, store: RolloutStore, s: DoomSettings, seed: int, clock: Clock,
                world: WorldModel) -> WorldModel:
    """The world of another class of M in a folder of its own.

    A TransformerMDN has the same V and latents, a ViT-WM is its own V.
    """
    folder = folder_of(run, s, seed, name)
    folder.mkdir(exist_ok=True)
    if name == "ViTWM": found = learn_joint(folder, store, s, seed)
    else:
        latents = folder / "latents.safetensors"
        if not latents.exists(): os.link(folder_of(run, s, seed) / latents.name, latents)
        found = learn_m(folder, world.vision, store, s, seed, name)
    clock(f"{folder.name}: M")
    return found


# What M says about death

def examine(model: Dynamics, latents: Latents, held_out: np.ndarray, s: DoomSettings, folder: Path) -> dict:
    """M's NLL, what it says about death on held-out episodes, and a figure of that; then calibrates it, if
    asked to."""
    weight = s.dream.done_weight
    logits, died = done_logits(model, latents, held_out)
    said = {"as trained": done_probability(logits, weight)}
    nll = float(held_out_nll(model, latents, held_out).mean())
    found = {"tics a step": model.action_repeat, "nll": round(nll, 4), "steps": len(died),
             "deaths": int(died.sum()),
             "expected": round(float(said["as trained"].sum()), 2)}
    # the steps of every other episode
    second = (torch.arange(len(held_out)) % 2 == 1).repeat_interleave(latents.lengths[held_out])
    if not all(0 < int(died[half].sum()) < int(half.sum()) for half in (second, ~second)): return found
    if s.calibrate:
        said["calibrated on the other half"] = cross_fitted(logits, died, second, weight)
        found["a"], found["b"] = calibrate(model, latents, held_out, weight)
    found["nats a death better than a constant rate"] = {name: gain(p, died) for name, p in said.items()}
    draw_reliability(said, died).savefig(folder / "reliability.png")
    return found


def cross_fitted(logits: torch.Tensor, died: torch.Tensor, second: torch.Tensor,
                 weight: float) -> torch.Tensor:
    """Calibrated probabilities (n,), those of either half, `second` (n,) bool or not, with the other's a
    and b."""
    p = torch.empty(len(logits))
    for half in (second, ~second):
        a, b = platt(logits[~half], died[~half], weight)
        p[half] = torch.sigmoid(a * logits[half] + b)
    return p


# One cell of the table: a controller, its dream, the game

def cell_dream(s: DoomSettings, cell: Cell, tics: int, repeat: int) -> DreamSettings:
    """The dreams of a cell, so many tics long."""
    return replace(s.dream, temperature=cell.tau, done=cell.done or s.dream.done, max_steps=tics // repeat)


def play_cell(folder: Path, world: WorldModel, latents: Latents, train: np.ndarray, s: DoomSettings,
              cell: Cell) -> dict:
    """The controller of one cell, found in its dream unless it is there, and its scores: dream and game."""
    folder.mkdir(exist_ok=True)
    path = folder / "controller.safetensors"
    starts, repeat = InitialStates.from_latents(latents, train), world.dynamics.action_repeat
    if not path.exists():
        fitness = DreamFitness(world, starts, s.controller, cell_dream(s, cell, s.evolve.max_steps, repeat))
        search = replace(s.evolve, target_return=s.evolve.target_return / repeat)
        found, _ = evolve(fitness, np.zeros(fitness.dimension), search, folder, cell.seed)
        save_controller(path, s.controller, found)
    params = load_controller(path)[1]

    def score_both() -> dict:
        dream = DreamFitness(world, starts, s.controller, cell_dream(s, cell, s.dream.max_steps, repeat))
        player = WorldModelPolicy(world, controllers_for(world, s.controller, params))
        return {"tau": cell.tau, "seed": cell.seed, "model": cell.model, "done": cell.done or s.dream.done,
                "dream": in_tics(repeat * dream(params[None], HELD_OUT[:s.evaluate.episodes])[0]),
                "game": score_in_game(player, s)}

    return cached_json(folder / "score.json", score_both)


def run_cell(folder: Path, world: WorldModel, store: RolloutStore, s: DoomSettings, cell: Cell,
             clock: Clock) -> dict:
    """One cell, played and printed."""
    train, _ = usable(store, s)
    found = play_cell(folder / cell.name, world, encode(folder, world.vision, store), train, s, cell)
    clock(f"{folder.name}: {cell.name}")
    scores = [f"{where} {found[where]['mean']:.0f} ± {found[where]['sd']:.0f}" for where in ("dream", "game")]
    print("   ".join(scores), flush=True)
    return found


# Rounds

def record_round(old: Path, new: Path, world: WorldModel, params: np.ndarray, s: DoomSettings,
                 number: int) -> RolloutStore:
    """The store `new`: all parts of `old`, and games that the player of the last dream has played, with
    noise."""
    RolloutStore.create(new, s.spec.env_id, s.collect.size, s.spec.action_dim)
    for part in old.glob("*.zip"):
        if not (new / part.name).exists(): os.link(part, new / part.name)  # parts never change
    policy = WorldModelPolicy(world, controllers_for(world, s.controller, params), s.action_noise)
    store = RolloutStore(new)
    return collect(store, policy, s.driven, "fast", ROUND * number, s.collect.max_steps, s.collect.rows,
                   f"round-{number}")


def learn_in_rounds(run: Path, store: RolloutStore, s: DoomSettings, seed: int,
                    clock: Clock) -> tuple[WorldModel, RolloutStore]:
    """The last round's world and store for one training seed; without iterations there is one round."""
    def short(fit: FitSettings) -> FitSettings: return replace(fit, steps=max(1, round(s.again * fit.steps)))

    folder, cell = run / f"seed-{seed}", Cell(s.dream.temperature, seed)
    world = learn_v_and_m(folder, store, s, seed, clock)
    later = replace(s, vae_fit=short(s.vae_fit), dynamics_fit=short(s.dynamics_fit))
    for number in range(1, s.iterations + 1):
        run_cell(folder, world, store, s, cell, clock)
        params = load_controller(folder / cell.name / "controller.safetensors")[1]
        folder = run / f"seed-{seed}-round-{number}"
        folder.mkdir(exist_ok=True)
        store = record_round(store.path, folder / "store", world, params, s, number)
        clock(f"{folder.name}: games")
        world = learn_v_and_m(folder, store, later, seed, clock, world)
    return world, store


def read_settings(args: list[str]) -> DoomSettings:
    """From flags; `--settings quick` means the section [quick:doom]."""
    names, flags = split_settings(args)
    sections = [f"--settings={doom_sections(names)}"] if names else []
    return load(DoomSettings, [*flags, *sections], description=__doc__)


def main() -> None: run(read_settings(sys.argv[1:]))


if __name__ == "__main__": command(main)
