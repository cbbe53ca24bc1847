"""The transformers: one contract; a cache, an order of dimensions, a stop: each fails where it is broken."""
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from solutions.transformer import Permuted, nll_by_context
from worldmodels import transformer
from worldmodels.attention_maps import attention_maps
from worldmodels.carry_over import controller_inputs
from worldmodels.dynamics_settings import MDNRNNSettings, TraDESettings, TransformerSettings, ViTWMSettings
from worldmodels.mdn_rnn import MDNRNN, MixtureHead, held_out_nll, open_loop, train_dynamics
from worldmodels.tools.check import CheckFailed
from worldmodels.tools.store import Episode, RolloutStore
from worldmodels.tools.training import FitSettings
from worldmodels.tools.world import Dynamics, Vision, WorldModel, load_model, save_model
from worldmodels.transformer import (ClipLoss, DensityHead, TraDE, TransformerMDN, ViTWM, apply_rope, patches,
                                     ring_mask, stop_gradient, window_mask)
from worldmodels.tools.encoding import Latents
from worldmodels.vit_training import clips, train_vit_wm

COMMON = dict(latent=5, action_dim=2, components=3, reward=True, done=True)
SMALL = COMMON | dict(width=16, depth=2, heads=2, context=6)
KINDS = {"LSTM": lambda: MDNRNN(MDNRNNSettings(**COMMON, hidden=16)),
         "TransformerMDN": lambda **k: TransformerMDN(TransformerSettings(**SMALL | k)),
         "TraDE": lambda **k: TraDE(TraDESettings(**SMALL | k, density_width=8, density_heads=2)),
         "ViTWM": lambda **k: ViTWM(ViTWMSettings(**SMALL | k))}
TRANSFORMERS = [k for k in KINDS if k != "LSTM"]


def make(kind="TransformerMDN", **settings):
    torch.manual_seed(0)
    return KINDS[kind](**settings).eval()


def inputs(n=3, time=20, seed=0):
    rng = torch.Generator().manual_seed(seed)
    z, a = torch.randn(n, time, 5, generator=rng), torch.randn(n, time, 2, generator=rng)
    restart = torch.zeros(n, time, dtype=torch.bool)
    restart[:, 0] = restart[1, 7] = restart[1, 8] = restart[2, 15] = True
    return z, a, restart


@torch.no_grad()
def stepped(model, z, a, restart):
    state, features, predictions = model.initial(len(z)), [], []
    for t in range(z.shape[1]):
        p, state = model.step(z[:, t], a[:, t], state, restart[:, t])
        features.append(model.features(state).clone()); predictions.append(p)
    return torch.stack(features, 1), predictions


@torch.no_grad()
def difference(model, z, a, restart):
    """How far `forward` and `step` are apart."""
    return (model(z, a, restart).features - stepped(model, z, a, restart)[0]).abs().max().item()


# The contract, for all four

@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_step_agree_over_more_than_three_contexts(kind):
    model, (z, a, restart) = make(kind), inputs()
    assert z.shape[1] > 3 * SMALL["context"] and difference(model, z, a, restart) < 1e-5
    target = torch.randn(3, 20, 5)
    with torch.no_grad():
        p, single = model(z, a, restart), stepped(model, z, a, restart)[1]
        for name, at_once in ("nll", p.nll(target)), ("reward", p.reward), ("done", p.done):
            steps = [s.nll(target[:, t]) if name == "nll" else getattr(s, name) for t, s in enumerate(single)]
            one = torch.stack(steps, 1)
            assert at_once.shape == (3, 20) and torch.allclose(at_once, one, atol=1e-4), name


