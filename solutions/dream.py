"""A controller trained in nothing but dreams: random driving, V, M and C, then rounds of driving, learning and dreaming on.

python -m solutions.dream --settings laptop --run runs/dream
"""
import shlex
import sys
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from solutions.evaluate import revision
from solutions.mdn_rnn import learn_dynamics
from solutions.rollouts import drive_randomly
from solutions.settings import TrainSettings, command
from solutions.train import Clock, retrace
from solutions.vae import learn_vision
from worldmodels.controller import (ControllerSettings, RealFitness, WorldModelPolicy, controllers_for, evolve, film, load_controller,
                                    save_controller, score, summary)
from worldmodels.dream import DreamFitness, DreamSettings, Starts, draw_leak, film_dream, foretold, leak, rank_correlation, smooth
from worldmodels.mdn_rnn import MDNRNNSettings
from worldmodels.rollouts import HELD_OUT, VALIDATION, collect
from worldmodels.tools import show
from worldmodels.tools.settings import claim_run_folder, load, write_json
from worldmodels.tools.store import RolloutStore, estimate_bytes, require_space
from worldmodels.tools.training import FitSettings, read_lines
from worldmodels.tools.world import WorldModel, load_tensors, save_tensors
from worldmodels.vae import Latents, encode_store


@dataclass(frozen=True)
class IterateSettings:
    """Rounds of driving with C, learning from it, and dreaming on."""

    rounds: int = 5
    """rounds after the naive one; 0 is the naive dream alone"""
    episodes: int = 64
    """episodes that C drives for a round on the fast environment"""
    official: int = 12
    """episodes beside them on the official one"""
    max_steps: int = 1000
    """steps after which such an episode is cut"""
    swerve: float = 0.3
    """size of the smooth noise added to what C decides, so that the data shows mistakes and how to mend them"""
    context: int = 20
    """frames that M looks at before a dream begins; 0 begins dreams at first frames only"""
    reach: int = 12
    """each reward is shared by the steps at most so many away before M learns it"""
    worst: float = -10.0
    """rewards are raised to at least this before: leaving the field costs 100 at once"""
    dreams: int = 64
    """dreams in which the mean of a search is scored, on validation seeds"""
    leak_tracks: int = 16
    """validation tracks for a real score of every checkpoint, after everything is trained"""

    def __post_init__(self):
        for name in ("rounds", "official", "swerve", "context", "reach"):
            if getattr(self, name) < 0: raise ValueError(f"{name} must be 0 or above, not {getattr(self, name)}")
        for name in ("episodes", "max_steps", "dreams", "leak_tracks"):
            if getattr(self, name) < 1: raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class DreamRunSettings(TrainSettings):
    """Everything from the first frame to the report of a dreamt controller. (`scout` is not used: every round is one.)"""

    run: str = "runs/dream"
    """folder of the run"""
    dynamics: MDNRNNSettings = field(default_factory=lambda: MDNRNNSettings(reward=True, done=True))
    vae_again: FitSettings = field(default_factory=lambda: FitSettings(steps=10_000, batch=100, lr=1e-4))
    dynamics_again: FitSettings = field(default_factory=lambda: FitSettings(steps=1000, batch=100, lr=1e-3, lr_end=0.01, clip=1.0))
    dream: DreamSettings = field(default_factory=DreamSettings)
    iterate: IterateSettings = field(default_factory=IterateSettings)

    def __post_init__(self):
        super().__post_init__()
        if not self.dynamics.reward: raise ValueError("dynamics.reward must be true: M pays for the driving in its dreams")
        if self.dream.reward != "head": raise ValueError("dream.reward must be head: a car is paid for road, not for being alive")


def open_run() -> tuple[Path, DreamRunSettings]:
    """Settings from the command line, and the run folder they belong to; nothing is written where they are refused."""
    s = load(DreamRunSettings, description=__doc__, command="dream")
    folder, i = Path(s.run), s.iterate
    frames = (s.collect.episodes + s.collect.official) * (s.collect.max_steps + 1) + i.rounds * (i.episodes + i.official) * (i.max_steps + 1)
    if not (folder / "store").exists(): require_space(folder, estimate_bytes(frames, s.collect.size))
    return claim_run_folder(folder, s, s.fresh, ignore=("fresh", "run")), s


def learn(folder: Path, store: RolloutStore, s: DreamRunSettings, before: WorldModel | None = None) -> tuple[WorldModel, Latents]:
    """V and M of a round, from those of the round before, and the store as V sees it, its rewards spread."""
    folder.mkdir(exist_ok=True)
    if before: s = replace(s, vae_fit=s.vae_again, dynamics_fit=s.dynamics_again)
    vision, path = learn_vision(folder, store, s, before and before.vision), folder / "latents.safetensors"
    if not path.exists(): smooth(encode_store(vision, store), s.iterate.reach, s.iterate.worst).save(path)
    return learn_dynamics(folder, vision, store, s, before and before.dynamics), Latents.load(path)


