"""Score a controller on tracks it has never seen, on the official environment and on the fast one; watch it; film it.

python -m solutions.evaluate --run runs/car
python -m solutions.evaluate --run runs/car --render human
python -m solutions.evaluate --run runs/dream --dream --start frame.png
python -m solutions.evaluate --run runs/dream --policy plan --evaluate.episodes 16
"""
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from solutions.settings import EvaluateSettings, Sections, command
from worldmodels.controller import ControllerSettings, controllers_for, film, load_controller, score, summary, watch
from worldmodels.dream import DreamFitness, DreamSettings
from worldmodels.dream_envs import find_initial_states, initial_states_from_picture
from worldmodels.planning import Planner, PlanSettings, drive
from worldmodels.rollouts import HELD_OUT, has_envpool
from worldmodels.tools.settings import load, write_json
from worldmodels.tools.world import WorldModel


def revision() -> str:
    """The commit of this code, with "-dirty" where files differ from it; "unknown" outside of a clone."""
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return described.stdout.strip() or "unknown"


def gap(fast: np.ndarray, official: np.ndarray) -> dict:
    """Mean return on EnvPool minus that on the official environment, its 95 % interval, and whether the two intervals overlap."""
    rng = np.random.default_rng(0)
    drawn = [rng.choice(r, (10_000, len(r))).mean(1) for r in (fast, official)]
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    f, o = summary(fast), summary(official)
    return {"mean": round(float(fast.mean() - official.mean()), 1), "low": round(float(low), 1), "high": round(float(high), 1),
            "intervals_overlap": bool(f["low"] <= o["high"] and o["low"] <= f["high"])}


def held_out(s: EvaluateSettings) -> range:
    """The seeds of a score; a ValueError where there are not so many."""
    if not 1 <= s.episodes <= len(HELD_OUT): raise ValueError(f"episodes must be 1 to {len(HELD_OUT):,}, not {s.episodes}")
    return HELD_OUT[:s.episodes]


def facts(seeds: range, max_steps: int, *packages: str) -> dict:
    """What it takes to repeat a score."""
    return {"environment": "CarRacing-v3", "versions": {name: version(name) for name in [*packages, "torch"]}, "revision": revision(),
            "seeds": [seeds[0], seeds[-1]], "max_steps": max_steps, "command": shlex.join(["python", *sys.orig_argv[1:]])}


def evaluate(folder: Path, world: WorldModel, settings: ControllerSettings, params: np.ndarray, s: EvaluateSettings) -> dict:
    """Write `folder`/report.json: the returns of a controller on held-out tracks, with everything needed to repeat them.

    Raises ValueError for a number of episodes that there are no tracks for, or a controller that does not fit; nothing is written then.
    """
    controllers_for(world, settings, params)  # refuses a controller of another width before the first step
    return write_report(folder, lambda seeds, backend: score(world, settings, params, seeds, backend, s.max_steps), s)


def write_report(folder: Path, drive: Callable, s: EvaluateSettings) -> dict:
    """The report of whatever `drive(seeds, backend)` gives the returns (episodes,) of; see `evaluate`."""
    seeds, backends = held_out(s), ["gymnasium", *(["envpool"] if has_envpool() else [])]
    returns = {backend: drive(seeds, backend) for backend in backends}
    report = facts(seeds, s.max_steps, *backends)
    for backend, r in returns.items():
        report[backend] = found = summary(r) | {"returns": [round(float(x), 2) for x in r]}
        print(f"{backend}: {found['mean']} ± {found['sd']} over {len(r)} held-out tracks, "
              f"95 % interval of the mean {found['low']} to {found['high']}")
    report["gap"] = gap(returns["envpool"], returns["gymnasium"]) if "envpool" in returns else "EnvPool is not installed here"
    write_json(folder / "report.json", report)
    return report


def evaluate_dream(folder: Path, world: WorldModel, settings: ControllerSettings, params: np.ndarray, s: EvaluateSettings, dreaming: DreamSettings,
                   start: str = "") -> dict:
    """Write `folder`/dream.json: the returns of a controller in dreams of its own M, from the run's first frames or the picture `start`.

    Raises ValueError where M lacks the heads that `dreaming` needs, FileNotFoundError where there are no first frames.
    """
    seeds = held_out(s)
    starts = initial_states_from_picture(world.vision, start) if start else find_initial_states(folder, world.vision)
    returns, repeat = DreamFitness(world, starts, settings, dreaming)(params[None], seeds)[0], world.dynamics.action_repeat
    return note(folder / "dream.json", "in the dream", returns, facts(seeds, repeat * dreaming.max_steps) | {"dream": asdict(dreaming), "action_repeat": repeat, "start": start})


def evaluate_plan(folder: Path, world: WorldModel, s: EvaluateSettings, plan: PlanSettings) -> dict:
    """Write `folder`/plan.json: the returns of planning in M on held-out tracks of the official environment, and its cost a step."""
    seeds, planner = held_out(s), Planner(world, plan)
    returns = drive(planner, seeds, world.vision.size, "gymnasium", s.max_steps)
    cost = {"ms_a_step": round(1000 * planner.seconds / planner.acted, 2), "dreamt_steps_a_step": planner.dreamt / planner.acted}
    return note(folder / "plan.json", "planning", returns, facts(seeds, s.max_steps, "gymnasium") | {"plan": asdict(plan), "cost": cost})


def note(path: Path, what: str, returns: np.ndarray, report: dict) -> dict:
    """Print and write a score."""
    found = summary(returns) | {"returns": [round(float(x), 2) for x in returns]}
    print(f"{what}: {found['mean']} ± {found['sd']} over {len(returns)} seeds, 95 % interval of the mean {found['low']} to {found['high']}")
    write_json(path, report | found)
    return report | found


@dataclass(frozen=True)
class EvaluateCommand:
    """Score the controller of a run."""

    run: str = "runs/car"
    """folder of the run"""
    render: Literal["no", "human"] = "no"
    """human: watch it in a window, track after track, until Esc, instead of scoring it"""
    video: bool = False
    """write drive.mp4 too, of the first held-out track"""
    policy: Literal["controller", "plan"] = "controller"
    """plan: no controller, but the cross-entropy method in M at every step; its score is in plan.json"""
    dream: bool = False
    """score the controller in the dream of its own M, not in the environment; the score is in dream.json"""
    start: str = ""
    """a picture that dreams begin with, in place of the run's first frames"""
    dreaming: DreamSettings = field(default_factory=DreamSettings)
    plan: PlanSettings = field(default_factory=PlanSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self):
        if self.start and not self.dream: raise ValueError("start is where a dream begins: --dream dreams")
        if self.policy == "plan" and self.dream: raise ValueError("policy plan is scored in the environment: leave --dream away")
        if self.dream and (self.video or self.render != "no"): raise ValueError("video and render show the environment: leave --dream away")


def main() -> None:
    s = load(EvaluateCommand, description=__doc__, part_of=Sections)
    folder = Path(s.run)
    world = WorldModel.load(folder)
    if s.policy == "plan": return evaluate_plan(folder, world, s.evaluate, s.plan)
    controller = load_controller(folder / "controller.safetensors")
    if s.dream: return evaluate_dream(folder, world, *controller, s.evaluate, s.dreaming, s.start)
    if s.render == "human": return watch(world, *controller, HELD_OUT, s.evaluate.max_steps)
    evaluate(folder, world, *controller, s.evaluate)
    if s.video: film(world, *controller, HELD_OUT[0], folder / "drive.mp4", s.evaluate.max_steps)


if __name__ == "__main__":
    command(main)
