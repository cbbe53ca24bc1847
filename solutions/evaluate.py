"""Score a controller on tracks it has never seen, on the official environment and on the fast one.

python -m solutions.evaluate --run runs/car
"""
import sys
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium
import numpy as np

from solutions.settings import EvaluateSettings
from worldmodels.controller import ControllerSettings, load_controller, score, summary
from worldmodels.rollouts import HELD_OUT, has_envpool
from worldmodels.tools.settings import load, write_json
from worldmodels.tools.world import WorldModel


def evaluate(folder: Path, world: WorldModel, settings: ControllerSettings, params: np.ndarray, s: EvaluateSettings) -> dict:
    """Write `folder`/report.json: the returns on held-out tracks, with everything needed to repeat them."""
    seeds = HELD_OUT[:s.episodes]
    report = {"environment": "CarRacing-v3", "gymnasium": gymnasium.__version__, "seeds": [seeds[0], seeds[-1]],
              "command": f"python -m solutions.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}"}
    for backend in ["gymnasium", *(["envpool"] if has_envpool() else [])]:
        returns = score(world, settings, params, seeds, backend, s.max_steps)
        report[backend] = summary(returns) | {"returns": [round(float(r), 2) for r in returns]}
        print(f"{backend}: {report[backend]['mean']} ± {report[backend]['sd']} over {len(seeds)} held-out tracks, "
              f"95 % interval of the mean {report[backend]['low']} to {report[backend]['high']}")
    write_json(folder / "report.json", report)
    return report


@dataclass(frozen=True)
class EvaluateCommand:
    """Score the controller of a run."""

    run: str = "runs/car"
    """folder of the run"""
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)


if __name__ == "__main__":
    s = load(EvaluateCommand, description=__doc__)
    evaluate(Path(s.run), WorldModel.load(s.run), *load_controller(Path(s.run) / "controller.safetensors"), s.evaluate)
