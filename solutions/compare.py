"""The Ms side by side, and the joint ViT-WM beside them.

One frozen V, the same episodes, about as many parameters, as much time to learn.

python -m solutions.compare --settings laptop --run runs/compare
"""
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from worldmodels.controller import ControllerSettings, RealFitness, evolve, score
from worldmodels.scoring import summary
from worldmodels.controller_files import save_controller
from worldmodels.latents import smooth_rewards
from worldmodels.mdn_rnn import dynamics_loss, held_out_nll, train_dynamics
from worldmodels.sequences import windows
from worldmodels.nll_baselines import linear_nll, noise_nll, repeat_nll
from worldmodels.rollouts import HELD_OUT
from worldmodels.tools.settings import claim_run_folder, load, write_json
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import FitSettings, fit, read_lines
from worldmodels.tools.world import (Dynamics, Vision, WorldModel, load_model, load_tensors, registered,
                                     save_model)
from worldmodels.transformer import ClipLoss, ViTWM
from worldmodels.vit_training import clips, train_vit_wm
from worldmodels.tools.encoding import Latents, encode_store

from .compare_report import draw, make_report, table
from .mdn_rnn import encode
from .measures import Segments, dream_rate, select, teacher_forced, used_parameters
from .records import cached_json
from .settings import M_FIELDS, CompareSettings, command
from .transformer import smoothed_rewards

# The rows on the frozen V, each named as the field of its settings: the class of M
M_CLASSES = {field: cls for cls, field in M_FIELDS.items()}


# The data that all rows share

@dataclass
class CompareData:
    """What all rows stand on."""

    vision: Vision
    store: RolloutStore
    latents: Latents
    train: np.ndarray     # the store's numbers of the training episodes
    held_out: np.ndarray  # and of the held-out ones
    held: Latents         # the held-out episodes alone


def open_source(source: Path) -> tuple[Vision, RolloutStore]:
    """V and the episodes of a run; a FileNotFoundError says how to make one."""
    for name in ("vision.safetensors", "store"):
        if not (source / name).exists():
            maker = f"python -m solutions.train --settings laptop --run {source}"
            raise FileNotFoundError(f"{source} has no {name}: the comparison takes V and the episodes of "
                                    f"a run. `{maker}` makes one; --source names another")
    return load_model(source / "vision.safetensors", Vision), RolloutStore(source / "store")


def check_source(folder: Path, source: Path, store: RolloutStore) -> None:
    """A ValueError where the source is not what the comparison began with."""
    weights = (source / "vision.safetensors").read_bytes()
    now = {"episodes": len(store), "frames": store.n_frames, "vision": hashlib.sha256(weights).hexdigest()}
    then = cached_json(folder / "source.json", lambda: now)
    if then != now:
        raise ValueError(f"{source} is not what {folder} began with ({then} then, {now} now): "
                         "take another --run, or --fresh")


def load_data(folder: Path, s: CompareSettings, vision: Vision, store: RolloutStore) -> CompareData:
    """The source's episodes as latents, split; a ValueError where its run is still going on."""
    source = Path(s.source)
    encoded = source if (source / "latents.safetensors").exists() else folder
    latents = smooth_rewards(encode(encoded, vision, store))
    if len(latents) != len(store):
        raise ValueError(f"{source} has {len(store)} episodes and latents of {len(latents)}: "
                         "is the run still going on?")
    train, held_out = store.split()
    held_out = held_out[:s.episodes]
    return CompareData(vision, store, latents, train, held_out, select(latents, held_out))


# How many updates fit into the time

def measure_update_time(model, batches: Callable, loss: Callable, training: FitSettings, warm_up: int = 5,
                        timed: int = 15) -> float:
    """The median seconds of an update, from a few on a model that is thrown away."""
    times = []
    def timed_batches(seed, step):
        for batch in batches(seed, step):
            times.append(time.perf_counter())
            yield batch
    fit(model, timed_batches, loss, replace(training, steps=warm_up + timed + 1))
    return float(np.median(np.diff(times[warm_up:])))


def update_budget(seconds_an_update: float, seconds: float) -> dict:
    """How many updates fit into `seconds`.

    The number is fixed before training, so that the learning rate can fall to its end and the same row can be
    trained again.
    """
    return {"seconds_an_update": seconds_an_update, "steps": max(1, round(seconds / seconds_an_update))}


# One M on the frozen V

def make_m(s: CompareSettings, row: str) -> Dynamics:
    cls, _ = registered(M_CLASSES[row])
    return cls(getattr(s, row))


def frozen_batches(s: CompareSettings, data: CompareData, seed: int, step: int) -> Iterator[dict]:
    return windows(data.latents, data.train, s.window, s.fit.batch, seed, step)


def frozen_budget(s: CompareSettings, data: CompareData, row: str) -> dict:
    """The updates of an M on the frozen V."""
    batches = partial(frozen_batches, s, data)
    seconds = measure_update_time(make_m(s, row), batches, dynamics_loss, s.fit)
    return update_budget(seconds, s.seconds)


