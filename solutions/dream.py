"""A controller trained in nothing but dreams: random driving, V, M and C, then rounds of driving, learning and dreaming on.

python -m solutions.dream --settings laptop --run runs/dream
"""
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from solutions.evaluate import revision
from solutions.measures import select
from solutions.rollouts import drive_randomly
from solutions.settings import M_FIELDS, Sections, TrainSettings, command
from solutions.train import Clock
from solutions.vae import learn_vision
from worldmodels.controller import (ControllerSettings, RealFitness, WorldModelPolicy, carry_over, controllers_for, evolve, film, load_controller,
                                    save_controller, score, summary)
from worldmodels.dream import DreamFitness, DreamSettings, InitialStates
from worldmodels.latents import apply_action_repeat, concat_latents, smooth_rewards
from worldmodels.leak import draw_leak, film_dream, leak, predicted_rewards, rank_correlation, rank_interval
from worldmodels.mdn_rnn import MDNRNNSettings, train_dynamics
from worldmodels.rollouts import HELD_OUT, VALIDATION, collect
from worldmodels.tools import show
from worldmodels.tools.settings import claim_run_folder, load, write_json
from worldmodels.tools.store import RolloutStore, estimate_bytes, require_space
from worldmodels.tools.training import FitSettings, read_lines
from worldmodels.tools.world import Dynamics, Vision, WorldModel, load_model, load_tensors, registered, save_model, save_tensors
from worldmodels.vae import Latents, encode_store

LEAK_TEMPERATURES = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class IterateSettings:
    """Rounds of driving with C, learning from it, and dreaming on."""

    rounds: int = 8
    """rounds after the naive one; 0 is the naive dream alone"""
    episodes: int = 48
    """episodes driven for a round on the fast environment"""
    official: int = 8
    """episodes beside them on the official one"""
    max_steps: int = 400
    """steps after which such an episode is cut"""
    drivers: int = 4
    """checkpoints of the last search that share this driving: the way to a trick shows M more of it than the end"""
    action_noise: float = 0.3
    """size of the smooth noise added to what they decide, so that the data shows mistakes and how to mend them"""
    recent: float = 1.0
    """how much of M's training the last round's driving is, measured by all that was before; 0 treats all alike"""
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
        for name in ("rounds", "official", "action_noise", "recent", "context", "reward_radius"):
            if getattr(self, name) < 0: raise ValueError(f"{name} must be 0 or above, not {getattr(self, name)}")
        for name in ("episodes", "max_steps", "drivers", "dreams", "leak_tracks"):
            if getattr(self, name) < 1: raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for temperature in self.temperatures:
            if not temperature > 0: raise ValueError(f"temperatures must be above 0, not {temperature}")
        if not 0 <= self.first_frame_fraction < 1: raise ValueError(f"first_frame_fraction must be a share from 0 to below 1, not {self.first_frame_fraction}")
        if max(self.episodes, self.official) > 1000: raise ValueError("episodes and official must be at most 1000: each round has that many seeds of its own")
        if self.rounds > 30: raise ValueError(f"rounds must be at most 30 (each has seeds of its own), not {self.rounds}")
        for name in ("episodes", "official"):
            if getattr(self, name) % self.drivers:
                raise ValueError(f"{name} must be a multiple of drivers = {self.drivers}, who share them, not {getattr(self, name)}")


@dataclass(frozen=True)
class DreamRunSettings(TrainSettings):
    """Everything from the first frame to the report of a dreamt controller. (`scout` is not used: every round is one.)"""

    run: str = "runs/dream"
    """folder of the run"""
    dynamics: MDNRNNSettings = field(default_factory=lambda: MDNRNNSettings(reward=True, done=True))
    dynamics_again: FitSettings = field(default_factory=lambda: FitSettings(steps=1000, batch=100, lr=1e-3, lr_end=0.01, clip=1.0))
    dream: DreamSettings = field(default_factory=DreamSettings)
    iterate: IterateSettings = field(default_factory=IterateSettings)

    def __post_init__(self):
        super().__post_init__()
        if self.model == "ViTWM": raise ValueError("a ViTWM's V changes with its M, and here V stays: model must be MDNRNN, TransformerMDN or TraDE")
        for head in ("reward", *(["done"] if self.dream.done != "never" else [])):
            if not getattr(self.m, head):
                raise ValueError(f"{M_FIELDS[self.model]}.{head} must be true: " + ("M pays for the driving in its dreams" if head == "reward" else
                                 "dream.done is not never, so M must say when a dream ends"))
        for name in ("store", "latents"):
            if getattr(self, name): raise ValueError(f"{name} is not for a dream run, which drives for itself: leave it empty")
        if self.dream.reward != "head": raise ValueError("dream.reward must be head: a car is paid for road, not for being alive")


