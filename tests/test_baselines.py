"""Cars that never stop, the adapter for Stable-Baselines3, PPO that survives a kill, and chapter 07's studies."""
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

import solutions.baselines as studies
import solutions.ppo
from solutions.baselines import Cells, Thumbnail, needed, slug
from worldmodels import baselines as b
from worldmodels.baselines import FrameStack, PPOPolicy, PPOSettings, AutoresetVectorEnv, as_sb3_vec_env
from worldmodels.controller import ControllerSettings, EvolveSettings, RealFitness, score_policy
from worldmodels.mdn_rnn import MDNRNN, MDNRNNSettings
from worldmodels.rollouts import HELD_OUT, Policy, RoadFollower, ScriptedEnvs, make_envs, run_episodes
from worldmodels.tools.store import Episode, RolloutStore
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import WorldModel, load_tensors, save_tensors

ROOT = Path(__file__).parents[1]
TINY = PPOSettings(steps=256, rows=2, length=16, batch=16, epochs=1, max_steps=60, validate_every=128, validate_episodes=2)
sb3 = pytest.importorskip("stable_baselines3")


# ---- what PPO sees

def test_eyes_keep_the_last_pictures_in_grey():
    eyes, frames = FrameStack(3, 2, 2), np.zeros((3, 2, 2, 3), np.uint8)
    frames[..., 0], frames[..., 1], frames[..., 2] = 255, 0, 0
    eyes.begin([0, 1, 2], frames)
    assert (eyes.seen[..., 0] == 0).all() and (eyes.seen[..., 1] == 76).all(), "nothing before the first frame; red is 0.299"
    eyes.look([1], np.full((1, 2, 2, 3), 10, np.uint8))
    assert eyes.seen[1, 0, 0].tolist() == [76, 10] and eyes.seen[0, 0, 0].tolist() == [0, 76]
    eyes.begin([1], np.full((1, 2, 2, 3), 20, np.uint8))
    assert eyes.seen[1, 0, 0].tolist() == [0, 20]


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


def relay(length=lambda seed: 3, **kwargs) -> AutoresetVectorEnv:
    return AutoresetVectorEnv(lambda seeds: Marked(seeds, length), **(dict(rows=2, skip=1, stack=1, ahead=2) | kwargs))


def test_an_episode_that_ends_is_followed_by_another_at_once():
    cars = relay()
    seen, _ = cars.reset(seed=0)
    assert seen.shape == (2, 4, 4, 1) and seen.dtype == np.uint8 and (seen % 10 == 0).all()
    begun = [seen[:, 0, 0, 0].copy()]
    for t in range(1, 10):
        seen, rewards, terminated, truncated, infos = cars.step(np.zeros((2, 3)))
        assert terminated.all() == (t % 3 == 0) and not truncated.any()
        if t % 3: assert "final_obs" not in infos and (seen % 10 == t % 3).all()
        else:
            assert all((last % 10 == 3).all() for last in infos["final_obs"]), "the last frame of the old episode"
            assert (seen % 10 == 0).all(), "and the first one of the new"
            begun.append(seen[:, 0, 0, 0].copy())
    assert len(Marked.made) - 1 == 2, "four rows a pool, eight episodes begun: two pools, and one that was only asked for its spaces"
    assert sum(m.closed for m in Marked.made) == 1, "a pool is closed when its last row has left it"


def test_every_episode_has_a_training_track_of_its_own():
    cars = relay(rows=3, ahead=4)
    cars.reset(seed=5)
    for _ in range(60): cars.step(np.zeros((3, 3)))
    tracks = np.concatenate([m.marks for m in Marked.made[1:]])
    assert len(set(tracks.tolist())) > 0.99 * len(tracks) and tracks.max() < 100_000
    again = relay(rows=3, ahead=4)
    count = len(Marked.made)
    again.reset(seed=5)
    np.testing.assert_array_equal(Marked.made[count].marks, Marked.made[1].marks)


