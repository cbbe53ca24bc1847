"""Chapter 07's studies: which data, which parts, on the road and in Doom, how soon.

Each is made of cells, a JSON file each; what is there is not made again.

python -m solutions.baselines --settings laptop
python -m solutions.baselines --settings laptop --part controls
"""
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import imageio.v3
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from worldmodels.controller import ControllerSettings, WorldModelPolicy, controllers_for
from worldmodels.scoring import score_policy, summary
from worldmodels.doom import C_DOOM, Runner
from worldmodels.tools.games import TAKE_COVER
from worldmodels.dream import DreamFitness, InitialStates
from worldmodels.dream_envs import game_dreams
from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.mdn_rnn import MDNRNN
from worldmodels.ppo import load_ppo
from worldmodels.envs import make_envs
from worldmodels.rollouts import HELD_OUT, VALIDATION, NoisePolicy, Policy, RoadFollower
from worldmodels.tools.takecover import require_vizdoom
from worldmodels.tools import show
from worldmodels.tools.importers import ImportSettings, error_context, shrink, split_done
from worldmodels.tools.settings import claim_run_folder, load
from worldmodels.tools.store import Episode
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import Vision, WorldModel, register
from worldmodels.tools.encoding import encode_frames

from . import baselines_report as report
from .baselines_cells import Cells, file_name, ppo_weights, score_driver, search_c, search_on_road
from .baselines_data import POLICIES, cell_of_c, data_study
from .settings import StudySettings, command


# Exercise 7: no V at all

@dataclass(frozen=True)
class ThumbnailSettings:
    """How small the picture becomes."""

    side: int = 8
    """side of the thumbnail in pixels"""
    size: int = 64
    """side of a frame in pixels"""


@register(ThumbnailSettings)
class Thumbnail(Vision):
    """The control of V: a frame averaged down to `side` × `side` grey pixels, around 0, with no noise."""

    def __init__(self, settings: ThumbnailSettings = ThumbnailSettings()):
        super().__init__()
        self.settings = settings
        self.size = settings.size
        self.latent = settings.side**2
        self.weights = nn.Parameter(torch.tensor([0.299, 0.587, 0.114]), requires_grad=False)

    def encode(self, frames):
        grey = (frames.float() / 255 * self.weights).sum(-1)  # (n, size, size)
        small = F.adaptive_avg_pool2d(grey[:, None], self.settings.side).flatten(1)
        return 4 * (small - 0.5), torch.full_like(small, -20.0)

    def decode(self, z):
        small = (z / 4 + 0.5).clamp(0, 1).reshape(-1, 1, self.settings.side, self.settings.side)
        return F.interpolate(small, self.size)[:, 0, :, :, None].expand(-1, -1, -1, 3)


# Exercise 8: a format of your own

def read_video(file: Path, settings: ImportSettings = ImportSettings()) -> Episode:
    """An episode without actions from a video, for V. Raises ValueError that names a file that is none.

    Whole or not at all comes from `RolloutStore.append`, and the name from `error_context`. That nothing is
    imported twice is the caller's to see to: by the source, which stands in the store with the episode.
    """
    with error_context(file):
        frames = np.concatenate([shrink(frame[None], settings) for frame in imageio.v3.imiter(file)])
        steps = len(frames) - 1
        terminated, truncated = split_done(np.zeros(steps, bool), steps, settings.max_steps)
        actions, rewards = np.zeros((steps, 0), np.float32), np.zeros(steps, np.float32)
        return Episode(frames, actions, rewards, terminated, truncated, source=f"video:{file.resolve()}")


# The controls

class Control(NamedTuple):
    """What C is searched on, and how."""

    world: WorldModel
    controller: ControllerSettings
    by_chance: bool = False


