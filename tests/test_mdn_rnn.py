"""M: densities, sampling, memory, windows, training, and what it is judged by."""
import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch.distributions import Normal

from solutions.mdn_rnn import learn_alone
from solutions.settings import TrainSettings
from worldmodels import mdn_rnn
from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.mdn_rnn import (LOG_SIGMA_FLOOR, MDNRNN, Mixture, MixtureHead, dynamics_loss, held_out_nll,
                                 horizon_error, open_loop, run_lstm, train_dynamics)
from worldmodels.nll_baselines import gaussian_nll, linear_nll, noise_nll, repeat_nll
from worldmodels.sequences import segments, whole_episodes, windows
from worldmodels.tools.training import FitSettings
from worldmodels.tools.world import load_model, save_model
from worldmodels.tools.encoding import Latents

SMALL = MDNRNNSettings(latent=4, action_dim=2, hidden=8, components=3)
DOOM = MDNRNNSettings(latent=64, action_dim=1, hidden=512, done=True, restart=True, features="hc")


def make_latents(lengths=(30, 12, 50), latent=4, action_dim=2, logvar=-4.0) -> Latents:
    """Episodes whose mu is episode + time / 100 in every dimension; actions and rewards count the time."""
    mu, t = [], []
    for e, steps in enumerate(lengths):
        t.append(torch.arange(steps + 1.0))
        mu.append((100 * e + t[-1])[:, None].expand(-1, latent) / 100)
    mu, t = torch.cat(mu), torch.cat(t)
    n = torch.tensor(lengths)
    ends = (n + 1).cumsum(0)
    done = torch.zeros(len(mu), dtype=torch.bool)
    done[ends - 2] = True
    actions = t[:, None].expand(-1, action_dim).clone()
    return Latents(mu=mu, logvar=torch.full_like(mu, logvar), actions=actions, rewards=t.clone(),
                   terminated=done, first=ends - n - 1, lengths=n)


def moving(episodes=8, steps=60, seed=0) -> Latents:
    """z' = 0.9 z + action + a kick to the left or right, known only by its size: what a mixture is for."""
    rng = torch.Generator().manual_seed(seed)
    mu, a = [], torch.rand(episodes, steps + 1, 1, generator=rng) - 0.5
    for e in range(episodes):
        z = torch.zeros(2)
        for t in range(steps + 1):
            mu.append(z)
            z = 0.9 * z + a[e, t] + (torch.randint(0, 2, (2,), generator=rng) * 2.0 - 1)
    zeros = torch.zeros(len(mu))
    return Latents(mu=torch.stack(mu), logvar=torch.full((len(mu), 2), -5.0), actions=a.flatten(0, 1),
                   rewards=zeros, terminated=zeros.bool(), first=torch.arange(episodes) * (steps + 1),
                   lengths=torch.full((episodes,), steps))


# The mixture

def random_mixture(shared=False, shape=(7,), latent=3, k=4):
    torch.manual_seed(0)
    return Mixture(torch.randn(*shape, 1 if shared else latent, k), torch.randn(*shape, latent, k),
                   torch.randn(*shape, latent, k) * 0.3)


def test_own_weights_multiply_outside_the_sum():
    m, z = random_mixture(), torch.randn(7, 3)
    p = (m.log_pi.exp() * Normal(m.mu, m.log_sigma.exp()).log_prob(z[..., None]).exp()).sum(-1).prod(-1)
    assert torch.allclose(m.nll(z), -p.log(), atol=1e-5)


def test_shared_weights_multiply_inside_the_sum():
    m, z = random_mixture(shared=True), torch.randn(7, 3)
    p = (m.log_pi.exp()[:, 0] * Normal(m.mu, m.log_sigma.exp()).log_prob(z[..., None]).exp().prod(-2)).sum(-1)
    assert torch.allclose(m.nll(z), -p.log(), atol=1e-5)
    assert not torch.allclose(m.nll(z), random_mixture().nll(z), atol=0.1)