def test_rows_of_different_lengths_get_what_is_their_own():
    cars, alone = relay(lambda seed: 1 + seed % 5, rows=4, ahead=2), {}
    seen, _ = cars.reset(seed=1)
    returns, mark = np.zeros(4), seen[:, 0, 0, 0] // 10
    for _ in range(40):
        seen, rewards, terminated, _, infos = cars.step(np.zeros((4, 3)))
        returns += rewards
        for row in np.flatnonzero(terminated):
            seed = next(s for m in Marked.made for s in m.marks if s % 25 == mark[row] and (s % 7) * (1 + s % 5) == returns[row])
            assert infos["final_obs"][row][0, 0, 0] == 10 * (seed % 25) + 1 + seed % 5
        returns[terminated] = 0
        mark = np.where(terminated, seen[:, 0, 0, 0] // 10, mark)


def test_frames_are_skipped_and_an_end_among_them_is_not_driven_over():
    cars = relay(lambda seed: 5, skip=2)
    cars.reset(seed=0)
    paid = [cars.step(np.zeros((2, 3)))[1:3] for _ in range(3)]
    each = np.array([m.marks[:2] % 7 for m in Marked.made[1:2]])[0].astype(float)
    np.testing.assert_allclose([p[0] for p in paid], [2 * each, 2 * each, each])
    assert paid[2][1].all()


def test_the_clock_truncates_and_nobody_drives_longer():
    cars = relay(lambda seed: 100, skip=2, max_steps=6)
    cars.reset(seed=0)
    ends = [cars.step(np.zeros((2, 3)))[2:4] for _ in range(6)]
    assert [bool(truncated.all()) for _, truncated in ends] == [False, False, True] * 2 and not any(t.any() for t, _ in ends)


def test_what_was_seen_is_not_changed_by_the_next_step():
    cars = relay()
    first, _ = cars.reset(seed=0)
    kept = first.copy()
    second = cars.step(np.zeros((2, 3)))[0]
    np.testing.assert_array_equal(first, kept)
    cars.step(np.zeros((2, 3)))
    assert (second % 10 == 1).all()


@pytest.mark.parametrize("wrong", [dict(rows=0), dict(skip=0), dict(max_steps=0)])
def test_impossible_relays_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"): relay(**wrong)


def test_real_cars_in_a_relay():
    cars = AutoresetVectorEnv(rows=2, skip=2, stack=2, max_steps=6, ahead=1)
    seen, _ = cars.reset(seed=0)
    assert cars.observation_space.contains(seen) and cars.single_observation_space.shape == (64, 64, 2)
    for t in range(1, 7):
        seen, rewards, terminated, truncated, infos = cars.step(np.tile([0, 0.5, 0], (2, 1)))
        assert truncated.all() == (t % 3 == 0)
        if truncated.all(): assert (seen[..., 0] == 0).all() and all(last[..., 0].any() for last in infos["final_obs"])
    cars.close()


# ---- the adapter

class Counting(gymnasium.Env):
    """Pays 1 a step; ends after `length` steps, by the world's end or the clock's."""

    observation_space, action_space = gymnasium.spaces.Box(0, 100, (1,), np.float32), gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int, by_clock: bool): self.length, self.by_clock = length, by_clock

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.float32([0]), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        return np.float32([self.t]), 1.0, over and not self.by_clock, over and self.by_clock, {}


def adapter(mode=AutoresetMode.SAME_STEP):
    return as_sb3_vec_env(SyncVectorEnv([lambda: Counting(3, False), lambda: Counting(4, True)], autoreset_mode=mode))


