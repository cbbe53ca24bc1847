"""Cars that never stop, the adapter for Stable-Baselines3, and PPO that survives a kill."""
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import solutions.ppo
from solutions.ppo import PPOCommand
from solutions.settings import Sections
from worldmodels import ppo as p
from worldmodels.scoring import score_policy
from worldmodels.ppo import AutoresetVectorEnv, FrameStack, PPOPolicy, PPOSettings, as_sb3_vec_env
from worldmodels.rollouts import HELD_OUT, run_episodes
from worldmodels.tools.doubles import ScriptedEnvs
from worldmodels.tools.settings import load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import load_tensors, save_tensors

ROOT = Path(__file__).parents[1]
TINY = PPOSettings(steps=256, rows=2, length=16, batch=16, epochs=1, max_steps=60, validate_every=128,
                   validate_episodes=2)
sb3 = pytest.importorskip("stable_baselines3")


# ---- what PPO sees

def test_a_stack_keeps_the_last_pictures_in_grey():
    stack, frames = FrameStack(3, 2, 2), np.zeros((3, 2, 2, 3), np.uint8)
    frames[..., 0] = 255
    stack.reset([0, 1, 2], frames)
    assert (stack.obs[..., 0] == 0).all(), "nothing before the first frame"
    assert (stack.obs[..., 1] == 76).all(), "red is 0.299"
    stack.push([1], np.full((1, 2, 2, 3), 10, np.uint8))
    assert stack.obs[1, 0, 0].tolist() == [76, 10] and stack.obs[0, 0, 0].tolist() == [0, 76]
    stack.reset([1], np.full((1, 2, 2, 3), 20, np.uint8))
    assert stack.obs[1, 0, 0].tolist() == [0, 20]


# ---- cars that never stop

class Marked(ScriptedEnvs):
    """Frames show the seed of their row (times 10) and the step, so that one can see whose they are."""

    made: list = []

    def __init__(self, seeds, length=lambda seed: 3):
        super().__init__([[float(seed % 7)] * length(seed) for seed in seeds])
        self.marks, self.closed = np.array(seeds), False
        Marked.made.append(self)

    def _frames(self, rows):
        frames = np.zeros((len(rows), 4, 4, 3), np.uint8)
        frames[...] = (10 * (self.marks[rows] % 25) + self.t[rows])[:, None, None, None]
        return frames

    def close(self): self.closed = True


@pytest.fixture(autouse=True)
def fresh_marks(): Marked.made = []


def marked_cars(length=lambda seed: 3, **kwargs) -> AutoresetVectorEnv:
    defaults = {"rows": 2, "skip": 1, "stack": 1, "prefetch": 2}
    return AutoresetVectorEnv(lambda seeds: Marked(seeds, length), **(defaults | kwargs))


def test_an_episode_that_ends_is_followed_by_another_at_once():
    cars = marked_cars()
    seen, _ = cars.reset(seed=0)
    assert seen.shape == (2, 4, 4, 1) and seen.dtype == np.uint8 and (seen % 10 == 0).all()
    for t in range(1, 10):
        seen, rewards, terminated, truncated, infos = cars.step(np.zeros((2, 3)))
        assert terminated.all() == (t % 3 == 0) and not truncated.any()
        if t % 3: assert "final_obs" not in infos and (seen % 10 == t % 3).all()
        else:
            assert all((last % 10 == 3).all() for last in infos["final_obs"]), "the old episode's last frame"
            assert (seen % 10 == 0).all(), "and the first one of the new"
    pools = Marked.made[1:]  # the first was only asked for its spaces
    assert len(pools) == 2, "four rows a pool, eight episodes begun"
    assert sum(pool.closed for pool in pools) == 1, "a pool is closed when its last row has left it"


