"""The Ms side by side: one frozen V, the same episodes, about as many parameters, as much time to learn; the joint ViT-WM beside them.

python -m solutions.compare --settings laptop --run runs/compare
"""
import hashlib, json, shlex, shutil, sys, time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from solutions.evaluate import revision
from solutions.measures import Segments, dream_rate, explained, interval, select, teacher_forced, used_parameters
from solutions.mdn_rnn import encode
from solutions.settings import M_FIELDS, CompareSettings, command
from solutions.transformer import smoothed_rewards
from worldmodels.controller import ControllerSettings, RealFitness, evolve, save_controller, score, summary
from worldmodels.latents import smooth_rewards
from worldmodels.mdn_rnn import dynamics_loss, held_out_nll, linear_nll, noise_nll, repeat_nll, train_dynamics, windows
from worldmodels.rollouts import HELD_OUT, choose_backend
from worldmodels.tools.settings import claim_run_folder, load, write_json
from worldmodels.tools.show import COLORS, OTHER_COLORS
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import FitSettings, fit, read_lines
from worldmodels.tools.world import Dynamics, Vision, WorldModel, load_model, load_tensors, registered, save_model
from worldmodels.transformer import ClipLoss, ViTWM, clips, train_vit_wm
from worldmodels.vae import Latents, encode_store

FROZEN = {field: cls for cls, field in M_FIELDS.items()}  # rows on the frozen V: the field of their settings, the class of M
NAMES = {"dynamics": "LSTM", "transformer": "TransformerMDN", "trade": "TraDE", "vit_wm": "ViT-WM, dynamics mode", "joint": "ViT-WM, joint"}
INK = dict(zip(NAMES, [*OTHER_COLORS, COLORS["held-out"]]))


@dataclass
class CompareData:
    """What all rows stand on."""

    vision: Vision
    store: RolloutStore
    latents: Latents
    train: np.ndarray
    names: np.ndarray  # the store's numbers of the held-out episodes
    held: Latents      # those alone


def open_source(source: Path) -> tuple[Vision, RolloutStore]:
    """V and the episodes of a run; a FileNotFoundError says how to make one."""
    for name in ("vision.safetensors", "store"):
        if not (source / name).exists():
            raise FileNotFoundError(f"{source} has no {name}: the comparison takes V and the episodes of a run. `python -m solutions.train "
                                    f"--settings laptop --run {source}` makes one; --source names another")
    return load_model(source / "vision.safetensors", Vision), RolloutStore(source / "store")


def ground(folder: Path, source: Path, vision: Vision, store: RolloutStore, s: CompareSettings) -> CompareData:
    """The source's episodes as latents, split; a ValueError where the source is not what the comparison began with."""
    facts = {"episodes": len(store), "frames": store.n_frames, "vision": hashlib.sha256((source / "vision.safetensors").read_bytes()).hexdigest()}
    known = folder / "source.json"
    if not known.exists(): write_json(known, facts)
    if (old := json.loads(known.read_text())) != facts:
        raise ValueError(f"{source} is not what {folder} began with ({old} then, {facts} now): take another --run, or --fresh")
    latents = smooth_rewards(encode(source if (source / "latents.safetensors").exists() else folder, vision, store))
    if len(latents) != len(store): raise ValueError(f"{source} has {len(store)} episodes and latents of {len(latents)}: is the run still going on?")
    train, names = store.split()
    names = names[:s.episodes]
    return CompareData(vision, store, latents, train, names, select(latents, names))


def once(path: Path, make: Callable[[], dict]) -> dict:
    """What is in a row's file, made if it is missing: a comparison that is killed goes on at the row where it was."""
    if not path.exists():
        print(f"{path.stem} …", flush=True)
        write_json(path, make())
    return json.loads(path.read_text())


