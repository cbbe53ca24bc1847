"""What several test modules build on."""
import torch

from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.mdn_rnn import MDNRNN
from worldmodels.tools.games import CAR_RACING, GameSpec
from worldmodels.tools.world import WorldModel
from worldmodels.vae import VAE, VAESettings


def build_world(game: GameSpec = CAR_RACING, **settings) -> WorldModel:
    """An untrained V and M of `game`, small: 4 latents, 8 hidden units."""
    torch.manual_seed(0)
    vision = VAE(VAESettings(latent=4))
    dynamics = MDNRNN(MDNRNNSettings(latent=4, action_dim=game.action_dim, hidden=8, **settings))
    return WorldModel(vision.eval(), dynamics.eval(), game)
