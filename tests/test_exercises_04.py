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


REFERENCES = {c.test_squash: c.squash_car, c.test_linear_rows: c.linear_rows,
              c.test_smooth_noise: c.smooth_noise, c.test_costs: c.candidate_costs,
              c.test_bootstrap: c.bootstrap, c.test_fit_linear_controller: c.fit_linear_controller}
PAIRS = [pytest.param(reference, test, id=reference.__name__) for test, reference in REFERENCES.items()]


@pytest.mark.parametrize("reference, test", PAIRS)
def test_the_reference_passes(reference, test): assert check(reference, reference, test) is reference


@pytest.mark.parametrize("reference, test", PAIRS)
def test_a_stub_gives_way_to_the_reference(reference, test):
    def stub(*_, **__): raise NotImplementedError
    assert check(stub, reference, test) is reference


def test_a_star_import_brings_no_test(): assert not any(name.startswith("test_") for name in c.__all__)


# ---- wrong answers: what is wrong with them, the answer, words of the message

def moved_up(x): return (x.tanh() + 1) / 2


def cut_off(x): return x.tanh().clamp(0, 1)


def columns(raw, steering=torch.tanh, gas=moved_up, brake=cut_off):
    return torch.stack([f(x) for f, x in zip((steering, gas, brake), raw.unbind(-1))], -1)


SQUASH = [
    ("the brake moved like the gas", lambda raw: columns(raw, brake=moved_up), "does not brake"),
    ("gas cut off at 0 like the brake", lambda raw: columns(raw, gas=cut_off), "half gas"),
    ("the brake may go negative", lambda raw: columns(raw, brake=torch.tanh), "no brake"),
    ("clipped, no tanh", lambda raw: columns(raw, steering=lambda x: x.clamp(-1, 1)), "steering is tanh"),
    ("a sigmoid for the gas", lambda raw: columns(raw, gas=torch.sigmoid), "gas is"),
    ("columns instead of the last axis",
     lambda raw: columns(raw.movedim(-1, 0)) if raw.ndim > 1 else columns(raw), "leading axes"),
]


def rows_of(x, weight, bias, owner):
    return torch.stack([weight[o] @ row for row, o in zip(x, owner.tolist())])


def first_layer(x, weight, bias, owner): return x @ weight[0].T + (0 if bias is None else bias[0])


def bias_by_row(x, weight, bias, owner):
    return rows_of(x, weight, bias, owner) + (0 if bias is None else bias[torch.arange(5) % len(bias)])


def through_every_layer(x, weight, bias, owner):
    return torch.einsum("noi,mi->mo", weight[owner], x) + (0 if bias is None else bias[owner])


LINEAR_ROWS = [
    ("everyone's first layer", first_layer, "owner"),
    ("the bias of row r", bias_by_row, "bias"),
    ("the bias forgotten", rows_of, "ordinary linear layer"),
    ("rows in order of their owners", lambda x, w, b, o: c.linear_rows(x, w, b, o.sort().values), "owner[r]"),
    ("every row through every layer", through_every_layer, "ordinary linear layer"),
]


def ar(rng, steps, dim, keep, scale, first=1.0):
    noise = rng.standard_normal((steps, dim))
    noise[0] *= first
    for t in range(1, steps): noise[t] = keep * noise[t - 1] + scale * noise[t]
    return noise


def one_draw(rng, steps, dim, keep): return np.repeat(c.smooth_noise(rng, steps, 1, keep), dim, 1)


def from_zero(rng, steps, dim, keep): return ar(rng, steps, dim, keep, np.sqrt(1 - keep * keep), first=0.0)


def unseeded(rng, steps, dim, keep): return c.smooth_noise(np.random.default_rng(), steps, dim, keep)