def carry_over(folder: Path, store: RolloutStore, before: WorldModel | None, params: np.ndarray | None, world: WorldModel, s: DreamRunSettings) -> np.ndarray:
    """Where a round's search begins: zeros, or the last C, which is moved to the new V and M where least squares can do it."""
    if before is None: return np.zeros(controllers_for(world, s.controller).dimension)
    return retrace(folder, store, before, params, world, s) if s.controller == ControllerSettings() else params


def keep_checkpoints(folder: Path, fitness: DreamFitness, s: DreamRunSettings):
    """A `validate` for `evolve`: the dream's score of a mean, which is kept as checkpoints/GENERATION.safetensors."""
    def validate(mean: np.ndarray) -> float:
        generation = len(read_lines(folder / "evolution.jsonl")) + 1
        (folder / "checkpoints").mkdir(exist_ok=True)
        save_controller(folder / "checkpoints" / f"{generation:04d}.safetensors", s.controller, mean, generation=generation)
        return fitness(mean[None], VALIDATION[:s.iterate.dreams]).mean()
    return validate


def dream_on(folder: Path, world: WorldModel, latents: Latents, s: DreamRunSettings, round: int, start) -> np.ndarray:
    """The C of a round, evolved in its dreams from `start()` unless it is there already: parameters (D,)."""
    path, origin = folder / "controller.safetensors", folder / "start.safetensors"
    if not path.exists():
        fitness = DreamFitness(world, starts_of(latents, s), s.controller, s.dream)
        if not origin.exists(): save_controller(origin, s.controller, start())  # a resumed search must begin at the very same numbers
        found, _ = evolve(fitness, load_controller(origin)[1], s.evolve, folder, s.seed + round, keep_checkpoints(folder, fitness, s))
        save_controller(path, s.controller, found)
    return load_controller(path)[1]


def starts_of(latents: Latents, s: DreamRunSettings) -> Starts: return Starts.from_latents(latents, context=s.iterate.context)


def go_and_look(store: RolloutStore, world: WorldModel, params: np.ndarray, s: DreamRunSettings, round: int) -> None:
    """Drive with C, swerving, for round number `round`."""
    policy, i = WorldModelPolicy(world, controllers_for(world, s.controller, params), s.iterate.swerve), s.iterate
    collect(store, policy, i.episodes, "fast", 20_000 + 1000 * round, i.max_steps, s.collect.rows, f"round{round}")
    collect(store, policy, i.official, "gymnasium", 60_000 + 1000 * round, i.max_steps, s.collect.rows, f"round{round}")


def returns_once(path: Path, measure) -> np.ndarray:
    """The returns in a file, measured now if it is not there: any shape."""
    if not path.exists(): save_tensors(path, {"returns": torch.from_numpy(measure())})
    return load_tensors(path)[0]["returns"].numpy()


def look_back(folder: Path, world: WorldModel, latents: Latents, store: RolloutStore, s: DreamRunSettings) -> dict:
    """After all training: what a round's checkpoints are worth in its dreams and in reality, on validation tracks."""
    paths = [folder / "start.safetensors", *sorted((folder / "checkpoints").glob("*.safetensors"))]
    checkpoints, tracks = np.stack([load_controller(p)[1] for p in paths]), VALIDATION[2000:2000 + s.iterate.leak_tracks]
    real = returns_once(folder / "real.safetensors",
                        lambda: RealFitness(world, s.controller, s.evaluate.max_steps, s.evolve.patience)(checkpoints, tracks))
    found = leak(world, starts_of(latents, s), s.controller, checkpoints, real, s.dream, (0.5, 1.0, 1.5), s.iterate.dreams)
    draw_leak(found, f"round {folder.name}").savefig(folder / "leak.png")
    held_out = store.split()[1]
    expected, paid = foretold(world.dynamics, latents, held_out[held_out < len(latents)])
    return {"round": int(folder.name), "real_frames": len(latents.mu), "real": summary(real[-1]), "dream": round(float(found["dream"][1.0][-1]), 1),
            "rank_correlation": {t: None if np.isnan(r) else round(r, 2) for t, r in found["correlation"].items()},
            "reward_correlation": round(rank_correlation(expected, paid), 3)}


def draw_rounds(rounds: list[dict]) -> Figure:
    """Real return on validation tracks after each round, with the interval of its mean, against the real frames seen."""
    frames, real = [r["real_frames"] for r in rounds], [r["real"] for r in rounds]
    return show.curves({"real": (frames, [r["mean"] for r in real])}, "real frames seen by V and M", "real return (95 % interval)",
                       band={"real": ([r["low"] for r in real], [r["high"] for r in real])})


