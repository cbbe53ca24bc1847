"""The answers to the extend exercises of chapters 00, 01, 02 and 04 do what the chapters ask for."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from solutions.controller import mirrored_es, returns_by_memory
from solutions.mdn_rnn import full_gaussian_nll, nll_by_components
from solutions.rollouts import Braker, pictures_apart
from solutions.vae import mirrored, rate_distortion
from worldmodels.controller import EvolveSettings
from worldmodels.envs import make_envs
from worldmodels.rollouts import RoadFollower
from worldmodels.tools.training import FitSettings
from worldmodels.tools.world import WorldModel, data
from worldmodels.tools.encoding import Latents
from worldmodels.vae import VAE, VAESettings, kl_divergence, reparameterize, vae_loss

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("chapter", sorted((ROOT / "nbs").glob("0*.ipynb")), ids=lambda p: p.stem)
def test_every_link_to_a_solution_leads_to_it(chapter):
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    for names, file in re.findall(r"`(\w+)[^`]*`[^`\[\]]*\[(solutions/\w+\.py)\]\(\.\./solutions/\w+\.py\)", text):
        assert re.search(rf"^(def|class) {names}\b", (ROOT / file).read_text(encoding="utf-8"), re.M), f"{names} is not in {file}"
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", text): assert (ROOT / "nbs" / target).exists(), f"{target} is not there"


def test_the_braker_brakes_before_a_bend_and_not_on_a_straight():
    frames = np.full((2, 64, 64, 3), 220, np.uint8)
    frames[:, :, 27:37] = 100      # a road straight ahead
    frames[1, 22:26, 5:60] = 100   # and, far ahead, one across
    envs = make_envs(seeds=[1, 2], backend="official")
    plain, braker = RoadFollower(), Braker()
    for policy in (plain, braker):
        policy.start(envs)
        policy.speed[:] = 0.7
    rows = np.arange(2)
    assert (braker.act(frames, rows)[:, 2] - plain.act(frames, rows)[:, 2] > 0).tolist() == [False, True]


def test_a_mean_over_pixels_hardly_sees_the_car():
    whole, kerbs, car, lawns = (pictures_apart(without) for without in ("", "kerbs", "car", "lawns"))
    assert 2 * whole < kerbs < car < lawns / 3 and car < 0.5
    assert pictures_apart() == whole, "what was changed has been put back"


def test_dearer_nats_are_fewer_and_the_error_higher():
    codes = torch.randn(256, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 2.0, 1.0, 0.5])

    def train_small(draw, loss, steps=300):  # linear, as the chapter's is not
        torch.manual_seed(0)
        encoder, decoder, history = torch.nn.Linear(4, 8), torch.nn.Linear(4, 4), []
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.02)
        for _ in range(steps):
            mu, logvar = encoder(codes).chunk(2, -1)
            error = (decoder(draw(mu, logvar)) - codes).pow(2).sum(1)
            optimizer.zero_grad(); loss(error, mu, logvar).backward(); optimizer.step()
            history.append((error.mean().item(), mu.detach(), logvar.detach()))
        return None, history

    points = rate_distortion(train_small, reparameterize, kl_divergence, betas=(0.1, 3, 100))
    assert points.shape == (3, 2) and (np.diff(points[:, 0]) < 0).all() and (np.diff(points[:, 1]) > 0).all()


def test_a_mirrored_loss_sees_frames_or_their_mirror_images():
    torch.manual_seed(0)
    settings = VAESettings(latent=4)
    model, frames, seen = VAE(settings), torch.randint(0, 256, (64, 64, 64, 3), dtype=torch.uint8), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    got = mirrored(settings)(model, frames)
    assert type(got) is type(vae_loss(model, frames, settings))
    same, flipped = ((seen[0] == x).flatten(1).all(1) for x in (frames, frames.flip(2)))
    assert (same ^ flipped).all() and 16 < flipped.sum() < 48


def latents_of(rng: torch.Generator, episodes: int = 6, steps: int = 80) -> Latents:
    """Episodes of z in 4 dimensions that move together, by an amount that nobody can foresee."""
    n = episodes * (steps + 1)
    common = torch.randn(n, 1, generator=rng)
    mu = common + 0.1 * torch.randn(n, 4, generator=rng)
    return Latents(mu, torch.full((n, 4), -12.0), torch.zeros(n, 3), torch.zeros(n), torch.zeros(n, dtype=torch.bool),
                   first=torch.arange(episodes) * (steps + 1), lengths=torch.full((episodes,), steps))


def test_components_are_compared_on_the_same_episodes_and_a_full_covariance_is_worth_what_ties_the_dimensions():
    latents = latents_of(torch.Generator().manual_seed(0))
    found = nll_by_components(latents, range(4), range(4, 6), FitSettings(steps=4, batch=4), window=16)
    assert list(found) == ["1 own", "2 own", "5 own", "5 shared"] and all(nll.shape == (2,) and nll.isfinite().all() for nll in found.values())
    independent = 0.5 * (1 + np.log(2 * np.pi * 1.01))  # nats a dimension that a Gaussian pays who does not know of the others
    tied = full_gaussian_nll(latents, range(4), range(4, 6))
    assert tied < independent - 1


def test_each_kind_of_memory_gets_the_same_search():
    s = EvolveSettings(population=4, episodes=1, generations=1, validate_episodes=2, max_steps=20)
    found = returns_by_memory(WorldModel.load(data("carracing")), s, range(100_000, 100_002))
    assert list(found) == ["z, h", "z", "z, 40"] and all(r.shape == (2,) for r in found.values())


def test_mirrored_candidates_stand_still_at_the_bottom_of_a_bowl():
    bowl = lambda x: (x**2).sum(-1)

    def plain(seed, generations=40):
        rng, mean = np.random.default_rng(seed), np.ones(2)
        for _ in range(generations - 1):
            points = mean + 0.5 * rng.standard_normal((12, 2))
            mean = points[bowl(points).argsort()[:4]].mean(0)
        return mean

    mirrored_cost = np.mean([bowl(mirrored_es(bowl, np.ones(2), 0.5, parents=4, seed=i)[-1]) for i in range(200)])
    assert mirrored_cost < 0.75 * np.mean([bowl(plain(i)) for i in range(200)])


