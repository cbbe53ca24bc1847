"""Turn a finished run into what `data/` ships: half-precision weights, a small sample of its rollouts, and a card.

python -m solutions.publish --run runs/laptop
"""
import json, os, shutil
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from solutions.evaluate import evaluate
from solutions.settings import EvaluateSettings, Sections, command
from worldmodels.controller import load_controller, save_controller
from worldmodels.latents import apply_action_repeat, mean_actions, smooth_rewards
from worldmodels.mdn_rnn import MDNRNN, open_loop, train_dynamics
from worldmodels.tools.settings import load
from worldmodels.tools.show import strip
from worldmodels.tools.store import Episode, RolloutStore
from worldmodels.tools.training import FitSettings, read_lines
from worldmodels.tools.world import WorldModel
from worldmodels.vae import Latents, encode_frames


HEADS = ("M's heads for reward and end were trained afterwards, on its frozen features: the distribution of the next z, and what C sees, are "
         "those of the run.")


@dataclass(frozen=True)
class PublishSettings:
    """What goes where."""

    run: str = "runs/laptop"
    """folder of a finished run"""
    to: str = "data/carracing"
    """folder to write; what is there is replaced"""
    episodes: int = 2
    """episodes of the sample for each way of driving and drawing: random or driven, on the fast or the official environment"""
    steps: int = 550
    """steps after which an episode of the sample is cut"""
    megabytes: float = 5.0
    """the sample is refused if it is larger"""
    heads: FitSettings = field(default_factory=lambda: FitSettings(steps=600, batch=128, lr=1e-2, lr_end=0.02))
    """how an M without heads for reward and end gets them: two linear ones on its features, which stay as they are"""
    note: str = ""
    """a sentence for the card about how the run was made"""
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)


def cut(episode: Episode, steps: int) -> Episode:
    """The first `steps` steps of an episode."""
    arrays = {name: getattr(episode, name)[:steps] for name in ("actions", "rewards", "terminated", "truncated")}
    return replace(episode, frames=episode.frames[:steps + 1], **arrays)


def write_sample(store: RolloutStore, path: Path, episodes: int, steps: int) -> RolloutStore:
    """A store with the first `steps` steps of the first `episodes` of every source among those that neither V nor M was trained on."""
    sources = defaultdict(list)
    for i in store.split()[1]: sources[store.sources[i]].append(i)
    sample = RolloutStore.create(path, store.env_id, store.size, store.action_dim)
    for source, indices in sorted(sources.items()): sample.append([cut(e, steps) for e in store.episodes(indices[:episodes])], source.replace("/", "-"))
    return sample


