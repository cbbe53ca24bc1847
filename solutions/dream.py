"""A controller trained in nothing but dreams: random driving, V, M and C, then rounds of driving, learning,
dreaming on.

python -m solutions.dream --settings laptop --run runs/dream
"""
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from worldmodels.collect import collect
from worldmodels.carry_over import carry_over
from worldmodels.controller import ControllerSettings, RealFitness, WorldModelPolicy, controllers_for, evolve
from worldmodels.scoring import summary
from worldmodels.controller_files import load_controller, save_controller
from worldmodels.dream import DreamFitness
from worldmodels.latents import apply_action_repeat, concat_latents, smooth_rewards
from worldmodels.mdn_rnn import train_dynamics
from worldmodels.rollouts import VALIDATION
from worldmodels.tools.settings import claim_run_folder, load
from worldmodels.tools.store import RolloutStore, estimate_bytes, require_space
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import Dynamics, Vision, WorldModel, load_model, registered, save_model
from worldmodels.tools.encoding import Latents, encode_store

from .dream_report import Round, initial_states_of, report
from .measures import select
from .rollouts import drive_randomly
from .settings import DreamRunSettings, Sections, command, in_folder, refuse_envpool
from .train import Clock
from .vae import learn_vision


def claim_dream_run(s: DreamRunSettings) -> Path:
    """The run folder of the settings; nothing is written where they are refused."""
    s.spec.require()
    folder, c, i = Path(s.run), s.collect, s.iterate
    frames = c.episodes * (c.max_steps + 1)
    frames += i.rounds * i.episodes * (i.max_steps + 1)
    if not (folder / "store").exists(): require_space(folder, estimate_bytes(frames, c.size))
    if not s.fresh: refuse_envpool(folder, "rounds.json", "controller.safetensors")
    return claim_run_folder(folder, s, s.fresh, ignore=("fresh", "run", "game_file"))


def run(s: DreamRunSettings, folder: Path | str | None = None) -> Path:
    """All rounds and the report, in the run folder of `s` or in `folder`; goes on where it was killed.

    Returns the folder.
    """
    s = in_folder(s, folder)
    folder = claim_dream_run(s)
    clock = Clock(folder)
    store = drive_randomly(folder, s)
    clock("random driving")
    vision = learn_vision(folder, store, s)
    clock("V")
    rounds, naive = [], []
    for number in range(s.iterate.rounds + 1):
        rounds.append(dream_round(folder / f"{number:02d}", store, vision, s, rounds[-1] if rounds else None,
                                  clock))
        if number: continue
        for temperature in (s.dream.temperature, *s.iterate.temperatures):
            naive.append(naive_search(folder, rounds[0], s, temperature))
            clock(f"the naive C, τ = {temperature}")
    report(folder, store, rounds, naive, s, clock)
    return folder


def dream_round(folder: Path, store: RolloutStore, vision: Vision, s: DreamRunSettings, last: Round | None,
                clock: Clock) -> Round:
    """Drive with the last round's controllers, learn an M from all that was seen, search for a C in its
    dreams."""
    number = int(folder.name)
    if last and not (folder / "latents.safetensors").exists():
        record_round(store, last, s, number)
        clock(f"round {number}: driving")
    world, latents = learn_round(folder, store, vision, s, last)
    clock(f"round {number}: M")

    def start() -> np.ndarray:
        return carry_over_round(last, world, latents, s)

    checkpoints = search_in_dreams(folder, world, latents, s, number, start if last else None)
    clock(f"round {number}: C")
    return Round(folder, world, latents, checkpoints)


