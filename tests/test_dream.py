"""The dream and what stands on it: random numbers, starts, the core, environments, leak, planning, player."""
import math
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import cv2
import gymnasium
import imageio.v3
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from worldmodels import dream_envs
from worldmodels.carry_over import controller_inputs
from worldmodels.controller import (ControllerSettings, EvolveSettings, WorldModelPolicy, controllers_for,
                                    evolve)
from worldmodels.controller_files import save_controller
from worldmodels.dream import Dream, DreamFitness, DreamSettings, InitialStates
from worldmodels.dream_envs import DreamEnv, DreamVectorEnv, initial_states_from_picture
from worldmodels.latents import apply_action_repeat, concat_latents, smooth_rewards
from worldmodels.leak import (at_temperatures, divergence_step, draw_leak, film_dream, leak,
                              predicted_rewards, rank_correlation, rank_interval)
from worldmodels.dynamics_settings import MDNRNNSettings
from worldmodels.mdn_rnn import MDNRNN, held_out_nll, train_dynamics
from worldmodels.planning import Planner, PlanSettings
from worldmodels.player import STEER, Player, steer_car
from worldmodels.envs import Envs, make_envs
from worldmodels.rollouts import run_episodes
from worldmodels.tools.games import TAKE_COVER, GameSpec
from worldmodels.tools.rng import GOLDEN, CounterRNG, splitmix64
from worldmodels.tools.store import Episode, RolloutStore
from worldmodels.tools.training import FitSettings
from worldmodels.tools.world import WorldModel, data
from worldmodels.dynamics_settings import TraDESettings, TransformerSettings
from worldmodels.transformer import TraDE, TransformerMDN
from worldmodels.tools.encoding import Latents
from worldmodels.vae import VAE, VAESettings

ROOT = Path(__file__).parents[1]
GAMES = {3: "CarRacing", 1: "TakeCover"}
CAR, DOOM = "worldmodels/CarRacingDream-v0", "worldmodels/TakeCoverDream-v0"


def make_world(action_dim=3, seed=0, **settings) -> WorldModel:
    torch.manual_seed(seed)
    heads = {"reward": True, "done": True}
    m = MDNRNN(MDNRNNSettings(latent=4, action_dim=action_dim, hidden=8, **heads | settings))
    with torch.no_grad():
        for p in m.parameters(): p.mul_(2)  # so that memory, actions and luck matter
        m.lstm.bias_hh_l0.zero_()
    return WorldModel(VAE(VAESettings(latent=4)).eval(), m.eval(), GAMES.get(action_dim))


@pytest.fixture(scope="module")
def world() -> WorldModel: return make_world()


@pytest.fixture(scope="module")
def starts() -> InitialStates:
    rng = torch.Generator().manual_seed(0)
    return InitialStates(torch.randn(5, 4, generator=rng), torch.randn(5, 4, generator=rng) - 2)


def make_latents(lengths=(30, 4, 50)) -> Latents:
    rng, n = torch.Generator().manual_seed(1), sum(lengths) + len(lengths)
    first = torch.tensor([0, *(torch.tensor(lengths) + 1).cumsum(0)[:-1]])
    return Latents(mu=torch.randn(n, 4, generator=rng), logvar=torch.full((n, 4), -20.0),
                   actions=torch.randn(n, 3, generator=rng), rewards=torch.randn(n, generator=rng),
                   terminated=torch.zeros(n, dtype=torch.bool), first=first, lengths=torch.tensor(lengths))


NEVER = DreamSettings(done="never", max_steps=40)


# ---- chance

def test_scramble_is_splitmix64():
    """Against the published reference: the first outputs of SplitMix64 with seed 0 and 1234567."""
    published = {0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F],
                 1234567: [6457827717110365317, 3203168211198807973]}
    for seed, expected in published.items():
        got = splitmix64(torch.tensor(seed) + GOLDEN * torch.arange(1, len(expected) + 1))
        assert [int(x) % 2**64 for x in got] == expected


def test_noise_is_uniform_and_normal():
    noise = CounterRNG(range(1000))
    u, x = noise.uniform((1000, 200)).double(), noise.normal((1000, 200)).double()
    assert 0 < u.min() < 1e-4 and 1 - 1e-4 < u.max() < 1
    counts = torch.histc(u.float(), 50, 0, 1)
    assert ((counts - 4000)**2 / 4000).sum() < 100  # chi square with 49 degrees of freedom
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01 and abs((x**4).mean() - 3) < 0.1
    assert torch.corrcoef(x[:40]).fill_diagonal_(0).abs().max() < 0.35
    assert torch.corrcoef(x.T[:40]).fill_diagonal_(0).abs().max() < 0.17


def test_each_row_has_chance_of_its_own():
    alone, many = CounterRNG([7]), CounterRNG([3, 7, 7, 9])
    for shape in ((5,), (2, 3), (), (4,)):
        mine, all_ = alone.uniform((1, *shape)), many.uniform((4, *shape))
        assert torch.equal(all_[1:2], mine)
        assert torch.equal(all_[2:3], mine)
        assert not torch.equal(all_[0:1], mine)
    kept = many.take(torch.tensor([3, 1]))
    assert torch.equal(kept.normal((2, 6))[1:], alone.normal((1, 6)))


def test_rows_that_were_alike_part_when_one_begins_anew():
    noise = CounterRNG([7, 7]).replaced([1], CounterRNG([8]))
    x = noise.uniform((2, 3))
    assert torch.equal(x[:1], CounterRNG([7]).uniform((1, 3)))
    assert torch.equal(x[1:], CounterRNG([8]).uniform((1, 3)))


