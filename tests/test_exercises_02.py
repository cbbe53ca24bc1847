"""Each exercise of chapter 02: its test passes the reference and says what is wrong with wrong answers."""
import math

import pytest
import torch
import torch.nn.functional as F

from worldmodels import mdn_rnn
from worldmodels.tools.check import CheckFailed

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("test, reference", [
    (mdn_rnn.test_nll, mdn_rnn.Mixture.nll), (mdn_rnn.test_sample, mdn_rnn.Mixture.sample),
    (mdn_rnn.test_lstm_step, torch.lstm_cell), (mdn_rnn.test_dynamics_loss, mdn_rnn.dynamics_loss),
    (mdn_rnn.test_open_loop, mdn_rnn.open_loop)])
def test_the_reference_passes(test, reference): test(reference)


# Exercise 1: the NLL of a mixture

def make_nll(normalise=True, log_sigma=True, naive=False, guard=lambda p: p, order="both", variance=False,
             total=True):
    def nll(m, z):
        sigma = (0.5 * m.log_sigma).exp() if variance else m.log_sigma.exp()
        log_normal = -0.5 * ((z.unsqueeze(-1) - m.mu) / sigma)**2
        if log_sigma: log_normal = log_normal - m.log_sigma
        if normalise: log_normal = log_normal - HALF_LOG_2PI
        shared = {"both": m.log_pi.shape[-2] == 1, "own": False, "shared": True}[order]
        if shared: log_normal = log_normal.sum(-2, keepdim=True)
        joint = m.log_pi + log_normal
        density = guard(joint.exp().sum(-1)).log() if naive else joint.logsumexp(-1)
        return -density.sum(-1) if total else -density
    return nll


def weights_as_logs(m, z):  # π added to the density's logarithm instead of log π
    log_normal = -0.5 * ((z.unsqueeze(-1) - m.mu) / m.log_sigma.exp())**2 - m.log_sigma - HALF_LOG_2PI
    if m.log_pi.shape[-2] == 1: log_normal = log_normal.sum(-2, keepdim=True)
    return -(m.log_pi.exp() + log_normal).logsumexp(-1).sum(-1)


def expected_log(m, z):  # Σ π log N: Jensen's lower bound
    log_normal = -0.5 * ((z.unsqueeze(-1) - m.mu) / m.log_sigma.exp())**2 - m.log_sigma - HALF_LOG_2PI
    return -(m.log_pi.exp() * log_normal).sum(-1).sum(-1)


def test_a_right_nll_in_other_words_passes(): mdn_rnn.test_nll(make_nll())


@pytest.mark.parametrize("wrong, message", [
    (make_nll(total=False), r"joint NLL of a vector(.|\n)*expected shape \(2, 5\)"),
    (make_nll(normalise=False), "with log σ and ½ log 2π"),
    (make_nll(log_sigma=False), "with log σ and ½ log 2π"),
    (make_nll(variance=True), "a Gaussian's NLL"),
    (weights_as_logs, "Gaussian's NLL"),
    (expected_log, "integrates to 1"),
    (make_nll(order="own"), "Σ_k Π_i: shared weights"),
    (make_nll(order="shared"), "Π_i Σ_k: own weights"),
    (make_nll(naive=True), "logsumexp, not log of a sum of exp"),
    (make_nll(naive=True, guard=lambda p: p + 1e-8), "with or without an ε"),
    (make_nll(naive=True, guard=lambda p: p.clamp(min=1e-12)), "with or without an ε")])
def test_a_wrong_nll_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): mdn_rnn.test_nll(wrong)


# Exercise 2: sampling

