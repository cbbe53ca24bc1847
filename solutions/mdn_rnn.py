"""Stage 3 of a run: every episode encoded once, then M on the latents.

python -m solutions.mdn_rnn --settings quick --run runs/car
"""
from pathlib import Path

import torch

from solutions.settings import TrainSettings, command, open_run
from worldmodels.mdn_rnn import train_dynamics
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import Dynamics, Vision, WorldModel, load_model, registered, save_model
from worldmodels.vae import Latents, encode_store


def encode(folder: Path, vision: Vision, store: RolloutStore) -> Latents:
    """The run's episodes as latents, encoded unless `folder` has them."""
    path = folder / "latents.safetensors"
    if not path.exists(): encode_store(vision, store).save(path)
    return Latents.load(path)


def learn_dynamics(folder: Path, vision: Vision, store: RolloutStore, s: TrainSettings, start: Dynamics | None = None) -> WorldModel:
    """V and the M of `folder`, of the class that the settings name, trained (from `start`, if given) unless it is there already."""
    path = folder / "dynamics.safetensors"
    if not path.exists():
        train, _ = store.split()
        torch.manual_seed(s.seed)
        model = registered(s.model)[0](s.m)
        if start is not None: model.load_state_dict(start.state_dict())
        save_model(path, train_dynamics(model, encode(folder, vision, store), train, s.window, s.dynamics_fit, folder, s.seed))
    return WorldModel(vision, load_model(path, Dynamics))


def main() -> None:
    folder, s = open_run(__doc__, stage=True, joint=False)
    learn_dynamics(folder, load_model(folder / "vision.safetensors", Vision), RolloutStore(folder / "store"), s)


if __name__ == "__main__": command(main)
