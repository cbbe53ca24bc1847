"""Stage 2 of a run: V, on the frames of the run's store.

python -m solutions.vae --settings quick --run runs/car
"""
from pathlib import Path

from solutions.settings import TrainSettings, command, open_run
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import Vision, load_model, save_model
from worldmodels.vae import train_vae


def learn_vision(folder: Path, store: RolloutStore, s: TrainSettings, start: Vision | None = None) -> Vision:
    """The V of `folder`, trained (from `start`, if given) unless it is there already."""
    path = folder / "vision.safetensors"
    if not path.exists():
        train, _ = store.split()
        save_model(path, train_vae(store, s.vae, s.vae_fit, folder, s.seed, train, start))
    return load_model(path, Vision)


def main() -> None:
    folder, s = open_run(__doc__, stage=True, joint=False)
    learn_vision(folder, RolloutStore(folder / "store"), s)


if __name__ == "__main__": command(main)