def untrained(world: WorldModel, seed: int) -> WorldModel:
    """The same V, and an M of the same kind that has learnt nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WorldModel(world.vision, type(world.dynamics)(world.dynamics.settings).eval(), world.game)


def measure_control(folder: Path, control: Control, s: StudySettings) -> dict:
    """The score of the C that a control ends with, and what its search drove."""
    driver, params, records = search_on_road(folder, control.world, control.controller, s, control.by_chance)
    frames = sum(r["steps"] for r in records)
    return score_driver(folder, driver, s) | {"parameters": len(params), "frames": frames}


def control_study(cells: Cells, s: StudySettings) -> dict[str, dict]:
    """Returns of what is left when one part is taken away, each searched anew with the same budget."""
    world = WorldModel.load(s.world)
    no_memory = MDNRNN(MDNRNNSettings(latent=64, hidden=1)).eval()
    thumbnails = WorldModel(Thumbnail().eval(), no_memory, world.game)
    alone = ControllerSettings(memory=False)
    controls = {"z and h": Control(world, ControllerSettings()),
                "z and h, M untrained": Control(untrained(world, s.seed), ControllerSettings()),
                "z alone": Control(world, alone),
                "z alone, 40 hidden units": Control(world, replace(alone, hidden=40)),
                "8 × 8 grey pixels, no V": Control(thumbnails, alone),
                "z and h, random search": Control(world, ControllerSettings(), by_chance=True)}
    rows = {}
    for name, control in controls.items():
        rows[name] = cells(f"control-{file_name(name)}", measure_control, control, s)
    rows["rule by hand"] = cells("control-rule-by-hand", score_driver, RoadFollower(), s)
    if ppo_weights(s).exists(): rows["PPO"] = cells("control-ppo", score_driver, load_ppo(ppo_weights(s)), s)
    return rows


# The controls in Doom, where C is found in the dream alone

def tics_summary(tics: np.ndarray) -> dict: return summary(tics) | {"returns": [int(t) for t in tics]}


def measure_player(folder: Path, player: Policy, s: StudySettings) -> dict:
    """Tics that a player survives in held-out games."""
    seeds = HELD_OUT[:s.doom_evaluate.episodes]
    tics = score_policy(player, seeds, "fast", s.doom_evaluate.max_steps, game=TAKE_COVER)
    return {"game": tics_summary(tics)}


def measure_doom_control(folder: Path, control: Control, starts: InitialStates, s: StudySettings) -> dict:
    """Tics that the C of a control survives, in dreams and in the game."""
    world, controller = control.world, control.controller
    repeat = world.dynamics.action_repeat
    dreaming = replace(game_dreams(TAKE_COVER), max_steps=s.doom_evolve.max_steps // repeat)
    fitness = DreamFitness(world, starts, controller, dreaming)
    params, _ = search_c(folder, fitness, controller, s.doom_evolve, s.seed, control.by_chance)
    dream = repeat * fitness(params[None], HELD_OUT[:s.doom_evaluate.episodes])[0]
    player = WorldModelPolicy(world, controllers_for(world, controller, params))
    return {"parameters": len(params), "dream": tics_summary(dream)} | measure_player(folder, player, s)


def doom_study(cells: Cells, s: StudySettings) -> dict[str, dict]:
    """Tics survived, in the dream and in the game, by what is left; and by players that do not look."""
    world = WorldModel.load(s.doom)
    games = make_envs(TAKE_COVER, VALIDATION[:32])
    starts = InitialStates(*map(torch.from_numpy, encode_frames(world.vision, games.reset())))
    games.close()
    controls = {"z, c and h": Control(world, C_DOOM),
                "z alone": Control(world, replace(C_DOOM, memory=False)),
                "z, c and h, M untrained": Control(untrained(world, s.seed), C_DOOM),
                "z, c and h, random search": Control(world, C_DOOM, by_chance=True)}
    blind = {"to and fro, never looking": Runner(),
             "random, fresh action": NoisePolicy("white", s.doom_evaluate.max_steps)}
    rows = {}
    for name, control in controls.items():
        rows[name] = cells(f"doom-{file_name(name)}", measure_doom_control, control, starts, s)
    for name, player in blind.items():
        rows[name] = cells(f"doom-{file_name(name)}", measure_player, player, s)
    return rows


# Time to a score

def time_study(cells: Cells, s: StudySettings) -> dict[str, list[dict]]:
    """Tests on validation tracks, with the frames and seconds spent until then, of every way to a driver."""
    first = cell_of_c(cells, "brownian", s)
    name = "V, M and C" + (" (interrupted: its minutes are too few)" if first["interrupted"] else "")
    curves = {name: first["curve"]}
    if "iterated" in s.policies:
        before = first["curve"][-1]
        paid = before["frames"] - s.frames // 2  # half of the second round's data was paid for in the first
        curves["V, M and C, iterated"] = [
            test | {"frames": test["frames"] + paid, "seconds": test["seconds"] + before["seconds"]}
            for test in cell_of_c(cells, "iterated", s)["curve"]]
    ppo = read_lines(Path(s.ppo) / "evaluations.jsonl")
    if ppo: curves["PPO"] = ppo
    return curves


# All of them

STUDIES = {"data": (data_study, report.data_table, report.data_figure),
           "controls": (control_study, report.control_table, report.control_figure),
           "time": (time_study, report.time_table, report.time_figure),
           "doom": (doom_study, report.doom_table, report.doom_figure)}


def write(cells: Cells, to: str, part: str, table: str, figure: Figure) -> None:
    """Table and figure in the run's folder and in `to`, which also gets the cells; prints the table."""
    report.write_study(cells.folder, part, table, figure)
    if to:
        cells.copy(Path(to) / "cells")
        report.write_study(Path(to), part, table, figure)
    print(table, flush=True)


def run(s: StudySettings) -> dict[str, dict]:
    """The studies that `s.part` asks for, in `s.run`; returns their rows.

    Raises ValueError for an unknown policy and for a folder with other settings, ImportError without VizDoom.
    """
    if unknown := set(s.policies.split(",")) - set(POLICIES):
        raise ValueError(f"unknown policies {', '.join(sorted(unknown))}; known are {', '.join(POLICIES)}")
    if s.part in ("all", "doom"): require_vizdoom()  # before hours of driving
    ignored = ("fresh", "run", "to", "part", "policies", "ppo")
    cells = Cells(claim_run_folder(Path(s.run), s, s.fresh, ignore=ignored))
    show.use_style()
    found = {}
    for part, (study, table, figure) in STUDIES.items():
        if s.part not in ("all", part): continue
        found[part] = study(cells, s)
        write(cells, s.to, part, table(found[part], s), figure(found[part]))
    return found


def main() -> None: run(load(StudySettings, prefix="baselines", description=__doc__))


if __name__ == "__main__": command(main)
