"""Stage 3 of a run: every episode encoded once, then M on the latents; answers to chapter 02's exercises.

python -m solutions.mdn_rnn --settings quick --run runs/car
python -m solutions.mdn_rnn --settings quick --run runs/m --store STORE --vision runs/v/vision.safetensors --dynamics.hidden 768
python -m solutions.mdn_rnn --settings quick --run runs/m --latents FILE
"""
from pathlib import Path

import torch

from solutions.settings import M_FIELDS, TrainSettings, command, open_run, open_store
from solutions.vae import learn_vision
from worldmodels.latents import apply_action_repeat
from worldmodels.mdn_rnn import MDNRNN, MDNRNNSettings, held_out_nll, require_actions, train_dynamics, whole_episodes
from worldmodels.tools.store import RolloutStore, held_out_serials
from worldmodels.tools.training import FitSettings
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
        if vision.latent != model.latent: raise ValueError(f"V has a latent of {vision.latent}, and dynamics.latent is {model.latent}: they must be equal")
        require_actions(store.action_dim, model)  # before the encoding, which may take an hour
        latents = apply_action_repeat(encode(folder, vision, store), model.action_repeat)
        save_model(path, train_dynamics(model, latents, train, s.window, s.dynamics_fit, folder, s.seed, s.warm_up))
    return WorldModel(vision, load_model(path, Dynamics))


def learn_from_latents(folder: Path, s: TrainSettings) -> Dynamics:
    """The M of `folder`, trained on the ready latents `s.latents` unless it is there already."""
    path = folder / "dynamics.safetensors"
    if not path.exists():
        latents = Latents.load(s.latents)
        if latents.mu.shape[1] != s.m.latent:
            raise ValueError(f"{s.latents} holds latents of {latents.mu.shape[1]} numbers, and {M_FIELDS[s.model]}.latent is {s.m.latent}")
        latents = apply_action_repeat(latents, s.m.action_repeat)
        held_out = held_out_serials(len(latents), 0.1, 0) if len(latents) > 1 else []
        train = [i for i in range(len(latents)) if i not in held_out]
        torch.manual_seed(s.seed)
        save_model(path, train_dynamics(registered(s.model)[0](s.m), latents, train, s.window, s.dynamics_fit, folder, s.seed, s.warm_up))
    return load_model(path, Dynamics)


def learn_alone(folder: Path, s: TrainSettings) -> None:
    """The M of `folder`, on the run's own V and episodes or on those that the settings name."""
    if s.latents: return learn_from_latents(folder, s)
    store = open_store(folder, s)
    vision = learn_vision(folder, store, s) if s.vision else load_model(folder / "vision.safetensors", Vision)
    learn_dynamics(folder, vision, store, s)


def nll_by_components(latents: Latents, train, held_out, training: FitSettings, window: int = 64) -> dict[str, torch.Tensor]:
    """Exercise 6: held-out NLL, nats a dimension, (episodes,), of an M with 1, 2 and 5 Gaussians of its own a dimension, and with 5 shared ones."""
    found = {}
    for components, shared in (1, False), (2, False), (5, False), (5, True):
        torch.manual_seed(0)
        model = MDNRNN(MDNRNNSettings(latent=latents.mu.shape[1], action_dim=latents.actions.shape[1], components=components, shared=shared))
        train_dynamics(model, latents, train, window, training)
        found[f"{components} {'shared' if shared else 'own'}"] = held_out_nll(model, latents, held_out)
    return found


def full_gaussian_nll(latents: Latents, train, held_out) -> float:
    """Exercise 7: held-out NLL, nats a dimension, of the linear baseline with one Gaussian of full covariance on its errors."""
    def pairs(episodes):
        both = [(torch.cat([z[:-1], a, torch.ones(len(a), 1)], 1), z[1:]) for z, a in whole_episodes(latents, episodes)]
        return (torch.cat(x) for x in zip(*both))
    x, y = pairs(train)
    weights = torch.linalg.lstsq(x, y).solution
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(y.shape[1]), torch.cov((y - x @ weights).T))
    x, y = pairs(held_out)
    return -gaussian.log_prob(y - x @ weights).mean().item() / y.shape[1]


def main() -> None: learn_alone(*open_run(__doc__, stage=True, joint=False))


if __name__ == "__main__": command(main)
