"""The transformers: one contract, a cache, an order of dimensions and a stop-gradient, each shown to fail where it is broken."""
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worldmodels import transformer
from worldmodels.mdn_rnn import MDNRNN, MDNRNNSettings, MixtureHead, open_loop
from worldmodels.tools.check import CheckFailed
from worldmodels.tools.store import Episode, RolloutStore
from worldmodels.tools.training import FitSettings
from worldmodels.tools.world import Dynamics, Vision, WorldModel, load_model, save_model
from worldmodels.transformer import (Backbone, ClipLoss, DensityHead, TraDE, TraDESettings, TransformerMDN, TransformerSettings,
                                     ViTWM, ViTWMSettings, attention_maps, clips, patches, ring_mask, rotate, test_attention,
                                     test_order, test_ring_mask, test_rotate, test_stop_gradient, test_window_mask, train_vit_wm,
                                     window_mask)

exercises = [test_attention, test_order, test_ring_mask, test_rotate, test_stop_gradient, test_window_mask]
for test in exercises: test.__test__ = False  # called below, with something to test

SMALL = dict(latent=5, action_dim=2, width=16, depth=2, heads=2, context=6, components=3, reward=True, done=True)
KINDS = {"mdn": lambda **k: TransformerMDN(TransformerSettings(**SMALL | k)),
         "trade": lambda **k: TraDE(TraDESettings(**SMALL, density_width=8, density_heads=2, **k)),
         "vit": lambda **k: ViTWM(ViTWMSettings(**SMALL | dict(latent=5), **k))}


def make(kind="mdn", **settings):
    torch.manual_seed(0)
    return KINDS[kind](**settings).eval()


def inputs(n=3, time=20, seed=0):
    rng = torch.Generator().manual_seed(seed)
    z, a = torch.randn(n, time, 5, generator=rng), torch.randn(n, time, 2, generator=rng)
    restart = torch.zeros(n, time, dtype=torch.bool)
    restart[:, 0] = True
    restart[1, 7] = restart[1, 8] = restart[2, 15] = True
    return z, a, restart


def stepped(model, z, a, restart):
    state, features, predictions = model.initial(len(z)), [], []
    with torch.no_grad():
        for t in range(z.shape[1]):
            p, state = model.step(z[:, t], a[:, t], state, restart[:, t])
            features.append(model.features(state).clone()); predictions.append(p)
    return torch.stack(features, 1), predictions


def difference(model, z, a, restart):
    """How far `forward` and `step` are apart."""
    with torch.no_grad(): at_once = model(z, a, restart).features
    return (at_once - stepped(model, z, a, restart)[0]).abs().max().item()


# The contract

@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_step_agree_over_more_than_three_contexts(kind):
    model, (z, a, restart) = make(kind), inputs()
    assert z.shape[1] > 3 * model.settings.context and difference(model, z, a, restart) < 1e-5
    target = torch.randn(3, 20, 5)
    with torch.no_grad():
        p = model(z, a, restart)
        single = stepped(model, z, a, restart)[1]
        for name, at_once in (("nll", p.nll(target)), ("reward", p.reward), ("done", p.done)):
            one = torch.stack([s.nll(target[:, t]) if name == "nll" else getattr(s, name) for t, s in enumerate(single)], 1)
            assert at_once.shape == (3, 20) and torch.allclose(at_once, one, atol=1e-4)


def test_a_broken_cache_disagrees(monkeypatch):
    model, (z, a, restart) = make(), inputs()
    broken = {"the age is ignored": lambda at, age, context: torch.ones(len(age), context, dtype=torch.bool),
              "one slot too few": lambda at, age, context: ring_mask(at, age, context) & (ring_mask(at, age - 1, context) | (age == 1)[:, None])}
    for mask in broken.values():
        monkeypatch.setattr(transformer, "ring_mask", mask)
        assert difference(model, z, a, restart) > 1e-2
    monkeypatch.undo()
    monkeypatch.setattr(transformer, "window_mask", lambda restart, context: window_mask(restart, 10**6))
    assert difference(model, z, a, restart) > 1e-2  # forward looks further back than the ring does
    monkeypatch.undo()
    monkeypatch.setattr(transformer, "rotate", lambda x, at: rotate(x, at % 6 if len(at) == 1 else at))
    assert difference(model, z, a, restart) > 1e-2  # a position that begins anew with the ring is no distance; len(at) is 1 in a step


