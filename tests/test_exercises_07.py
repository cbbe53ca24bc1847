"""Each exercise of chapter 07: its test passes the reference and names what is wrong with wrong answers."""
import math

import numpy as np
import pytest

from worldmodels import baselines
from worldmodels.controller import bootstrap
from worldmodels.tools import importers
from worldmodels.tools.check import CheckFailed


@pytest.mark.parametrize("test, reference", [
    (baselines.test_advantages, baselines.advantages), (baselines.test_paired, baselines.paired),
    (baselines.test_time_to_score, baselines.time_to_score), (baselines.test_on_road, baselines.on_road),
    (baselines.test_choose, baselines.choose), (baselines.test_pair_after, importers.pair_after)])
def test_the_reference_passes(test, reference): test(reference)


# Exercise 1: advantages

def make_advantages(cut=True, blind=False, fade=lambda gamma, lam: gamma * lam, minus_value=True,
                    discount=True, forwards=False, over_late=False, onwards=False):
    def advantages(rewards, values, following, over, gamma, lam):
        following = np.where(over, 0, following) if blind else following
        surprise = rewards + (gamma if discount else 1) * following - (values if minus_value else 0)
        out, carried = np.zeros(len(rewards)), following[-1] if onwards else 0.0
        for t in range(len(rewards)) if forwards else reversed(range(len(rewards))):
            ended = over[t - 1] if over_late else over[t]
            carried = surprise[t] + fade(gamma, lam) * carried * (not (cut and ended))
            out[t] = carried
        return out
    return advantages


def test_right_advantages_in_other_words_pass(): baselines.test_advantages(make_advantages())


@pytest.mark.parametrize("wrong, message", [
    (make_advantages(cut=False), "crosses the end of an episode"),
    (make_advantages(over_late=True), "crosses the end of an episode|an episode of its own"),
    (make_advantages(blind=True), "does not take away the value"),
    (make_advantages(onwards=True), "where the arrays stop, so does the sum"),
    (make_advantages(fade=lambda gamma, lam: lam), "fades by γ·λ"),
    (make_advantages(fade=lambda gamma, lam: gamma), "λ = 0: the surprise"),
    (make_advantages(minus_value=False), "λ = 0: the surprise"),
    (make_advantages(discount=False), "λ = 0: the surprise"),
    (make_advantages(forwards=True), "all rewards that follow"),
    (lambda r, v, f, over, gamma, lam: (r + gamma * f - v).sum(), "one advantage for each step")])
def test_wrong_advantages_are_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): baselines.test_advantages(wrong)


# Exercise 2: paired

def unpaired(a, b):
    if len(a) != len(b): raise ValueError
    rng = np.random.default_rng(0)
    drawn = rng.choice(a, (10_000, len(a))).mean(1) - rng.choice(b, (10_000, len(b))).mean(1)
    return a.mean() - b.mean(), *np.percentile(drawn, [2.5, 97.5])


def spread_of_tracks(a, b):
    if len(a) != len(b): raise ValueError
    d = a - b
    return d.mean(), *np.percentile(d, [2.5, 97.5])


def unchecked(a, b):
    d = np.asarray(a)[:min(len(a), len(b))] - np.asarray(b)[:min(len(a), len(b))]
    return d.mean(), *bootstrap(d)


def narrow(a, b):  # 90 %
    if len(a) != len(b): raise ValueError
    means = np.random.default_rng(0).choice(a - b, (10_000, len(a))).mean(1)
    return (a - b).mean(), *np.percentile(means, [5, 95])


def ends_subtracted(a, b):
    if len(a) != len(b): raise ValueError
    (la, ha), (lb, hb) = bootstrap(a), bootstrap(b)
    return a.mean() - b.mean(), la - lb, ha - hb


def turned(a, b): return baselines.paired(b, a)


def absolute(a, b): return baselines.paired(np.maximum(a, b), np.minimum(a, b))


@pytest.mark.parametrize("wrong, message", [
    (unpaired, "resample differences, not the returns of each"),
    (spread_of_tracks, "what a track is worth cancels|interval of the mean"),
    (narrow, "1.96 standard errors"), (ends_subtracted, "cannot be subtracted|holds the mean"),
    (turned, "the mean is that of a − b"), (unchecked, "refused with a ValueError"),
    (absolute, "the mean is that of a − b|changes its sign")])
def test_a_wrong_comparison_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): baselines.test_paired(wrong)


# Exercise 3: time to score

def of_the_best(cost, scores, target):
    return cost[np.argmax(scores)] if len(scores) and max(scores) >= target else math.inf


def argmax_alone(cost, scores, target):
    return np.asarray(cost)[(np.asarray(scores) >= target).argmax()] if len(scores) else math.inf


def end_of_budget(cost, scores, target):
    reached = np.flatnonzero(np.asarray(scores) >= target)
    return cost[reached[0]] if len(reached) else cost[-1] if len(cost) else math.inf


def above(cost, scores, target):
    reached = np.flatnonzero(np.asarray(scores) > target)
    return cost[reached[0]] if len(reached) else math.inf


