"""Proof that the road drawn fast is the official one: rewards, ends, pictures, returns; and how fast it is.

python -m solutions.road --to data/road
"""
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np

from worldmodels.controller import WorldModelPolicy, controllers_for, score
from worldmodels.controller_files import load_controller
from worldmodels.rollouts import VALIDATION, NoisePolicy, Policy
from worldmodels.scoring import summary
from worldmodels.tools.encoding import encode_frames
from worldmodels.tools.fast_car import FastCarRacing
from worldmodels.tools.games import CAR_RACING
from worldmodels.tools.settings import load, write_json
from worldmodels.tools.world import WorldModel

from .settings import command


@dataclass(frozen=True)
class RoadSettings:
    """How much is compared."""

    to: str = "data/road"
    """folder to write report.json to"""
    run: str = "data/carracing"
    """V, M and the C that drives"""
    tracks: int = 50
    """tracks of the comparison frame by frame: half of them driven by C, half at random"""
    steps: int = 300
    """frames of each"""
    returns: int = 100
    """tracks of the comparison of returns"""
    max_steps: int = 1000
    """frames after which such an episode is cut"""
    timed: int = 400
    """frames of a measurement of speed; there are five of each, alternating"""


class Alone:
    """What a policy asks of the rows that it drives, for one environment."""

    action_space, game = CAR_RACING.action_space, CAR_RACING

    def __init__(self, seed: int): self.seeds = [seed]
    def __len__(self) -> int: return 1


def drive_both(policy: Policy, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """One track in both environments with the same actions: what V sees, (T + 1, 64, 64, 3) each.

    Raises AssertionError where a reward or an end differs by a bit.
    """
    official, fast = envs = gymnasium.make(CAR_RACING.env_id), FastCarRacing()
    frames = [[CAR_RACING.prepare([env.reset(seed=seed)[0]])[0] for env in envs]]
    policy.start(Alone(seed))
    for t in range(steps):
        action = np.float32(policy.act(frames[-1][0][None], np.array([0]))[0])
        (a, *told), (b, *told_fast) = official.step(action), fast.step(action)
        if told != told_fast: raise AssertionError(f"seed {seed}, frame {t}: {told}, and fast {told_fast}")
        frames.append([CAR_RACING.prepare([picture])[0] for picture in (a, b)])
        if told[1]: break
    official.close()
    return tuple(np.stack(side) for side in zip(*frames))


def frame_by_frame(world: WorldModel, controller: tuple, s: RoadSettings) -> dict:
    """Pictures and V's numbers of the two, over all tracks; that rewards and ends are equal."""
    apart, codes = [], []
    for k in range(s.tracks):
        c = WorldModelPolicy(world, controllers_for(world, *controller))
        policy = NoisePolicy("brownian", s.steps) if k % 2 else c
        official, fast = drive_both(policy, VALIDATION[k], s.steps)
        apart.append(np.abs(official.astype(int) - fast).mean((1, 2, 3)))
        codes.append([encode_frames(world.vision, side)[0] for side in (official, fast)])
    apart = np.concatenate(apart)
    official, fast = (np.concatenate(side) for side in zip(*codes))
    moved = np.abs(official - fast) / official.std(0)
    return {"tracks": s.tracks, "frames": len(apart), "rewards and ends": "equal to the bit",
            "grey levels apart": round(float(apart.mean()), 3), "worst frame": round(float(apart.max()), 3),
            "latents moved, in sd": round(float(moved.mean()), 4)}


def paired_returns(world: WorldModel, controller: tuple, s: RoadSettings) -> dict:
    """The same controller on the same tracks in both."""
    seeds = VALIDATION[5000:5000 + s.returns]
    official, fast = (score(world, *controller, seeds, backend, s.max_steps)
                      for backend in ("official", "fast"))
    difference = fast - official
    return {"official": summary(official), "fast": summary(fast), "fast - official": summary(difference),
            "median absolute difference": round(float(np.median(np.abs(difference))), 1),
            "returns": [[round(float(a), 1), round(float(b), 1)] for a, b in zip(official, fast)]}


def speeds(s: RoadSettings) -> dict:
    """Frames a second and core, with V's resizing: the median of five alternating measurements."""
    actions = np.float32(np.random.default_rng(0).uniform([-0.2, 0.2, 0], [0.2, 0.6, 0.05], (s.timed, 3)))

    def rate(env: gymnasium.Env, count: int) -> float:
        env.reset(seed=1)
        began = time.perf_counter()
        for action in actions[:count]: CAR_RACING.prepare([env.step(action)[0]])
        return count / (time.perf_counter() - began)

    official, fast, blind = gymnasium.make(CAR_RACING.env_id), FastCarRacing(), FastCarRacing()
    fast.panel = False
    blind._render = lambda mode: np.zeros((96, 96, 3), np.uint8)
    measured: dict[str, Callable] = {
        "official": lambda: rate(official, s.timed // 8), "fast": lambda: rate(fast, s.timed),
        "physics alone": lambda: rate(blind, s.timed), **envpool_rate(actions)}
    found = {name: [] for name in measured}
    for _ in range(5):
        for name, measure in measured.items(): found[name].append(measure())
    return {name: round(float(np.median(rates))) for name, rates in found.items()}


def envpool_rate(actions: np.ndarray, rows: int = 16) -> dict[str, Callable]:
    """EnvPool's C++ CarRacing on one thread, which the course used before, where it is installed."""
    try: import envpool
    except ImportError: return {}

    def rate() -> float:
        pool = envpool.make(CAR_RACING.env_id, env_type="gymnasium", num_envs=rows, seed=1, num_threads=1)
        pool.reset()
        began = time.perf_counter()
        for action in actions[::8]: CAR_RACING.prepare(pool.step(np.tile(action, (rows, 1)))[0])
        return rows * len(actions[::8]) / (time.perf_counter() - began)

    return {"EnvPool": rate}


def run(s: RoadSettings) -> dict:
    """Write `s.to`/report.json; returns it."""
    world, controller = WorldModel.load(s.run), load_controller(Path(s.run) / "controller.safetensors")
    report = {"frames a second and core": speeds(s), "frame by frame": frame_by_frame(world, controller, s),
              "returns": paired_returns(world, controller, s)}
    Path(s.to).mkdir(parents=True, exist_ok=True)
    write_json(Path(s.to) / "report.json", report)
    for name, part in report.items():
        print(f"{name}: {({key: value for key, value in part.items() if key != 'returns'})}")
    return report


def main() -> None: run(load(RoadSettings, description=__doc__))


if __name__ == "__main__": command(main)