@pytest.mark.parametrize("kind", KINDS)
def test_take_and_reset(kind):
    model, (z, a, _) = make(kind), inputs()
    state = model.initial(3)
    assert len(state) == 3 and not model.features(state).any() and model.features(state).shape == (3, model.features_dim)
    for t in range(9): _, state = model.step(z[:, t], a[:, t], state)
    some = state.take([2, 0, 0])
    mask = state.take(torch.tensor([True, False, True]))
    part, whole = state.take(slice(2)), state.take(slice(3))
    assert [len(s) for s in (some, mask, part, whole)] == [3, 2, 2, 3]
    cleared = state.reset(torch.tensor([False, True, False]))
    assert not model.features(cleared)[1].any() and model.features(cleared)[0].any() and model.features(state)[1].any()
    go = lambda s, rows: model.features(model.step(z[rows, 9], a[rows, 9], s)[1])
    new = go(model.initial(1), [1])
    picked, masked, cut = go(some, [2, 0, 0]), go(mask, [0, 2]), go(part, [0, 1])
    after = go(cleared, [0, 1, 2])  # the last one: it writes into the ring of `state`
    assert torch.allclose(after[1:2], new, atol=1e-5) and torch.allclose(picked, after[[2, 0, 0]], atol=1e-5)
    assert torch.allclose(masked, after[[0, 2]], atol=1e-5) and torch.allclose(cut[0], after[0], atol=1e-5)


def test_a_state_is_stepped_once():
    model, (z, a, _) = make(), inputs()
    state = model.initial(3)
    copy = state.take([0, 1, 2])
    model.step(z[:, 0], a[:, 0], state)
    for again in (lambda: model.step(z[:, 0], a[:, 0], state), lambda: state.take([0]), lambda: state.reset([0])):
        with pytest.raises(ValueError, match=r"has seen 0 steps, and its ring has gone on to 1.*take\(\)"): again()
    model.step(z[:, 1], a[:, 1], copy)


@pytest.mark.parametrize("kind", KINDS)
def test_256_worlds_at_once_are_256_worlds(kind):
    model, (z, a, restart) = make(kind), inputs(256, 20)
    together = stepped(model, z, a, restart)[0]
    assert torch.allclose(together[100:101], stepped(model, z[100:101], a[100:101], restart[100:101])[0], atol=1e-5)


def test_a_step_costs_the_same_at_10_and_at_1000():
    model = TransformerMDN().eval()
    z, a, state, cost = torch.randn(32, 32), torch.randn(32, 3), model.initial(32), []
    with torch.inference_mode():
        for _ in range(1010):
            began = time.perf_counter()
            state = model.step(z, a, state)[1]
            cost.append(time.perf_counter() - began)
    assert np.quantile(cost[-200:], 0.2) < 1.5 * np.quantile(cost[5:205], 0.2)


def test_dreaming_is_its_seeds():
    for kind in KINDS:
        model, (z, a, _) = make(kind), inputs(3, 20)
        dream = lambda seed: open_loop(model, z, a, 4, seed=seed)
        assert dream(0).shape == (3, 16, 5) and torch.equal(dream(0), dream(0)) and not torch.equal(dream(0), dream(1))


def test_the_maps_are_the_weights():
    model, (z, a, _) = make(), inputs()
    maps = attention_maps(model, z, a)
    assert maps.shape == (2, 3, 2, 20, 20) and torch.allclose(maps.sum(-1), torch.ones(2, 3, 2, 20), atol=1e-5)
    assert not maps.triu(1).any() and not maps.tril(-6).any()


# Errors

@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_told_with_both_sides(kind):
    model, (z, a, _) = make(kind), inputs()
    with pytest.raises(ValueError, match=r"expects z \(…, 5\) and a \(…, 2\), got \(3, 20, 4\)"): model(z[..., :4], a)
    with pytest.raises(ValueError, match=r"expects z \(…, 5\).*got \(3, 4\)"): model.step(z[:, 0, :4], a[:, 0], model.initial(3))
    with pytest.raises(ValueError, match=r"at most 10 steps.*got \(3, 20, 5\)"): make(kind, longest=10)(z, a)
    with pytest.raises(ValueError, match=r"ring is \(2, 2, 6, 8\).*is \(2, 2, 9, 8\)"):
        TransformerMDN(TransformerSettings(**SMALL | {"context": 9})).step(z[:, 0], a[:, 0], model.initial(3))


@pytest.mark.parametrize("cls, change, message", [
    (TransformerSettings, dict(width=100, heads=8), "multiple of 2 · heads = 16"), (TransformerSettings, dict(context=0), "context must be at least 1, not 0"),
    (TraDESettings, dict(density_width=12), "density_width must be a multiple of 2 · density_heads = 8"),
    (ViTWMSettings, dict(patch=10), "must divide the frame's 64 pixels"), (ViTWMSettings, dict(size=80), "64 or 96, not 80")])