@pytest.mark.parametrize("shared", [False, True])
def test_two_dimensions_integrate_to_one(shared):
    grid = torch.linspace(-7, 7, 301)
    z = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)
    m = random_mixture(shared, shape=(1, 1), latent=2)
    assert torch.exp(-m.nll(z)).sum() * (grid[1] - grid[0])**2 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shared", [False, True])
def test_samples_have_the_moments_of_the_density(shared):
    one = random_mixture(shared, shape=(1,))
    m = Mixture(*(x.expand(40_000, -1, -1) for x in (one.log_pi, one.mu, one.log_sigma)))
    z = m.sample(generator=torch.Generator().manual_seed(1))
    pi = one.log_pi.exp()
    var = (pi * (one.mu**2 + (2 * one.log_sigma).exp())).sum(-1) - one.mean()**2
    assert torch.allclose(z.mean(0), one.mean()[0], atol=0.03) and torch.allclose(z.var(0), var[0], rtol=0.04)
    joint = (pi * one.mu[:, :1] * one.mu[:, 1:2]).sum(-1) - one.mean()[:, :1] * one.mean()[:, 1:2]
    assert torch.cov(z.T)[0, 1] == pytest.approx(joint.item() if shared else 0.0, abs=0.03)


@pytest.mark.parametrize("tau", [0.25, 1.0, 2.0])
def test_temperature_divides_logits_and_multiplies_variances(tau):
    n = 40_000
    m = Mixture(*(torch.tensor(x).expand(n, 1, 2) for x in ([2.0, 0.0], [-9.0, 9.0], [math.log(0.5)] * 2)))
    z = m.sample(tau, torch.Generator().manual_seed(0))
    assert (z > 0).float().mean() == pytest.approx(1 / (1 + math.exp(2 / tau)), abs=0.01)
    assert z[z < 0].std() == pytest.approx(0.5 * math.sqrt(tau), rel=0.02)


def test_sampling_is_its_generators():
    m, rng = random_mixture(), lambda seed: torch.Generator().manual_seed(seed)
    torch.manual_seed(5)
    first = m.sample(1.0, rng(3))
    torch.manual_seed(6)
    assert torch.equal(first, m.sample(1.0, rng(3))) and not torch.equal(first, m.sample(1.0, rng(4)))


def test_the_floor_bounds_the_nll():
    m = Mixture(torch.zeros(2, 3), torch.zeros(2, 3), torch.full((2, 3), -1e4, requires_grad=True))
    lowest = 2 * (LOG_SIGMA_FLOOR + 0.5 * math.log(2 * math.pi))
    assert m.nll(torch.zeros(2)).item() == pytest.approx(lowest, abs=1e-4)
    assert m.nll(torch.full((2,), 1e3)).isfinite() and m.sample().std() < 0.1


@pytest.mark.parametrize("make, message", [
    (lambda: Mixture(torch.zeros(3, 5), torch.zeros(3, 5), torch.zeros(3, 4)),
     r"\(3, 5\), \(3, 4\) and \(3, 5\)"),
    (lambda: Mixture(torch.zeros(2, 5), torch.zeros(3, 5), torch.zeros(3, 5)),
     r"or \(…, 1, K\), got .* and \(2, 5\)"),
    (lambda: random_mixture().nll(torch.zeros(7, 1)), "over 3 dimensions has no density for z of 1"),
    (lambda: random_mixture().sample(0.0), "temperature must be above 0, not 0.0"),
    (lambda: random_mixture().sample(float("nan")), "temperature must be above 0, not nan")])
def test_a_mixture_that_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message): make()


@pytest.mark.parametrize("shared, outputs", [(False, 3 * 5 * 32), (True, (2 * 32 + 1) * 5)])
def test_head_widths(shared, outputs):
    head = MixtureHead(16, 32, 5, shared)
    assert head.out_features == outputs
    m = head(torch.randn(2, 7, 16))
    assert m.mu.shape == (2, 7, 32, 5) and m.log_pi.shape == (2, 7, 1 if shared else 32, 5)
    assert m.nll(torch.zeros(2, 7, 32)).shape == (2, 7) and m.sample().shape == (2, 7, 32)


# M

