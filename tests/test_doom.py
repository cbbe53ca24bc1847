"""Doom: the game behind the door, M's probability of death, the films, and the run that is killed and goes on."""
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gymnasium
import imageio.v3
import numpy as np
import pytest
import torch

from solutions import doom as solution
from solutions import doom_exercises as exercises
from solutions import doom_report
from worldmodels import doom
from worldmodels.controller import WorldModelPolicy, controllers_for
from worldmodels.scoring import score_policy
from worldmodels.controller_files import load_controller, save_controller
from worldmodels.doom import (C_DOOM, M_DOOM, V_DOOM, RandomHoldPolicy, Runner, calibrate, done_logits, done_loss,
                              dream_to_the_end, fire, platt, replay_health, survive_dreams)
from worldmodels.tools.games import TAKE_COVER
from worldmodels.dream import DreamFitness, DreamSettings, InitialStates, done_probability
from worldmodels.films import film_clips, play_episode
from worldmodels.mdn_rnn import MDNRNN
from worldmodels.sequences import windows
from worldmodels.collect import collect, record
from worldmodels.envs import make_envs
from worldmodels.rollouts import NoisePolicy, Policy
from worldmodels.tools import takecover
from worldmodels.tools.takecover import buttons, doom_game
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import WorldModel, data, load_tensors
from worldmodels.tools.encoding import Latents, encode_store
from worldmodels.vae import VAE

ROOT = Path(__file__).parents[1]
SMALL = replace(M_DOOM, latent=8, hidden=16, components=2)


@pytest.fixture(scope="module")
def world() -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(VAE(replace(V_DOOM, latent=8)).eval(), MDNRNN(SMALL).eval(), TAKE_COVER)


@pytest.fixture
def envs():
    """A maker of games, all of which are closed in the end."""
    made = []

    def make(seeds):
        made.append(make_envs(TAKE_COVER, seeds))
        return made[-1]
    yield make
    for e in made: e.close()


def survive(policy, seeds, max_steps=2100, rows=32):
    """Tics that a policy survives in the game."""
    return score_policy(policy, seeds, "fast", max_steps, rows, game=TAKE_COVER)


def prepare(screen, size=64): return TAKE_COVER.prepare([screen], size)[0]


def numbers(world, seed=0): return np.random.default_rng(seed).normal(size=controllers_for(world, C_DOOM).dimension) * 0.3


# The game

def wiggle(envs, rows, steps=60):
    rewards = []
    for t in range(steps):
        frames, reward, terminated, truncated = envs.step_rows([[np.sin(t / 3 + envs.seeds[r])] for r in rows], rows)
        assert not terminated.any() and not truncated.any()
        rewards.append(reward)
    return frames, np.array(rewards)


def test_a_game_depends_on_its_seed_and_its_actions_alone(envs):
    a, b = envs([4, 5, 6]), envs([6, 9, 4, 5])
    first_a, first_b = a.reset(), b.reset()
    assert first_a.shape == (3, 64, 64, 3) and first_a.dtype == np.uint8 and first_a.std() > 5
    np.testing.assert_array_equal(first_a, first_b[[2, 3, 0]])
    frames_a, rewards_a = wiggle(a, [0, 1, 2])
    frames_b, _ = wiggle(b, [3, 0, 2])
    np.testing.assert_array_equal(frames_a[[1, 2, 0]], frames_b)
    assert (rewards_a == 1).all(), "a tic pays 1"
    assert (frames_a[0] != frames_a[1]).any()
    a.reset()
    np.testing.assert_array_equal(wiggle(a, [0, 1, 2])[0], frames_a)
    b.reseed([5, 4, 6, 9])
    b.reset()
    np.testing.assert_array_equal(wiggle(b, [0, 1, 2])[0], frames_a[[1, 0, 2]])


class Constant(Policy):
    def __init__(self, action): self.action = action

    def act(self, frames, rows): return np.full((len(rows), 1), self.action)


def test_a_game_ends_by_death_and_keeps_its_last_frame(envs):
    episode, = record(envs([3]), Constant(0.0), 2100)
    assert episode.terminated[-1] and not episode.truncated.any() and 20 < len(episode) < 2100
    np.testing.assert_array_equal(episode.frames[-1], episode.frames[-2])
    assert survive(Constant(0.0), [3]).tolist() == [episode.rewards.sum()] and episode.rewards.sum() in (len(episode), len(episode) - 1)


