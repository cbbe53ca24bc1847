"""Chapter 00's exercises: each test passes the reference, and says what is wrong with plausible mistakes."""
import cv2
import numpy as np
import pytest

from worldmodels import rollouts as r
from worldmodels.collect import record as record_episodes
from worldmodels.tools.store import Episode
from worldmodels.tools import check as c
from worldmodels.tools.check import CheckFailed, check


@pytest.fixture(autouse=True)
def record(tmp_path, monkeypatch): monkeypatch.setattr(c, "RECORD", tmp_path / ".progress.json")


@pytest.mark.parametrize("reference, test", [
    (r.prepare, r.test_prepare), (r.brownian, r.test_brownian), (r.held, r.test_held),
    (r.run_episodes, r.test_drive), (r.road_offset, r.test_road_offset), (record_episodes, r.test_record)])
def test_references_pass(reference, test): assert check(reference, reference, test) is reference


# prepare

def resized(frames, size, rows=slice(0, 84), how=cv2.INTER_AREA):
    return np.stack([cv2.resize(f[rows], (size, size), interpolation=how) for f in frames])

def panel_kept(frames, size=64): return resized(frames, size, slice(None))
def cut_at_the_top(frames, size=64): return resized(frames, size, slice(12, 96))
def too_much_cut(frames, size=64): return resized(frames, size, slice(0, 64))
def pixels_left_out(frames, size=64): return resized(frames, size, how=cv2.INTER_NEAREST)
def linear(frames, size=64): return resized(frames, size, how=cv2.INTER_LINEAR)
def floats(frames, size=64): return resized(frames, size) / np.float32(255)
def size_forgotten(frames, size=64): return resized(frames, 64)
def channels_first(frames, size=64): return resized(frames, size).transpose(0, 3, 1, 2)

def panel_blackened(frames, size=64):
    frames[:, 84:] = 0
    return resized(frames, size)

# brownian

def step_of_dt(rng, steps, low, high, dt=1 / 50):
    action, actions = rng.uniform(low, high), []
    for _ in range(steps): actions.append(action := np.clip(action + dt * rng.standard_normal(len(low)), low, high))
    return np.float32(actions)

def clipped_at_the_end(rng, steps, low, high, dt=1 / 50):
    moves = np.sqrt(dt) * rng.standard_normal((steps, len(low)))
    return (rng.uniform(low, high) + moves.cumsum(0)).clip(low, high).astype(np.float32)

def not_clipped(rng, steps, low, high, dt=1 / 50):
    moves = np.sqrt(dt) * rng.standard_normal((steps, len(low)))
    return (rng.uniform(low, high) + moves.cumsum(0)).astype(np.float32)

def walk(rng, steps, low, high, action, dt, dims=None):
    actions = []
    for _ in range(steps):
        action = np.clip(action + np.sqrt(dt) * rng.standard_normal(dims or len(low)), low, high)
        actions.append(action)
    return np.float32(actions)

def from_zero(rng, steps, low, high, dt=1 / 50): return walk(rng, steps, low, high, np.zeros(3), dt)
def all_alike(rng, steps, low, high, dt=1 / 50): return walk(rng, steps, low, high, rng.uniform(low, high), dt, dims=1)
def dt_ignored(rng, steps, low, high, dt=1 / 50): return walk(rng, steps, low, high, rng.uniform(low, high), 1 / 50)
def own_rng(rng, steps, low, high, dt=1 / 50): return walk(np.random, steps, low, high, rng.uniform(low, high), dt)

# held

def always_longest(rng, steps, low, high, longest=10):
    return np.repeat(r.white_noise(rng, steps, low, high), longest, axis=0)[:steps]

def upper_end_left_out(rng, steps, low, high, longest=10):
    times = rng.integers(1, longest, steps) if longest > 1 else np.ones(steps, int)
    return np.repeat(r.white_noise(rng, steps, low, high), times, axis=0)[:steps]

def not_cut(rng, steps, low, high, longest=10):
    return np.repeat(r.white_noise(rng, steps, low, high), rng.integers(1, longest + 1, steps), axis=0)

def each_number_alone(rng, steps, low, high, longest=10):
    return np.concatenate([r.held(rng, steps, low[i:i + 1], high[i:i + 1], longest) for i in range(len(low))], 1)

