"""Stage 1 of a run: random driving, or other people's data, imported; answers to chapter 00's exercises.

python -m solutions.rollouts --settings quick --run runs/car
python -m solutions.rollouts import PATH --to STORE
python -m solutions.rollouts import PATH --to FILE.safetensors --latents
"""
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from gymnasium.envs.box2d.car_racing import CarRacing

from worldmodels.collect import collect
from worldmodels.rollouts import NoisePolicy, RoadFollower, prepare
from worldmodels.tools import fast_car
from worldmodels.tools.importers import ImportSettings, import_episodes, natural, read_latents
from worldmodels.tools.settings import load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.encoding import Latents

from .settings import TrainSettings, claim_stage, command, from_command_line


def drive_randomly(folder: Path, s: TrainSettings) -> RolloutStore:
    """The store of a run, with its random episodes."""
    c, game = s.collect, s.spec
    store = RolloutStore.create(folder / "store", game.env_id, c.size, game.action_dim)
    noise = NoisePolicy(c.noise, c.max_steps)
    collect(store, noise, c.episodes, "fast", 0, c.max_steps, c.rows, "random")
    return store


@dataclass(frozen=True)
class ImportCommand(ImportSettings):
    """Other people's episodes into a store, or their ready latents into a file."""

    to: str = "runs/imported"
    """the store, made if it is missing; episodes that it has are passed over"""
    latents: bool = False
    """import representations_*.npy of the folders episode_*, for M alone, into the file `to`"""


def import_latents(path: Path, to: Path) -> Latents:
    """Ready latents of the folders `path`/episode_* in one file.

    Raises ValueError that names the folder that is broken; nothing is written then.
    """
    folders = sorted(path.glob("episode_*"), key=natural)
    if not folders: raise ValueError(f"{path} holds no folder episode_*")
    found = [read_latents(folder) for folder in folders]
    widths = [(mu.shape[1], actions.shape[1]) for mu, _, actions in found]
    for folder, (latent, action_dim) in zip(folders, widths):
        if (latent, action_dim) != widths[0]:
            raise ValueError(f"{folder}: {latent} numbers a latent and {action_dim} an action; the first "
                             "folder has "
                             f"{widths[0][0]} and {widths[0][1]}")
    lengths = torch.tensor([len(mu) for mu, _, _ in found])
    mu, logvar, actions = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*found))
    latents = Latents(mu, logvar, actions, torch.zeros(len(mu)), torch.zeros(len(mu), dtype=torch.bool),
                      first=torch.cumsum(lengths, 0) - lengths, lengths=lengths - 1)
    to.parent.mkdir(parents=True, exist_ok=True)
    latents.save(to)
    return latents


def import_main(args: list[str]) -> None:
    """`import PATH`, with the flags of `ImportCommand`."""
    if not args or args[0].startswith("-"):
        raise ValueError("import needs a path: python -m solutions.rollouts import PATH --to STORE")
    s = load(ImportCommand, args[1:], description=__doc__)
    if s.latents:
        latents = import_latents(Path(args[0]), Path(s.to))
        return print(f"{len(latents)} episodes, {len(latents.mu):,} latents in {s.to}")
    reading = ImportSettings(**{f.name: getattr(s, f.name) for f in fields(ImportSettings)})
    store = import_episodes(args[0], s.to, reading)
    print(f"{len(store)} episodes, {store.n_frames:,} frames in {s.to}, {store.nbytes / 1e6:.1f} MB"
          + ("" if store.action_dim else "; without actions, so V can learn from them and M cannot"))


class Braker(RoadFollower):
    """Exercise 7, a start: it also looks far ahead, and brakes where the road lies across the picture.

    There is no one answer.
    """

    name = "braker"

    def act(self, frames, rows):
        actions = super().act(frames, rows)
        size = frames.shape[1]
        far = frames[:, size * 5 // 16:size * 7 // 16, :, 1] < 150  # (n, rows, size): what is not grass
        # a bend lies across the picture: it is wide
        width = far.any(1).sum(1) / size
        actions[:, 2] = np.maximum(actions[:, 2], 0.3 * ((width > 0.5) & (self.speed[rows] > 0.6)))
        return actions


def pictures_apart(without: str = "", steps: int = 200) -> float:
    """Exercise 8: how far fast pictures of a drive are from the official ones after `prepare`, in grey
    levels.

    `without` leaves out the lawns, the kerbs or the car.
    """
    before = fast_car.draw_car
    fast_car.FastCarRacing.compared = True  # else a drawing without a car is refused
    if without == "car": fast_car.draw_car = lambda canvas, palette, known, car, zoom: known
    try:
        official, fast = envs = CarRacing(), fast_car.FastCarRacing()
        for env in envs: env.reset(seed=3)
        if without == "lawns": fast.colors[1:401] = fast.bg_color
        kerbs = (fast.colors[401:, 0] == 255)  # white or red
        if without == "kerbs": fast.quads[401:][kerbs] = 0.0
        apart = []
        for _ in range(steps):
            a, b = (prepare([env.step(np.float32([0.02, 0.3, 0]))[0]]).astype(int) for env in envs)
            apart.append(np.abs(a - b).mean())
        return float(np.mean(apart))
    finally: fast_car.draw_car = before


def run(s: TrainSettings, folder: Path | str | None = None) -> RolloutStore:
    """The random episodes of the run folder of `s`, or of `folder`; what is there is not recorded again."""
    folder, s = claim_stage(s, folder)
    return drive_randomly(folder, s)


def main() -> None:
    if sys.argv[1:2] == ["import"]: import_main(sys.argv[2:])
    else: run(from_command_line(__doc__))


if __name__ == "__main__": command(main)
