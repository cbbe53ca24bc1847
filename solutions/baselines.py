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

from worldmodels.controller import ControllerSettings, WorldModelPolicy, controllers_for, summary
from worldmodels.doom import C_DOOM, TAKE_COVER, Runner, survive
from worldmodels.dream import GAMES, DreamFitness, InitialStates
from worldmodels.mdn_rnn import MDNRNN, MDNRNNSettings
from worldmodels.ppo import load_ppo
from worldmodels.envs import make_envs
from worldmodels.rollouts import HELD_OUT, VALIDATION, NoisePolicy, Policy, RoadFollower
from worldmodels.tools.takecover import require_vizdoom
from worldmodels.tools import show
from worldmodels.tools.importers import ImportSettings, error_context, shrink, split_done
from worldmodels.tools.settings import claim_run_folder, load, write_json
from worldmodels.tools.store import Episode, RolloutStore
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import Vision, WorldModel, register
from worldmodels.vae import encode_frames

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

    Whole or not at all comes from `RolloutStore.append`, and the name from `error_context`. That nothing is imported twice is the caller's
    to see to: by the source, which stands in the store with the episode.
    """
    with error_context(file):
        frames = np.concatenate([shrink(frame[None], settings) for frame in imageio.v3.imiter(file)])
        steps = len(frames) - 1
        return Episode(frames, np.zeros((steps, 0), np.float32), np.zeros(steps, np.float32),
                       *split_done(np.zeros(steps, bool), steps, settings.max_steps), source=f"video:{file.resolve()}")


# Cells

class Cells:
    """Results by name, in JSON files that are there whole or not at all."""

    def __init__(self, folder: Path): self.folder, self.used = folder, {}

    def __call__(self, name: str, make: Callable[[Path], dict]) -> dict:
        """The result of a cell: what its file holds, else what `make(its folder)` gives, with the seconds that it took.

        A cell that was interrupted goes on where its trainings stand, and says so: its seconds are then too few.
        """
        path, work = self.folder / f"{name}.json", self.folder / name
        if not path.exists():
            interrupted, began = work.exists(), time.time()
            work.mkdir(parents=True, exist_ok=True)
            print(f"== {name}", flush=True)
            found = make(work)
            write_json(path, found | {"seconds": round(time.time() - began, 1), "interrupted": interrupted})
        self.used[name] = json.loads(path.read_text())
        return self.used[name]


# The data study

def needed(store: RolloutStore, frames: int) -> list[int]:
    """The first episodes of a store that hold `frames` frames between them."""
    total = np.cumsum(store.lengths + 1)
    return list(range(min(len(store), int((total < frames).sum()) + 1)))


def drive_frames(store: RolloutStore, driver: Policy, frames: int, length: int, first_seed: int, tag: str) -> None:
    """Record episodes of one driver until `store` holds `frames` frames."""
    episodes = 0
    while store.n_frames < frames:
        episodes += max(1, math.ceil((frames - store.n_frames) / (length + 1)))
        collect(store, driver, episodes, "fast", first_seed, length, tag=tag)


def record_data(folder: Path, policy: str, s: StudySettings, cells: Cells) -> dict:
    """The store of one way of collecting, in `folder`."""
    store = RolloutStore.create(folder / "store", "CarRacing-v3", 64, 3)
    if policy == "ppo": drive_frames(store, load_ppo(Path(s.ppo) / "ppo.safetensors"), s.frames, s.length, 0, "ppo")
    elif policy == "iterated":  # half of it drawn as brownian's was, half driven by the C that learnt from that
        drive_frames(store, NoisePolicy("brownian", s.length), s.frames // 2, s.length, 0, "brownian")
        before = cells.folder / "data-brownian-c"
        world, controller = WorldModel.load(before), load_controller(before / "controller.safetensors")
        driver = WorldModelPolicy(world, controllers_for(world, *controller), action_noise=0.3)
        drive_frames(store, driver, s.frames, s.length, 20_000, "controller")
    else: drive_frames(store, NoisePolicy(policy, s.length), s.frames, s.length, 0, policy)
    chosen = needed(store, s.frames)
    road = [on_road(ep.frames[ZOOM:]) for ep in store.episodes(chosen)]
    return {"frames": int((store.lengths[chosen] + 1).sum()), "episodes": len(chosen), "road": float(np.concatenate(road).mean())}


def stored(cells: Cells, policy: str, s: StudySettings) -> tuple[RolloutStore, list[int], dict]:
    """The store of one way of collecting, the episodes of it that count, and what is known of them."""
    if policy == "iterated": search_on(cells, "brownian", s)  # a cell of its own, not part of this one's time
    facts = cells(f"data-{policy}-store", lambda folder: record_data(folder, policy, s, cells))
    store = RolloutStore(cells.folder / f"data-{policy}-store" / "store")
    return store, needed(store, s.frames), facts


def good_driving(cells: Cells, s: StudySettings) -> RolloutStore:
    """What every V and M is measured on: chapter 00's rule, on validation tracks."""
    store = RolloutStore.create(cells.folder / "test", "CarRacing-v3", 64, 3)
    return collect(store, RoadFollower(), s.test_episodes, "fast", 103_000, s.test_steps, tag="test")