def record_round(store: RolloutStore, last: Round, s: DreamRunSettings, number: int) -> None:
    """Drive with noise, with evenly chosen checkpoints of the last search, its result among them."""
    i, k = s.iterate, len(last.checkpoints)
    chosen = np.linspace(min(1, k - 1), k - 1, i.drivers).round().astype(int)  # not its start
    drivers = controllers_for(last.world, s.controller, last.checkpoints[chosen])
    policy = WorldModelPolicy(last.world, drivers, i.action_noise)
    rows = max(1, s.collect.rows // i.drivers) * i.drivers
    tag = f"round{number:02d}"
    collect(store, policy, i.episodes, "fast", 20_000 + 1000 * number, i.max_steps, rows, tag)


def learn_round(folder: Path, store: RolloutStore, vision: Vision, s: DreamRunSettings,
                last: Round | None) -> tuple[WorldModel, Latents]:
    """M of a round, from that of the round before, on all that was seen; V with M, and everything in M's
    steps."""
    folder.mkdir(exist_ok=True)
    first = len(last.latents) if last else 0  # episode from which on it is this round's driving
    latents = round_latents(folder, store, vision, s, first)
    if last: latents = concat_latents(last.latents, latents)
    path = folder / "dynamics.safetensors"
    if not path.exists():
        torch.manual_seed(s.seed)
        model = registered(s.model)[0](s.m)
        if last: model.load_state_dict(last.world.dynamics.state_dict())
        episodes = training_episodes(store, first, len(latents), s.iterate.recent)
        training = s.dynamics_again if last else s.dynamics_fit
        model = train_dynamics(model, latents, episodes, s.window, training, folder, s.seed, s.warm_up)
        save_model(path, model, game=s.game)
    return WorldModel(vision, load_model(path, Dynamics), s.game), latents


def round_latents(folder: Path, store: RolloutStore, vision: Vision, s: DreamRunSettings,
                  first: int) -> Latents:
    """The episodes from number `first` on as M learns from them, encoded unless `folder` has them."""
    path = folder / "latents.safetensors"
    if not path.exists():
        seen = apply_action_repeat(encode_store(vision, store, range(first, len(store))), s.m.action_repeat)
        smooth_rewards(seen, s.iterate.reward_radius, s.iterate.worst).save(path)
    return replace(Latents.load(path), repeat=s.m.action_repeat)


def training_episodes(store: RolloutStore, first: int, count: int, recent: float) -> np.ndarray:
    """The training episodes among `count`, those from `first` on so often that they are `recent` times the
    others."""
    train = store.split()[0]
    old = train[train < first]
    new = train[(train >= first) & (train < count)]
    times = max(1, round(recent * len(old) / len(new))) if first else 1
    return np.concatenate([old, np.repeat(new, times)])


def carry_over_round(last: Round, new: WorldModel, latents: Latents, s: DreamRunSettings) -> np.ndarray:
    """Where a round's search begins: the last C, carried over to the new M by the driving that is new in this
    round.

    A C that cannot be carried over stays what it was.
    """
    params = last.checkpoints[-1]
    if s.controller != ControllerSettings(): return params
    driven = select(latents, range(len(last.latents), len(latents)))
    return carry_over(last.world, s.controller, params, new, driven, driven)


def search_in_dreams(folder: Path, world: WorldModel, latents: Latents, s: DreamRunSettings, number: int,
                     start: Callable[[], np.ndarray] | None = None) -> np.ndarray:
    """The checkpoints of a search in a round's dreams, from `start()` (zeros): (k, D), the result last.

    Each is in checkpoints/.
    """
    there, path = folder / "checkpoints", folder / "controller.safetensors"

    def keep(mean: np.ndarray, generation: int) -> None:
        save_controller(there / f"{generation:04d}.safetensors", s.controller, mean, generation=generation)

    if not path.exists():
        fitness = DreamFitness(world, initial_states_of(latents, s), s.controller, s.dream)
        there.mkdir(exist_ok=True)
        origin = start() if start else np.zeros(fitness.dimension)
        keep(origin, 0)

        def validate(mean: np.ndarray) -> float:
            keep(mean, len(read_lines(folder / "evolution.jsonl")) + 1)
            return fitness(mean[None], VALIDATION[:s.iterate.dreams]).mean()

        found, _ = evolve(fitness, origin, s.evolve, folder, s.seed + number, validate)
        save_controller(path, s.controller, found)
    return np.stack([load_controller(p)[1] for p in [*sorted(there.glob("*.safetensors"))[:-1], path]])


def naive_search(run: Path, first: Round, s: DreamRunSettings, temperature: float) -> Round:
    """A search in the first dreams alone, with as many generations as all rounds have together."""
    folder = run / ("naive" if temperature == s.dream.temperature else f"naive-{temperature}")
    folder.mkdir(exist_ok=True)
    generations = s.evolve.generations * (s.iterate.rounds + 1)
    evolution = replace(s.evolve, generations=generations, validate_every=max(1, generations // 8))
    settings = replace(s, evolve=evolution, dream=replace(s.dream, temperature=temperature))
    return Round(folder, first.world, first.latents, search_in_dreams(folder, first.world, first.latents,
                                                                      settings, 0))


# Answers to the exercises of chapter 05

def horizons(world: WorldModel, latents: Latents, s: DreamRunSettings,
             lengths: Sequence[int] = (50, 150, 500),
             seeds: Sequence[int] = (0, 1, 2)) -> dict[int, dict]:
    """Exercise 6: real returns of searches in dreams of different lengths, with the same number of dreamt
    steps."""
    found, starts = {}, initial_states_of(latents, s)
    real = RealFitness(world, s.controller, s.evolve.max_steps, s.evolve.patience)
    for n in lengths:
        evolution = replace(s.evolve, episodes=max(1, s.evolve.episodes * s.dream.max_steps // n))
        fitness = DreamFitness(world, starts, s.controller, replace(s.dream, max_steps=n))
        means = [evolve(fitness, np.zeros(fitness.dimension), evolution, seed=seed)[0] for seed in seeds]
        found[n] = summary(real(np.stack(means), VALIDATION[4000:4016]).mean(1))
    return found


class Pessimist:
    """Exercise 7: the smaller of what several fitnesses say.

    They are of worlds with one V, and for a C that does not see M's memory.
    """

    def __init__(self, *fitnesses: DreamFitness):
        if any(f.controllers.settings.memory for f in fitnesses):
            raise ValueError("the memories of two Ms mean different things: use "
                             "ControllerSettings(memory=False)")
        self.fitnesses = fitnesses
        self.dimension = fitnesses[0].dimension

    def __call__(self, params: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        return np.minimum.reduce([f(params, seeds) for f in self.fitnesses])


def main() -> None: run(load(DreamRunSettings, description=__doc__, part_of=Sections, command="dream"))


if __name__ == "__main__": command(main)