def test_settings_are_checked(cls, change, message):
    with pytest.raises(ValueError, match=message): cls(**change)


def test_a_checkpoint_of_another_dynamics(tmp_path):
    save_model(tmp_path / "m.safetensors", MDNRNN(MDNRNNSettings(latent=5, action_dim=2, hidden=4)))
    with pytest.raises(ValueError, match="holds a MDNRNN, and a TransformerMDN was asked for"): load_model(tmp_path / "m.safetensors", TransformerMDN)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same(kind, tmp_path):
    model, (z, a, _) = make(kind), inputs()
    save_model(tmp_path / "m.safetensors", model)
    back = load_model(tmp_path / "m.safetensors", Dynamics)
    assert type(back) is type(model) and torch.equal(back(z, a).nll(z), model(z, a).nll(z))


def test_one_model_that_is_both_is_saved_once_and_shared(tmp_path):
    model = make("vit")
    WorldModel(model, model).save(tmp_path)
    world = WorldModel.load(tmp_path)
    assert world.vision is world.dynamics and isinstance(world.vision, ViTWM)
    assert (tmp_path / "dynamics.safetensors").stat().st_size < 1000
    assert isinstance(load_model(tmp_path / "dynamics.safetensors", Dynamics), ViTWM)
    other = MDNRNN(MDNRNNSettings(latent=5, action_dim=2, hidden=4))
    WorldModel(model, other).save(tmp_path)
    assert isinstance(WorldModel.load(tmp_path).dynamics, MDNRNN)


# TraDE

def head(cls=DensityHead, latent=5):
    torch.manual_seed(0)
    return cls(8, latent, components=3, width=8, heads=2)


def given_by(head):
    features = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    return lambda z: torch.cat([getattr(head(features).given(z[None]), name)[0] for name in ("mu", "log_sigma", "log_pi")], -1)


class Peeking(DensityHead):
    def shift(self, z): return z


def test_trade_is_autoregressive_over_dimensions(): test_order(given_by(head()))


def test_the_order_fails_where_it_is_broken(monkeypatch):
    with pytest.raises(CheckFailed, match="told what it is to predict"): test_order(given_by(head(Peeking)))
    plain = MixtureHead(8, 5)
    with pytest.raises(CheckFailed, match="10 of 10 do not matter"): test_order(lambda z: plain(torch.zeros(8)).mu + 0 * z[:, None])
    blind = head()
    blind.backbone.forward = lambda x: blind.backbone.see(x)
    with pytest.raises(CheckFailed, match="does not depend on z_i itself"): test_order(given_by(blind))


def test_one_pass_and_dimension_by_dimension_agree():
    h = head()
    features, z = torch.randn(4, 3, 8), torch.randn(4, 3, 5)
    with torch.no_grad():
        whole, state, last = h(features).given(z), h.backbone.initial(12), torch.zeros(12, 1)
        plain, about = h.plain(features.view(12, 8)).unflatten(-1, (5, 1, 3, -1)), h.about(features.view(12, 8))
        for i in range(5):
            state = h.backbone.step(h.value(last) + h.place[i] + about, state)
            assert torch.allclose(h.mixture(plain[:, i], state.h[:, None]).mu.view(4, 3, -1), whole.mu[..., i, :], atol=1e-5)
            last = z.view(12, 5)[:, i:i + 1]


def test_its_samples_have_its_density():
    """The share of samples in a box is the integral of the density over it."""
    torch.manual_seed(0)
    h = DensityHead(1, 2, components=2, width=8, heads=2)
    torch.nn.init.normal_(h.correction.weight, std=0.5)
    z = h(torch.zeros(20_000, 1)).sample(generator=torch.Generator().manual_seed(0))
    grid = torch.linspace(-6, 6, 241)
    box = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).flatten(0, 1)
    with torch.no_grad(): p = torch.exp(-h(torch.zeros(len(box), 1)).nll(box)) * (grid[1] - grid[0])**2
    assert p.sum().item() == pytest.approx(1, abs=0.02)
    for inside in (lambda z: (z > 0).all(-1), lambda z: (z[:, 0] > 0) & (z[:, 1] < 0)):
        assert inside(z).float().mean().item() == pytest.approx(p[inside(box)].sum().item(), abs=0.03)


# ViT-WM

