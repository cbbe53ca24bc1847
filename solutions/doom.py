"""Doom, all of it: random players, V, M, a controller for every temperature found in the dream alone, its score in the game, films, a report.

python -m solutions.doom --settings quick --run runs/doom
"""
import json, os, shlex, shutil, sys
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from solutions.evaluate import revision
from solutions.mdn_rnn import encode
from solutions.publish import write_sample
from solutions.settings import EvaluateSettings, command
from solutions.train import Clock
from worldmodels.controller import (ControllerSettings, EvolveSettings, WorldModelPolicy, controllers_for, evolve, load_controller, controller_inputs,
                                    save_controller, summary)
from worldmodels.doom import (C_DOOM, M_DOOM, MAX_TICS, TAKE_COVER, V_DOOM, RandomHoldPolicy, Runner, calibrate, done_logits, doom_sections, dream_on, film, fire, platt, play,
                              reliability, replay_health, survive, survived)
from worldmodels.dream import (Dream, DreamFitness, DreamSettings, InitialStates, done_probability, require_heads,
                               sample_done)
from worldmodels.latents import apply_action_repeat
from worldmodels.mdn_rnn import MDNRNN, MDNRNNSettings, held_out_nll, train_dynamics
from worldmodels.rollouts import HELD_OUT, CollectSettings, NoisePolicy, Policy, collect, make_envs, record, require_vizdoom
from worldmodels.tools import show
from worldmodels.tools.settings import claim_run_folder, load, split_settings, write_json
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import FitSettings, read_lines
from worldmodels.tools.world import Dynamics, Vision, WorldModel, load_model, save_model
from worldmodels.transformer import TransformerMDN, TransformerSettings, ViTWMSettings, train_vit_wm
from worldmodels.vae import Latents, VAESettings, decode_frames, encode_frames, train_vae

PAPER = {0.1: ((2086, 140), (193, 58)), 0.5: ((2060, 277), (196, 50)), 1.0: ((1145, 690), (868, 511)),  # τ: dream, game; mean, sd
         1.15: ((918, 546), (1092, 556)), 1.3: ((732, 269), (753, 139))}

ROUND = 20_000  # seeds of games that belong to one round

BLIND = {"fresh": "random, fresh action", "held": "random, held action", "runner": "to and fro, 100 tics each"}