def pace(model, batches: Callable, loss: Callable, training: FitSettings, seconds: float, warm: int = 5, timed: int = 15) -> dict:
    """How many updates fit into `seconds`, from the median of a few on a model that is thrown away.

    The number is fixed before training, so that the learning rate can fall to its end and the same row can be trained again.
    """
    at = []
    def watched(seed, step):
        for batch in batches(seed, step):
            at.append(time.perf_counter())
            yield batch
    fit(model, watched, loss, replace(training, steps=warm + timed + 1))
    each = float(np.median(np.diff(at[warm:])))
    return {"seconds_an_update": each, "steps": max(1, round(seconds / each))}


def make_m(s: CompareSettings, row: str) -> Dynamics: return registered(FROZEN[row])[0](getattr(s, row))


def train_frozen(folder: Path, s: CompareSettings, g: CompareData, row: str, seed: int, steps: int) -> Dynamics:
    """The M of a row on the frozen V, trained unless it is there."""
    here, training = folder / f"{row}-{seed}", replace(s.fit, steps=steps)
    here.mkdir(exist_ok=True)
    if not (here / "model.safetensors").exists():
        torch.manual_seed(seed)
        resumed, began = any(here.glob("*.checkpoint.safetensors")), time.time()
        model = train_dynamics(make_m(s, row), g.latents, g.train, s.window, training, here, seed)
        save_model(here / "model.safetensors", model, seconds=None if resumed else round(time.time() - began, 1))
    return load_model(here / "model.safetensors", Dynamics)


def took(path: Path) -> float | None:
    """The seconds a model was trained, None where it was interrupted."""
    return load_tensors(path)[1]["card"]["seconds"]


def curve(folder: Path, each: float) -> dict:
    """Training NLL against seconds, each point the mean of up to 5 logged ones."""
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "nll" in line]
    groups = [lines[k:k + 5] for k in range(0, len(lines), 5)]
    return {"seconds": [round(each * x[-1]["step"], 2) for x in groups], "nll": [round(float(np.mean([line["nll"] for line in x])), 4) for x in groups]}


def measure(model: Dynamics, world: WorldModel, held: Latents, places: Segments, s: CompareSettings) -> dict:
    """Everything about an M but its training and its car."""
    return {"nll": held_out_nll(model, held, range(len(held))).tolist(), "dream_steps_per_s": round(dream_rate(model, s.worlds)),
            **teacher_forced(model, held), **places.errors(world)}


def frozen_row(folder: Path, s: CompareSettings, g: CompareData, row: str, seed: int) -> dict:
    """One training of one M on the frozen V, and what it is worth."""
    batches = lambda seed, step: windows(g.latents, g.train, s.window, s.fit.batch, seed, step)
    paced = once(folder / "rows" / f"{row}.pace.json", lambda: pace(make_m(s, row), batches, dynamics_loss, s.fit, s.seconds))
    model = train_frozen(folder, s, g, row, seed, paced["steps"])
    here, each = folder / f"{row}-{seed}", paced["seconds_an_update"]
    places = Segments(g.store, g.held, g.names, s.context, s.horizon)
    return {"row": row, "seed": seed, "updates": paced["steps"], "seconds": took(here / "model.safetensors"),
            "parameters": used_parameters(make_m(s, row), next(batches(0, 0))), "training_steps_per_s": round(s.fit.batch * s.window / each),
            "curve": curve(here, each), **measure(model, WorldModel(g.vision, model), g.held, places, s)}


def joint_world(folder: Path, s: CompareSettings, g: CompareData) -> WorldModel:
    """The joint ViT-WM, trained unless it is there."""
    rewards = smoothed_rewards(g.store)
    here, batches = folder / "joint-0", lambda seed, step: clips(g.store, s.clip, s.joint_fit.batch, seed, step, g.train, rewards)
    here.mkdir(exist_ok=True)
    paced = once(folder / "rows" / "joint.pace.json", lambda: pace(ClipLoss(ViTWM(s.joint)), batches, lambda joint, batch: joint(batch),
                                                                   s.joint_fit, s.joint_seconds))
    if not (here / "dynamics.safetensors").exists():
        resumed, began = any(here.glob("*.checkpoint.safetensors")), time.time()
        model = train_vit_wm(g.store, s.joint, replace(s.joint_fit, steps=paced["steps"]), s.clip, here, 0, g.train, rewards=rewards)
        WorldModel(model, model).save(here, seconds=None if resumed else round(time.time() - began, 1))
    return WorldModel.load(here)