def train_frozen(folder: Path, s: CompareSettings, data: CompareData, row: str, seed: int,
                 updates: int) -> Dynamics:
    """An M on the frozen V, trained unless `folder` has it."""
    path = folder / "model.safetensors"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        interrupted = any(folder.glob("*.checkpoint.safetensors"))
        began = time.time()
        torch.manual_seed(seed)
        training = replace(s.fit, steps=updates)
        model = train_dynamics(make_m(s, row), data.latents, data.train, s.window, training, folder, seed)
        save_model(path, model, seconds=None if interrupted else round(time.time() - began, 1))
    return load_model(path, Dynamics)


# The joint ViT-WM

def joint_batches(s: CompareSettings, data: CompareData, rewards: np.ndarray, seed: int,
                  step: int) -> Iterator[dict]:
    return clips(data.store, s.clip, s.joint_fit.batch, seed, step, data.train, rewards)


def joint_loss(model: ClipLoss, batch: dict) -> tuple[torch.Tensor, dict]: return model(batch)


def joint_budget(s: CompareSettings, data: CompareData, rewards: np.ndarray) -> dict:
    """The updates of the joint ViT-WM."""
    batches = partial(joint_batches, s, data, rewards)
    seconds = measure_update_time(ClipLoss(ViTWM(s.joint)), batches, joint_loss, s.joint_fit)
    return update_budget(seconds, s.joint_seconds)


def train_joint(folder: Path, s: CompareSettings, data: CompareData, rewards: np.ndarray,
                updates: int) -> WorldModel:
    """The joint ViT-WM, trained unless `folder` has it."""
    if not (folder / "dynamics.safetensors").exists():
        folder.mkdir(exist_ok=True)
        interrupted = any(folder.glob("*.checkpoint.safetensors"))
        began = time.time()
        training = replace(s.joint_fit, steps=updates)
        model = train_vit_wm(data.store, s.joint, training, s.clip, folder, 0, data.train, rewards=rewards)
        seconds = None if interrupted else round(time.time() - began, 1)
        WorldModel(model, model, data.store.env_id).save(folder, seconds=seconds)
    return WorldModel.load(folder)


# What a trained M is worth

def training_seconds(path: Path) -> float | None:
    """The seconds a model was trained, None where it was interrupted."""
    return load_tensors(path)[1]["card"]["seconds"]


def learning_curve(folder: Path, seconds_an_update: float) -> dict:
    """Training NLL against seconds, each point the mean of up to 5 logged ones."""
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "nll" in line]
    curve = {"seconds": [], "nll": []}
    for k in range(0, len(lines), 5):
        group = lines[k:k + 5]
        curve["seconds"].append(round(seconds_an_update * group[-1]["step"], 2))
        curve["nll"].append(round(float(np.mean([line["nll"] for line in group])), 4))
    return curve


def measure(world: WorldModel, held: Latents, dreamt: Segments, s: CompareSettings) -> dict:
    """Everything about an M but its training and its car."""
    nll = held_out_nll(world.dynamics, held, range(len(held)))
    return {"nll": nll.tolist(), "dream_steps_per_s": round(dream_rate(world.dynamics, s.worlds)),
            **teacher_forced(world.dynamics, held), **dreamt.errors(world)}


# The rows: a JSON file each

def cached_row(path: Path, make: Callable[[], dict]) -> dict:
    """A row that is made once, and named as it is begun. A comparison that is killed goes on at this row."""
    if not path.exists(): print(f"{path.stem} …", flush=True)
    return cached_json(path, make)


def frozen_row(folder: Path, s: CompareSettings, data: CompareData, row: str, seed: int) -> dict:
    """One training of one M on the frozen V, and what it is worth."""
    budget = cached_row(folder / "rows" / f"{row}.pace.json", partial(frozen_budget, s, data, row))
    here = folder / f"{row}-{seed}"
    model = train_frozen(here, s, data, row, seed, budget["steps"])
    example = next(frozen_batches(s, data, 0, 0))
    dreamt = Segments(data.store, data.held, data.held_out, s.context, s.horizon)
    return {"row": row, "seed": seed, "updates": budget["steps"],
            "seconds": training_seconds(here / "model.safetensors"),
            "parameters": used_parameters(make_m(s, row), example),
            "training_steps_per_s": round(s.fit.batch * s.window / budget["seconds_an_update"]),
            "curve": learning_curve(here, budget["seconds_an_update"]),
            **measure(WorldModel(data.vision, model, data.store.env_id), data.held, dreamt, s)}


def joint_row(folder: Path, s: CompareSettings, data: CompareData) -> dict:
    """The joint ViT-WM. Its NLL and its error of z are in units of its own z: nothing compares with them."""
    rewards = smoothed_rewards(data.store)
    budget = cached_row(folder / "rows" / "joint.pace.json", partial(joint_budget, s, data, rewards))
    here = folder / "joint-0"
    world = train_joint(here, s, data, rewards, budget["steps"])
    held = smooth_rewards(encode_store(world.vision, data.store, data.held_out))
    dreamt = Segments(data.store, held, data.held_out, s.context, s.horizon)
    return {"row": "joint", "seed": 0, "updates": budget["steps"],
            "seconds": training_seconds(here / "vision.safetensors"),
            "parameters": sum(p.numel() for p in world.vision.parameters()),
            "training_steps_per_s": round(s.joint_fit.batch * s.clip / budget["seconds_an_update"]),
            "curve": learning_curve(here, budget["seconds_an_update"]),
            **measure(world, held, dreamt, s),
            "reconstruction": dreamt.baselines(world)["reconstruction"]}


