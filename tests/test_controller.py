"""C: its parameters, a population at once, evolution that goes on to the last bit, scores."""
import math
from dataclasses import replace

import cma
import numpy as np
import pytest
import scipy.stats
import torch

import solutions.controller as solution
import worldmodels.controller as c
from solutions.settings import TrainSettings
from worldmodels.controller import (Controllers, ControllerSettings, EvolveSettings, RealFitness,
                                    WorldModelPolicy, evolve)
from worldmodels import scoring
from worldmodels.envs import Envs
from worldmodels.rollouts import HELD_OUT, TRAINING, VALIDATION, run_episodes
from worldmodels.tools.training import read_lines
from worldmodels.tools.games import CAR_RACING
from worldmodels.tools.world import WorldModel
from worldmodels.tools.encoding import encode_frames

C = ControllerSettings()


def numbers(world: WorldModel, count: int = 1, settings: ControllerSettings = C, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, c.controllers_for(world, settings).dimension))


# ---- the controllers

@pytest.mark.parametrize("settings, inputs, outputs, count", [
    (C, 288, 3, 867), (ControllerSettings(bias=False), 288, 3, 864),
    (ControllerSettings(memory=False), 32, 3, 99), (ControllerSettings(memory=False, hidden=40), 32, 3, 1443),
    (ControllerSettings(bias=False), 1088, 1, 1088)])
def test_parameters_are_as_many_as_the_papers(settings, inputs, outputs, count):
    assert Controllers(settings, inputs, outputs).dimension == count


def test_what_c_sees_depends_on_the_world(world):
    assert c.controllers_for(world, C).inputs == 12
    assert c.controllers_for(world, ControllerSettings(memory=False)).inputs == 4


@pytest.mark.parametrize("settings", [
    C, ControllerSettings(hidden=7), ControllerSettings(hidden=7, bias=False)])
def test_each_row_goes_through_its_own_network(settings):
    params = torch.randn(3, Controllers(settings, 5, 2).dimension, dtype=torch.float64).numpy()
    x, owner = torch.randn(6, 5), torch.tensor([2, 0, 1, 1, 2, 0])
    got = Controllers(settings, 5, 2, params)(x, owner)
    widths = [5, 7, 2] if settings.hidden else [5, 2]
    for row, o, y in zip(x, owner, got):
        layers = [torch.nn.Linear(i, n, bias=settings.bias) for i, n in zip(widths, widths[1:])]
        into = [p for layer in layers for p in layer.parameters()]
        torch.nn.utils.vector_to_parameters(torch.tensor(params[o], dtype=torch.float32), into)
        for k, layer in enumerate(layers): row = layer(row.tanh() if k else row)
        torch.testing.assert_close(y, row)


def test_the_car_stands_on_no_brake_before_anything_is_learnt():
    assert c.squash_car(torch.zeros(3)).tolist() == [0.0, 0.5, 0.0]


def test_clipping_is_no_tanh():
    raw = torch.tensor([[0.5, 0.5, 0.5], [-3.0, -3.0, -3.0], [3.0, 3.0, 3.0]])
    assert c.SQUASHES["clip"](raw, *c.action_bounds(CAR_RACING)).tolist() == [[0.5, 0.5, 0.5], [-1, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("change", [dict(hidden=-1), dict(squash="sigmoid")])
def test_impossible_controllers_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))): ControllerSettings(**change)


@pytest.mark.parametrize("change", [
    dict(population=1), dict(episodes=0), dict(generations=0), dict(sigma=0), dict(decay=-1),
    dict(validate_every=0), dict(validate_episodes=0), dict(max_steps=0), dict(patience=-1),
    dict(minutes=-1)])
def test_impossible_searches_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))): EvolveSettings(**change)


# ---- driving

class Slides(Envs):
    """Frames drawn from the row's seed; row k ends after 3 + 2k steps."""

    def _reset(self):
        self.t = np.zeros(len(self), int)
        return self.frames(range(len(self)))

    def frames(self, rows):
        rngs = [np.random.default_rng([self.seeds[r], self.t[r]]) for r in rows]
        return np.stack([rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for rng in rngs])

    def _step(self, actions, rows):
        self.t[rows] += 1
        ended = self.t[rows] >= 3 + 2 * rows
        return self.frames(rows), np.ones(len(rows), np.float32), ended, np.zeros(len(rows), bool)


def slides(seeds) -> Slides: return Slides("CarRacing-v3", seeds, 64)


