"""PPO on CarRacing: what reward alone teaches a network, scored on C's tracks; it can record for V and M.

python -m solutions.ppo --settings laptop --run runs/ppo
python -m solutions.ppo --settings laptop --run runs/ppo --render human
python -m solutions.ppo --settings laptop --run runs/ppo --drive 152
"""
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from worldmodels.scoring import score_policy
from worldmodels.films import watch_policy
from worldmodels.ppo import PPOPolicy, PPOSettings, load_ppo, require_sb3, train_ppo
from worldmodels.collect import collect
from worldmodels.rollouts import HELD_OUT
from worldmodels.tools.settings import claim_run_folder, load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import load_tensors, save_tensors

from .evaluate import write_report
from .settings import EvaluateSettings, Sections, command, refuse_envpool


@dataclass(frozen=True)
class PPOCommand:
    """Train PPO, score it, watch it, or let it drive for V and M."""

    run: str = "runs/ppo"
    """folder of the run"""
    fresh: bool = False
    """start anew, even if the folder holds a run"""
    seed: int = 0
    """seed of weights and tracks"""
    render: Literal["no", "human"] = "no"
    """human: watch it in a window, track after track, until Esc, instead of training it"""
    drive: int = 0
    """episodes that it records into the run's store, for `--store`"""
    publish: str = ""
    """folder to write the driver, its curve and its score to, in the end"""
    ppo: PPOSettings = field(default_factory=PPOSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)


def record_driving(folder: Path, driver: PPOPolicy, s: PPOCommand) -> RolloutStore:
    """The run's store, with the episodes that PPO drives; what is there is not driven again."""
    store = RolloutStore.create(folder / "store", "CarRacing-v3", s.ppo.size, 3)
    return collect(store, driver, s.drive, "fast", 40_000, s.ppo.max_steps, tag="ppo")


def evaluate(folder: Path, driver: PPOPolicy, s: PPOCommand) -> None:
    """Write report.json, unless it is there for as many episodes."""
    path = folder / "report.json"
    if path.exists():
        report = json.loads(path.read_text())
        if report["gymnasium"]["episodes"] == s.evaluate.episodes: return

    def returns(seeds):
        return score_policy(driver, seeds, "official", s.evaluate.max_steps, size=s.ppo.size)

    write_report(folder, returns, s.evaluate)


def publish(folder: Path, to: Path) -> None:
    """The driver without Adam's moments, its curve and its score, in `to`."""
    to.mkdir(parents=True, exist_ok=True)
    tensors, notes = load_tensors(folder / "ppo.safetensors")
    weights = {name: x for name, x in tensors.items() if name.startswith("model.")}
    save_tensors(to / "ppo.safetensors", weights, notes)
    for name in ("evaluations.jsonl", "report.json"): shutil.copy(folder / name, to / name)


def run(s: PPOCommand) -> PPOPolicy:
    """Train PPO in `s.run`, or go on there, and score it; or watch it. Returns the driver.

    Raises ImportError without Stable-Baselines3, ValueError for the folder of a run with other settings.
    """
    require_sb3()  # before anything is written
    folder = Path(s.run)
    if s.publish and Path(s.publish).resolve() == folder.resolve():
        raise ValueError(f"publish and run are the same folder, {folder}: Adam's moments would be lost")
    if s.render == "human":
        driver = load_ppo(folder / "ppo.safetensors")
        watch_policy(driver, HELD_OUT, s.evaluate.max_steps, s.ppo.size)
        return driver
    scoring = tuple(f"evaluate.{name}" for name in vars(s.evaluate))
    ignored = ("fresh", "run", "render", "drive", "publish", *scoring)
    if not s.fresh: refuse_envpool(folder, "ppo.safetensors", "report.json")
    claim_run_folder(folder, s, s.fresh, ignore=ignored)
    driver = train_ppo(s.ppo, folder, s.seed)
    if s.drive: record_driving(folder, driver, s)
    evaluate(folder, driver, s)
    if s.publish: publish(folder, Path(s.publish))
    print(f"PPO, its curve and its score are in {folder}")
    return driver


def main() -> None: run(load(PPOCommand, description=__doc__, part_of=Sections))


if __name__ == "__main__": command(main)
