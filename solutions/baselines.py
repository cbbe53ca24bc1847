"""Chapter 07's studies: which data, which parts, on the road and in Doom, how soon. Each is made of cells, a JSON file each; what is there is not made again.

python -m solutions.baselines --settings laptop
python -m solutions.baselines --settings laptop --part controls
"""
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import imageio.v3
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from solutions.evaluate import write_report
from solutions.settings import StudySettings, command
from worldmodels.baselines import load_ppo, on_road, paired, random_search, time_to_score
from worldmodels.controller import (ControllerSettings, EvolveSettings, RealFitness, WorldModelPolicy, controllers_for, evolve, load_controller,
                                    save_controller, score_policy, summary)
from worldmodels.doom import C_DOOM, TAKE_COVER, Runner, survive
from worldmodels.dream import DreamFitness, InitialStates
from worldmodels.dream_envs import GAMES
from worldmodels.mdn_rnn import MDNRNN, MDNRNNSettings, horizon_error, segments, train_dynamics, whole_episodes
from worldmodels.rollouts import HELD_OUT, VALIDATION, NoisePolicy, Policy, RoadFollower, collect, make_envs, require_vizdoom
from worldmodels.tools import show
from worldmodels.tools.importers import ImportSettings, ends, naming, shrink
from worldmodels.tools.settings import claim_run_folder, load, write_json
from worldmodels.tools.store import Episode, RolloutStore
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import Dynamics, Vision, WorldModel, load_model, register, save_model
from worldmodels.vae import VAESettings, decode_frames, encode_frames, encode_store, train_vae

POLICIES = ("white", "brownian", "held", "ppo", "iterated")
TARGETS = (500, 700, 850)
ZOOM = 50  # frames at the start of an episode in which the picture zooms in


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
        self.settings, self.size, self.latent = settings, settings.size, settings.side**2
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

    Whole or not at all comes from `RolloutStore.append`, and the name from `naming`. That nothing is imported twice is the caller's
    to see to: by the source, which stands in the store with the episode.
    """
    with naming(file):
        frames = np.concatenate([shrink(frame[None], settings) for frame in imageio.v3.imiter(file)])
        steps = len(frames) - 1
        return Episode(frames, np.zeros((steps, 0), np.float32), np.zeros(steps, np.float32),
                       *ends(np.zeros(steps, bool), steps, settings.max_steps), source=f"video:{file.resolve()}")


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

def untrained(world: WorldModel, seed: int) -> WorldModel:
    """The same V, and an M of the same kind that has learnt nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WorldModel(world.vision, type(world.dynamics)(world.dynamics.settings).eval())


def control_study(cells: Cells, s: StudySettings) -> dict[str, dict]:
    """Returns of what is left when one part is taken away, each searched anew with the same budget on the same tracks."""
    world = WorldModel.load(s.world)
    thumbs = WorldModel(Thumbnail().eval(), MDNRNN(MDNRNNSettings(latent=64, hidden=1)).eval())
    alone = ControllerSettings(memory=False)
    kinds = {"z and h": (world, ControllerSettings()), "z and h, M untrained": (untrained(world, s.seed), ControllerSettings()),
             "z alone": (world, alone), "z alone, 40 hidden units": (world, ControllerSettings(memory=False, hidden=40)),
             "8 × 8 grey pixels, no V": (thumbs, alone), "z and h, random search": (world, ControllerSettings(), True)}

    def found_by(folder: Path, world: WorldModel, settings: ControllerSettings, by_chance: bool = False) -> dict:
        params, records = search_c(folder, car_fitness(world, settings, s), settings, s.evolve, s.seed, by_chance)
        driver = WorldModelPolicy(world, controllers_for(world, settings, params))
        return report_of(folder, driver, s) | {"parameters": len(params), "frames": sum(r["steps"] for r in records)}

    searched = {name: cells(f"control-{slug(name)}", lambda folder: found_by(folder, *kind)) for name, kind in kinds.items()}
    searched["rule by hand"] = cells("control-rule-by-hand", lambda folder: report_of(folder, RoadFollower(), s))
    if (Path(s.ppo) / "ppo.safetensors").exists():
        searched["PPO"] = cells("control-ppo", lambda folder: report_of(folder, load_ppo(Path(s.ppo) / "ppo.safetensors"), s))
    return searched


def against(name: str, rows: dict[str, dict], where: str) -> str:
    """Mean difference of a row from the first one on the same seeds, with its 95 % interval; nothing for the first itself."""
    first = next(iter(rows))
    if name == first: return ""
    mean, low, high = paired(rows[name][where]["returns"], rows[first][where]["returns"])
    return f"{mean:+.0f} ({low:+.0f} to {high:+.0f})"


