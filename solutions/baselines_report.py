"""Tables and figures of chapter 07's studies, from the results of their cells."""
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from worldmodels.baselines import paired, time_to_score
from worldmodels.tools.games import TAKE_COVER
from worldmodels.tools import show

from .settings import StudySettings

TARGETS = (500, 700, 850)  # returns, in the study of time


# Numbers and rows

def format_score(found: dict) -> str:
    """Mean, sd and interval of a score."""
    return f"{found['mean']:.0f} ± {found['sd']:.0f} ({found['low']:.0f} to {found['high']:.0f})"


def format_spread(values: list[float | None], digits: int) -> str:
    """Mean and range of a few trainings."""
    if None in values: return "–"
    mean, low, high = (f"{x:.{digits}f}" for x in (np.mean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def format_difference(rows: dict[str, dict], name: str, where: str) -> str:
    """Mean difference of a row from the first on the same seeds, and its interval; empty for the first."""
    first = next(iter(rows))
    if name == first: return ""
    mean, low, high = paired(rows[name][where]["returns"], rows[first][where]["returns"])
    return f"{mean:+.0f} ({low:+.0f} to {high:+.0f})"


def format_cost(curve: list[dict], key: str, target: float, scale: float, unit: str) -> str:
    """What it cost until a test of `curve` reached `target`; else the budget in which none did."""
    costs = [test[key] for test in curve]
    cost = time_to_score(costs, [test["mean"] for test in curve], target)
    return f"not in {costs[-1] / scale:,.0f}{unit}" if math.isinf(cost) else f"{cost / scale:,.0f}{unit}"


def table_row(*cells: str) -> str: return f"| {' | '.join(cells)} |\n"


def table_rule(columns: int) -> str: return f"|{'---|' * columns}\n"


# Whose data

def data_table(rows: dict[str, dict], s: StudySettings) -> str:
    """V's, M's and C's numbers for each way of collecting."""
    text = ("What V, M and C make of data that was collected in different ways. "
            f"V and M: {s.seeds} trainings, mean and range, measured on frames on the\n"
            f"road of {s.test_episodes} drives by chapter 00's rule; "
            f"all Ms in the latents of one V ({s.world}). C: one search, {s.evaluate.episodes} held-out\n"
            "official tracks, mean ± sd (95 % interval of the mean).\n\n")
    header = table_row("data", "frames", "on the road", "V: squared error a frame",
                       "M: NLL (nats a dimension)", "M: open-loop error (V's sd)", "C: return")
    lines = [table_row(name, f"{r['facts']['frames']:,}", f"{r['facts']['road']:.0%}",
                       format_spread([v["error"] for v in r["v"]], 1),
                       format_spread([m["nll"] for m in r["m"]], 3),
                       format_spread([m["open_loop"] for m in r["m"]], 2),
                       format_score(r["c"]["gymnasium"])) for name, r in rows.items()]
    return text + header + table_rule(7) + "".join(lines)


def data_figure(rows: dict[str, dict]) -> Figure:
    """A panel for each measure, with a place for each way of collecting."""
    fig = Figure(figsize=(11, 3.2), layout="constrained")
    axes = fig.subplots(1, 4)
    panels = [("V: squared error a frame", "v", "error"), ("M: NLL (nats a dimension)", "m", "nll"),
              ("M: open-loop error (V's sd)", "m", "open_loop")]
    for ax, (label, model, measure) in zip(axes, panels):
        for k, r in enumerate(rows.values()):
            found = [x[measure] for x in r[model] if x[measure] is not None]
            ax.scatter([k] * len(found), found, s=22, color=show.COLORS["reconstruction"])
        ax.set(ylabel=label)
    for k, r in enumerate(rows.values()):
        found = r["c"]["gymnasium"]
        axes[3].plot([k, k], [found["low"], found["high"]], color=show.COLORS["reconstruction"], linewidth=2)
        axes[3].scatter([k], [found["mean"]], s=28, color=show.COLORS["reconstruction"], zorder=3)
    axes[3].set(ylabel="C: mean return, 95 % interval")
    for ax in axes:
        ax.set_xticks(range(len(rows)), list(rows), rotation=35)
        ax.set_xlim(-0.5, len(rows) - 0.5)
    return fig


# The controls, on the road and in Doom

def control_table(rows: dict[str, dict], s: StudySettings) -> str:
    """Returns on held-out tracks by what is left."""
    search = s.evolve
    text = (f"What is left when one part is taken away. Every search has {search.generations} generations of "
            f"{search.population} candidates × {search.episodes}\n"
            f"tracks and starts from zeros; V and M are those of {s.world}. "
            f"{s.evaluate.episodes} held-out tracks, mean ± sd (95 % interval of the mean).\n\n")
    header = table_row("C sees", "parameters", "return", "against z and h, on the same tracks")
    lines = [table_row(name, str(r.get("parameters", "")),
                       format_score(r["gymnasium"]),
                       format_difference(rows, name, "gymnasium")) for name, r in rows.items()]
    return text + header + table_rule(4) + "".join(lines)


def doom_table(rows: dict[str, dict], s: StudySettings) -> str:
    """Tics survived in held-out games by what is left."""
    search = s.doom_evolve
    tau = TAKE_COVER.dream["temperature"]
    text = (f"Doom's TakeCover, with C found in M's dreams alone (τ = {tau:g}); "
            f"what is left when one part is taken away. Every search has {search.generations} generations\n"
            f"of {search.population} candidates × {search.episodes} dreams and starts from zeros; "
            f"V and M are those of {s.doom}. {s.doom_evaluate.episodes} held-out games, tics survived,\n"
            "mean ± sd (95 % interval of the mean).\n\n")
    header = table_row("C sees", "parameters", "in the dream", "in the game",
                       "against z, c and h, on the same seeds")
    lines = [table_row(name, str(r.get("parameters", "")),
                       format_score(r["dream"]) if "dream" in r else "–",
                       format_score(r["game"]),
                       format_difference(rows, name, "game")) for name, r in rows.items()]
    return text + header + table_rule(5) + "".join(lines)


def points_figure(rows: dict[str, dict], where: str, label: str) -> Figure:
    """A row of points for each player, one a held-out seed, with the mean and its interval."""
    fig = Figure(figsize=(8, 0.45 * len(rows) + 1), layout="constrained")
    ax = fig.subplots()
    blue, faint = show.COLORS["reconstruction"], show.COLORS["baseline"]
    for k, r in enumerate(rows.values()):
        found = r[where]
        returns = found["returns"]
        ax.scatter(returns, np.full(len(returns), k), s=6, color=faint, alpha=0.5, linewidths=0)
        ax.plot([found["low"], found["high"]], [k, k], color=blue, linewidth=3)
        ax.scatter([found["mean"]], [k], s=30, color=blue, zorder=3)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.invert_yaxis()
    ax.set(xlabel=f"{label}; blue: the mean and its 95 % interval")
    return fig


def control_figure(rows: dict[str, dict]) -> Figure:
    return points_figure(rows, "gymnasium", "return on a held-out official track")


def doom_figure(rows: dict[str, dict]) -> Figure:
    return points_figure(rows, "game", "tics survived in a held-out game")


# Time to a score

def time_table(curves: dict[str, list[dict]], s: StudySettings) -> str:
    """Frames and minutes until each target."""
    text = ("Frames of the environment and minutes until a test on validation tracks "
            f"({s.evolve.validate_episodes} for V, M and C) first reached a mean return, in one run each. "
            "The recordings, V\n"
            "and M are counted; the frames of tests are not, and their minutes for V, M and C alone. "
            "\"not in\" gives the budget that did not do.\n\n")
    header = "| " + table_row(*(f"to {target}" for target in TARGETS), "last test")
    lines = ""
    for name, curve in curves.items():
        frames = [format_cost(curve, "frames", target, 1000, "k") for target in TARGETS]
        minutes = [format_cost(curve, "seconds", target, 60, " min") for target in TARGETS]
        costs = [f"{f} · {m}" for f, m in zip(frames, minutes)]
        lines += table_row(name, *costs, f"{curve[-1]['mean']:.0f}")
    return text + header + table_rule(len(TARGETS) + 2) + lines


def time_figure(curves: dict[str, list[dict]]) -> Figure:
    """The tests against frames, and against minutes."""
    fig = Figure(figsize=(10, 3.6), layout="constrained")
    axes = fig.subplots(1, 2, sharey=True)
    colours = [show.COLORS["reconstruction"], show.COLORS["dream"], show.OTHER_COLORS[0]]
    panels = [("frames", 1000, "frames of the environment (thousands)"),
              ("seconds", 60, "time on this machine (minutes)")]
    for ax, (key, scale, label) in zip(axes, panels):
        for (name, curve), colour in zip(curves.items(), colours):
            costs = [test[key] / scale for test in curve]
            means = [test["mean"] for test in curve]
            ax.plot(costs, means, color=colour, marker="o", markersize=3, label=name)
        for target in TARGETS: ax.axhline(target, color=show.FAINT, linewidth=1)
        ax.set(xlabel=label)
    axes[0].set(ylabel="mean return on validation tracks")
    axes[0].legend()
    return fig


def write_study(folder: Path, name: str, table: str, figure: Figure) -> None:
    """`name`.md and `name`.png in `folder`."""
    (folder / f"{name}.md").write_text(table, encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=show.DPI)
