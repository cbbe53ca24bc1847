"""The loop behind every score, and the interval beside it."""
import threading

import numpy as np
import pytest
import scipy.stats
import torch

from worldmodels import scoring
from worldmodels.controller import ControllerSettings, RealFitness, controllers_for
from worldmodels.envs import Envs, make_envs
from worldmodels.rollouts import Policy, RoadFollower, run_episodes
from worldmodels.scoring import drive_groups, interval, score_policy, summary

SEEDS = [3, 4, 5, 6, 7]


def test_any_policy_is_scored_on_its_tracks_in_order():
    alone = [run_episodes(make_envs(seeds=[seed]), RoadFollower(), 30)[0][0] for seed in SEEDS]
    np.testing.assert_array_equal(score_policy(RoadFollower(), SEEDS, "fast", 30, rows=2), alone)
    np.testing.assert_array_equal(score_policy(RoadFollower(), SEEDS, "fast", 30), alone)
    groups = [(RoadFollower(), SEEDS[:2]), (RoadFollower(), SEEDS[2:4]), (RoadFollower(), SEEDS[4:])]
    together = drive_groups(groups, "fast", 30)
    np.testing.assert_array_equal(np.concatenate([returns for returns, _ in together]), alone)
    assert [lengths.tolist() for _, lengths in together] == [[30, 30], [30, 30], [30]]


class Counted(Envs):
    """Row r is over after 3 + 2 · r steps, each paid 1. Notes when it is made, reseeded and closed."""

    log = []

    def __init__(self, game, seeds, size, backend, workers):
        super().__init__(game, seeds, size)
        self.log.append(("made", self.game.name, [*seeds], size, backend, workers))

    def reseed(self, seeds):
        super().reseed(seeds)
        self.log.append(("reseeded", [*seeds]))

    def _reset(self):
        self.t = np.zeros(len(self), int)
        return np.zeros((len(self), self.size, self.size, 3), np.uint8)

    def _step(self, actions, rows):
        self.threads = torch.get_num_threads()
        self.t[rows] += 1
        over = self.t[rows] == 3 + 2 * rows
        return np.zeros((len(rows), self.size, self.size, 3), np.uint8), np.ones(len(rows)), over, ~over & False

    def close(self): self.log.append(("closed", self.threads))


class Straight(Policy):
    name = "straight"

    def act(self, frames, rows): return np.zeros((len(rows), self.width))

    def start(self, envs): self.width = envs.game.action_dim


@pytest.fixture
def counted(monkeypatch):
    """`make_envs` counts, there are four cores, and torch has four threads."""
    monkeypatch.setattr(scoring, "make_envs", Counted)
    monkeypatch.setattr(scoring, "usable_cores", lambda: 4)
    monkeypatch.setattr(Counted, "log", [])
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield Counted.log
    torch.set_num_threads(before)


def test_batches_share_environments_and_torch_gives_way(counted, capsys):
    returns = score_policy(Straight(), range(5), "b", 100, rows=2, game="TakeCover")
    assert counted == [("made", "TakeCover", [0, 1], 64, "b", 4), ("reseeded", [2, 3]), ("closed", 2),
                                      ("made", "TakeCover", [4], 64, "b", 4), ("closed", 2)]
    assert returns.tolist() == [3, 5, 3, 5, 3] and torch.get_num_threads() == 4
    assert "straight on b: 100%" in capsys.readouterr().err


def test_groups_with_policies_of_their_own_drive_at_the_same_time(counted):
    """Each waits in its first step until the other is there: one after the other they would wait for ever."""
    meeting = threading.Barrier(2, timeout=20)

    class Meeting(Straight):
        def start(self, envs):
            super().start(envs)
            meeting.wait()
    drive_groups([(Meeting(), [10]), (Meeting(), [20])], "b", 100)
    assert [entry[-1] for entry in counted if entry[0] == "made"] == [2, 2], "they share the cores"
    assert [entry for entry in counted if entry[0] == "closed"] == [("closed", 1)] * 2, "and torch's threads"


def test_a_loop_that_fails_closes_its_environments_and_gives_the_threads_back(counted):
    class Broken(Straight):
        def act(self, frames, rows):
            if len(rows) < 2: raise KeyboardInterrupt
            return super().act(frames, rows)
    with pytest.raises(KeyboardInterrupt): drive_groups([(Broken(), [0, 1]), (Straight(), [2, 3])] * 20, "b", 100)
    made, closed = ([entry for entry in counted if entry[0] == what] for what in ("made", "closed"))
    assert len(made) == len(closed) <= 4, "and nobody began what was still to come"
    assert torch.get_num_threads() == 4


def test_a_fitness_gives_each_core_its_share_without_a_bar(world, counted, capsys):
    fitness = RealFitness(world, ControllerSettings(), backend="b")
    params = np.zeros((2, controllers_for(world, ControllerSettings()).dimension))
    assert fitness(params, [3, 4, 5]).tolist() == [[3, 5, 7]] * 2
    assert [entry[2] for entry in counted if entry[0] == "made"] == [[3, 4, 5]] * 2
    assert fitness.steps == 30 and not capsys.readouterr().err


# What a score says

@pytest.mark.parametrize("returns", [
    np.random.default_rng(0).normal(800, 100, 60), 900 - np.random.default_rng(1).exponential(100, 40)],
    ids=["a bell curve", "skewed"])
def test_the_interval_is_the_studentized_bootstrap(returns):
    """Beside one written from the book's formula, with a loop."""
    rng, n, mean = np.random.default_rng(5), len(returns), returns.mean()
    def error(x): return np.sqrt(((x - x.mean())**2).mean() / n)
    resampled = (returns[rng.integers(0, n, n)] for _ in range(20_000))
    t = np.sort([(x.mean() - mean) / error(x) for x in resampled])
    other = mean - t[int(0.975 * len(t))] * error(returns), mean - t[int(0.025 * len(t))] * error(returns)
    np.testing.assert_allclose(interval(returns), other, rtol=0, atol=0.12 * error(returns))


def test_it_holds_what_it_promises_where_returns_are_skewed():
    """A tenth failures: the percentile bootstrap is too short."""
    population, rng = np.array([900.0] * 9 + [300.0]) + np.arange(10), np.random.default_rng(0)
    samples = [rng.choice(population, 100) for _ in range(300)]
    def held(found): return np.mean([low <= population.mean() <= high for low, high in found])
    plain = [scipy.stats.bootstrap((x,), np.mean, n_resamples=500, method="percentile", rng=0).confidence_interval
             for x in samples]
    assert held([interval(x, resamples=500) for x in samples]) > max(0.93, held(plain))


def test_a_summary_holds_the_mean_and_its_interval():
    returns = np.array([900.0] * 90 + [300.0] * 10)
    s = summary(returns)
    assert s["mean"] == 840 and s["sd"] == 180 and s["low"] < 840 < s["high"] and s["episodes"] == 100
    assert summary(returns) == s and summary([7.0, 7.0])["low"] == summary([7.0])["high"] == 7
    with pytest.raises(ValueError, match="no episode"): summary(np.array([]))