def slug(name: str) -> str: return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def control_table(rows: dict[str, dict], s: StudySettings) -> str:
    lines = [f"| {name} | {r.get('parameters', '')} | {scored(r['gymnasium'])} | {against(name, rows, 'gymnasium')} "
             f"| {scored(r['envpool']) if 'envpool' in r else '–'} |\n" for name, r in rows.items()]
    return f"""What is left when one part is taken away. Every search has {s.evolve.generations} generations of {s.evolve.population} candidates × {s.evolve.episodes}
tracks and starts from zeros; V and M are those of {s.world}. {s.evaluate.episodes} held-out tracks, mean ± sd (95 % interval of the mean).

| C sees | parameters | return, official | against z and h, on the same tracks | return, EnvPool |
|---|---|---|---|---|
{"".join(lines)}"""


def control_figure(rows: dict[str, dict], where: str = "gymnasium", label: str = "return on a held-out official track") -> Figure:
    fig = Figure(figsize=(8, 0.45 * len(rows) + 1), layout="constrained")
    ax = fig.subplots()
    for k, r in enumerate(rows.values()):
        found = r[where]
        ax.scatter(found["returns"], np.full(len(found["returns"]), k), s=6, color=show.COLORS["baseline"], alpha=0.5, linewidths=0)
        ax.plot([found["low"], found["high"]], [k, k], color=show.COLORS["reconstruction"], linewidth=3)
        ax.scatter([found["mean"]], [k], s=30, color=show.COLORS["reconstruction"], zorder=3)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.invert_yaxis()
    ax.set(xlabel=f"{label}; blue: the mean and its 95 % interval")
    return fig


# The controls in Doom, where C is found in the dream alone

