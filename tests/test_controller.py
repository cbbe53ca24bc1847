"""C: its parameters, a population at once, evolution that goes on to the last bit, memories, films."""
import math
from dataclasses import replace

import cma
import imageio_ffmpeg
import numpy as np
import pytest
import torch

import worldmodels.controller as c
from worldmodels.controller import Controllers, ControllerSettings, EvolveSettings, RealFitness, WorldModelPolicy, evolve
from worldmodels.mdn_rnn import MDNRNN, MDNRNNSettings
from worldmodels.rollouts import HELD_OUT, TRAINING, VALIDATION, Envs, run_episodes
from worldmodels.tools.training import read_lines
from worldmodels.tools.world import WorldModel, save_tensors
from worldmodels.vae import VAE, Latents, VAESettings, encode_frames


@pytest.fixture(scope="module")
def world() -> WorldModel:
    """An untrained V and M, small."""
    torch.manual_seed(0)
    return WorldModel(VAE(VAESettings(latent=4)).eval(), MDNRNN(MDNRNNSettings(latent=4, hidden=8)).eval())


def numbers(world: WorldModel, count: int = 1, settings: ControllerSettings = ControllerSettings(), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, c.controllers_for(world, settings).dimension))


# ---- the controllers

@pytest.mark.parametrize("settings, inputs, outputs, count", [
    (ControllerSettings(), 288, 3, 867), (ControllerSettings(bias=False), 288, 3, 864),
    (ControllerSettings(memory=False), 32, 3, 99), (ControllerSettings(memory=False, hidden=40), 32, 3, 1443),
    (ControllerSettings(bias=False), 1088, 1, 1088)])
def test_parameters_are_as_many_as_the_papers(settings, inputs, outputs, count):
    assert Controllers(settings, inputs, outputs).dimension == count


def test_what_c_sees_depends_on_the_world(world):
    assert c.controllers_for(world, ControllerSettings()).inputs == 12
    assert c.controllers_for(world, ControllerSettings(memory=False)).inputs == 4


@pytest.mark.parametrize("settings", [ControllerSettings(), ControllerSettings(hidden=7), ControllerSettings(hidden=7, bias=False)])
def test_each_row_goes_through_its_own_network(settings):
    params = torch.randn(3, Controllers(settings, 5, 2).dimension, dtype=torch.float64).numpy()
    x, owner = torch.randn(6, 5), torch.tensor([2, 0, 1, 1, 2, 0])
    got = Controllers(settings, 5, 2, params)(x, owner)
    widths = [5, 7, 2] if settings.hidden else [5, 2]
    for row, o, y in zip(x, owner, got):
        layers = [torch.nn.Linear(i, n, bias=settings.bias) for i, n in zip(widths, widths[1:])]
        torch.nn.utils.vector_to_parameters(torch.tensor(params[o], dtype=torch.float32), [p for l in layers for p in l.parameters()])
        for k, layer in enumerate(layers): row = layer(row.tanh() if k else row)
        torch.testing.assert_close(y, row)


def test_the_car_stands_on_no_brake_before_anything_is_learnt():
    assert c.squash_car(torch.zeros(3)).tolist() == [0.0, 0.5, 0.0]


def test_a_controller_is_saved_and_loaded(tmp_path):
    params = np.random.default_rng(0).standard_normal(867)
    c.save_controller(tmp_path / "c.safetensors", ControllerSettings(hidden=3, squash="tanh"), params, score=900)
    settings, loaded = c.load_controller(tmp_path / "c.safetensors")
    assert settings == ControllerSettings(hidden=3, squash="tanh")
    np.testing.assert_array_equal(loaded, params)


def test_a_controller_stored_before_squashing_was_a_setting_is_a_cars(tmp_path):
    save_tensors(tmp_path / "c.safetensors", {"params": torch.zeros(867)}, {"settings": {"hidden": 0, "bias": True, "memory": True}})
    assert c.load_controller(tmp_path / "c.safetensors")[0] == ControllerSettings(squash="car")


def test_what_is_no_controller_is_refused(world, tmp_path):
    with pytest.raises(FileNotFoundError, match="solutions.controller"): c.load_controller(tmp_path / "controller.safetensors")
    world.save(tmp_path)
    with pytest.raises(ValueError, match="holds no controller"): c.load_controller(tmp_path / "vision.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "dynamics.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match="not a whole safetensors file"): c.load_controller(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("change", [dict(hidden=-1), dict(squash="sigmoid")])
def test_impossible_controllers_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))): ControllerSettings(**change)


