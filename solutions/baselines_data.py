"""Chapter 07's study of data: a store of each way of collecting, and V, M and C on each."""
import math
import time
from pathlib import Path

import numpy as np
import torch

from worldmodels.baselines import on_road
from worldmodels.controller import ControllerSettings, WorldModelPolicy, controllers_for
from worldmodels.controller_files import load_controller
from worldmodels.mdn_rnn import MDNRNN, horizon_error, train_dynamics
from worldmodels.sequences import segments, whole_episodes
from worldmodels.ppo import load_ppo
from worldmodels.collect import collect
from worldmodels.rollouts import NoisePolicy, Policy, RoadFollower
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import Dynamics, Vision, WorldModel, load_model, save_model
from worldmodels.tools.encoding import decode_frames, encode_frames, encode_store
from worldmodels.vae import VAESettings, train_vae

from .baselines_cells import Cells, ppo_weights, score_driver, search_on_road
from .settings import StudySettings

POLICIES = ("white", "brownian", "held", "ppo", "iterated")
ZOOM = 50  # frames at the start of an episode in which the picture zooms in


# A store of each way of collecting

def first_episodes(store: RolloutStore, frames: int) -> list[int]:
    """The first episodes of a store that hold `frames` frames between them."""
    total = np.cumsum(store.lengths + 1)
    return list(range(min(len(store), int((total < frames).sum()) + 1)))


def drive_frames(store: RolloutStore, driver: Policy, frames: int, length: int, first_seed: int,
                 tag: str) -> None:
    """Record episodes of one driver until `store` holds `frames` frames."""
    episodes = 0
    while store.n_frames < frames:
        episodes += max(1, math.ceil((frames - store.n_frames) / (length + 1)))
        collect(store, driver, episodes, "fast", first_seed, length, tag=tag)


def noisy_driver(folder: Path) -> WorldModelPolicy:
    """The V, M and C in `folder`, with the wheel shaken."""
    world = WorldModel.load(folder)
    settings, params = load_controller(folder / "controller.safetensors")
    return WorldModelPolicy(world, controllers_for(world, settings, params), action_noise=0.3)