def drive_one(world, settings, params, seed, row):
    """The actions of one car, written the long way."""
    controllers, envs = c.controllers_for(world, settings, params), slides([seed] * (row + 1))
    frame, state, actions = envs.reset()[row:], world.dynamics.initial(1), []
    while not actions or not ended:
        z = torch.from_numpy(encode_frames(world.vision, frame)[0])
        seen = torch.cat([z, world.dynamics.features(state)], 1) if settings.memory else z
        raw = controllers(seen, torch.zeros(1, dtype=int))
        action = raw.tanh() if settings.squash == "tanh" else c.squash_car(raw)
        _, state = world.dynamics.step(z, action, state)
        frame, _, ended, _ = envs.step_rows(action.numpy(), np.array([row]))
        actions.append(action[0])
    return torch.stack(actions)


@pytest.mark.parametrize("settings", [
    C, ControllerSettings(memory=False, hidden=6), ControllerSettings(squash="tanh")])
@torch.inference_mode()
def test_many_cars_drive_as_each_would_alone(world, settings):
    params, seen = numbers(world, 2, settings), {row: [] for row in range(6)}
    policy = WorldModelPolicy(world, c.controllers_for(world, settings, params))

    def keep(rows, frames, actions, *_):
        for row, action in zip(rows, actions): seen[row].append(torch.from_numpy(action.copy()))

    _, lengths = run_episodes(slides([5, 6, 7] * 2), policy, 100, on_step=keep)
    assert lengths.tolist() == [3, 5, 7, 9, 11, 13]
    for row in seen:  # rows leave one after the other, so the memory is packed on the way
        alone = drive_one(world, settings, params[row // 3], [5, 6, 7][row % 3], row)
        torch.testing.assert_close(torch.stack(seen[row]), alone, atol=5e-3, rtol=0)


def test_rows_that_cannot_be_shared_evenly_are_refused(world):
    policy = WorldModelPolicy(world, c.controllers_for(world, C, numbers(world, 2)))
    with pytest.raises(ValueError, match="3 rows cannot be shared evenly by 2"):
        policy.start(slides([1, 2, 3]))


def test_action_noise_is_smooth_and_belongs_to_the_seed(world):
    def drive(seeds):
        seen = []
        policy = WorldModelPolicy(world, c.controllers_for(world, C, 0 * numbers(world)), action_noise=0.5)
        def keep(rows, frames, actions, *_): seen.append(actions)
        run_episodes(slides(seeds), policy, 3, on_step=keep)
        return np.stack(seen)
    both, one = drive([11, 12]), drive([12])
    np.testing.assert_array_equal(both[:, 1], one[:, 0])
    assert (both[:, 0] != both[:, 1]).any()


def test_returns_of_a_population_are_those_of_its_candidates(world):
    params, fitness = numbers(world, 2), RealFitness(world, C, max_steps=15)
    both = fitness(params, [3, 4])
    assert both.shape == (2, 2) and fitness.steps == 60
    np.testing.assert_allclose(both, np.concatenate([fitness(p[None], [3, 4]) for p in params]), atol=0.3)
    np.testing.assert_array_equal(both, fitness(params, [3, 4]))


def test_wrong_widths_and_backends_are_refused_before_anything_moves(world, monkeypatch):
    def never(*_, **__): raise AssertionError("an environment was made")
    monkeypatch.setattr(scoring, "make_envs", never)
    with pytest.raises(ValueError, match="has 39 parameters, got 867"):
        RealFitness(world, C)(np.zeros((1, 867)), [0])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no-such"): c.score(world, C, numbers(world)[0], [0], "no-such")


# ---- evolution

SHORT = EvolveSettings(population=6, episodes=3, generations=6, validate_every=2, validate_episodes=4)


class Bowl:
    """Best where all parameters are 1; noise depends on the tracks. Keeps what was asked; may be killed."""

    dimension = 5

    def __init__(self, killed_at: int = 10**9): self.asked, self.killed_at = [], killed_at

    def __call__(self, params, seeds):
        if len(self.asked) >= self.killed_at: raise KeyboardInterrupt
        self.asked.append((params.copy(), list(seeds)))
        noise = np.random.default_rng(list(seeds)).normal(size=(len(params), len(seeds)))
        return 10 - ((params - 1)**2).sum(1, keepdims=True) + noise


def without_times(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


@pytest.mark.parametrize("half_a_line", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_a_killed_search_ends_with_the_same_bits(tmp_path, diagonal, half_a_line):
    settings, start = replace(SHORT, diagonal=diagonal), np.zeros(40)
    whole, records = evolve(Bowl(), start, settings, seed=3)
    with pytest.raises(KeyboardInterrupt):  # after 3 generations and a test
        evolve(Bowl(killed_at=4), start, settings, tmp_path, seed=3)
    path = tmp_path / "evolution.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    if half_a_line: path.write_text("".join(lines[:2]) + lines[2][:len(lines[2]) // 2])
    np.random.seed(7)  # whatever else draws numbers must not matter
    fitness = Bowl()
    resumed, again = evolve(fitness, start, settings, tmp_path, seed=3)
    assert resumed.tobytes() == whole.tobytes()
    assert without_times(again) == without_times(records) == without_times(read_lines(path))
    driven = [seeds for _, seeds in fitness.asked if len(seeds) == settings.episodes]
    assert len(driven) == (4 if half_a_line else 3), "generations that were there have been driven again"


def test_a_finished_search_is_not_driven_again(tmp_path):
    mean, _ = evolve(Bowl(), np.zeros(5), SHORT, tmp_path)
    fitness = Bowl()
    assert evolve(fitness, np.zeros(5), SHORT, tmp_path)[0].tobytes() == mean.tobytes() and not fitness.asked


def test_each_generation_that_is_driven_is_told_and_a_missing_folder_is_made(tmp_path):
    told, folder = [], tmp_path / "new" / "search"

    def keep(record, mean):
        assert read_lines(folder / "evolution.jsonl")[-1] == record, "it is told when the line is there"
        told.append((record["generation"], mean))

    with pytest.raises(KeyboardInterrupt):
        evolve(Bowl(killed_at=4), np.zeros(5), SHORT, folder, on_generation=keep)
    mean, _ = evolve(Bowl(), np.zeros(5), SHORT, folder, on_generation=keep)
    assert [generation for generation, _ in told] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(told[-1][1], mean)
    assert (told[0][1] != told[1][1]).any()


def test_from_python_a_search_makes_its_folder_and_goes_on(tmp_path, monkeypatch):
    settings = TrainSettings(evolve=SHORT, seed=3)

    def search(folder, fitness, **more):
        monkeypatch.setattr(solution, "RealFitness", lambda *_: fitness)
        return solution.search(folder, None, settings, **more)

    def start(): return np.full(5, 0.5)

    told = []
    def keep(record, mean): told.append(record["generation"])

    whole = search(tmp_path / "a" / "whole", Bowl(), start=start)
    with pytest.raises(KeyboardInterrupt): search(tmp_path / "killed", Bowl(killed_at=4), start=start)
    resumed = search(tmp_path / "killed", Bowl(), on_generation=keep)
    assert resumed.tobytes() == whole.tobytes() and told == [4, 5, 6], "it begins where it began before"
    fitness = Bowl()
    assert search(tmp_path / "killed", fitness).tobytes() == whole.tobytes() and not fitness.asked


def test_the_result_is_the_mean_and_it_improves():
    fitness = Bowl()
    mean, records = evolve(fitness, np.zeros(5), replace(SHORT, generations=60, sigma=0.3))
    assert np.abs(mean - 1).max() < 0.5
    populations = [candidates for candidates, _ in fitness.asked if len(candidates) > 1]
    assert not any((candidates == mean).all(1).any() for candidates in populations)
    validated, _ = fitness.asked[-1]
    np.testing.assert_array_equal(validated, mean[None])
    assert len(records) == 60 and all(r["worst"] <= r["mean"] <= r["best"] for r in records)


def test_all_candidates_of_a_generation_share_tracks_and_no_choice_sees_the_held_out_ones():
    fitness = Bowl()
    evolve(fitness, np.zeros(5), SHORT)
    driven = [tuple(seeds) for params, seeds in fitness.asked if len(params) > 1]
    tests = [seeds for params, seeds in fitness.asked if len(params) == 1]
    assert len(set(driven)) == SHORT.generations and all(s in TRAINING for seeds in driven for s in seeds)
    assert all(len(set(seeds)) == SHORT.episodes for seeds in driven)
    assert tests == [list(VALIDATION[:4])] * 3
    assert not set(TRAINING) & set(HELD_OUT) and not set(VALIDATION) & set(HELD_OUT)


def test_it_stops_at_the_target_and_stays_stopped(tmp_path):
    settings = replace(SHORT, generations=100, sigma=0.3, target_return=9.0)
    mean, records = evolve(Bowl(), np.zeros(5), settings, tmp_path)
    assert len(records) < 100 and records[-1]["validation"] >= 9 and len(records) % SHORT.validate_every == 0
    assert all(r.get("validation", -math.inf) < 9 for r in records[:-1])
    fitness = Bowl()
    again, _ = evolve(fitness, np.zeros(5), settings, tmp_path)
    assert again.tobytes() == mean.tobytes() and not fitness.asked


def test_it_goes_on_to_the_target_after_a_kill(tmp_path):
    settings = replace(SHORT, generations=100, sigma=0.3, target_return=9.0)
    whole, records = evolve(Bowl(), np.zeros(5), settings)
    with pytest.raises(KeyboardInterrupt): evolve(Bowl(killed_at=5), np.zeros(5), settings, tmp_path)
    resumed, again = evolve(Bowl(), np.zeros(5), settings, tmp_path)
    assert resumed.tobytes() == whole.tobytes() and len(again) == len(records)


def test_returns_that_are_not_finite_stop_the_search_and_leave_its_file(tmp_path):
    with pytest.raises(KeyboardInterrupt): evolve(Bowl(killed_at=2), np.zeros(5), SHORT, tmp_path)
    before = (tmp_path / "evolution.jsonl").read_bytes()

    def broken(params, seeds):
        returns = np.zeros((len(params), len(seeds)))
        returns[4] = math.nan
        return returns

    with pytest.raises(FloatingPointError, match="generation 2 .* candidate 4"):
        evolve(broken, np.zeros(5), SHORT, tmp_path)
    assert (tmp_path / "evolution.jsonl").read_bytes() == before


def test_the_file_of_another_search_is_refused_and_kept(tmp_path):
    evolve(Bowl(), np.zeros(5), SHORT, tmp_path)
    before = (tmp_path / "evolution.jsonl").read_bytes()
    with pytest.raises(ValueError, match="generations of 6 candidates, and this search has 8"):
        evolve(Bowl(), np.zeros(5), replace(SHORT, population=8), tmp_path)
    assert (tmp_path / "evolution.jsonl").read_bytes() == before


@pytest.mark.parametrize("change", [dict(seed=1), dict(start=np.ones(5))])
def test_a_search_with_another_beginning_is_refused_and_kept(tmp_path, change):
    evolve(Bowl(), np.zeros(5), SHORT, tmp_path)
    before = (tmp_path / "evolution.jsonl").read_bytes()
    with pytest.raises(ValueError, match="began elsewhere or with another seed"):
        evolve(Bowl(), change.get("start", np.zeros(5)), SHORT, tmp_path, change.get("seed", 0))
    assert (tmp_path / "evolution.jsonl").read_bytes() == before


def test_cma_draws_from_a_generator_of_its_own():
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    es = c.make_cma(np.zeros(5), SHORT, 1)
    first = np.array(es.ask())
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.testing.assert_array_equal(np.array(c.make_cma(np.zeros(5), SHORT, 1).ask()), first)
    assert (np.array(c.make_cma(np.zeros(5), SHORT, 2).ask()) != first).any()
    assert isinstance(es, cma.CMAEvolutionStrategy)


def test_a_generation_notes_the_steps_it_drove(world, tmp_path):
    fitness = RealFitness(world, C, max_steps=4, patience=0)
    settings = EvolveSettings(population=3, episodes=2, generations=2, validate_every=2, validate_episodes=1)
    _, records = evolve(fitness, np.zeros(fitness.dimension), settings, tmp_path)
    assert [r["steps"] for r in records] == [24, 24] and fitness.steps == 48 + 4


# ---- scores

@pytest.mark.parametrize("returns", [
    np.random.default_rng(0).normal(800, 100, 60), 900 - np.random.default_rng(1).exponential(100, 40)],
    ids=["a bell curve", "skewed"])
def test_the_bootstrap_agrees_with_scipys(returns):
    other = scipy.stats.bootstrap((returns,), np.mean, n_resamples=10_000, method="percentile", rng=0)
    error = returns.std() / len(returns)**0.5  # 10,000 means give an end of the interval to about 0.03 of it
    np.testing.assert_allclose(c.bootstrap(returns), other.confidence_interval, rtol=0, atol=0.15 * error)


def test_a_linear_c_is_fitted_to_many_frames_in_pieces():
    torch.manual_seed(0)
    seen, wanted = torch.randn(120_000, 5), torch.randn(120_000, 2)
    x = torch.cat([seen, torch.ones(len(seen), 1)], 1).double()
    penalty = 1e-3 * len(x) * torch.eye(6)
    weight = torch.linalg.solve(x.T @ x + penalty, x.T @ wanted.clamp(-2, 2).double()).T
    expected = torch.cat([weight[:, :-1].flatten(), weight[:, -1]]).numpy()
    np.testing.assert_allclose(c.fit_linear_controller(seen, wanted), expected, atol=1e-6)