@pytest.mark.parametrize("change", [dict(population=1), dict(episodes=0), dict(generations=0), dict(sigma=0), dict(decay=-1),
                                    dict(validate_every=0), dict(validate_episodes=0), dict(max_steps=0), dict(patience=-1)])
def test_impossible_searches_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))): EvolveSettings(**change)


# ---- driving

class Slides(Envs):
    """Frames drawn from the row's seed; row k ends after 3 + 2k steps."""

    def _reset(self):
        self.t = np.zeros(len(self), int)
        return self.frames(range(len(self)))

    def frames(self, rows):
        return np.stack([np.random.default_rng([self.seeds[r], self.t[r]]).integers(0, 256, (64, 64, 3), dtype=np.uint8) for r in rows])

    def _step(self, actions, rows):
        self.t[rows] += 1
        ended = self.t[rows] >= 3 + 2 * rows
        return self.frames(rows), np.ones(len(rows), np.float32), ended, np.zeros(len(rows), bool)


def drive_one(world, settings, params, seed, row):
    """The actions of one car, written the long way."""
    controllers, envs = c.controllers_for(world, settings, params), Slides("CarRacing-v3", [seed] * (row + 1), 64)
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


@pytest.mark.parametrize("settings", [ControllerSettings(), ControllerSettings(memory=False, hidden=6), ControllerSettings(squash="tanh")])
@torch.inference_mode()
def test_many_cars_drive_as_each_would_alone(world, settings):
    params, seen = numbers(world, 2, settings), {row: [] for row in range(6)}
    policy = WorldModelPolicy(world, c.controllers_for(world, settings, params))

    def keep(rows, frames, actions, *_):
        for row, action in zip(rows, actions): seen[row].append(torch.from_numpy(action.copy()))

    _, lengths = run_episodes(Slides("CarRacing-v3", [5, 6, 7] * 2, 64), policy, 100, on_step=keep)
    assert lengths.tolist() == [3, 5, 7, 9, 11, 13]
    for row in seen:  # rows leave one after the other, so the memory is packed on the way
        alone = drive_one(world, settings, params[row // 3], [5, 6, 7][row % 3], row)
        torch.testing.assert_close(torch.stack(seen[row]), alone, atol=5e-3, rtol=0)


def test_rows_that_cannot_be_shared_evenly_are_refused(world):
    policy = WorldModelPolicy(world, c.controllers_for(world, ControllerSettings(), numbers(world, 2)))
    with pytest.raises(ValueError, match="3 rows cannot be shared evenly by 2"): policy.start(Slides("CarRacing-v3", [1, 2, 3], 64))


def test_swerving_is_smooth_and_belongs_to_the_seed(world):
    def drive(seeds):
        seen = []
        policy = WorldModelPolicy(world, c.controllers_for(world, ControllerSettings(), 0 * numbers(world)), action_noise=0.5)
        run_episodes(Slides("CarRacing-v3", seeds, 64), policy, 3, on_step=lambda rows, frames, actions, *_: seen.append(actions))
        return np.stack(seen)
    both, one = drive([11, 12]), drive([12])
    np.testing.assert_array_equal(both[:, 1], one[:, 0])
    assert (both[:, 0] != both[:, 1]).any()


def test_returns_of_a_population_are_those_of_its_candidates(world):
    params, fitness = numbers(world, 2), RealFitness(world, ControllerSettings(), max_steps=15)
    both = fitness(params, [3, 4])
    assert both.shape == (2, 2) and fitness.steps == 60
    np.testing.assert_allclose(both, np.concatenate([fitness(p[None], [3, 4]) for p in params]), atol=0.3)
    np.testing.assert_array_equal(both, fitness(params, [3, 4]))


def test_wrong_widths_and_backends_are_refused_before_anything_moves(world, tmp_path, monkeypatch):
    def never(*_, **__): raise AssertionError("an environment was made")
    for name in ("make_envs", "OneCar"): monkeypatch.setattr(c, name, never)
    with pytest.raises(ValueError, match="has 39 parameters, got 867"): RealFitness(world, ControllerSettings())(np.zeros((1, 867)), [0])
    with pytest.raises(ValueError, match="has 39 parameters, got 867"):
        c.film(world, ControllerSettings(), np.zeros(867), 0, tmp_path / "drive.mp4")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no-such"): c.score(world, ControllerSettings(), numbers(world)[0], [0], "no-such")
    assert not list(tmp_path.iterdir())


# ---- evolution

SHORT = EvolveSettings(population=6, episodes=3, generations=6, validate_every=2, validate_episodes=4)


class Bowl:
    """Best where all parameters are 1; noise depends on the tracks. Remembers what it was asked, and may be killed."""

    def __init__(self, killed_at: int = 10**9): self.asked, self.killed_at = [], killed_at

    def __call__(self, params, seeds):
        if len(self.asked) >= self.killed_at: raise KeyboardInterrupt
        self.asked.append((params.copy(), list(seeds)))
        noise = np.random.default_rng(list(seeds)).normal(size=(len(params), len(seeds)))
        return 10 - ((params - 1)**2).sum(1, keepdims=True) + noise


@pytest.mark.parametrize("half_a_line", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_a_killed_search_ends_with_the_same_bits(tmp_path, diagonal, half_a_line):
    settings, start = replace(SHORT, diagonal=diagonal), np.zeros(40)
    whole, records = evolve(Bowl(), start, settings, seed=3)
    with pytest.raises(KeyboardInterrupt): evolve(Bowl(killed_at=4), start, settings, tmp_path, seed=3)  # 3 generations, 1 test
    path = tmp_path / "evolution.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    if half_a_line: path.write_text("".join(lines[:2]) + lines[2][:len(lines[2]) // 2])
    np.random.seed(7)  # whatever else draws numbers must not matter
    fitness = Bowl()
    resumed, again = evolve(fitness, start, settings, tmp_path, seed=3)
    assert resumed.tobytes() == whole.tobytes()
    strip = lambda records: [{k: v for k, v in r.items() if k != "seconds"} for r in records]
    assert strip(again) == strip(records) == strip(read_lines(path))
    driven = [seeds for _, seeds in fitness.asked if len(seeds) == settings.episodes]
    assert len(driven) == (4 if half_a_line else 3), "generations that were there have been driven again"


def test_a_finished_search_is_not_driven_again(tmp_path):
    mean, _ = evolve(Bowl(), np.zeros(5), SHORT, tmp_path)
    fitness = Bowl()
    assert evolve(fitness, np.zeros(5), SHORT, tmp_path)[0].tobytes() == mean.tobytes() and not fitness.asked


def test_the_result_is_the_mean_and_it_improves():
    fitness = Bowl()
    mean, records = evolve(fitness, np.zeros(5), replace(SHORT, generations=60, sigma=0.3))
    assert np.abs(mean - 1).max() < 0.5
    assert not any((candidates == mean).all(1).any() for candidates, seeds in fitness.asked if len(candidates) > 1)
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
    assert tests == [list(VALIDATION[:4])] * 3 and not set(TRAINING) & set(HELD_OUT) and not set(VALIDATION) & set(HELD_OUT)


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
    broken = lambda params, seeds: np.where(np.arange(len(params))[:, None] == 4, math.nan, np.zeros((1, len(seeds))))
    with pytest.raises(FloatingPointError, match="generation 2 .* candidate 4"): evolve(broken, np.zeros(5), SHORT, tmp_path)
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


# ---- scores

def test_a_summary_holds_the_mean_and_its_interval():
    s = c.summary(np.array([900.0] * 90 + [300.0] * 10))
    assert s["mean"] == 840 and s["sd"] == 180 and s["low"] < 840 < s["high"] and s["episodes"] == 100
    assert c.summary(np.array([900.0] * 90 + [300.0] * 10)) == s
    with pytest.raises(ValueError, match="no episode"): c.summary(np.array([]))


# ---- moving C

def some_latents(lengths: list[int], latent: int = 4, seed: int = 1) -> Latents:
    frames = [n + 1 for n in lengths]
    total, first = sum(frames), np.cumsum([0, *frames])[:-1]
    torch.manual_seed(seed)
    return Latents(mu=torch.randn(total, latent), logvar=torch.zeros(total, latent), actions=torch.randn(total, 3),
                   rewards=torch.zeros(total), terminated=torch.zeros(total, dtype=bool), first=torch.tensor(first),
                   lengths=torch.tensor(lengths))


@torch.inference_mode()
def one_at_a_time(world: WorldModel, latents: Latents) -> torch.Tensor:
    seen = []
    for i in range(len(latents)):
        z, a, state = latents.mu[latents.episode(i)], latents.actions[latents.episode(i)], world.dynamics.initial(1)
        for t in range(len(z)):
            seen.append(torch.cat([z[t:t + 1], world.dynamics.features(state)], 1))
            _, state = world.dynamics.step(z[t:t + 1], a[t:t + 1], state)
    return torch.cat(seen)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_memories_of_many_episodes_are_those_of_each(world, rows):
    latents = some_latents([5, 12, 1, 12, 7])
    torch.testing.assert_close(c.controller_inputs(world, latents, rows), one_at_a_time(world, latents), atol=1e-6, rtol=0)


def test_a_c_moved_to_its_own_world_stays_what_it_is(world):
    latents, params = some_latents([400, 300]), 0.3 * numbers(world)[0]
    seen = c.controller_inputs(world, latents)
    decide = lambda p: c.controllers_for(world, ControllerSettings(), p)(seen, torch.zeros(len(seen), dtype=int))
    moved = c.fit_linear_controller(seen, decide(params))
    assert moved.shape == params.shape
    assert (decide(moved) - decide(params)).abs().mean() < 0.05


def test_a_c_carried_over_decides_on_another_m_as_it_did(world):
    """Another M's memory means other things by its numbers: the same C decides quite differently there, the one carried over does not."""
    torch.manual_seed(5)
    new = WorldModel(world.vision, MDNRNN(MDNRNNSettings(latent=4, hidden=32)).eval())
    old = WorldModel(world.vision, MDNRNN(MDNRNNSettings(latent=4, hidden=32)).eval())
    driven, later = some_latents([400, 300]), some_latents([200], seed=2)
    params = 0.3 * numbers(old)[0]
    params[:-3].reshape(3, 36)[:, :4] = 0  # z means the same to both: look at the memory alone
    decide = lambda where, p: c.controllers_for(where, ControllerSettings(), p)(c.controller_inputs(where, later), torch.zeros(len(later.mu), dtype=int))
    error = lambda p: ((decide(new, p) - decide(old, params)).pow(2).mean() / decide(old, params).var(0).mean()).item()
    assert error(params) > 1 and error(c.carry_over(old, ControllerSettings(), params, new, driven, driven)) < 0.15
    with pytest.raises(ValueError, match="only a linear C with a bias"): c.carry_over(old, ControllerSettings(bias=False), params[:-3], new, driven, driven)
    with pytest.raises(ValueError, match="one and the same driving"): c.carry_over(old, ControllerSettings(), params, new, driven, later)


def test_a_c_carried_over_reads_each_world_in_its_own_latents(world):
    """A V that turns z round, and an M that reads it so: the C carried over is the old one, its weights for z turned round."""
    driven = some_latents([400, 300])
    turned = WorldModel(world.vision, MDNRNN(MDNRNNSettings(latent=4, hidden=8)).eval())
    turned.dynamics.load_state_dict(world.dynamics.state_dict())
    with torch.no_grad(): turned.dynamics.lstm.weight_ih_l0[:, :4] = world.dynamics.lstm.weight_ih_l0[:, :4].flip(1)
    params = 0.1 * numbers(world)[0]
    moved = c.carry_over(world, ControllerSettings(), params, turned, driven, replace(driven, mu=driven.mu.flip(1)))
    weight = lambda p: p[:-3].reshape(3, 12)
    np.testing.assert_allclose(weight(moved)[:, :4], weight(params)[:, :4][:, ::-1], atol=0.02)


def test_imitation_of_many_frames_is_summed_in_pieces():
    torch.manual_seed(0)
    seen, wanted = torch.randn(120_000, 5), torch.randn(120_000, 2)
    x = torch.cat([seen, torch.ones(len(seen), 1)], 1).double()
    weight = torch.linalg.solve(x.T @ x + 1e-3 * len(x) * torch.eye(6), x.T @ wanted.clamp(-2, 2).double()).T
    np.testing.assert_allclose(c.fit_linear_controller(seen, wanted), torch.cat([weight[:, :-1].flatten(), weight[:, -1]]).numpy(), atol=1e-6)


# ---- watching

def test_a_film_shows_the_game_beside_what_v_sees(world, tmp_path):
    total = c.film(world, ControllerSettings(), numbers(world)[0], 3, tmp_path / "drive.mp4", max_steps=7)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "drive.mp4"))
    meta = next(reader)
    frames = [np.frombuffer(f, np.uint8).reshape(meta["size"][1], meta["size"][0], 3) for f in reader]
    assert len(frames) == 4 and meta["fps"] == 25 and np.isfinite(total)
    left, right = np.split(frames[0][32:].astype(int), [frames[0].shape[1] // 2], axis=1)
    assert left.std() > 10 and np.abs(left[:, :400] - right[:, :400]).mean() > 10
    assert [p.name for p in tmp_path.iterdir()] == ["drive.mp4"]


def test_the_picture_is_cut_where_v_stops_seeing():
    drawing = np.zeros((400, 600, 3), np.uint8)
    drawing[350:] = 255  # the instrument panel
    assert c.picture(drawing, 480).shape == (280, 480, 3) and not c.picture(drawing, 480).any()
    assert c.picture(np.zeros((64, 64, 3), np.uint8), 480, "x").max() > 200


@pytest.fixture
def invisible(monkeypatch):
    """A window that nobody sees."""
    import pygame
    pygame.quit()
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    yield pygame
    pygame.quit()


def test_the_official_score_is_what_one_car_alone_gets(world):
    params, alone = numbers(world)[0], []
    for seed in (3, 4):
        car = c.OneCar(seed, 64, "rgb_array")
        alone.extend(run_episodes(car, WorldModelPolicy(world, c.controllers_for(world, ControllerSettings(), params)), 8)[0])
        car.close()
    np.testing.assert_allclose(c.score(world, ControllerSettings(), params, [3, 4], max_steps=8), alone, atol=1e-4)


def test_watching_goes_through_the_tracks(world, invisible, capsys):
    c.watch(world, ControllerSettings(), numbers(world)[0], [3, 4], max_steps=3)
    assert "track 3: return" in (out := capsys.readouterr().out) and "track 4: return" in out


@pytest.mark.parametrize("kind", ["escape", "close"])
def test_escape_and_closing_the_window_leave(world, invisible, monkeypatch, capsys, kind):
    pygame, steps = invisible, []

    def press(*_):
        steps.append(1)
        if len(steps) == 2:
            event = pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE) if kind == "escape" else pygame.event.Event(pygame.QUIT)
            pygame.event.post(event)
        leave()

    leave = c.leave_on_escape
    monkeypatch.setattr(c, "leave_on_escape", press)
    c.watch(world, ControllerSettings(), numbers(world)[0], range(50), max_steps=1000)
    assert len(steps) == 2 and "track" not in capsys.readouterr().out
    assert not pygame.display.get_init()


def test_without_a_display_there_is_nothing_to_watch(world, monkeypatch):
    import pygame
    pygame.quit()
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pygame.display, "get_driver", lambda: "offscreen")  # what SDL chooses then
    with pytest.raises(RuntimeError, match="no display.*--video"): c.watch(world, ControllerSettings(), numbers(world)[0], [3])
    pygame.quit()


# ---- variants, and drivers without a world model

def test_clipping_is_no_tanh():
    raw = torch.tensor([[0.5, 0.5, 0.5], [-3.0, -3.0, -3.0], [3.0, 3.0, 3.0]])
    assert c.SQUASHES["clip"](raw).tolist() == [[0.5, 0.5, 0.5], [-1, 0, 0], [1, 1, 1]]


def test_any_policy_is_scored_on_its_tracks_in_order():
    from worldmodels.rollouts import RoadFollower, make_envs
    together = c.score_policy(RoadFollower(), [3, 4, 5], "fast", 30, rows=2)
    alone = [run_episodes(make_envs(seeds=[seed]), RoadFollower(), 30)[0][0] for seed in (3, 4, 5)]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_generation_notes_the_steps_it_drove(world, tmp_path):
    fitness = c.RealFitness(world, ControllerSettings(), max_steps=4, patience=0)
    _, records = c.evolve(fitness, np.zeros(fitness.dimension), EvolveSettings(population=3, episodes=2, generations=2, validate_every=2, validate_episodes=1), tmp_path)
    assert [r["steps"] for r in records] == [24, 24] and fitness.steps == 48 + 4