def test_left_is_left_and_thresholds_press_nothing(envs):
    e = envs([3, 3, 3, 3])
    e.reset()
    for _ in range(12): frames, *_ = e.step_rows([[-1.0], [1.0], [0.0], [0.33]], range(4))
    np.testing.assert_array_equal(frames[2], frames[3])
    assert (frames[0] != frames[2]).any() and (frames[1] != frames[2]).any() and (frames[0] != frames[1]).any()
    assert e.action_space.shape == (1,) and e.action_space.low == -1 and e.action_space.high == 1


def test_the_status_bar_leaves_no_trace():
    screen = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    without = screen.copy()
    without[400:] = 0
    np.testing.assert_array_equal(prepare(screen), prepare(without))
    assert prepare(screen, 32).shape == (32, 32, 3)
    rows = np.broadcast_to(np.arange(240, dtype=np.uint8)[:, None, None], (240, 320, 3))
    assert abs(int(prepare(rows)[-1, 0, 0]) - 198) <= 2


def test_games_are_recorded_and_health_can_be_replayed(tmp_path):
    store = RolloutStore.create(tmp_path / "store", TAKE_COVER.env_id, 64, 1)
    collect(store, NoisePolicy("held", 400), 2, max_steps=400, rows=2)
    for e in store.episodes():
        health = replay_health(e.seed, e.actions)
        assert len(health) == len(e) + 1 and health[0] == 100 and (np.diff(health) <= 0).all()
        assert (health[-1] <= 0) == e.terminated[-1]
    with pytest.raises(ValueError, match="takes 1 numbers an action, CarRacing-v3 has 3"):
        collect(RolloutStore.create(tmp_path / "car", "CarRacing-v3", 64, 1), NoisePolicy(), 1)


class Rows:
    """Rows of games as a policy sees them before the first frame."""
    action_space = gymnasium.spaces.Box(np.float32([-1]), np.float32([1]))

    def __init__(self, seeds): self.seeds = seeds


def acts(policy, seeds, steps):
    policy.start(Rows(seeds))
    return np.stack([policy.act(None, np.arange(len(seeds))) for _ in range(steps)], 1)  # (rows, steps, 1)


def test_a_restless_player_holds_as_long_as_its_seed_says():
    a = acts(RandomHoldPolicy((10, 30, 100), 2000), [3, 4, 5, 33], 2000)
    assert a.shape == (4, 2000, 1) and np.abs(a).max() <= 1
    longest = [np.diff(np.flatnonzero(np.diff(x[:, 0], prepend=9, append=9))).max() for x in a]
    assert longest[0] <= 10 < longest[1] <= 30 < longest[2] <= 100 and longest[3] <= 10
    np.testing.assert_array_equal(acts(RandomHoldPolicy((10, 30, 100), 2000), [5, 8], 2000)[0], a[2])
    np.testing.assert_array_equal(acts(RandomHoldPolicy((10,), 2000), [3], 2000)[0], acts(NoisePolicy("held", 2000), [3], 2000)[0])
    with pytest.raises(ValueError, match="1 tic or more"): RandomHoldPolicy(())
    with pytest.raises(ValueError, match="1 tic or more"): RandomHoldPolicy((10, 0))


def test_a_runner_turns_in_time():
    a = acts(Runner(100), [0, 1], 301)[:, :, 0]
    assert (a[0] == a[1]).all() and set(a[0]) == {-1.0, 1.0}
    np.testing.assert_array_equal(np.flatnonzero(np.diff(a[0])) + 1, [49, 149, 249])
    assert a[0, 0] == -1
    with pytest.raises(ValueError, match="1 tic"): Runner(0)


def test_vizdoom_missing_names_the_package_and_spares_the_others(monkeypatch):
    monkeypatch.setattr(takecover, "find_spec", lambda name: None if name == "vizdoom" else True)
    for call in (lambda: make_envs(TAKE_COVER, [1]), doom_game, lambda: survive(NoisePolicy(), [1])):
        with pytest.raises(ImportError, match="VizDoom is not installed: `pip install vizdoom`.*every other chapter works"): call()
    assert len(make_envs(seeds=[1])) == 1