def test_the_adapter_tells_stable_baselines3_what_it_wants_to_know():
    envs = adapter()
    assert envs.reset().tolist() == [[0], [0]]
    steps = [envs.step(np.zeros((2, 1), np.float32)) for _ in range(4)]
    seen, rewards, over, infos = steps[2]
    assert over.tolist() == [True, False] and seen.tolist() == [[0], [3]] and rewards.tolist() == [1, 1]
    assert infos[0]["terminal_observation"].tolist() == [3] and infos[0]["TimeLimit.truncated"] is False and infos[1] == {}
    assert (infos[0]["episode"]["r"], infos[0]["episode"]["l"]) == (3.0, 3)
    seen, _, over, infos = steps[3]
    assert over.tolist() == [False, True] and seen.tolist() == [[1], [0]] and infos[1]["TimeLimit.truncated"] is True
    assert (infos[1]["episode"]["r"], infos[1]["episode"]["l"]) == (4.0, 4)


def test_it_is_a_vec_env_and_passes_through_wrappers():
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize
    envs = adapter()
    assert isinstance(envs, VecEnv) and envs.num_envs == 2 and envs.get_attr("num_envs") == [2, 2] and not any(envs.env_is_wrapped(gymnasium.Wrapper))
    wrapped = VecMonitor(VecNormalize(envs, norm_obs=False))
    wrapped.reset()
    for _ in range(5): wrapped.step(np.zeros((2, 1), np.float32))
    with pytest.raises(NotImplementedError, match="call its render itself"): envs.env_method("render")
    envs.close()


def test_ppo_learns_through_it_and_bootstraps_only_at_the_clock():
    model = sb3.PPO("MlpPolicy", adapter(), n_steps=8, batch_size=16, n_epochs=1, gamma=0.5, seed=0)
    values = []
    real = model.policy.predict_values
    model.policy.predict_values = lambda obs: (values.append(obs.flatten().tolist()), real(obs))[1]
    model.learn(16)
    assert model.num_timesteps == 16 and model.ep_info_buffer
    assert [v for v in values if len(v) == 1] == [[4.0], [4.0]], "the value of the last frame is asked for where the clock ended it, and nowhere else"


def test_another_kind_of_reset_is_refused():
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        with pytest.raises(ValueError, match="SAME_STEP"): adapter(mode)


def test_without_the_library_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    for make in (lambda: as_sb3_vec_env(relay()), lambda: b.load_ppo("x"), lambda: b.train_ppo(TINY, "x")):
        with pytest.raises(ImportError, match=r"pip install -e '.\[ppo\]'"): make()


def test_the_module_needs_no_stable_baselines3():
    code = "import sys; sys.modules['stable_baselines3'] = None; import worldmodels.baselines as b, solutions.ppo; print(b.PPOSettings().rows)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "8", done.stderr
    code = "import sys, worldmodels.baselines; print('stable_baselines3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120).stdout.strip() == "False"


# ---- advantages

def test_advantages_are_stable_baselines3s():
    from stable_baselines3.common.buffers import RolloutBuffer
    rng, T = np.random.default_rng(0), 12
    rewards, values, last, final = rng.normal(size=T), rng.normal(size=T), rng.normal(), rng.normal()
    over = np.arange(T) == 5  # by the clock: the value of its last frame is `final`
    buffer = RolloutBuffer(T, gymnasium.spaces.Box(0, 1, (1,)), gymnasium.spaces.Box(0, 1, (1,)), "cpu", gae_lambda=0.9, gamma=0.8, n_envs=1)
    for t in range(T):  # as collect_rollouts does it: the value after a clock's end is added to the reward
        buffer.add(np.zeros((1, 1)), np.zeros((1, 1)), np.array([rewards[t] + (0.8 * final if over[t] else 0)]),
                   np.array([t > 0 and over[t - 1]]), torch.tensor([[values[t]]]), torch.zeros(1))
    buffer.compute_returns_and_advantage(torch.tensor([[last]]), np.array([False]))
    following = np.append(values[1:], last)
    following[5] = final
    np.testing.assert_allclose(b.advantages(rewards, values, following, over, 0.8, 0.9), buffer.advantages[:, 0], rtol=1e-4, atol=1e-5)


