"""Stage 4 of a run: C, by CMA-ES in the real environment.

python -m solutions.controller --settings quick --run runs/car
"""
from pathlib import Path

import numpy as np

from solutions.settings import TrainSettings, open_run
from worldmodels.controller import RealFitness, evolve, load_controller, save_controller
from worldmodels.tools.world import WorldModel


def search(folder: Path, world: WorldModel, s: TrainSettings, start: np.ndarray | None = None) -> np.ndarray:
    """The C of `folder`, found (from `start`, else from zeros) unless it is there already: parameters (D,)."""
    path = folder / "controller.safetensors"
    if not path.exists():
        fitness = RealFitness(world, s.controller, s.evolve.max_steps, s.evolve.patience)
        start = np.zeros(fitness.dimension) if start is None else start
        save_controller(path, s.controller, evolve(fitness, start, s.evolve, folder, s.seed)[0])
    return load_controller(path)[1]


if __name__ == "__main__":
    folder, s = open_run(__doc__)
    search(folder, WorldModel.load(folder), s)