def record_data(folder: Path, cells: Cells, policy: str, s: StudySettings) -> dict:
    """Record the store of one way of collecting, in `folder`; returns what is known of it."""
    store = RolloutStore.create(folder / "store", "CarRacing-v3", 64, 3)
    if policy == "ppo": drive_frames(store, load_ppo(ppo_weights(s)), s.frames, s.length, 0, "ppo")
    elif policy == "iterated":  # half drawn as brownian's was, half driven by the C that learnt from that
        drive_frames(store, NoisePolicy("brownian", s.length), s.frames // 2, s.length, 0, "brownian")
        driver = noisy_driver(cells.folder / "data-brownian-c")
        drive_frames(store, driver, s.frames, s.length, 20_000, "controller")
    else: drive_frames(store, NoisePolicy(policy, s.length), s.frames, s.length, 0, policy)
    chosen = first_episodes(store, s.frames)
    road = [on_road(episode.frames[ZOOM:]) for episode in store.episodes(chosen)]
    return {"frames": int((store.lengths[chosen] + 1).sum()), "episodes": len(chosen),
            "road": float(np.concatenate(road).mean())}


def collected(cells: Cells, policy: str, s: StudySettings) -> tuple[RolloutStore, list[int], dict]:
    """The store of one way of collecting, the episodes of it that count, and what is known of them."""
    if policy == "iterated": cell_of_c(cells, "brownian", s)  # a cell of its own, not part of this one's time
    facts = cells(f"data-{policy}-store", record_data, cells, policy, s)
    store = RolloutStore(cells.folder / f"data-{policy}-store" / "store")
    return store, first_episodes(store, s.frames), facts


def good_drives(cells: Cells, s: StudySettings) -> RolloutStore:
    """What every V and M is measured on: chapter 00's rule, on validation tracks."""
    store = RolloutStore.create(cells.folder / "test", "CarRacing-v3", 64, 3)
    return collect(store, RoadFollower(), s.test_episodes, "fast", 103_000, s.test_steps, tag="test")


def road_frames(store: RolloutStore) -> tuple[np.ndarray, np.ndarray]:
    """All frames (n, size, size, 3), and which show the car on the road, after the zoom: (n,) bool."""
    frames = [episode.frames for episode in store.episodes()]
    road = [on_road(each) & (np.arange(len(each)) >= ZOOM) for each in frames]
    return np.concatenate(frames), np.concatenate(road)


# V, M and C on each

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
        model = train_dynamics(MDNRNN(), latents, range(len(latents)), s.window, s.dynamics_fit, folder, seed)
        save_model(path, model)
    return load_model(path, Dynamics)


def measure_v(folder: Path, cells: Cells, policy: str, seed: int, s: StudySettings) -> dict:
    """V's squared error a frame, on the road."""
    store, episodes, _ = collected(cells, policy, s)
    vision = train_v(folder, store, episodes, seed, s)
    frames, road = road_frames(good_drives(cells, s))
    errors = []
    for some in np.array_split(frames[road], max(1, road.sum() // 256)):
        mu, _ = encode_frames(vision, some)
        difference = decode_frames(vision, mu) - some / np.float32(255)
        errors.append((difference**2).sum((1, 2, 3)))
    return {"error": float(np.concatenate(errors).mean()), "frames": int(road.sum())}


def road_nll(model: Dynamics, latents, road: torch.Tensor) -> float:
    """NLL of the frames on the road, in nats a dimension."""
    everything, nats = range(len(latents)), []
    with torch.inference_mode():
        for i, (z, a) in zip(everything, whole_episodes(latents, everything)):
            each = model(z[None, :-1], a[None]).nll(z[None, 1:])[0] / z.shape[1]  # (steps,)
            nats.append(each[road[latents.episode(i)][1:]])
    return float(torch.cat(nats).mean())


def measure_m(folder: Path, cells: Cells, policy: str, seed: int, s: StudySettings) -> dict:
    """M's NLL and open-loop error on the road, in the latents of the one V that all Ms of the study share."""
    vision = WorldModel.load(s.world).vision
    store, episodes, _ = collected(cells, policy, s)
    model = train_m(folder, encode_store(vision, store, episodes), seed, s)
    test = good_drives(cells, s)
    latents, road = encode_store(vision, test), torch.from_numpy(road_frames(test)[1])
    nll = road_nll(model, latents, road)
    everything = range(len(latents))
    context = min(50, s.test_steps // 6)
    horizon = min(100, s.test_steps // 3)
    dream, kept = horizon_error(model, latents, everything, context, horizon)
    dreamt = road[segments(latents, everything, context + horizon)][:, context:]
    mostly_road = dreamt.float().mean(1) > 0.9

    def mean(errors): return float(errors[mostly_road].mean()) if mostly_road.any() else None

    return {"nll": nll, "open_loop": mean(dream), "kept": mean(kept), "context": context, "horizon": horizon,
            "stretches": int(mostly_road.sum())}  # of frames; the key that published cells have


def cell_of_v(cells: Cells, policy: str, k: int, s: StudySettings) -> dict:
    """Training number k of V on one way of collecting; C is searched on number 0."""
    return cells(f"data-{policy}-v{k}", measure_v, cells, policy, s.seed + k, s)


def measure_c(folder: Path, cells: Cells, policy: str, s: StudySettings) -> dict:
    """Score of a C on a V and an M that learnt from one way of collecting, and the curve of its search."""
    store, episodes, facts = collected(cells, policy, s)
    first_v = cell_of_v(cells, policy, 0, s)
    vision = load_model(cells.folder / f"data-{policy}-v0" / "vision.safetensors", Vision)
    began = time.time()
    save_model(folder / "vision.safetensors", vision)
    dynamics = train_m(folder, encode_store(vision, store, episodes), s.seed, s)
    world = WorldModel(vision, dynamics, store.env_id)
    trained = first_v["seconds"] + time.time() - began
    driver, params, records = search_on_road(folder, world, ControllerSettings(), s)
    frames = facts["frames"] + np.cumsum([r["steps"] for r in records])
    seconds = facts["seconds"] + trained + np.cumsum([r["seconds"] for r in records])
    curve = [{"frames": int(f), "seconds": round(float(t), 1), "mean": r["validation"]}
             for f, t, r in zip(frames, seconds, records) if "validation" in r]
    return score_driver(folder, driver, s) | {"curve": curve, "parameters": len(params)}


def cell_of_c(cells: Cells, policy: str, s: StudySettings) -> dict:
    """The search of a C on one way of collecting."""
    collected(cells, policy, s)      # cells of their own, not part of this one's time
    cell_of_v(cells, policy, 0, s)
    return cells(f"data-{policy}-c", measure_c, cells, policy, s)


def data_study(cells: Cells, s: StudySettings) -> dict[str, dict]:
    """For every way of collecting: share of road, errors of V and M for each seed, and C's score."""
    rows = {}
    for policy in s.policies.split(","):
        if policy == "ppo" and not ppo_weights(s).exists():
            print(f"there is no {s.ppo}/ppo.safetensors: the row ppo is left out; "
                  "`python -m solutions.ppo` trains one")
            continue
        _, _, facts = collected(cells, policy, s)
        v = [cell_of_v(cells, policy, k, s) for k in range(s.seeds)]
        m = [cells(f"data-{policy}-m{k}", measure_m, cells, policy, s.seed + k, s) for k in range(s.seeds)]
        rows[policy] = {"facts": facts, "v": v, "m": m, "c": cell_of_c(cells, policy, s)}
    return rows