@dataclass(frozen=True)
class DoomSettings:
    """Everything from the first game to the table. The defaults are the paper's numbers.

    Times are tics, whatever a step of M spans; what a search writes into evolution.jsonl is in M's steps.
    """

    run: str = "runs/doom"
    """folder of the run"""
    fresh: bool = False
    """start anew, even if the folder holds a run"""
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
    collect: CollectSettings = field(default_factory=lambda: CollectSettings(noise="held", max_steps=MAX_TICS))
    holds: tuple[int, ...] = (10,)
    """an action of the random player (noise "held") is held for 1 to so many tics; with several numbers, episodes take turns"""
    shortest: int = 100
    """episodes of so many steps, or fewer, are left out"""
    vae: VAESettings = V_DOOM
    vae_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=300_000, batch=100, lr=1e-4))
    dynamics: MDNRNNSettings = M_DOOM
    transformer: TransformerSettings = TransformerSettings(latent=64, action_dim=1, done=True)
    dynamics_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=24_000, batch=100, lr=1e-3, lr_end=0.8, clip=1.0))
    vit_wm: ViTWMSettings = ViTWMSettings(latent=64, action_dim=1, reward=False)
    vit_wm_fit: FitSettings = field(default_factory=lambda: FitSettings(steps=100_000, batch=16, lr=3e-4))
    clip: int = 32
    """steps of an episode in one clip that a ViT-WM is trained on"""
    window: int = 500
    """tics of an episode that M sees in one piece"""
    ending: float = 0.0
    """share of those windows, and of the clips, that end where the episode does"""
    calibrate: bool = False
    """fit scale and shift of done's logit on held-out episodes"""
    iterations: int = 0
    """rounds in which the player of the last dream plays the game, and V, M and the dream learn from that, too; no score is used"""
    driven: int = 256
    """games that it plays in such a round"""
    action_noise: float = 1.0
    """size of the smooth noise added to C's raw output in them"""
    again: float = 0.5
    """updates of V and M in such a round, as a share of the first training's"""
    controller: ControllerSettings = C_DOOM
    dream: DreamSettings = field(default_factory=lambda: DreamSettings(temperature=1.15, max_steps=MAX_TICS, reward="alive"))
    evolve: EvolveSettings = field(default_factory=lambda: EvolveSettings(max_steps=MAX_TICS, patience=0))
    evaluate: EvaluateSettings = field(default_factory=lambda: EvaluateSettings(max_steps=MAX_TICS))

    def __post_init__(self):
        if not self.seeds or not self.temperatures: raise ValueError("seeds and temperatures need at least one value each")
        if not self.holds or min(self.holds) < 1: raise ValueError(f"holds needs at least one number of tics, each at least 1, got {list(self.holds)}")
        for name in ("temperatures", "cheats"):
            if min(getattr(self, name), default=1) <= 0: raise ValueError(f"{name} must be above 0, not {min(getattr(self, name))}")
        if self.dream.done == "never": raise ValueError("dream.done must be threshold or sample: a dream in which nobody dies teaches nothing")
        if self.controller.squash != "tanh": raise ValueError(f"controller.squash must be tanh, for one number from -1 to 1, not {self.controller.squash}")
        for name in ("dynamics", "transformer", "vit_wm"):
            m = getattr(self, name)
            if name != "vit_wm" and self.vae.latent != m.latent:
                raise ValueError(f"vae.latent is {self.vae.latent} and {name}.latent {m.latent}: M reads what V writes, so they must be equal")
            if m.action_dim != 1: raise ValueError(f"{name}.action_dim must be 1 (left to right), not {m.action_dim}")
            if not m.done: raise ValueError(f"{name}.done must be true: a dream in which nobody dies teaches nothing")
        if not 0 <= self.ending <= 1: raise ValueError(f"ending is a share from 0 to 1, not {self.ending}")
        for name in ("shortest", "iterations", "driven", "action_noise", "cells"):
            if getattr(self, name) < 0: raise ValueError(f"{name} must be 0 or above, not {getattr(self, name)}")
        if self.dream.reward != "alive": raise ValueError("dream.reward must be alive: the game pays 1 a tic, and scores are told in tics")
        for name in ("dynamics", *(["transformer"] if "TransformerMDN" in self.models else [])):
            repeat = getattr(self, name).action_repeat
            for what, tics in ("window", self.window), ("dream.max_steps", self.dream.max_steps), ("evolve.max_steps", self.evolve.max_steps):
                if tics < 1 or tics % repeat: raise ValueError(f"{what} must be a multiple of the {repeat} tics in a step of {name}, not {tics}")
        sizes = {"collect.size": self.collect.size, "vae.size": self.vae.size} | ({"vit_wm.size": self.vit_wm.size} if "ViTWM" in self.models else {})
        if set(sizes.values()) != {64}: raise ValueError(f"games are played at 64 pixels, so all sizes must be 64, not {sizes}")
        if not 1 <= self.evaluate.episodes <= len(HELD_OUT): raise ValueError(f"evaluate.episodes must be 1 to {len(HELD_OUT)}, not {self.evaluate.episodes}")
        if self.evaluate.max_steps != self.dream.max_steps:
            raise ValueError(f"dream.max_steps is {self.dream.max_steps} and evaluate.max_steps {self.evaluate.max_steps}: the table compares dreams and games "
                             "that are cut at the same tic")
        if "ViTWM" in self.models and not 1 <= self.clip <= self.vit_wm.longest:
            raise ValueError(f"clip must be 1 to {self.vit_wm.longest} steps (vit_wm.longest), not {self.clip}")
        if self.publish and self.dream.temperature not in self.temperatures:
            raise ValueError(f"what is published is the C of dream.temperature, {self.dream.temperature}: temperatures must hold it")
        if max(self.collect.episodes, self.driven) > ROUND or self.iterations > 4:
            raise ValueError(f"each round has {ROUND:,} training seeds of its own, and there are 5: collect.episodes, driven or iterations is too high")
        if self.iterations and (not self.driven or self.again <= 0 or self.collect.max_steps > MAX_TICS):
            raise ValueError(f"rounds need driven of at least 1, again above 0 and collect.max_steps of at most {MAX_TICS}")


def once(path: Path, make) -> dict:
    """The JSON in `path`, made by `make()` unless it is there."""
    if not path.exists(): write_json(path, make())
    return json.loads(path.read_text())


def scored(tics: np.ndarray) -> dict: return summary(tics) | {"tics": [int(t) for t in tics]}


# Data, V, M

def blind_players(s: DoomSettings) -> dict[str, Policy]:
    """Players that do not look: both kinds of chance, and one that runs to and fro."""
    return {"fresh": NoisePolicy("white", s.evaluate.max_steps), "held": NoisePolicy("held", s.evaluate.max_steps), "runner": Runner()}


def random_players(s: DoomSettings) -> dict:
    """Their scores in the game, on the held-out seeds."""
    seeds = HELD_OUT[:s.evaluate.episodes]
    return {name: scored(survive(p, seeds, s.evaluate.max_steps, s.collect.rows)) for name, p in blind_players(s).items()}