def joint_row(folder: Path, s: CompareSettings, g: CompareData) -> dict:
    """The joint ViT-WM. Its NLL and its error of z are in units of its own latent space: comparable with nobody's."""
    world, here = joint_world(folder, s, g), folder / "joint-0"
    paced = json.loads((folder / "rows" / "joint.pace.json").read_text())
    held, each = smooth_rewards(encode_store(world.vision, g.store, g.names)), paced["seconds_an_update"]
    places = Segments(g.store, held, g.names, s.context, s.horizon)
    return {"row": "joint", "seed": 0, "updates": paced["steps"], "seconds": took(here / "vision.safetensors"),
            "parameters": sum(p.numel() for p in world.vision.parameters()), "training_steps_per_s": round(s.joint_fit.batch * s.clip / each),
            "curve": curve(here, each), **measure(world.dynamics, world, held, places, s),
            "reconstruction": places.baselines(world)["reconstruction"]}


def baseline_row(s: CompareSettings, g: CompareData) -> dict:
    """What the Ms on the frozen V are measured against."""
    every = range(len(g.held))
    anyone = WorldModel(g.vision, make_m(s, "dynamics"))  # its dreams are not used
    return {"repeat": repeat_nll(g.latents, g.train, g.names).tolist(), "linear": linear_nll(g.latents, g.train, g.names).tolist(),
            "noise": noise_nll(g.held, every).tolist(), **Segments(g.store, g.held, g.names, s.context, s.horizon).baselines(anyone)}


def controller_row(folder: Path, s: CompareSettings, row: str, world: WorldModel) -> dict:
    """A C on the first training of an M, found from zeros in as many generations as all others, and scored on held-out tracks."""
    here, fitness = folder / f"{row}-0", RealFitness(world, ControllerSettings(), s.evolve.max_steps, s.evolve.patience)
    params, records = evolve(fitness, np.zeros(fitness.dimension), s.evolve, here)
    save_controller(here / "controller.safetensors", ControllerSettings(), params)
    returns = score(world, ControllerSettings(), params, HELD_OUT[:s.tracks], "fast", s.evolve.max_steps)
    return {"row": row, "parameters": fitness.dimension, "generations": len(records), "seconds": round(sum(r["seconds"] for r in records), 1),
            "environment": choose_backend("fast"), **summary(returns), "returns": [round(float(r), 1) for r in returns]}


def world_of(folder: Path, g: CompareData, row: str) -> WorldModel:
    if row == "joint": return WorldModel.load(folder / "joint-0")
    return WorldModel(g.vision, load_model(folder / f"{row}-0" / "model.safetensors", Dynamics))


# The report

def across(rows: list[dict], name: str, at: int | None = None) -> np.ndarray:
    """A measure of all trainings of a row, (seeds, episodes); of a curve over the horizon, what it is `at` so many steps."""
    return np.array([[x if at is None else x[at - 1] for x in row[name]] for row in rows])


def summed_up(rows: list[dict], lstm: list[dict], car: dict, horizons: list[int]) -> dict:
    """One line of the report from all trainings of a row."""
    first, joint = rows[0], rows[0]["row"] == "joint"
    found = {"name": NAMES[first["row"]], "parameters": first["parameters"], "updates": first["updates"], "seeds": len(rows),
             "seconds": [row["seconds"] for row in rows], "training_steps_per_s": first["training_steps_per_s"],
             "dream_steps_per_s": int(np.median([row["dream_steps_per_s"] for row in rows])),
             "nll": None if joint else interval(across(rows, "nll")),
             "nll_minus_lstm": None if joint else interval(across(rows, "nll"), across(lstm, "nll")),
             "pit": np.mean([row["pit"] for row in rows], 0).tolist(), "curve": first["curve"],
             "reward": explained(*([row[k] for row in rows] for k in ("reward_errors", "reward_spreads"))),
             "done_auc": None if first["done_auc"] is None else float(np.mean([row["done_auc"] for row in rows])),
             "done_accuracy": float(np.mean([row["done_accuracy"] for row in rows])), "ends": first["ends"], "car": car}
    if joint: found["reconstruction"] = {h: interval(across(rows, "reconstruction", h)) for h in horizons}
    for name in ("latent", "pixels"):
        hidden = joint and name == "latent"
        found[name] = {h: None if hidden else interval(across(rows, name, h)) for h in horizons}
        found[f"{name}_minus_lstm"] = {h: None if hidden else interval(across(rows, name, h), across(lstm, name, h)) for h in horizons}
    return found


