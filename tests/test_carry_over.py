"""A controller moved to another V and M: what it sees in many episodes at once, and what it decides there."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldmodels.carry_over import carry_over, controller_inputs
from worldmodels.controller import ControllerSettings, controllers_for, fit_linear_controller
from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.mdn_rnn import MDNRNN
from worldmodels.tools.world import WorldModel
from worldmodels.tools.encoding import Latents

C = ControllerSettings()


def numbers(world: WorldModel) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(controllers_for(world, C).dimension)


def decide(world: WorldModel, params: np.ndarray, latents: Latents) -> torch.Tensor:
    """Raw outputs of a C at every frame, (frames, 3)."""
    owner = torch.zeros(len(latents.mu), dtype=torch.long)
    return controllers_for(world, C, params)(controller_inputs(world, latents), owner)


def some_latents(lengths: list[int], latent: int = 4, seed: int = 1) -> Latents:
    frames = [n + 1 for n in lengths]
    total, first = sum(frames), np.cumsum([0, *frames])[:-1]
    torch.manual_seed(seed)
    return Latents(mu=torch.randn(total, latent), logvar=torch.zeros(total, latent),
                   actions=torch.randn(total, 3), rewards=torch.zeros(total),
                   terminated=torch.zeros(total, dtype=bool), first=torch.tensor(first),
                   lengths=torch.tensor(lengths))


@torch.inference_mode()
def one_at_a_time(world: WorldModel, latents: Latents) -> torch.Tensor:
    seen = []
    for i in range(len(latents)):
        z, a = latents.mu[latents.episode(i)], latents.actions[latents.episode(i)]
        state = world.dynamics.initial(1)
        for t in range(len(z)):
            seen.append(torch.cat([z[t:t + 1], world.dynamics.features(state)], 1))
            _, state = world.dynamics.step(z[t:t + 1], a[t:t + 1], state)
    return torch.cat(seen)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_inputs_of_many_episodes_are_those_of_each(world, rows):
    latents = some_latents([5, 12, 1, 12, 7])
    together, alone = controller_inputs(world, latents, rows), one_at_a_time(world, latents)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_a_c_moved_to_its_own_world_stays_what_it_is(world):
    latents, params = some_latents([400, 300]), 0.3 * numbers(world)
    decided = decide(world, params, latents)
    moved = fit_linear_controller(controller_inputs(world, latents), decided)
    assert moved.shape == params.shape
    assert (decide(world, moved, latents) - decided).abs().mean() < 0.05


def test_a_c_carried_over_decides_on_another_m_as_it_did(world):
    """Another M's memory means other things: the same C decides otherwise; carried over, it does not."""
    torch.manual_seed(5)
    wide = MDNRNNSettings(latent=4, hidden=32)
    new, old = (WorldModel(world.vision, MDNRNN(wide).eval()) for _ in range(2))
    driven, later = some_latents([400, 300]), some_latents([200], seed=2)
    params = 0.3 * numbers(old)
    params[:-3].reshape(3, 36)[:, :4] = 0  # z means the same to both: look at the memory alone
    decided = decide(old, params, later)

    def error(p) -> float:
        return float((decide(new, p, later) - decided).pow(2).mean() / decided.var(0).mean())

    assert error(params) > 1 and error(carry_over(old, C, params, new, driven, driven)) < 0.15
    with pytest.raises(ValueError, match="only a linear C with a bias"):
        carry_over(old, ControllerSettings(bias=False), params[:-3], new, driven, driven)
    with pytest.raises(ValueError, match="one and the same driving"):
        carry_over(old, C, params, new, driven, later)


def test_a_c_carried_over_reads_each_world_in_its_own_latents(world):
    """V turns z round, and M reads it so: the C carried over is the old one, its weights for z turned."""
    driven = some_latents([400, 300])
    turned = WorldModel(world.vision, MDNRNN(MDNRNNSettings(latent=4, hidden=8)).eval())
    turned.dynamics.load_state_dict(world.dynamics.state_dict())
    there, here = turned.dynamics.lstm.weight_ih_l0, world.dynamics.lstm.weight_ih_l0
    with torch.no_grad(): there[:, :4] = here[:, :4].flip(1)
    params = 0.1 * numbers(world)
    moved = carry_over(world, C, params, turned, driven, replace(driven, mu=driven.mu.flip(1)))
    before, after = (p[:-3].reshape(3, 12)[:, :4] for p in (params, moved))
    np.testing.assert_allclose(after, before[:, ::-1], atol=0.02)
