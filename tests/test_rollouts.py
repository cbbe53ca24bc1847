"""Environments, policies and recordings: the contracts that V, M and C rely on, and every mistake that is refused."""
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest

from worldmodels import collect as collecting
from worldmodels import rollouts
from worldmodels.collect import collect, groups, record
from worldmodels.envs import BACKENDS, Envs, GymnasiumRows, Worker, make_envs
from worldmodels.rollouts import HELD_OUT, NoisePolicy, Policy, RoadFollower, prepare, run_episodes
from worldmodels.tools.doubles import LabelPolicy, ScriptedEnvs
from worldmodels.tools.games import GameSpec
from worldmodels.tools.store import RolloutStore


class Constant(Policy):
    def __init__(self, *action): self.action = action

    def act(self, frames, rows): return np.tile(self.action, (len(rows), 1))


@pytest.fixture
def envs():
    """A maker of environments, all of which are closed in the end."""
    made = []

    def make(*args, **kwargs):
        made.append(make_envs(*args, **kwargs))
        return made[-1]
    yield make
    for e in made: e.close()


def wiggle(envs, rows, steps=25):
    """Step some rows with actions that depend on the seed alone: the last frames and all rewards (steps, k)."""
    rewards = []
    for t in range(steps):
        actions = [[np.sin(t / 3 + envs.seeds[r]), 0.5, 0] for r in rows]
        frames, reward, _, _ = envs.step_rows(actions, rows)
        rewards.append(reward)
    return frames, np.array(rewards)


# What an environment is

@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_depends_on_its_seed_and_on_nothing_else(envs, backend):
    a, b = envs(seeds=[4, 5, 6], backend=backend), envs(seeds=[6, 9, 4, 5], backend=backend)
    first_a, first_b = a.reset(), b.reset()
    assert first_a.shape == (3, 64, 64, 3) and first_a.dtype == np.uint8
    np.testing.assert_array_equal(first_a, first_b[[2, 3, 0]])
    assert (first_b[1] != first_b[0]).any(), "two seeds give the same track"
    frames_a, rewards_a = wiggle(a, [0, 1, 2])
    frames_b, rewards_b = wiggle(b, [3, 0, 2])  # some rows, in another order, while one waits
    np.testing.assert_array_equal(frames_a[[1, 2, 0]], frames_b)
    np.testing.assert_array_equal(rewards_a[:, [1, 2, 0]], rewards_b)
    np.testing.assert_array_equal(a.reset(), first_a, "a second reset begins another track")
    np.testing.assert_array_equal(wiggle(a, [0, 1, 2])[0], frames_a)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_row_that_waited_stands_where_it_was(envs, backend):
    a, b = envs(seeds=[1, 2], backend=backend), envs(seeds=[2], backend=backend)
    a.reset(), b.reset()
    wiggle(a, [0], 5)
    np.testing.assert_array_equal(wiggle(a, [1], 5)[0], wiggle(b, [0], 5)[0])


def test_the_clock_truncates_at_1000_and_does_not_terminate(envs):
    episode, = record(envs(seeds=[3]), Constant(0, 0, 0), max_steps=1100)
    assert len(episode) == 1000 and episode.truncated[-1] and not episode.terminated.any()


def test_leaving_the_playfield_terminates(envs):
    episode, = record(envs(seeds=[3]), Constant(0.02, 0.4, 0), max_steps=400)
    assert len(episode) < 400 and episode.terminated[-1] and not episode.truncated.any() and episode.rewards[-1] == -100


class Ending:
    """An environment of which every step is the last."""

    def __init__(self, *outcome): self.outcome = outcome
    def step(self, action): return np.zeros((8, 8, 3), np.uint8), *self.outcome, {}


def test_the_official_flags_are_kept_apart():
    endings = [Ending(-100.0, True, False), Ending(3.0, False, True)]
    game = GameSpec("Ending", "ending", (-1.0,), (1.0,), make=lambda render_mode: endings.pop(0))
    _, rewards, terminated, truncated, _ = GymnasiumRows(game, 2, 4).step([0, 1], np.zeros((2, 1)))
    assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == ([-100, 3], [True, False], [False, True])


def test_environments_without_a_known_game_are_refused():
    class Mine(Envs): pass
    with pytest.raises(ValueError, match="unknown game 'mine'; known are CarRacing, TakeCover"): Mine("mine", [1], 64)


@pytest.mark.parametrize("size", [32, 96])
def test_frames_have_the_size_asked_for(envs, size): assert envs(size=size).reset().shape == (1, size, size, 3)


