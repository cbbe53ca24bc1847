"""What chapter 07's studies share: results that are made once, and the search and the score of a C."""
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from worldmodels.baselines import random_search
from worldmodels.controller import (ControllerSettings, EvolveSettings, RealFitness, WorldModelPolicy,
                                    controllers_for, evolve)
from worldmodels.scoring import score_policy
from worldmodels.controller_files import load_controller, save_controller
from worldmodels.dream import DreamFitness
from worldmodels.rollouts import Policy
from worldmodels.tools.settings import write_json
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import WorldModel

from .evaluate import write_report
from .settings import StudySettings


class Cells:
    """Results by name, in JSON files that are there whole or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.used = {}  # the results that were asked for, by name

    def __call__(self, name: str, make: Callable[..., dict], *args) -> dict:
        """What the cell's file holds; else what `make(its folder, *args)` gives, and the seconds it took.

        A cell that was interrupted goes on where its trainings stand, and says so: its seconds are too few.
        """
        path = self.folder / f"{name}.json"
        if not path.exists():
            work = self.folder / name
            interrupted = work.exists()
            began = time.time()
            work.mkdir(parents=True, exist_ok=True)
            print(f"== {name}", flush=True)
            found = make(work, *args)
            write_json(path, found | {"seconds": round(time.time() - began, 1), "interrupted": interrupted})
        self.used[name] = json.loads(path.read_text())
        return self.used[name]

    def copy(self, folder: Path) -> None:
        """The results that were asked for, a file each, in another folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, found in self.used.items(): write_json(folder / f"{name}.json", found)


def file_name(name: str) -> str:
    """The words of a row's name, in small letters, with hyphens between them."""
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    return "-".join(words)


# The search and the score of a C

def search_c(folder: Path, fitness: RealFitness | DreamFitness, controller: ControllerSettings,
             settings: EvolveSettings, seed: int, by_chance: bool = False) -> tuple[np.ndarray, list[dict]]:
    """C by CMA-ES from zeros, or by random search, unless it is there: (parameters, records)."""
    path = folder / "controller.safetensors"
    if not path.exists():
        if by_chance: params, _ = random_search(fitness, settings, folder, seed)
        else: params, _ = evolve(fitness, np.zeros(fitness.dimension), settings, folder, seed)
        save_controller(path, controller, params)
    _, params = load_controller(path)
    return params, read_lines(folder / ("random.jsonl" if by_chance else "evolution.jsonl"))


def search_on_road(folder: Path, world: WorldModel, controller: ControllerSettings, s: StudySettings,
                   by_chance: bool = False) -> tuple[WorldModelPolicy, np.ndarray, list[dict]]:
    """The driver that a search on training tracks ends with, its parameters and the search's records."""
    fitness = RealFitness(world, controller, s.evolve.max_steps, s.evolve.patience)
    params, records = search_c(folder, fitness, controller, s.evolve, s.seed, by_chance)
    return WorldModelPolicy(world, controllers_for(world, controller, params)), params, records


def score_driver(folder: Path, driver: Policy, s: StudySettings) -> dict:
    """A driver's returns on held-out tracks, scored unless they are there."""
    path = folder / "report.json"
    if not path.exists():
        def returns(seeds): return score_policy(driver, seeds, "official", s.evaluate.max_steps)
        write_report(folder, returns, s.evaluate)
    found = json.loads(path.read_text())
    return {"gymnasium": found["gymnasium"]}


def ppo_weights(s: StudySettings) -> Path: return Path(s.ppo) / "ppo.safetensors"