def frames_store(path, steps=(30, 12, 25), action_dim=2):
    rng = np.random.default_rng(0)
    store = RolloutStore.create(path, "toy", 64, action_dim)
    def episode(seed, n):
        frames = np.zeros((n + 1, 64, 64, 3), np.uint8)
        frames[...] = (100 * seed + np.arange(n + 1))[:, None, None, None]
        done = np.arange(n) == n - 1
        return Episode(frames=frames, actions=rng.normal(size=(n, action_dim)).astype(np.float32), rewards=np.arange(n, dtype=np.float32),
                       terminated=done, truncated=np.zeros(n, bool), seed=seed)
    store.append([episode(i, n) for i, n in enumerate(steps)])
    return store


def batch_of(model, n=2, time=6):
    rng = torch.Generator().manual_seed(0)
    return dict(frames=torch.randint(256, (n, time + 1, 64, 64, 3), dtype=torch.uint8, generator=rng), a=torch.randn(n, time, 2, generator=rng),
                reward=torch.zeros(n, time), terminated=torch.zeros(n, time, dtype=torch.bool), restart=torch.zeros(n, time, dtype=torch.bool),
                mask=torch.ones(n, time, dtype=torch.bool))


def leak(loss):
    """The gradient of the encoder's head from the NLL of the first step alone, through its target: frame 1 is no input there."""
    batch = batch_of(loss.model, time=1)
    seen = []
    encode = loss.model.encode
    def watched(frames):
        mu, logvar = encode(frames)
        mu.retain_grad(); seen.append(mu)
        return mu, logvar
    loss.model.encode = watched
    torch.manual_seed(0)
    p = {}
    forward = loss.model.forward
    loss.model.forward = lambda *args: p.setdefault("p", forward(*args))
    target = loss.target
    loss.target = lambda z: p.setdefault("target", target(z))
    loss(batch)
    p["p"].nll(p["target"]).sum().backward()
    return seen[0].grad.view(2, 2, -1)[:, 1].abs().max().item()


class Leaking(ClipLoss):
    def target(self, z): return z


def test_the_target_is_not_trained():
    assert leak(ClipLoss(make("vit"))) == 0
    assert leak(Leaking(make("vit"))) > 0
    test_stop_gradient(ClipLoss(make("vit")).target)
    with pytest.raises(CheckFailed, match="no gradient flows"): test_stop_gradient(Leaking(make("vit")).target)


def test_patches_are_rows_of_squares():
    frames = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    cut = patches(frames, 16)
    assert cut.shape == (2, 16, 768)
    assert torch.allclose(cut[1, 6], frames[1, 16:32, 32:48].flatten().float() / 255 - 0.5)