def test_prepare_keeps_what_is_above_the_panel():
    frames = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    np.testing.assert_array_equal(prepare(frames, 84)[0, :, :5].shape, (84, 5, 3))
    with pytest.raises(ValueError, match=r"\(96, 96, 3\), got \(64, 64, 3\)"): prepare(frames[:, :64, :64])


@pytest.mark.parametrize("wrong, message", [
    (dict(game="CarRacing-v0"), "unknown game 'CarRacing-v0', did you mean CarRacing.; known are CarRacing, TakeCover"),
    (dict(game="VizdoomTakeCover-v1", backend="envpool"), "unknown backend 'envpool' .EnvPool is used no more.*known are fast, official"),
    (dict(backend="slow"), "unknown backend 'slow'; known are fast, official"),
    (dict(seeds=[]), "at least one seed"), (dict(seeds=[-1]), "got -1"), (dict(seeds=[0.5]), "got 0.5"),
    (dict(seeds=[2**31]), "from 0 to 2147483647"), (dict(seeds=[True]), "got True"),
    (dict(size=0), "at least 1, got 0"), (dict(size=6.4), "got 6.4")])
def test_wrong_environments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): make_envs(**wrong)


@pytest.mark.parametrize("actions, rows, message", [
    (np.zeros((2, 2)), [0, 1], r"2 rows need actions of shape \(2, 3\), got \(2, 2\)"),
    (np.zeros((1, 3)), [0, 1], r"2 rows need"), (np.zeros((2, 3)), [1, 1], "different"),
    ([[0, np.nan, 0]], [0], "finite, got nan"), ([[0, np.inf, 0]], [0], "finite, got inf"),
    (np.zeros((1, 3)), [2], "from 0 to 1, got .2."), (np.zeros((1, 3)), [-1], "from 0 to 1"),
    (np.zeros((0, 3)), [], "at least one"), (np.zeros((2, 3)), [True, False], "whole numbers")])