# ---- PPO

@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    b.train_ppo(TINY, folder)
    return folder


def test_training_leaves_weights_a_curve_and_events(trained):
    lines = read_lines(trained / "evaluations.jsonl")
    assert [x["frames"] for x in lines] == [128, 256] and all(np.isfinite(x["mean"]) and x["seconds"] > 0 for x in lines)
    tensors, notes = load_tensors(trained / "ppo.safetensors")
    assert notes["step"] == 128 and notes["done"] and notes["ppo"]["skip"] == 2 and len(notes["spread"]) == 3
    assert any(k.startswith("optimizer.") for k in tensors) and list((trained / "tensorboard").rglob("events*"))


def test_the_learning_rate_falls_to_zero_and_never_below(tmp_path):
    """Updates have a fixed size, so the last one ends beyond the budget; with a negative rate it would climb its loss."""
    model = b.make_ppo(replace(TINY, steps=70), AutoresetVectorEnv(rows=2, skip=2, stack=2, max_steps=60, ahead=1))
    assert [model.lr_schedule(left) for left in (1.0, 0.5, 0.0, -0.02)] == [TINY.lr, 0.5 * TINY.lr, 0.0, 0.0]
    rates = []
    real = model.train
    model.train = lambda: (real(), rates.append(model.policy.optimizer.param_groups[0]["lr"]))
    model.learn(35)
    assert model.num_timesteps == 64 > 35 and rates[-1] == 0.0 and rates[0] > 0
    model.env.close()


def test_a_stored_ppo_drives_as_the_one_that_was_trained(trained):
    first, second = b.load_ppo(trained / "ppo.safetensors"), b.train_ppo(TINY, trained)
    returns = [score_policy(p, [3, 4], "fast", 40) for p in (first, second)]
    np.testing.assert_array_equal(*returns)


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
    run_episodes(ScriptedEnvs(script), PPOPolicy(network, settings), 20, on_step=lambda rows, f, a, *_: actions.append(a[:, 0].tolist()))
    assert [len(a) for a in actions] == [2] * 5 + [1] * 4
    assert np.allclose([a[0] for a in actions], [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5]), "an action is kept for two frames"
    cars = AutoresetVectorEnv(lambda seeds: ScriptedEnvs([script[0]] * len(seeds)), rows=1, skip=2, stack=2, ahead=1)
    seen, shown = cars.reset(seed=0)[0], []
    for _ in range(5):
        shown.append(seen.copy())
        seen = cars.step(np.zeros((1, 3)))[0]
    for mine, theirs in zip(network.shown, shown): np.testing.assert_array_equal(mine[0], theirs[0])


def test_training_goes_on_from_its_checkpoint(tmp_path):
    (tmp_path / "a").mkdir()
    b.train_ppo(replace(TINY, steps=128), tmp_path / "a")
    tensors, notes = load_tensors(tmp_path / "a" / "ppo.safetensors")
    save_tensors(tmp_path / "a" / "ppo.safetensors", tensors, notes | {"done": False})  # as if it had been killed there
    b.train_ppo(TINY, tmp_path / "a")
    notes = load_tensors(tmp_path / "a" / "ppo.safetensors")[1]
    assert notes["step"] == 128 and [x["frames"] for x in read_lines(tmp_path / "a" / "evaluations.jsonl")] == [128, 256]
    assert notes["spread"][2] > 128, "the spread of returns has been carried on"


def test_it_stops_where_it_is_good_enough(tmp_path, monkeypatch):
    settings = replace(TINY, steps=10_000, target_return=0.5)
    monkeypatch.setattr(b, "score_policy", lambda *args, **kwargs: np.array([1.0, 1.0]))
    b.train_ppo(settings, tmp_path)
    lines = read_lines(tmp_path / "evaluations.jsonl")
    assert len(lines) == 1 and lines[0]["frames"] == 128 and load_tensors(tmp_path / "ppo.safetensors")[1]["done"]
    b.train_ppo(settings, tmp_path)
    assert len(read_lines(tmp_path / "evaluations.jsonl")) == 1


