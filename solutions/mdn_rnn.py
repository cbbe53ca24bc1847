"""Stage 3 of a run: every episode encoded once, then M on the latents; answers to chapter 02's exercises.

python -m solutions.mdn_rnn --settings quick --run runs/car
python -m solutions.mdn_rnn --settings quick --run runs/m --store STORE --vision runs/v/vision.safetensors
python -m solutions.mdn_rnn --settings quick --run runs/m --latents FILE --dynamics.hidden 768
"""
from collections.abc import Sequence
from pathlib import Path

import torch

from worldmodels.latents import apply_action_repeat
from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.mdn_rnn import MDNRNN, held_out_nll, train_dynamics
from worldmodels.sequences import require_actions, whole_episodes
from worldmodels.tools.store import RolloutStore, held_out_serials
from worldmodels.tools.training import FitSettings
from worldmodels.tools.world import Dynamics, Vision, WorldModel, load_model, registered, save_model
from worldmodels.tools.encoding import Latents, encode_store

from .settings import M_FIELDS, TrainSettings, claim_stage, command, from_command_line, open_store
from .vae import learn_vision


def encode(folder: Path, vision: Vision, store: RolloutStore) -> Latents:
    """The run's episodes as latents, encoded unless `folder` has them."""
    path = folder / "latents.safetensors"
    if not path.exists(): encode_store(vision, store).save(path)
    return Latents.load(path)


def make_dynamics(s: TrainSettings, start: Dynamics | None = None) -> Dynamics:
    """An M as the settings describe it, not trained yet; with the weights of `start`, if given."""
    torch.manual_seed(s.seed)
    model = registered(s.model)[0](s.m)
    if start is not None: model.load_state_dict(start.state_dict())
    return model


def train_and_save(path: Path, model: Dynamics, latents: Latents, train: Sequence[int],
                   s: TrainSettings) -> None:
    """M, trained on the episodes `train` of some latents, to `path`; a killed training is resumed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    latents = apply_action_repeat(latents, model.action_repeat)
    trained = train_dynamics(model, latents, train, s.window, s.dynamics_fit, path.parent, s.seed, s.warm_up)
    save_model(path, trained, game=s.game)


def learn_dynamics(folder: Path, vision: Vision, store: RolloutStore, s: TrainSettings,
                   start: Dynamics | None = None) -> WorldModel:
    """V and the M of `folder`, trained (from `start`, if given) unless it is there already."""
    path = folder / "dynamics.safetensors"
    if not path.exists():
        model = make_dynamics(s, start)
        if vision.latent != model.latent:
            raise ValueError(f"V has a latent of {vision.latent}, and dynamics.latent is {model.latent}: "
                             "they must be equal")
        require_actions(store.action_dim, model)  # before the encoding, which may take an hour
        train, _ = store.split()
        train_and_save(path, model, encode(folder, vision, store), train, s)
    return WorldModel(vision, load_model(path, Dynamics), s.spec)


def learn_from_latents(folder: Path, s: TrainSettings) -> Dynamics:
    """The M of `folder`, trained on the ready latents `s.latents` unless it is there already."""
    path = folder / "dynamics.safetensors"
    if not path.exists():
        latents = Latents.load(s.latents)
        if latents.mu.shape[1] != s.m.latent:
            raise ValueError(f"{s.latents} holds latents of {latents.mu.shape[1]} numbers, "
                             f"and {M_FIELDS[s.model]}.latent is {s.m.latent}")
        held_out = held_out_serials(len(latents), 0.1, 0) if len(latents) > 1 else []
        train = [i for i in range(len(latents)) if i not in held_out]
        train_and_save(path, make_dynamics(s), latents, train, s)
    return load_model(path, Dynamics)


def learn_alone(folder: Path, s: TrainSettings) -> Dynamics:
    """The M of `folder`, made if missing, on the run's own V and episodes or those that the settings name."""
    if s.latents: return learn_from_latents(folder, s)
    store = open_store(folder, s)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vision.safetensors"
    vision = learn_vision(folder, store, s) if s.vision else load_model(path, Vision)
    return learn_dynamics(folder, vision, store, s).dynamics


def nll_by_components(latents: Latents, train, held_out, training: FitSettings,
                      window: int = 64) -> dict[str, torch.Tensor]:
    """Exercise 6: held-out NLL, nats a dimension, (episodes,), with 1, 2 and 5 own Gaussians and 5 shared."""
    found = {}
    for components, shared in (1, False), (2, False), (5, False), (5, True):
        torch.manual_seed(0)
        settings = MDNRNNSettings(latent=latents.mu.shape[1], action_dim=latents.actions.shape[1],
                                  components=components, shared=shared)
        model = train_dynamics(MDNRNN(settings), latents, train, window, training)
        found[f"{components} {'shared' if shared else 'own'}"] = held_out_nll(model, latents, held_out)
    return found


def full_gaussian_nll(latents: Latents, train, held_out) -> float:
    """Exercise 7: held-out NLL, nats a dimension, of the linear baseline with one full covariance."""
    def pairs(episodes):
        both = [(torch.cat([z[:-1], a, torch.ones(len(a), 1)], 1), z[1:])
                for z, a in whole_episodes(latents, episodes)]
        return (torch.cat(x) for x in zip(*both))

    x, y = pairs(train)
    weights = torch.linalg.lstsq(x, y).solution
    covariance = torch.cov((y - x @ weights).T)
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(y.shape[1]), covariance)
    x, y = pairs(held_out)
    return -gaussian.log_prob(y - x @ weights).mean().item() / y.shape[1]


def run(s: TrainSettings, folder: Path | str | None = None) -> Dynamics:
    """The M of the run folder of `s`, or of `folder`; what is there is not made again."""
    folder, s = claim_stage(s, folder, joint=False)
    return learn_alone(folder, s)


def main() -> None: run(from_command_line(__doc__))


if __name__ == "__main__": command(main)
