"""Turn a finished run into what `data/` ships: half-precision weights, a small sample of its rollouts, and a
card.

python -m solutions.publish --run runs/laptop
"""
import json
import os
import shutil
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from worldmodels.controller_files import load_controller, save_controller
from worldmodels.latents import apply_action_repeat, mean_actions, smooth_rewards
from worldmodels.mdn_rnn import MDNRNN, open_loop, train_dynamics
from worldmodels.tools.games import find_game
from worldmodels.tools.settings import load
from worldmodels.tools.show import strip
from worldmodels.tools.store import Episode, RolloutStore
from worldmodels.tools.training import FitSettings, read_lines
from worldmodels.tools.world import WorldModel
from worldmodels.tools.encoding import Latents, encode_frames

from .evaluate import evaluate
from .settings import EvaluateSettings, Sections, command

HEADS = ("M's heads for reward and end were trained afterwards, on its frozen features: the distribution of "
         "the next z, "
         "and what C sees, are those of the run.")


@dataclass(frozen=True)
class PublishSettings:
    """What goes where."""

    run: str = "runs/laptop"
    """folder of a finished run"""
    to: str = "data/carracing"
    """folder to write; what is there is replaced"""
    episodes: int = 2
    """episodes of the sample for each way of driving and drawing: random or driven, on the fast or the
    official environment"""
    steps: int = 550
    """steps after which an episode of the sample is cut"""
    megabytes: float = 5.0
    """the sample is refused if it is larger"""
    heads: FitSettings = FitSettings(steps=600, batch=128, lr=1e-2, lr_end=0.02)
    """how an M without heads for reward and end gets them: two linear ones on its features, which stay as
    they are"""
    note: str = ""
    """a sentence for the card about how the run was made"""
    evaluate: EvaluateSettings = EvaluateSettings()


def cut(episode: Episode, steps: int) -> Episode:
    """The first `steps` steps of an episode."""
    names = ("actions", "rewards", "terminated", "truncated")
    arrays = {name: getattr(episode, name)[:steps] for name in names}
    return replace(episode, frames=episode.frames[:steps + 1], **arrays)


def write_sample(store: RolloutStore, path: Path, episodes: int, steps: int) -> RolloutStore:
    """A store with the first `steps` steps of the first `episodes` of every source.

    They are taken from among those that neither V nor M was trained on.
    """
    sources = defaultdict(list)
    for i in store.split()[1]: sources[store.sources[i]].append(i)
    sample = RolloutStore.create(path, store.env_id, store.size, store.action_dim)
    for source, indices in sorted(sources.items()):
        pieces = [cut(e, steps) for e in store.episodes(indices[:episodes])]
        sample.append(pieces, source.replace("/", "-"))
    return sample