@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_that_is_told_of_no_restart_begins_at_its_first_step(kind):
    model, (z, a, _) = make(kind), inputs()
    none, first = torch.zeros(3, 20, dtype=torch.bool), torch.zeros(3, 20, dtype=torch.bool)
    first[:, 0] = True
    with torch.no_grad():
        whole = model(z, a).features
        for restart in (none, first): assert torch.allclose(model(z, a, restart).features, whole, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_take_and_reset(kind):
    model, (z, a, _) = make(kind), inputs()
    state = model.initial(3)
    assert len(state) == 3 and not model.features(state).any()
    assert model.features(state).shape == (3, model.features_dim)
    for t in range(9): _, state = model.step(z[:, t], a[:, t], state)
    some, mask = state.take([2, 0, 0]), state.take(torch.tensor([True, False, True]))
    part, whole = state.take(slice(2)), state.take(slice(3))
    assert [len(s) for s in (some, mask, part, whole)] == [3, 2, 2, 3]
    cleared = state.reset(torch.tensor([False, True, False]))
    assert not model.features(cleared)[1].any() and model.features(cleared)[0].any()
    assert model.features(state)[1].any()
    def go(s, rows): return model.features(model.step(z[rows, 9], a[rows, 9], s)[1])
    new = go(model.initial(1), [1])
    picked, masked, cut = go(some, [2, 0, 0]), go(mask, [0, 2]), go(part, [0, 1])
    after = go(cleared, [0, 1, 2])  # the last: it writes into the ring of `state`
    assert torch.allclose(after[1:2], new, atol=1e-5) and torch.allclose(picked, after[[2, 0, 0]], atol=1e-5)
    assert torch.allclose(masked, after[[0, 2]], atol=1e-5) and torch.allclose(cut[0], after[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_256_worlds_at_once_are_256_worlds(kind):
    model, (z, a, restart) = make(kind), inputs(256, 20)
    together = stepped(model, z, a, restart)[0]
    alone = stepped(model, z[100:101], a[100:101], restart[100:101])[0]
    assert torch.allclose(together[100:101], alone, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dream_is_its_seeds(kind):
    model, (z, a, _) = make(kind), inputs(3, 20)
    def dream(seed): return open_loop(model, z, a, 4, seed=seed)
    assert dream(0).shape == (3, 16, 5)
    assert torch.equal(dream(0), dream(0)) and not torch.equal(dream(0), dream(1))
    prediction, _ = model.step(z[:, 0], a[:, 0], model.initial(3))
    def spread(tau): return torch.stack([prediction.sample(tau) for _ in range(200)]).var(0).mean()
    assert spread(0.1) < 0.5 * spread(2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_every_part_is_finite(kind, tmp_path):
    latents, model = walk(), make(kind)
    before = held_out_nll(model, latents, [6, 7])
    model = train_dynamics(model, latents, range(6), 12, FitSettings(steps=60, batch=16, lr=5e-3), tmp_path)
    after = held_out_nll(model, latents, [6, 7])
    assert before.isfinite().all() and after.isfinite().all() and (after < before - 0.1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same(kind, tmp_path):
    model, (z, a, _) = make(kind), inputs()
    save_model(tmp_path / "m.safetensors", model)
    back = load_model(tmp_path / "m.safetensors", Dynamics)
    assert type(back) is type(model) and torch.equal(back(z, a).nll(z), model(z, a).nll(z))


def walk(episodes=8, steps=40) -> Latents:
    """z' = 0.9 z + the action in all dimensions, with a little of V's noise."""
    rng = torch.Generator().manual_seed(0)
    a, mu = torch.randn(episodes, steps + 1, 2, generator=rng), [torch.zeros(episodes, 5)]
    for t in range(steps): mu.append(0.9 * mu[-1] + a[:, t].sum(1, keepdim=True))
    mu = torch.stack(mu, 1).flatten(0, 1)
    zeros = torch.zeros(len(mu))
    return Latents(mu=mu, logvar=torch.full_like(mu, -4.0), actions=a.flatten(0, 1), rewards=zeros,
                   terminated=zeros.bool(), first=torch.arange(episodes) * (steps + 1),
                   lengths=torch.full((episodes,), steps))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_controller_would_have_seen_is_what_forward_gives(kind):
    latents, model = walk(), make(kind)
    latents.lengths[3] = 25  # an episode that ends before the others: its row leaves the state
    seen = controller_inputs(WorldModel(SimpleNamespace(latent=5), model), latents, rows=4)
    for i in (2, 3, 4):
        s = latents.episode(i)
        with torch.no_grad(): h = model(latents.mu[None, s], latents.actions[None, s]).features[0]
        assert torch.allclose(seen[s][1:, 5:], h[:-1], atol=1e-5) and not seen[s][0, 5:].any()


# The cache

def test_a_broken_cache_disagrees(monkeypatch):
    model, (z, a, restart) = make(), inputs()
    def no_age(at, age, context): return torch.ones(len(age), context, dtype=torch.bool)
    def a_slot_too_few(at, age, context): return ring_mask(at, (age - 1).clamp(min=1), context)
    def the_slot_beside(at, age, context): return ring_mask(at + 1, age, context)
    def further_back(restart, context): return window_mask(restart, 10**6)
    def across_restarts(restart, context): return window_mask(torch.zeros_like(restart), context)
    def anew_with_the_ring(x, at): return apply_rope(x, at % 6 if len(at) == 1 else at)

    broken = {"ring_mask": [no_age, a_slot_too_few, the_slot_beside],
              "window_mask": [further_back, across_restarts],
              "apply_rope": [anew_with_the_ring]}
    for name, wrong in broken.items():
        for function in wrong:
            monkeypatch.setattr(transformer, name, function)
            assert difference(model, z, a, restart) > 1e-3, function.__name__
            monkeypatch.undo()
    assert difference(model, z, a, restart) < 1e-5


def test_a_state_is_stepped_once():
    model, (z, a, _) = make(), inputs()
    state = model.initial(3)
    copy = state.take([0, 1, 2])
    model.step(z[:, 0], a[:, 0], state)
    def step(): model.step(z[:, 0], a[:, 0], state)
    for again in (step, lambda: state.take([0]), lambda: state.reset([0])):
        with pytest.raises(ValueError, match=r"has seen 0 steps, and its ring has gone on to 1.*take\(range"):
            again()
    model.step(z[:, 1], a[:, 1], copy)


def test_a_state_made_in_inference_mode_is_stepped_outside_and_the_other_way_round():
    model, (z, a, _) = make(), inputs()
    with torch.inference_mode():
        state = model.step(z[:, 0], a[:, 0], model.initial(3))[1]
        taken = state.take([0, 1])
    model.step(z[:2, 1], a[:2, 1], taken)
    after = model.step(z[:, 1], a[:, 1], state)[1]
    with torch.inference_mode(): model.step(z[:, 2], a[:, 2], after.reset([0]))


@pytest.mark.timing
def test_a_step_costs_the_same_at_10_and_at_1000():
    model, z, a = TransformerMDN().eval(), torch.randn(64, 32), torch.randn(64, 3)

    @torch.inference_mode()
    def ratio():
        """The cost of a step near 1,000 over that of one near 10, in turns, so that both are disturbed."""
        states = [model.initial(64), model.initial(64)]
        for _ in range(990): states[1] = model.step(z, a, states[1])[1]
        times = [[], []]
        for t in range(40):
            for k in (0, 1):
                began = time.perf_counter()
                states[k] = model.step(z, a, states[k])[1]
                times[k].append(time.perf_counter() - began)
        early, late = (np.median(x[5:]) for x in times)
        return late / early

    assert min(ratio() for _ in range(3)) < 1.1


@pytest.mark.timing
def test_a_step_is_far_cheaper_than_computing_the_context_anew():
    model, z, a = TransformerMDN().eval(), torch.randn(256, 64, 32), torch.randn(256, 64, 3)

    def best(function):
        times = []
        for _ in range(4):
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
        return min(times)

    with torch.inference_mode():
        state = model.initial(256)
        for t in range(64): state = model.step(z[:, t], a[:, t], state)[1]
        def ten():
            nonlocal state
            for t in range(10): state = model.step(z[:, t], a[:, t], state)[1]
        assert best(lambda: model(z, a)) > 10 * best(ten) / 10


def test_the_maps_are_the_weights():
    model, (z, a, _) = make(), inputs()
    maps = attention_maps(model, z, a)
    assert maps.shape == (2, 3, 2, 20, 20)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 3, 2, 20), atol=1e-5)
    assert not maps.triu(1).any() and not maps.tril(-6).any()


def test_parameters():
    def count(model): return sum(p.numel() for p in model.parameters())
    assert count(TransformerMDN()) == 463_328
    assert count(TransformerMDN()) < count(TraDE()) < 1.1 * count(TransformerMDN())


# Errors

@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_what_does_not_fit_is_told_with_both_sides(kind):
    model, (z, a, _) = make(kind), inputs()
    with pytest.raises(ValueError, match=r"expects z \(…, 5\) and a \(…, 2\), got \(3, 20, 4\)"):
        model(z[..., :4], a)
    with pytest.raises(ValueError, match=r"expects z \(…, 5\).*got \(3, 4\)"):
        model.step(z[:, 0, :4], a[:, 0], model.initial(3))
    with pytest.raises(ValueError, match=r"at most 10 steps.*got \(3, 20, 5\)"): make(kind, longest=10)(z, a)
    with pytest.raises(ValueError, match=r"ring is \(2, 2, 6, 8\), that of this \w+ \(2, 2, 9, 8\)"):
        make(kind, context=9).step(z[:, 0], a[:, 0], model.initial(3))
    state = model.initial(3)
    with pytest.raises(ValueError, match="z is of 1 worlds, the state of 3"):
        model.step(z[:1, 0], a[:1, 0], state)
    model.step(z[:, 0], a[:, 0], state)  # a refused step has not used the state up
    with pytest.raises(ValueError, match="temperature must be above 0, not 0.0"):
        model.step(z[:, 0], a[:, 0], model.initial(3))[0].sample(0.0)


@pytest.mark.parametrize("cls, change, message", [
    (TransformerSettings, dict(width=100, heads=8), "multiple of 2 · heads = 16"),
    (TransformerSettings, dict(context=0), "context must be at least 1, not 0"),
    (TraDESettings, dict(density_width=12), "density_width must be a multiple of 2 · density_heads = 8"),
    (TraDESettings, dict(shared=True), "shared is for a mixture"),
    (TraDESettings, dict(density_share=0.0), "density_share must be above 0 and at most 1, not 0.0"),
    (ViTWMSettings, dict(patch=10), "must divide the frame's 64 pixels"),
    (ViTWMSettings, dict(size=80), "64 or 96, not 80"),
    (ViTWMSettings, dict(kl_floor=-1.0), "kl_floor must be 0 or above"),
    (ViTWMSettings, dict(action_repeat=4), "action_repeat must be 1, not 4")])
def test_settings_are_checked(cls, change, message):
    with pytest.raises(ValueError, match=message): cls(**change)


def test_a_checkpoint_of_another_dynamics(tmp_path):
    save_model(tmp_path / "m.safetensors", MDNRNN(MDNRNNSettings(latent=5, action_dim=2, hidden=4)))
    with pytest.raises(ValueError, match="holds a MDNRNN, and a TransformerMDN was asked for"):
        load_model(tmp_path / "m.safetensors", TransformerMDN)
    train_dynamics(make("LSTM"), walk(), [0], 8, FitSettings(steps=1, batch=2), tmp_path)
    with pytest.raises(ValueError, match="another model's checkpoint.*this TransformerMDN"):
        train_dynamics(make(), walk(), [0], 8, FitSettings(steps=2, batch=2), tmp_path)


def test_one_model_that_is_both_is_saved_once_and_shared(tmp_path):
    model = make("ViTWM")
    WorldModel(model, model).save(tmp_path)
    world = WorldModel.load(tmp_path)
    assert world.vision is world.dynamics and isinstance(world.vision, ViTWM)
    assert (tmp_path / "dynamics.safetensors").stat().st_size < 1000
    assert isinstance(load_model(tmp_path / "dynamics.safetensors", Dynamics), ViTWM)
    WorldModel(model, make("LSTM")).save(tmp_path)
    assert isinstance(WorldModel.load(tmp_path).dynamics, MDNRNN)


# TraDE

def test_a_share_of_the_steps_gives_the_same_nll_on_average():
    torch.manual_seed(0)
    head, whole = DensityHead(4, 3, width=8, heads=2, share=0.25), DensityHead(4, 3, width=8, heads=2)
    whole.load_state_dict(head.state_dict())
    features, z = torch.randn(2, 10, 4), torch.randn(2, 10, 3)
    with torch.no_grad():
        full, drawn = whole(features).nll(z), torch.stack([head(features).nll(z) for _ in range(2000)])
        assert ((drawn != 0).sum((1, 2)) == 5).all() and drawn.shape == (2000, 2, 10)
        assert torch.allclose(drawn.mean(0), full, atol=0.5)
        assert drawn.mean() == pytest.approx(full.mean().item(), abs=0.05)
        assert torch.allclose(head.eval()(features).nll(z), full)


def head(latent=5):
    torch.manual_seed(0)
    return DensityHead(8, latent, components=3, width=8, heads=2)


def given_by(head):
    """All numbers of every factor, for `test_order`."""
    features = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    def numbers(z):
        mixture = head(features).given(z[None])
        return torch.cat([mixture.mu[0], mixture.log_sigma[0], mixture.log_pi[0]], -1)
    return numbers


def test_trade_is_autoregressive_over_dimensions(): transformer.test_order(given_by(head()))


def test_the_whole_model_is_too():
    model, z, a = make("TraDE"), torch.randn(1, 4, 5), torch.randn(1, 4, 2)
    transformer.test_order(lambda x: model(z, a).mixture.given(x.expand(1, 4, 5)).mu[0, -1])


def test_the_order_fails_where_it_is_broken(monkeypatch):
    monkeypatch.setattr(transformer, "shift", lambda z: z)
    with pytest.raises(CheckFailed, match="told what it is to predict"):
        transformer.test_order(given_by(head()))
    monkeypatch.setattr(transformer, "shift", lambda z: z.roll(1, -1))
    with pytest.raises(CheckFailed, match="what does the first token carry"):
        transformer.test_order(given_by(head()))
    monkeypatch.undo()
    plain = MixtureHead(8, 5)
    with pytest.raises(CheckFailed, match="10 of 10 do not matter"):
        transformer.test_order(lambda z: plain(torch.zeros(8)).mu + 0 * z[:, None])
    blind = head()
    def both_ways(layer, q, k, v): return F.scaled_dot_product_attention(q, k, v)
    blind.backbone.forward = lambda x: blind.backbone.run(x, both_ways)
    with pytest.raises(CheckFailed, match="sees later ones"): transformer.test_order(given_by(blind))


def test_one_pass_and_dimension_by_dimension_agree(monkeypatch):
    """`sample` uses, at every dimension, the factor that `given` has for what it has drawn so far."""
    h, used = head(), []
    torch.nn.init.normal_(h.correction.weight, std=0.5)
    mixture = h.mixture
    monkeypatch.setattr(h, "mixture", lambda plain, x: used.append(mixture(plain, x)) or used[-1])
    features = torch.randn(4, 3, 8)
    z = h(features).sample(1.0, torch.Generator().manual_seed(0))
    assert z.shape == (4, 3, 5) and len(used) == 5
    stepped = torch.cat([m.mu for m in used], 1).view(4, 3, 5, -1)
    with torch.no_grad(): whole = h(features).given(z)
    assert torch.allclose(whole.mu, stepped, atol=1e-5)


def test_its_samples_have_its_density():
    """The share of samples in a box is the integral of the density over it."""
    torch.manual_seed(0)
    h = DensityHead(1, 2, components=2, width=8, heads=2)
    torch.nn.init.normal_(h.correction.weight, std=0.5)
    z = h(torch.zeros(20_000, 1)).sample(generator=torch.Generator().manual_seed(0))
    grid = torch.linspace(-8, 8, 321)
    box = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).flatten(0, 1)
    with torch.no_grad(): p = torch.exp(-h(torch.zeros(len(box), 1)).nll(box)) * (grid[1] - grid[0])**2
    assert p.sum().item() == pytest.approx(1, abs=0.02)
    for inside in (lambda z: (z > 0).all(-1), lambda z: (z[:, 0] > 0) & (z[:, 1] < 0)):
        assert inside(z).float().mean().item() == pytest.approx(p[inside(box)].sum().item(), abs=0.03)


def test_a_density_of_another_width():
    with pytest.raises(ValueError, match="over 5 dimensions has no factors for z of 4"):
        head()(torch.zeros(2, 8)).nll(torch.zeros(2, 4))


# The extend exercises

def test_the_same_weights_with_other_contexts():
    latents, model = walk(), make(context=6)
    scores = nll_by_context(model, latents, [6, 7], (1, 6, 40))
    assert set(scores) == {1, 6, 40} and torch.equal(scores[6], held_out_nll(model, latents, [6, 7]))
    assert not torch.allclose(scores[1], scores[6])


def test_a_permuted_trade_has_the_same_samples_and_another_order():
    order = torch.tensor([3, 0, 4, 1, 2])
    h = head()
    permuted, features, z = Permuted(h, order), torch.randn(6, 8), torch.randn(6, 5)
    assert torch.allclose(permuted(features).nll(z), h(features).nll(z[:, order]))
    rng = lambda: torch.Generator().manual_seed(0)
    assert torch.equal(permuted(features).sample(1.0, rng())[:, order], h(features).sample(1.0, rng()))
    model = make("TraDE")
    model.density = Permuted(model.density, order)
    train_dynamics(model, walk(), [0, 1], 8, FitSettings(steps=2, batch=2))


# ViT-WM

def frames_store(path, steps=(130, 12, 25), action_dim=2, last_frame=True):
    rng = np.random.default_rng(0)
    store = RolloutStore.create(path, "toy", 64, action_dim)
    def episode(seed, n):
        frames = np.zeros((n + last_frame, 64, 64, 3), np.uint8)
        frames[..., 0], frames[..., 1] = seed, np.arange(n + last_frame)[:, None, None]
        done = np.arange(n) == n - 1
        return Episode(frames=frames, actions=rng.normal(size=(n, action_dim)).astype(np.float32),
                       rewards=np.arange(n, dtype=np.float32), terminated=done, truncated=np.zeros(n, bool),
                       seed=seed)
    store.append([episode(0, steps[0])])
    store.append([episode(i, n) for i, n in enumerate(steps) if i])
    return store


def batch_of(time=6, n=2):
    rng, none = torch.Generator().manual_seed(0), torch.zeros(n, time, dtype=torch.bool)
    frames = torch.randint(256, (n, time + 1, 64, 64, 3), dtype=torch.uint8, generator=rng)
    return dict(frames=frames, a=torch.randn(n, time, 2, generator=rng), reward=torch.zeros(n, time),
                terminated=none, restart=none, mask=~none)


class Leaking(ClipLoss):
    def dynamics(self): return self.model


class Blank(torch.nn.Module):
    def forward(self, z): return torch.zeros(len(z), 3, 64, 64)


def leak(loss):
    """How much M's NLL pulls at its target: the gradient of a clip's last mu, where nothing else pulls."""
    seen, batch, encode = [], batch_of(time=1), loss.model.encode
    def watched(frames):
        mu, logvar = encode(frames)
        seen.append(mu.detach().requires_grad_())
        return seen[-1], logvar.detach()
    loss.model.encode = watched
    loss.model.decoder = Blank()
    loss.model.settings = ViTWMSettings(**SMALL, kl_floor=1e3)  # under the floor the KL pulls at nothing
    torch.manual_seed(0)
    loss(batch)[0].backward()
    return seen[0].grad.view(2, 2, -1)[:, 1].abs().max().item()


def test_the_target_is_not_trained():
    assert leak(ClipLoss(make("ViTWM"))) == 0
    assert leak(Leaking(make("ViTWM"))) > 1e-3
    transformer.test_stop_gradient(stop_gradient)
    with pytest.raises(CheckFailed, match="no gradient reaches it"):
        transformer.test_stop_gradient(lambda model: model)


def test_the_joint_loss_is_what_it_says():
    batch = batch_of()
    for floor in (100.0, 0.0):
        loss = ClipLoss(make("ViTWM", kl_floor=floor))
        torch.manual_seed(0)
        value, parts = loss(batch)
        assert set(parts) == {"reconstruction", "kl", "nll", "reward", "done"}
        assert all(x.isfinite() for x in parts.values())
        m, kl = 5 * parts["nll"] + parts["reward"] + parts["done"], max(parts["kl"].item(), floor * 5)
        assert value.item() == pytest.approx((parts["reconstruction"] + kl + m).item(), rel=1e-4)
    short = batch | {"mask": torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()}
    torch.manual_seed(0)
    before = loss(short)[0]
    short["frames"] = short["frames"].clone()
    short["frames"][0, 4:] = 0
    torch.manual_seed(0)
    assert torch.allclose(loss(short)[0], before)


def test_patches_are_squares_row_by_row():
    frames = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    cut = patches(frames, 16)
    assert cut.shape == (2, 16, 768)
    assert torch.allclose(cut[1, 6], frames[1, 16:32, 32:48].flatten().float() / 255 - 0.5)


def test_vit_wm_is_a_vision():
    model = make("ViTWM")
    frames = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    mu, logvar = model.encode(frames)
    assert isinstance(model, Vision) and mu.shape == logvar.shape == (3, 5) and not torch.equal(mu[0], mu[1])
    assert torch.allclose(model.encode(frames[1:2])[0], mu[1:2], atol=1e-5)
    moved = frames.roll(16, 1)
    assert not torch.allclose(model.encode(moved)[0], mu, atol=1e-4)  # it knows where a patch is
    x = model.decode(mu)
    assert x.shape == (3, 64, 64, 3) and 0 <= x.min() and x.max() <= 1
    with pytest.raises(ValueError, match=r"encodes frames \(n, 64, 64, 3\) uint8, got \(3, 96, 96, 3\)"):
        model.encode(torch.zeros(3, 96, 96, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"decodes latents \(n, 5\), got \(3, 4\)"): model.decode(mu[:, :4])


@pytest.mark.parametrize("last_frame", [True, False])
def test_clips_follow_the_episodes(tmp_path, last_frame):
    store = frames_store(tmp_path / "s", last_frame=last_frame)
    stream = clips(store, 16, 32)
    seen = set()
    for batch in (next(stream) for _ in range(40)):
        t = batch["reward"][:, :1] + torch.arange(17)
        episode = batch["frames"][:, 0, 0, 0, 0].long()
        last = torch.from_numpy(store.frame_counts)[episode][:, None] - 1
        mask = batch["mask"]
        ends = t[:, :-1] == torch.from_numpy(store.lengths)[episode][:, None] - 1
        assert torch.equal(mask, t[:, :-1] < last) and torch.equal(batch["restart"], t[:, :-1] == 0)
        assert torch.equal(batch["reward"][mask], t[:, :-1][mask])
        assert torch.equal(batch["terminated"][mask], ends[mask])
        assert torch.equal(batch["frames"][:, :, 5, 5, 1].long(), torch.minimum(t, last).long())
        assert torch.equal(batch["frames"][:, :, 5, 5, 0].long(), episode[:, None].expand(-1, 17))
        seen |= set(zip(episode.tolist(), t[:, 0].tolist()))
    assert (1, 0) in seen and max(t for e, t in seen if e == 0) == 130 - 16 - (not last_frame)
    again = clips(store, 16, 32, step=40)
    assert all(torch.equal(x, y) for x, y in zip(next(stream).values(), next(again).values()))
    other = next(clips(store, 16, 32, step=40, rewards=-store.steps()["rewards"]))["reward"]
    assert torch.equal(other, -next(clips(store, 16, 32, step=40))["reward"])
    assert set(next(clips(store, 4, 64, episodes=[2]))["frames"][:, 0, 0, 0, 0].tolist()) == {2}
    some, all_ = next(clips(store, 16, 400, ending=0.3)), next(clips(store, 16, 32, ending=1.0))
    def to_the_end(batch):
        episode = batch["frames"][:, 0, 0, 0, 0].long()
        return batch["reward"].amax(1) == torch.from_numpy(store.frame_counts)[episode] - 2
    assert to_the_end(all_).all() and 0.25 < to_the_end(some).float().mean() < 0.45
    for wrong in (dict(episodes=[]), dict(length=0), dict(batch=0)):
        with pytest.raises(ValueError, match="at least 1 episode"):
            next(clips(store, **dict(length=16, batch=4) | wrong))


def test_joint_training_lowers_the_loss_and_resumes(tmp_path):
    store, settings = frames_store(tmp_path / "s"), ViTWMSettings(**SMALL)
    def train(steps, folder):
        fit = FitSettings(steps=steps, batch=4, lr=2e-3, checkpoint_every=6)
        return train_vit_wm(store, settings, fit, 6, folder)
    batch = next(clips(store, 6, 8, seed=9))
    @torch.no_grad()
    def loss(model):
        torch.manual_seed(0)
        return ClipLoss(model)(batch)[0].item()
    for name in "ab": (tmp_path / name).mkdir()
    torch.manual_seed(0)
    start = loss(ViTWM(settings))
    whole = train(12, tmp_path / "a")
    assert loss(whole) < start
    train(6, tmp_path / "b")
    resumed = train(12, tmp_path / "b")
    assert all(torch.equal(x, y) for x, y in zip(whole.state_dict().values(), resumed.state_dict().values()))
    begun = train_vit_wm(store, settings, FitSettings(steps=1, batch=2, lr=1e-9), 6, start=whole)
    assert torch.allclose(begun.mu.weight, whole.mu.weight, atol=1e-6)


def test_what_does_not_fit_the_store_is_told(tmp_path):
    store = frames_store(tmp_path / "s")
    with pytest.raises(ValueError, match="64 pixels and 2 numbers an action.*made for 96 and 2"):
        train_vit_wm(store, ViTWMSettings(**SMALL, size=96), FitSettings(steps=1))
    with pytest.raises(ValueError, match="3 rewards for a store of"):
        next(clips(store, 6, 2, rewards=np.zeros(3)))
    with pytest.warns(UserWarning, match="context 6 is longer than the clips of 4 steps"):
        train_vit_wm(store, ViTWMSettings(**SMALL), FitSettings(steps=1, batch=2), 4)
    with pytest.raises(ValueError, match="made for 64 and 3"):
        train_vit_wm(store, ViTWMSettings(), FitSettings(steps=1))
    with pytest.raises(ValueError, match="clips of 40 steps.*takes 1 to 8"):
        train_vit_wm(store, ViTWMSettings(**SMALL, longest=8), FitSettings(steps=1), 40)
