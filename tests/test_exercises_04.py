"""Chapter 04's exercises: the reference passes, and plausible mistakes fail with words that name them."""
import numpy as np
import pytest
import torch

import worldmodels.controller as c
from worldmodels.tools import check as tools
from worldmodels.tools.check import CheckFailed, check


@pytest.fixture(autouse=True)
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(tools, "RECORD", tmp_path / ".progress.json")


PAIRS = [(c.squash_car, c.test_squash), (c.linear_rows, c.test_linear_rows), (c.smooth_noise, c.test_smooth_noise),
         (c.candidate_costs, c.test_costs), (c.bootstrap, c.test_bootstrap), (c.fit_linear_controller, c.test_fit_linear_controller)]


@pytest.mark.parametrize("reference, test", PAIRS, ids=lambda f: f.__name__)
def test_the_reference_passes(reference, test): assert check(reference, reference, test) is reference


@pytest.mark.parametrize("reference, test", PAIRS, ids=lambda f: f.__name__)
def test_a_stub_gives_way_to_the_reference(reference, test):
    def stub(*_, **__): raise NotImplementedError
    assert check(stub, reference, test) is reference


def columns(raw, steering=torch.tanh, gas=lambda x: (x.tanh() + 1) / 2, brake=lambda x: x.tanh().clamp(0, 1)):
    return torch.stack([f(x) for f, x in zip((steering, gas, brake), raw.unbind(-1))], -1)


def rows_of(x, weight, bias, owner): return torch.stack([weight[o] @ row for row, o in zip(x, owner.tolist())])


def ar(rng, steps, dim, keep, scale, first=1.0):
    noise = rng.standard_normal((steps, dim))
    noise[0] *= first
    for t in range(1, steps): noise[t] = keep * noise[t - 1] + scale(keep) * noise[t]
    return noise


def resampled(returns, seed=0, replace=True, q=(2.5, 97.5), size=None):
    size = size or len(returns)
    rng = np.random.default_rng(seed)
    means = np.array([rng.choice(returns, size, replace=replace).mean() for _ in range(1500)])
    return tuple(np.percentile(means, q))


def solve(seen, wanted, transpose=True, bias_first=False, bias=True, clip=2.0):
    x = torch.cat([seen, torch.full((len(seen), 1), float(bias))], 1)
    weight = torch.linalg.lstsq(x, wanted.clamp(-clip, clip), driver="gelsd").solution  # (inputs + 1, outputs)
    kernel = weight[:-1].T.flatten() if transpose else weight[:-1].flatten()
    return torch.cat([weight[-1], kernel] if bias_first else [kernel, weight[-1]]).numpy()