SMOOTH_NOISE = [
    ("white noise", lambda rng, steps, dim, keep: rng.standard_normal((steps, dim)), "correlate"),
    ("one draw for all columns", one_draw, "noise of its own"),
    ("1 - keep", lambda rng, steps, dim, keep: ar(rng, steps, dim, keep, 1 - keep), "sd 1 at the last"),
    ("a sum that grows", lambda rng, steps, dim, keep: ar(rng, steps, dim, keep, 1.0), "sd 1 at the last"),
    ("starts at 0", from_zero, "first step"),
    ("another generator", unseeded, "same generator"),
]

COSTS = [
    ("a return, not a cost", lambda p, r, decay: r.mean(1) - decay * (p**2).mean(1), "minus the mean return"),
    ("mean over candidates", lambda p, r, decay: decay * (p**2).mean(1) - r.mean(0).mean(), "own episodes"),
    ("the penalty rewards", lambda p, r, decay: -decay * (p**2).mean(1) - r.mean(1), "not lower"),
    ("a sum of squares", lambda p, r, decay: decay * (p**2).sum(1) - r.mean(1), "twice as many"),
    ("absolute values", lambda p, r, decay: decay * np.abs(p).mean(1) - r.mean(1), "mean square"),
]


def resampled(returns, seed=0, replace=True, q=(2.5, 97.5), size=None):
    size = size or len(returns)
    rng = np.random.default_rng(seed)
    means = np.array([rng.choice(returns, size, replace=replace).mean() for _ in range(1500)])
    return tuple(np.percentile(means, q))


def errors_around(returns, wide):
    error = returns.std() / len(returns)**0.5
    return returns.mean() - wide * error, returns.mean() + wide * error


BOOTSTRAP = [
    ("percentiles of the returns", lambda r: tuple(np.percentile(r, [2.5, 97.5])), "not of single returns"),
    ("without replacement", lambda r: resampled(r, replace=False), "replacement"),
    ("a 90 % interval", lambda r: resampled(r, q=(5, 95)), "1.96"),
    ("one standard error", lambda r: errors_around(r, 1), "1.96"),
    ("another draw every time", lambda r: resampled(r, seed=None), "same interval"),
    ("mean ± 1.96 standard errors", lambda r: errors_around(r, 1.96), "is another interval"),
    ("always 100 drawn", lambda r: resampled(r, size=100), "1.96"),
]


def solve(seen, wanted, transpose=True, bias_first=False, bias=True, clip=2.0):
    x = torch.cat([seen, torch.full((len(seen), 1), float(bias))], 1)
    solved = torch.linalg.lstsq(x, wanted.clamp(-clip, clip), driver="gelsd")
    weight = solved.solution  # (inputs + 1, outputs)
    kernel = weight[:-1].T.flatten() if transpose else weight[:-1].flatten()
    return torch.cat([weight[-1], kernel] if bias_first else [kernel, weight[-1]]).numpy()


FIT = [
    ("inputs by outputs", lambda s, w: solve(s, w, transpose=False), "decides as the teacher"),
    ("biases first", lambda s, w: solve(s, w, bias_first=True), "biases come last"),
    ("no bias", lambda s, w: solve(s, w, bias=False), "bias"),
    ("clipped to ±1", lambda s, w: solve(s, w, clip=1.0), "clipped to ±2"),
    ("not clipped", lambda s, w: solve(s, w, clip=1e9), "clipped"),
    ("squashed by tanh", lambda s, w: c.fit_linear_controller(s, w.tanh()), "bias"),
]

WRONG = [pytest.param(test, wrong, words, id=f"{test.__name__}-{mistake}")
         for test, answers in zip(REFERENCES, (SQUASH, LINEAR_ROWS, SMOOTH_NOISE, COSTS, BOOTSTRAP, FIT))
         for mistake, wrong, words in answers]


@pytest.mark.parametrize("test, wrong, words", WRONG)
def test_a_mistake_fails_and_is_named(test, wrong, words):
    with pytest.raises(CheckFailed) as failure: check(wrong, REFERENCES[test], test)
    assert words in str(failure.value)