def baseline_row(s: CompareSettings, data: CompareData) -> dict:
    """What the Ms on the frozen V are measured against."""
    dreamt = Segments(data.store, data.held, data.held_out, s.context, s.horizon)
    anyone = WorldModel(data.vision, make_m(s, "dynamics"), data.store.env_id)  # its dreams are not used
    return {"repeat": repeat_nll(data.latents, data.train, data.held_out).tolist(),
            "linear": linear_nll(data.latents, data.train, data.held_out).tolist(),
            "noise": noise_nll(data.held, range(len(data.held))).tolist(), **dreamt.baselines(anyone)}


def first_world(folder: Path, data: CompareData, row: str) -> WorldModel:
    """V and the M of a row's first training."""
    if row == "joint": return WorldModel.load(folder / "joint-0")
    model = load_model(folder / f"{row}-0" / "model.safetensors", Dynamics)
    return WorldModel(data.vision, model, data.store.env_id)


def controller_row(folder: Path, s: CompareSettings, data: CompareData, row: str) -> dict:
    """A C on the first training of an M.

    It is found from zeros, in as many generations as all others, and scored on held-out tracks.
    """
    here = folder / f"{row}-0"
    world = first_world(folder, data, row)
    settings = ControllerSettings()
    fitness = RealFitness(world, settings, s.evolve.max_steps, s.evolve.patience)
    params, generations = evolve(fitness, np.zeros(fitness.dimension), s.evolve, here)
    save_controller(here / "controller.safetensors", settings, params)
    returns = score(world, settings, params, HELD_OUT[:s.tracks], "fast", s.evolve.max_steps)
    return {"row": row, "parameters": fitness.dimension, "generations": len(generations),
            "seconds": round(sum(generation["seconds"] for generation in generations), 1),
            "environment": "fast", **summary(returns),
            "returns": [round(float(r), 1) for r in returns]}


# The comparison

def train_rows(folder: Path, s: CompareSettings, data: CompareData) -> dict[str, list[dict]]:
    """All trainings by row, each row's by seed."""
    rows = folder / "rows"
    trainings = {row: [] for row in M_CLASSES}
    for seed in range(s.seeds):
        for row in M_CLASSES:
            make = partial(frozen_row, folder, s, data, row, seed)
            trainings[row].append(cached_row(rows / f"{row}-{seed}.json", make))
    trainings["joint"] = [cached_row(rows / "joint-0.json", partial(joint_row, folder, s, data))]
    return trainings


def search_rows(folder: Path, s: CompareSettings, data: CompareData, rows: list[str]) -> dict[str, dict]:
    """The C of each row."""
    cars = {}
    for row in rows:
        make = partial(controller_row, folder, s, data, row)
        cars[row] = cached_row(folder / "rows" / f"{row}.car.json", make)
    return cars


def publish(folder: Path, to: Path) -> None:
    """Copy what is to be kept of a comparison, with the trained TransformerMDN in half precision."""
    to.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "table.md", "compare.png"): shutil.copyfile(folder / name, to / name)
    model = load_model(folder / "transformer-0" / "model.safetensors", Dynamics)
    save_model(to / "TransformerMDN.safetensors", model, half=True)


def run(s: CompareSettings) -> Path:
    """The whole comparison. Its folder, `s.run`, is made if missing; what is in it is not made again.

    Raises FileNotFoundError where the source has no V or no episodes, ValueError for a folder made with other
    settings or from another source.
    """
    source = Path(s.source)
    vision, store = open_source(source)
    if s.tracks > len(HELD_OUT): raise ValueError(f"tracks must be at most {len(HELD_OUT):,}, not {s.tracks}")
    folder = claim_run_folder(Path(s.run), s, s.fresh, ignore=("fresh", "run", "to"))
    (folder / "rows").mkdir(exist_ok=True)
    check_source(folder, source, store)

    data = load_data(folder, s, vision, store)
    baseline = cached_row(folder / "rows" / "baseline.json", partial(baseline_row, s, data))
    trainings = train_rows(folder, s, data)
    cars = search_rows(folder, s, data, list(trainings))

    report = make_report(s, len(data.train), len(data.held_out), trainings, baseline, cars)
    write_json(folder / "report.json", report)
    (folder / "table.md").write_text(table(report), encoding="utf-8")
    draw(report, trainings, baseline).savefig(folder / "compare.png")
    if s.to: publish(folder, Path(s.to))
    print(table(report))
    return folder


def main() -> None: run(load(CompareSettings, prefix="compare", description=__doc__))


if __name__ == "__main__": command(main)
