"""Stage 2 of a run: V, on the frames of the run's store.

python -m solutions.vae --settings quick --run runs/car
python -m solutions.vae --settings quick --run runs/v --store STORE --vae.beta 2.0
"""
from pathlib import Path

from solutions.settings import TrainSettings, command, open_run, open_store
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import Vision, load_model, save_model
from worldmodels.vae import train_vae


def learn_vision(folder: Path, store: RolloutStore, s: TrainSettings, start: Vision | None = None) -> Vision:
    """The V of `folder`, trained (from `start`, if given) unless it is there already, or taken from `s.vision`."""
    path = folder / "vision.safetensors"
    if not path.exists():
        if s.vision: vision = load_model(s.vision, Vision)
        else: vision = train_vae(store, s.vae, s.vae_fit, folder, s.seed, store.split()[0], start)
        save_model(path, vision)
    return load_model(path, Vision)


def main() -> None:
    folder, s = open_run(__doc__, stage=True, joint=False)
    learn_vision(folder, open_store(folder, s), s)


if __name__ == "__main__": command(main)