def normal(rng, steps, low, high, longest=10):
    actions = rng.normal((low + high) / 2, (high - low) / 6, (steps, len(low))).clip(low, high).astype(np.float32)
    return np.repeat(actions, rng.integers(1, longest + 1, steps), axis=0)[:steps]

def none_or_more(rng, steps, low, high, longest=10):
    times = rng.integers(0, longest + 1, steps)
    while times.sum() < steps and longest > 1: times = np.append(times, rng.integers(0, longest + 1))
    return np.repeat(rng.uniform(low, high, (len(times), len(low))), times, axis=0)[:steps].astype(np.float32)

def longest_ignored(rng, steps, low, high, longest=10): return r.held(rng, steps, low, high)

# drive

def driving(add=lambda returns, rows, rewards, alive: returns.__setitem__(rows, returns[rows] + rewards), leave=True,
            frames_follow=True, cut=True, clock=True):
    """A driver with one thing done in another way."""
    def drive(envs, policy, max_steps):
        n = len(envs)
        frames, rows, returns, lengths = envs.reset(), np.arange(n), np.zeros(n), np.zeros(n, int)
        policy.start(envs)
        t = 0
        while len(rows) and (t < max_steps or not cut):
            following, rewards, terminated, truncated = envs.step_rows(policy.act(frames, rows), rows)
            alive = ~(terminated | truncated & clock) if leave else np.ones(len(rows), bool)
            add(returns, rows, rewards, alive)
            lengths[rows] += 1
            frames, rows, t = following[alive] if frames_follow else following[:alive.sum()], rows[alive], t + 1
        return returns, lengths
    return drive

def by_place(returns, rows, rewards, alive): returns[:len(rows)] += rewards
def last_reward_lost(returns, rows, rewards, alive): returns[rows[alive]] += rewards[alive]

def one_row_less(envs, policy, max_steps):
    returns, lengths = r.run_episodes(envs, policy, max_steps)
    return returns, lengths - 1

# road_offset