WRONG = [
    (c.test_squash, "the brake moved like the gas", lambda raw: columns(raw, brake=lambda x: (x.tanh() + 1) / 2), "does not brake"),
    (c.test_squash, "gas cut off at 0 like the brake", lambda raw: columns(raw, gas=lambda x: x.tanh().clamp(0, 1)), "half gas"),
    (c.test_squash, "the brake may go negative", lambda raw: columns(raw, brake=torch.tanh), "no brake"),
    (c.test_squash, "clipped, no tanh", lambda raw: columns(raw, steering=lambda x: x.clamp(-1, 1)), "steering is tanh"),
    (c.test_squash, "a sigmoid for the gas", lambda raw: columns(raw, gas=torch.sigmoid), "gas is"),
    (c.test_squash, "columns instead of the last axis", lambda raw: columns(raw.movedim(-1, 0)) if raw.ndim > 1 else columns(raw),
     "leading axes"),
    (c.test_linear_rows, "everyone's first layer", lambda x, w, b, o: x @ w[0].T + (0 if b is None else b[0]), "owner"),
    (c.test_linear_rows, "the bias of row r", lambda x, w, b, o: rows_of(x, w, b, o) + (0 if b is None else b[torch.arange(5) % len(b)]), "bias"),
    (c.test_linear_rows, "the bias forgotten", rows_of, "ordinary linear layer"),
    (c.test_linear_rows, "rows in order of their owners", lambda x, w, b, o: c.linear_rows(x, w, b, o.sort().values), "owner[r]"),
    (c.test_linear_rows, "every row through every layer", lambda x, w, b, o: torch.einsum("noi,mi->mo", w[o], x) + (0 if b is None else b[o]),
     "ordinary linear layer"),
    (c.test_smooth_noise, "white noise", lambda rng, steps, dim, keep: rng.standard_normal((steps, dim)), "correlate"),
    (c.test_smooth_noise, "one draw for all columns", lambda rng, s, d, keep: np.repeat(c.smooth_noise(rng, s, 1, keep), d, 1), "noise of its own"),
    (c.test_smooth_noise, "1 - keep", lambda rng, s, d, keep: ar(rng, s, d, keep, lambda k: 1 - k), "sd 1 at the last"),
    (c.test_smooth_noise, "a sum that grows", lambda rng, s, d, keep: ar(rng, s, d, keep, lambda k: 1.0), "sd 1 at the last"),
    (c.test_smooth_noise, "starts at 0", lambda rng, s, d, keep: ar(rng, s, d, keep, lambda k: np.sqrt(1 - k * k), 0.0), "first step"),
    (c.test_smooth_noise, "another generator", lambda rng, s, d, keep: c.smooth_noise(np.random.default_rng(), s, d, keep), "same generator"),
    (c.test_costs, "a return, not a cost", lambda p, r, decay: r.mean(1) - decay * (p**2).mean(1), "minus the mean return"),
    (c.test_costs, "mean over candidates", lambda p, r, decay: decay * (p**2).mean(1) - r.mean(0).mean(), "own episodes"),
    (c.test_costs, "the penalty rewards", lambda p, r, decay: -decay * (p**2).mean(1) - r.mean(1), "not lower"),
    (c.test_costs, "a sum of squares", lambda p, r, decay: decay * (p**2).sum(1) - r.mean(1), "twice as many"),
    (c.test_costs, "absolute values", lambda p, r, decay: decay * np.abs(p).mean(1) - r.mean(1), "mean square"),
    (c.test_bootstrap, "percentiles of the returns", lambda r: tuple(np.percentile(r, [2.5, 97.5])), "not of single returns"),
    (c.test_bootstrap, "without replacement", lambda r: resampled(r, replace=False), "replacement"),
    (c.test_bootstrap, "a 90 % interval", lambda r: resampled(r, q=(5, 95)), "1.96"),
    (c.test_bootstrap, "one standard error", lambda r: (r.mean() - r.std() / len(r)**0.5, r.mean() + r.std() / len(r)**0.5), "1.96"),
    (c.test_bootstrap, "another draw every time", lambda r: resampled(r, seed=None), "same interval"),
    (c.test_bootstrap, "mean ± 1.96 standard errors", lambda r: tuple(r.mean() + np.array([-1.96, 1.96]) * r.std() / len(r)**0.5), "is another interval"),
    (c.test_bootstrap, "always 100 drawn", lambda r: resampled(r, size=100), "1.96"),
    (c.test_fit_linear_controller, "inputs by outputs", lambda s, w: solve(s, w, transpose=False), "decides as the teacher"),
    (c.test_fit_linear_controller, "biases first", lambda s, w: solve(s, w, bias_first=True), "biases come last"),
    (c.test_fit_linear_controller, "no bias", lambda s, w: solve(s, w, bias=False), "bias"),
    (c.test_fit_linear_controller, "clipped to ±1", lambda s, w: solve(s, w, clip=1.0), "clipped to ±2"),
    (c.test_fit_linear_controller, "not clipped", lambda s, w: solve(s, w, clip=1e9), "clipped"),
    (c.test_fit_linear_controller, "squashed by tanh", lambda s, w: c.fit_linear_controller(s, w.tanh()), "bias"),
]


@pytest.mark.parametrize("test, mistake, wrong, words", WRONG, ids=[f"{t.__name__}-{m}" for t, m, *_ in WRONG])
def test_a_mistake_fails_and_is_named(test, mistake, wrong, words):
    reference = dict((t, r) for r, t in PAIRS)[test]
    with pytest.raises(CheckFailed) as failure: check(wrong, reference, test)
    assert words in str(failure.value)