def test_what_is_no_ppo_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="solutions.ppo"): b.load_ppo(tmp_path / "ppo.safetensors")
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="holds no PPO"): b.load_ppo(tmp_path / "x.safetensors")


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(size=20), dict(batch=1), dict(skip=0)])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): PPOSettings(**wrong)


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


def call(monkeypatch, module, *flags: str) -> None:
    """The command of `module` in this process."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [module.__name__, *flags])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", module.__name__, *flags])
    module.main()


def test_killed_and_gone_on_with_scored_and_driving_for_others(tmp_path, monkeypatch):
    run = tmp_path / "ppo"
    flags = ("--settings", "ci", "--run", str(run))
    killed = subprocess.run([sys.executable, "-c", KILLER, *flags], cwd=ROOT, capture_output=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert load_tensors(run / "ppo.safetensors")[1]["step"] == 64 and not (run / "report.json").exists()
    call(monkeypatch, solutions.ppo, *flags, "--drive", "2")
    assert load_tensors(run / "ppo.safetensors")[1]["step"] == 128
    report = json.loads((run / "report.json").read_text())
    assert report["seeds"] == [HELD_OUT[0], HELD_OUT[1]] and len(report["gymnasium"]["returns"]) == 2 and "solutions.ppo" in report["command"]
    store = RolloutStore(run / "store")
    assert len(store) == 2 and all(source.endswith("/ppo") for source in store.sources)
    before = (run / "report.json").read_bytes()
    call(monkeypatch, solutions.ppo, *flags)
    assert (run / "report.json").read_bytes() == before
    with pytest.raises(ValueError, match="publish and run are the same folder"): call(monkeypatch, solutions.ppo, *flags, "--publish", str(run))
    call(monkeypatch, solutions.ppo, *flags, "--publish", str(tmp_path / "given"))
    given, whole = (load_tensors(folder / "ppo.safetensors")[0] for folder in (tmp_path / "given", run))
    assert set(given) == {name for name in whole if name.startswith("model.")} < set(whole) and (tmp_path / "given" / "report.json").read_bytes() == before
    np.testing.assert_array_equal(*(score_policy(b.load_ppo(folder / "ppo.safetensors"), [3], "fast", 30) for folder in (tmp_path / "given", run)))
    with pytest.raises(ValueError, match="ppo.rows: 2 -> 4"): call(monkeypatch, solutions.ppo, *flags, "--ppo.rows", "4")
    watched = []
    monkeypatch.setattr(solutions.ppo, "watch_policy", lambda policy, seeds, *_: watched.append((policy.name, seeds[0])))
    call(monkeypatch, solutions.ppo, *flags, "--render", "human")
    assert watched == [("ppo", HELD_OUT[0])]


# ---- controls

class Skill:
    """A fitness without cars: the return is minus the distance from 1, with noise that belongs to the track."""

    dimension, steps = 3, 0

    def __call__(self, params, seeds):
        self.steps += len(params) * len(seeds)
        noise = np.array([np.random.default_rng(int(s)).normal(0, 0.05) for s in seeds])
        return -np.abs(np.asarray(params) - 0.5).mean(1)[:, None] + noise


SEARCH = EvolveSettings(population=20, episodes=2, generations=5, validate_episodes=8)


def test_random_search_finds_the_better_ones_and_counts_what_it_spent():
    fitness = Skill()
    found, records = b.random_search(fitness, SEARCH)
    assert len(records) == 5 and sum(r["steps"] for r in records) == 5 * 20 * 2
    everything = np.concatenate([b.draw_candidates(3, 20, 0, g) for g in range(5)])
    skill = -np.abs(everything - 0.5).mean(1)
    assert -np.abs(found - 0.5).mean() >= np.sort(skill)[-8]


def test_random_search_goes_on_where_it_was(tmp_path):
    whole, _ = b.random_search(Skill(), SEARCH, tmp_path)
    lines = (tmp_path / "random.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "random.jsonl").write_text("".join(lines[:2]) + lines[2][:30])
    fitness = Skill()
    again, records = b.random_search(fitness, SEARCH, tmp_path)
    np.testing.assert_array_equal(whole, again)
    assert len(records) == 5 and fitness.steps == 3 * 20 * 2 + 8 * 8


def test_a_thumbnail_is_a_v_for_c():
    thumbs = Thumbnail()
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[1, :32] = 255
    mu, logvar = thumbs.encode(torch.from_numpy(frames))
    assert mu.shape == logvar.shape == (2, 64) and torch.allclose(mu[0], torch.full((64,), -2.0))
    assert torch.allclose(mu[1, :32], torch.full((32,), 2.0), atol=1e-5) and torch.allclose(thumbs.decode(mu)[1, :32], torch.ones(32, 64, 3), atol=1e-5)
    world = WorldModel(thumbs, MDNRNN(MDNRNNSettings(latent=64, hidden=1)))
    fitness = RealFitness(world, ControllerSettings(memory=False), max_steps=5)
    assert fitness.dimension == 65 * 3 and fitness(np.zeros((2, 195)), [1]).shape == (2, 1)


def test_an_untrained_m_is_of_the_same_kind_and_disturbs_no_generator():
    from worldmodels.vae import VAE, VAESettings
    world = WorldModel(VAE(VAESettings(latent=4)), MDNRNN(MDNRNNSettings(latent=4, hidden=8)))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fresh = studies.untrained(world, 0)
    assert torch.equal(torch.rand(1), expected) and fresh.vision is world.vision and fresh.dynamics.settings == world.dynamics.settings
    assert not torch.equal(fresh.dynamics.lstm.weight_hh_l0, world.dynamics.lstm.weight_hh_l0)


# ---- on the road

def test_the_rule_drives_on_the_road_and_white_noise_stands_where_it_was_put():
    from worldmodels.rollouts import record
    episode, = record(make_envs(seeds=[5]), RoadFollower(), 250)
    assert b.on_road(episode.frames[60:]).mean() > 0.9
    class Away(Policy):  # full gas to the left
        def act(self, frames, rows): return np.tile([-0.4, 1.0, 0.0], (len(rows), 1))
    episode, = record(make_envs(seeds=[5]), Away(), 250)
    assert b.on_road(episode.frames[200:]).mean() < 0.5


# ---- cells

def test_a_cell_is_made_once_and_whole_or_not_at_all(tmp_path):
    cells, made = Cells(tmp_path), []
    def make(folder):
        made.append(folder)
        if len(made) == 1: raise RuntimeError("killed")
        return {"x": 1}
    with pytest.raises(RuntimeError): cells("a", make)
    assert not (tmp_path / "a.json").exists()
    assert cells("a", make)["x"] == 1 and cells("a", make)["interrupted"] and len(made) == 2


def test_the_frames_that_count_are_the_first_ones(tmp_path):
    store = RolloutStore.create(tmp_path / "s", "Toy", 4, 1)
    make = lambda steps: Episode(np.zeros((steps + 1, 4, 4, 3), np.uint8), np.zeros((steps, 1), np.float32), np.zeros(steps, np.float32), *np.zeros((2, steps), bool))
    store.append([make(9), make(9), make(4), make(9)])
    assert [needed(store, n) for n in (1, 10, 11, 20, 25, 26, 1000)] == [[0], [0], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_names_become_file_names():
    assert slug("8 × 8 grey pixels, no V") == "8-8-grey-pixels-no-v" and slug("z and h, M untrained") == "z-and-h-m-untrained"


def study(monkeypatch, run: Path, *flags: str) -> None:
    call(monkeypatch, studies, "--settings", "ci", "--run", str(run), "--ppo", str(run / "none"), *flags)


def test_the_data_study_and_the_time_to_a_score(tmp_path, monkeypatch, capsys):
    run = tmp_path / "b"
    study(monkeypatch, run, "--policies", "brownian,ppo,iterated", "--part", "data", "--seeds", "1")
    table = (run / "data.md").read_text()
    assert "| brownian | " in table and "| iterated | " in table and "| ppo | " not in table and "row ppo is left out" in capsys.readouterr().out
    assert (run / "data.png").stat().st_size > 5000
    before = {p: p.stat().st_mtime_ns for p in run.glob("*.json")}
    study(monkeypatch, run, "--policies", "brownian,iterated", "--part", "time", "--seeds", "1", "--to", str(tmp_path / "also"))
    assert {p: p.stat().st_mtime_ns for p in run.glob("*.json")} == before, "no cell has been made again"
    table = (run / "time.md").read_text()
    assert "| V, M and C | not in " in table and "iterated" in table and (run / "time.png").stat().st_size > 5000
    assert (tmp_path / "also" / "time.md").read_text() == table and (tmp_path / "also" / "time.png").exists()


def test_the_controls(tmp_path, monkeypatch):
    run = tmp_path / "b"
    study(monkeypatch, run, "--part", "controls")
    table = (run / "controls.md").read_text()
    for name in ("z and h", "M untrained", "z alone", "40 hidden units", "grey pixels", "random search", "rule by hand"): assert name in table, name
    assert "| 867 |" in table and "| 99 |" in table and "| 195 |" in table and (run / "controls.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="window: 16 -> 8"): study(monkeypatch, run, "--window", "8")
    refused = subprocess.run([sys.executable, "-m", "solutions.baselines", "--policies", "brownian,telepathy"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1 and "unknown policies telepathy" in refused.stderr and "Traceback" not in refused.stderr


def test_the_controls_in_doom(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    run = tmp_path / "b"
    study(monkeypatch, run, "--part", "doom")
    table, cells = (run / "doom.md").read_text(), {p.stem: json.loads(p.read_text()) for p in run.glob("doom-*.json")}
    for name in ("z, c and h", "z alone", "M untrained", "random search", "never looking", "fresh action"): assert name in table, name
    assert {k: c.get("parameters") for k, c in cells.items()} == {"doom-z-c-and-h": 1088, "doom-z-alone": 64, "doom-z-c-and-h-m-untrained": 1088,
                                                                  "doom-z-c-and-h-random-search": 1088, "doom-to-and-fro-never-looking": None,
                                                                  "doom-random-fresh-action": None}
    assert all(0 < t <= 60 for c in cells.values() for t in c["game"]["returns"]) and all(c["game"]["episodes"] == 2 for c in cells.values())
    assert all(c["dream"]["returns"][0] % 4 == 0 for c in cells.values() if "dream" in c), "dreams are told in tics, four to a step of M"
    assert (run / "doom.png").stat().st_size > 5000
    (run / "doom-z-alone.json").unlink()  # as if it had been killed after the search
    before = {p: p.stat().st_mtime_ns for p in run.glob("*.json")}
    study(monkeypatch, run, "--part", "doom", "--to", str(tmp_path / "also"))
    again = json.loads((run / "doom-z-alone.json").read_text())
    assert again["interrupted"] and again["game"] == cells["doom-z-alone"]["game"] and again["dream"] == cells["doom-z-alone"]["dream"]
    assert {p: p.stat().st_mtime_ns for p in run.glob("*.json") if p.stem != "doom-z-alone"} == before and (tmp_path / "also" / "doom.md").read_text() == table
    assert {p.name for p in (tmp_path / "also" / "cells").iterdir()} == {f"{name}.json" for name in cells}