# ---- starts

def test_starts_are_real_first_frames(world):
    latents = make_latents()
    starts = InitialStates.from_latents(latents)
    z = starts.draw(50, CounterRNG(range(50)))
    assert all((z_ - latents.mu[latents.first]).abs().max(1).values.min() < 1e-3 for z_ in z)
    assert len({int((z_ - latents.mu[latents.first]).abs().max(1).values.argmin()) for z_ in z}) == 3


def test_starts_are_drawn_with_vs_own_noise():
    starts = InitialStates(torch.zeros(1, 2), torch.tensor([[0.0, math.log(0.25)]]))
    z = starts.draw(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.std(0), torch.tensor([1.0, 0.5]), atol=0.02, rtol=0)


@pytest.mark.parametrize("restart", [False, True])
@torch.inference_mode()
def test_m_has_seen_the_frames_before_a_start_and_none_of_another_episode(restart):
    world, latents, context = make_world(restart=restart), make_latents(), 6
    starts = InitialStates.from_latents(latents, context=context, first_frame_fraction=0.0)
    assert len(starts) == 30 + 4 + 50
    z, state = starts.begin(world.dynamics, 400, CounterRNG(range(400)))
    seen = set()
    for row in range(400):
        at = int((latents.mu - z[row]).abs().max(1).values.argmin())
        episode = int((latents.first <= at).sum()) - 1
        begin, expected = max(int(latents.first[episode]), at - context), world.dynamics.initial(1)
        for t in range(begin, at):
            _, expected = world.dynamics.step(latents.mu[t:t + 1], latents.actions[t:t + 1], expected)
        torch.testing.assert_close(state.h[row:row + 1], expected.h, atol=1e-3, rtol=0)
        seen.add(at)
    assert len(seen) > 60 and set(latents.first.tolist()) & seen


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.8])
def test_a_share_of_the_dreams_begins_at_first_frames(share):
    latents = make_latents()
    starts = InitialStates.from_latents(latents, context=5, first_frame_fraction=share)
    first = torch.isin(starts.at, latents.first).float().mean()
    assert abs(first - (share + (1 - share) * 3 / 84)) < 0.02
    assert torch.equal(starts.first[starts.at == starts.first], starts.at[starts.at == starts.first])
    with pytest.raises(ValueError, match="first_frame_fraction must be"):
        InitialStates.from_latents(latents, context=5, first_frame_fraction=1.0)


def test_a_picture_is_a_start(world, tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "frame.png"), frame[..., ::-1])
    starts = initial_states_from_picture(world, tmp_path / "frame.png")
    mu, _ = world.vision.encode(torch.from_numpy(frame[None]))
    torch.testing.assert_close(starts.mu, mu.detach(), atol=0.05, rtol=0.05)
    car = np.concatenate([np.full((84, 96, 3), 90, np.uint8), np.full((12, 96, 3), 255, np.uint8)])
    cv2.imwrite(str(tmp_path / "car.png"), car)
    grey, _ = world.vision.encode(torch.full((1, 64, 64, 3), 90, dtype=torch.uint8))
    starts = initial_states_from_picture(world, tmp_path / "car.png")
    torch.testing.assert_close(starts.mu, grey.detach(), atol=0.05, rtol=0.05)


def test_what_is_no_picture_is_refused(world, tmp_path):
    with pytest.raises(FileNotFoundError, match="no picture at"):
        initial_states_from_picture(world, tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match="is no picture"):
        initial_states_from_picture(world, tmp_path / "text.png")


@pytest.mark.parametrize("mu, logvar", [((0, 4), (0, 4)), ((3, 4), (3, 5)), ((4,), (4,))])
def test_impossible_starts_are_refused(mu, logvar):
    with pytest.raises(ValueError, match="n of at least 1"):
        InitialStates(torch.zeros(mu), torch.zeros(logvar))


# ---- the core

@torch.inference_mode()
def test_a_dream_is_ms_own_sample_fed_back(world, starts):
    dream = Dream(world, starts, NEVER)
    actions = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    dream.begin([4, 5])
    noise = CounterRNG([4, 5])
    z, state = starts.begin(world.dynamics, 2, noise)
    assert torch.equal(dream.z, z) and not dream.features().any()
    for a in actions:
        said, state = world.dynamics.step(z, a, state)
        z = said.sample(1.0, noise)
        got, reward, done = dream.step(a)
        assert torch.equal(got, z) and torch.equal(reward, said.reward) and not done.any()
        assert torch.equal(dream.features(), state.h)


def test_a_hotter_dream_moves_more(world, starts):
    def spread(t):
        dream = Dream(world, starts, replace(NEVER, temperature=t))
        dream.begin(range(500))
        before = dream.z
        return (dream.step(torch.zeros(500, 3))[0] - before).std()
    assert spread(0.1) < spread(1.0) < spread(3.0)


def test_it_ends_by_threshold_or_by_chance(world, starts):
    m = make_world()
    with torch.no_grad():
        m.dynamics.done.weight.zero_()
        m.dynamics.done.bias.fill_(math.log(10 * 0.2 / 0.8))  # trained with weight 10: a probability of 0.2
    def share(**settings):
        dream = Dream(m, starts, DreamSettings(**settings))
        dream.begin(range(4000))
        return dream.step(torch.zeros(4000, 3))[2].float().mean()
    assert share(done="threshold") == 1 and share(done="never") == 0
    assert abs(share(done="sample") - 0.2) < 0.02
    assert abs(share(done="sample", done_weight=1.0) - 0.714) < 0.02