def test_every_episode_has_a_training_track_of_its_own():
    cars = marked_cars(rows=3, prefetch=4)
    cars.reset(seed=5)
    for _ in range(60): cars.step(np.zeros((3, 3)))
    tracks = np.concatenate([m.marks for m in Marked.made[1:]])
    assert len(set(tracks.tolist())) > 0.99 * len(tracks) and tracks.max() < 100_000
    again = marked_cars(rows=3, prefetch=4)
    count = len(Marked.made)
    again.reset(seed=5)
    np.testing.assert_array_equal(Marked.made[count].marks, Marked.made[1].marks)


def test_a_reset_without_a_seed_begins_the_same_tracks_anew():
    cars = marked_cars(seed=5)
    first, _ = cars.reset()
    for _ in range(20): cars.step(np.zeros((2, 3)))
    again, _ = cars.reset()
    np.testing.assert_array_equal(first, again)
    other, _ = cars.reset(seed=6)
    assert not np.array_equal(first, other)


def test_rows_of_different_lengths_get_what_is_their_own():
    cars = marked_cars(lambda seed: 1 + seed % 5, rows=4, prefetch=2)
    seen, _ = cars.reset(seed=1)
    returns, mark = np.zeros(4), seen[:, 0, 0, 0] // 10
    for _ in range(40):
        seen, rewards, terminated, _, infos = cars.step(np.zeros((4, 3)))
        returns += rewards
        for row in np.flatnonzero(terminated):
            seeds = [s for m in Marked.made for s in m.marks]
            seed = next(s for s in seeds if s % 25 == mark[row] and (s % 7) * (1 + s % 5) == returns[row])
            assert infos["final_obs"][row][0, 0, 0] == 10 * (seed % 25) + 1 + seed % 5
        returns[terminated] = 0
        mark = np.where(terminated, seen[:, 0, 0, 0] // 10, mark)


def test_frames_are_skipped_and_an_end_among_them_is_not_driven_over():
    cars = marked_cars(lambda seed: 5, skip=2)
    cars.reset(seed=0)
    paid = [cars.step(np.zeros((2, 3)))[1:3] for _ in range(3)]
    each = (Marked.made[1].marks[:2] % 7).astype(float)
    np.testing.assert_allclose([rewards for rewards, _ in paid], [2 * each, 2 * each, each])
    assert paid[2][1].all()


def test_the_clock_truncates_and_nobody_drives_longer():
    cars = marked_cars(lambda seed: 100, skip=2, max_steps=6)
    cars.reset(seed=0)
    ends = [cars.step(np.zeros((2, 3)))[2:4] for _ in range(6)]
    assert [bool(truncated.all()) for _, truncated in ends] == [False, False, True] * 2
    assert not any(terminated.any() for terminated, _ in ends)


def test_what_was_seen_is_not_changed_by_the_next_step():
    cars = marked_cars()
    first, _ = cars.reset(seed=0)
    kept = first.copy()
    second = cars.step(np.zeros((2, 3)))[0]
    np.testing.assert_array_equal(first, kept)
    cars.step(np.zeros((2, 3)))
    assert (second % 10 == 1).all()


@pytest.mark.parametrize("wrong", [dict(rows=0), dict(skip=0), dict(max_steps=0), dict(prefetch=0)])
def test_impossible_cars_are_refused(wrong):
    name, = wrong
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"): marked_cars(**wrong)


def test_real_cars_never_stop():
    cars = AutoresetVectorEnv(rows=2, skip=2, stack=2, max_steps=6, prefetch=1)
    seen, _ = cars.reset(seed=0)
    assert cars.observation_space.contains(seen) and cars.single_observation_space.shape == (64, 64, 2)
    for t in range(1, 7):
        seen, rewards, terminated, truncated, infos = cars.step(np.tile([0, 0.5, 0], (2, 1)))
        assert truncated.all() == (t % 3 == 0)
        if truncated.all():
            assert (seen[..., 0] == 0).all() and all(last[..., 0].any() for last in infos["final_obs"])
    cars.close()


# ---- the adapter

class Counting(gymnasium.Env):
    """Pays 1 a step; ends after `length` steps, by the world's end or the clock's."""

    observation_space = gymnasium.spaces.Box(0, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int, by_clock: bool): self.length, self.by_clock = length, by_clock

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.float32([0]), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        return np.float32([self.t]), 1.0, over and not self.by_clock, over and self.by_clock, {}


def adapter(mode=AutoresetMode.SAME_STEP):
    rows = [lambda: Counting(3, False), lambda: Counting(4, True)]
    return as_sb3_vec_env(SyncVectorEnv(rows, autoreset_mode=mode))


def test_the_adapter_tells_stable_baselines3_what_it_wants_to_know():
    envs = adapter()
    assert envs.reset().tolist() == [[0], [0]]
    steps = [envs.step(np.zeros((2, 1), np.float32)) for _ in range(4)]
    seen, rewards, over, infos = steps[2]
    assert over.tolist() == [True, False] and seen.tolist() == [[0], [3]] and rewards.tolist() == [1, 1]
    assert infos[0]["terminal_observation"].tolist() == [3] and infos[0]["TimeLimit.truncated"] is False
    assert (infos[0]["episode"]["r"], infos[0]["episode"]["l"]) == (3.0, 3) and infos[1] == {}
    seen, _, over, infos = steps[3]
    assert over.tolist() == [False, True] and seen.tolist() == [[1], [0]]
    assert infos[1]["TimeLimit.truncated"] is True
    assert (infos[1]["episode"]["r"], infos[1]["episode"]["l"]) == (4.0, 4)


def test_it_is_a_vec_env_and_passes_through_wrappers():
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize
    envs = adapter()
    assert isinstance(envs, VecEnv) and envs.num_envs == 2 and envs.get_attr("num_envs") == [2, 2]
    assert not any(envs.env_is_wrapped(gymnasium.Wrapper))
    wrapped = VecMonitor(VecNormalize(envs, norm_obs=False))
    wrapped.reset()
    for _ in range(5): wrapped.step(np.zeros((2, 1), np.float32))
    with pytest.raises(NotImplementedError, match="call its render itself"): envs.env_method("render")
    envs.close()


def test_ppo_learns_through_it_and_bootstraps_only_at_the_clock():
    model = sb3.PPO("MlpPolicy", adapter(), n_steps=8, batch_size=16, n_epochs=1, gamma=0.5, seed=0)
    values = []
    real = model.policy.predict_values
    def noted(obs):
        values.append(obs.flatten().tolist())
        return real(obs)
    model.policy.predict_values = noted
    model.learn(16)
    assert model.num_timesteps == 16 and model.ep_info_buffer
    asked = [v for v in values if len(v) == 1]
    assert asked == [[4.0], [4.0]], "a last frame's value is asked for where the clock ended it, only there"


def test_another_kind_of_reset_is_refused():
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        with pytest.raises(ValueError, match="SAME_STEP"): adapter(mode)


def test_without_the_library_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    cars = marked_cars()
    for call, *args in ((as_sb3_vec_env, cars), (p.load_ppo, "x"), (p.train_ppo, TINY, "x")):
        with pytest.raises(ImportError, match=r"pip install -e '.\[ppo\]'"): call(*args)


def python(code: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.stdout.strip() or done.stderr


def test_the_module_needs_no_stable_baselines3():
    without = "import sys; sys.modules['stable_baselines3'] = None; "
    assert python(without + "import worldmodels.ppo as p, solutions.ppo; print(p.PPOSettings().rows)") == "8"
    assert python("import sys, worldmodels.ppo; print('stable_baselines3' in sys.modules)") == "False"


# ---- PPO

@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    p.train_ppo(TINY, folder)
    return folder


def test_training_leaves_weights_a_curve_and_events(trained):
    lines = read_lines(trained / "evaluations.jsonl")
    assert [x["frames"] for x in lines] == [128, 256]
    assert all(np.isfinite(x["mean"]) and x["seconds"] > 0 for x in lines)
    tensors, notes = load_tensors(trained / "ppo.safetensors")
    assert notes["step"] == 128 and notes["done"] and notes["ppo"]["skip"] == 2 and len(notes["spread"]) == 3
    assert any(k.startswith("optimizer.") for k in tensors)
    assert list((trained / "tensorboard").rglob("events*"))


def test_the_learning_rate_falls_to_zero_and_never_below():
    """The last update ends beyond the budget; with a negative rate it would climb its loss."""
    cars = AutoresetVectorEnv(rows=2, skip=2, stack=2, max_steps=60, prefetch=1)
    model = p.make_ppo(replace(TINY, steps=70), cars)
    assert [model.lr_schedule(left) for left in (1.0, 0.5, 0.0, -0.02)] == [TINY.lr, 0.5 * TINY.lr, 0.0, 0.0]
    rates = []
    real = model.train
    def noted():
        real()
        rates.append(model.policy.optimizer.param_groups[0]["lr"])
    model.train = noted
    model.learn(35)
    assert model.num_timesteps == 64 > 35 and rates[-1] == 0.0 and rates[0] > 0
    model.env.close()


def test_a_stored_ppo_drives_as_the_one_that_was_trained(trained):
    first, second = p.load_ppo(trained / "ppo.safetensors"), p.train_ppo(TINY, trained)
    returns = [score_policy(policy, [3, 4], "fast", 40) for policy in (first, second)]
    np.testing.assert_array_equal(*returns)


def test_the_published_weights_load_and_drive():
    driver = p.load_ppo(ROOT / "data" / "ppo" / "ppo.safetensors")
    assert driver.settings.skip == 2 and np.isfinite(score_policy(driver, [3], "fast", 40)).all()


def test_nothing_in_a_run_is_a_pickle_or_a_zip_of_them(trained):
    for path in trained.rglob("*"): assert path.suffix not in (".zip", ".pkl", ".pt", ".pth")


class Recorded:
    """A network that keeps what it was shown."""

    def __init__(self): self.shown = []
    def predict(self, seen, deterministic):
        self.shown.append(seen.copy())
        return np.stack([[len(self.shown) / 10, 0.5, 0.0]] * len(seen)), None


def test_the_driver_sees_and_acts_as_in_training():
    script, settings = [[1.0] * 9, [1.0] * 5], replace(TINY, skip=2, stack=2)
    network, actions = Recorded(), []
    def note(rows, frames, chosen, *others): actions.append(chosen[:, 0].tolist())
    run_episodes(ScriptedEnvs(script), PPOPolicy(network, settings), 20, on_step=note)
    assert [len(a) for a in actions] == [2] * 5 + [1] * 4
    expected = [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5]
    assert np.allclose([a[0] for a in actions], expected), "an action is kept for two frames"
    cars = AutoresetVectorEnv(lambda seeds: ScriptedEnvs([script[0]] * len(seeds)), rows=1, prefetch=1)
    seen, shown = cars.reset(seed=0)[0], []
    for _ in range(5):
        shown.append(seen.copy())
        seen = cars.step(np.zeros((1, 3)))[0]
    for mine, theirs in zip(network.shown, shown): np.testing.assert_array_equal(mine[0], theirs[0])


def test_training_goes_on_from_its_checkpoint(tmp_path):
    path = tmp_path / "ppo.safetensors"
    p.train_ppo(replace(TINY, steps=128), tmp_path)
    tensors, notes = load_tensors(path)
    save_tensors(path, tensors, notes | {"done": False})  # as if it had been killed there
    p.train_ppo(TINY, tmp_path)
    notes = load_tensors(path)[1]
    assert notes["step"] == 128 and notes["spread"][2] > 128, "the spread of returns has been carried on"
    assert [x["frames"] for x in read_lines(tmp_path / "evaluations.jsonl")] == [128, 256]


def test_it_stops_where_it_is_good_enough(tmp_path, monkeypatch):
    settings = replace(TINY, steps=10_000, target_return=0.5)
    monkeypatch.setattr(p, "score_policy", lambda *args, **kwargs: np.array([1.0, 1.0]))
    p.train_ppo(settings, tmp_path)
    lines = read_lines(tmp_path / "evaluations.jsonl")
    assert [line["frames"] for line in lines] == [128]
    assert load_tensors(tmp_path / "ppo.safetensors")[1]["done"]
    p.train_ppo(settings, tmp_path)
    assert len(read_lines(tmp_path / "evaluations.jsonl")) == 1


def test_what_is_no_ppo_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="solutions.ppo"): p.load_ppo(tmp_path / "ppo.safetensors")
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="holds no PPO"): p.load_ppo(tmp_path / "x.safetensors")


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(size=20), dict(batch=1), dict(skip=0)])
def test_impossible_settings_are_refused(wrong):
    name, = wrong
    with pytest.raises(ValueError, match=f"{name} must be at least"): PPOSettings(**wrong)