def open_run() -> tuple[Path, DreamRunSettings]:
    """Settings from the command line, and the run folder they belong to; nothing is written where they are refused."""
    s = load(DreamRunSettings, description=__doc__, part_of=Sections, command="dream")
    folder, c, i = Path(s.run), s.collect, s.iterate
    frames = (c.episodes + c.official) * (c.max_steps + 1) + i.rounds * (i.episodes + i.official) * (i.max_steps + 1)
    if not (folder / "store").exists(): require_space(folder, estimate_bytes(frames, c.size))
    return claim_run_folder(folder, s, s.fresh, ignore=("fresh", "run")), s


def learn(folder: Path, store: RolloutStore, vision: Vision, s: DreamRunSettings, before: WorldModel | None, known: Latents | None):
    """M of a round, from that of the round before, on all that was seen; returns V with M, and everything in M's steps."""
    folder.mkdir(exist_ok=True)
    first, path = 0 if known is None else len(known), folder / "latents.safetensors"
    if not path.exists():
        seen = apply_action_repeat(encode_store(vision, store, range(first, len(store))), s.m.action_repeat)
        smooth_rewards(seen, s.iterate.reward_radius, s.iterate.worst).save(path)
    new, path = replace(Latents.load(path), repeat=s.m.action_repeat), folder / "dynamics.safetensors"
    latents = new if known is None else concat_latents(known, new)
    if not path.exists():
        train = store.split()[0]
        old, last = train[train < first], train[(train >= first) & (train < len(latents))]
        torch.manual_seed(s.seed)
        model = registered(s.model)[0](s.m)
        if before: model.load_state_dict(before.dynamics.state_dict())
        again = round(s.iterate.recent * len(old) / len(last)) if before else 0
        episodes, training = np.concatenate([old, np.repeat(last, max(1, again))]), s.dynamics_again if before else s.dynamics_fit
        save_model(path, train_dynamics(model, latents, episodes, s.window, training, folder, s.seed, s.warm_up))
    return WorldModel(vision, load_model(path, Dynamics)), latents


def initial_states_of(latents: Latents, s: DreamRunSettings) -> InitialStates:
    return InitialStates.from_latents(latents, context=s.iterate.context, first_frame_fraction=s.iterate.first_frame_fraction)


def moved(old: WorldModel, params: np.ndarray, new: WorldModel, latents: Latents, first: int, s: DreamRunSettings) -> np.ndarray:
    """C as a new M's memory needs it, by the driving from episode `first` on; a C that cannot be carried over stays what it was."""
    if s.controller != ControllerSettings(): return params
    last = select(latents, range(first, len(latents)))
    return carry_over(old, s.controller, params, new, last, last)


def dream_on(folder: Path, world: WorldModel, latents: Latents, s: DreamRunSettings, round: int, start: Callable | None = None) -> np.ndarray:
    """The checkpoints of a round's search in its dreams, from `start()` (zeros): (k, D), the result last. Each is in checkpoints/."""
    there, path = folder / "checkpoints", folder / "controller.safetensors"
    keep = lambda mean, generation: save_controller(there / f"{generation:04d}.safetensors", s.controller, mean, generation=generation)
    if not path.exists():
        fitness = DreamFitness(world, initial_states_of(latents, s), s.controller, s.dream)
        there.mkdir(exist_ok=True)
        start = start() if start else np.zeros(fitness.dimension)
        keep(start, 0)

        def validate(mean: np.ndarray) -> float:
            keep(mean, len(read_lines(folder / "evolution.jsonl")) + 1)
            return fitness(mean[None], VALIDATION[:s.iterate.dreams]).mean()

        save_controller(path, s.controller, evolve(fitness, start, s.evolve, folder, s.seed + round, validate)[0])
    return np.stack([load_controller(p)[1] for p in [*sorted(there.glob("*.safetensors"))[:-1], path]])