def verdict(difference: dict, better: str, worse: str) -> str:
    """What an interval of a difference says, and nothing that it does not."""
    return better if difference["high"] < 0 else worse if difference["low"] > 0 else "no difference that these intervals show"


def claims(lines: dict[str, dict], horizons: list[int]) -> list[str]:
    """What the intervals of the differences from the LSTM support, one sentence a row and measure."""
    said = []
    difference = lambda d, digits: f"{d['mean']:+.{digits}f} ({d['low']:+.{digits}f} to {d['high']:+.{digits}f})"
    for line in list(lines.values())[1:]:
        if d := line["nll_minus_lstm"]: said.append(f"{line['name']}: NLL {difference(d, 4)} nats a dimension against the LSTM: {verdict(d, 'better', 'worse')}.")
        for name, unit in ("latent", "V's sd"), ("pixels", "grey levels"):
            if d := line[f"{name}_minus_lstm"][horizons[-1]]:
                said.append(f"{line['name']}: open-loop error after {horizons[-1]} steps {difference(d, 2)} {unit}: {verdict(d, 'smaller', 'larger')}.")
    lstm = next(iter(lines.values()))["car"]["returns"]
    for line in list(lines.values())[1:]:
        d = interval([line["car"]["returns"]], [lstm])
        said.append(f"{line['name']}: its one C, from one search, drove {difference(d, 0)} against the LSTM's on the same tracks: "
                    f"{verdict({'low': -d['high'], 'high': -d['low']}, 'better', 'worse')}.")
    said.append("One search a row says little about an M: another search with the same M gives another C.")
    return said


def cell(x: dict | None, digits: int = 3) -> str:
    """A number with its interval, for the table."""
    return "not comparable" if x is None else f"{x['mean']:.{digits}f} ({x['low']:.{digits}f} to {x['high']:.{digits}f})"


def bits(x: dict | None) -> dict | None: return x and {k: v / np.log(2) for k, v in x.items()}