def test_being_alive_pays_one(world, starts):
    dream = Dream(make_world(reward=False), starts, DreamSettings(reward="alive"))
    dream.begin([0, 1])
    assert dream.step(torch.zeros(2, 3))[1].tolist() == [1, 1]


@pytest.mark.parametrize("lacks, settings, words", [
    ("reward", {}, ["no reward head", "--dynamics.reward true", "reward='alive'"]),
    ("done", {}, ["no done head", "done='never'"])])
def test_an_m_without_the_head_is_refused(starts, lacks, settings, words):
    with pytest.raises(ValueError) as refusal:
        Dream(make_world(**{lacks: False}), starts, DreamSettings(**settings))
    assert all(word in str(refusal.value) for word in words)


@pytest.mark.parametrize("change", [dict(temperature=0.0), dict(temperature=-1.0), dict(temperature=math.nan),
                                    dict(max_steps=0), dict(done_weight=0.0),
                                    dict(done="maybe"), dict(reward="score")])
def test_impossible_dreams_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))): DreamSettings(**change)


def test_starts_of_another_width_are_refused(world):
    with pytest.raises(ValueError, match="starts have a latent of 3, MDNRNN one of 4"):
        Dream(world, InitialStates(torch.zeros(1, 3), torch.zeros(1, 3)), NEVER)


@pytest.mark.parametrize("actions, words", [
    (torch.zeros(2, 2), r"actions of shape \(2, 3\), got \(2, 2\)"), (torch.zeros(3), "shape"),
    (torch.full((2, 3), math.nan), "finite, got nan"), (torch.full((2, 3), math.inf), "finite, got inf")])
def test_actions_that_are_none_are_refused(world, starts, actions, words):
    dream = Dream(world, starts, NEVER)
    dream.begin([0, 1])
    before = dream.z
    with pytest.raises(ValueError, match=words): dream.step(actions)
    assert dream.z is before


def test_rows_may_be_dropped_and_begin_anew_without_the_others_noticing(world, starts):
    def dreamt(rows, drop_at=None, restart_at=None):
        dream, out = Dream(world, starts, NEVER), []
        dream.begin([10 + r for r in rows])
        for t in range(12):
            if t == drop_at: dream.take(torch.tensor([2, 0]))
            if t == restart_at: dream.restart([1], [99])
            out.append(dream.step(torch.full((len(dream), 3), 0.1))[0])
        return out
    whole, dropped, again = dreamt(range(4)), dreamt(range(4), drop_at=5), dreamt(range(4), restart_at=5)
    near = dict(atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.stack(dropped[5:]), torch.stack(whole[5:])[:, [2, 0]], **near)
    torch.testing.assert_close(torch.stack(again)[:, [0, 2, 3]], torch.stack(whole)[:, [0, 2, 3]], **near)
    fresh = Dream(world, starts, NEVER)
    fresh.begin([99])
    for t in range(7):
        torch.testing.assert_close(again[5 + t][1:2], fresh.step(torch.full((1, 3), 0.1))[0], **near)


# ---- a population

def params_of(world, count, settings=ControllerSettings(), seed=0):
    return np.random.default_rng(seed).standard_normal((count, controllers_for(world, settings).dimension))


@pytest.mark.parametrize("kind", [ControllerSettings(), ControllerSettings(memory=False, hidden=3),
                                  ControllerSettings(squash="tanh", bias=False)])
