"""What a run of Doom tells in the end: the temperature table, figures, films, and what data/ ships."""
import json
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodels.controller_files import load_controller, save_controller
from worldmodels.doom import dream_to_the_end, reliability, survived
from worldmodels.dream import DreamSettings, InitialStates, sample_done
from worldmodels.films import film_clips, play_episode
from worldmodels.rollouts import HELD_OUT
from worldmodels.tools import show
from worldmodels.tools.settings import write_json
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import WorldModel
from worldmodels.tools.encoding import decode_frames, encode_frames

from .evaluate import revision, typed_command
from .publish import write_sample

# τ: dream and game, each mean and sd
PAPER = {0.1: ((2086, 140), (193, 58)), 0.5: ((2060, 277), (196, 50)), 1.0: ((1145, 690), (868, 511)),
         1.15: ((918, 546), (1092, 556)), 1.3: ((732, 269), (753, 139))}

BLIND = {"fresh": "random, fresh action", "held": "random, held action",
         "runner": "to and fro, 100 tics each"}

WHERE = {"dream": "dream", "real": "game"}  # colour of a world in figures: its name in a score


# Where the cells of the table are

@dataclass(frozen=True)
class Cell:
    """What tells one cell from another; `done` is the rule by which its dreams end, where it is not that
    of `dream`."""

    tau: float
    seed: int
    model: str = "MDNRNN"
    done: str = ""

    @property
    def name(self) -> str: return f"tau-{self.tau:g}" + (f"-{self.done}" if self.done else "")


def all_cells(s) -> list[Cell]:
    """Every cell of the table of `s` (DoomSettings), the most important one first."""
    def order(cell: Cell) -> tuple: return cell.tau != s.dream.temperature, s.seeds.index(cell.seed), cell.tau

    first = s.seeds[0]
    cells = sorted((Cell(tau, seed) for seed in s.seeds for tau in s.temperatures), key=order)
    cells += [Cell(s.dream.temperature, first, name) for name in s.models]
    if s.dream.done != "threshold": cells += [Cell(tau, first, done="threshold") for tau in s.cheats]
    return cells


def folder_of(run: Path, s, seed: int, name: str = "MDNRNN") -> Path:
    """Where the last round's V and M of a training seed are; another class of M has a folder of its own."""
    last_round = f"-round-{s.iterations}" if s.iterations else ""
    return run / (f"seed-{seed}{last_round}" + ("" if name == "MDNRNN" else f"-{name}"))


def score_of(run: Path, s, cell: Cell) -> Path:
    """The file with the scores of a cell."""
    return folder_of(run, s, cell.seed, cell.model) / cell.name / "score.json"


# The report

def report(run: Path, blind: dict, s) -> None:
    """table.md, table.png and report.json from every cell that has a score by now."""
    show.use_style()
    found = []
    for path in (score_of(run, s, cell) for cell in all_cells(s)):
        if not path.exists(): continue
        generations = len(read_lines(path.with_name("evolution.jsonl")))
        found.append(json.loads(path.read_text()) | {"generations": generations})
    (run / "table.md").write_text(table(found, blind, s))
    draw_table(found, blind, s).savefig(run / "table.png")
    write_json(run / "report.json", {
        "environment": s.spec.env_id, "versions": {name: version(name) for name in ("vizdoom", "torch")},
        "revision": revision(), "command": typed_command(),
        "seeds": [HELD_OUT[0], HELD_OUT[s.evaluate.episodes - 1]], "max_steps": s.evaluate.max_steps,
        "random": blind,
        "cells": found,
        "m": {path.parent.name: json.loads(path.read_text()) for path in sorted(run.glob("*/m.json"))}})


def mean_sd(score: dict | None) -> str:
    """A score as the table shows it."""
    return f"{score['mean']:.0f} ± {score['sd']:.0f}" if score else "not run"


def both(cell: dict | None) -> str:
    """A cell's scores in dream and game, as two columns."""
    return f"{mean_sd(cell and cell['dream'])} | {mean_sd(cell and cell['game'])}"


def table(found: list[dict], blind: dict, s) -> str:
    """The paper's temperature table beside this run's, in Markdown; a cell that was not run says so."""
    def look_up(**facts) -> dict | None:
        return next((c for c in found if all(c[key] == value for key, value in facts.items())), None)

    columns = 2 * len(s.seeds)  # of this run
    head = "".join(f" dream, seed {seed} | game, seed {seed} |" for seed in s.seeds)
    lines = [f"| τ |{head} paper: dream | paper: game |", "|" + "---|" * (columns + 3)]
    for tau in sorted(s.temperatures):
        mine = [both(look_up(tau=tau, seed=seed, model="MDNRNN", done=s.dream.done)) for seed in s.seeds]
        theirs = [f"{mean} ± {sd}" for mean, sd in PAPER[tau]] if tau in PAPER else ["", ""]
        lines.append(f"| {tau:g} | {' | '.join(mine)} | {' | '.join(theirs)} |")
    others = {f"{s.dream.temperature:g}, {name}": look_up(model=name) for name in s.models}
    others |= {f"{c.tau:g}, dreams end by {c.done}": look_up(tau=c.tau, done=c.done) for c in all_cells(s)
               if c.done}
    lines += [f"| {label} | {both(cell)} |" + " |" * columns for label, cell in others.items()]
    for name, r in blind.items():
        paper = " 210 ± 108 |" if name == "fresh" else " |"
        lines.append(f"| {BLIND[name]} | | {mean_sd(r)} |" + " |" * (columns - 1) + paper)
    return "\n".join(lines) + conditions(found, s)