def trainable(model): return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_papers_parameter_counts():
    assert trainable(MDNRNN()) == 422_368 and trainable(MDNRNN(DOOM)) == 1_678_785
    assert MDNRNN().features_dim == 256 and MDNRNN(DOOM).features_dim == 1024


def test_the_second_bias_stays_zero_in_training(tmp_path):
    model = train_dynamics(MDNRNN(SMALL), make_latents(), [0, 1, 2], 8, FitSettings(steps=3, batch=4, lr=0.1))
    assert (model.lstm.bias_hh_l0 == 0).all() and (model.lstm.bias_ih_l0 != 0).any()


@pytest.mark.parametrize("settings", [
    SMALL, replace(SMALL, restart=True, reward=True, done=True, shared=True)])
@pytest.mark.parametrize("restarts", [False, True])
def test_forward_and_step_agree(settings, restarts):
    torch.manual_seed(0)
    model, z, a = MDNRNN(settings).eval(), torch.randn(5, 40, 4), torch.randn(5, 40, 2)
    restart = torch.rand(5, 40) < 0.1
    restart[:, 0] = True
    assert restart[:, 1:].any()
    whole, state = model(z, a, restart if restarts else None), model.initial(5)
    for t in range(40):
        p, state = model.step(z[:, t], a[:, t], state, restart[:, t] if restarts else None)
        assert torch.allclose(p.features, whole.features[:, t], atol=1e-6)
        assert torch.allclose(p.nll(z[:, t]), whole.nll(z)[:, t], atol=1e-4)
        for head in ("reward", "done"):
            stepped, at_once = getattr(p, head), getattr(whole, head)
            if getattr(settings, head): assert torch.allclose(stepped, at_once[:, t], atol=1e-6)
            else: assert stepped is None and at_once is None


def test_a_restart_forgets_everything_and_only_there():
    model, z, a = MDNRNN(replace(SMALL, restart=True)), torch.randn(2, 20, 4), torch.randn(2, 20, 2)
    restart = torch.zeros(2, 20, dtype=torch.bool)
    restart[:, 0] = restart[1, 9] = True
    h = model(z, a, restart).features
    assert torch.allclose(h[1, 9:], model(z[1:, 9:], a[1:, 9:]).features[0], atol=1e-6)
    assert torch.allclose(h[0], model(z[:1], a[:1]).features[0], atol=1e-6)
    none = torch.zeros(2, 20, dtype=torch.bool)  # from an episode's middle: an empty memory, but no beginning
    assert not torch.allclose(model(z, a, none).features, model(z, a).features)


def test_a_reset_state_begins_an_episode():
    model, z, a = MDNRNN(replace(SMALL, restart=True)), torch.randn(3, 4), torch.randn(3, 2)
    fresh, state = model.step(z, a, model.initial(3))
    later, _ = model.step(z, a, state)
    again, _ = model.step(z, a, state.reset([1]))
    assert torch.equal(again.features[1], fresh.features[1])
    assert torch.equal(again.features[[0, 2]], later.features[[0, 2]])
    taken, _ = model.step(z[[2, 0]], a[[2, 0]], state.take([2, 0]))
    assert torch.allclose(taken.features, later.features[[2, 0]], atol=1e-6)


def test_run_lstm_without_restarts_is_the_lstm():
    lstm, x = torch.nn.LSTM(3, 5, batch_first=True), torch.randn(2, 9, 3)
    assert torch.equal(run_lstm(lstm, x, torch.zeros(2, 9, dtype=torch.bool)), lstm(x)[0])


def test_features_are_what_the_controller_sees():
    for kind, width in ("h", 8), ("hc", 16):
        model = MDNRNN(replace(SMALL, features=kind))
        assert (model.features(model.initial(2)) == 0).all()
        _, state = model.step(torch.randn(2, 4), torch.randn(2, 2), model.initial(2))
        assert model.features(state).shape == (2, width) == (2, model.features_dim)
        assert torch.equal(model.features(state)[:, :8], state.h)


def test_real_control_computes_no_head():
    model = MDNRNN(SMALL)
    model.mixture.forward = lambda features: pytest.fail("the mixture was computed")
    model.step(torch.randn(2, 4), torch.randn(2, 2), model.initial(2))