def test_vit_is_a_vision():
    model = make("vit")
    frames = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    mu, logvar = model.encode(frames)
    assert isinstance(model, Vision) and mu.shape == logvar.shape == (3, 5) and not torch.equal(mu[0], mu[1])
    assert torch.allclose(model.encode(frames[1:2])[0], mu[1:2], atol=1e-5)
    x = model.decode(mu)
    assert x.shape == (3, 64, 64, 3) and 0 <= x.min() and x.max() <= 1
    with pytest.raises(ValueError, match=r"encodes frames \(n, 64, 64, 3\) uint8, got \(3, 96, 96, 3\)"): model.encode(torch.zeros(3, 96, 96, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"decodes latents \(n, 5\), got \(3, 4\)"): model.decode(mu[:, :4])


def test_clips_follow_the_episodes(tmp_path):
    store = frames_store(tmp_path / "s")
    batch = next(clips(store, 16, 32))
    start, episode = batch["reward"][:, 0], batch["frames"][:, 0, 0, 0, 0].long() // 100
    t = start[:, None] + torch.arange(16)
    last = torch.from_numpy(store.lengths)[episode]
    assert torch.equal(batch["mask"], t < last[:, None]) and torch.equal(batch["restart"], t == 0)
    assert torch.equal(batch["reward"][batch["mask"]], t[batch["mask"]])
    value = batch["frames"][:, :, 5, 5, 1].long() - 100 * episode[:, None]
    along = torch.minimum(start[:, None] + torch.arange(17), last[:, None]).long()
    assert torch.equal(value, along) and set(episode.tolist()) == {0, 1, 2}
    again = clips(store, 16, 32, step=2)
    stream = clips(store, 16, 32)
    for _ in range(2): next(stream)
    assert all(torch.equal(x, y) for x, y in zip(next(stream).values(), next(again).values()))
    with pytest.raises(ValueError, match="at least 1 episode"): next(clips(store, 16, 4, episodes=[]))


def test_training_lowers_the_loss_and_resumes(tmp_path):
    store, settings = frames_store(tmp_path / "s"), ViTWMSettings(**SMALL)
    for name in "ab": (tmp_path / name).mkdir()
    train = lambda steps, folder: train_vit_wm(store, settings, FitSettings(steps=steps, batch=4, lr=2e-3, checkpoint_every=6), 6, folder)
    batch = next(clips(store, 6, 8, seed=9))
    def loss(model):
        torch.manual_seed(0)
        with torch.no_grad(): value, parts = ClipLoss(model)(batch)
        assert all(x.isfinite() for x in parts.values()) and set(parts) == {"reconstruction", "nll", "reward", "done", "kl"}
        return value.item()
    torch.manual_seed(0)
    start = loss(ViTWM(settings))
    whole = train(12, tmp_path / "a")
    assert loss(whole) < start
    train(6, tmp_path / "b")
    resumed = train(12, tmp_path / "b")
    assert all(torch.equal(x, y) for x, y in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_what_does_not_fit_the_store_is_told(tmp_path):
    store = frames_store(tmp_path / "s")
    with pytest.raises(ValueError, match="frames of 64 pixels.*made for 96"): train_vit_wm(store, ViTWMSettings(**SMALL, size=96), FitSettings(steps=1))
    with pytest.raises(ValueError, match="actions of 2.*made for 3"): train_vit_wm(store, ViTWMSettings(), FitSettings(steps=1))
    with pytest.raises(ValueError, match="clips of 40 steps.*takes 1 to 8"): train_vit_wm(store, ViTWMSettings(**SMALL, longest=8), FitSettings(steps=1), 40)


# The exercises

def test_the_references_pass():
    test_attention(F.scaled_dot_product_attention)
    test_window_mask(window_mask); test_rotate(rotate); test_ring_mask(ring_mask)


def plain_attention(scale=True, axis=-1, before=True):
    def attention(q, k, v, mask):
        match = q @ k.transpose(-2, -1) / (q.shape[-1] ** 0.5 if scale else 1)
        if before: return match.masked_fill(~mask, -torch.inf).softmax(axis) @ v
        return (match.softmax(axis) * mask) @ v
    return attention


def turned(base=10_000.0, sign=1, single=False, dtype=torch.float64, scale=1):
    def rotate(x, at):
        half = x.shape[-1] // 2
        speed = base ** (-torch.arange(half, dtype=dtype) / half) if not single else torch.ones(half, dtype=dtype)
        cos, sin = ((at.to(dtype)[:, None] * speed).cos().float(), (at.to(dtype)[:, None] * speed).sin().float())
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, scale * a * sin + sign * b * cos], -1)
    return rotate


def windowed(strict=False, wide=0, segments=True, future=False, one_row=False):
    def window_mask(restart, context):
        t = torch.arange(restart.shape[1])
        back = t[:, None] - t
        e = restart.cumsum(1)
        if one_row: e = e[:1].expand_as(e)
        same = (e[:, :, None] == e[:, None]) if segments else torch.ones_like(e[:, :, None] == e[:, None])
        low = back > 0 if strict else back > -10 if future else back >= 0
        return (low & (back < context + wide) & same)[:, None]
    return window_mask


@pytest.mark.parametrize("test, right", [(test_attention, plain_attention()), (test_rotate, turned()), (test_window_mask, windowed())])
def test_a_right_answer_in_other_words_passes(test, right): test(right)


@pytest.mark.parametrize("test, wrong, message", [
    (test_attention, plain_attention(scale=False), "divided by √d"),
    (test_attention, plain_attention(axis=-2), "weights sum to 1 over the keys"),
    (test_attention, plain_attention(before=False), "own value"),
    (test_rotate, turned(single=True), "different speeds"),
    (test_rotate, turned(dtype=torch.float32), "double precision"),
    (test_rotate, turned(sign=-1), "turns nothing"),
    (test_rotate, turned(scale=-1), "keeps lengths|distance alone"),
    (test_rotate, lambda x, at: x + at[:, None], "keeps lengths"),
    (test_window_mask, windowed(strict=True), "sees itself"),
    (test_window_mask, windowed(future=True), "no token sees a later one"),
    (test_window_mask, windowed(wide=1), "three tokens, itself among them"),
    (test_window_mask, windowed(segments=False), "before a restart"),
    (test_window_mask, windowed(one_row=True), "own restarts"),
    (test_ring_mask, lambda at, age, context: torch.arange(context) < age[:, None], "just written"),
    (test_ring_mask, lambda at, age, context: (at - torch.arange(context)) % context <= age[:, None], "just written"),
    (test_ring_mask, lambda at, age, context: ((at % context - torch.arange(context)) >= 0) & ((at % context - torch.arange(context)) < age[:, None]),
     "begins anew")])
def test_a_wrong_answer_is_told(test, wrong, message):
    with pytest.raises(CheckFailed, match=message): test(wrong)
