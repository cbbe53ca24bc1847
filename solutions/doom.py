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
from worldmodels.controller import (ControllerSettings, EvolveSettings, WorldModelPolicy, controllers_for, evolve, load_controller, memories,
                                    save_controller, summary)
from worldmodels.doom import (C_DOOM, M_DOOM, MAX_TICS, TAKE_COVER, V_DOOM, Restless, Runner, calibrate, done_logits, doom_sections, dream_on, film, fire, play,
                              reliability, replay_health, survive, survived)
from worldmodels.dream import DreamFitness, DreamSettings, Starts, coarsen, done_probability
from worldmodels.mdn_rnn import MDNRNN, MDNRNNSettings, held_out_nll, train_dynamics
from worldmodels.rollouts import HELD_OUT, CollectSettings, NoisePolicy, Policy, collect, require_vizdoom
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
    cells: int = 0
    """cells of the table to run before this start ends; 0 runs all of them"""
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
    """share of those windows that end where the episode does"""
    calibrate: bool = False
    """fit scale and shift of done's logit on held-out episodes"""
    iterations: int = 0
    """rounds in which the player of the last dream plays the game, and V, M and the dream learn from that, too; no score is used"""
    driven: int = 256
    """games that it plays in such a round"""
    swerve: float = 1.0
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
        if min(self.temperatures) <= 0: raise ValueError(f"temperatures must be above 0, not {min(self.temperatures)}")
        for name in ("dynamics", "transformer", "vit_wm"):
            m = getattr(self, name)
            if name != "vit_wm" and self.vae.latent != m.latent:
                raise ValueError(f"vae.latent is {self.vae.latent} and {name}.latent {m.latent}: M reads what V writes, so they must be equal")
            if m.action_dim != 1: raise ValueError(f"{name}.action_dim must be 1 (left to right), not {m.action_dim}")
            if not m.done: raise ValueError(f"{name}.done must be true: a dream in which nobody dies teaches nothing")
        if not 0 <= self.ending <= 1: raise ValueError(f"ending is a share from 0 to 1, not {self.ending}")
        for name in ("shortest", "iterations", "driven", "swerve", "cells"):
            if getattr(self, name) < 0: raise ValueError(f"{name} must be 0 or above, not {getattr(self, name)}")
        if self.dream.reward != "alive": raise ValueError("dream.reward must be alive: the game pays 1 a tic, and scores are told in tics")
        for name in ("dynamics", *(["transformer"] if "TransformerMDN" in self.models else [])):
            repeat = getattr(self, name).action_repeat
            for what, tics in ("window", self.window), ("dream.max_steps", self.dream.max_steps), ("evolve.max_steps", self.evolve.max_steps):
                if tics < 1 or tics % repeat: raise ValueError(f"{what} must be a multiple of the {repeat} tics in a step of {name}, not {tics}")
        sizes = {"collect.size": self.collect.size, "vae.size": self.vae.size} | ({"vit_wm.size": self.vit_wm.size} if "ViTWM" in self.models else {})
        if set(sizes.values()) != {64}: raise ValueError(f"games are played at 64 pixels, so all sizes must be 64, not {sizes}")
        if not 1 <= self.evaluate.episodes <= len(HELD_OUT): raise ValueError(f"evaluate.episodes must be 1 to {len(HELD_OUT)}, not {self.evaluate.episodes}")
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
    return Restless(s.holds, s.collect.max_steps) if s.collect.noise == "held" else NoisePolicy(s.collect.noise, s.collect.max_steps)


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
        latents = coarsen(encode(folder, vision, store), repeat)
        model = train_dynamics(model, latents, train, s.window // repeat, s.dynamics_fit, folder, seed, ending=s.ending, done_weight=s.dream.done_weight).cpu()
        write_json(folder / "m.json", examine(model, latents, held_out, s, folder))
        save_model(path, model)
    return WorldModel(vision, load_model(path, Dynamics))


def learn_joint(folder: Path, store: RolloutStore, s: DoomSettings, seed: int) -> WorldModel:
    """The ViT-WM of `folder`, V and M in one, trained and calibrated unless it is there."""
    if not (folder / "dynamics.safetensors").exists():
        train, held_out = usable(store, s)
        model = train_vit_wm(store, s.vit_wm, s.vit_wm_fit, s.clip, folder, seed, train, done_weight=s.dream.done_weight).cpu()
        write_json(folder / "m.json", examine(model, encode(folder, model, store), held_out, s, folder))
        WorldModel(model, model).save(folder)
    return WorldModel.load(folder)


def examine(model: Dynamics, latents: Latents, held_out: np.ndarray, s: DoomSettings, folder: Path) -> dict:
    """Calibrates M if asked to; its NLL, what it says about death on held-out episodes, and a figure of that."""
    weight, (logits, died) = s.dream.done_weight, done_logits(model, latents, held_out)
    found = {"tics a step": model.action_repeat, "nll": round(float(held_out_nll(model, latents, held_out).mean()), 4), "steps": len(died),
             "deaths": int(died.sum()), "expected": round(float(done_probability(logits, weight).sum()), 2)}
    if not 0 < found["deaths"] < found["steps"]: return found
    lines = {"as trained": logits}
    if s.calibrate:
        found["a"], found["b"] = calibrate(model, latents, held_out, weight)
        lines["calibrated on these episodes"] = done_logits(model, latents, held_out)[0]
    found["nats a death better than a constant rate"] = {name: gain(done_probability(x, weight), died) for name, x in lines.items()}
    fig = show.curves({"baseline": ([1e-4, 1], [1e-4, 1])} | {name: honest(done_probability(x, weight), died) for name, x in lines.items()},
                      "M says: dies at this step (probability)", "share that died", log=True)
    fig.axes[0].set(xscale="log")
    fig.savefig(folder / "reliability.png")
    return found


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

def cell(folder: Path, world: WorldModel, latents: Latents, train: np.ndarray, s: DoomSettings, tau: float, seed: int) -> dict:
    """The controller of one temperature, found in its dream unless it is there, and its scores: dream and game."""
    folder.mkdir(exist_ok=True)
    path, starts, repeat = folder / "controller.safetensors", Starts.from_latents(latents, train), world.dynamics.action_repeat
    dream = lambda tics: replace(s.dream, temperature=tau, max_steps=tics // repeat)
    if not path.exists():
        fitness = DreamFitness(world, starts, s.controller, dream(s.evolve.max_steps))
        searched = replace(s.evolve, target_return=s.evolve.target_return / repeat)
        save_controller(path, s.controller, evolve(fitness, np.zeros(fitness.dimension), searched, folder, seed)[0])
    params, seeds = load_controller(path)[1], HELD_OUT[:s.evaluate.episodes]

    def both() -> dict:
        policy = WorldModelPolicy(world, controllers_for(world, s.controller, params))
        return {"tau": tau, "seed": seed, "model": type(world.dynamics).__name__,
                "dream": scored(repeat * DreamFitness(world, starts, s.controller, dream(s.dream.max_steps))(params[None], seeds)[0]),
                "game": scored(survive(policy, seeds, s.evaluate.max_steps, s.collect.rows))}
    return once(folder / "score.json", both)


def grow(old: Path, new: Path, world: WorldModel, params: np.ndarray, s: DoomSettings, number: int) -> RolloutStore:
    """The store `new`: all parts of `old`, and games that the player of the last dream has played, with noise on its actions."""
    RolloutStore.create(new, TAKE_COVER, s.collect.size, 1)
    for part in old.glob("*.zip"):
        if not (new / part.name).exists(): os.link(part, new / part.name)  # parts never change
    policy = WorldModelPolicy(world, controllers_for(world, s.controller, params), s.swerve)
    return collect(RolloutStore(new), policy, s.driven, "fast", ROUND * number, s.collect.max_steps, s.collect.rows, f"round-{number}")


def learn_in_rounds(run: Path, store: RolloutStore, s: DoomSettings, seed: int, clock: Clock) -> tuple[WorldModel, RolloutStore]:
    """The last round's world and store for one training seed; without iterations there is one round."""
    folder, short = run / f"seed-{seed}", lambda fit: replace(fit, steps=max(1, round(s.again * fit.steps)))
    world, later = learn(folder, store, s, seed, clock), replace(s, vae_fit=short(s.vae_fit), dynamics_fit=short(s.dynamics_fit))
    for number in range(1, s.iterations + 1):
        run_cell(folder, world, store, s, s.dream.temperature, seed, clock)
        params = load_controller(folder / f"tau-{s.dream.temperature:g}" / "controller.safetensors")[1]
        new = run / f"seed-{seed}-round-{number}"
        new.mkdir(exist_ok=True)
        store = grow(store.path, new / "store", world, params, s, number)
        clock(f"{new.name}: games")
        folder, world = new, learn(new, store, later, seed, clock, world)
    return world, store


def run_cell(folder: Path, world: WorldModel, store: RolloutStore, s: DoomSettings, tau: float, seed: int, clock: Clock) -> dict:
    found = cell(folder / f"tau-{tau:g}", world, encode(folder, world.vision, store), usable(store, s)[0], s, tau, seed)
    clock(f"{folder.name}: τ = {tau:g}")
    print("   ".join(f"{where} {found[where]['mean']:.0f} ± {found[where]['sd']:.0f}" for where in ("dream", "game")), flush=True)
    return found


# What is told in the end

def told(score: dict | None) -> str: return f"{score['mean']:.0f} ± {score['sd']:.0f}" if score else "not run"


def table(found: list[dict], random: dict, s: DoomSettings) -> str:
    """The paper's temperature table beside this run's, in Markdown; a cell that was not run says so."""
    at = lambda **what: next((c for c in found if all(c[k] == v for k, v in what.items())), None)
    head = "".join(f" dream, seed {seed} | game, seed {seed} |" for seed in s.seeds)
    lines = [f"| τ |{head} paper: dream | paper: game |", "|" + "---|" * (2 * len(s.seeds) + 3)]
    for tau in sorted(s.temperatures):
        mine = [at(tau=tau, seed=seed, model="MDNRNN") for seed in s.seeds]
        theirs = [f"{m} ± {sd}" for m, sd in PAPER[tau]] if tau in PAPER else ["", ""]
        lines.append(f"| {tau:g} | " + " | ".join(f"{told(c and c['dream'])} | {told(c and c['game'])}" for c in mine) + f" | {' | '.join(theirs)} |")

    for name in s.models:
        c = at(model=name)
        lines.append(f"| {s.dream.temperature:g}, {name} | {told(c and c['dream'])} | {told(c and c['game'])} |" + " |" * (2 * len(s.seeds)))
    for name, r in random.items():
        lines.append(f"| {BLIND[name]} | | {told(r)} |" + " |" * (2 * len(s.seeds) - 1) + (" 210 ± 108 |" if name == "fresh" else " |"))
    made = sorted({c["generations"] for c in found})
    limit = f", each of at most {s.evolve.minutes:g} minutes" if s.evolve.minutes else ""
    return "\n".join(lines) + (f"\n\nMean ± sd of {s.evaluate.episodes} episodes, in tics; games on seeds {HELD_OUT[0]} and up. "
                               f"Searches of {' to '.join(map(str, made[::max(1, len(made) - 1)]))} generations{limit}.\n")


def figure(found: list[dict], random: dict, path: Path) -> None:
    """Dream and game against temperature, with the 95 % interval of the mean; the paper's numbers beside them."""
    mine = sorted((c for c in found if c["model"] == "MDNRNN"), key=lambda c: c["tau"])
    columns = {"dream": ("dream", 0), "real": ("game", 1)}
    fig = show.curves({f"paper, {where}": ([*PAPER], [p[k][0] for p in PAPER.values()]) for where, k in columns.values()}, "temperature τ",
                      "survived (tics)", hline={"random, fresh action": random["fresh"]["mean"]})
    for line, name in zip(fig.axes[0].lines, columns): line.set(color=show.COLORS[name], linestyle=(0, (2, 2)), alpha=0.6)
    for name, (where, _) in columns.items():
        for k, seed in enumerate(sorted({c["seed"] for c in mine})):
            x, y = zip(*((c["tau"], c[where]) for c in mine if c["seed"] == seed))
            error = [[r["mean"] - r["low"] for r in y], [r["high"] - r["mean"] for r in y]]
            fig.axes[0].errorbar(x, [r["mean"] for r in y], error, color=show.COLORS[name], marker="o", capsize=3, alpha=0.6**k,
                                 label=f"{where}, seed {seed}")
    fig.axes[0].legend(fontsize=8)
    fig.savefig(path)


def films(run: Path, folder: Path, world: WorldModel, s: DoomSettings, tau: float, name: str, tics: int = 1050) -> None:
    """NAME-tau-τ-game.mp4, -dream.mp4 and -both.mp4 in `run`: the game beside what V sees, the dream, and both from one first frame."""
    name = f"{name}-tau-{tau:g}"
    if (run / f"{name}-both.mp4").exists(): return
    settings, params = load_controller(folder / f"tau-{tau:g}" / "controller.safetensors")
    tics, repeat = min(tics, s.evaluate.max_steps), world.dynamics.action_repeat
    screens, game = play(world, settings, params, HELD_OUT[0], tics)
    mu, logvar = encode_frames(world.vision, game.frames)
    starts = Starts(torch.from_numpy(mu[:1]), torch.from_numpy(logvar[:1]))
    z, logits = dream_on(world, settings, params, starts, replace(s.dream, temperature=tau, max_steps=tics // repeat), [HELD_OUT[0]])
    dead = logits > 0
    if s.dream.done == "sample": dead = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) < done_probability(logits, s.dream.done_weight)
    dream = decode_frames(world.vision, z[:int(survived(dead)[0]) + 1, 0]).repeat(repeat, 0)
    film(run / f"{name}-game.mp4", {"the game": screens, "what V sees": decode_frames(world.vision, mu)})
    film(run / f"{name}-dream.mp4", {f"a dream, τ = {tau:g}": dream})
    film(run / f"{name}-both.mp4", {"the game": screens, f"the dream, τ = {tau:g}": dream})


def all_cells(s: DoomSettings) -> list[tuple[float, int, str]]:
    """(τ, seed, class of M) of every cell of the table, the most important one first."""
    order = lambda c: (c[0] != s.dream.temperature, s.seeds.index(c[1]), c[0])
    return sorted(((t, seed, "MDNRNN") for seed in s.seeds for t in s.temperatures), key=order) + [(s.dream.temperature, s.seeds[0], m) for m in s.models]


def folder_of(run: Path, s: DoomSettings, seed: int, name: str = "MDNRNN") -> Path:
    """Where the last round's V and M of a training seed are; another class of M has a folder of its own."""
    return run / (f"seed-{seed}" + (f"-round-{s.iterations}" if s.iterations else "") + ("" if name == "MDNRNN" else f"-{name}"))


def report(run: Path, random: dict, s: DoomSettings) -> None:
    """table.md, table.png and report.json from every cell that has a score by now."""
    paths = [folder_of(run, s, seed, name) / f"tau-{tau:g}" / "score.json" for tau, seed, name in all_cells(s)]
    found = [json.loads(path.read_text()) | {"generations": len(read_lines(path.with_name("evolution.jsonl")))} for path in paths if path.exists()]
    (run / "table.md").write_text(table(found, random, s))
    figure(found, random, run / "table.png")
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
    (fresh / "CARD.md").write_text(f"""# Doom, TakeCover: weights and a sample

`vision`, `dynamics` and `controller` are V, M and C of one run, in half precision; C was found at τ = {tau:g}, in the dream alone. `sample` holds
{len(sample)} of its {len(store)} episodes ({sample.n_frames:,} frames, {sample.nbytes / 1e6:.1f} MB), cut.

`{json.loads((run / "report.json").read_text())["command"]}` at revision {revision()}. VizDoom {version("vizdoom")}, torch {version("torch")}.

{(run / "table.md").read_text()}""")
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
    time, latents = torch.tensor(sum(at, []))[:, None].float(), coarsen(latents, repeat)
    known = torch.zeros(len(health), dtype=torch.bool)
    for i in store.split()[0]: known[latents.episode(int(i))] = True
    seen = memories(world, latents)
    return {"tic": r_squared(time, health, known), "tic and z": r_squared(torch.cat([time, latents.mu], 1), health, known),
            "tic, z and memory": r_squared(torch.cat([time, seen], 1), health, known)}


# Exercise 7

def fire_by_temperature(world: WorldModel, starts: Starts, dream: DreamSettings, temperatures: tuple[float, ...], seeds: range) -> dict[float, float]:
    """Mean share of glowing pixels in the dreams of a player that stands still, for each τ."""
    still = np.zeros(controllers_for(world, C_DOOM).dimension)
    means = {}
    for tau in temperatures:
        z, logits = dream_on(world, C_DOOM, still, starts, replace(dream, temperature=tau), seeds)
        lived = survived(logits > 0)
        means[tau] = float(np.mean([fire(decode_frames(world.vision, z[:int(n) + 1, i])).mean() for i, n in enumerate(lived)]))
    return means


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
    run = claim_run_folder(Path(s.run), s, s.fresh, ignore=("fresh", "run", "cells", "publish", "seeds", "temperatures", "models"))
    clock = Clock(run)
    store = RolloutStore.create(run / "store", TAKE_COVER, s.collect.size, 1)
    collect(store, explorer(s), s.collect.episodes, "fast", 0, s.collect.max_steps, s.collect.rows, "random")
    clock("games")
    rounds = {}
    for tau, seed, name in all_cells(s)[:s.cells or None]:
        if seed not in rounds: rounds[seed] = learn_in_rounds(run, store, s, seed, clock)
        world, games = rounds[seed]
        if name != "MDNRNN": world = other_world(run, name, games, s, seed, clock, world)
        run_cell(folder_of(run, s, seed, name), world, games, s, tau, seed, clock)
        random = once(run / "random.json", lambda: random_players(s))
        clock("players that do not look")
        report(run, random, s)
    for name, r in random.items(): print(f"{BLIND[name]}: {r['mean']:.0f} ± {r['sd']:.0f} tics")
    (world, _), folder, coldest = rounds[s.seeds[0]], folder_of(run, s, s.seeds[0]), min(s.temperatures)
    for tau, name in ((s.dream.temperature, "player"), (coldest, "cheat")):
        if (folder / f"tau-{tau:g}" / "score.json").exists() and (name == "player" or coldest < s.dream.temperature): films(run, folder, world, s, tau, name)
    clock("films")
    if s.publish: ship(run, folder, world, s, Path(s.publish))
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
