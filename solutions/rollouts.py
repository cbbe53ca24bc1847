"""Stage 1 of a run: random driving, on the fast environment and on the official one.

python -m solutions.rollouts --settings quick --run runs/car
"""
from pathlib import Path

from solutions.settings import TrainSettings, command, open_run
from worldmodels.rollouts import NoisePolicy, collect
from worldmodels.tools.store import RolloutStore


def drive_randomly(folder: Path, s: TrainSettings) -> RolloutStore:
    """The store of a run, with its random episodes."""
    store, c = RolloutStore.create(folder / "store", "CarRacing-v3", s.collect.size, 3), s.collect
    noise = NoisePolicy(c.noise, c.max_steps)
    collect(store, noise, c.episodes, "fast", 0, c.max_steps, c.rows, "random")
    return collect(store, noise, c.official, "gymnasium", 10_000, c.max_steps, c.rows, "random")


if __name__ == "__main__": command(lambda: drive_randomly(*open_run(__doc__, stage=True)))