def doom_study(cells: Cells, s: StudySettings) -> dict[str, dict]:
    """Tics survived, in the dream and in the game, by what is left when one part is taken away; and by players that do not look."""
    world, seeds = WorldModel.load(s.doom), HELD_OUT[:s.doom_evaluate.episodes]
    repeat, first = world.dynamics.action_repeat, make_envs(TAKE_COVER, VALIDATION[:32])
    starts = InitialStates(*map(torch.from_numpy, encode_frames(world.vision, first.reset())))
    first.close()
    dreaming = replace(GAMES["TakeCover"].settings, max_steps=s.doom_evolve.max_steps // repeat)
    of = lambda tics: summary(tics) | {"returns": [int(t) for t in tics]}

    def found_by(folder: Path, world: WorldModel, settings: ControllerSettings, by_chance: bool = False) -> dict:
        fitness = DreamFitness(world, starts, settings, dreaming)
        params, _ = search_c(folder, fitness, settings, s.doom_evolve, s.seed, by_chance)
        player = WorldModelPolicy(world, controllers_for(world, settings, params))
        return {"parameters": len(params), "dream": of(repeat * fitness(params[None], seeds)[0]), "game": of(survive(player, seeds, s.doom_evaluate.max_steps))}

    kinds = {"z, c and h": (world, C_DOOM), "z alone": (world, replace(C_DOOM, memory=False)),
             "z, c and h, M untrained": (untrained(world, s.seed), C_DOOM), "z, c and h, random search": (world, C_DOOM, True)}
    rows = {name: cells(f"doom-{slug(name)}", lambda folder: found_by(folder, *kind)) for name, kind in kinds.items()}
    for name, player in {"to and fro, never looking": Runner(), "random, fresh action": NoisePolicy("white", s.doom_evaluate.max_steps)}.items():
        rows[name] = cells(f"doom-{slug(name)}", lambda folder: {"game": of(survive(player, seeds, s.doom_evaluate.max_steps))})
    return rows


def doom_table(rows: dict[str, dict], s: StudySettings) -> str:
    lines = [f"| {name} | {r.get('parameters', '')} | {scored(r['dream']) if 'dream' in r else '–'} | {scored(r['game'])} | {against(name, rows, 'game')} |\n"
             for name, r in rows.items()]
    e, tau = s.doom_evolve, GAMES["TakeCover"].settings.temperature
    return f"""Doom's TakeCover, with C found in M's dreams alone (τ = {tau:g}); what is left when one part is taken away. Every search has {e.generations} generations
of {e.population} candidates × {e.episodes} dreams and starts from zeros; V and M are those of {s.doom}. {s.doom_evaluate.episodes} held-out games, tics survived,
mean ± sd (95 % interval of the mean).

| C sees | parameters | in the dream | in the game | against z, c and h, on the same seeds |
|---|---|---|---|---|
{"".join(lines)}"""


# Time to a score

def time_study(cells: Cells, s: StudySettings) -> dict[str, list[dict]]:
    """Tests on validation tracks, with the frames and seconds spent until then, of every way to a driver."""
    cell = search_on(cells, "brownian", s)
    curves = {"V, M and C" + " (interrupted: its minutes are too few)" * cell["interrupted"]: cell["curve"]}
    if "iterated" in s.policies:
        before, again = cell["curve"][-1], search_on(cells, "iterated", s)["curve"]
        half = s.frames // 2  # of its data was paid for already
        curves["V, M and C, iterated"] = [x | {"frames": x["frames"] + before["frames"] - half, "seconds": x["seconds"] + before["seconds"]} for x in again]
    ppo = read_lines(Path(s.ppo) / "evaluations.jsonl")
    if ppo: curves["PPO"] = ppo
    return curves


def reached(curve: list[dict], key: str, target: float, scale: float, unit: str) -> str:
    cost = time_to_score([x[key] for x in curve], [x["mean"] for x in curve], target)
    return f"not in {curve[-1][key] / scale:,.0f}{unit}" if math.isinf(cost) else f"{cost / scale:,.0f}{unit}"


def time_table(curves: dict[str, list[dict]], s: StudySettings) -> str:
    lines = "".join(f"| {name} | " + " | ".join(f"{reached(curve, 'frames', t, 1000, 'k')} · {reached(curve, 'seconds', t, 60, ' min')}" for t in TARGETS)
                    + f" | {curve[-1]['mean']:.0f} |\n" for name, curve in curves.items())
    return f"""Frames of the environment and minutes until a test on validation tracks ({s.evolve.validate_episodes} for V, M and C) first reached a mean return, in one run each. The recordings, V
and M are counted; the frames of tests are not, and their minutes for V, M and C alone. "not in" gives the budget that did not do.

| | {' | '.join(f'to {t}' for t in TARGETS)} | last test |
|---|{'---|' * len(TARGETS)}---|
{lines}"""


def time_figure(curves: dict[str, list[dict]]) -> Figure:
    fig = Figure(figsize=(10, 3.6), layout="constrained")
    axes = fig.subplots(1, 2, sharey=True)
    colours = [show.COLORS["reconstruction"], show.COLORS["dream"], show.OTHER_COLORS[0]]
    for ax, key, scale, label in ((axes[0], "frames", 1000, "frames of the environment (thousands)"), (axes[1], "seconds", 60, "time on this machine (minutes)")):
        for (name, curve), colour in zip(curves.items(), colours):
            ax.plot([x[key] / scale for x in curve], [x["mean"] for x in curve], color=colour, marker="o", markersize=3, label=name)
        for target in TARGETS: ax.axhline(target, color=show.FAINT, linewidth=1)
        ax.set(xlabel=label)
    axes[0].set(ylabel="mean return on validation tracks")
    axes[0].legend()
    return fig


def write(cells: Cells, to: str, name: str, table: str, figure: Figure) -> None:
    """`name`.md and `name`.png in the run's folder and in `to`, and the table on the screen; the cells that it was made of go into `to`/cells."""
    if to:
        (Path(to) / "cells").mkdir(parents=True, exist_ok=True)
        for cell, found in cells.used.items(): write_json(Path(to) / "cells" / f"{cell}.json", found)
    for folder in [cells.folder, *([Path(to)] if to else [])]:
        (folder / f"{name}.md").write_text(table, encoding="utf-8")
        figure.savefig(folder / f"{name}.png", dpi=show.DPI)
    print(table, flush=True)


def main() -> None:
    s = load(StudySettings, prefix="baselines", description=__doc__)
    if unknown := set(s.policies.split(",")) - set(POLICIES): raise ValueError(f"unknown policies {', '.join(sorted(unknown))}; known are {', '.join(POLICIES)}")
    if s.part in ("all", "doom"): require_vizdoom()  # before hours of driving
    folder = claim_run_folder(Path(s.run), s, s.fresh, ignore=("fresh", "run", "to", "part", "policies", "ppo"))
    show.use_style()
    cells = Cells(folder)
    if s.part in ("all", "data"): write(cells, s.to, "data", data_table(rows := data_study(cells, s), s), data_figure(rows))
    if s.part in ("all", "controls"): write(cells, s.to, "controls", control_table(rows := control_study(cells, s), s), control_figure(rows))
    if s.part in ("all", "time"): write(cells, s.to, "time", time_table(rows := time_study(cells, s), s), time_figure(rows))
    if s.part in ("all", "doom"):
        write(cells, s.to, "doom", doom_table(rows := doom_study(cells, s), s), control_figure(rows, "game", "tics survived in a held-out game"))


if __name__ == "__main__": command(main)