def test_a_population_dreams_as_each_would_alone(world, starts, kind):
    settings = replace(NEVER, done="sample", done_weight=0.5, max_steps=30)  # many an early end
    fitness, params = DreamFitness(world, starts, kind, settings), params_of(world, 3, kind)
    together = fitness(params, [5, 6, 7, 8])
    assert together.shape == (3, 4) and together.dtype == np.float64 and fitness.steps < 3 * 4 * 30
    for p in range(3):
        for e, seed in enumerate([5, 6, 7, 8]):
            alone = fitness(params[p:p + 1], [seed])[0, 0]
            np.testing.assert_allclose(alone, together[p, e], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cls, kind", [(TransformerMDN, TransformerSettings), (TraDE, TraDESettings)])
def test_a_transformer_dreams_too(cls, kind):
    torch.manual_seed(0)
    m = cls(kind(latent=4, width=16, depth=1, heads=2, context=5, reward=True, done=True)).eval()
    world = WorldModel(VAE(VAESettings(latent=4)).eval(), m)
    latents = make_latents()
    starts = InitialStates.from_latents(latents, context=3)
    settings = DreamSettings(done="sample", done_weight=0.5, max_steps=12)  # beyond the ring of 5
    fitness = DreamFitness(world, starts, ControllerSettings(), settings)
    params = params_of(world, 2)
    together = fitness(params, [5, 6, 7])
    assert np.isfinite(together).all() and len(set(together.flatten().round(6))) > 3
    for p in range(2):
        for e, seed in enumerate([5, 6, 7]):
            alone = fitness(params[p:p + 1], [seed])[0, 0]
            np.testing.assert_allclose(alone, together[p, e], rtol=1e-3, atol=1e-3)


def test_the_same_candidate_has_the_same_luck(world, starts):
    fitness, params = DreamFitness(world, starts, ControllerSettings(), NEVER), params_of(world, 2)
    twice = fitness(params[[0, 1, 0]], [1, 2])
    np.testing.assert_allclose(twice[0], twice[2], rtol=1e-4)
    assert (np.abs(twice[0] - twice[1]) > 1e-3).all() and abs(twice[0, 0] - twice[0, 1]) > 1e-3


def test_evolution_takes_it_where_it_took_the_real_one(world, starts, tmp_path):
    fitness = DreamFitness(world, starts, ControllerSettings(), replace(NEVER, max_steps=15))
    settings = EvolveSettings(population=8, episodes=4, generations=12, validate_every=4,
                              validate_episodes=16, sigma=0.5)
    found, records = evolve(fitness, np.zeros(fitness.dimension), settings, tmp_path)
    assert len(records) == 12
    zeros = fitness(np.zeros((1, fitness.dimension)), range(100_000, 100_016)).mean()
    assert records[-1]["validation"] > float(zeros)


def test_a_controller_of_another_width_is_refused(world, starts):
    with pytest.raises(ValueError, match="has 39 parameters, got 867"):
        DreamFitness(world, starts, ControllerSettings(), NEVER)(np.zeros((1, 867)), [0])


def test_a_controller_that_gives_no_number_is_refused(world, starts):
    with pytest.raises(ValueError, match="finite"):
        DreamFitness(world, starts, ControllerSettings(), NEVER)(np.full((1, 39), np.nan), [0])


# ---- environments

def test_importing_the_package_registers_the_dreams_and_brings_nothing_along():
    code = ("import sys, gymnasium, worldmodels; "
            f"assert {{'{CAR}', '{DOOM}'}} <= set(gymnasium.registry); "
            "assert not {'torch', 'Box2D', 'vizdoom', 'worldmodels.dream', 'worldmodels.dream_envs'} "
            "& set(sys.modules), sys.modules.keys()")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("observe", ["latent", "frame"])
@pytest.mark.parametrize("id, action_dim", [(CAR, 3), (DOOM, 1)])
@pytest.mark.filterwarnings("ignore")
def test_gymnasiums_checker_finds_nothing(starts, id, action_dim, observe):
    world = make_world(action_dim)
    env = gymnasium.make(id, world=world, starts=starts, observe=observe, render_mode="rgb_array")
    check_env(env.unwrapped)
    assert env.observation_space.shape == ((64, 64, 3) if observe == "frame" else (12,))
    assert env.action_space.shape == (action_dim,)
    env.reset(seed=0)
    assert env.render().shape == (64, 64, 3) and env.render().dtype == np.uint8


def test_the_frame_is_what_v_makes_of_the_latent(world, starts):
    env = gymnasium.make(CAR, world=world, starts=starts, observe="frame", render_mode="rgb_array")
    seen, _ = env.reset(seed=1)
    np.testing.assert_array_equal(seen, env.render())
    with torch.inference_mode(): drawn = world.vision.decode(env.unwrapped.dream.z).numpy()[0]
    assert np.abs(seen / 255 - drawn).max() < 0.03


def test_a_dream_is_cut_after_max_steps_and_must_then_be_reset(world, starts):
    env = DreamEnv(world=world, starts=starts, done="never", max_steps=3)
    with pytest.raises(gymnasium.error.ResetNeeded): env.step(np.zeros(3))
    env.reset(seed=0)
    ends = [env.step(np.zeros(3, np.float32))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    with pytest.raises(gymnasium.error.ResetNeeded): env.step(np.zeros(3))


def singles(world, starts, seeds, actions, **settings):
    """What DreamEnvs with these seeds say, each reset where it ends, as a vector environment should."""
    rows = []
    for r, seed in enumerate(seeds):
        env, out = DreamEnv(world=world, starts=starts, **settings), []
        seen = [env.reset(seed=seed)[0]]
        for t in range(len(actions)):
            obs, reward, terminated, truncated, info = env.step(actions[t, r])
            final = obs if terminated or truncated else None
            if final is not None: obs, _ = env.reset()
            out.append((reward, terminated, truncated, info["done_probability"], final))
            seen.append(obs)
        rows.append((np.stack(seen), out))
    return rows


@pytest.mark.parametrize("n", [1, 8])
def test_a_vector_is_so_many_seeded_singles(starts, n):
    world, rng = make_world(), np.random.default_rng(0)
    with torch.no_grad(): world.dynamics.done.bias.fill_(0.5)
    settings = dict(done="sample", max_steps=9)
    actions = rng.uniform(0, 1, (40, n, 3)).astype(np.float32)
    vector, ended = DreamVectorEnv(n, world=world, starts=starts, **settings), 0
    seen = [vector.reset(seed=3)[0]]
    expected = singles(world, starts, range(3, 3 + n), actions, **settings)
    for t in range(40):
        obs, reward, terminated, truncated, info = vector.step(actions[t])
        seen.append(obs)
        for r in range(n):
            e_reward, e_terminated, e_truncated, e_probability, final = expected[r][1][t]
            assert abs(reward[r] - e_reward) < 1e-3
            assert terminated[r] == e_terminated
            assert truncated[r] == e_truncated
            assert abs(info["done_probability"][r] - e_probability) < 1e-3
            if final is not None:
                assert info["_final_obs"][r]
                np.testing.assert_allclose(info["final_obs"][r], final, atol=1e-3)
                ended += 1
            elif "final_obs" in info: assert not info["_final_obs"][r] and info["final_obs"][r] is None
    np.testing.assert_allclose(np.stack(seen), np.stack([row[0] for row in expected], 1), atol=1e-3)
    assert ended > 2 * n and vector.metadata["autoreset_mode"].name == "SAME_STEP"


def test_a_vector_is_made_by_name_and_takes_seeds_for_each_row(world, starts):
    vector = gymnasium.make_vec(CAR, num_envs=3, world=world, starts=starts)
    assert isinstance(vector, DreamVectorEnv)
    assert vector.observation_space.shape == (3, 12)
    assert vector.action_space.shape == (3, 3)
    one, _ = vector.reset(seed=[5, 6, 7])
    two, _ = vector.reset(seed=5)
    np.testing.assert_array_equal(one, two)
    on, _ = vector.reset()
    assert (np.abs(on - two) > 1e-3).any(1).all()
    with pytest.raises(ValueError, match="3 dreams need 3 seeds, got 2"): vector.reset(seed=[1, 2])
    with pytest.raises(gymnasium.error.ResetNeeded):
        DreamVectorEnv(2, world=world, starts=starts).step(np.zeros((2, 3)))


@pytest.mark.parametrize("action, words", [(np.zeros(2), "shape"), (np.zeros((1, 3)), "shape"),
                                           (np.array([0, np.nan, 0]), "finite, got nan")])
def test_an_environment_refuses_what_is_no_action(world, starts, action, words):
    env, vector = DreamEnv(world=world, starts=starts), DreamVectorEnv(2, world=world, starts=starts)
    env.reset(seed=0), vector.reset(seed=0)
    with pytest.raises(ValueError, match=words): env.step(action)
    with pytest.raises(ValueError, match=words): vector.step(np.stack([action, action]))


def test_actions_beyond_the_bounds_are_clipped(world, starts):
    a, b = DreamEnv(world=world, starts=starts), DreamEnv(world=world, starts=starts)
    a.reset(seed=0), b.reset(seed=0)
    beyond = a.step(np.array([-9.0, 9.0, -1.0]))[0]
    np.testing.assert_array_equal(beyond, b.step(np.array([-1.0, 1.0, 0.0]))[0])


@pytest.mark.parametrize("change, error, words", [
    (dict(temperature=0), ValueError, "temperature must be above 0"),
    (dict(temprature=1.0), ValueError, "did you mean temperature"),
    (dict(observe="pixels"), ValueError, "latent or frame"),
    (dict(game="Pong"), ValueError, "CarRacing, TakeCover"),
    (dict(starts=None), ValueError, "does not say where to begin"),
    (dict(game="TakeCover"), ValueError, "1 numbers in an action"),
    (dict(starts="nothing.png"), FileNotFoundError, "no picture at nothing.png"),
    (dict(world="runs/nothing"), FileNotFoundError, "solutions.vae")])
def test_what_makes_no_dream_is_refused(world, starts, change, error, words):
    with pytest.raises(error, match=words): DreamEnv(**dict(world=world, starts=starts) | change)


def test_dreams_that_end_one_at_a_time_begin_at_first_frames(world):
    with pytest.raises(ValueError, match="InitialStates without a context"):
        DreamVectorEnv(2, world=world, starts=InitialStates.from_latents(make_latents(), context=5))


def test_a_run_folder_is_a_world(world, starts, tmp_path):
    world.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="no first frames to dream from"): DreamEnv(world=tmp_path)
    make_latents().save(tmp_path / "latents.safetensors")
    env = gymnasium.make(CAR, world=str(tmp_path), max_steps=5)
    seen, _ = env.reset(seed=2)
    assert min(np.abs(make_latents().mu[make_latents().first].numpy() - seen[:4]).max(1)) < 1e-3
    (tmp_path / "dynamics.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no dynamics.safetensors; `python -m solutions.mdn_rnn`"):
        gymnasium.make(CAR, world=str(tmp_path))


def test_missing_pretrained_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(dream_envs, "data", lambda name: tmp_path)
    with pytest.raises(FileNotFoundError, match="vision.safetensors"): DreamEnv(world="pretrained")


@pytest.mark.filterwarnings("ignore")
def test_a_ppo_agent_trains_in_it(world, starts):
    sb3, ppo = pytest.importorskip("stable_baselines3"), pytest.importorskip("worldmodels.ppo")
    dreams = DreamVectorEnv(4, world=world, starts=starts, done="sample", max_steps=20)
    envs = ppo.as_sb3_vec_env(dreams)
    agent = sb3.PPO("MlpPolicy", envs, n_steps=32, batch_size=64, n_epochs=2, seed=0, device="cpu")
    before = [p.clone() for p in agent.policy.parameters()]
    agent.learn(384)
    assert any((a != b).any() for a, b in zip(before, agent.policy.parameters()))
    assert len(agent.ep_info_buffer)


# ---- rewards, leak, divergence_step

def test_smoothing_leaves_returns_and_other_episodes_alone():
    latents = make_latents()
    smoothed = smooth_rewards(latents, radius=3, worst=-100.0)
    for i in range(3):
        s = latents.episode(i)
        steps = slice(s.start, s.stop - 1)
        now, before = smoothed.rewards[steps].sum(), latents.rewards[steps].sum()
        torch.testing.assert_close(now, before, atol=1e-4, rtol=1e-4)
        assert smoothed.rewards[s.stop - 1] == latents.rewards[s.stop - 1]
    latents.rewards[5] = -100.0
    assert smooth_rewards(latents, radius=0).rewards[5] == -10 and latents.rewards[5] == -100


def test_joined_latents_are_those_of_both():
    a, b = make_latents(), make_latents((7, 9))
    both = concat_latents(a, b)
    assert len(both) == 5 and len(both.mu) == len(a.mu) + len(b.mu)
    for i in range(5):
        part, k = (a, i) if i < 3 else (b, i - 3)
        for name in ("mu", "logvar", "actions", "rewards", "terminated"):
            assert torch.equal(getattr(both, name)[both.episode(i)], getattr(part, name)[part.episode(k)])


def test_what_m_foretells_is_summed_in_windows(world):
    expected, real = predicted_rewards(world.dynamics, latents := make_latents(), window=10)
    assert expected.shape == real.shape == (3 + 0 + 5,)
    np.testing.assert_allclose(real[0], latents.rewards[:10].sum(), rtol=1e-4)
    with torch.no_grad(): said = world.dynamics(latents.mu[None, :30], latents.actions[None, :30]).reward[0]
    np.testing.assert_allclose(expected[2], said[20:30].sum().item(), rtol=1e-4)
    with pytest.raises(ValueError, match="no episode has 60 steps"):
        predicted_rewards(world.dynamics, latents, window=60)


def test_the_leak_meter_tells_a_dream_that_holds_from_one_that_leaks(world, starts):
    params = params_of(world, 5)
    dreamt = DreamFitness(world, starts, ControllerSettings(), NEVER)(params, range(100_000, 100_032)).mean(1)
    honest, leaking = dreamt[:, None] + np.zeros(4), -dreamt[:, None] + np.zeros(4)
    found = leak(world, starts, ControllerSettings(), params, honest, NEVER, (0.5, 1.0), 32)
    assert found["dream"][0.5].shape == found["real"].shape == (5,)
    assert rank_correlation(found["dream"][1.0], found["real"]) == pytest.approx(1)
    leaks = leak(world, starts, ControllerSettings(), params, leaking, NEVER, (0.5, 1.0), 32)
    assert rank_correlation(leaks["dream"][1.0], leaks["real"]) == pytest.approx(-1)
    drawn = draw_leak({"holds": found, "leaks": leaks}).axes
    assert len(drawn) == 4 and "ρ = 1.00" in drawn[1].get_title() and "ρ = -1.00" in drawn[3].get_title()


@pytest.mark.parametrize("ties", [False, True])
def test_the_rank_correlation_is_scipys(ties):
    stats, rng = pytest.importorskip("scipy.stats"), np.random.default_rng(0)
    for n in (3, 10, 100):
        x, y = rng.normal(size=(2, n))
        if ties: x, y = x.round(), (x + y).round()
        np.testing.assert_allclose(rank_correlation(x, y), stats.spearmanr(x, y).statistic, atol=1e-12)


def test_the_interval_of_a_rank_correlation_is_narrow_where_the_order_is_clear():
    x, rng = np.arange(60.0), np.random.default_rng(0)
    low, high = rank_interval(x, x + rng.normal(0, 3, 60))
    assert 0.9 < low < rank_correlation(x, x + rng.normal(0, 3, 60)) <= high <= 1
    low, high = rank_interval(x, rng.normal(size=60))
    assert low < 0 < high and high - low > 0.3
    assert np.isnan(rank_interval(np.ones(5), np.arange(5))).all()


# ---- steps of several frames

def test_coarser_steps_keep_returns_ends_and_every_fourth_latent():
    fine = make_latents()
    for i in range(len(fine)):  # no step leaves an episode's last frame
        for name in ("actions", "rewards", "terminated"): getattr(fine, name)[fine.episode(i).stop - 1] = 0
    coarse = apply_action_repeat(fine, 4)
    same = apply_action_repeat(fine, 1)
    assert all(np.array_equal(getattr(same, name), of) for name, of in vars(fine).items())
    assert coarse.repeat == 4
    assert coarse.lengths.tolist() == [-(-n // 4) for n in fine.lengths.tolist()]
    for i in range(len(fine)):
        f, c, n = fine.episode(i), coarse.episode(i), int(fine.lengths[i])
        torch.testing.assert_close(coarse.mu[c], fine.mu[f][[*range(0, n, 4), n]])
        torch.testing.assert_close(coarse.rewards[c].sum(), fine.rewards[f][:-1].sum())
        torch.testing.assert_close(coarse.actions[c][0], fine.actions[f][:4].mean(0))
        assert coarse.terminated[c].any() == fine.terminated[f].any() and not coarse.terminated[c][-1]
    twice = apply_action_repeat(apply_action_repeat(fine, 2), 4)  # the same, but for means of means at an end
    assert twice.repeat == 4 and twice.lengths.equal(coarse.lengths) and twice.mu.equal(coarse.mu)
    torch.testing.assert_close(twice.rewards, coarse.rewards)
    for repeat in 0, 3:
        with pytest.raises(ValueError, match=f"steps of 2 frames cannot make up steps of {repeat}"):
            apply_action_repeat(apply_action_repeat(fine, 2), repeat)
    with pytest.raises(ValueError, match="steps of 1 frames and of 4 do not go together"):
        concat_latents(fine, coarse)


def slow_world() -> WorldModel:
    torch.manual_seed(0)
    m = MDNRNN(MDNRNNSettings(latent=4, hidden=8, reward=True, action_repeat=4))
    return WorldModel(VAE(VAESettings(latent=4)).eval(), m.eval(), "CarRacing")


def test_m_learns_only_from_steps_of_its_own_length(tmp_path):
    fine = make_latents((80, 80))
    remedy = r"apply_action_repeat\(latents, 4\)"
    with pytest.raises(ValueError, match=f"spans 1 frames and one of this MDNRNN 4: {remedy}"):
        train_dynamics(slow_world().dynamics, fine, [0], 8, FitSettings(steps=1))
    def inputs(m): return controller_inputs(WorldModel(slow_world().vision, m), fine)

    for read in (lambda m: held_out_nll(m, fine, [0]), inputs, lambda m: predicted_rewards(m, fine)):
        with pytest.raises(ValueError, match=remedy): read(slow_world().dynamics)
    with pytest.raises(ValueError, match="encode the episodes anew"):
        held_out_nll(make_world().dynamics, apply_action_repeat(fine, 4), [0])
    coarse = apply_action_repeat(fine, 4)
    coarse.save(tmp_path / "latents.safetensors")
    assert (again := Latents.load(tmp_path / "latents.safetensors")).repeat == 4
    train_dynamics(slow_world().dynamics, again, [0], 8, FitSettings(steps=1, batch=2))


def test_c_and_the_planner_decide_once_in_a_step_of_m_and_hold():
    world = slow_world()
    c = controllers_for(world, ControllerSettings(), 0.5 * np.random.default_rng(0).standard_normal((2, 39)))
    planner = Planner(world, PlanSettings(horizon=8, hold=4, candidates=4, elites=2, rounds=1))
    for policy in (WorldModelPolicy(world, c, action_noise=0.5), planner):
        taken, envs = [], make_envs(seeds=[100_000, 100_001], size=64)
        try:
            keep = lambda rows, frames, actions, *_: taken.append(np.array(actions))
            run_episodes(envs, policy, 10, on_step=keep)
        finally: envs.close()
        taken = np.stack(taken)
        assert all((taken[t] == taken[t - t % 4]).all() for t in range(10)) and (taken[3] != taken[4]).any()
    assert policy.acted == 20 and policy.dreamt == 3 * 2 * 4 * 2  # three decisions of two cars
    with pytest.raises(ValueError, match="multiple of the 4 frames"):
        Planner(world, PlanSettings(horizon=12, hold=6))


def test_a_dream_of_longer_steps_is_shown_as_fast_as_the_game(tmp_path):
    world = slow_world()
    env = DreamEnv("CarRacing", world, InitialStates(torch.zeros(1, 4), torch.zeros(1, 4)), done="never")
    assert env.metadata["render_fps"] == 12.5 and env.dream.settings.max_steps == 250
    sample = RolloutStore(data("carracing") / "sample")
    episode = max(sample.episodes(), key=len)
    apart = film_dream(world, episode, tmp_path / "dream.mp4", steps=80)
    assert len(imageio.v3.imread(tmp_path / "dream.mp4")) == 20 and (apart is None or apart % 4 == 0)


def test_a_dream_parts_where_it_is_no_nearer_than_any_other_frame():
    rng = torch.Generator().manual_seed(0)
    mu, logvar = torch.randn(200, 8, generator=rng).cumsum(0), torch.zeros(200, 8)
    follows = mu + 0.5 * torch.randn(200, 8, generator=rng)
    assert divergence_step(follows, mu, logvar) is None
    leaves = torch.where(torch.arange(200)[:, None] < 90, follows, mu[0] - 40)
    assert 65 <= divergence_step(leaves, mu, logvar) <= 90


def make_episode(steps=120, seed=0) -> Episode:
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 256, (steps // 10 + 1, 64, 64, 3), dtype=np.uint8), 10, 0)[:steps + 1]
    nothing = np.zeros(steps, bool)
    actions = rng.uniform(0, 1, (steps, 3)).astype(np.float32)
    return Episode(frames, actions, np.zeros(steps, np.float32), nothing, nothing)


def test_a_film_of_a_dream_is_written(world, tmp_path):
    apart = film_dream(world, make_episode(), tmp_path / "dream.mp4", context=10, steps=60)
    assert (tmp_path / "dream.mp4").stat().st_size > 1000 and (apart is None or 0 <= apart < 60)
    with pytest.raises(ValueError, match="too short"):
        film_dream(world, make_episode(40), tmp_path / "no.mp4", context=10)
    assert not (tmp_path / "no.mp4").exists()


def test_dreams_at_several_temperatures_begin_alike(world, starts):
    clips = at_temperatures(world, starts, torch.zeros(5, 3), (0.1, 1.0))
    assert set(clips) == {"τ = 0.1", "τ = 1.0"} and clips["τ = 0.1"].shape == (6, 64, 64, 3)
    np.testing.assert_array_equal(clips["τ = 0.1"][0], clips["τ = 1.0"][0])


# ---- planning

class Steered(WorldModel):
    """A world whose reward is highest where the actions are 0.5, −0.2 and 0.3, whatever was before."""

    def __init__(self):
        plain = make_world()
        class M(MDNRNN):
            def step(self, z, a, state, restart=None):
                said, state = super().step(z, a, state, restart)
                pays = -(a - torch.tensor([0.5, -0.2, 0.3])).pow(2).sum(-1)
                said.__dict__["reward"] = pays  # a cached property: taken as computed
                return said, state
        m = M(plain.dynamics.settings).eval()
        m.load_state_dict(plain.dynamics.state_dict())
        super().__init__(plain.vision, m)


STILL = GameSpec("Still", "still", low=(-1.0,) * 3, high=(1.0,) * 3)


class Still(Envs):
    """Grey frames; row k ends after 4 + k steps; remembers what was done."""

    def __init__(self, n):
        super().__init__(STILL, list(range(n)), 64)
        self.done = []

    def _frames(self, rows): return np.full((len(rows), 64, 64, 3), 100, np.uint8)
    def _reset(self):
        self.t = np.zeros(len(self), int)
        return self._frames(range(len(self)))
    def _step(self, actions, rows):
        self.t[rows] += 1
        self.done.append(dict(zip(rows.tolist(), actions)))
        ones, never = np.ones(len(rows), np.float32), np.zeros(len(rows), bool)
        return self._frames(rows), ones, self.t[rows] >= 4 + rows, never


def test_planning_finds_what_pays():
    planner = Planner(Steered(), PlanSettings(horizon=6, hold=2, candidates=200, elites=20, rounds=6))
    envs = Still(3)
    returns, lengths = run_episodes(envs, planner, 20)
    assert lengths.tolist() == [4, 5, 6] and planner.acted == 15
    for step in envs.done:
        for action in step.values(): np.testing.assert_allclose(action, [0.5, -0.2, 0.3], atol=0.1)
    assert planner.dreamt == (3 + 3 + 2) * 200 * 6 * 6  # new plans at steps 0, 2 and 4
    np.testing.assert_array_equal(envs.done[0][1], envs.done[1][1])  # an action is held


@pytest.mark.parametrize("change", [dict(horizon=0), dict(hold=5), dict(elites=65), dict(elites=0),
                                    dict(rounds=0), dict(temperature=0.0)])
def test_impossible_plans_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))): PlanSettings(**change)


def test_planning_needs_a_reward_head():
    with pytest.raises(ValueError, match="no reward head"): Planner(make_world(reward=False))



# ---- the player, without a browser

def test_the_wheel_turns_gradually_and_gas_at_once():
    action = np.zeros(3, np.float32)
    for _ in range(3): action = steer_car(["left", "up"], action)
    np.testing.assert_allclose(action, [-3 * STEER, 0.6, 0], atol=1e-6)
    for _ in range(50): action = steer_car(["left", "down"], action)
    np.testing.assert_allclose(action, [-1, 0, 0.8], atol=1e-6)
    for _ in range(50): action = steer_car([], action)
    np.testing.assert_allclose(action, [0, 0, 0], atol=1e-6)
    assert TAKE_COVER.steer(["right"], np.zeros(1, np.float32)).tolist() == [1.0]


def test_a_player_dreams_and_c_may_take_over(world, starts, tmp_path):
    controller = (ControllerSettings(), params_of(world, 1)[0])
    player = Player(world, starts=starts, done="never", max_steps=6, controller=controller)
    assert player.has_controller and player.fps == 50
    facts, png = player.advance([], 1.0)
    assert facts["step"] == 0 and png[:4] == b"\x89PNG"
    facts, after = player.advance(["up"], 0.5)
    assert facts["step"] == 1
    assert after != png
    assert player.dream.settings.temperature == 0.5
    assert "%" in facts["done"]
    np.testing.assert_allclose(player.action, [0, 0.6, 0], atol=1e-6)
    player.advance(["up"], 0.5, controller=True)
    assert not np.allclose(player.action, [0, 0.6, 0])
    for _ in range(4): facts, _ = player.advance([], 0.5)
    assert facts["over"] and facts["step"] == 6
    assert player.advance([], 0.5, reset=True)[0]["step"] == 0


def test_a_player_takes_the_controller_of_its_folder(world, tmp_path):
    world.save(tmp_path)
    make_latents().save(tmp_path / "latents.safetensors")
    assert not Player(tmp_path).has_controller
    save_controller(tmp_path / "controller.safetensors", ControllerSettings(), params_of(world, 1)[0])
    assert Player(tmp_path).has_controller


# ---- speed

@pytest.mark.timing
def test_a_population_dreams_much_faster_than_one_drawn_dream():
    torch.manual_seed(0)
    world = WorldModel(VAE().eval(), MDNRNN(MDNRNNSettings(reward=True)).eval(), "CarRacing")
    starts = InitialStates(torch.zeros(1, 32), torch.zeros(1, 32))
    fitness = DreamFitness(world, starts, ControllerSettings(), replace(NEVER, max_steps=60))
    env = DreamEnv(world=world, starts=starts, observe="frame", done="never")
    env.reset(seed=0)

    def rate(function, steps: int) -> float:
        times = []
        for _ in range(4):
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
        return steps / min(times)
    batch = rate(lambda: fitness(np.zeros((64, fitness.dimension)), range(16)), 1024 * 60)
    single = rate(lambda: [env.step(np.float32([0, 0.5, 0])) for _ in range(50)], 50)
    print(f"{batch:,.0f} dreamt steps a second in a batch of 1,024, "
          f"{single:,.0f} of one dream that is drawn: {batch / single:.0f} times")
    assert batch > 150 * single


def test_the_player_s_page_goes_into_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["package-data"]["worldmodels"]
    pages = [p.name for p in (ROOT / "worldmodels").iterdir() if p.suffix in (".js", ".css")]
    assert sorted(listed) == sorted(pages)
    assert "export default" in Player._esm and ".dream-player" in Player._css
