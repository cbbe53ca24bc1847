"""Each exercise of chapter 06: its test passes the reference and names what is wrong with plausible answers."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worldmodels import doom, dream
from worldmodels.tools import takecover
from worldmodels.tools.check import CheckFailed


@pytest.mark.parametrize("test, reference", [
    (doom.test_buttons, takecover.buttons), (doom.test_done_loss, doom.done_loss), (doom.test_done_probability, dream.done_probability),
    (doom.test_reliability, doom.reliability), (doom.test_survived, doom.survived)])
def test_the_reference_passes(test, reference): test(reference)


# Exercise 1: buttons

@pytest.mark.parametrize("wrong, message", [
    (lambda a: [a < 0, a > 0], r"-0.330 presses nothing"),
    (lambda a: [a > 1 / 3, a < -1 / 3], r"-1.000 presses left"),
    (lambda a: [a < -0.5, a > 0.5], r"-0.340 presses left"),
    (lambda a: [abs(a) > 1 / 3] * 2, r"-1.000 presses left"),
    (lambda a: [a < 1 / 3, a > 1 / 3], r"\+0.000 presses nothing"),
    (lambda a: [a <= -1 / 3, a >= 1 / 3], r"-0.333 presses nothing"), (lambda a: [a < -0.33, a > 0.33], r"-0.333 presses nothing")])
def test_wrong_buttons_are_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): doom.test_buttons(wrong)


# Exercise 2: the weighted loss

def make_loss(naive=False, weigh="true", divide="steps"):
    def loss(logits, died, weight):
        y = died.to(logits)
        if naive: log_p, log_q = logits.sigmoid().log(), (1 - logits.sigmoid()).log()
        else: log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
        w, v = {"true": (weight, 1.0), "false": (1.0, weight), "both": (weight, weight), "none": (1.0, 1.0)}[weigh]
        cost = -(w * y * log_p + v * (1 - y) * log_q)
        if divide == "none": return cost
        if divide == "sum": return cost.sum()
        return cost.sum() / (torch.where(died, w, v).sum() if divide == "weights" else len(y))
    return loss


def test_a_right_loss_in_other_words_passes(): doom.test_done_loss(make_loss())


@pytest.mark.parametrize("wrong, message", [
    (make_loss(divide="none"), "one number"),
    (make_loss(divide="sum"), "every step costs log 2"),
    (make_loss(divide="weights"), r"mean is over the steps: 13/4"),
    (make_loss(weigh="none"), r"a true one weighs 10"),
    (make_loss(weigh="both"), r"a true one weighs 10"),
    (make_loss(weigh="false"), r"a true one weighs 10"),
    (make_loss(naive=True), "pays the logit, not infinity")])
def test_a_wrong_loss_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): doom.test_done_loss(wrong)


# Exercise 3: the true probability

def odds(x, w):
    p = x.sigmoid()
    return p / (p + w * (1 - p))


def test_a_right_probability_in_other_words_passes():
    doom.test_done_probability(lambda x, w: 1 / (1 + w * torch.exp(-x)))


@pytest.mark.parametrize("wrong, message", [
    (lambda x, w: x.sigmoid(), "p = 0.5, trained with weight 10"),
    (lambda x, w: x.sigmoid() / w, "p = 0.5, trained with weight 10"),
    (lambda x, w: torch.sigmoid(x - w), "a weight of 1 changes nothing"),
    (lambda x, w: torch.sigmoid(x + math.log(w)), "p = 0.5"),
    (lambda x, w: torch.sigmoid(x - math.log10(w)), "p = 0.5"),
    (lambda x, w: torch.sigmoid(x / w), "p = 0.5"),
    (lambda x, w: (x.sigmoid() / w).mean(), "one for each logit")])
def test_a_wrong_probability_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): doom.test_done_probability(wrong)


# Exercise 4: reliability

def make_reliability(middle=False, total=False, empty=np.nan, right=False, lost=False):
    def reliability(p, happened, edges):
        bins = len(edges) - 1
        said, share, count = np.full(bins, empty), np.full(bins, empty), np.zeros(bins, int)
        for k in range(bins):
            inside = (p > edges[k]) & (p <= edges[k + 1]) if right else (p >= edges[k]) & ((p < edges[k + 1]) | (k == bins - 1) & (not lost))
            count[k] = inside.sum()
            if not count[k]: continue
            said[k] = (edges[k] + edges[k + 1]) / 2 if middle else p[inside].mean()
            share[k] = happened[inside].sum() / (len(p) if total else count[k])
        return said, share, count
    return reliability


def test_a_right_reliability_in_other_words_passes(): doom.test_reliability(make_reliability())


@pytest.mark.parametrize("wrong, message", [
    (make_reliability(middle=True), "not the group's middle"),
    (make_reliability(total=True), "share of what happened is of the group"),
    (make_reliability(empty=0.0), "an empty group has NaN"),
    (make_reliability(lost=True), "a p of 1 belongs to the last group")])
def test_a_wrong_reliability_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): doom.test_reliability(wrong)


# Exercise 5: survival

@pytest.mark.parametrize("wrong, message", [
    (lambda done: done.int().argmax(0) + 1, "who never dies lives through all five"),
    (lambda done: done.int().argmax(0), "dead at once is one step"),
    (lambda done: (~done).sum(0), "dead at once is one step"),
    (lambda done: (done.cumsum(0) == 0).sum(0), "dead at once is one step"),
    (lambda done: (done.cumsum(0) == 0).sum(0) + 1, "who never dies"),
    (lambda done: len(done) - done.flip(0).int().argmax(0), "only the first death counts"),
    (lambda done: torch.where(done.any(0), done.int().argmax(0) + 1, len(done)).float().mean(), "one number for each player")])
def test_a_wrong_survival_is_told(wrong, message):
    with pytest.raises(CheckFailed, match=message): doom.test_survived(wrong)