def test_without_vizdoom_every_module_can_be_imported():
    code = ("import sys; sys.modules['vizdoom'] = None\n"
            "import worldmodels.rollouts, worldmodels.controller, worldmodels.dream, worldmodels.doom, solutions.doom")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_vizdoom_that_does_not_start_says_so(monkeypatch):
    import vizdoom
    def broken(self): raise vizdoom.ViZDoomErrorException("no room")
    monkeypatch.setattr(vizdoom.DoomGame, "init", broken)
    with pytest.raises(RuntimeError, match="does not start .*no room.*force-reinstall vizdoom"): doom_game()


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks into /proc")
def test_games_leave_with_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, signal\nfrom worldmodels.envs import make_envs\nenvs = make_envs('VizdoomTakeCover-v1', [1, 2])\n"
                      "envs.reset()\nprint(*[w.process.pid for w in envs.workers], flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    workers = {int(pid) for pid in done.stdout.split()}
    assert workers and [p.name for p in tmp_path.iterdir()] == ["script.py"], "VizDoom has left a file where it was started"
    session = lambda pid: int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[3])

    def left() -> list[int]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try: found += [int(name)] if session(name) in workers and open(f"/proc/{name}/stat").read().rsplit(")", 1)[1].split()[0] != "Z" else []
            except (FileNotFoundError, ProcessLookupError): pass
        return found
    for _ in range(100):
        if not left(): return
        time.sleep(0.1)
    pytest.fail(f"processes outlive their parent: {left()}")


# V, M and what M says about death

def test_counts_are_the_papers():
    count = lambda model: sum(p.numel() for p in model.parameters() if p.requires_grad)
    v, m = VAE(V_DOOM), MDNRNN(M_DOOM)
    assert (count(v), count(m), controllers_for(WorldModel(v, m, TAKE_COVER), C_DOOM).dimension) == (4_446_915, 1_678_785, 1_088)


def test_fire_is_counted():
    frames = np.zeros((2, 10, 10, 3), np.uint8)
    frames[0, :2, :5] = (230, 120, 20)   # ten glowing pixels
    frames[1, :, :] = (140, 120, 100)    # a wall
    assert fire(frames).tolist() == [0.1, 0.0] == fire(frames / 255).tolist()


def test_focus_weighs_what_differs_from_the_mean_picture():
    from worldmodels.vae import focus_weight, vae_loss
    planes = torch.zeros(4, 3, 8, 8)
    planes[0, 0, 2, 3] = 1.0
    w = focus_weight(planes, 8.0)
    assert w.shape == (4, 1, 8, 8) and w[0, 0, 2, 3] == pytest.approx(7) and w[1, 0, 2, 3] == pytest.approx(3) and w[0, 0, 0, 0] == 1
    torch.manual_seed(0)
    v, frames = VAE(V_DOOM), torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    def loss(focus):
        torch.manual_seed(1)
        return vae_loss(v, frames, replace(V_DOOM, focus=focus))[0].item()
    assert loss(5.0) > loss(0.0)
    with pytest.raises(ValueError, match="focus must be at least 0"): replace(V_DOOM, focus=-1.0)


def dying(episodes=60, seed=0) -> Latents:
    """z counts down from a random number, and the player dies at 0."""
    rng, mu, lengths = np.random.default_rng(seed), [], []
    for n in rng.integers(5, 40, episodes):
        mu.append(torch.linspace(n / 40, 0, n + 1)[:, None].expand(-1, 8)); lengths.append(int(n))
    n, mu = torch.tensor(lengths), torch.cat(mu)
    ends = (n + 1).cumsum(0)
    died = torch.zeros(len(mu), dtype=torch.bool)
    died[ends - 2] = True
    return Latents(mu=mu, logvar=torch.full_like(mu, -8.0), actions=torch.zeros(len(mu), 1), rewards=torch.ones(len(mu)), terminated=died,
                   first=ends - n - 1, lengths=n)