@pytest.mark.parametrize("z, a", [((2, 5, 3), (2, 5, 2)), ((2, 5, 4), (2, 5, 3)), ((2, 5, 4), (2, 6, 2))])
def test_wrong_widths_name_both_sides(z, a):
    with pytest.raises(ValueError) as e: MDNRNN(SMALL)(torch.zeros(z), torch.zeros(a))
    assert str(e.value) == f"MDNRNN expects z (…, 4) and a (…, 2), got {z} and {a}"


@pytest.mark.parametrize("change, message", [(dict(features="x"), "features must be h or hc, not 'x'"),
                                             (dict(components=0), "components must be at least 1, not 0"),
                                             (dict(hidden=-1), "hidden must be at least 1, not -1")])
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message): MDNRNNSettings(**change)


def test_saved_and_loaded_is_the_same(tmp_path):
    model = MDNRNN(replace(SMALL, done=True, restart=True)).eval()
    save_model(tmp_path / "m.safetensors", model)
    z, a = torch.randn(2, 5, 4), torch.randn(2, 5, 2)
    assert torch.equal(load_model(tmp_path / "m.safetensors", MDNRNN)(z, a).nll(z), model(z, a).nll(z))


# What it learns from

def test_windows_follow_the_episodes():
    latents = make_latents(logvar=-60.0)
    seen = set()
    for b in islice(windows(latents, [0, 2], 10, 64), 20):
        assert b["z"].shape == (64, 11, 4) and b["a"].shape == (64, 10, 2) and b["mask"].all()
        t = b["reward"]  # = time
        assert torch.equal(b["a"][..., 0], t) and (t[:, 1:] - t[:, :-1] == 1).all()
        episode = (b["z"][:, 0, 0] - t[:, 0] / 100).round().int()
        z = b["z"][..., 0]
        assert torch.allclose(z[:, :-1] - episode[:, None], t / 100, atol=1e-5)       # z_t with a_t
        assert torch.allclose(z[:, 1:] - z[:, :-1], torch.tensor(0.01), atol=1e-5)    # and its z_{t+1}
        assert torch.equal(b["restart"], t == 0)
        assert torch.equal(b["terminated"], t == torch.where(episode == 0, 29, 49)[:, None])
        seen |= set(zip(episode.tolist(), t[:, 0].int().tolist()))
    places = {(0, s) for s in range(21)} | {(2, s) for s in range(41)}
    assert seen == places  # each to the very end, and no other


def test_a_short_episode_is_masked_beyond_its_end():
    b = next(windows(make_latents(logvar=-60.0), [1], 20, 8))  # 12 steps
    assert torch.equal(b["mask"], (torch.arange(20) < 12).expand(8, 20))
    assert torch.equal(b["z"][:, 12:], b["z"][:, 12:13].expand(8, 9, 4))
    assert torch.allclose(b["z"][:, 12], torch.tensor(1.12))
    assert b["terminated"][:, 11].all() and not b["terminated"][:, 12:].any()


def test_a_batch_is_a_function_of_seed_and_number():
    def take(seed, step, n): return list(islice(windows(make_latents(), [0, 1, 2], 8, 16, seed, step), n))
    five = take(1, 0, 5)
    for k in range(5): assert all(torch.equal(five[k][name], take(1, k, 1)[0][name]) for name in five[k])
    assert not torch.equal(five[0]["z"], five[1]["z"])
    assert not torch.equal(five[0]["z"], take(2, 0, 1)[0]["z"])


def test_z_is_drawn_anew_with_vs_sd():
    batches = islice(windows(make_latents((5,), logvar=2 * math.log(0.3)), [0], 5, 64), 40)
    draws = torch.stack([b["z"][:, 0, 0] for b in batches])
    assert draws.std() == pytest.approx(0.3, rel=0.05) and len(draws.unique()) == draws.numel()


@pytest.mark.parametrize("episodes, length, batch", [([], 8, 4), ([0], 0, 4), ([0], 8, 0)])
def test_windows_of_nothing_are_refused(episodes, length, batch):
    with pytest.raises(ValueError, match=f"got {len(episodes)} episodes, length {length}, batch {batch}"):
        next(windows(make_latents(), episodes, length, batch))


