"""Stage 4 of a run: C, by CMA-ES in the real environment; answers to chapter 04's exercises.

python -m solutions.controller --settings quick --run runs/car
"""
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from worldmodels.controller import ControllerSettings, EvolveSettings, RealFitness, evolve
from worldmodels.controller_files import load_controller, save_controller
from worldmodels.tools.world import WorldModel

from .settings import TrainSettings, claim_stage, command, from_command_line


def search(folder: Path | str, world: WorldModel, s: TrainSettings,
           start: Callable[[], np.ndarray] | None = None,
           on_generation: Callable | None = None) -> np.ndarray:
    """The C of `folder`, found (from `start()`, else from zeros) unless it is there already: parameters (D,).

    The folder is made if missing, and a killed search goes on where it was. `on_generation` as in `evolve`.
    """
    folder = Path(folder)
    found = folder / "controller.safetensors"
    if not found.exists():
        fitness = RealFitness(world, s.controller, s.evolve.max_steps, s.evolve.patience)
        origin = folder / "start.safetensors"  # stored: a resumed search must begin at the very same numbers
        if not origin.exists():
            save_controller(origin, s.controller, start() if start else np.zeros(fitness.dimension))
        begin = load_controller(origin)[1]
        mean, _ = evolve(fitness, begin, s.evolve, folder, s.seed, on_generation=on_generation)
        save_controller(found, s.controller, mean)
    return load_controller(found)[1]


# Answers to the exercises of chapter 04

MEMORIES = {"z, h": ControllerSettings(), "z": ControllerSettings(memory=False),
            "z, 40": ControllerSettings(memory=False, hidden=40)}


def returns_by_memory(world: WorldModel, s: EvolveSettings, tracks: Sequence[int],
                      seed: int = 1) -> dict[str, np.ndarray]:
    """Exercise 7: returns on `tracks` of the C found on z and h, on z alone, on z alone with 40 hidden units.

    The search is the same for each. A start from zeros is poor for a hidden layer: all its units begin alike,
    and only their random steps tell them apart.
    """
    found = {}
    for name, kind in MEMORIES.items():
        fitness = RealFitness(world, kind, s.max_steps, s.patience)
        mean, _ = evolve(fitness, np.zeros(fitness.dimension), s, seed=seed)
        found[name] = fitness(mean[None], tracks)[0]
    return found


def mirrored_es(cost: Callable, mean: np.ndarray, sigma: float, population: int = 12, parents: int = 3,
                generations: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Exercise 8: the means of the chapter's `simple_es` where for every m + σy there is m − σy.

    On a slope it gains a few percent: one partner of each pair is good exactly because the other is bad. In
    the valley it gains a fifth with σ = 0.1 and nothing with 0.5. Around the bottom of the bowl both partners
    cost the same, so they are chosen together, and their average is exactly m.
    """
    rng, means = np.random.default_rng(seed), []
    for _ in range(generations):
        y = rng.standard_normal((population // 2, len(mean)))
        points = mean + sigma * np.concatenate([y, -y])
        means.append(mean)
        mean = points[cost(points).argsort()[:parents]].mean(0)
    return means


def run(s: TrainSettings, folder: Path | str | None = None) -> np.ndarray:
    """The C of the run folder of `s`, or of `folder`; what is there is not made again."""
    folder, s = claim_stage(s, folder)
    return search(folder, WorldModel.load(folder), s)


def main() -> None: run(from_command_line(__doc__))


if __name__ == "__main__": command(main)
