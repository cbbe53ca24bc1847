"""What a comparison of the Ms tells: its report, the table of it, and the figure. Nothing is trained here."""
import shlex
import sys
from importlib.metadata import version

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodels.tools.show import COLORS, OTHER_COLORS

from .evaluate import revision
from .measures import explained_variance, interval
from .settings import CompareSettings

NAMES = {"dynamics": "LSTM", "transformer": "TransformerMDN", "trade": "TraDE",
         "vit_wm": "ViT-WM, dynamics mode", "joint": "ViT-WM, joint"}
ROW_COLORS = dict(zip(NAMES, [*OTHER_COLORS, COLORS["held-out"]]))
STEPS_PER_SECOND = 50


# The report

def stacked(trainings: list[dict], name: str) -> np.ndarray:
    """A measure by episode of all trainings of a row: (seeds, episodes)."""
    return np.array([training[name] for training in trainings])


def stacked_at(trainings: list[dict], name: str, step: int) -> np.ndarray:
    """A measure by episode and step of dreaming, after `step` steps: (seeds, episodes)."""
    return np.array([[errors[step - 1] for errors in training[name]] for training in trainings])


def by_horizon(trainings: list[dict], name: str, horizons: list[int]) -> dict:
    """Means and intervals of a measure by episode and step, after each of `horizons` steps."""
    return {str(h): interval(stacked_at(trainings, name, h)) for h in horizons}


def learned(trainings: list[dict]) -> dict:
    """What all trainings of a row found of its reward and done."""
    errors = [training["reward_errors"] for training in trainings]
    spreads = [training["reward_spreads"] for training in trainings]
    aucs = [training["done_auc"] for training in trainings]
    accuracies = [training["done_accuracy"] for training in trainings]
    return {"reward": explained_variance(errors, spreads),
            "done_auc": None if aucs[0] is None else float(np.mean(aucs)),
            "done_accuracy": float(np.mean(accuracies)), "ends": trainings[0]["ends"]}


def dream_errors(trainings: list[dict], lstm: list[dict], name: str, horizons: list[int]) -> dict:
    """Errors of a row's dreams in "latent" or "pixels", and what they are above the LSTM's: by horizon."""
    errors = {}
    differences = {}
    for h in horizons:
        mine = stacked_at(trainings, name, h)
        errors[str(h)] = interval(mine)
        differences[str(h)] = interval(mine, stacked_at(lstm, name, h))
    return {name: errors, f"{name}_minus_lstm": differences}


def incomparable(name: str, horizons: list[int]) -> dict:
    """In place of `dream_errors` for a row whose z is its own."""
    nothing = {str(h): None for h in horizons}
    return {name: nothing, f"{name}_minus_lstm": nothing}


def report_line(trainings: list[dict], lstm: list[dict], car: dict, horizons: list[int]) -> dict:
    """One line of the report from all trainings of a row, those of the LSTM, and the score of its C."""
    first = trainings[0]
    joint = first["row"] == "joint"
    nll = stacked(trainings, "nll")
    line = {"name": NAMES[first["row"]], "parameters": first["parameters"], "updates": first["updates"],
            "seeds": len(trainings), "seconds": [training["seconds"] for training in trainings],
            "training_steps_per_s": first["training_steps_per_s"],
            "dream_steps_per_s": int(np.median([training["dream_steps_per_s"] for training in trainings])),
            "nll": None if joint else interval(nll),
            "nll_minus_lstm": None if joint else interval(nll, stacked(lstm, "nll")),
            "pit": np.mean([training["pit"] for training in trainings], 0).tolist(), "curve": first["curve"],
            **learned(trainings), "car": car}
    if joint:
        line["reconstruction"] = by_horizon(trainings, "reconstruction", horizons)
        line |= incomparable("latent", horizons)
    else: line |= dream_errors(trainings, lstm, "latent", horizons)
    return line | dream_errors(trainings, lstm, "pixels", horizons)


def baseline_levels(baseline: dict, horizons: list[int]) -> dict:
    """Means and intervals of what the Ms are measured against."""
    levels = {name: interval([baseline[name]]) for name in ("repeat", "linear", "noise")}
    for name in ("latent", "pixels", "reconstruction"): levels[name] = by_horizon([baseline], name, horizons)
    return levels