# Training and the loss

def test_the_loss_ignores_what_is_masked():
    torch.manual_seed(0)
    model, b = MDNRNN(replace(SMALL, reward=True, done=True)), next(windows(make_latents(), [1], 20, 8))
    before, parts = dynamics_loss(model, b)
    assert set(parts) == {"nll", "reward", "done"}
    assert before.item() == pytest.approx(float(sum(parts.values())))
    b["z"][:, 13:] += 50; b["reward"][:, 12:] += 50; b["terminated"][:, 12:] = True
    assert torch.equal(dynamics_loss(model, b)[0], before)
    b["z"][:, 12] += 50
    assert dynamics_loss(model, b)[0] > before + 1


def test_a_true_done_counts_ten_times():
    model, b = MDNRNN(replace(SMALL, done=True)), next(windows(make_latents(), [1], 12, 8))
    torch.nn.init.zeros_(model.done.weight), torch.nn.init.zeros_(model.done.bias)
    assert dynamics_loss(model, b)[1]["done"] == pytest.approx((11 + 10) * math.log(2) / 12)
    assert dynamics_loss(model, b, done_weight=1.0)[1]["done"] == pytest.approx(math.log(2))


def test_training_lowers_the_loss_and_beats_the_baselines():
    torch.manual_seed(0)
    latents, train, held_out = moving(12), range(10), [10, 11]
    model = MDNRNN(MDNRNNSettings(latent=2, action_dim=1, hidden=32))
    before = held_out_nll(model, latents, held_out)
    fit = FitSettings(steps=200, batch=16, lr=0.01, lr_end=0.01, bf16=False)
    train_dynamics(model, latents, train, 20, fit)
    after = held_out_nll(model, latents, held_out)
    linear, repeat = linear_nll(latents, train, held_out), repeat_nll(latents, train, held_out)
    assert (after < before).all() and (after < linear - 0.2).all() and (linear < repeat).all()
    assert (noise_nll(latents, held_out) < after).all()


def test_training_is_a_function_of_its_seed_and_resumes(tmp_path):
    def run(steps_done=None, seed=0):
        folder = tmp_path / f"{steps_done}-{seed}"
        folder.mkdir(exist_ok=True)
        for steps in filter(None, (steps_done, 6)):
            torch.manual_seed(0)
            model, settings = MDNRNN(SMALL), FitSettings(steps=steps, batch=4, lr=0.01, checkpoint_every=1)
            train_dynamics(model, make_latents(), [0, 1, 2], 8, settings, folder, seed)
        return torch.cat([p.flatten() for p in model.parameters()])
    assert torch.equal(run(), run(3)) and not torch.equal(run(), run(seed=1))


# What it is judged by

def test_the_same_seed_scores_on_the_same_draws():
    latents = make_latents()
    first, again = (list(whole_episodes(latents, [2, 0], 5)) for _ in range(2))
    assert all(torch.equal(z, z2) and torch.equal(a, a2) for (z, a), (z2, a2) in zip(first, again))
    z, a = first[1]
    assert z.shape == (31, 4) and a.shape == (30, 2) and torch.allclose(z, latents.mu[:31], atol=0.7)
    assert not torch.equal(z, list(whole_episodes(latents, [2, 0], 6))[1][0])


def test_repeat_and_linear_are_what_they_say():
    latents = make_latents((200, 100), logvar=-60.0)  # z goes up by 0.01 a step: only linear knows
    unit = 0.5 * math.log(2 * math.pi) + 0.5  # entropy of a Gaussian of sd 1
    assert repeat_nll(latents, [0], [1])[0] == pytest.approx(math.log(0.01) + unit, abs=1e-3)
    assert linear_nll(latents, [0, 1], [1])[0] < -3.6  # at the floor
    constant = gaussian_nll(lambda z, a: torch.zeros_like(z), latents, [0], [0])
    rms = latents.mu[1:201, 0].pow(2).mean().sqrt()
    assert constant[0] == pytest.approx(math.log(rms) + unit, abs=1e-4)


