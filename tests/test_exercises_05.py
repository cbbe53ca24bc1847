"""Each exercise of chapters 05 and 05b: its test passes the reference and names what is wrong with others."""
import math

import numpy as np
import pytest
import torch

from worldmodels import dream as d
from worldmodels import latents, leak, planning
from worldmodels.tools import rng
from worldmodels.tools.check import CheckFailed

PAIRS = [(latents.spread_rewards, d.test_spread_rewards), (rng.counter_uniform, d.test_counter_uniform),
         (d.sample_done, d.test_sample_done), (d.rollout_returns, d.test_rollout_returns),
         (leak.rank_correlation, d.test_rank_correlation), (planning.refit, planning.test_refit)]


@pytest.mark.parametrize("reference, test", PAIRS)
def test_the_reference_passes(reference, test): test(reference)


# Exercise 1: share the reward

def averaged(r, radius):  # a mean over the window: what lies at the ends loses or gains
    n = len(r)
    return torch.stack([r[max(0, t - radius):t + radius + 1].mean() for t in range(n)])


def convolved(r, radius):  # shares that fall off the ends are lost
    kernel = torch.ones(1, 1, 2 * radius + 1) / (2 * radius + 1)
    return torch.nn.functional.conv1d(r[None, None], kernel, padding=radius)[0, 0]


def late(r, radius):  # shared by later steps only
    out = torch.zeros(len(r))
    for t, x in enumerate(r): out[t:t + radius + 1] += x / len(out[t:t + radius + 1])
    return out


def by_hand(r, radius):
    out = torch.zeros(len(r))
    for t, x in enumerate(r):
        window = out[max(0, t - radius):t + radius + 1]
        window += x / len(window)
    return out


def test_a_right_spread_in_other_words_passes(): d.test_spread_rewards(by_hand)


@pytest.mark.parametrize("wrong, message", [
    (averaged, "shared by those that exist"),
    (convolved, "shared by those that exist"),
    (late, "equal shares around it"),
    (lambda r, radius: by_hand(r, radius) * (2 * radius + 1), "equal shares around it"),
    (lambda r, radius: by_hand(r, max(1, radius)), "radius 0 changes nothing"),
    (lambda r, radius: by_hand(r, radius)[:-1], "as many as before")])
def test_a_wrong_spread_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): d.test_spread_rewards(wrong)


# Exercise 2: counter_uniform

def make_deal(mask=True, half=0.5, onward="last", shared=False, step=rng.GOLDEN, first=1):
    def counter_uniform(keys, count):
        bits = rng.splitmix64(keys[:, None] + step * torch.arange(first, first + count + 1))
        if shared: bits = bits.sum(0, keepdim=True).expand(len(keys), -1)
        top = bits[:, :-1] >> 41
        u = ((top & (1 << 23) - 1 if mask else top).float() + half) / (1 << 23)
        golden = torch.tensor(rng.GOLDEN)
        following = {"last": bits[:, -1], "same": keys, "one on": keys + golden,
                     "after": keys + golden * (count + 1)}
        return u, following[onward]
    return counter_uniform


def one_generator(keys, count):  # who the neighbours are decides what a row gets
    one = torch.Generator().manual_seed(int(keys[0] % 2**31))
    return torch.rand(len(keys), count, generator=one).clamp(1e-6), keys + 1


def test_a_right_deal_in_other_words_passes(): d.test_counter_uniform(make_deal(onward="after"))


@pytest.mark.parametrize("wrong, message", [
    (make_deal(mask=False), "above 0 and below 1"),
    (make_deal(half=0.0), "never 0 or 1"),
    (make_deal(half=1.0), "never 0 or 1"),
    (make_deal(step=1), "number j comes from"),
    (make_deal(onward="same"), "100% of them have been dealt before"),
    (make_deal(onward="one on"), "have been dealt before"),
    (make_deal(shared=True), "whoever the neighbours are|rows are independent"),
    (one_generator, "whoever the neighbours are"),
    (lambda k, n: (make_deal()(k, n)[0] / 2, k), "mean is 1/2"),
    (lambda k, n: (make_deal()(k, 1)[0].expand(-1, n), k), "columns are independent")])
def test_a_wrong_deal_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): d.test_counter_uniform(wrong)


# Exercise 3: the end, by chance

def unweighted(logit, w): return torch.sigmoid(logit - math.log(w))


def make_done(p=unweighted, threshold=lambda logit: logit > 0, never=False):
    def sample_done(logit, s, uniform):
        if s.done == "never": return torch.full_like(logit, never, dtype=torch.bool)
        return threshold(logit) if s.done == "threshold" else uniform() < p(logit, s.done_weight)
    return sample_done


def test_a_right_end_in_other_words_passes():
    d.test_sample_done(make_done(p=lambda logit, w: logit.exp() / (w + logit.exp())))


@pytest.mark.parametrize("wrong, message", [
    (make_done(p=lambda logit, w: torch.sigmoid(logit)), "divided by 10"),
    (make_done(p=lambda logit, w: torch.sigmoid(logit) / w), "divided by 10|one in two"),
    (make_done(p=lambda logit, w: torch.sigmoid(logit + math.log(w))), "divided by 10"),
    (make_done(p=lambda logit, w: torch.sigmoid(logit - w)), "divided by 10|probability sigmoid"),
    (make_done(p=lambda logit, w: 1 - torch.sigmoid(logit - math.log(w))), "probability sigmoid"),
    (make_done(threshold=lambda logit: logit > math.log(10)), "where the logit is above 0"),
    (lambda logit, s, uniform: (logit > 0) & (s.done != "never"), "probability sigmoid")])