def table(report: dict) -> str:
    """The report as markdown."""
    h, base, lines = report["horizons"], report["baselines"], list(report["rows"].values())
    def rows(columns: dict[str, Callable]) -> str:
        head = [f"| M | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
        return "\n".join(head + [f"| {line['name']} | {' | '.join(f(line) for f in columns.values())} |" for line in lines])
    knows = {"NLL, nats a dimension": lambda x: cell(x["nll"]), "bits a dimension": lambda x: cell(bits(x["nll"])),
             "NLL against the LSTM's": lambda x: "—" if x is lines[0] else cell(x["nll_minus_lstm"], 4),
             **{f"error of z after {k} steps, V's sd": lambda x, k=k: cell(x["latent"][k], 2) for k in h},
             **{f"of the picture after {k}, grey levels": lambda x, k=k: cell(x["pixels"][k], 1) for k in h},
             "PIT, mean distance from 1": lambda x: f"{np.abs(np.array(x['pit']) - 1).mean():.3f}",
             "reward, variance explained": lambda x: cell(x["reward"], 2),
             f"done, AUC ({lines[0]['ends']} ends)": lambda x: "none in these episodes" if x["done_auc"] is None else f"{x['done_auc']:.3f}"}
    costs = {"parameters": lambda x: f"{x['parameters']:,}", "updates": lambda x: f"{x['updates']:,}",
             "trained, s": lambda x: ", ".join("interrupted" if t is None else f"{t:.0f}" for t in x["seconds"]),
             "training, steps/s": lambda x: f"{x['training_steps_per_s']:,}", f"dream of {report['worlds']}, steps/s": lambda x: f"{x['dream_steps_per_s']:,}",
             f"C: return on {report['tracks']} tracks, mean ± sd": lambda x: f"{x['car']['mean']} ± {x['car']['sd']}",
             "interval of the mean": lambda x: f"{x['car']['low']} to {x['car']['high']}",
             f"C: minutes for {report['generations']} generations": lambda x: f"{x['car']['seconds'] / 60:.1f}"}
    levels = ", ".join(f"{name} {base[name]['mean']:.3f}" for name in ("repeat", "linear", "noise"))
    pictures = ", ".join(f"after {k} steps {base['reconstruction'][k]['mean']:.1f} for V's own reconstruction and {base['pixels'][k]['mean']:.1f} "
                         "for the last picture kept" for k in h)
    own = ", ".join(f"after {k} steps {x['mean']:.1f}" for k, x in report["rows"]["joint"]["reconstruction"].items())
    return f"""`{report['command']}` at revision {report['revision']}, torch {report['versions']['torch']}, on {report['cores']} cores.

All but the last row share one frozen V, the same {report['train_episodes']} training and {report['episodes']} held-out episodes and {report['seconds']:g} s
of training, with {report['seeds']} seeds. In brackets: 95 % intervals, over seeds and episodes; the joint ViT-WM, which
predicts a z of its own, was trained once, so its intervals are over episodes alone. Rewards, at least -10, are shared by the half second around
them, for learning as for scoring. Adam at batch {report['batch']} and a learning rate of {report['lr']:g} for all; TraDE takes its NLL on {report['share']:g} of a batch's steps.

{rows(knows)}

NLL of the baselines, nats a dimension: {levels} (repeat the last z; linear; V's own noise, below which none can come).
Error of the picture: {pictures}. The joint ViT-WM's own reconstruction: {own}.

{rows(costs)}

{chr(10).join("- " + claim for claim in report['claims'])}
"""


def draw(report: dict, raw: dict[str, list[dict]], baseline: dict) -> Figure:
    """Six panels: NLL, learning against time, dreams in z and in pixels, calibration, the car."""
    fig = Figure(figsize=(13, 7.6), dpi=100, layout="constrained")
    nll, car, learning, latent, pixels, pit = fig.subplots(2, 3).flat
    rows, seconds = report["rows"], np.arange(1, len(baseline["latent"][0]) + 1) / 50
    def point(ax, y, x, row): ax.errorbar(x["mean"], y, xerr=[[x["mean"] - x["low"]], [x["high"] - x["mean"]]], fmt="o", color=INK[row], capsize=3)
    for y, (row, line) in enumerate(rows.items()):
        if line["nll"] and y: point(nll, y, line["nll_minus_lstm"], row)
        point(car, y, line["car"], row)
        if row != "joint": learning.plot(line["curve"]["seconds"], line["curve"]["nll"], color=INK[row])
        pit.stairs(line["pit"], np.linspace(0, 1, len(line["pit"]) + 1), color=INK[row], baseline=None)
        for ax, name in (latent, "latent"), (pixels, "pixels"):
            if row == "joint" and name == "latent": continue
            x = np.mean([r[name] for r in raw[row]], 0)  # (episodes, horizon)
            ax.fill_between(seconds, *np.percentile(x, [25, 75], 0), color=INK[row], alpha=0.06, linewidth=0)
            ax.plot(seconds, x.mean(0), color=INK[row], label=line["name"])
    for ax, name in (latent, "latent"), (pixels, "pixels"): ax.plot(seconds, np.mean(baseline[name], 0), "--", color=COLORS["baseline"], label="last z kept")
    pixels.plot(seconds, np.mean(baseline["reconstruction"], 0), ":", color=COLORS["reconstruction"], label="V's reconstruction")
    pit.axhline(1, linestyle="--", color=COLORS["baseline"])
    nll.axvline(0, color=INK["dynamics"])
    for ax, count in (nll, len(rows) - 1), (car, len(rows)):
        ax.set(yticks=range(count), yticklabels=[line["name"].replace(", ", ",\n") for line in rows.values()][:count], ylim=(count - 0.5, -0.5))
    nll.set(xlabel="held-out NLL, above the LSTM's (nats a dimension)"); learning.set(xlabel="training time (s)", ylabel="training NLL (nats a dimension)")
    latent.set(xlabel="seconds after the eyes close", ylabel="error of z (V's sd)"); pixels.set(xlabel="seconds after the eyes close", ylabel="error (grey levels of 255)")
    pit.set(xlabel="P(Z ≤ z), as M has it", ylabel="share of z (1 is calibrated)", ylim=(0.9, 1.1)); car.set(xlabel="return of one C (mean and 95 % interval)")
    fig.legend(*pixels.get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=9, frameon=False)
    for ax in fig.axes: ax.spines[["top", "right"]].set_visible(False)
    return fig


def assemble(s: CompareSettings, g: CompareData, raw: dict[str, list[dict]], baseline: dict, cars: dict[str, dict]) -> dict:
    """The report from all rows."""
    horizons = sorted({max(1, s.horizon // 10), max(1, s.horizon // 2), s.horizon})
    lines = {row: summed_up(rows, raw["dynamics"], cars[row], horizons) for row, rows in raw.items()}
    levels = {name: interval([baseline[name]]) for name in ("repeat", "linear", "noise")}
    levels |= {name: {h: interval([[x[h - 1] for x in baseline[name]]]) for h in horizons} for name in ("latent", "pixels", "reconstruction")}
    return {"command": shlex.join(["python", *sys.orig_argv[1:]]), "revision": revision(), "versions": {"torch": version("torch")},
            "cores": torch.get_num_threads(), "source": s.source, "train_episodes": len(g.train), "episodes": len(g.names), "seeds": s.seeds,
            "seconds": s.seconds, "batch": s.fit.batch, "lr": s.fit.lr, "share": s.trade.density_share, "joint_seconds": s.joint_seconds, "worlds": s.worlds, "tracks": s.tracks, "generations": s.evolve.generations,
            "horizons": horizons, "baselines": levels, "rows": lines, "claims": claims(lines, horizons)}


def main() -> None:
    s = load(CompareSettings, prefix="compare", description=__doc__)
    source = Path(s.source)
    vision, store = open_source(source)
    if s.tracks > len(HELD_OUT): raise ValueError(f"tracks must be at most {len(HELD_OUT):,}, not {s.tracks}")
    folder = claim_run_folder(Path(s.run), s, s.fresh, ignore=("fresh", "run", "to"))
    (folder / "rows").mkdir(exist_ok=True)
    g, rows = ground(folder, source, vision, store, s), folder / "rows"
    baseline = once(rows / "baseline.json", lambda: baseline_row(s, g))
    raw = {row: [] for row in FROZEN}
    for seed in range(s.seeds):
        for row in FROZEN: raw[row].append(once(rows / f"{row}-{seed}.json", lambda: frozen_row(folder, s, g, row, seed)))
    raw["joint"] = [once(rows / "joint-0.json", lambda: joint_row(folder, s, g))]
    cars = {row: once(rows / f"{row}.car.json", lambda: controller_row(folder, s, row, world_of(folder, g, row))) for row in raw}
    report = assemble(s, g, raw, baseline, cars)
    write_json(folder / "report.json", report)
    (folder / "table.md").write_text(table(report), encoding="utf-8")
    draw(report, raw, baseline).savefig(folder / "compare.png")
    if s.to: publish(folder, Path(s.to))
    print(table(report))


def publish(folder: Path, to: Path) -> None:
    """Copy what is to be kept of a comparison, with the trained TransformerMDN in half precision."""
    to.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "table.md", "compare.png"): shutil.copyfile(folder / name, to / name)
    save_model(to / "TransformerMDN.safetensors", load_model(folder / "transformer-0" / "model.safetensors", Dynamics), half=True)


if __name__ == "__main__": command(main)