def test_linear_is_least_squares_even_where_an_action_never_moves():
    latents = moving()
    latents.actions = torch.cat([latents.actions, torch.zeros_like(latents.actions)], 1)
    train = list(whole_episodes(latents, range(6), 3))
    x = torch.cat([torch.cat([z[:-1], a, torch.ones(len(a), 1)], 1) for z, a in train])
    y = torch.cat([z[1:] for z, _ in train])
    w = torch.linalg.lstsq(x, y, driver="gelsd").solution
    def guess(z, a): return torch.cat([z, a, torch.ones(len(z), 1)], 1) @ w
    expected = gaussian_nll(guess, latents, range(6), [6, 7], 3)
    assert torch.allclose(linear_nll(latents, range(6), [6, 7], 3), expected, atol=1e-4)


def test_linear_is_scikit_learns():
    latents = moving()
    train = list(whole_episodes(latents, range(6), 3))
    x = torch.cat([torch.cat([z[:-1], a], 1) for z, a in train]).double()
    line = LinearRegression().fit(x, torch.cat([z[1:] for z, _ in train]).double())
    def guess(z, a): return torch.from_numpy(line.predict(torch.cat([z, a], 1).double())).float()
    expected = gaussian_nll(guess, latents, range(6), [6, 7], 3)
    assert torch.allclose(linear_nll(latents, range(6), [6, 7], 3), expected, atol=1e-6)


@pytest.mark.parametrize("score", [
    lambda latents: held_out_nll(MDNRNN(SMALL), latents, []),
    lambda latents: repeat_nll(latents, [], [0]),
    lambda latents: linear_nll(latents, [0], [])])
def test_no_episode_is_no_score(score):
    with pytest.raises(ValueError, match="at least one episode is needed"): score(make_latents())


def test_the_noise_of_v_is_the_entropy_of_its_gaussians():
    latents = make_latents(logvar=2 * math.log(0.5))
    assert torch.allclose(noise_nll(latents, [0, 2]), Normal(0.0, 0.5).entropy().expand(2))


def test_open_loop_sees_the_context_and_no_more():
    torch.manual_seed(0)
    model, z, a = MDNRNN(SMALL).eval(), torch.randn(3, 20, 4), torch.randn(3, 20, 2)
    dream = open_loop(model, z, a, 5)
    assert dream.shape == (3, 15, 4)
    unseen, seen = z.clone(), z.clone()
    unseen[:, 5:] += 9
    seen[:, 4] += 9
    assert torch.equal(open_loop(model, unseen, a, 5), dream)
    assert not torch.allclose(open_loop(model, seen, a, 5), dream)
    later = a.clone()
    later[:, 10] += 9  # moves z_11 and after: from column 6 on
    moved = open_loop(model, z, later, 5)
    assert torch.equal(moved[:, :6], dream[:, :6]) and not torch.allclose(moved[:, 6], dream[:, 6])
    assert torch.equal(open_loop(model, z, a, 5, seed=0), dream)
    assert not torch.equal(open_loop(model, z, a, 5, seed=1), dream)


@pytest.mark.parametrize("context", [0, 20, 25])
def test_open_loop_needs_something_to_see_and_to_dream(context):
    with pytest.raises(ValueError, match=f"1 to 19 of the 20 latents given, not {context}"):
        open_loop(MDNRNN(SMALL), torch.zeros(1, 20, 4), torch.zeros(1, 20, 2), context)


def test_segments_stay_inside_their_episodes():
    at = segments(make_latents(), [0, 1, 2], 20)  # 31, 13 and 51 frames
    assert at[:, 0].tolist() == [0, 44, 64] and at.shape == (3, 20)
    with pytest.raises(ValueError, match="needs 60 frames, the longest of 2 episodes has 31"):
        segments(make_latents(), [0, 1], 60)


class Prophet(MDNRNN):
    """Dreams what will be: mu of make_latents grows by 0.01 a step."""

    def step(self, z, a, state, restart=None):
        prediction, state = super().step(z, a, state, restart)
        prediction.sample = lambda temperature=1.0, generator=None: z + 0.01
        return prediction, state