def conditions(found: list[dict], s) -> str:
    """What the table's numbers are, below it."""
    made = sorted({c["generations"] for c in found})
    generations = " to ".join(map(str, made[::max(1, len(made) - 1)]))
    limit = f", ended after the first one past {s.evolve.minutes:g} minutes" if s.evolve.minutes else ""
    return (f"\n\nMean ± sd of {s.evaluate.episodes} episodes, in tics, cut at {s.evaluate.max_steps:,}; "
            "games on seeds "
            f"{HELD_OUT[0]} and up. One search a cell, of {generations} generations{limit}.\n")


def draw_table(found: list[dict], blind: dict, s) -> Figure:
    """Dream and game against temperature, with the 95 % interval of the mean; the paper's numbers beside
    them."""
    def usual(cell: dict) -> bool: return cell["model"] == "MDNRNN" and cell["done"] == s.dream.done

    paper = {f"paper, {where}": ([*PAPER], [p[k][0] for p in PAPER.values()]) for k,
             where in enumerate(WHERE.values())}
    fig = show.curves(paper, "temperature τ", "survived (tics; bars: 95 % of the mean)",
                      hline={BLIND["fresh"]: blind["fresh"]["mean"]})
    ax = fig.axes[0]
    for line, color in zip(ax.lines, WHERE):
        line.set(color=show.COLORS[color], linestyle=(0, (2, 2)), alpha=0.6)
    for k, seed in enumerate(sorted({c["seed"] for c in found if usual(c)})):
        cells = sorted((c for c in found if usual(c) and c["seed"] == seed), key=lambda c: c["tau"])
        draw_cells(ax, cells, f"seed {seed}", "o-", 0.6**k)
    for cell, marker in zip((c for c in found if not usual(c)), "s^DvPX"):
        label = cell["model"] if cell["model"] != "MDNRNN" else f"by {cell['done']}"
        draw_cells(ax, [cell], label, marker)
    fig.set_size_inches(7.2, 4.4)
    ax.legend(fontsize=7, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return fig


def draw_cells(ax: Axes, cells: list[dict], label: str, style: str, alpha: float = 1.0) -> None:
    """Dream and game of some cells against their temperature, with intervals."""
    x = [c["tau"] for c in cells]
    for color, where in WHERE.items():
        scores = [c[where] for c in cells]
        error = [[r["mean"] - r["low"] for r in scores], [r["high"] - r["mean"] for r in scores]]
        ax.errorbar(x, [r["mean"] for r in scores], error, fmt=style, color=show.COLORS[color], capsize=3,
                    alpha=alpha,
                    label=f"{where}, {label}")


# What M says about death

def gain(p: torch.Tensor, died: torch.Tensor) -> float:
    """How much better the probabilities p (n,) tell deaths than their rate, said at every step: nats a
    death."""
    rate = died.double().mean()
    p = p.double().clamp(1e-9, 1 - 1e-9)

    def loss(q: torch.Tensor) -> torch.Tensor: return -torch.where(died, q.log(), (1 - q).log()).mean()

    return round(float((loss(rate.expand(p.shape)) - loss(p)) / rate), 3)


def reliability_curve(p: torch.Tensor, died: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What was said and the share that died, in those groups in which somebody did."""
    said, share, _ = reliability(p.clamp(min=1e-6), died, np.geomspace(1e-6, 1, 13))
    return said[share > 0], share[share > 0]


def draw_reliability(said: dict[str, torch.Tensor], died: torch.Tensor) -> Figure:
    """Share that died against the probability that M gave, one curve for each of `said`."""
    curves = {"honest": ([1e-4, 1], [1e-4, 1])} | {name: reliability_curve(p, died) for name,
                                                   p in said.items()}
    fig = show.curves(curves, "M says: dies at this step (probability)", "share that died", log=True)
    fig.axes[0].set(xscale="log")
    return fig


# Films

def films(run: Path, world: WorldModel, s) -> None:
    """Films of the first training seed's player, and of its player in the coldest dream, the cheat."""
    cells = [cell for cell in all_cells(s) if cell.seed == s.seeds[0] and cell.model == "MDNRNN"]
    coldest = min(cells, key=lambda cell: (not cell.done, cell.tau))  # by threshold, where there is one
    film_cell(run, world, s, cells[0], "player")
    if coldest != cells[0]: film_cell(run, world, s, coldest, "cheat")


def lives(logits: torch.Tensor, dream: DreamSettings) -> torch.Tensor:
    """Steps that n players live, (n,), whose done logits are (steps, n), by the rule of `dream`."""
    rng = torch.Generator().manual_seed(0)
    return survived(sample_done(logits, dream, lambda: torch.rand(logits.shape, generator=rng)))


def film_cell(run: Path, world: WorldModel, s, cell: Cell, name: str, tics: int = 1050) -> None:
    """NAME-tau-τ-game.mp4, -dream.mp4 and -both.mp4 in `run`, if the cell has a score.

    The game beside what V sees, the dream, and both from one first frame.
    """
    name = f"{name}-tau-{cell.tau:g}"
    folder = folder_of(run, s, cell.seed) / cell.name
    if (run / f"{name}-both.mp4").exists() or not score_of(run, s, cell).exists(): return
    settings, params = load_controller(folder / "controller.safetensors")
    tics, repeat = min(tics, s.evaluate.max_steps), world.dynamics.action_repeat
    screens, game = play_episode(world, settings, params, HELD_OUT[0], tics)
    mu, logvar = map(torch.from_numpy, encode_frames(world.vision, game.frames))
    dreaming = replace(s.dream, temperature=cell.tau, done=cell.done or s.dream.done,
                       max_steps=tics // repeat)
    z, logits = dream_to_the_end(world, settings, params, InitialStates(mu[:1], logvar[:1]), dreaming,
                                 [HELD_OUT[0]])
    dream = decode_frames(world.vision, z[:int(lives(logits, dreaming)[0]) + 1, 0]).repeat(repeat, 0)
    title = f"dream, τ = {cell.tau:g}"
    film_clips(run / f"{name}-game.mp4", {"the game": screens,
                                          "what V sees": decode_frames(world.vision, mu)})
    film_clips(run / f"{name}-dream.mp4", {f"a {title}": dream})
    film_clips(run / f"{name}-both.mp4", {"the game": screens, f"the {title}": dream})


# What data/ ships

def ship(run: Path, folder: Path, world: WorldModel, s, to: Path, megabytes: float = 3.0) -> None:
    """Half-precision weights, a sample of the games and a card, from the first training seed, in `to`."""
    found = folder / f"tau-{s.dream.temperature:g}"
    if not (found / "score.json").exists():
        raise ValueError(f"{folder} has no score at τ = {s.dream.temperature:g} yet: nothing to publish")
    fresh = to.with_name(to.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    store = RolloutStore(folder / "store" if (folder / "store").exists() else run / "store")
    sample = small_sample(store, fresh / "sample", megabytes)
    world.save(fresh, half=True)
    save_controller(fresh / "controller.safetensors", *load_controller(found / "controller.safetensors"))
    for name in ("report.json", "table.png"): shutil.copy(run / name, fresh / name)
    if (folder / "reliability.png").exists(): shutil.copy(folder / "reliability.png", fresh)
    (fresh / "CARD.md").write_text(card(run, fresh, store, sample, s.dream.temperature))
    shutil.rmtree(to, ignore_errors=True)
    fresh.rename(to)


def small_sample(store: RolloutStore, path: Path, megabytes: float) -> RolloutStore:
    """A sample of at most so many megabytes: fewer episodes, then shorter ones.

    ValueError where none is small enough.
    """
    episodes, steps = 3, 200
    while (sample := write_sample(store, path, episodes, steps)).nbytes > megabytes * 1e6:
        shutil.rmtree(path)
        if episodes > 1: episodes -= 1
        elif steps > 50: steps //= 2
        else:
            raise ValueError(f"even {steps} steps of one episode of each kind take more than {megabytes} MB")
    return sample


RELIABILITY = """
*What M says about death, and the share that died, on held-out episodes of the first training seed; an
honest M lies on the diagonal.*

![Share of steps that ended in death against the probability that M gave, as trained and calibrated on the
other half.](reliability.png)
"""


def card(run: Path, to: Path, store: RolloutStore, sample: RolloutStore, tau: float) -> str:
    """What a reader of the weights wants to know."""
    minutes = {}
    for line in read_lines(run / "stages.jsonl"):
        minutes[line["stage"]] = minutes.get(line["stage"], 0) + line["seconds"] / 60
    times = ", ".join(f"{name} {m:.1f}" for name, m in minutes.items() if m >= 0.05)
    typed = json.loads((run / "report.json").read_text())["command"]
    return f"""# Doom, TakeCover: weights and a sample

`vision`, `dynamics` and `controller` are V, M and C of one run, in half precision; C was found at
τ = {tau:g}, in the dream alone. `sample` holds {len(sample)} of its {len(store)} episodes
({sample.n_frames:,} frames, {sample.nbytes / 1e6:.1f} MB), cut.

`{typed}` at revision {revision()}. VizDoom {version("vizdoom")}, torch {version("torch")}.

{(run / "table.md").read_text()}
## Figures and times

![Tics survived in the dream and in the game against the dream's temperature, the paper's numbers dashed
beside them.](table.png)
{RELIABILITY if (to / "reliability.png").exists() else ""}
Minutes: {times}.
"""