def test_wrong_steps_are_refused_and_change_nothing(actions, rows, message):
    envs = ScriptedEnvs([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="call reset"): envs.step_rows(np.zeros((2, 3)), [0, 1])
    envs.reset()
    with pytest.raises(ValueError, match=message): envs.step_rows(actions, rows)
    assert envs.step_rows(np.zeros((2, 3)), [0, 1])[1].tolist() == [1, 3]


def test_a_row_that_is_over_is_refused_until_the_next_reset():
    envs = ScriptedEnvs([[1], [3, 4]])
    envs.reset(), envs.step_rows(np.zeros((2, 3)), [0, 1])
    with pytest.raises(ValueError, match="the episode of row 0 is over"): envs.step_rows(np.zeros((2, 3)), [1, 0])
    envs.step_rows(np.zeros((1, 3)), [1]), envs.reset()
    assert envs.step_rows(np.zeros((2, 3)), [0, 1])[1].tolist() == [1, 3]


def test_actions_beyond_the_bounds_are_clipped(envs):
    a, b = envs(seeds=[2]), envs(seeds=[2])
    a.reset(), b.reset()
    for _ in range(20): frames = a.step_rows([[-7, 3, -1]], [0])[0], b.step_rows([[-1, 1, 0]], [0])[0]
    np.testing.assert_array_equal(*frames)


def test_an_action_is_repeated_until_the_episode_is_over(envs):
    a, b = envs(seeds=[2, 3]), envs(seeds=[2, 3])
    a.reset(), b.reset()
    for _ in range(12): one_by_one = [a.step_rows([[0.02, 0.4, 0]] * 2, [0, 1]) for _ in range(4)]
    for _ in range(12): at_once = b.step_rows([[0.02, 0.4, 0]] * 2, [0, 1], repeat=4)
    np.testing.assert_array_equal(one_by_one[-1][0], at_once[0])
    np.testing.assert_allclose(sum(x[1] for x in one_by_one), at_once[1], rtol=1e-5)
    assert b.taken.tolist() == [4, 4]
    while True:  # off the field
        alive = np.flatnonzero(~b.over)
        *_, terminated, truncated = b.step_rows([[0.02, 0.4, 0]] * len(alive), alive, repeat=50)
        if terminated.any(): break
    assert b.taken[terminated].max() < 50


def test_an_action_is_repeated_at_least_once(envs):
    e = envs(seeds=[2])
    e.reset()
    with pytest.raises(ValueError, match="repeat must be at least 1, got 0"): e.step_rows([[0, 0, 0]], [0], repeat=0)
    with pytest.raises(ValueError, match="ScriptedEnvs takes each action once"):
        scripted = ScriptedEnvs([[1, 1]])
        scripted.reset(), scripted.step_rows(np.zeros((1, 3)), [0], repeat=2)


def test_frames_lie_in_shared_memory_and_leave_nothing_behind(envs):
    def files(): return {name for name in os.listdir("/dev/shm") if name.startswith(f"worldmodels-{os.getpid()}-")} \
        if os.path.isdir("/dev/shm") else set()
    before = files()
    e = envs(seeds=[2, 3])
    first = e.reset()
    assert files() == before, "its name is gone while it is used"
    kept = first.copy()
    e.step_rows(np.zeros((2, 3)), [0, 1])
    np.testing.assert_array_equal(first, kept, "what was given is nobody's to overwrite")


# Worker processes

def alive(pid: int) -> bool:
    try: return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError: return False


def test_a_killed_worker_is_told_and_takes_the_others_along(envs):
    e = envs(seeds=[1, 2], backend="official")
    e.reset()
    processes = [worker.process for worker in e.workers]
    processes[0].kill()
    with pytest.raises(RuntimeError, match="an environment's process died: killed by SIGKILL"):
        e.step_rows(np.zeros((2, 3)), [0, 1])
    assert all(p.poll() is not None for p in processes)
    with pytest.raises(ValueError, match="call reset"): e.step_rows(np.zeros((2, 3)), [0, 1])
    assert len(e.reset()) == 2, "a reset begins anew, with new workers"


def test_a_worker_that_fails_says_why(tmp_path):
    path = tmp_path / "frames"
    path.write_bytes(bytes(64 * 64 * 3))
    worker = Worker(GameSpec("None", "NoSuchWorld-v0", (-1.0,), (1.0,)), 64, "official", str(path), 1, range(1))
    worker.ask([1])
    with pytest.raises(RuntimeError, match=r"failed:\nTraceback(.|\n)*NoSuchWorld"): worker.hear()
    worker.close()


def test_an_interrupted_step_leaves_no_answer_behind(envs, monkeypatch):
    def interrupted(self): raise KeyboardInterrupt
    e = envs(seeds=[1], backend="official")
    first = e.reset()
    with monkeypatch.context() as m:
        m.setattr(Worker, "hear", interrupted)
        with pytest.raises(KeyboardInterrupt): e.step_rows(np.zeros((1, 3)), [0])
    np.testing.assert_array_equal(e.reset(), first)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks into /proc")
def test_workers_need_no_main_guard_nor_torch_and_leave_with_their_parent(tmp_path):
    script = tmp_path / "script.py"  # no `if __name__ == "__main__"`, and it kills itself
    script.write_text("import os, signal, sys\nfrom worldmodels.envs import make_envs\n"
                      "envs = make_envs(seeds=[1], backend='official')\nenvs.reset()\n"
                      "print(*[w.process.pid for w in envs.workers], 'torch' in sys.modules, flush=True)\n"
                      "os.kill(os.getpid(), signal.SIGKILL)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    *pids, torch = done.stdout.split()
    assert torch == "False", "envs imports torch, and so does every worker"
    for _ in range(100):
        if not any(alive(int(pid)) for pid in pids): return
        time.sleep(0.1)
    pytest.fail("workers outlive their parent")


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_seeds_take_the_place_of_the_old_ones(envs, backend):
    e = envs(seeds=[1, 2], backend=backend)
    e.reset(), e.step_rows(np.zeros((2, 3)), [0, 1])
    e.reseed([7, 1])
    with pytest.raises(ValueError, match="call reset"): e.step_rows(np.zeros((2, 3)), [0, 1])
    np.testing.assert_array_equal(e.reset(), envs(seeds=[7, 1], backend=backend).reset())
    for wrong in ([1], [1, 2, 3], [-1, 2]):
        with pytest.raises(ValueError): e.reseed(wrong)
    assert e.seeds == [7, 1]


# Policies

@pytest.mark.parametrize("name", rollouts.NOISES)
def test_noise_is_the_seeds_and_within_bounds(name):
    a, b = ScriptedEnvs([[0]] * 3), ScriptedEnvs([[0]] * 2)
    a.seeds, b.seeds = [3, 4, 5], [5, 3]
    policies = NoisePolicy(name, 40), NoisePolicy(name, 40)
    for policy, e in zip(policies, (a, b)): policy.start(e)
    for _ in range(40):
        actions = policies[0].act(None, np.array([0, 2])), policies[1].act(None, np.array([1, 0]))
        np.testing.assert_array_equal(*actions)
        assert a.action_space.contains(actions[0][0])
    with pytest.raises(ValueError, match=f"only 40 actions were drawn: NoisePolicy\\('{name}', steps\\)"):
        policies[0].act(None, np.array([0]))


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="unknown noise 'pink'; known are white, brownian, held"): NoisePolicy("pink")
    with pytest.raises(ValueError, match="at least 1, got 0"): NoisePolicy("white", 0)


def test_the_road_follower_drives(envs):
    returns, _ = run_episodes(envs(seeds=range(4)), RoadFollower(), 250)
    assert returns.min() > 100  # Brownian noise stays below 30


# Driving and recording

def test_rows_leave_one_by_one():
    returns, lengths = run_episodes(ScriptedEnvs([[1, 2, 4], [10] * 6, [100]]), LabelPolicy(), 5)
    assert returns.tolist() == [7, 50, 100] and lengths.tolist() == [3, 5, 1]


class Glancing(Policy):
    """Looks at every third frame, and steers by what it sees then."""

    looks_every = 3

    def act(self, frames, rows): return np.stack([frames.mean((1, 2, 3)) % 1 - 0.5, 0.4 + 0 * rows, 0 * rows], 1)


def test_who_looks_seldom_drives_the_same_whether_anybody_listens_or_not(envs):
    heard = []
    listened = run_episodes(envs(seeds=[2, 5, 9]), Glancing(), 80, on_step=lambda *step: heard.append(step))
    alone = run_episodes(envs(seeds=[2, 5, 9]), Glancing(), 80)
    np.testing.assert_allclose(listened[0], alone[0], rtol=1e-5)
    assert alone[1].tolist() == listened[1].tolist() == [80] * 3 and len(heard) == 80
    actions = np.stack([step[2] for step in heard])
    assert (actions[0:78:3] == actions[1:79:3]).all() and (actions[0:78:3] == actions[2:80:3]).all()
    assert (actions[3:] != actions[:-3]).any(), "it looks again after three frames"


def test_patience_charges_the_frames_that_are_not_driven():
    stuck, lucky = [5] + [-0.1] * 99, [-0.1, -0.1, 5] + [-0.1] * 97
    whole, lengths = run_episodes(ScriptedEnvs([stuck, lucky]), LabelPolicy(), 100)
    assert lengths.tolist() == [100, 100]
    short, lengths = run_episodes(ScriptedEnvs([stuck, lucky]), LabelPolicy(), 100, patience=10)
    assert lengths.tolist() == [11, 13]
    np.testing.assert_allclose(short, whole, atol=1e-5)


def test_patience_does_not_charge_the_dead():
    returns, lengths = run_episodes(ScriptedEnvs([[0, 0, 0]]), LabelPolicy(), 100, patience=3)
    assert returns.tolist() == [0] and lengths.tolist() == [3]


@pytest.mark.parametrize("wrong", [dict(max_steps=0), dict(max_steps=-1), dict(patience=-1)])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="max_steps must be at least 1, patience at least 0"):
        run_episodes(ScriptedEnvs([[1]]), LabelPolicy(), **wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_episode_has_one_frame_more_than_actions(envs, backend):
    e = envs(seeds=[8, 3], backend=backend)
    episodes, first = record(e, NoisePolicy("held", 12), 12, "me"), e.reset()
    for row, episode in enumerate(episodes):
        assert episode.frames.shape == (13, 64, 64, 3) and episode.actions.shape == (12, 3)
        assert (episode.seed, episode.source) == ([8, 3][row], "me")
        np.testing.assert_array_equal(episode.frames[0], first[row])
        assert episode.truncated.tolist() == [False] * 11 + [True] and not episode.terminated.any()


def test_what_ends_by_itself_is_not_truncated():
    ended, cut, both = record(ScriptedEnvs([[1, 1], [1] * 9, [1, 1, 1]]), LabelPolicy(), 3)
    assert ended.terminated.tolist() == [False, True] and not ended.truncated.any()
    assert cut.truncated.tolist() == [False, False, True] and not cut.terminated.any()
    assert both.terminated[-1] and not both.truncated.any(), "the world's end counts where it falls on the cut"


def test_recording_holds_every_frame_once():
    episodes = record(ScriptedEnvs([[1] * 5, [1] * 3]), LabelPolicy(), 5)
    assert episodes[0].frames.base is episodes[1].frames.base is not None, "frames have been copied"


def test_two_recordings_are_the_same_to_the_bit(envs):
    a, b = (record(envs(seeds=seeds), NoisePolicy(steps=60), 60) for seeds in ([1, 2, 3], [3, 1]))
    for x, y in zip((a[0], a[2]), (b[1], b[0])):
        for name in ("frames", "actions", "rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))


# Collecting

@pytest.fixture
def store(tmp_path): return RolloutStore.create(tmp_path / "store", "CarRacing-v3", 64, 3)


@pytest.fixture
def recordings(monkeypatch):
    """The lists of seeds that have been recorded."""
    seeds, real = [], collecting.record

    def counted(envs, *args):
        seeds.append(envs.seeds)
        return real(envs, *args)
    monkeypatch.setattr(collecting, "record", counted)
    return seeds


def contents(store): return {path.name: path.read_bytes() for path in store.path.iterdir()}


def test_groups_are_runs_of_seeds():
    assert groups([0, 1, 2, 3, 4, 8, 9], 3) == [[0, 1, 2], [3, 4], [8, 9]] and groups([], 3) == []


class Failing(NoisePolicy):
    def start(self, envs):
        if 2 in envs.seeds: raise RuntimeError("the lights go out")
        super().start(envs)


def test_an_interrupted_collection_goes_on_and_ends_the_same(store, recordings, tmp_path):
    with pytest.raises(RuntimeError, match="lights"): collect(store, Failing(), 5, rows=2, max_steps=8)
    assert store.parts == ["collected-fast-00000-00001"] and not list(store.path.glob("*.tmp"))
    recordings.clear()
    again = collect(RolloutStore(store.path), NoisePolicy(), 5, rows=2, max_steps=8)
    assert recordings == [[2, 3], [4]], "what was there has been recorded again, or something is missing"
    whole = RolloutStore.create(tmp_path / "whole", "CarRacing-v3", 64, 3)
    collect(whole, NoisePolicy(), 5, rows=2, max_steps=8)
    for a, b in zip(again.episodes(), whole.episodes()):
        assert (a.seed, a.source) == (b.seed, b.source)
        np.testing.assert_array_equal(a.frames, b.frames)
    recordings.clear()
    collect(again, NoisePolicy(), 5, rows=2, max_steps=8)
    assert recordings == []


def test_a_collection_grows_and_takes_other_rows(store, recordings):
    collect(store, NoisePolicy(), 3, rows=2, max_steps=5)
    collect(store, NoisePolicy(), 7, rows=3, max_steps=5)
    assert recordings == [[0, 1], [2], [3, 4, 5], [6]] and sorted(store.seeds) == list(range(7))
    collect(store, NoisePolicy(), 2, rows=2, max_steps=5, tag="other")
    assert recordings[4:] == [[0, 1]], "another tag is another collection"


def test_each_episode_says_who_drew_and_who_drove(store):
    collect(store, NoisePolicy("held"), 1, "fast", max_steps=5)
    collect(store, Constant(0, 0, 0), 1, "official", 7, max_steps=5)
    assert store.sources == ["fast/held", "official/policy"] and store.seeds.tolist() == [0, 7]


@pytest.mark.parametrize("wrong", [dict(episodes=-1), dict(rows=0), dict(max_steps=0), dict(first_seed=-1),
                                   dict(first_seed=HELD_OUT[0]), dict(first_seed=HELD_OUT[0] - 1, episodes=2)])
def test_wrong_collections_are_refused(store, wrong):
    before = contents(store)
    with pytest.raises(ValueError, match="collect takes episodes >= 0"):
        collect(store, NoisePolicy(), **{"episodes": 1, **wrong})
    with pytest.raises(ValueError, match="unknown backend"): collect(store, NoisePolicy(), 1, "slow")
    assert contents(store) == before


def test_nothing_to_collect_is_no_mistake(store): assert len(collect(store, NoisePolicy(), 0)) == 0


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(store, recordings, monkeypatch):
    before = contents(store)
    full = namedtuple("Usage", "total used free")(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match="are free: make room"): collect(store, NoisePolicy(), 100)
    assert recordings == [] and contents(store) == before


def test_a_store_of_another_world_is_refused(tmp_path):
    other = RolloutStore.create(tmp_path / "other", "VizdoomBasic-v1", 64, 1)
    with pytest.raises(ValueError, match="unknown game 'VizdoomBasic-v1'"): collect(other, NoisePolicy(), 1)


def test_a_store_of_other_actions_is_refused_before_the_first_step(tmp_path, recordings):
    other = RolloutStore.create(tmp_path / "one", "CarRacing-v3", 64, 1)
    with pytest.raises(ValueError, match="takes 1 numbers an action, CarRacing-v3 has 3"):
        collect(other, NoisePolicy(), 1)
    assert recordings == []