def test_the_error_over_the_horizon():
    latents = make_latents((60, 80), logvar=2 * math.log(0.1))
    latents.logvar[:10] = latents.logvar[61:71] = -60.0  # the context is seen without noise
    dream, kept = horizon_error(Prophet(SMALL), latents, [0, 1], context=10, horizon=40)
    assert dream.shape == kept.shape == (2, 40)
    assert (dream < 1e-3).all()
    assert torch.allclose(kept, torch.arange(1, 41.0).expand(2, 40) * 0.01 / 0.1, atol=1e-3)  # in V's sd


# Other people's data

FIT = FitSettings(steps=3, batch=8, lr=1e-2)


def test_warm_up_steps_do_not_count(monkeypatch):
    seen = []
    def keep(model, batches, loss, *args): seen.append(next(batches(0, 0)))
    monkeypatch.setattr(mdn_rnn, "fit", keep)
    latents = make_latents((30, 40))
    for warm_up in (0, 6): train_dynamics(MDNRNN(SMALL), latents, [0, 1], 10, FIT, warm_up=warm_up)
    plain, warm = seen
    assert torch.equal(plain["z"], warm["z"]) and plain["mask"].all()
    assert not warm["mask"][:, :6].any() and warm["mask"][:, 6:].all()


def test_a_warm_up_changes_the_loss_and_no_memory():
    torch.manual_seed(0)
    model, latents = MDNRNN(MDNRNNSettings(latent=2, action_dim=1, hidden=8)), moving()
    batch = next(windows(latents, range(8), 20, 16))
    late = batch["mask"].clone()
    late[:, :12] = False
    nll = model(batch["z"][:, :-1], batch["a"], batch["restart"]).nll(batch["z"][:, 1:])
    expected = nll[:, 12:].mean() / 2
    assert torch.allclose(dynamics_loss(model, batch | {"mask": late})[0], expected)


@pytest.mark.parametrize("warm_up", [-1, 10, 99])
def test_a_warm_up_that_leaves_nothing_is_refused(warm_up):
    with pytest.raises(ValueError, match="warm_up must be 0 to 9"):
        train_dynamics(MDNRNN(SMALL), make_latents((30, 40)), [0, 1], 10, FIT, warm_up=warm_up)


def test_episodes_shorter_than_a_warm_up_are_refused_or_passed_over():
    with pytest.raises(ValueError, match="warm_up must be 0 to 11"):
        train_dynamics(MDNRNN(SMALL), make_latents((12, 12)), [0, 1], 20, FIT, warm_up=12)
    mostly_short, two = make_latents((12, 12, 12, 12, 30)), replace(FIT, batch=2)
    model = train_dynamics(MDNRNN(SMALL), mostly_short, range(5), 20, two, warm_up=15)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("width, words", [
    (0, "no actions: V can learn from it, M cannot"), (3, "3 numbers an action, and MDNRNN expects 2")])
def test_actions_that_are_not_ms_are_refused(width, words):
    with pytest.raises(ValueError, match=words):
        train_dynamics(MDNRNN(SMALL), make_latents(action_dim=width), [0], 10, FIT)


# The command, from Python

def test_m_is_trained_into_a_folder_that_is_made(tmp_path):
    path = tmp_path / "latents.safetensors"
    make_latents((30, 40, 20), latent=32, action_dim=3).save(path)
    s = TrainSettings(latents=str(path), dynamics=MDNRNNSettings(hidden=8), dynamics_fit=FIT, window=8)
    folder = tmp_path / "runs" / "m"
    model, again = learn_alone(folder, s), learn_alone(folder, s)  # the second is the first, loaded
    assert isinstance(model, MDNRNN) and (folder / "dynamics.safetensors").exists()
    assert torch.equal(model.mixture.weight, again.mixture.weight)


def test_latents_that_are_missing_leave_no_folder(tmp_path):
    s = TrainSettings(latents=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError): learn_alone(tmp_path / "m", s)
    assert not (tmp_path / "m").exists()
