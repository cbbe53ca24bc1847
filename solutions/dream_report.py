"""What a dream run tells in the end: real and dreamt returns side by side, held-out scores, figures,
films."""
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from worldmodels.controller import RealFitness, score
from worldmodels.scoring import summary
from worldmodels.controller_files import save_controller
from worldmodels.dream import InitialStates
from worldmodels.leak import film_dream
from worldmodels.films import film_episode
from worldmodels.leak import draw_leak, leak, predicted_rewards, rank_correlation, rank_interval
from worldmodels.rollouts import HELD_OUT, VALIDATION
from worldmodels.tools import show
from worldmodels.tools.settings import write_json
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import WorldModel, load_tensors, save_model, save_tensors
from worldmodels.tools.encoding import Latents

from .evaluate import revision, typed_command
from .settings import DreamRunSettings
from .train import Clock

LEAK_TEMPERATURES = (0.5, 1.0, 1.5)


@dataclass
class Round:
    """One search in the dreams of one M."""

    folder: Path
    world: WorldModel
    latents: Latents         # all episodes that were seen until then, in M's steps
    checkpoints: np.ndarray  # (k, D), means of the search from its start to its result


def initial_states_of(latents: Latents, s: DreamRunSettings) -> InitialStates:
    """Where the dreams of a round begin."""
    return InitialStates.from_latents(latents, context=s.iterate.context,
                                      first_frame_fraction=s.iterate.first_frame_fraction)


def report(folder: Path, store: RolloutStore, rounds: list[Round], naive: list[Round], s: DreamRunSettings,
           clock: Clock) -> None:
    """Score every search on validation tracks, the naive C and the last on the held-out ones.

    Writes rounds.json, figures and films into `folder`.
    """
    show.use_style()
    searches = [score_checkpoints(search, store, s) for search in [rounds[0], *naive, *rounds[1:]]]
    naive_names = [search.folder.name for search in naive]
    of_rounds = [found for found in searches if found["search"] not in naive_names]
    draw_rounds(of_rounds).savefig(folder / "rounds.png")
    leaks = {found["search"]: found["leak"] for found in searches if found["search"] in naive_names}
    leaks["iterated"] = pooled_leak(of_rounds)
    draw_leak(leaks).savefig(folder / "leak.png")
    clock("looking back")
    scores = {"naive": held_out_score(naive[0], s), "iterated": held_out_score(rounds[-1], s)}
    # report.json is solutions.evaluate's
    write_json(folder / "rounds.json", report_of(store, searches, scores, leaks, s))
    for name, r in scores.items():
        print(f"{name}: {r['mean']} ± {r['sd']} over {r['episodes']} held-out tracks, "
              f"95 % interval of the mean {r['low']} to {r['high']}")
    clock("score")
    hand_over(folder, rounds[-1], store, s)
    clock("films")
    print(f"report, films and weights are in {folder}; {store.n_frames:,} real frames were seen")


def report_of(store: RolloutStore, searches: list[dict], scores: dict[str, dict], leaks: dict[str, dict],
              s: DreamRunSettings) -> dict:
    """What rounds.json holds."""
    correlations = {name: {t: ranked(found["dream"][t], found["real"]) for t in LEAK_TEMPERATURES}
                    for name, found in leaks.items()}
    return {"environment": s.spec.env_id, "versions": {name: version(name)
                                                       for name in ("gymnasium", "torch")},
            "revision": revision(), "command": typed_command(),
            "seeds": [HELD_OUT[0], HELD_OUT[s.evaluate.episodes - 1]], "max_steps": s.evaluate.max_steps,
            "real_frames": store.n_frames, "naive": scores["naive"], "iterated": scores["iterated"],
            "iterated_is_better": bool(scores["iterated"]["low"] > scores["naive"]["high"]),
            "searches": searches,
            "rank_correlation": correlations}


def cached_returns(path: Path, measure: Callable[[], np.ndarray]) -> np.ndarray:
    """The returns in a file, measured now if it is not there: any shape."""
    if not path.exists(): save_tensors(path, {"returns": torch.from_numpy(measure())})
    return load_tensors(path)[0]["returns"].numpy()