def test_windows_give_every_step_its_turn_and_deaths_theirs():
    latents = dying()
    lengths = latents.lengths
    seen = torch.zeros(len(lengths))
    for b, _ in zip(windows(latents, range(60), 20, 256), range(40)):

        assert b["terminated"].sum(1).max() <= 1
        seen += torch.bincount(b["mask"].sum(1), minlength=60)[:60]
    steps = (torch.arange(60) * seen).sum()
    short = (lengths < 20)
    assert (torch.arange(20) * seen[:20]).sum() / steps == pytest.approx(float(lengths[short].sum() / lengths.sum()), abs=0.02), \
        "steps of short episodes are not seen as often as those of long ones"
    ends = next(windows(latents, range(60), 20, 512, ending=1.0))
    assert ends["terminated"].any(1).all()
    plain, half = (float(next(windows(latents, range(60), 20, 4096, ending=x))["terminated"].any(1).float().mean()) for x in (0.0, 0.5))
    assert half == pytest.approx(0.5 + 0.5 * plain, abs=0.03)


def test_platt_takes_out_the_weight_and_stretches():
    rng = torch.Generator().manual_seed(0)
    logit = torch.randn(200_000, generator=rng) * 2 - 4
    died = torch.rand(200_000, generator=rng) < logit.sigmoid()
    a, b = platt((logit + np.log(10)) / 0.5, died, 10.0)
    assert a == pytest.approx(0.5, abs=0.02) and b == pytest.approx(-np.log(10), abs=0.08)
    with pytest.raises(ValueError, match="0 deaths in 5 steps"): platt(torch.zeros(5), torch.zeros(5, dtype=torch.bool))


def test_calibration_is_folded_into_the_head():
    torch.manual_seed(0)
    model, latents = MDNRNN(SMALL).eval(), dying()
    with torch.no_grad(): model.done.bias.fill_(3.0)
    before, died = done_logits(model, latents, range(60))
    assert len(before) == int(latents.lengths.sum()) and int(died.sum()) == 60
    a, b = calibrate(model, latents, range(60), 10.0)
    after, _ = done_logits(model, latents, range(60))
    assert torch.allclose(after - np.log(10), a * before + b, atol=1e-3)
    assert float(done_probability(after, 10.0).sum()) == pytest.approx(60, rel=0.05)
    assert done_loss(after - np.log(10), died, 1.0) < done_loss(before - np.log(10), died, 1.0)


# The dream and the films

def test_a_dream_is_followed_to_its_end_and_agrees_with_the_fitness(world):
    starts, settings = InitialStates(torch.zeros(3, 8), torch.zeros(3, 8)), DreamSettings(max_steps=12, reward="alive")
    params = numbers(world)
    z, logits = dream_to_the_end(world, C_DOOM, params, starts, settings, [5, 6])
    assert z.shape == (13, 2, 8) and logits.shape == (12, 2)
    returns = DreamFitness(world, starts, C_DOOM, settings)(params[None], [5, 6])[0]
    np.testing.assert_array_equal(doom.survived(logits > 0).numpy(), returns)


def test_blind_players_dream_alone_and_as_long_as_their_actions_let_them(world):
    starts, settings = InitialStates(torch.zeros(1, 8), torch.zeros(1, 8)), DreamSettings(max_steps=40, reward="alive", done="sample", done_weight=0.1)
    lived = survive_dreams(world, starts, settings, NoisePolicy("held", 40), [3, 4, 5, 6])
    assert lived.shape == (4,) and 1 <= lived.min() < lived.max() <= 40
    np.testing.assert_array_equal(survive_dreams(world, starts, settings, NoisePolicy("held", 40), [5, 9])[0], lived[2])
    assert (survive_dreams(world, starts, replace(settings, done="never"), Runner(), [1, 2]) == 40).all()


def slow_world(repeat=4) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(VAE(replace(V_DOOM, latent=8)).eval(), MDNRNN(replace(SMALL, action_repeat=repeat)).eval(),
                      TAKE_COVER)