def explorer(s: DoomSettings) -> Policy:
    """The player whose games are recorded first."""
    return RandomHoldPolicy(s.holds, s.collect.max_steps) if s.collect.noise == "held" else NoisePolicy(s.collect.noise, s.collect.max_steps)


def usable(store: RolloutStore, s: DoomSettings) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the (training, held-out) episodes that are long enough."""
    kept = tuple(numbers[store.lengths[numbers] > s.shortest] for numbers in store.split())
    if not all(map(len, kept)):
        raise ValueError(f"of {len(store)} episodes, {len(kept[0])} for training and {len(kept[1])} for testing are longer than {s.shortest} "
                         "steps: record more (--collect.episodes), or keep short ones (--shortest)")
    return kept



def learn(folder: Path, store: RolloutStore, s: DoomSettings, seed: int, clock: Clock, start: WorldModel | None = None) -> WorldModel:
    """V and M in `folder`, trained (from those of `start`, if given) unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    train, path = usable(store, s)[0], folder / "vision.safetensors"
    if not path.exists(): save_model(path, train_vae(store, s.vae, s.vae_fit, folder, seed, train, start and start.vision))
    clock(f"{folder.name}: V")
    world = learn_dynamics(folder, load_model(path, Vision), store, s, seed, start=start)
    clock(f"{folder.name}: M")
    return world