def offset_in(rows=slice(36, 46), road=lambda f: f[..., 1] < 150, sign=1, pixels=False):
    def offset(frames):
        size = frames.shape[1]
        found = road(frames[:, rows.start * size // 64:(rows.stop or 64) * size // 64])
        x, count = (np.arange(size) + 0.5) / size * 2 - 1, found.sum((1, 2))
        mean = np.where(count, (found * x).sum((1, 2)) / np.maximum(count, 1), np.nan)
        return sign * (mean + 1) / 2 * size if pixels else sign * mean
    return offset

def rows_of_64(frames):  # at every size
    x = (np.arange(frames.shape[2]) + 0.5) / frames.shape[2] * 2 - 1
    found = frames[:, 36:46, :, 1] < 150
    return np.where(found.any((1, 2)), (found * x).sum((1, 2)) / np.maximum(found.sum((1, 2)), 1), np.nan)

def mean_of_row_means(frames):
    size = frames.shape[1]
    x, found = (np.arange(size) + 0.5) / size * 2 - 1, frames[:, size * 9 // 16:size * 23 // 32, :, 1] < 150
    of_rows = np.where(found.any(2), (found * x).sum(2) / np.maximum(found.sum(2), 1), 0)
    return np.where(found.any((1, 2)), of_rows.sum(1) / np.maximum(found.any(2).sum(1), 1), np.nan)

def zero_for_none(frames): return np.nan_to_num(r.road_offset(frames))

# record

def recording(pair=lambda frames, following: frames, last=True, by_place=False,
              ends=lambda terminated, truncated: (terminated, truncated), seed=lambda envs, row: envs.seeds[row]):
    """A recorder with one thing done in another way."""
    def record(envs, policy, max_steps):
        kept, final = [[[] for _ in range(5)] for _ in envs.seeds], {}
        def keep(rows, frames, actions, rewards, terminated, truncated, following):
            for k, row in enumerate(rows):
                place = k if by_place else row
                values = pair(frames, following)[k], actions[k], rewards[k], *ends(terminated[k], truncated[k])
                for values_of, value in zip(kept[place], values): values_of.append(value)
                final[place] = following[k]
        r.run_episodes(envs, policy, max_steps, on_step=keep)
        return [Episode(np.stack(frames + [final[row]] * last), np.float32(actions), np.float32(rewards),
                        np.array(terminated), np.array(truncated), seed(envs, row))
                for row, (frames, actions, rewards, terminated, truncated) in enumerate(kept)]
    return record


def test_the_recorder_of_wrong_answers_is_right_when_nothing_is_changed():
    for mine, reference, test in ((recording(), record_episodes, r.test_record), (driving(), r.run_episodes, r.test_drive),
                                  (offset_in(), r.road_offset, r.test_road_offset)):
        assert check(mine, reference, test) is mine


@pytest.mark.parametrize("mine, test, message", [
    (panel_kept, r.test_prepare, "the panel, rows 84 to 95, leaves no trace"),
    (cut_at_the_top, r.test_prepare, "the panel, rows 84 to 95"),
    (panel_blackened, r.test_prepare, "what was given is left as it was"),
    (too_much_cut, r.test_prepare, "rows 0 to 83 are all there"),
    (pixels_left_out, r.test_prepare, "the mean of the area it covers"),
    (linear, r.test_prepare, "the mean of the area it covers"),
    (floats, r.test_prepare, "uint8"),
    (channels_first, r.test_prepare, r"got shape \(3, 3, 64, 64\)"),
    (size_forgotten, r.test_prepare, "other sizes"),
    (lambda frames, size=64: resized(frames, size, slice(0, 83)), r.test_prepare, "row 83 is the last one kept|the panel"),
    (step_of_dt, r.test_brownian, "its sd is √dt"),
    (clipped_at_the_end, r.test_brownian, "clip the walk at every step, not the sum"),
    (not_clipped, r.test_brownian, "stays inside the bounds"),
    (from_zero, r.test_brownian, "begins anywhere"),
    (all_alike, r.test_brownian, "walk on their own"),
    (dt_ignored, r.test_brownian, "`dt` is used"),
    (own_rng, r.test_brownian, "all chance comes from `rng`"),
    (r.white_noise, r.test_brownian, "its sd is √dt"),
    (always_longest, r.test_held, "1 to 10 steps"),
    (upper_end_left_out, r.test_held, "1 to 10 steps"),
    (not_cut, r.test_held, "as many actions as steps"),
    (each_number_alone, r.test_held, "held together"),
    (normal, r.test_held, "uniform: sd"),
    (longest_ignored, r.test_held, "`longest` is used"),
    (none_or_more, r.test_held, "with longest=1 too"),
    (driving(by_place), r.test_drive, "nobody else's"),
    (driving(last_reward_lost), r.test_drive, "its last included"),
    (driving(leave=False), r.test_drive, "row 2 is over: leave that row out"),
    (driving(frames_follow=False), r.test_drive, "frames of the rows it is asked about"),
    (driving(cut=False), r.test_drive, "longer than max_steps"),
    (one_row_less, r.test_drive, "the steps of each row"),
    (driving(clock=False), r.test_drive, "row 0 is over: leave that row out"),
    (offset_in(sign=-1), r.test_road_offset, "left is below 0"),
    (offset_in(slice(0, None)), r.test_road_offset, "behind the car"),
    (offset_in(slice(0, 46)), r.test_road_offset, "far ahead"),
    (offset_in(road=lambda f: f[..., 1] > 150), r.test_road_offset, "left is below 0"),
    (offset_in(pixels=True), r.test_road_offset, "straight ahead is at 0"),
    (zero_for_none, r.test_road_offset, "NaN where no road"),
    (rows_of_64, r.test_road_offset, "the rows follow the size"),
    (mean_of_row_means, r.test_road_offset, "a wide row counts more"),
    (recording(seed=lambda envs, row: row), r.test_record, r"its seed, which is envs.seeds\[row\]"),
    (recording(last=False), r.test_record, "one more frame than actions"),
    (recording(pair=lambda frames, following: following), r.test_record, "what was seen before action t"),
    (recording(ends=lambda terminated, truncated: (terminated, False)), r.test_record, "truncated if max_steps did"),
    (recording(ends=lambda terminated, truncated: (terminated or truncated, False)), r.test_record, "truncated if max"),
    (recording(by_place=True), r.test_record, "your code raised ValueError: Episode goes on")])
def test_a_wrong_answer_is_told_what_is_wrong(mine, test, message):
    with pytest.raises(CheckFailed, match=message): check(mine, mine, test, name="exercise")
