"""Score a controller on episodes it has never seen, on the official environment; watch it; film it.

python -m solutions.evaluate --run runs/car
python -m solutions.evaluate --run runs/car --render human
python -m solutions.evaluate --run runs/dream --dream --start frame.png
python -m solutions.evaluate --run runs/dream --policy plan --evaluate.episodes 16
"""
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from worldmodels.controller import ControllerSettings, controllers_for, score
from worldmodels.scoring import score_policy, summary
from worldmodels.controller_files import load_controller
from worldmodels.dream import DreamFitness, DreamSettings
from worldmodels.dream_envs import find_initial_states, initial_states_from_picture
from worldmodels.films import film_episode, watch
from worldmodels.planning import Planner, PlanSettings
from worldmodels.rollouts import HELD_OUT
from worldmodels.tools.games import GameSpec, find_game
from worldmodels.tools.settings import load, write_json
from worldmodels.tools.world import WorldModel

from .settings import EvaluateSettings, Sections, command


def revision() -> str:
    """The commit of this code, with "-dirty" where files differ from it; "unknown" outside of a clone."""
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
                               cwd=Path(__file__).parent)
    return described.stdout.strip() or "unknown"


def typed_command() -> str:
    """The command line that is running."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def held_out(s: EvaluateSettings) -> range:
    """The seeds of a score; a ValueError where there are not so many."""
    if not 1 <= s.episodes <= len(HELD_OUT):
        raise ValueError(f"episodes must be 1 to {len(HELD_OUT):,}, not {s.episodes}")
    return HELD_OUT[:s.episodes]


def facts(game: GameSpec, seeds: range, max_steps: int) -> dict:
    """What it takes to repeat a score."""
    return {"environment": game.env_id, "versions": {name: version(name) for name in (game.package, "torch")},
            "revision": revision(), "seeds": [seeds[0], seeds[-1]], "max_steps": max_steps,
            "command": typed_command()}


def evaluate(folder: Path, world: WorldModel, settings: ControllerSettings, params: np.ndarray,
             s: EvaluateSettings) -> dict:
    """Write `folder`/report.json: the returns of a controller on held-out episodes, with everything to repeat
    them.

    Raises ValueError for a number of episodes that there are no seeds for, or a controller that does not fit;
    nothing is written then.
    """
    controllers_for(world, settings, params)  # refuses a controller of another width before the first step

    def drive(seeds: range) -> np.ndarray:
        return score(world, settings, params, seeds, "official", s.max_steps)

    return write_report(folder, drive, s, world.game)


def write_report(folder: Path, drive: Callable, s: EvaluateSettings,
                 game: GameSpec | str = "CarRacing") -> dict:
    """The report of whatever `drive(seeds)` gives the returns (episodes,) of; see `evaluate`."""
    game, seeds = find_game(game), held_out(s)
    report = facts(game, seeds, s.max_steps)
    report[game.package] = report_score(game.package, drive(seeds))
    write_json(folder / "report.json", report)
    return report


def report_score(what: str, returns: np.ndarray) -> dict:
    """Print a score; the summary with all returns."""
    found = summary(returns)
    print(f"{what}: {found['mean']} ± {found['sd']} over {len(returns)} held-out seeds, "
          f"95 % interval of the mean {found['low']} to {found['high']}")
    return found | {"returns": [round(float(x), 2) for x in returns]}


def evaluate_dream(folder: Path, world: WorldModel, settings: ControllerSettings, params: np.ndarray,
                   s: EvaluateSettings, dreaming: DreamSettings, start: str = "") -> dict:
    """Write `folder`/dream.json: the returns of a controller in dreams of its own M.

    They begin at the run's first frames, or at the picture `start`. Raises ValueError where M lacks the heads
    that `dreaming` needs, FileNotFoundError where there are no first frames.
    """
    seeds, repeat = held_out(s), world.dynamics.action_repeat
    starts = initial_states_from_picture(world, start) if start else find_initial_states(folder, world.vision)
    returns = DreamFitness(world, starts, settings, dreaming)(params[None], seeds)[0]
    report = facts(world.game, seeds, repeat * dreaming.max_steps)
    report |= {"dream": asdict(dreaming), "action_repeat": repeat,
               "start": start} | report_score("in the dream", returns)
    write_json(folder / "dream.json", report)
    return report


def evaluate_plan(folder: Path, world: WorldModel, s: EvaluateSettings, plan: PlanSettings) -> dict:
    """Write `folder`/plan.json: the returns of planning in M on the official environment, and its cost a
    step."""
    seeds, planner = held_out(s), Planner(world, plan)
    returns = score_policy(planner, seeds, "official", s.max_steps, size=world.vision.size, game=world.game)
    cost = {"ms_a_step": round(1000 * planner.seconds / planner.acted, 2),
            "dreamt_steps_a_step": planner.dreamt / planner.acted}
    report = facts(world.game, seeds, s.max_steps) | {"plan": asdict(plan), "cost": cost}
    report |= report_score("planning", returns)
    write_json(folder / "plan.json", report)
    return report


@dataclass(frozen=True)
class EvaluateCommand:
    """Score the controller of a run."""

    run: str = "runs/car"
    """folder of the run"""
    game: str = "CarRacing"
    """the game of the run; its weights say which that is"""
    game_file: str = ""
    """the Python file that enters the run's game, if it is one of your own"""
    render: Literal["no", "human"] = "no"
    """human: watch it in a window, episode after episode, until Esc, instead of scoring it"""
    video: bool = False
    """write drive.mp4 too, of the first held-out seed"""
    policy: Literal["controller", "plan"] = "controller"
    """plan: no controller, but the cross-entropy method in M at every step; its score is in plan.json"""
    dream: bool = False
    """score the controller in the dream of its own M, not in the environment; the score is in dream.json"""
    start: str = ""
    """a picture that dreams begin with, in place of the run's first frames"""
    dreaming: DreamSettings = DreamSettings()
    plan: PlanSettings = PlanSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    def __post_init__(self):
        if self.start and not self.dream: raise ValueError("start is where a dream begins: --dream dreams")
        if self.policy == "plan" and self.dream:
            raise ValueError("policy plan is scored in the environment: leave --dream away")
        if self.dream and (self.video or self.render != "no"):
            raise ValueError("video and render show the environment: leave --dream away")


def run(s: EvaluateCommand) -> dict | None:
    """Score, film or show what is in the run folder of `s`; returns the report, None where it was only
    watched."""
    folder = Path(s.run)
    world = WorldModel.load(folder)
    if s.policy == "plan": return evaluate_plan(folder, world, s.evaluate, s.plan)
    controller = load_controller(folder / "controller.safetensors")
    if s.dream: return evaluate_dream(folder, world, *controller, s.evaluate, s.dreaming, s.start)
    if s.render == "human": return watch(world, *controller, HELD_OUT, s.evaluate.max_steps)
    report = evaluate(folder, world, *controller, s.evaluate)
    if s.video: film_episode(world, *controller, HELD_OUT[0], folder / "drive.mp4", s.evaluate.max_steps)
    return report


def main() -> None:
    s = load(EvaluateCommand, description=__doc__, part_of=Sections)
    game = WorldModel.load(s.run).game.name
    if game != s.game:  # the settings of its dreams and the length of its episodes are that game's
        s = load(EvaluateCommand, [*sys.argv[1:], f"--game={game}"], description=__doc__, part_of=Sections)
    run(s)


if __name__ == "__main__": command(main)