def held_out_score(folder: Path, s: DreamRunSettings) -> dict:
    """The official score of a round's C on the held-out tracks, measured once."""
    world, (settings, params) = WorldModel.load(folder), load_controller(folder / "controller.safetensors")
    seeds = HELD_OUT[:s.evaluate.episodes]
    returns = returns_once(folder / "held_out.safetensors", lambda: score(world, settings, params, seeds, "gymnasium", s.evaluate.max_steps))
    return summary(returns) | {"returns": [round(float(x), 2) for x in returns]}


def main() -> None:
    folder, s = open_run()
    clock = Clock(folder)
    store, world, params, rounds = drive_randomly(folder, s), None, None, []
    clock("random driving")
    for round in range(s.iterate.rounds + 1):
        here, before = folder / str(round), (world, params)
        if round and not (here / "controller.safetensors").exists():
            go_and_look(store, *before, s, round)
            clock(f"round {round}: driving")
        world, latents = learn(here, store, s, before[0])
        clock(f"round {round}: V and M")
        params = dream_on(here, world, latents, s, round, lambda: carry_over(here, store, *before, world, s))
        clock(f"round {round}: C")
    report(folder, store, s, clock)


def report(folder: Path, store: RolloutStore, s: DreamRunSettings, clock: Clock) -> None:
    """Score every round on validation tracks, the first and the last on the held-out ones; write report.json, figures and films."""
    rounds, parts = [], [folder / str(round) for round in range(s.iterate.rounds + 1)]
    for part in parts: rounds.append(look_back(part, WorldModel.load(part), Latents.load(part / "latents.safetensors"), store, s))
    draw_rounds(rounds).savefig(folder / "rounds.png")
    clock("looking back")
    naive, iterated = held_out_score(parts[0], s), held_out_score(parts[-1], s)
    write_json(folder / "report.json", {
        "environment": "CarRacing-v3", "versions": {name: version(name) for name in ("gymnasium", "torch")}, "revision": revision(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]), "seeds": [HELD_OUT[0], HELD_OUT[s.evaluate.episodes - 1]],
        "max_steps": s.evaluate.max_steps, "real_frames": store.n_frames, "naive": naive, "iterated": iterated,
        "iterated_is_better": bool(iterated["low"] > naive["high"]), "rounds": rounds})
    for name, r in (("naive", naive), ("iterated", iterated)):
        print(f"{name}: {r['mean']} ± {r['sd']} over {r['episodes']} held-out tracks, 95 % interval of the mean {r['low']} to {r['high']}")
    clock("score")
    publish_last(folder, parts[-1], s)
    clock("films")
    print(f"report, films and weights are in {folder}; {store.n_frames:,} real frames were seen")


def publish_last(folder: Path, last: Path, s: DreamRunSettings) -> None:
    """The last round's V, M, C and first frames in the run's own folder, and two films."""
    world, (settings, params) = WorldModel.load(last), load_controller(last / "controller.safetensors")
    starts = Starts.from_latents(Latents.load(last / "latents.safetensors"))
    save_tensors(folder / "starts.safetensors", {"mu": starts.mu, "logvar": starts.logvar})
    world.save(folder)
    save_controller(folder / "controller.safetensors", settings, params)
    film(world, settings, params, HELD_OUT[0], folder / "drive.mp4", s.evaluate.max_steps)
    store = RolloutStore(folder / "store")
    longest = int(np.argmax([n if "controller" in source else 0 for n, source in zip(store.lengths, store.sources)]))
    film_dream(world, store.episode(longest), folder / "dream.mp4")


# Answers to the exercises of chapter 05

def horizons(world: WorldModel, latents: Latents, s: DreamRunSettings, lengths=(50, 150, 500), seeds=(0, 1, 2)) -> dict[int, dict]:
    """Exercise 7: real returns of searches in dreams of different lengths, with the same number of dreamt steps in all."""
    found, starts = {}, starts_of(latents, s)
    real, tracks = RealFitness(world, s.controller, s.evolve.max_steps, s.evolve.patience), VALIDATION[4000:4016]
    for n in lengths:
        dreams = max(1, s.evolve.episodes * s.dream.max_steps // n)
        fitness = DreamFitness(world, starts, s.controller, replace(s.dream, max_steps=n))
        means = [evolve(fitness, np.zeros(fitness.dimension), replace(s.evolve, episodes=dreams), seed=seed)[0] for seed in seeds]
        found[n] = summary(real(np.stack(means), tracks).mean(1))
    return found


class Pessimist:
    """Exercise 8: the smaller of what several fitnesses say; of worlds with one V, and for a C that does not see M's memory."""

    def __init__(self, *fitnesses: DreamFitness):
        if any(f.controllers.settings.memory for f in fitnesses):
            raise ValueError("the memories of two Ms mean different things: use ControllerSettings(memory=False)")
        self.fitnesses, self.dimension = fitnesses, fitnesses[0].dimension

    def __call__(self, params: np.ndarray, seeds) -> np.ndarray: return np.minimum.reduce([f(params, seeds) for f in self.fitnesses])


if __name__ == "__main__": command(main)
