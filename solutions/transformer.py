"""Stage 3 of a run whose M is a transformer, or stages 2 and 3 at once where it is a ViT-WM.

Answers to chapter 03's exercises, too.

python -m solutions.transformer --settings laptop --model TransformerMDN --run runs/car
python -m solutions.transformer --settings gpu,vit-wm --run runs/vit
"""
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from worldmodels.latents import spread_rewards
from worldmodels.mdn_rnn import held_out_nll
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import Dynamics, WorldModel
from worldmodels.transformer import DensityHead, TransformerDynamics, ViTWM
from worldmodels.tools.encoding import Latents
from worldmodels.vit_training import train_vit_wm

from .mdn_rnn import learn_alone
from .settings import TrainSettings, claim_stage, command, from_command_line, open_store


def smoothed_rewards(store: RolloutStore) -> np.ndarray:
    """The rewards of all steps of a store, each shared by the half second around it and at least -10."""
    episodes = torch.from_numpy(store.steps()["rewards"]).split(store.lengths.tolist())
    return torch.cat([spread_rewards(rewards.clamp(min=-10.0), 12) for rewards in episodes]).numpy()


def learn_vit_wm(folder: Path, store: RolloutStore, s: TrainSettings,
                 start: ViTWM | None = None) -> WorldModel:
    """The ViT-WM of `folder`, V and M in one, trained (from `start`, if given) unless it is there already."""
    if not (folder / "dynamics.safetensors").exists():
        train, _ = store.split()
        rewards = smoothed_rewards(store)
        model = train_vit_wm(store, s.vit_wm, s.vit_wm_fit, s.clip, folder, s.seed, train, start, rewards)
        WorldModel(model, model, s.spec).save(folder)
    return WorldModel.load(folder)


def learn_transformer(folder: Path, s: TrainSettings) -> Dynamics:
    """The M of `folder`, made if missing: of any kind, on a V that is there, or a ViT-WM, which is V too."""
    if s.model != "ViTWM": return learn_alone(folder, s)
    if s.vision or s.latents:
        raise ValueError("a ViTWM is V and M in one and learns from frames: "
                         "it takes neither --vision nor --latents")
    store = open_store(folder, s)
    folder.mkdir(parents=True, exist_ok=True)
    return learn_vit_wm(folder, store, s).dynamics


def with_context(model: TransformerDynamics, context: int) -> TransformerDynamics:
    """The same weights with another context: another model, though no weight depends on it."""
    other = type(model)(replace(model.settings, context=context)).eval()
    other.load_state_dict(model.state_dict())
    return other


def nll_by_context(model: TransformerDynamics, latents: Latents, episodes,
                   contexts) -> dict[int, torch.Tensor]:
    """Exercise 7: held-out NLL, nats a dimension, (episodes,), of the same weights for each of `contexts`."""
    return {c: held_out_nll(with_context(model, c), latents, episodes) for c in contexts}


class Permuted(nn.Module):
    """Exercise 8: a density head that goes through the dimensions in `order`.

    Used as `model.density = Permuted(model.density, order)`.
    """

    def __init__(self, head: DensityHead, order: torch.Tensor):
        super().__init__()
        self.head = head
        self.register_buffer("order", order, persistent=False)

    def forward(self, features): return PermutedConditionals(self.head(features), self.order)


class PermutedConditionals:
    """`Conditionals` of z[order], as a density of z."""

    def __init__(self, inner, order): self.inner, self.order = inner, order

    def nll(self, z): return self.inner.nll(z[..., self.order])

    def sample(self, temperature=1.0, generator=None):
        return self.inner.sample(temperature, generator)[..., self.order.argsort()]


def run(s: TrainSettings, folder: Path | str | None = None) -> Dynamics:
    """The M of the run folder of `s`, or of `folder`, which may be V too; what is there is not made again."""
    folder, s = claim_stage(s, folder)
    return learn_transformer(folder, s)


def main() -> None: run(from_command_line(__doc__))


if __name__ == "__main__": command(main)
