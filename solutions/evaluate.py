"""Score a run's controller on tracks it has never seen, on the official environment and on EnvPool.

python -m solutions.evaluate --run runs/car
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np

from worldmodels.controller import ControllerSettings, load_controller, score, summary
from worldmodels.rollouts import HELD_OUT, has_envpool
from worldmodels.tools.settings import load, write_json
from worldmodels.tools.world import WorldModel


@dataclass(frozen=True)
class EvaluateSettings:
    """Which tracks, and how many."""

    episodes: int = 100
    """held-out tracks, the same on both environments"""


def evaluate(folder: Path, world: WorldModel, settings: ControllerSettings, params: np.ndarray, s: EvaluateSettings) -> dict:
    """Write `folder`/report.json: the returns on held-out tracks."""
    seeds = HELD_OUT[:s.episodes]
    report = {"environment": "CarRacing-v3", "gymnasium": gymnasium.__version__, "seeds": [seeds[0], seeds[-1]],
              "command": " ".join(["python -m", Path(sys.argv[0]).stem, *sys.argv[1:]])}
    for backend in ["gymnasium", *(["envpool"] if has_envpool() else [])]:
        returns = score(world, settings, params, seeds, backend)
        report[backend] = summary(returns) | {"returns": [round(float(r), 2) for r in returns]}
        print(backend, {k: v for k, v in report[backend].items() if k != "returns"}, flush=True)
    write_json(folder / "report.json", report)
    return report


@dataclass(frozen=True)
class Command:
    """Score the controller of a run."""

    run: str = "runs/car"
    """folder of the run"""
    evaluate: EvaluateSettings = EvaluateSettings()


if __name__ == "__main__":
    s = load(Command, description=__doc__)
    evaluate(Path(s.run), WorldModel.load(s.run), *load_controller(Path(s.run) / "controller.safetensors"), s.evaluate)
