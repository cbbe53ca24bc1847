"""Games: what an entry of the registry needs, and a game of one's own through the whole pipeline."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from builders import build_world
from gymnasium.utils.env_checker import check_env

from solutions.train import run as train
from solutions.settings import Sections, TrainSettings
from worldmodels.collect import record
from worldmodels.controller import ControllerSettings, WorldModelPolicy, controllers_for
from worldmodels.scoring import score_policy
from worldmodels.dream import InitialStates
from worldmodels.dream_envs import DreamEnv, DreamVectorEnv, game_dreams
from worldmodels.envs import make_envs
from worldmodels.planning import Planner, PlanSettings
from worldmodels.player import Player
from worldmodels.rollouts import NoisePolicy
from worldmodels.tools import games
from worldmodels.tools.games import CAR_RACING, TAKE_COVER, GameSpec, find_game, load_game_file, register_game
from worldmodels.tools.settings import load
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import WorldModel

ROOT = Path(__file__).parents[1]
PENDULUM = ROOT / "solutions" / "pendulum.py"


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Games that a test enters are gone after it."""
    monkeypatch.setattr(games, "_games", dict(games._games))


@pytest.fixture
def cart(): return register_game("CartPole", "CartPole-v1", crop=(0.35, 0.85, 0.0, 1.0))


# The entry

@pytest.mark.parametrize("wrong, words", [
    (dict(low=(0.0,)), "one number for each entry"), (dict(low=(2.0, 0.0)), "below its high"),
    (dict(high=(1.0, np.inf)), "both finite"), (dict(crop=(0.5, 0.5, 0, 1)), "top < bottom"),
    (dict(crop=(0, 1.5, 0, 1)), "shares from 0 to 1"), (dict(pictures="film"), "pictures must be one of"),
    (dict(max_steps=0), "max_steps must be at least 1"), (dict(fps=0), "fps must be above 0")])
def test_an_entry_that_makes_no_sense_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        GameSpec(**{"name": "X", "env_id": "x", "low": (0.0, 0.0), "high": (1.0, 1.0)} | wrong)


def test_a_game_is_found_by_name_and_by_its_environment():
    assert find_game("carracing") is find_game("CarRacing-v3") is CAR_RACING
    assert find_game("VizdoomTakeCover-v1") is TAKE_COVER
    with pytest.raises(ValueError, match="did you mean TakeCover.*register_game"): find_game("TakeCovr")


def test_pictures_that_are_not_square_are_cut_and_averaged():
    game = GameSpec("Wide", "wide", (0.0,), (1.0,), crop=(0.5, 1.0, 0.25, 0.75))
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[50:, 50:150] = 200
    assert (game.prepare([picture], 32) == 200).all() and game.cut(picture).shape == (50, 100, 3)
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="Wide's pictures must be"): game.prepare([wrong])


def test_an_environment_tells_what_it_can(cart):
    assert cart.discrete and cart.action_dim == 2 and cart.squash == "onehot" and cart.pictures == "render"
    assert (cart.fps, cart.max_steps) == (50, 500)
    hill = register_game("Hill", "MountainCarContinuous-v0")
    assert (hill.low, hill.high, hill.squash, hill.max_steps) == ((-1.0,), (1.0,), "bounds", 999)
    assert register_game("Car", "CarRacing-v3").shape == (96, 96)


@pytest.mark.parametrize("space, words", [
    (gymnasium.spaces.MultiBinary(3), "must be a Box"), (gymnasium.spaces.Discrete(3, start=1), "numbered from 0"),
    (gymnasium.spaces.Box(-np.inf, np.inf, (2,)), "no bounds"), (gymnasium.spaces.Box(0, 1, (2, 2)), "must be a Box")])
def test_actions_of_other_kinds_are_refused(space, words):
    def make(render_mode=None):
        env = gymnasium.make("CartPole-v1", render_mode=render_mode)
        env.action_space = space
        return env
    with pytest.raises(ValueError, match=words): register_game("Odd", make=make)


