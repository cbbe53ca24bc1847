"""Stage 4 of a run: C, by CMA-ES in the real environment.

python -m solutions.controller --settings quick --run runs/car
"""
from collections.abc import Callable
from pathlib import Path

import numpy as np

from solutions.settings import TrainSettings, command, open_run
from worldmodels.controller import RealFitness, evolve, load_controller, save_controller
from worldmodels.tools.world import WorldModel


def search(folder: Path, world: WorldModel, s: TrainSettings, start: Callable[[], np.ndarray] | None = None) -> np.ndarray:
    """The C of `folder`, found (from `start()`, else from zeros) unless it is there already: parameters (D,)."""
    path, origin = folder / "controller.safetensors", folder / "start.safetensors"
    if not path.exists():
        fitness = RealFitness(world, s.controller, s.evolve.max_steps, s.evolve.patience)
        # stored, since a search that is resumed must begin at the very same numbers
        if not origin.exists(): save_controller(origin, s.controller, start() if start else np.zeros(fitness.dimension))
        save_controller(path, s.controller, evolve(fitness, load_controller(origin)[1], s.evolve, folder, s.seed)[0])
    return load_controller(path)[1]


def main() -> None:
    folder, s = open_run(__doc__, stage=True)
    search(folder, WorldModel.load(folder), s)


if __name__ == "__main__": command(main)