def test_a_blind_player_acts_at_every_tic_of_a_longer_step():
    """M gets the mean of a step's actions, and what is survived is told in tics."""
    world, heard = slow_world(), []
    step = world.dynamics.step
    world.dynamics.step = lambda z, a, state: (heard.append(a.clone()), step(z, a, state))[1]
    settings = DreamSettings(max_steps=10, reward="alive", done="never")
    assert (survive_dreams(world, InitialStates(torch.zeros(1, 8), torch.zeros(1, 8)), settings, Runner(6), [1, 2]) == 40).all()
    tics = [-1.0] * 2 + [1.0] * 6 + [-1.0] * 6 + [1.0] * 6  # as the runner's own test has it: half as long before its first turn
    np.testing.assert_allclose([a[0, 0] for a in heard[-10:][:5]], np.reshape(tics, (5, 4)).mean(1))


def test_a_cell_counts_tics_whatever_a_step_is(tmp_path):
    latents, s, world = dying(6), replace(solution.read_settings(["--settings", "ci"]), dream=DreamSettings(max_steps=60, reward="alive")), slow_world()
    with torch.no_grad(): world.dynamics.done.bias.fill_(-1e4)  # nobody dies
    found = solution.play_cell(tmp_path / "cell", world, latents, np.arange(6), s, solution.Cell(1.0, 0))
    assert found["dream"]["tics"] == [60, 60] and all(1 <= n <= 60 for n in found["game"]["tics"])
    assert all(line["steps"] == s.evolve.population * s.evolve.episodes * 15 for line in read_lines(tmp_path / "cell" / "evolution.jsonl"))