def test_a_game_without_pictures_is_refused():
    class Blind(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Discrete(3), gymnasium.spaces.Discrete(2)
    with pytest.raises(ValueError, match="Blind has no pictures"): register_game("Blind", make=lambda render_mode: Blind())


def test_a_file_that_enters_no_game_is_refused(tmp_path):
    (tmp_path / "x.py").write_text("y = 1\n")
    with pytest.raises(ValueError, match="entered no game"): load_game_file(tmp_path / "x.py")
    with pytest.raises(FileNotFoundError, match="--game-file names"): load_game_file(tmp_path / "none.py")


def test_keys_of_a_person(cart):
    assert cart.steer(["right"], np.float32([1, 0])).tolist() == [0, 1]
    assert cart.steer([], np.float32([0, 1])).tolist() == [0, 1], "with nothing pressed it goes on"
    two = GameSpec("Two", "two", (-2.0, 0.5), (2.0, 1.0))
    assert two.steer(["left", "up"], np.zeros(2)).tolist() == [-2, 1] and two.steer([], np.zeros(2)).tolist() == [0, 0.5]
    assert CAR_RACING.steer(["up"], np.zeros(3)).tolist() == pytest.approx([0, 0.6, 0])


def test_settings_of_a_game_lie_below_sections_and_flags(tmp_path):
    (tmp_path / "settings.ini").write_text("[small]\ndynamics.hidden = 24\n")
    flags = ["--game", "takecover", "--settings", "small", "--controller.bias", "true"]
    s = load(TrainSettings, flags, ini=tmp_path / "settings.ini", part_of=Sections)
    assert (s.game, s.vae.latent, s.dynamics.hidden, s.dynamics.features) == ("TakeCover", 64, 24, "hc")
    assert (s.controller.bias, s.controller.squash, s.evolve.max_steps, s.evolve.patience) == (True, "tanh", 2100, 0)
    assert load(TrainSettings, []) == TrainSettings(), "CarRacing's are the defaults"


# Actions that are numbers of buttons

def test_what_is_recorded_of_discrete_actions_is_what_was_taken(cart):
    envs = make_envs(cart, [1, 2])
    episodes = record(envs, NoisePolicy("white", 9), 9)
    envs.close()
    for episode in episodes: assert set(map(tuple, episode.actions.tolist())) <= {(1.0, 0.0), (0.0, 1.0)}
    pushed = episodes[0].actions[:, 1].mean()
    assert 0 < pushed < 1, "both actions are drawn"


def test_a_dream_of_discrete_actions_takes_numbers(cart):
    world = build_world(cart, reward=True, done=True)
    starts = InitialStates(torch.zeros(1, 4), torch.zeros(1, 4))
    env = DreamEnv(world=world, starts=starts, max_steps=5, done="never")
    check_env(env, skip_render_check=True)
    many = DreamVectorEnv(2, world=world, starts=starts, max_steps=5, done="never")
    a, _ = env.reset(seed=3)
    b, _ = many.reset(seed=[3, 4])
    np.testing.assert_allclose(a, b[0], atol=1e-6)
    np.testing.assert_allclose(env.step(1)[0], many.step(np.array([1, 0]))[0][0], atol=1e-6)
    for wrong in (2, -1, 0.5):
        with pytest.raises(ValueError, match="whole numbers|are 0 to 1"): env.step(wrong)


def test_everybody_plays_discrete_actions(cart):
    world = build_world(cart, reward=True, done=True)
    settings = ControllerSettings(squash=cart.squash)
    dimension = controllers_for(world, settings).dimension
    driver = WorldModelPolicy(world, controllers_for(world, settings, np.ones(dimension)), action_noise=0.5)
    planner = Planner(world, PlanSettings(horizon=4, hold=2, candidates=4, elites=2, rounds=1))
    for policy in (driver, planner):
        assert score_policy(policy, [1, 2], "fast", 6, game=cart).tolist() == [6, 6]
    player = Player(world, starts=InitialStates(torch.zeros(1, 4), torch.zeros(1, 4)), done="never")
    facts, _ = player.advance(["right"], 1.0)
    facts, png = player.advance(["right"], 1.0)
    assert facts["step"] == 1 and png[:4] == b"\x89PNG" and player.action.tolist() == [0, 1]


def test_bounds_are_those_of_the_game():
    game = GameSpec("Two", "two", (-2.0, 0.0), (2.0, 0.5))
    world = build_world(game, reward=True, done=True)
    for squash in ("bounds", "clip"):
        c = controllers_for(world, ControllerSettings(squash=squash, memory=False), 100 * np.ones(10))
        assert c.act(torch.ones(1, 4), torch.zeros(1, dtype=int)).tolist() == [[2, 0.5]]
        with pytest.raises(ValueError, match="needs the bounds"):
            controllers_for(WorldModel(world.vision, world.dynamics), ControllerSettings(squash=squash))


# The whole pipeline

def test_a_file_of_twenty_lines_goes_through_the_commands(tmp_path):
    run = tmp_path / "run"
    small = ["--vae_fit.steps", "4", "--dynamics_fit.steps", "4", "--vae.latent", "8", "--dynamics.latent", "8",
             "--dynamics.hidden", "16"]
    flags = ["--settings", "ci", "--game-file", str(PENDULUM), "--game", "pendulum", "--run", str(run), *small]

    def command(*words) -> str:
        done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=300,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert len(PENDULUM.read_text().splitlines()) <= 20
    command("solutions.train", *flags)
    report = json.loads((run / "report.json").read_text())
    assert report["environment"] == "Pendulum-v1" and len(report["gymnasium"]["returns"]) == 2
    assert (run / "drive.mp4").stat().st_size > 1000 and RolloutStore(run / "store").env_id == "Pendulum-v1"
    assert "goes on" not in command("solutions.train", *flags)  # nothing is made again
    command("solutions.evaluate", "--game-file", str(PENDULUM), "--run", str(run), "--dream", "--evaluate.episodes", "2",
            "--dreaming.done", "never", "--dreaming.max_steps", "20")
    command("solutions.evaluate", "--game-file", str(PENDULUM), "--run", str(run), "--policy", "plan",
            "--evaluate.episodes", "1", "--evaluate.max_steps", "8", "--plan.horizon", "8", "--plan.candidates", "8")
    assert len(json.loads((run / "plan.json").read_text())["returns"]) == 1
    load_game_file(PENDULUM)
    world = WorldModel.load(run)
    assert world.game.name == "Pendulum" and DreamEnv(world=str(run), done="never").action_space.high == 2
    dreams = [*flags[:-len(small) - 1], str(tmp_path / "dream"), *small, "--dynamics.done", "true"]
    command("solutions.dream", *dreams)
    assert json.loads((tmp_path / "dream" / "rounds.json").read_text())["environment"] == "Pendulum-v1"


def test_a_discrete_game_goes_through_the_pipeline_from_python(tmp_path, cart):
    s = load(TrainSettings, ["--settings", "ci", "--game", "cartpole", "--vae_fit.steps", "4", "--dynamics_fit.steps", "4",
                             "--dynamics.reward", "true", "--scout.generations", "0"], part_of=Sections)
    run = train(s, tmp_path / "run")
    world = WorldModel.load(run)
    assert world.game is cart and json.loads((run / "report.json").read_text())["environment"] == "CartPole-v1"
    assert train(s, run) == run, "the same settings go on"
    with pytest.raises(ValueError, match="made with other settings"): train(replace(s, seed=1), run)
    assert game_dreams(cart).max_steps == 500