def make_sample(logits=lambda log_pi, tau: log_pi / tau, scale=math.sqrt, noise=True, seeded=True,
                choice="both", one_noise=False, width=lambda m, k: m.log_sigma.gather(-1, k)[..., 0].exp()):
    def sample(m, tau=1.0, generator=None):
        rng = generator if seeded else None
        log_pi = m.log_pi.expand(m.mu.shape) if choice == "own" else m.log_pi
        if choice == "shared": log_pi = log_pi[..., :1, :]
        p = logits(log_pi, tau).softmax(-1)
        k = torch.multinomial(p.flatten(0, -2), 1, generator=rng).view(*p.shape[:-1], 1)
        k = k.expand(*m.mu.shape[:-1], 1)
        mu, sigma = m.mu.gather(-1, k)[..., 0], width(m, k)
        epsilon = torch.randn(*mu.shape[:-1], 1 if one_noise else mu.shape[-1], generator=rng)
        return mu + scale(tau) * sigma * epsilon * noise
    return sample


def test_a_right_sample_in_other_words_passes(): mdn_rnn.test_sample(make_sample())


def test_the_mean_instead_of_a_choice_is_told():
    def blurred(m, tau=1.0, generator=None):
        mean = (m.log_pi.exp() * m.mu).sum(-1)
        return mean + torch.randn(mean.shape, generator=generator)
    with pytest.raises(CheckFailed, match="chosen with softmax"): mdn_rnn.test_sample(blurred)


@pytest.mark.parametrize("wrong, message", [
    (make_sample(scale=lambda tau: tau), r"at τ = 0.5 the variance around each component"),
    (make_sample(noise=False), r"at τ = 1.0 the variance around each component"),
    (make_sample(scale=lambda tau: 1.0), "at τ = 0.5 the variance"),
    (make_sample(logits=lambda log_pi, tau: log_pi), r"at τ = 0.5 .*softmax\(logits / τ\)"),
    (make_sample(logits=lambda log_pi, tau: log_pi * tau), r"at τ = 0.5 .*softmax\(logits / τ\)"),
    (make_sample(logits=lambda log_pi, tau: log_pi.exp() / tau), r"at τ = 1.0 .*softmax\(logits / τ\)"),
    (make_sample(seeded=False), "same generator state gives the same draw"),
    (make_sample(choice="shared"), "own weights: each dimension chooses for itself"),
    (make_sample(choice="own"), "shared weights: one choice for all dimensions"),
    (make_sample(width=lambda m, k: m.log_sigma[..., 0].exp()), "its own σ²"),
    (make_sample(width=lambda m, k: m.log_sigma.exp().mean(-1)), "its own σ²"),
    (make_sample(one_noise=True), "noise of two dimensions is independent")])
def test_a_wrong_sample_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): mdn_rnn.test_sample(wrong)


# Exercise 3: one step of an LSTM

def make_step(order="ifgo", both_biases=True, candidate=torch.tanh, out=torch.tanh, swap=False):
    def step(x, state, w_ih, w_hh, b_ih, b_hh):
        h, c = state
        gates = dict(zip(order, (x @ w_ih.T + h @ w_hh.T + b_ih + (b_hh if both_biases else 0)).chunk(4, -1)))
        i, f, o = (gates[k].sigmoid() for k in "ifo")
        c = f * c + i * candidate(gates["g"])
        return (c, o * out(c)) if swap else (o * out(c), c)
    return step


def test_a_right_step_in_other_words_passes(): mdn_rnn.test_lstm_step(make_step())


@pytest.mark.parametrize("wrong, message", [
    (make_step(order="ifog"), "tanh of the candidate g"),
    (make_step(order="figo"), "rows in the order i, f, g, o"),
    (make_step(both_biases=False), "both biases count"),
    (make_step(candidate=torch.sigmoid), "c halves"),
    (make_step(candidate=lambda g: g), "tanh of the candidate g"),
    (make_step(out=lambda c: c), r"h is tanh\(c\) / 2"),
    (make_step(swap=True), r"h is tanh\(c\) / 2")])
def test_a_wrong_step_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): mdn_rnn.test_lstm_step(wrong)


# Exercise 4: the loss