# ---- the command

KILLER = """
import os, runpy, signal, sys
real, seen = os.replace, 0
def replace(source, target):
    global seen
    real(source, target)
    seen += 'ppo.safetensors' in str(target)
    if seen == 2: os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
sys.argv = ['ppo', *sys.argv[1:]]
runpy.run_module('solutions.ppo', run_name='__main__')
"""


def call(monkeypatch, *flags: str) -> None:
    """The command in this process."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["solutions.ppo", *flags])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "solutions.ppo", *flags])
    solutions.ppo.main()


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """The folder of a run that was killed after its second checkpoint."""
    run = tmp_path_factory.mktemp("killed") / "ppo"
    done = subprocess.run([sys.executable, "-c", KILLER, "--settings", "ci", "--run", str(run)], cwd=ROOT,
                          capture_output=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert load_tensors(run / "ppo.safetensors")[1]["step"] == 64 and not (run / "report.json").exists()
    return run


def test_killed_and_gone_on_with_scored_and_driving_for_others(killed, tmp_path, monkeypatch):
    flags = ("--settings", "ci", "--run", str(killed))
    call(monkeypatch, *flags, "--drive", "2")
    assert load_tensors(killed / "ppo.safetensors")[1]["step"] == 128
    report = json.loads((killed / "report.json").read_text())
    assert report["seeds"] == [HELD_OUT[0], HELD_OUT[1]] and len(report["gymnasium"]["returns"]) == 2
    assert "solutions.ppo" in report["command"]
    store = RolloutStore(killed / "store")
    assert len(store) == 2 and all(source.endswith("/ppo") for source in store.sources)
    before = (killed / "report.json").read_bytes()
    call(monkeypatch, *flags)
    assert (killed / "report.json").read_bytes() == before
    with pytest.raises(ValueError, match="publish and run are the same folder"):
        call(monkeypatch, *flags, "--publish", str(killed))
    given = tmp_path / "given"
    call(monkeypatch, *flags, "--publish", str(given))
    published, whole = (load_tensors(folder / "ppo.safetensors")[0] for folder in (given, killed))
    assert set(published) == {name for name in whole if name.startswith("model.")} < set(whole)
    assert (given / "report.json").read_bytes() == before
    drivers = [p.load_ppo(folder / "ppo.safetensors") for folder in (given, killed)]
    np.testing.assert_array_equal(*(score_policy(driver, [3], "fast", 30) for driver in drivers))
    with pytest.raises(ValueError, match="ppo.rows: 2 -> 4"): call(monkeypatch, *flags, "--ppo.rows", "4")
    watched = []
    monkeypatch.setattr(solutions.ppo, "watch_policy",
                        lambda policy, seeds, *_: watched.append((policy.name, seeds[0])))
    call(monkeypatch, *flags, "--render", "human")
    assert watched == [("ppo", HELD_OUT[0])]


def test_from_python_it_does_what_the_command_does(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = tmp_path / "made" / "ppo"
    settings = load(PPOCommand, ["--settings", "ci", "--run", str(run)], part_of=Sections)
    driver = solutions.ppo.run(settings)
    report = json.loads((run / "report.json").read_text())
    assert driver.name == "ppo" and report["gymnasium"]["episodes"] == 2
    again = solutions.ppo.run(settings)
    np.testing.assert_array_equal(*(score_policy(each, [3], "fast", 30) for each in (driver, again)))