def score_checkpoints(search: Round, store: RolloutStore, s: DreamRunSettings) -> dict:
    """After all training: what a search's checkpoints are worth in its dreams and in reality, on
    validation tracks."""
    world, latents = search.world, search.latents
    tracks = VALIDATION[2000:2000 + s.iterate.leak_tracks]

    def measure() -> np.ndarray:
        return RealFitness(world, s.controller, s.evaluate.max_steps, s.evolve.patience)(search.checkpoints,
                                                                                         tracks)

    real = cached_returns(search.folder / "real.safetensors", measure)
    found = leak(world, initial_states_of(latents, s), s.controller, search.checkpoints, real, s.dream,
                 LEAK_TEMPERATURES, s.iterate.dreams)
    dreamt = {t: returns.round(2).tolist() for t, returns in found["dream"].items()}
    return {"search": search.folder.name,
            "real_frames": int(store.lengths[:len(latents)].sum()) + len(latents),
            "real": summary(real[-1]), "leak": {"real": found["real"].round(1).tolist(), "dream": dreamt},
            "reward_correlation": reward_correlation(search, store, s)}


def reward_correlation(search: Round, store: RolloutStore, s: DreamRunSettings) -> float | None:
    """Rank correlation of what M's reward head expects of a second of held-out driving with what it paid;
    None without one."""
    if not s.m.reward: return None
    held_out = store.split()[1]
    episodes = held_out[held_out < len(search.latents)]
    expected, paid = predicted_rewards(search.world.dynamics, search.latents, episodes,
                                       max(1, 50 // s.m.action_repeat))
    return round(rank_correlation(expected, paid), 3)


def pooled_leak(rounds: list[dict]) -> dict:
    """The leak of all rounds as one, each search in the dreams it was made in."""
    def pooled(curves: list) -> np.ndarray: return np.concatenate(curves)
    leaks = [found["leak"] for found in rounds]
    return {"real": pooled([x["real"] for x in leaks]),
            "dream": {t: pooled([x["dream"][t] for x in leaks]) for t in LEAK_TEMPERATURES}}


def ranked(dreamt: np.ndarray, real: np.ndarray) -> dict:
    """Rank correlation of dreamt and real returns with its 95 % interval; None for what has no order."""
    low, high = rank_interval(dreamt, real)
    found = {"rho": rank_correlation(dreamt, real), "low": low, "high": high}
    return {name: None if np.isnan(x) else round(x, 2) for name, x in found.items()}


def draw_rounds(rounds: list[dict]) -> Figure:
    """Real return on validation tracks after each round, with the interval of its mean, against the real
    frames seen."""
    frames, real = [r["real_frames"] for r in rounds], [r["real"] for r in rounds]
    band = ([r["low"] for r in real], [r["high"] for r in real])
    return show.curves({"real": (frames, [r["mean"] for r in real])}, "real frames seen by M",
                       "real return (95 % interval)", band={"real": band})


def held_out_score(search: Round, s: DreamRunSettings) -> dict:
    """The official score of a search's result on the held-out tracks, measured once."""
    seeds = HELD_OUT[:s.evaluate.episodes]

    def measure() -> np.ndarray:
        return score(search.world, s.controller, search.checkpoints[-1], seeds, "official",
                     s.evaluate.max_steps)

    returns = cached_returns(search.folder / "held_out.safetensors", measure)
    return summary(returns) | {"returns": [round(float(x), 2) for x in returns]}


def hand_over(folder: Path, last: Round, store: RolloutStore, s: DreamRunSettings) -> None:
    """The last round's M, C and first frames beside V in the run's own folder, and two films."""
    starts, params = InitialStates.from_latents(last.latents), last.checkpoints[-1]
    save_tensors(folder / "starts.safetensors", {"mu": starts.mu, "logvar": starts.logvar})
    save_model(folder / "dynamics.safetensors", last.world.dynamics, game=s.game)
    save_controller(folder / "controller.safetensors", s.controller, params)
    film_episode(last.world, s.controller, params, HELD_OUT[0], folder / "drive.mp4", s.evaluate.max_steps)
    film_dream(last.world, store.episode(int(store.lengths.argmax())), folder / "dream.mp4")