def with_heads(m: MDNRNN, latents: Latents, episodes, training: FitSettings) -> MDNRNN:
    """The same M with heads for reward and end, trained on some episodes while all else is frozen.

    Its dreams can pay then, and C sees no difference.
    """
    torch.manual_seed(0)
    wiser = MDNRNN(replace(m.settings, reward=True, done=True))
    wiser.load_state_dict(m.state_dict(), strict=False)
    for name, p in wiser.named_parameters(): p.requires_grad_(name.startswith(("reward", "done")))
    smoothed = smooth_rewards(apply_action_repeat(latents, m.action_repeat), 12 // m.action_repeat)
    return train_dynamics(wiser, smoothed, episodes, 64, training).requires_grad_()


def drawing(world: WorldModel, episode: Episode, first: int = 150, steps: int = 96,
            every: int = 12) -> Figure:
    """Frames of an episode, V's reconstructions of them, and M's dream of them from frame `first` on,
    given only the actions."""
    repeat = world.dynamics.action_repeat
    frames = episode.frames[::repeat]
    begin = first // repeat + 1  # of the dream, in M's steps
    end = begin + steps // repeat
    mu, _ = map(torch.from_numpy, encode_frames(world.vision, frames))
    actions = mean_actions(torch.from_numpy(episode.actions), repeat)
    dreamt = open_loop(world.dynamics, mu[None, :end], actions[None], context=begin)[0]
    with torch.inference_mode():
        reconstruction = world.vision.decode(mu[begin:end]).numpy()
        dream = world.vision.decode(dreamt).numpy()
    rows = {"real": frames[begin:end], "reconstruction": reconstruction, "dream": dream}
    return strip(rows, every=max(1, every // repeat))


def card(run: Path, sample: RolloutStore, report: dict, shipped: dict, note: str) -> str:
    """What a reader of the weights wants to know, from the run's own records."""
    whole = RolloutStore(run / "store")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    minutes = "".join(f"| {x['stage']} | {x['seconds'] / 60:.1f} |\n"
                      for x in read_lines(run / "stages.jsonl"))
    return f"""# {report["environment"]}: weights and a sample

`vision`, `dynamics` and `controller` are V, M and C of one run, in half precision. `sample` holds
{len(sample)} of its {len(whole)} episodes, some of every way of driving and drawing
({sample.n_frames:,} frames, {sample.nbytes / 1e6:.1f} MB), the longer ones cut; none of them was used in
training.

`{report['command']}` at revision {report.get("revision", "unknown")}. {versions}.

| environment | return, mean ± sd | 95 % interval of the mean | held-out episodes |
|---|---|---|---|
{score_lines(report, shipped)}
Seeds are {report['seeds'][0]} to {report['seeds'][1]}, used for nothing else. `python -m solutions.evaluate
--run data/{find_game(report["environment"]).weights}` scores these files again.
{note}

| stage | minutes on {os.cpu_count()} cores |
|---|---|
{minutes}"""


def score_lines(report: dict, shipped: dict) -> str:
    """Lines of the card's table: as the run was and as it is shipped."""
    package = find_game(report["environment"]).package
    scores = {package: report[package], f"{package}, in half precision": shipped[package]}
    return "".join(f"| {name} | {r['mean']} ± {r['sd']} | {r['low']} to {r['high']} | {r['episodes']} |\n"
                   for name, r in scores.items())


def run(s: PublishSettings) -> Path:
    """Write the folder `s.to` from the finished run `s.run`; what is there is replaced. Returns the folder.

    Raises ValueError for a folder that this did not write and for a sample that is too large,
    FileNotFoundError for a run that is not finished.
    """
    source, to = Path(s.run), Path(s.to)
    if to.exists() and not (to / "CARD.md").exists():
        raise ValueError(f"{to} exists and has no CARD.md, so publish did not write it: it is left alone")
    if not (source / "report.json").exists():
        raise FileNotFoundError(f"{source} has no report.json: only a finished run of solutions.train is "
                                "published")
    fresh = to.with_name(to.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    sample = write_sample(RolloutStore(source / "store"), fresh / "sample", s.episodes, s.steps)
    if sample.nbytes > s.megabytes * 1e6:
        raise ValueError(f"the sample has {sample.nbytes / 1e6:.1f} MB, more than {s.megabytes}; take fewer "
                         "than "
                         f"{s.episodes} episodes")
    note = write_weights(source, fresh, s)
    world, controller = WorldModel.load(fresh), load_controller(fresh / "controller.safetensors")
    shipped = evaluate(fresh, world, *controller, s.evaluate)
    driven = max(sample.episodes(), key=lambda e: "controller" in e.source)
    drawing(world, driven).savefig(fresh / "drive.png")
    report = json.loads((source / "report.json").read_text())
    (fresh / "CARD.md").write_text(card(source, sample, report, shipped, note))
    shutil.rmtree(to, ignore_errors=True)
    fresh.rename(to)
    return to


def write_weights(source: Path, to: Path, s: PublishSettings) -> str:
    """V, M and C in half precision, M with the heads that dreams need; returns what the card notes about
    them."""
    world, note = WorldModel.load(source), s.note
    m = world.dynamics
    if isinstance(m, MDNRNN) and not (m.settings.reward and m.settings.done):
        latents = Latents.load(source / "latents.safetensors")
        train, _ = RolloutStore(source / "store").split()
        world = WorldModel(world.vision, with_heads(m, latents, train, s.heads), world.game)
        note = f"{note} {HEADS}".strip()
    world.save(to, half=True)
    save_controller(to / "controller.safetensors", *load_controller(source / "controller.safetensors"))
    return note


def main() -> None: run(load(PublishSettings, description=__doc__, part_of=Sections))


if __name__ == "__main__": command(main)