def last_time(cost, scores, target):
    reached = np.flatnonzero(np.asarray(scores) >= target)
    return cost[reached[-1]] if len(reached) else math.inf


@pytest.mark.parametrize("wrong, message", [
    (of_the_best, "first test at or above"), (argmax_alone, "not reached is infinity"),
    (end_of_budget, "not reached is infinity"),
    (above, "exactly the target"), (last_time, "first test at or above")])
def test_a_wrong_time_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): baselines.test_time_to_score(wrong)


# Exercise 4: on the road?

def make_on_road(rows=(3 / 4, 31 / 32), columns=(13 / 32, 19 / 32), threshold=0.5, channel=1, reduce=True,
                 test=None):
    def on_road(frames):
        size = frames.shape[1] if test is None else test
        y, x = (slice(*(int(end * size) for end in ends)) for ends in (rows, columns))
        share = (frames[:, y, x, channel] < 150).mean((1, 2))
        return share > threshold if reduce else share
    return on_road


@pytest.mark.parametrize("wrong, message", [
    (make_on_road(threshold=0.0), "grass all around"),
    (make_on_road(rows=(0, 1), columns=(0, 1), threshold=0.2),
     "edge of the picture|nor is the road ahead|answers"),
    (make_on_road(rows=(0, 1), threshold=0.4), "nor is the road ahead"),
    (make_on_road(columns=(0, 1), threshold=0.2), "edge of the picture"),
    (make_on_road(channel=0), "grass all around"),
    (make_on_road(test=64), "frames of another size"),
    (make_on_road(threshold=0.2), "more than half of the patch|grass all around"),
    (make_on_road(threshold=0.8), "more than half of the patch|road under the car"),
    (make_on_road(reduce=False), "booleans")])
def test_a_wrong_patch_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): baselines.test_on_road(wrong)


# Exercise 5: choose

def best_where_chosen(fitness, candidates, means, fresh, finalists):
    returns = fitness(candidates[np.argsort(means)[-finalists:]], fresh)
    return candidates[np.argmax(means)], returns[-1]


def wrong_index(fitness, candidates, means, fresh, finalists):
    returns = fitness(candidates[np.argsort(means)[-finalists:]], fresh)
    return candidates[returns.mean(1).argmax()], returns.max(0)


def best_on_one_track(pick):
    def choose(fitness, candidates, means, fresh, finalists):
        last = np.argsort(means)[-finalists:]
        returns = fitness(candidates[last], fresh)
        return candidates[last[pick(returns)]], returns[pick(returns)]
    return choose


def everybody_again(fitness, candidates, means, fresh, finalists):
    returns = fitness(candidates, fresh)
    return candidates[returns.mean(1).argmax()], returns[returns.mean(1).argmax()]


def the_worst(fitness, candidates, means, fresh, finalists):
    last = np.argsort(means)[:finalists]
    returns = fitness(candidates[last], fresh)
    return candidates[last[returns.mean(1).argmax()]], returns[returns.mean(1).argmax()]


def lucky_returns(fitness, candidates, means, fresh, finalists):
    last = np.argsort(means)[-finalists:]
    winner = last[fitness(candidates[last], fresh).mean(1).argmax()]
    return candidates[winner], means[winner] + np.arange(len(fresh)) - 1


def one_by_one(fitness, candidates, means, fresh, finalists):
    last = np.argsort(means)[-finalists:]
    returns = np.stack([fitness(candidates[i][None], fresh)[0] for i in last])
    return candidates[last[returns.mean(1).argmax()]], returns[returns.mean(1).argmax()]


@pytest.mark.parametrize("wrong, message", [
    (best_where_chosen, "finalist with the best mean on the fresh tracks"),
    (wrong_index, "finalist with the best mean on the fresh tracks"), (everybody_again, "only the finalists"),
    (best_on_one_track(lambda r: r.max(1).argmax()), "nor on one of them"),
    (best_on_one_track(lambda r: r[:, 0].argmax()), "nor on one of them"),
    (the_worst, "those with the best means"), (lucky_returns, "its returns are those on the fresh tracks"),
    (one_by_one, "only the finalists drive again, once")])
def test_a_wrong_choice_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): baselines.test_choose(wrong)


# Exercise 6: one action late

@pytest.mark.parametrize("wrong, message", [
    (lambda f, a, r, over: (f, a[:len(f)], r, over), "one action fewer"),
    (lambda f, a, r, over: (f, a[:len(f) - 1], r[:-1], over[:-1]), "beside the frame that action k led to"),
    (lambda f, a, r, over: (f[1:], a[1:len(f)], r[1:], over[1:]), "no frame is lost"),
    (lambda f, a, r, over: (f, a[1:], r[1:], over[1:]), "one action fewer"),
    (lambda f, a, r, over: (f, a[1:len(f)], r[:-1], over[1:]), "rewards go with their actions"),
    (lambda f, a, r, over: (f, a[1:len(f)], r[1:], over[:-1]), "so do ends"),
    (lambda f, a, r, over: (f, a[2:len(f) + 1], r[1:], over[1:]), "beside the frame that action k led to")])
def test_a_wrong_pairing_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): baselines.test_pair_after(wrong)