def test_windows_are_told_in_tics(monkeypatch, tmp_path):
    asked, s = [], solution.read_settings(["--settings", "ci"])

    def train(model, latents, episodes, length, *rest, **more):
        asked.append((length, latents.repeat))
        return model.eval()
    for name, stand_in in {"train_dynamics": train, "encode": lambda *a: dying(), "examine": lambda *a: {}, "usable": lambda *a: (np.arange(50), np.arange(50, 60))}.items():
        monkeypatch.setattr(solution, name, stand_in)
    s = replace(s, vae=replace(s.vae, latent=8), dynamics=replace(SMALL, action_repeat=4), transformer=replace(s.transformer, latent=8), models=())
    solution.learn_m(tmp_path, slow_world().vision, None, s, 0)
    assert asked == [(s.window // 4, 4)] and s.window == 60


def test_other_models_have_their_own_steps_and_their_own_row(tmp_path):
    """The LSTM and the transformer step four tics, a ViT-WM one."""
    run = tmp_path / "run"
    done = run_doom(run, flags=("--models", '["TransformerMDN","ViTWM"]', "--cheats", "[]"))
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((run / "report.json").read_text())
    assert [c["model"] for c in report["cells"]] == ["MDNRNN", "TransformerMDN", "ViTWM"]
    assert {name: m["tics a step"] for name, m in report["m"].items()} == {"seed-0": 4, "seed-0-TransformerMDN": 4, "seed-0-ViTWM": 1}
    assert (run / "table.md").read_text().count("not run") == 0


def test_the_player_in_data_outlives_in_its_dream_one_that_stands_still():
    """What comes with the repository: a dream as long as the game, in steps of four tics, and the C that was found in it."""
    env = gymnasium.make("worldmodels/TakeCoverDream-v0")
    dream, folder = env.unwrapped.dream, data("takecover")
    assert dream.settings.max_steps == 525 and dream.settings.done == "sample" and env.metadata["render_fps"] == 35 / 4
    settings, params = load_controller(folder / "controller.safetensors")
    starts = InitialStates.from_latents(encode_store(dream.world.vision, RolloutStore(folder / "sample")))
    lived = DreamFitness(dream.world, starts, settings, replace(dream.settings, max_steps=100))(np.stack([params, 0 * params]), range(100_000, 100_016)).mean(1)
    assert lived[0] > 1.3 * lived[1], lived


def test_a_game_is_played_and_filmed(world, tmp_path):
    screens, episode = play_episode(world, C_DOOM, numbers(world), 3, 40)
    assert len(screens) == len(episode.frames) == 41 and screens[0].shape == (200, 320, 3)
    np.testing.assert_array_equal(cv(screens[7]), episode.frames[7])
    path = film_clips(tmp_path / "both.mp4", {"the game": screens, "the dream": np.zeros((20, 64, 64, 3))})
    shown = imageio.v3.imread(path)
    assert len(shown) == 41 and shown.shape[2] > 2 * 256
    for wrong in ({}, {"nothing": []}):
        with pytest.raises(ValueError, match="at least one clip"): film_clips(tmp_path / "no.mp4", wrong)


def cv(screen):
    import cv2
    return cv2.resize(screen, (64, 64), interpolation=cv2.INTER_AREA)


def test_rows_do_not_change_what_a_player_survives(world):
    policy = WorldModelPolicy(world, controllers_for(world, C_DOOM, numbers(world)))
    np.testing.assert_array_equal(survive(policy, [1, 2, 3], 50, rows=2), survive(policy, [1, 2, 3], 50, rows=3))


# The run

KILLER = """
import os, runpy, signal, sys
part, n = sys.argv[1], int(sys.argv[2])
real, seen = os.replace, 0
def replace(source, target):
    global seen
    hit = part in str(target)
    seen += hit
    if hit and seen == n: os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
sys.argv = ['doom', *sys.argv[3:]]
runpy.run_module('solutions.doom', run_name='__main__')
"""


def run_doom(run: Path, *before: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    flags = ["--settings", "ci", "--run", str(run), *flags]
    command = ["-c", *before, *flags] if before else ["-m", "solutions.doom", *flags]
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    done = run_doom(run)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "random, fresh action" in done.stdout and "seed-0: tau-1.15" in done.stdout
    return run


def test_a_run_leaves_a_table_a_figure_films_and_a_report(whole):
    for name in ("table.md", "table.png", "report.json", "player-tau-1.15-game.mp4", "player-tau-1.15-dream.mp4", "player-tau-1.15-both.mp4", "random.json",
                 "seed-0/m.json", "seed-0/tau-1.15/controller.safetensors", "seed-0/tau-1.15/evolution.jsonl", "cheat-tau-0.1-both.mp4"):
        assert (whole / name).exists(), name
    report = json.loads((whole / "report.json").read_text())
    assert report["environment"] == TAKE_COVER.env_id and report["seeds"][0] >= 200_000 and [c["done"] for c in report["cells"]] == ["sample", "threshold"]
    cell = report["cells"][0]
    assert len(cell["game"]["tics"]) == 2 and cell["tau"] == 1.15 and max(cell["game"]["tics"]) <= 60 and cell["generations"] == 2
    assert all(t % 4 == 0 and 4 <= t <= 60 for t in cell["dream"]["tics"])
    assert len(imageio.v3.imread(whole / "player-tau-1.15-dream.mp4")) % 4 == 0, "a film of a dream shows a step for as long as it takes"
    assert "1.15" in (whole / "table.md").read_text() and "1092 ± 556" in (whole / "table.md").read_text()


def test_killed_anywhere_it_goes_on_and_ends_the_same(whole, tmp_path):
    run = tmp_path / "run"
    for part, n in (("random-fast", 2), ("vision.checkpoint", 2), ("dynamics.checkpoint", 1), ("dynamics.safetensors", 1), ("controller.safetensors", 1),
                    ("score.json", 1), ("score.json", 1)):
        done = run_doom(run, KILLER, part, str(n))
        assert done.returncode == -signal.SIGKILL, (part, done.stderr[-2000:])
    done = run_doom(run)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("seed-0/vision.safetensors", "seed-0/dynamics.safetensors", "seed-0/tau-1.15/controller.safetensors"):
        mine, theirs = load_tensors(run / name)[0], load_tensors(whole / name)[0]
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine), name
    mine, theirs = (json.loads((folder / "report.json").read_text())["cells"] for folder in (run, whole))
    assert mine == theirs


def test_a_row_can_be_added_and_one_that_was_not_run_says_so(whole):
    before = (whole / "seed-0/tau-1.15/score.json").stat().st_mtime_ns
    for left in (1, 0):  # two new cells, one at each start
        done = run_doom(whole, flags=("--temperatures", "[1.15,0.1,0.5]", "--cells", "1"))
        assert done.returncode == 0, done.stderr[-2000:]
        assert (whole / "table.md").read_text().count("not run") == 2 * left and "| 2060 ± 277 | 196 ± 50 |" in (whole / "table.md").read_text()
        assert ("| 0.5 | not run | not run | 2060 ± 277 | 196 ± 50 |" in (whole / "table.md").read_text()) == bool(left)
    assert (whole / "seed-0/tau-1.15/score.json").stat().st_mtime_ns == before


def test_a_round_adds_the_players_own_games(whole, tmp_path):
    done = run_doom(tmp_path / "run", flags=("--iterations", "1", "--publish", str(tmp_path / "shipped")))
    assert done.returncode == 0, done.stderr[-3000:]
    store = RolloutStore(tmp_path / "run" / "seed-0-round-1" / "store")
    assert len(store) == 6 and len(RolloutStore(tmp_path / "run" / "store")) == 4 and sum("controller" in s for s in store.sources) == 2
    assert (tmp_path / "run" / "seed-0-round-1" / "tau-1.15" / "score.json").exists()
    shipped = tmp_path / "shipped"
    WorldModel.load(shipped)
    assert RolloutStore(shipped / "sample").nbytes < 3e6
    card = " ".join((shipped / "CARD.md").read_text().split())  # however its lines are broken
    for words in ("found at τ = 1.15", "0.1, dreams end by threshold", "Minutes: "):
        assert words in card


@pytest.mark.parametrize("flags, message", [
    (("--dream.reward", "head"), "must be alive"), (("--window", "30"), "window must be a multiple of the 4 tics"),
    (("--dream.max_steps", "3"), "dream.max_steps must be a multiple of the 4 tics"), (("--vae.size", "96"), "collect.size 64"),
    (("--vae.size", "96", "--collect.size", "96"), "all sizes must be 64"),
    (("--iterations", "5"), "20,000 training seeds of its own"), (("--iterations", "1", "--driven", "0"), "driven of at least 1"),
    (("--publish", "x", "--temperatures", "[1.0]"), "temperatures must hold it"),
    (("--vae.latent", "32"), "vae.latent is 32 and dynamics.latent 64"), (("--dynamics.done", "false"), "nobody dies"),
    (("--temperatures", "[0]"), "temperatures must be above 0"), (("--holds", "[10,0]"), "each at least 1"), (("--seeds", "[]"), "at least one value"),
    (("--cheats", "[-1]"), "cheats must be above 0"), (("--dream.done", "never"), "nobody dies"), (("--controller.squash", "car"), "squash must be tanh"),
    (("--evaluate.max_steps", "40"), "cut at the same tic"), (("--models", '["ViTWM"]', "--clip", "0"), "clip must be 1 to"),
    (("--dream.tempratur", "1"), "did you mean --dream.temperature"), (("--ending", "2"), "share from 0 to 1")])
def test_wrong_settings_are_refused_and_write_nothing(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message): solution.read_settings(["--settings", "ci", "--run", str(tmp_path / "run"), *flags])
    assert not (tmp_path / "run").exists()


def test_a_folder_of_somebody_elses_is_not_published_over(tmp_path, monkeypatch):
    (mine := tmp_path / "mine").mkdir()
    monkeypatch.setattr("sys.argv", ["doom", "--settings", "ci", "--run", str(tmp_path / "run"), "--publish", str(mine)])
    with pytest.raises(ValueError, match="has no CARD.md"): solution.main()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scale", ["ci", "quick", "laptop", "gpu", "paper"])
def test_every_scale_has_its_section(scale): assert solution.read_settings(["--settings", scale]).dream.reward == "alive"


def test_the_defaults_are_the_papers():
    s = solution.DoomSettings()
    assert s.temperatures == (0.1, 0.5, 1.0, 1.15, 1.3) and s.dream.done == "threshold" and s.dream.done_weight == 10 and s.window == 500
    assert (s.evolve.population, s.evolve.episodes, s.evolve.sigma, s.collect.episodes, s.collect.noise) == (64, 16, 0.1, 10_000, "held")


def test_calibration_is_judged_on_the_half_it_was_not_fitted_on():
    """In one half M is right, in the other its logits mean nothing: what is said there comes from the other's fit."""
    rng = torch.Generator().manual_seed(0)
    logits, second = torch.randn(4000, generator=rng), torch.arange(4000) >= 2000
    died = torch.rand(4000, generator=rng) < torch.where(second, torch.tensor(0.1), torch.sigmoid(3 * logits - 2))
    p = solution.cross_fitted(logits, died, second, 1.0)
    torch.testing.assert_close(p[second], torch.sigmoid(3 * logits[second] - 2), atol=0.06, rtol=0)
    torch.testing.assert_close(p[~second], torch.full((2000,), 0.1), atol=0.06, rtol=0)


# Exercises 6 to 8

def test_health_is_read_off_a_memory(world, tmp_path):
    store = RolloutStore.create(tmp_path / "store", TAKE_COVER.env_id, 64, 1)
    collect(store, NoisePolicy("held", 120), 4, max_steps=120, rows=4)
    found = exercises.health_in_memory(world, store, encode_store(world.vision, store))
    assert set(found) == {"tic", "tic and z", "tic, z and memory"} and all(v <= 1 for v in found.values())


def test_a_linear_fit_scores_one_on_a_line():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    train = torch.arange(500) < 400
    assert exercises.r_squared(x, x @ torch.tensor([1.0, -2.0, 0.5]) + 3, train) > 0.999
    assert exercises.r_squared(x, torch.randn(500, generator=torch.Generator().manual_seed(1)), train) < 0.1


def test_fire_is_measured_for_each_temperature_and_in_the_game(world):
    starts, settings = InitialStates(torch.zeros(2, 8), torch.zeros(2, 8)), DreamSettings(max_steps=5, reward="alive", done="never")
    found = exercises.fire_by_temperature(world, starts, settings, (0.5, 1.0), range(2), every=4)
    assert [*found] == [0.5, 1.0, "game"] and all(len(v) == 2 and 0 <= min(v) and max(v) <= 1 for v in found.values())


def test_ages_are_compared_among_those_who_live():
    assert exercises.by_age([np.array([0.0, 1, 1, 1]), np.array([0.0, 2])], 2) == [0.75, 1.0]
    logits = torch.tensor([[-9.0, -9], [-9, 9], [9, -9]])
    assert doom_report.lives(logits, DreamSettings(done="threshold")).tolist() == [3, 2] and doom_report.lives(logits, DreamSettings(done="never")).tolist() == [3, 3]


def test_a_fading_dream_pays_what_drawn_deaths_pay_in_the_mean(world):
    """The same dreams, once with deaths drawn and once with none: the mean is the same, up to the floor, and there is less luck in it."""
    starts = InitialStates(torch.zeros(2, 8), torch.zeros(2, 8))
    settings, params = DreamSettings(max_steps=60, done="sample", done_weight=5.0, reward="alive"), np.stack([numbers(world), numbers(world, 1)])
    drawn = DreamFitness(world, starts, C_DOOM, settings)(params, range(3000))
    faded = exercises.FadingFitness(world, starts, C_DOOM, settings)(params, range(3000))
    error = 4 * drawn.std(1) / math.sqrt(3000)
    missing = drawn.mean(1) - faded.mean(1)  # what the last 5 % would have paid
    assert (-error < missing).all() and (missing < error + 0.05 * 60).all(), (drawn.mean(1), faded.mean(1))
    assert exercises.luck(faded) < 0.7 * exercises.luck(drawn)
    assert 2 < drawn.mean() < 50, drawn.mean()  # neither rule is idle here


def test_luck_is_what_candidate_and_seed_leave_open():
    rng = np.random.default_rng(0)
    explained = rng.normal(size=(30, 1)) * 5 + rng.normal(size=(1, 400)) * 9
    assert exercises.luck(explained) < 1e-9
    np.testing.assert_allclose(exercises.luck(explained + 2 * rng.normal(size=(30, 400))), 2, rtol=0.03)


def test_luck_is_told_for_both_rules(world):
    found = exercises.luck_by_rule(world, InitialStates(torch.zeros(2, 8), torch.zeros(2, 8)), DreamSettings(max_steps=5, reward="alive"), numbers(world), candidates=2, seeds=range(3))
    assert [*found] == ["sample", "fading"] and all({"mean", "luck", "steps"} == {*row} for row in found.values())