def with_heads(m: MDNRNN, latents: Latents, episodes, training: FitSettings) -> MDNRNN:
    """The same M with heads for reward and end, trained on some episodes while all else is frozen: its dreams can pay, and C sees no difference."""
    torch.manual_seed(0)
    wiser = MDNRNN(replace(m.settings, reward=True, done=True))
    wiser.load_state_dict(m.state_dict(), strict=False)
    for name, p in wiser.named_parameters(): p.requires_grad_(name.startswith(("reward", "done")))
    return train_dynamics(wiser, smooth_rewards(apply_action_repeat(latents, m.action_repeat), 12 // m.action_repeat), episodes, 64, training).requires_grad_()


def drawing(world: WorldModel, episode: Episode, first: int = 150, steps: int = 96, every: int = 12) -> Figure:
    """Frames of an episode, V's reconstructions of them, and M's dream of them from frame `first` on, given only the actions."""
    repeat = world.dynamics.action_repeat
    first, steps, every, frames = first // repeat, steps // repeat, max(1, every // repeat), episode.frames[::repeat]
    mu, _ = map(torch.from_numpy, encode_frames(world.vision, frames))
    z, a = mu[None, :first + steps + 1], mean_actions(torch.from_numpy(episode.actions), repeat)[None]
    dream = open_loop(world.dynamics, z, a, context=first + 1)[0]
    with torch.inference_mode(): reconstruction, dream = (world.vision.decode(x).numpy() for x in (z[0, first + 1:], dream))
    rows = {"real": frames[first + 1:first + steps + 1], "reconstruction": reconstruction, "dream": dream}
    return strip(rows, every=every)


def card(run: Path, sample: RolloutStore, report: dict, shipped: dict, note: str) -> str:
    """What a reader of the weights wants to know, from the run's own records."""
    rows = "".join(f"| {name} | {r['mean']} ± {r['sd']} | {r['low']} to {r['high']} | {r['episodes']} |\n"
                   for name, r in {"gymnasium": report["gymnasium"], "envpool": report.get("envpool"), "gymnasium, in half precision": shipped["gymnasium"],
                                        "envpool, in half precision": shipped.get("envpool")}.items() if r)
    minutes = "".join(f"| {line['stage']} | {line['seconds'] / 60:.1f} |\n" for line in read_lines(run / "stages.jsonl"))
    return f"""# CarRacing-v3: weights and a sample

`vision`, `dynamics` and `controller` are V, M and C of one run, in half precision. `sample` holds {len(sample)} of its {len(RolloutStore(run / "store"))}
episodes, some of every way of driving and drawing ({sample.n_frames:,} frames, {sample.nbytes / 1e6:.1f} MB), the longer ones cut; none of them was used in training.

`{report['command']}` at revision {report.get("revision", "unknown")}. {", ".join(f"{k} {v}" for k, v in report["versions"].items())}.

| environment | return, mean ± sd | 95 % interval of the mean | held-out tracks |
|---|---|---|---|
{rows}
Tracks are those of seeds {report['seeds'][0]} to {report['seeds'][1]}, used for nothing else. `python -m solutions.evaluate --run data/carracing` scores these files again.
{note}

| stage | minutes on {os.cpu_count()} cores |
|---|---|
{minutes}"""


def main() -> None:
    s = load(PublishSettings, description=__doc__, part_of=Sections)
    run, to = Path(s.run), Path(s.to)
    if to.exists() and not (to / "CARD.md").exists(): raise ValueError(f"{to} exists and has no CARD.md, so publish did not write it: it is left alone")
    if not (run / "report.json").exists(): raise FileNotFoundError(f"{run} has no report.json: only a finished run of solutions.train is published")
    report = json.loads((run / "report.json").read_text())
    fresh = to.with_name(to.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    sample = write_sample(RolloutStore(run / "store"), fresh / "sample", s.episodes, s.steps)
    if sample.nbytes > s.megabytes * 1e6:
        raise ValueError(f"the sample has {sample.nbytes / 1e6:.1f} MB, more than {s.megabytes}; take fewer than {s.episodes} episodes")
    world = WorldModel.load(run)
    if isinstance(world.dynamics, MDNRNN) and not (world.dynamics.settings.reward and world.dynamics.settings.done):
        world = WorldModel(world.vision, with_heads(world.dynamics, Latents.load(run / "latents.safetensors"), RolloutStore(run / "store").split()[0], s.heads))
        s = replace(s, note=f"{s.note} {HEADS}".strip())
    world.save(fresh, half=True)
    save_controller(fresh / "controller.safetensors", *load_controller(run / "controller.safetensors"))
    world, controller = WorldModel.load(fresh), load_controller(fresh / "controller.safetensors")
    shipped = evaluate(fresh, world, *controller, s.evaluate)
    driven = max(sample.episodes(), key=lambda e: ("gymnasium" in e.source, "controller" in e.source))
    drawing(world, driven).savefig(fresh / "drive.png")
    (fresh / "CARD.md").write_text(card(run, sample, report, shipped, s.note))
    shutil.rmtree(to, ignore_errors=True)
    fresh.rename(to)


if __name__ == "__main__": command(main)