def test_a_wrong_end_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): d.test_sample_done(wrong)


# Exercise 4: the return of a dream

def make_returns(after=False, last=True, drop=True, cut_rows=True, limit=0, early=False, remember=True,
                 late=False):
    def rollout_returns(dream, act, max_steps):
        n = len(dream)
        rows, alive = torch.arange(n), torch.ones(n, dtype=torch.bool)
        returns, lengths = torch.zeros(n), torch.zeros(n, dtype=torch.long)
        for _ in range(max_steps + limit):
            _, reward, done = dream.step(act(dream, rows))
            counts = alive if last else alive & ~done
            returns[rows] += reward if after else reward * counts
            lengths[rows] += alive.long()
            alive = alive & ~done if remember else ~done
            if not alive.any() or early and done.any(): break
            if drop and (alive.sum() < len(rows) / 2 or not late and alive.sum() == len(rows) / 2):
                dream.take(alive)
                rows = rows[alive] if cut_rows else torch.arange(int(alive.sum()))
                alive = alive[alive]
        return returns, lengths
    return rollout_returns


def test_a_right_return_in_other_words_passes(): d.test_rollout_returns(make_returns())


@pytest.mark.parametrize("wrong, message", [
    (make_returns(after=True, drop=False), "its last included, none after"),
    (make_returns(last=False), "its last included, none after"),
    (make_returns(drop=False), "dropped as soon as half"), (make_returns(limit=1), "longer than max_steps"),
    (make_returns(early=True), "lengths: the steps of each row"),
    (make_returns(late=True), "dropped as soon as half"),
    (make_returns(remember=False), "lengths: the steps of each row|none after")])
def test_a_wrong_return_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): d.test_rollout_returns(wrong)


def test_rows_that_are_not_cut_are_told():
    with pytest.raises((CheckFailed, AssertionError), match="other rows than those that are dreamt"):
        d.test_rollout_returns(make_returns(cut_rows=False))


# Exercise 5: rank correlation

def make_rank(order="mean", squared=False, absolute=False, pearson=False):
    def ranks(v):
        v = np.asarray(v, float)
        if order == "argsort": return v.argsort()
        if order == "lowest": return np.array([(v < x).sum() for x in v])
        if order == "dense": return np.unique(v, return_inverse=True)[1]
        if order == "twice": return v.argsort(kind="stable").argsort(kind="stable")
        return v if pearson else np.array([(v < x).sum() + 0.5 * ((v == x).sum() - 1) for x in v])

    def rank_correlation(x, y):
        a, b = ranks(x), ranks(y)
        if a.std() == 0 or b.std() == 0: return math.nan
        r = np.corrcoef(a, b)[0, 1]
        return r**2 if squared else abs(r) if absolute else r
    return rank_correlation


def test_a_right_rank_correlation_in_other_words_passes(): d.test_rank_correlation(make_rank())


def zero_for_no_order(x, y): return 0.0 if np.std(x) == 0 or np.std(y) == 0 else make_rank()(x, y)


@pytest.mark.parametrize("wrong, message", [
    (make_rank(pearson=True), "only the order counts"),
    (make_rank(order="argsort"), "not what argsort gives"),
    (make_rank(order="twice"), "share the mean of their ranks"),
    (make_rank(order="lowest"), "share the mean of their ranks"),
    (make_rank(order="dense"), "share the mean of their ranks"),
    (make_rank(squared=True), "the opposite order"),
    (make_rank(absolute=True), "the opposite order"), (zero_for_no_order, "there is no order: NaN")])
def test_a_wrong_rank_correlation_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): d.test_rank_correlation(wrong)


# Exercise 1 of chapter 05b: one step of the cross-entropy method

def make_refit(largest=True, own=True, correction=0, weighted=False, square=False):
    def refit(plans, returns, elites):
        by = returns if own else returns.mean(0, keepdim=True).expand_as(returns)
        best = by.topk(elites, 1, largest=largest).indices
        chosen = plans[torch.arange(len(plans))[:, None], best]
        sd = chosen.std(1, correction=correction)
        return chosen.mean(1), sd**2 if square else sd
    return refit


def flat(plans, returns, elites):  # the best of all rows together
    mean, sd = make_refit()(plans.flatten(0, 1)[None], returns.flatten()[None], elites)
    return mean.expand(len(plans), *mean.shape[1:]), sd.expand(len(plans), *sd.shape[1:])


def test_a_right_refit_in_other_words_passes():
    def refit(plans, returns, elites):
        rows = [p[r.argsort(descending=True)[:elites]] for p, r in zip(plans, returns)]
        means = torch.stack([r.mean(0) for r in rows])
        return means, torch.stack([((r - r.mean(0))**2).mean(0).sqrt() for r in rows])
    planning.test_refit(refit)


@pytest.mark.parametrize("wrong, message", [
    (make_refit(largest=False), "largest returns, each row its own"),
    (make_refit(own=False), "largest returns, each row its own"),
    (make_refit(correction=1), "root of the mean square"),
    (make_refit(square=True), "root of the mean square"),
    (flat, "largest returns, each row its own"),
    (lambda p, r, e: (p.mean(1), p.std(1, correction=0)), "largest returns, each row its own")])
def test_a_wrong_refit_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): planning.test_refit(wrong)