def learn_dynamics(folder: Path, vision: Vision, store: RolloutStore, s: DoomSettings, seed: int, name: str = "MDNRNN",
                   start: WorldModel | None = None) -> WorldModel:
    """V with the M of `folder`, trained and calibrated unless it is there; what is known about it in m.json."""
    path, (train, held_out) = folder / "dynamics.safetensors", usable(store, s)
    if not path.exists():
        torch.manual_seed(seed)
        model = MDNRNN(s.dynamics) if name == "MDNRNN" else TransformerMDN(s.transformer)
        if start is not None: model.load_state_dict(start.dynamics.state_dict())
        repeat = model.action_repeat
        latents = apply_action_repeat(encode(folder, vision, store), repeat)
        model = train_dynamics(model, latents, train, s.window // repeat, s.dynamics_fit, folder, seed, ending=s.ending, done_weight=s.dream.done_weight).cpu()
        write_json(folder / "m.json", examine(model, latents, held_out, s, folder))
        save_model(path, model)
    return WorldModel(vision, load_model(path, Dynamics))


def learn_joint(folder: Path, store: RolloutStore, s: DoomSettings, seed: int) -> WorldModel:
    """The ViT-WM of `folder`, V and M in one, trained and calibrated unless it is there."""
    if not (folder / "dynamics.safetensors").exists():
        train, held_out = usable(store, s)
        model = train_vit_wm(store, s.vit_wm, s.vit_wm_fit, s.clip, folder, seed, train, done_weight=s.dream.done_weight, ending=s.ending).cpu()
        write_json(folder / "m.json", examine(model, encode(folder, model, store), held_out, s, folder))
        WorldModel(model, model).save(folder)
    return WorldModel.load(folder)


def examine(model: Dynamics, latents: Latents, held_out: np.ndarray, s: DoomSettings, folder: Path) -> dict:
    """M's NLL, what it says about death on held-out episodes, and a figure of that; then calibrates it on them, if asked to."""
    weight, (logits, died) = s.dream.done_weight, done_logits(model, latents, held_out)
    said = {"as trained": done_probability(logits, weight)}
    found = {"tics a step": model.action_repeat, "nll": round(float(held_out_nll(model, latents, held_out).mean()), 4), "steps": len(died),
             "deaths": int(died.sum()), "expected": round(float(said["as trained"].sum()), 2)}
    second = (torch.arange(len(held_out)) % 2 == 1).repeat_interleave(latents.lengths[held_out])  # the steps of every other episode
    if not all(0 < int(died[half].sum()) < int(half.sum()) for half in (second, ~second)): return found
    if s.calibrate:
        said["calibrated on the other half"] = cross_fitted(logits, died, second, weight)
        found["a"], found["b"] = calibrate(model, latents, held_out, weight)
    found["nats a death better than a constant rate"] = {name: gain(p, died) for name, p in said.items()}
    fig = show.curves({"honest": ([1e-4, 1], [1e-4, 1])} | {name: honest(p, died) for name, p in said.items()},
                      "M says: dies at this step (probability)", "share that died", log=True)
    fig.axes[0].set(xscale="log")
    fig.savefig(folder / "reliability.png")
    return found


def cross_fitted(logits: torch.Tensor, died: torch.Tensor, second: torch.Tensor, weight: float) -> torch.Tensor:
    """Calibrated probabilities (n,), those of either half, `second` (n,) bool or not, with the a and b that fit the other."""
    p = torch.empty(len(logits))
    for half in (second, ~second):
        a, b = platt(logits[~half], died[~half], weight)
        p[half] = torch.sigmoid(a * logits[half] + b)
    return p


def gain(p: torch.Tensor, died: torch.Tensor) -> float:
    """How much better the probabilities p (n,) tell deaths than their rate, said at every step, would: nats a death."""
    rate, p = died.double().mean(), p.double().clamp(1e-9, 1 - 1e-9)
    loss = lambda q: -torch.where(died, q.log(), (1 - q).log()).mean()
    return round(float((loss(rate.expand(p.shape)) - loss(p)) / rate), 3)


def honest(p: torch.Tensor, died: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What was said and the share that died, in those groups in which somebody did."""
    said, share, _ = reliability(p.clamp(min=1e-6), died, np.geomspace(1e-6, 1, 13))
    return said[share > 0], share[share > 0]


# One cell of the table: a controller, its dream, the game

@dataclass(frozen=True)
class Cell:
    """What tells one cell from another; `done` is the rule by which its dreams end, where that is not the one of `dream`."""

    tau: float
    seed: int
    model: str = "MDNRNN"
    done: str = ""

    @property
    def name(self) -> str: return f"tau-{self.tau:g}" + (f"-{self.done}" if self.done else "")


def play_cell(folder: Path, world: WorldModel, latents: Latents, train: np.ndarray, s: DoomSettings, cell: Cell) -> dict:
    """The controller of one cell, found in its dream unless it is there, and its scores: dream and game."""
    folder.mkdir(exist_ok=True)
    path, starts, repeat = folder / "controller.safetensors", InitialStates.from_latents(latents, train), world.dynamics.action_repeat
    dream = lambda tics: replace(s.dream, temperature=cell.tau, done=cell.done or s.dream.done, max_steps=tics // repeat)
    if not path.exists():
        fitness = DreamFitness(world, starts, s.controller, dream(s.evolve.max_steps))
        searched = replace(s.evolve, target_return=s.evolve.target_return / repeat)
        save_controller(path, s.controller, evolve(fitness, np.zeros(fitness.dimension), searched, folder, cell.seed)[0])
    params, seeds = load_controller(path)[1], HELD_OUT[:s.evaluate.episodes]

    def both() -> dict:
        policy = WorldModelPolicy(world, controllers_for(world, s.controller, params))
        return {"tau": cell.tau, "seed": cell.seed, "model": cell.model, "done": cell.done or s.dream.done,
                "dream": scored(repeat * DreamFitness(world, starts, s.controller, dream(s.dream.max_steps))(params[None], seeds)[0]),
                "game": scored(survive(policy, seeds, s.evaluate.max_steps, s.collect.rows))}
    return once(folder / "score.json", both)


def record_round(old: Path, new: Path, world: WorldModel, params: np.ndarray, s: DoomSettings, number: int) -> RolloutStore:
    """The store `new`: all parts of `old`, and games that the player of the last dream has played, with noise on its actions."""
    RolloutStore.create(new, TAKE_COVER, s.collect.size, 1)
    for part in old.glob("*.zip"):
        if not (new / part.name).exists(): os.link(part, new / part.name)  # parts never change
    policy = WorldModelPolicy(world, controllers_for(world, s.controller, params), s.action_noise)
    return collect(RolloutStore(new), policy, s.driven, "fast", ROUND * number, s.collect.max_steps, s.collect.rows, f"round-{number}")


def learn_in_rounds(run: Path, store: RolloutStore, s: DoomSettings, seed: int, clock: Clock) -> tuple[WorldModel, RolloutStore]:
    """The last round's world and store for one training seed; without iterations there is one round."""
    folder, short = run / f"seed-{seed}", lambda fit: replace(fit, steps=max(1, round(s.again * fit.steps)))
    world, later = learn(folder, store, s, seed, clock), replace(s, vae_fit=short(s.vae_fit), dynamics_fit=short(s.dynamics_fit))
    for number in range(1, s.iterations + 1):
        run_cell(folder, world, store, s, Cell(s.dream.temperature, seed), clock)
        params = load_controller(folder / f"tau-{s.dream.temperature:g}" / "controller.safetensors")[1]
        new = run / f"seed-{seed}-round-{number}"
        new.mkdir(exist_ok=True)
        store = record_round(store.path, new / "store", world, params, s, number)
        clock(f"{new.name}: games")
        folder, world = new, learn(new, store, later, seed, clock, world)
    return world, store


def run_cell(folder: Path, world: WorldModel, store: RolloutStore, s: DoomSettings, cell: Cell, clock: Clock) -> dict:
    found = play_cell(folder / cell.name, world, encode(folder, world.vision, store), usable(store, s)[0], s, cell)
    clock(f"{folder.name}: {cell.name}")
    print("   ".join(f"{where} {found[where]['mean']:.0f} ± {found[where]['sd']:.0f}" for where in ("dream", "game")), flush=True)
    return found


# What is told in the end

def mean_sd(score: dict | None) -> str: return f"{score['mean']:.0f} ± {score['sd']:.0f}" if score else "not run"


def table(found: list[dict], random: dict, s: DoomSettings) -> str:
    """The paper's temperature table beside this run's, in Markdown; a cell that was not run says so."""
    at = lambda **what: next((c for c in found if all(c[k] == v for k, v in what.items())), None)
    head = "".join(f" dream, seed {seed} | game, seed {seed} |" for seed in s.seeds)
    lines = [f"| τ |{head} paper: dream | paper: game |", "|" + "---|" * (2 * len(s.seeds) + 3)]
    for tau in sorted(s.temperatures):
        mine = [at(tau=tau, seed=seed, model="MDNRNN", done=s.dream.done) for seed in s.seeds]
        theirs = [f"{m} ± {sd}" for m, sd in PAPER[tau]] if tau in PAPER else ["", ""]
        lines.append(f"| {tau:g} | " + " | ".join(f"{mean_sd(c and c['dream'])} | {mean_sd(c and c['game'])}" for c in mine) + f" | {' | '.join(theirs)} |")

    for label, c in [(f"{s.dream.temperature:g}, {name}", at(model=name)) for name in s.models] + [
            (f"{c.tau:g}, dreams end by {c.done}", at(tau=c.tau, done=c.done)) for c in all_cells(s) if c.done]:
        lines.append(f"| {label} | {mean_sd(c and c['dream'])} | {mean_sd(c and c['game'])} |" + " |" * (2 * len(s.seeds)))
    for name, r in random.items():
        lines.append(f"| {BLIND[name]} | | {mean_sd(r)} |" + " |" * (2 * len(s.seeds) - 1) + (" 210 ± 108 |" if name == "fresh" else " |"))
    made = sorted({c["generations"] for c in found})
    limit = f", ended after the first one past {s.evolve.minutes:g} minutes" if s.evolve.minutes else ""
    return "\n".join(lines) + (f"\n\nMean ± sd of {s.evaluate.episodes} episodes, in tics, cut at {s.evaluate.max_steps:,}; games on seeds {HELD_OUT[0]} and up. "
                               f"One search a cell, of {' to '.join(map(str, made[::max(1, len(made) - 1)]))} generations{limit}.\n")


def figure(found: list[dict], random: dict, s: DoomSettings, path: Path) -> None:
    """Dream and game against temperature, with the 95 % interval of the mean; the paper's numbers beside them."""
    usual = lambda c: c["model"] == "MDNRNN" and c["done"] == s.dream.done
    columns = {"dream": ("dream", 0), "real": ("game", 1)}
    fig = show.curves({f"paper, {where}": ([*PAPER], [p[k][0] for p in PAPER.values()]) for where, k in columns.values()}, "temperature τ",
                      "survived (tics; bars: 95 % of the mean)", hline={"random, fresh action": random["fresh"]["mean"]})
    for line, name in zip(fig.axes[0].lines, columns): line.set(color=show.COLORS[name], linestyle=(0, (2, 2)), alpha=0.6)
    lines = [(f"seed {seed}", sorted((c for c in found if usual(c) and c["seed"] == seed), key=lambda c: c["tau"]), "o-", 0.6**k)
             for k, seed in enumerate(sorted({c["seed"] for c in found if usual(c)}))]
    others = [c for c in found if not usual(c)]
    lines += [(c["model"] if c["model"] != "MDNRNN" else f"by {c['done']}", [c], marker, 1.0) for c, marker in zip(others, "s^DvPX")]
    for label, cells, style, alpha in lines:
        for name, (where, _) in columns.items():
            r, x = [c[where] for c in cells], [c["tau"] for c in cells]
            error = [[y["mean"] - y["low"] for y in r], [y["high"] - y["mean"] for y in r]]
            fig.axes[0].errorbar(x, [y["mean"] for y in r], error, fmt=style, color=show.COLORS[name], capsize=3, alpha=alpha, label=f"{where}, {label}")
    fig.set_size_inches(7.2, 4.4)
    fig.axes[0].legend(fontsize=7, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    fig.savefig(path)


def lives(logits: torch.Tensor, dream: DreamSettings) -> torch.Tensor:
    """Steps that n players live, (n,), whose done logits are (steps, n), by the rule of `dream`."""
    return survived(sample_done(logits, dream, lambda: torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))))


def films(run: Path, folder: Path, world: WorldModel, s: DoomSettings, cell: Cell, name: str, tics: int = 1050) -> None:
    """NAME-tau-τ-game.mp4, -dream.mp4 and -both.mp4 in `run`: the game beside what V sees, the dream, and both from one first frame."""
    name, tau = f"{name}-tau-{cell.tau:g}", cell.tau
    if (run / f"{name}-both.mp4").exists(): return
    settings, params = load_controller(folder / cell.name / "controller.safetensors")
    tics, repeat = min(tics, s.evaluate.max_steps), world.dynamics.action_repeat
    screens, game = play(world, settings, params, HELD_OUT[0], tics)
    mu, logvar = encode_frames(world.vision, game.frames)
    starts = InitialStates(torch.from_numpy(mu[:1]), torch.from_numpy(logvar[:1]))
    dreaming = replace(s.dream, temperature=tau, done=cell.done or s.dream.done, max_steps=tics // repeat)
    z, logits = dream_on(world, settings, params, starts, dreaming, [HELD_OUT[0]])
    dream = decode_frames(world.vision, z[:int(lives(logits, dreaming)[0]) + 1, 0]).repeat(repeat, 0)
    film(run / f"{name}-game.mp4", {"the game": screens, "what V sees": decode_frames(world.vision, mu)})
    film(run / f"{name}-dream.mp4", {f"a dream, τ = {tau:g}": dream})
    film(run / f"{name}-both.mp4", {"the game": screens, f"the dream, τ = {tau:g}": dream})


def all_cells(s: DoomSettings) -> list[Cell]:
    """Every cell of the table, the most important one first."""
    order = lambda c: (c.tau != s.dream.temperature, s.seeds.index(c.seed), c.tau)
    first = s.seeds[0]
    return [*sorted((Cell(tau, seed) for seed in s.seeds for tau in s.temperatures), key=order),
            *(Cell(s.dream.temperature, first, name) for name in s.models),
            *(Cell(tau, first, done="threshold") for tau in s.cheats if s.dream.done != "threshold")]


def folder_of(run: Path, s: DoomSettings, seed: int, name: str = "MDNRNN") -> Path:
    """Where the last round's V and M of a training seed are; another class of M has a folder of its own."""
    return run / (f"seed-{seed}" + (f"-round-{s.iterations}" if s.iterations else "") + ("" if name == "MDNRNN" else f"-{name}"))


def score_of(run: Path, s: DoomSettings, cell: Cell) -> Path: return folder_of(run, s, cell.seed, cell.model) / cell.name / "score.json"


def report(run: Path, random: dict, s: DoomSettings) -> None:
    """table.md, table.png and report.json from every cell that has a score by now."""
    paths = [score_of(run, s, cell) for cell in all_cells(s)]
    found = [json.loads(path.read_text()) | {"generations": len(read_lines(path.with_name("evolution.jsonl")))} for path in paths if path.exists()]
    (run / "table.md").write_text(table(found, random, s))
    figure(found, random, s, run / "table.png")
    write_json(run / "report.json", {
        "environment": TAKE_COVER, "versions": {name: version(name) for name in ("vizdoom", "torch")}, "revision": revision(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]), "seeds": [HELD_OUT[0], HELD_OUT[s.evaluate.episodes - 1]],
        "max_steps": s.evaluate.max_steps, "random": random, "cells": found,
        "m": {path.parent.name: json.loads(path.read_text()) for path in sorted(run.glob("*/m.json"))}})


# What data/ ships

def ship(run: Path, folder: Path, world: WorldModel, s: DoomSettings, to: Path, megabytes: float = 3.0) -> None:
    """Half-precision weights, a sample of the games and a card, from the first training seed, in `to`."""
    tau = s.dream.temperature
    if not (folder / f"tau-{tau:g}" / "score.json").exists(): raise ValueError(f"{folder} has no score at τ = {tau:g} yet: nothing to publish")
    fresh = to.with_name(to.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    store, episodes, steps = RolloutStore(folder / "store" if (folder / "store").exists() else run / "store"), 3, 200
    while (sample := write_sample(store, fresh / "sample", episodes, steps)).nbytes > megabytes * 1e6:
        shutil.rmtree(fresh / "sample")
        if episodes > 1: episodes -= 1
        elif steps > 50: steps //= 2
        else: raise ValueError(f"even {steps} steps of one episode of each kind take more than {megabytes} MB")
    world.save(fresh, half=True)
    save_controller(fresh / "controller.safetensors", *load_controller(folder / f"tau-{tau:g}" / "controller.safetensors"))
    for name in ("report.json", "table.png"): shutil.copy(run / name, fresh / name)
    calibrated = (folder / "reliability.png").exists()
    if calibrated: shutil.copy(folder / "reliability.png", fresh)
    minutes = {}
    for stage in read_lines(run / "stages.jsonl"): minutes[stage["stage"]] = minutes.get(stage["stage"], 0) + stage["seconds"] / 60
    reliability = """
*What M says about death, and the share that died, on held-out episodes of the first training seed; an honest M lies on the diagonal.*

![Share of steps that ended in death against the probability that M gave, as trained and calibrated on the other half.](reliability.png)
"""
    (fresh / "CARD.md").write_text(f"""# Doom, TakeCover: weights and a sample

`vision`, `dynamics` and `controller` are V, M and C of one run, in half precision; C was found at τ = {tau:g}, in the dream alone. `sample` holds
{len(sample)} of its {len(store)} episodes ({sample.n_frames:,} frames, {sample.nbytes / 1e6:.1f} MB), cut.

`{json.loads((run / "report.json").read_text())["command"]}` at revision {revision()}. VizDoom {version("vizdoom")}, torch {version("torch")}.

{(run / "table.md").read_text()}
## Figures and times

![Tics survived in the dream and in the game against the dream's temperature, the paper's numbers dashed beside them.](table.png)
{reliability if calibrated else ""}
Minutes: {", ".join(f"{name} {m:.1f}" for name, m in minutes.items() if m >= 0.05)}.
""")
    shutil.rmtree(to, ignore_errors=True)
    fresh.rename(to)


# Exercise 6

def r_squared(x: torch.Tensor, y: torch.Tensor, train: torch.Tensor, ridge: float = 1e-3) -> float:
    """R² on the other rows of a linear fit of y (n,) on x (n, inputs) in the rows `train` (n,) bool."""
    x = torch.cat([(x - x[train].mean(0)) / (x[train].std(0) + 1e-6), torch.ones(len(x), 1)], 1).double()
    a, b, y = x[train], x[~train], y.double()
    weight = torch.linalg.solve(a.T @ a + ridge * len(a) * torch.eye(x.shape[1]), a.T @ y[train])
    return 1 - float((b @ weight - y[~train]).pow(2).mean() / y[~train].var(unbiased=False))


def health_in_memory(world: WorldModel, store: RolloutStore, latents: Latents) -> dict[str, float]:
    """How much of the health a linear fit reads off the tic alone, z, and z with M's memory: R² on held-out episodes."""
    if latents.repeat != 1: raise ValueError(f"latents of every tic are needed, not of every {latents.repeat}")
    repeat = world.dynamics.action_repeat
    at = [[*range(0, int(n), repeat), int(n)] for n in latents.lengths]  # the tics that M sees
    health = torch.cat([torch.from_numpy(replay_health(e.seed, e.actions)[tics]) for e, tics in zip(store.episodes(), at)])
    time, latents = torch.tensor(sum(at, []))[:, None].float(), apply_action_repeat(latents, repeat)
    known = torch.zeros(len(health), dtype=torch.bool)
    for i in store.split()[0]: known[latents.episode(int(i))] = True
    seen = controller_inputs(world, latents)
    return {"tic": r_squared(time, health, known), "tic and z": r_squared(torch.cat([time, latents.mu], 1), health, known),
            "tic, z and memory": r_squared(torch.cat([time, seen], 1), health, known)}


# Exercise 7

class Still(Policy):
    """Stands where it is."""

    name = "still"

    def act(self, frames, rows): return np.zeros((len(rows), 1), np.float32)


def by_age(fires: list[np.ndarray], every: int) -> list[float]:
    """Means over the steps 0 to `every` - 1, and so on, of those that still live there: `fires` holds an array for every life."""
    return [float(np.concatenate([f[k:k + every] for f in fires]).mean()) for k in range(0, max(map(len, fires)), every)]


def fire_by_temperature(world: WorldModel, starts: InitialStates, dream: DreamSettings, temperatures: tuple[float, ...], seeds: range,
                        every: int = 25) -> dict[float | str, list[float]]:
    """Mean share of glowing pixels at each age, in groups of `every` steps of M, around a player that stands still.

    In the dreams of each τ, and, as "game", in games of as many tics, coded and decoded by the same V.
    """
    still, repeat, found = np.zeros(controllers_for(world, C_DOOM).dimension), world.dynamics.action_repeat, {}
    for tau in temperatures:
        warm = replace(dream, temperature=tau)
        z, logits = dream_on(world, C_DOOM, still, starts, warm, seeds)
        found[tau] = by_age([fire(decode_frames(world.vision, z[:int(n) + 1, i])) for i, n in enumerate(lives(logits, warm))], every)
    envs = make_envs(TAKE_COVER, list(seeds), world.vision.size)
    try: games = record(envs, Still(), dream.max_steps * repeat)
    finally: envs.close()
    found["game"] = by_age([fire(decode_frames(world.vision, torch.from_numpy(encode_frames(world.vision, e.frames[::repeat])[0]))) for e in games], every)
    return found


# Exercise 8

class Fading(Dream):
    """A dream in which nobody is drawn dead: a step pays its reward times the chance of being alive, and it is over where that is below `floor`."""

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
    """What `DreamFitness` with done by sample says in the mean over all draws of death, but for the last `floor`; `evolve` takes it as well."""

    def __init__(self, world: WorldModel, starts: InitialStates, controller: ControllerSettings, settings: DreamSettings):
        super().__init__(world, starts, controller, settings)
        self.dream = Fading(world, starts, settings)


def luck(returns: np.ndarray) -> float:
    """The sd of one dream that neither the candidate nor the seed explains: returns (P, E) of P candidates on the same E seeds."""
    rest = returns - returns.mean(1, keepdims=True) - returns.mean(0) + returns.mean()
    return float(np.sqrt(np.square(rest).sum() / np.prod(np.subtract(returns.shape, 1))))


def luck_by_rule(world: WorldModel, starts: InitialStates, dream: DreamSettings, params: np.ndarray, sigma: float = 0.15, candidates: int = 16,
                 seeds: range = range(64)) -> dict[str, dict[str, float]]:
    """Mean return, luck and dreamt steps, of one generation around `params` under either rule."""
    others = params + sigma * np.random.default_rng(0).normal(size=(candidates, len(params)))
    found = {}
    for rule, kind in {"sample": DreamFitness, "fading": FadingFitness}.items():
        fitness = kind(world, starts, C_DOOM, replace(dream, done="sample"))
        returns = fitness(others, seeds)
        found[rule] = {"mean": float(returns.mean()), "luck": luck(returns), "steps": fitness.steps}
    return found


def read_settings(args: list[str]) -> DoomSettings:
    """From flags; `--settings quick` means the section [quick:doom]."""
    names, flags = split_settings(args)
    return load(DoomSettings, [*flags, *([f"--settings={doom_sections(names)}"] if names else [])], description=__doc__)


def main() -> None:
    s = read_settings(sys.argv[1:])
    require_vizdoom()
    show.use_style()
    if s.publish and Path(s.publish).exists() and not (Path(s.publish) / "CARD.md").exists():
        raise ValueError(f"{s.publish} exists and has no CARD.md, so this did not write it: it is left alone")
    run = claim_run_folder(Path(s.run), s, s.fresh, ignore=("fresh", "run", "cells", "publish", "seeds", "temperatures", "models", "cheats"))
    clock = Clock(run)
    store = RolloutStore.create(run / "store", TAKE_COVER, s.collect.size, 1)
    collect(store, explorer(s), s.collect.episodes, "fast", 0, s.collect.max_steps, s.collect.rows, "random")
    clock("games")
    rounds = {}
    missing = [cell for cell in all_cells(s) if not score_of(run, s, cell).exists()]
    for cell in all_cells(s):
        if s.cells and cell in missing[s.cells:]: continue
        if cell.seed not in rounds: rounds[cell.seed] = learn_in_rounds(run, store, s, cell.seed, clock)
        world, games = rounds[cell.seed]
        if cell.model != "MDNRNN": world = other_world(run, cell.model, games, s, cell.seed, clock, world)
        run_cell(folder_of(run, s, cell.seed, cell.model), world, games, s, cell, clock)
        random = once(run / "random.json", lambda: random_players(s))
        clock("players that do not look")
        report(run, random, s)
    for name, r in random.items(): print(f"{BLIND[name]}: {r['mean']:.0f} ± {r['sd']:.0f} tics")
    (world, _), first = rounds[s.seeds[0]], [cell for cell in all_cells(s) if cell.seed == s.seeds[0] and cell.model == "MDNRNN"]
    coldest = min(first, key=lambda cell: (not cell.done, cell.tau))  # by threshold, where there is one
    for name, cell in (("player", first[0]), ("cheat", coldest)):
        if score_of(run, s, cell).exists() and (name == "player" or cell != first[0]): films(run, folder_of(run, s, cell.seed), world, s, cell, name)
    clock("films")
    if s.publish: ship(run, folder_of(run, s, s.seeds[0]), world, s, Path(s.publish))
    print((run / "table.md").read_text() + f"report, films and weights are in {run}")


def other_world(run: Path, name: str, store: RolloutStore, s: DoomSettings, seed: int, clock: Clock, world: WorldModel) -> WorldModel:
    """The world of another class of M in a folder of its own: a TransformerMDN has the same V and latents, a ViT-WM is its own V."""
    folder, latents = folder_of(run, s, seed, name), folder_of(run, s, seed) / "latents.safetensors"
    folder.mkdir(exist_ok=True)
    if name == "ViTWM": found = learn_joint(folder, store, s, seed)
    else:
        if not (folder / latents.name).exists(): os.link(latents, folder / latents.name)
        found = learn_dynamics(folder, world.vision, store, s, seed, name)
    clock(f"{folder.name}: M")
    return found


if __name__ == "__main__": command(main)
