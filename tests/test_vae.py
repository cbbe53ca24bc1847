"""V: its numbers, its settings, its loss, what it refuses, and a store seen through it."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldmodels import vae
from worldmodels.tools import encoding
from worldmodels.tools.store import Episode, RolloutStore
from worldmodels.tools.training import FitSettings
from worldmodels.tools.world import load_model, save_model
from worldmodels.tools.encoding import Latents, decode_frames, encode_frames, encode_store
from worldmodels.tools.sliders import latent_sliders
from worldmodels.vae import (VAE, VAESettings, kl_divergence, reconstruction_error, to_planes, train_vae,
                             vae_loss)

SETTINGS = [VAESettings(), VAESettings(latent=64), VAESettings(latent=3, size=96),
            VAESettings(likelihood="bernoulli")]


def noise(n: int, size: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def blocks(n: int, seed: int = 0) -> np.ndarray:
    """Green frames, each with a grey block somewhere: a picture with little to say."""
    rng = np.random.default_rng(seed)
    frames = np.full((n, 64, 64, 3), (100, 200, 100), np.uint8)
    for frame, (y, x) in zip(frames, rng.integers(0, 48, (n, 2))): frame[y:y + 16, x:x + 16] = 105
    return frames


def episode(frames: np.ndarray, steps: int, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(steps, 3)).astype(np.float32)
    rewards = rng.normal(size=steps).astype(np.float32)
    return Episode(frames, actions, rewards, np.arange(steps) == steps - 1, np.zeros(steps, bool), seed)


@pytest.fixture(scope="module")
def model() -> VAE:
    torch.manual_seed(0)
    return VAE().eval()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> RolloutStore:
    store = RolloutStore.create(tmp_path_factory.mktemp("v") / "store", "CarRacing-v3", 64, 3)
    as_if_imported = episode(blocks(30, 1), 30, 1)  # T frames
    store.append([episode(blocks(41, 0), 40, 0), as_if_imported])
    store.append([episode(blocks(6, 2), 5, 2)])
    return store


# the numbers of the paper, and all settings

@pytest.mark.parametrize("settings, parameters", [
    (VAESettings(), 4_348_547), (VAESettings(latent=64), 4_446_915),
    (VAESettings(likelihood="bernoulli"), 4_348_547),
    (VAESettings(size=96), 2_274_051), (VAESettings(latent=1024), 7_397_955)])
def test_parameters(settings, parameters):
    assert sum(p.numel() for p in VAE(settings).parameters() if p.requires_grad) == parameters


@pytest.mark.parametrize("settings", SETTINGS)
def test_shapes_at_all_settings(settings):
    v, frames = VAE(settings), torch.from_numpy(noise(2, settings.size))
    mu, logvar = v.encode(frames)
    assert mu.shape == logvar.shape == (2, settings.latent)
    pictures = v.decode(mu)
    assert pictures.shape == frames.shape and pictures.dtype == torch.float32
    assert 0 <= pictures.min() and pictures.max() <= 1
    logits, mu, logvar = v(frames)
    assert logits.shape == (2, 3, settings.size, settings.size)
    assert mu.shape == logvar.shape == (2, settings.latent)
    loss, parts = vae_loss(v, frames, settings)
    loss.backward()
    assert loss.isfinite() and set(parts) == {"reconstruction", "kl"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in v.parameters())


@pytest.mark.parametrize("wrong, message", [
    (dict(size=84), "64 or 96"), (dict(likelihood="mse"), "gaussian or bernoulli, not 'mse'"),
    (dict(latent=0), "latent"), (dict(beta=-1.0), "beta"), (dict(kl_floor=-0.5), "kl_floor"),
    (dict(focus=-0.1), "focus must be at least 0, not -0.1")])
def test_settings_without_a_v_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): VAESettings(**wrong)


# layout

def test_planes_are_channels_last_and_in_order():
    frames = torch.from_numpy(noise(2))
    planes = to_planes(frames)
    assert planes.is_contiguous(memory_format=torch.channels_last) and planes.dtype == torch.float32
    assert planes[1, 2, 5, 7] == frames[1, 5, 7, 2] / 255


def test_the_memory_layout_changes_no_value(model):
    frames = torch.from_numpy(noise(3))
    other = VAE()
    other.load_state_dict(model.state_dict())
    other = other.to(memory_format=torch.contiguous_format)
    z = torch.randn(3, 32)
    with torch.no_grad():
        for a, b in zip(model.encode(frames), other.encode(frames)): assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(model.decode(z), other.decode(z), atol=1e-5)


def test_weights_stay_channels_last_after_loading(model, tmp_path):
    save_model(tmp_path / "v.safetensors", model)
    again = load_model(tmp_path / "v.safetensors", VAE)
    assert again.settings == model.settings
    assert again.encoder[2].weight.is_contiguous(memory_format=torch.channels_last)
    frames = torch.from_numpy(noise(2))
    with torch.no_grad(): assert torch.equal(again.encode(frames)[0], model.encode(frames)[0])


def test_decode_is_the_sigmoid_of_forward(model):
    frames = torch.from_numpy(noise(2))
    with torch.no_grad():
        mu, _ = model.encode(frames)
        assert torch.allclose(model.decode(mu), torch.sigmoid(model.decoder(mu)).permute(0, 2, 3, 1))


@pytest.mark.parametrize("frames", [noise(1, 96), noise(1)[0], noise(1).transpose(0, 3, 1, 2), noise(1) / 255,
                                    noise(1).astype(np.int64)])
def test_encode_names_the_frames_it_wants(model, frames):
    with pytest.raises(ValueError, match=r"\(n, 64, 64, 3\) uint8, got"):
        model.encode(torch.from_numpy(frames))


@pytest.mark.parametrize("z", [torch.zeros(32), torch.zeros(1, 64), torch.zeros(2, 3, 32)])
def test_decode_names_the_latents_it_wants(model, z):
    with pytest.raises(ValueError, match=r"\(n, 32\), got"): model.decode(z)


# the loss

def test_the_loss_is_bernoulli_or_gaussian():
    logits, planes = torch.randn(3, 3, 8, 8), torch.rand(3, 3, 8, 8)
    p = torch.sigmoid(logits)
    coins = -torch.distributions.Bernoulli(p, validate_args=False).log_prob(planes).sum((1, 2, 3))
    assert torch.allclose(reconstruction_error(logits, planes, "bernoulli"), coins)
    assert torch.allclose(reconstruction_error(logits, planes), ((p - planes) ** 2).sum((1, 2, 3)))


def test_under_the_floor_the_kl_has_no_gradient():
    """Per sample, on the total: one frame's KL below the floor is not pressed, whatever the other's is."""
    mu = torch.zeros(2, 32)
    mu[0, :4], mu[1] = 1.0, 3.0  # KL 2 and 144; the floor is 16
    mu.requires_grad_()
    frames = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    def v(frames): return torch.zeros(2, 3, 64, 64), mu, torch.zeros(2, 32)
    loss, parts = vae_loss(v, frames, VAESettings())
    loss.backward()
    assert torch.equal(mu.grad[0], torch.zeros(32)) and torch.allclose(mu.grad[1], mu[1] / 2)
    assert parts["kl"] == 73 and loss == parts["reconstruction"] + (16 + 144) / 2
    mu.grad = None
    vae_loss(v, frames, VAESettings(kl_floor=0.0))[0].backward()
    assert torch.allclose(mu.grad, mu / 2)


def test_the_kl_is_torchs():
    mu, logvar = torch.randn(2, 7, 5, 4)
    q = torch.distributions.Normal(mu, torch.exp(0.5 * logvar))
    p = torch.distributions.Normal(0.0, 1.0)
    exact = torch.distributions.kl_divergence(q, p).sum(-1)
    assert torch.allclose(kl_divergence(mu, logvar), exact, atol=1e-5)


# arrays in batches

def test_encode_frames_is_encode(model, monkeypatch):
    frames = np.concatenate([blocks(5), noise(2)])
    with torch.no_grad(): exact = [x.numpy() for x in model.encode(torch.from_numpy(frames))]
    for got, wanted in zip(encode_frames(model, frames, batch=3), exact):
        assert got.dtype == np.float32 and got.shape == (7, 32)
        np.testing.assert_allclose(got, wanted, atol=0.02)  # bfloat16, where the processor has it
    monkeypatch.setattr(encoding, "has_bf16", lambda: False)
    for got, wanted in zip(encode_frames(model, frames, batch=3), exact):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_decode_frames_is_decode(model, monkeypatch):
    z = np.random.default_rng(0).normal(size=(5, 32))
    with torch.no_grad(): exact = model.decode(torch.from_numpy(z).float()).numpy()
    got = decode_frames(model, z, batch=2)
    assert got.dtype == np.float32 and 0 <= got.min() and got.max() <= 1
    np.testing.assert_allclose(got, exact, atol=0.02)
    monkeypatch.setattr(encoding, "has_bf16", lambda: False)
    np.testing.assert_allclose(decode_frames(model, torch.from_numpy(z), batch=2), exact, atol=1e-5)


# a store seen through V

def test_encode_store_lays_episodes_end_to_end(model, store, tmp_path):
    latents = encode_store(model, store)
    assert latents.first.tolist() == [0, 41, 71] and len(latents) == 3
    assert latents.lengths.tolist() == [40, 29, 5]  # the imported one's last action leads to no frame
    assert latents.mu.shape == latents.logvar.shape == (77, 32) and latents.actions.shape == (77, 3)
    assert latents.rewards.shape == latents.terminated.shape == (77,)
    assert latents.terminated.dtype == torch.bool
    for i, ep in enumerate(store.episodes()):
        here = latents.episode(i)
        assert here.stop - here.start == len(ep.frames) == latents.lengths[i] + 1
        np.testing.assert_array_equal(latents.mu[here], encode_frames(model, ep.frames)[0])
        for name in ("actions", "rewards", "terminated"):
            got = getattr(latents, name)[here]
            np.testing.assert_array_equal(got[:len(ep)], getattr(ep, name))
            assert len(got) == len(ep.frames) and not got[len(ep):].any()
    latents.save(tmp_path / "latents.safetensors")
    again = Latents.load(tmp_path / "latents.safetensors")
    assert vars(again).keys() == vars(latents).keys() and again.repeat == latents.repeat == 1
    for name, tensor in vars(latents).items():
        if name == "repeat": continue
        assert torch.equal(getattr(again, name), tensor) and getattr(again, name).dtype == tensor.dtype


def test_encode_store_takes_the_episodes_asked_for(model, store):
    latents = encode_store(model, store, [2, 0])
    assert latents.lengths.tolist() == [5, 40] and latents.first.tolist() == [0, 6]
    mu, _ = encode_frames(model, store.episode(2).frames)
    np.testing.assert_array_equal(latents.mu[latents.episode(0)], mu)


def test_what_moved_is_found_where_it_was():
    for name in ("Latents", "encode_store", "encode_frames", "decode_frames"):
        assert getattr(vae, name) is getattr(encoding, name)


# training

FIT = FitSettings(steps=12, batch=16, lr=1e-3, checkpoint_every=5)


def test_training_lowers_the_loss_on_unseen_frames(store, tmp_path):
    unseen, settings = torch.from_numpy(blocks(32, 9)), VAESettings()
    torch.manual_seed(3)
    before = VAE()
    trained = train_vae(store, settings, FIT, tmp_path, seed=3, episodes=[0, 1])
    with torch.no_grad(): old, new = (vae_loss(v, unseen, settings)[0] for v in (before, trained))
    assert new < 0.6 * old and not trained.training
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 12 and {"loss", "reconstruction", "kl"} <= lines[-1].keys()


def test_a_killed_training_goes_on_bit_for_bit(store, tmp_path):
    class Killed(Exception): pass

    class Dying(RolloutStore):
        def batches(self, *args):
            stream = super().batches(*args)
            for _ in range(3): yield next(stream)
            raise Killed

    four = replace(FIT, steps=4, checkpoint_every=2)
    for name in ("whole", "killed"): (tmp_path / name).mkdir()
    whole = train_vae(store, VAESettings(), four, tmp_path / "whole")
    with pytest.raises(Killed): train_vae(Dying(store.path), VAESettings(), four, tmp_path / "killed")
    again = train_vae(store, VAESettings(), four, tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "killed/metrics.jsonl").read_text()


def test_training_begins_where_start_ends(model, store):
    still = replace(FIT, steps=1, lr=1e-12)
    near = train_vae(store, VAESettings(), still, start=model)
    pairs = zip(near.state_dict().values(), model.state_dict().values())
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in pairs)


def test_every_update_can_be_watched(store):
    steps = []
    train_vae(store, VAESettings(), replace(FIT, steps=3), on_step=lambda step, metrics: steps.append(step))
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("settings", [VAESettings(latent=64), VAESettings(size=96)])
def test_a_store_or_start_of_another_shape_is_refused(settings, model, store, tmp_path):
    with pytest.raises(ValueError, match="frames of 64 pixels|a latent of 32"):
        train_vae(store, settings, FIT, tmp_path / "run", start=model)
    assert not (tmp_path / "run").exists()


# the widget

def test_sliders_redraw_the_picture(model):
    z = np.zeros(32, np.float32)
    z[5] = 4.5
    box = latent_sliders(model, z, [5, 0])
    picture, sliders = box.children[0], box.children[1].children
    assert picture.value[:4] == b"\x89PNG"
    assert [slider.value for slider in sliders] == [4.5, 0.0]  # beyond the range, and kept
    before = picture.value
    sliders[1].value = 3.0
    assert picture.value != before
    sliders[1].value = 0.0
    assert picture.value == before


@pytest.mark.parametrize("z, dims", [(np.zeros(31), [0]), (np.zeros((1, 32)), [0]), (np.zeros(32), [32]),
                                     (np.zeros(32), [-1])])
def test_sliders_name_the_z_they_want(model, z, dims):
    with pytest.raises(ValueError, match=r"z must be \(32,\) and dims below 32"):
        latent_sliders(model, z, dims)


def test_a_mirror_shows_about_half_of_the_frames_turned_and_the_others_as_they_are():
    frames = torch.randint(0, 255, (400, 6, 6, 3), dtype=torch.uint8)
    torch.manual_seed(0)
    shown = vae.mirror(frames)
    turned, same = (shown == frames.flip(2)).flatten(1).all(1), (shown == frames).flatten(1).all(1)
    assert (turned ^ same).all() and 150 < turned.sum() < 250


def test_flipping_is_a_setting(store, monkeypatch):
    calls = []
    def mirror(frames):
        calls.append(len(frames))
        return frames
    monkeypatch.setattr(vae, "mirror", mirror)
    for flip in (False, True):
        train_vae(store, VAESettings(flip=flip), FitSettings(steps=2, batch=8), episodes=[0])
        assert calls == ([8, 8] if flip else [])