def make_report(s: CompareSettings, train_episodes: int, episodes: int, trainings: dict[str, list[dict]],
                baseline: dict, cars: dict[str, dict]) -> dict:
    """The report from all rows: `trainings` and `cars` by row, the first being the LSTM's."""
    horizons = sorted({max(1, s.horizon // 10), max(1, s.horizon // 2), s.horizon})
    lstm = trainings["dynamics"]
    lines = {row: report_line(found, lstm, cars[row], horizons) for row, found in trainings.items()}
    return {"command": shlex.join(["python", *sys.orig_argv[1:]]), "revision": revision(),
            "versions": {"torch": version("torch")}, "cores": torch.get_num_threads(),
            "source": s.source, "train_episodes": train_episodes, "episodes": episodes, "seeds": s.seeds,
            "seconds": s.seconds, "batch": s.fit.batch, "lr": s.fit.lr, "share": s.trade.density_share,
            "joint_seconds": s.joint_seconds, "worlds": s.worlds, "tracks": s.tracks,
            "generations": s.evolve.generations,
            "horizons": horizons, "baselines": baseline_levels(baseline, horizons), "rows": lines,
            "claims": claims(lines, horizons[-1])}


# What the intervals support

def verdict(difference: dict, better: str, worse: str) -> str:
    """What an interval of a difference says, and nothing that it does not."""
    if difference["high"] < 0: return better
    if difference["low"] > 0: return worse
    return "no difference that these intervals show"


def signed(difference: dict, digits: int) -> str:
    """A difference with its interval, each number with its sign."""
    mean, low, high = (f"{difference[key]:+.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def prediction_claims(line: dict, horizon: int) -> list[str]:
    """What a row's NLL and dreams are against the LSTM's, where they can be compared."""
    said = []
    if nll := line["nll_minus_lstm"]:
        said.append(f"{line['name']}: NLL {signed(nll, 4)} nats a dimension against the LSTM: "
                    f"{verdict(nll, 'better', 'worse')}.")
    for name, unit in (("latent", "V's sd"), ("pixels", "grey levels")):
        if error := line[f"{name}_minus_lstm"][str(horizon)]:
            said.append(f"{line['name']}: open-loop error after {horizon} steps {signed(error, 2)} {unit}: "
                        f"{verdict(error, 'smaller', 'larger')}.")
    return said


def car_claim(line: dict, lstm: dict) -> str:
    """How a row's C drove against the LSTM's."""
    difference = interval([line["car"]["returns"]], [lstm["car"]["returns"]])
    lost = {"low": -difference["high"], "high": -difference["low"]}  # of a return, more is better
    return (f"{line['name']}: its one C, from one search, drove {signed(difference, 0)} against the LSTM's "
            f"on the same tracks: {verdict(lost, 'better', 'worse')}.")


def claims(lines: dict[str, dict], horizon: int) -> list[str]:
    """What the intervals of the differences from the LSTM support, one sentence a row and measure."""
    lstm, *others = lines.values()
    said = []
    for line in others: said += prediction_claims(line, horizon)
    said += [car_claim(line, lstm) for line in others]
    said.append("One search a row says little about an M: another search with the same M gives another C.")
    return said


# The table

def cell(x: dict | None, digits: int = 3) -> str:
    """A number with its interval, for the table."""
    if x is None: return "not comparable"
    mean, low, high = (f"{x[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def in_bits(nats: dict | None) -> dict | None:
    """An interval in nats as one in bits."""
    return nats and {key: value / np.log(2) for key, value in nats.items()}


def prediction_cells(line: dict, lstm: dict, horizons: list[int]) -> dict[str, str]:
    """A row of the first table, of what an M predicts: its cells by column."""
    cells = {"NLL, nats a dimension": cell(line["nll"]), "bits a dimension": cell(in_bits(line["nll"])),
             "NLL against the LSTM's": "—" if line is lstm else cell(line["nll_minus_lstm"], 4)}
    for h in horizons: cells[f"error of z after {h} steps, V's sd"] = cell(line["latent"][str(h)], 2)
    for h in horizons: cells[f"of the picture after {h}, grey levels"] = cell(line["pixels"][str(h)], 1)
    cells["PIT, mean distance from 1"] = f"{np.abs(np.array(line['pit']) - 1).mean():.3f}"
    cells["reward, variance explained"] = cell(line["reward"], 2)
    auc = line["done_auc"]
    cells[f"done, AUC ({lstm['ends']} ends)"] = "none in these episodes" if auc is None else f"{auc:.3f}"
    return cells


def cost_cells(line: dict, report: dict) -> dict[str, str]:
    """A row of the second table, of what an M costs and how its C drives: its cells by column."""
    car = line["car"]
    seconds = ["interrupted" if t is None else f"{t:.0f}" for t in line["seconds"]]
    return {"parameters": f"{line['parameters']:,}",
            "updates": f"{line['updates']:,}",
            "trained, s": ", ".join(seconds),
            "training, steps/s": f"{line['training_steps_per_s']:,}",
            f"dream of {report['worlds']}, steps/s": f"{line['dream_steps_per_s']:,}",
            f"C: return on {report['tracks']} tracks, mean ± sd": f"{car['mean']} ± {car['sd']}",
            "interval of the mean": f"{car['low']} to {car['high']}",
            f"C: minutes for {report['generations']} generations": f"{car['seconds'] / 60:.1f}"}


def markdown(rows: dict[str, dict[str, str]]) -> str:
    """A table from the cells of each M, by its name: all have the same columns."""
    columns = list(next(iter(rows.values())))
    lines = [f"| M | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    lines += [f"| {name} | {' | '.join(cells.values())} |" for name, cells in rows.items()]
    return "\n".join(lines)


def conditions(report: dict) -> str:
    """The paragraph above the tables: what all rows have in common."""
    return (f"All but the last row share one frozen V, the same {report['train_episodes']} training "
            f"and {report['episodes']} held-out episodes and {report['seconds']:g} s\n"
            f"of training, with {report['seeds']} seeds. "
            "In brackets: 95 % intervals, over seeds and episodes; the joint ViT-WM, which\n"
            "predicts a z of its own, was trained once, so its intervals are over episodes alone. "
            "Rewards, at least -10, are shared by the half second around\n"
            "them, for learning as for scoring. "
            f"Adam at batch {report['batch']} and a learning rate of {report['lr']:g} for all; "
            f"TraDE takes its NLL on {report['share']:g} of a batch's steps.")


def levels(report: dict) -> str:
    """The paragraph between the tables: what the baselines reach."""
    base = report["baselines"]
    nlls = ", ".join(f"{name} {base[name]['mean']:.3f}" for name in ("repeat", "linear", "noise"))
    pictures = []
    for h in map(str, report["horizons"]):
        reconstruction = base["reconstruction"][h]["mean"]
        last_kept = base["pixels"][h]["mean"]
        pictures.append(f"after {h} steps {reconstruction:.1f} for V's own reconstruction "
                        f"and {last_kept:.1f} for the last picture kept")
    joint = report["rows"]["joint"]["reconstruction"]
    own = ", ".join(f"after {h} steps {x['mean']:.1f}" for h, x in joint.items())
    return (f"NLL of the baselines, nats a dimension: {nlls} "
            "(repeat the last z; linear; V's own noise, below which none can come).\n"
            f"Error of the picture: {', '.join(pictures)}. The joint ViT-WM's own reconstruction: {own}.")


def table(report: dict) -> str:
    """The report, as it is or as its JSON holds it, in markdown."""
    lines = list(report["rows"].values())
    lstm = lines[0]
    made = (f"`{report['command']}` at revision {report['revision']}, torch {report['versions']['torch']}, "
            f"on {report['cores']} cores.")
    predictions = {line["name"]: prediction_cells(line, lstm, report["horizons"]) for line in lines}
    costs = {line["name"]: cost_cells(line, report) for line in lines}
    said = "\n".join(f"- {claim}" for claim in report["claims"])
    parts = [made, conditions(report), markdown(predictions), levels(report), markdown(costs), said]
    return "\n\n".join(parts) + "\n"


# The figure

def draw_interval(ax: Axes, y: int, x: dict, color: str) -> None:
    """A mean with its interval, at height y."""
    below = x["mean"] - x["low"]
    above = x["high"] - x["mean"]
    ax.errorbar(x["mean"], y, xerr=[[below], [above]], fmt="o", color=color, capsize=3)


def name_heights(ax: Axes, lines: list[dict]) -> None:
    """Write the Ms' names beside a panel that has one at each height, the first on top."""
    names = [line["name"].replace(", ", ",\n") for line in lines]
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))


def draw_nll(ax: Axes, rows: dict[str, dict]) -> None:
    """NLL above the LSTM's, of the rows where it is comparable."""
    comparable = {row: line for row, line in rows.items() if line["nll"]}
    for y, (row, line) in enumerate(comparable.items()):
        if row != "dynamics": draw_interval(ax, y, line["nll_minus_lstm"], ROW_COLORS[row])
    ax.axvline(0, color=ROW_COLORS["dynamics"])
    name_heights(ax, list(comparable.values()))
    ax.set(xlabel="held-out NLL, above the LSTM's (nats a dimension)")


def draw_cars(ax: Axes, rows: dict[str, dict]) -> None:
    """The return of each row's C."""
    for y, (row, line) in enumerate(rows.items()): draw_interval(ax, y, line["car"], ROW_COLORS[row])
    name_heights(ax, list(rows.values()))
    ax.set(xlabel="return of one C (mean and 95 % interval)")


def draw_learning(ax: Axes, rows: dict[str, dict]) -> None:
    """Training NLL against time, of the rows where it is comparable."""
    for row, line in rows.items():
        if row != "joint": ax.plot(line["curve"]["seconds"], line["curve"]["nll"], color=ROW_COLORS[row])
    ax.set(xlabel="training time (s)", ylabel="training NLL (nats a dimension)")


def draw_dreams(ax: Axes, seconds: np.ndarray, errors: dict[str, np.ndarray], last_kept: list) -> None:
    """Errors of dreams (episodes, horizon) by row, mean and quartiles, beside those of the last z kept."""
    for row, x in errors.items():
        low, high = np.percentile(x, [25, 75], 0)
        ax.fill_between(seconds, low, high, color=ROW_COLORS[row], alpha=0.06, linewidth=0)
        ax.plot(seconds, x.mean(0), color=ROW_COLORS[row], label=NAMES[row])
    ax.plot(seconds, np.mean(last_kept, 0), "--", color=COLORS["baseline"], label="last z kept")
    ax.set(xlabel="seconds after the eyes close")


def draw_calibration(ax: Axes, rows: dict[str, dict]) -> None:
    """The PIT histogram of each row."""
    for row, line in rows.items():
        edges = np.linspace(0, 1, len(line["pit"]) + 1)
        ax.stairs(line["pit"], edges, color=ROW_COLORS[row], baseline=None)
    ax.axhline(1, linestyle="--", color=COLORS["baseline"])
    ax.set(xlabel="P(Z ≤ z), as M has it", ylabel="share of z (1 is calibrated)", ylim=(0.9, 1.1))


def mean_errors(trainings: dict[str, list[dict]], name: str) -> dict[str, np.ndarray]:
    """The errors of each row's dreams, the mean over its trainings: (episodes, horizon)."""
    return {row: stacked(found, name).mean(0) for row, found in trainings.items()}


def draw(report: dict, trainings: dict[str, list[dict]], baseline: dict) -> Figure:
    """Six panels: NLL, the car, learning against time, dreams in z and in pixels, calibration."""
    fig = Figure(figsize=(13, 7.6), dpi=100, layout="constrained")
    nll, car, learning, latent, pixels, calibration = fig.subplots(2, 3).flat
    draw_nll(nll, report["rows"])
    draw_cars(car, report["rows"])
    draw_learning(learning, report["rows"])
    draw_calibration(calibration, report["rows"])

    horizon = len(baseline["latent"][0])
    seconds = np.arange(1, horizon + 1) / STEPS_PER_SECOND
    frozen = {row: found for row, found in trainings.items() if row != "joint"}
    draw_dreams(latent, seconds, mean_errors(frozen, "latent"), baseline["latent"])
    latent.set(ylabel="error of z (V's sd)")
    draw_dreams(pixels, seconds, mean_errors(trainings, "pixels"), baseline["pixels"])
    pixels.plot(seconds, np.mean(baseline["reconstruction"], 0), ":", color=COLORS["reconstruction"],
                label="V's reconstruction")
    pixels.set(ylabel="error (grey levels of 255)")

    handles, labels = pixels.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=9, frameon=False)
    for ax in fig.axes: ax.spines[["top", "right"]].set_visible(False)
    return fig