def go_and_look(store: RolloutStore, world: WorldModel, checkpoints: np.ndarray, s: DreamRunSettings, round: int) -> None:
    """Drive for round number `round`, swerving, with evenly chosen checkpoints of the last search, its result among them."""
    i = s.iterate
    drivers = checkpoints[np.linspace(min(1, len(checkpoints) - 1), len(checkpoints) - 1, i.drivers).round().astype(int)]  # not its start
    policy, rows = WorldModelPolicy(world, controllers_for(world, s.controller, drivers), i.action_noise), max(1, s.collect.rows // i.drivers) * i.drivers
    collect(store, policy, i.episodes, "fast", 20_000 + 1000 * round, i.max_steps, rows, f"round{round:02d}")
    collect(store, policy, i.official, "gymnasium", 60_000 + 1000 * round, i.max_steps, rows, f"round{round:02d}")


def returns_once(path: Path, measure) -> np.ndarray:
    """The returns in a file, measured now if it is not there: any shape."""
    if not path.exists(): save_tensors(path, {"returns": torch.from_numpy(measure())})
    return load_tensors(path)[0]["returns"].numpy()


def score_checkpoints(folder: Path, world: WorldModel, latents: Latents, checkpoints: np.ndarray, store: RolloutStore, s: DreamRunSettings) -> dict:
    """After all training: what a round's checkpoints are worth in its dreams and in reality, on validation tracks."""
    tracks = VALIDATION[2000:2000 + s.iterate.leak_tracks]
    real = returns_once(folder / "real.safetensors",
                        lambda: RealFitness(world, s.controller, s.evaluate.max_steps, s.evolve.patience)(checkpoints, tracks))
    found = leak(world, initial_states_of(latents, s), s.controller, checkpoints, real, s.dream, LEAK_TEMPERATURES, s.iterate.dreams)
    held_out = store.split()[1]
    expected, paid = predicted_rewards(world.dynamics, latents, held_out[held_out < len(latents)], max(1, 50 // s.m.action_repeat))
    return {"search": folder.name, "real_frames": int(store.lengths[:len(latents)].sum()) + len(latents), "real": summary(real[-1]),
            "leak": {"real": found["real"].round(1).tolist(), "dream": {t: x.round(2).tolist() for t, x in found["dream"].items()}},
            "reward_correlation": round(rank_correlation(expected, paid), 3)}


def ranked(dreamt: np.ndarray, real: np.ndarray) -> dict:
    """Rank correlation of dreamt and real returns with its 95 % interval; None for what has no order."""
    found = dict(zip(("rho", "low", "high"), (rank_correlation(dreamt, real), *rank_interval(dreamt, real))))
    return {name: None if np.isnan(x) else round(x, 2) for name, x in found.items()}


def naive_search(folder: Path, world: WorldModel, latents: Latents, s: DreamRunSettings) -> np.ndarray:
    """The checkpoints of a search in the first dream alone, with as many generations as all rounds have together."""
    folder.mkdir(exist_ok=True)
    generations = s.evolve.generations * (s.iterate.rounds + 1)
    return dream_on(folder, world, latents, replace(s, evolve=replace(s.evolve, generations=generations, validate_every=max(1, generations // 8))), 0)


def draw_rounds(rounds: list[dict]) -> Figure:
    """Real return on validation tracks after each round, with the interval of its mean, against the real frames seen."""
    frames, real = [r["real_frames"] for r in rounds], [r["real"] for r in rounds]
    return show.curves({"real": (frames, [r["mean"] for r in real])}, "real frames seen by M", "real return (95 % interval)",
                       band={"real": ([r["low"] for r in real], [r["high"] for r in real])})


def held_out_score(folder: Path, world: WorldModel, params: np.ndarray, s: DreamRunSettings) -> dict:
    """The official score of a round's C on the held-out tracks, measured once."""
    seeds = HELD_OUT[:s.evaluate.episodes]
    returns = returns_once(folder / "held_out.safetensors", lambda: score(world, s.controller, params, seeds, "gymnasium", s.evaluate.max_steps))
    return summary(returns) | {"returns": [round(float(x), 2) for x in returns]}


def main() -> None:
    folder, s = open_run()
    show.use_style()
    clock = Clock(folder)
    store = drive_randomly(folder, s)
    clock("random driving")
    vision, world, latents, made = learn_vision(folder, store, s), None, None, []
    clock("V")
    for round in range(s.iterate.rounds + 1):
        here = folder / f"{round:02d}"
        if round and not (here / "latents.safetensors").exists():
            go_and_look(store, world, checkpoints, s, round)
            clock(f"round {round}: driving")
        old, known = world, latents
        world, latents = learn(here, store, vision, s, old, known)
        clock(f"round {round}: M")
        checkpoints = dream_on(here, world, latents, s, round, (lambda: moved(old, checkpoints[-1], world, latents, len(known), s)) if round else None)
        clock(f"round {round}: C")
        made.append((here, world, latents, checkpoints))
        if round: continue
        for t in (s.dream.temperature, *s.iterate.temperatures):
            there = folder / ("naive" if t == s.dream.temperature else f"naive-{t}")
            made.append((there, world, latents, naive_search(there, world, latents, replace(s, dream=replace(s.dream, temperature=t)))))
            clock(f"the naive C, τ = {t}")
    report(folder, store, made, s, clock)


def report(folder: Path, store: RolloutStore, made: list[tuple], s: DreamRunSettings, clock: Clock) -> None:
    """Score every search on validation tracks, the naive C and the last on the held-out ones; write rounds.json, figures and films."""
    searches = [score_checkpoints(*one, store, s) for one in made]
    rounds = [found for found in searches if not found["search"].startswith("naive")]
    draw_rounds(rounds).savefig(folder / "rounds.png")
    leaks = {found["search"]: found["leak"] for found in searches if found not in rounds}
    leaks["iterated"] = {"real": np.concatenate([found["leak"]["real"] for found in rounds]),  # each search in the dream it was made in
                         "dream": {t: np.concatenate([found["leak"]["dream"][t] for found in rounds]) for t in LEAK_TEMPERATURES}}
    draw_leak(leaks).savefig(folder / "leak.png")
    clock("looking back")
    naive, iterated = (held_out_score(here, world, checkpoints[-1], s) for here, world, _, checkpoints in (made[1], made[-1]))
    write_json(folder / "rounds.json", {  # report.json is what `solutions.evaluate` writes
        "environment": "CarRacing-v3", "versions": {name: version(name) for name in ("gymnasium", "torch")}, "revision": revision(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]), "seeds": [HELD_OUT[0], HELD_OUT[s.evaluate.episodes - 1]],
        "max_steps": s.evaluate.max_steps, "real_frames": store.n_frames, "naive": naive, "iterated": iterated,
        "iterated_is_better": bool(iterated["low"] > naive["high"]), "searches": searches,
        "rank_correlation": {name: {t: ranked(found["dream"][t], found["real"]) for t in LEAK_TEMPERATURES} for name, found in leaks.items()}})
    for name, r in (("naive", naive), ("iterated", iterated)):
        print(f"{name}: {r['mean']} ± {r['sd']} over {r['episodes']} held-out tracks, 95 % interval of the mean {r['low']} to {r['high']}")
    clock("score")
    hand_over(folder, *made[-1], store, s)
    clock("films")
    print(f"report, films and weights are in {folder}; {store.n_frames:,} real frames were seen")


def hand_over(folder: Path, last: Path, world: WorldModel, latents: Latents, checkpoints: np.ndarray, store: RolloutStore, s: DreamRunSettings) -> None:
    """The last round's M, C and first frames beside V in the run's own folder, and two films."""
    starts = InitialStates.from_latents(latents)
    save_tensors(folder / "starts.safetensors", {"mu": starts.mu, "logvar": starts.logvar})
    save_model(folder / "dynamics.safetensors", world.dynamics)
    save_controller(folder / "controller.safetensors", s.controller, checkpoints[-1])
    film(world, s.controller, checkpoints[-1], HELD_OUT[0], folder / "drive.mp4", s.evaluate.max_steps)
    film_dream(world, store.episode(int(store.lengths.argmax())), folder / "dream.mp4")


# Answers to the exercises of chapter 05

def horizons(world: WorldModel, latents: Latents, s: DreamRunSettings, lengths=(50, 150, 500), seeds=(0, 1, 2)) -> dict[int, dict]:
    """Exercise 6: real returns of searches in dreams of different lengths, with the same number of dreamt steps in all."""
    found, starts = {}, initial_states_of(latents, s)
    real, tracks = RealFitness(world, s.controller, s.evolve.max_steps, s.evolve.patience), VALIDATION[4000:4016]
    for n in lengths:
        dreams = max(1, s.evolve.episodes * s.dream.max_steps // n)
        fitness = DreamFitness(world, starts, s.controller, replace(s.dream, max_steps=n))
        means = [evolve(fitness, np.zeros(fitness.dimension), replace(s.evolve, episodes=dreams), seed=seed)[0] for seed in seeds]
        found[n] = summary(real(np.stack(means), tracks).mean(1))
    return found


class Pessimist:
    """Exercise 7: the smaller of what several fitnesses say; of worlds with one V, and for a C that does not see M's memory."""

    def __init__(self, *fitnesses: DreamFitness):
        if any(f.controllers.settings.memory for f in fitnesses):
            raise ValueError("the memories of two Ms mean different things: use ControllerSettings(memory=False)")
        self.fitnesses, self.dimension = fitnesses, fitnesses[0].dimension

    def __call__(self, params: np.ndarray, seeds) -> np.ndarray: return np.minimum.reduce([f(params, seeds) for f in self.fitnesses])


if __name__ == "__main__": command(main)