def make_loss(target=slice(1, None), read=slice(None, -1), acts=slice(None), masked=True, over=None,
              width=True, total=False, weighted=True, restart=True, parts=True):
    def loss(model, batch, done_weight=10.0):
        z, mask = batch["z"], batch["mask"].float() if masked else torch.ones(batch["mask"].shape)
        p = model(z[:, read], batch["a"][:, acts], batch["restart"] if restart else None)
        n = mask.numel() if over == "all" else 1.0 if total else mask.sum()
        def average(x): return (x * mask).sum() / n
        out = {"nll": average(p.nll(z[:, target])) / (z.shape[-1] if width else 1)}
        if p.reward is not None: out["reward"] = average((p.reward - batch["reward"])**2)
        if p.done is not None:
            weight = torch.tensor(float(done_weight) if weighted is True else float(weighted))
            out["done"] = average(F.binary_cross_entropy_with_logits(p.done, batch["terminated"].float(),
                                                                     pos_weight=weight, reduction="none"))
        return sum(out.values()) if parts else out["nll"], out
    return loss


def test_a_right_loss_in_other_words_passes(): mdn_rnn.test_dynamics_loss(make_loss())


def unmasked_reward(model, batch, done_weight=10.0):
    value, parts = make_loss()(model, batch, done_weight)
    if "reward" not in parts: return value, parts
    p = model(batch["z"][:, :-1], batch["a"], batch["restart"])
    wrong = (p.reward - batch["reward"]).pow(2).mean()
    return value - parts["reward"] + wrong, parts | {"reward": wrong}


def always_heads(model, batch, done_weight=10.0):
    value, parts = make_loss()(model, batch, done_weight)
    return value, {"reward": torch.tensor(0.0), "done": torch.tensor(0.0)} | parts


@pytest.mark.parametrize("wrong, message", [
    (make_loss(target=slice(None, -1)), r"the target is z\[:, 1:\], the input z\[:, :-1\]"),
    (make_loss(masked=False), "steps beyond the episode's end count"),
    (make_loss(over="all"), "number of real steps, not of all"),
    (make_loss(width=False), "divide by the width of z"),
    (make_loss(total=True), "a mean over steps, not a sum"),
    (make_loss(restart=False), "all of a, and restart"),
    (always_heads, "no reward or done where M has no such heads"),
    (unmasked_reward, "reward's squared error, averaged over the real steps"),
    (make_loss(weighted=1), "a true one weighing done_weight"),
    (make_loss(weighted=10), "a true one weighing done_weight"),
    (make_loss(target=slice(None, -1), read=slice(1, None)), "all of a, and restart"),
    (make_loss(acts=slice(None, -1)), "all of a, and restart"),
    (make_loss(parts=False), "sum of the parts")])
def test_a_wrong_loss_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): mdn_rnn.test_dynamics_loss(wrong)


# Exercise 5: the dream

def make_dream(fed="dream", again=False, late=0, extra=0, forgets=False, tempered=True, seeded=True,
               from_start=False):
    def dream(model, z, a, context, temperature=1.0, seed=0):
        rng, out = torch.Generator().manual_seed(seed if seeded else 0), []
        state = model.initial(len(z))
        for t in range(z.shape[1] - 1):
            real = t < context + extra or fed == "real"
            if forgets and not real: state = model.initial(len(z))
            p, state = model.step(z[:, t] if real else out[-1], a[:, t + late], state)
            if again: rng.manual_seed(seed)
            if t >= context - 1 or from_start: out.append(p.sample(temperature if tempered else 1.0, rng))
        return torch.stack(out, 1)
    return dream


def test_a_right_dream_in_other_words_passes(): mdn_rnn.test_open_loop(make_dream())


@pytest.mark.parametrize("wrong, message", [
    (make_dream(fed="real"), "fed its own last sample, not the real z"),
    (make_dream(late=1), "one step late"),
    (make_dream(extra=1), "z_2 moves by the actions"), (make_dream(again=True), "every step draws anew"),
    (make_dream(from_start=True), r"expected shape \(2, 5, 3\)"),
    (make_dream(forgets=True), "M remembers"),
    (make_dream(tempered=False), "the temperature reaches"),
    (make_dream(seeded=False), "another seed dreams another dream")])
def test_a_wrong_dream_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): mdn_rnn.test_open_loop(wrong)