def road_frames(store: RolloutStore) -> tuple[np.ndarray, np.ndarray]:
    """The frames of all episodes (n, size, size, 3), and which of them show the car on the road, after the zoom: (n,) bool."""
    frames = [ep.frames for ep in store.episodes()]
    return np.concatenate(frames), np.concatenate([on_road(f) & (np.arange(len(f)) >= ZOOM) for f in frames])


def train_v(folder: Path, store: RolloutStore, episodes: list[int], seed: int, s: StudySettings) -> Vision:
    """A V in `folder`, trained unless it is there."""
    path = folder / "vision.safetensors"
    if not path.exists(): save_model(path, train_vae(store, VAESettings(), s.vae_fit, folder, seed, episodes))
    return load_model(path, Vision)


def train_m(folder: Path, latents, seed: int, s: StudySettings) -> Dynamics:
    """An M in `folder`, trained on all episodes of `latents` unless it is there."""
    path = folder / "dynamics.safetensors"
    if not path.exists():
        torch.manual_seed(seed)
        save_model(path, train_dynamics(MDNRNN(), latents, range(len(latents)), s.window, s.dynamics_fit, folder, seed))
    return load_model(path, Dynamics)


def measure_v(folder: Path, cells: Cells, policy: str, seed: int, s: StudySettings) -> dict:
    """V's squared error a frame, on the road."""
    store, episodes, _ = stored(cells, policy, s)
    vision = train_v(folder, store, episodes, seed, s)
    frames, road = road_frames(good_driving(cells, s))
    error = [((decode_frames(vision, encode_frames(vision, some)[0]) - some / np.float32(255)) ** 2).sum((1, 2, 3))
             for some in np.array_split(frames[road], max(1, road.sum() // 256))]
    return {"error": float(np.concatenate(error).mean()), "frames": int(road.sum())}


def measure_m(folder: Path, cells: Cells, policy: str, seed: int, s: StudySettings) -> dict:
    """M's NLL and open-loop error on the road, in the latents of the one V that all Ms of the study share."""
    vision = WorldModel.load(s.world).vision
    store, episodes, _ = stored(cells, policy, s)
    model, test = train_m(folder, encode_store(vision, store, episodes), seed, s), good_driving(cells, s)
    latents, road = encode_store(vision, test), torch.from_numpy(road_frames(test)[1])
    everything = range(len(latents))
    with torch.inference_mode():
        nll = [(model(z[None, :-1], a[None]).nll(z[None, 1:])[0] / z.shape[1])[road[latents.episode(i)][1:]]
               for i, (z, a) in zip(everything, whole_episodes(latents, everything))]
    context, horizon = min(50, s.test_steps // 6), min(100, s.test_steps // 3)
    dream, kept = horizon_error(model, latents, everything, context, horizon)
    straight = road[segments(latents, everything, context + horizon)][:, context:].float().mean(1) > 0.9
    mean = lambda x: float(x[straight].mean()) if straight.any() else None
    return {"nll": float(torch.cat(nll).mean()), "open_loop": mean(dream), "kept": mean(kept), "context": context, "horizon": horizon,
            "segments": int(straight.sum())}


def search_on(cells: Cells, policy: str, s: StudySettings) -> dict:
    """The score of a C on a V and an M that learnt from one way of collecting, and the curve of its search."""
    def make(folder: Path) -> dict:
        store, episodes, facts = stored(cells, policy, s)
        v = first_v(cells, policy, s)
        vision, began = load_model(cells.folder / f"data-{policy}-v0" / "vision.safetensors", Vision), time.time()
        save_model(folder / "vision.safetensors", vision)
        world = WorldModel(vision, train_m(folder, encode_store(vision, store, episodes), s.seed, s))
        trained = v["seconds"] + time.time() - began
        params, records = search_c(folder, car_fitness(world, ControllerSettings(), s), ControllerSettings(), s.evolve, s.seed)
        frames = facts["frames"] + np.cumsum([r["steps"] for r in records])
        seconds = facts["seconds"] + trained + np.cumsum([r["seconds"] for r in records])
        curve = [{"frames": int(f), "seconds": round(float(t), 1), "mean": r["validation"]}
                 for f, t, r in zip(frames, seconds, records) if "validation" in r]
        driver = WorldModelPolicy(world, controllers_for(world, ControllerSettings(), params))
        return report_of(folder, driver, s) | {"curve": curve, "parameters": len(params)}
    stored(cells, policy, s), first_v(cells, policy, s)  # cells of their own, not part of this one's time
    return cells(f"data-{policy}-c", make)


def first_v(cells: Cells, policy: str, s: StudySettings) -> dict:
    """The cell of the first V on one way of collecting, on which C is searched."""
    return cells(f"data-{policy}-v0", lambda folder: measure_v(folder, cells, policy, s.seed, s))


def search_c(folder: Path, fitness: RealFitness | DreamFitness, controller: ControllerSettings, settings: EvolveSettings, seed: int,
             by_chance: bool = False) -> tuple[np.ndarray, list[dict]]:
    """C by CMA-ES from zeros, or by random search, unless it is there: (parameters, records)."""
    path = folder / "controller.safetensors"
    if not path.exists():
        found = random_search(fitness, settings, folder, seed) if by_chance else evolve(fitness, np.zeros(fitness.dimension), settings, folder, seed)
        save_controller(path, controller, found[0])
    return load_controller(path)[1], read_lines(folder / ("random.jsonl" if by_chance else "evolution.jsonl"))


def car_fitness(world: WorldModel, controller: ControllerSettings, s: StudySettings) -> RealFitness:
    return RealFitness(world, controller, s.evolve.max_steps, s.evolve.patience)


def report_of(folder: Path, driver: Policy, s: StudySettings) -> dict:
    """A driver's returns on held-out tracks, on both environments, scored unless they are there."""
    path = folder / "report.json"
    if not path.exists(): write_report(folder, lambda seeds, backend: score_policy(driver, seeds, backend, s.evaluate.max_steps), s.evaluate)
    report = json.loads(path.read_text())
    return {backend: report[backend] for backend in ("gymnasium", "envpool") if backend in report}


def data_study(cells: Cells, s: StudySettings) -> dict[str, dict]:
    """For every way of collecting: share of road, errors of V and M for each seed, and C's score."""
    rows = {}
    for policy in s.policies.split(","):
        if policy == "ppo" and not (Path(s.ppo) / "ppo.safetensors").exists():
            print(f"there is no {s.ppo}/ppo.safetensors: the row ppo is left out; `python -m solutions.ppo` trains one")
            continue
        _, _, facts = stored(cells, policy, s)
        v = [cells(f"data-{policy}-v{k}", lambda folder: measure_v(folder, cells, policy, s.seed + k, s)) for k in range(s.seeds)]
        m = [cells(f"data-{policy}-m{k}", lambda folder: measure_m(folder, cells, policy, s.seed + k, s)) for k in range(s.seeds)]
        rows[policy] = {"facts": facts, "v": v, "m": m, "c": search_on(cells, policy, s)}
    return rows


def spread(values: list[float | None], digits: int) -> str:
    """Mean and range of a few trainings."""
    if None in values: return "–"
    return f"{np.mean(values):.{digits}f}" + (f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else "")


def scored(r: dict) -> str: return f"{r['mean']:.0f} ± {r['sd']:.0f} ({r['low']:.0f} to {r['high']:.0f})"


def data_table(rows: dict[str, dict], s: StudySettings) -> str:
    lines = "".join(f"| {name} | {r['facts']['frames']:,} | {r['facts']['road']:.0%} | {spread([x['error'] for x in r['v']], 1)} "
                    f"| {spread([x['nll'] for x in r['m']], 3)} | {spread([x['open_loop'] for x in r['m']], 2)} | {scored(r['c']['gymnasium'])} |\n"
                    for name, r in rows.items())
    return f"""What V, M and C make of data that was collected in different ways. V and M: {s.seeds} trainings, mean and range, measured on frames on the
road of {s.test_episodes} drives by chapter 00's rule; all Ms in the latents of one V ({s.world}). C: one search, {s.evaluate.episodes} held-out
official tracks, mean ± sd (95 % interval of the mean).

| data | frames | on the road | V: squared error a frame | M: NLL (nats a dimension) | M: open-loop error (V's sd) | C: return |
|---|---|---|---|---|---|---|
{lines}"""


def data_figure(rows: dict[str, dict]) -> Figure:
    fig = Figure(figsize=(11, 3.2), layout="constrained")
    panels = [("V: squared error a frame", lambda r: [x["error"] for x in r["v"]]), ("M: NLL (nats a dimension)", lambda r: [x["nll"] for x in r["m"]]),
              ("M: open-loop error (V's sd)", lambda r: [x["open_loop"] for x in r["m"]])]
    axes = fig.subplots(1, 4)
    for ax, (label, values) in zip(axes, panels):
        for k, r in enumerate(rows.values()):
            found = [x for x in values(r) if x is not None]
            ax.scatter([k] * len(found), found, s=22, color=show.COLORS["reconstruction"])
        ax.set(ylabel=label)
    for k, r in enumerate(rows.values()): interval(axes[3], k, r["c"]["gymnasium"])
    axes[3].set(ylabel="C: mean return, 95 % interval")
    for ax in axes:
        ax.set_xticks(range(len(rows)), list(rows), rotation=35)
        ax.set_xlim(-0.5, len(rows) - 0.5)
    return fig


def interval(ax, k: float, r: dict) -> None:
    ax.plot([k, k], [r["low"], r["high"]], color=show.COLORS["reconstruction"], linewidth=2)
    ax.scatter([k], [r["mean"]], s=28, color=show.COLORS["reconstruction"], zorder=3)


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
        return WorldModel(world.vision, type(world.dynamics)(world.dynamics.settings).eval())


def measure_control(folder: Path, control: Control, s: StudySettings) -> dict:
    """The score of the C that a control ends with, and what its search drove."""
    driver, params, records = search_on_road(folder, control.world, control.controller, s, control.by_chance)
    frames = sum(r["steps"] for r in records)
    return score_driver(folder, driver, s) | {"parameters": len(params), "frames": frames}


def control_study(cells: Cells, s: StudySettings) -> dict[str, dict]:
    """Returns of what is left when one part is taken away, each searched anew with the same budget."""
    world = WorldModel.load(s.world)
    thumbnails = WorldModel(Thumbnail().eval(), MDNRNN(MDNRNNSettings(latent=64, hidden=1)).eval())
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
    return {"game": tics_summary(survive(player, seeds, s.doom_evaluate.max_steps))}


def measure_doom_control(folder: Path, control: Control, starts: InitialStates, s: StudySettings) -> dict:
    """Tics that the C of a control survives, in dreams and in the game."""
    world, controller = control.world, control.controller
    repeat = world.dynamics.action_repeat
    dreaming = replace(GAMES["TakeCover"].settings, max_steps=s.doom_evolve.max_steps // repeat)
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
