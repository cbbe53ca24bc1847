"""The fast road is the official one: the same rewards and ends to the bit, and pictures that nobody can tell apart."""
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.box2d.car_racing import CarRacing
from gymnasium.utils.env_checker import check_env

import worldmodels  # registers the environment
from worldmodels.rollouts import RoadFollower
from worldmodels.tools.encoding import encode_frames
from worldmodels.tools.fast_car import FINE, PANEL, FastCarRacing, fast_car, fill, palette_entry, reduce, stripe
from worldmodels.tools.games import CAR_RACING
from worldmodels.tools.world import Vision, data, load_model


class OneRow:
    def __len__(self): return 1


def drive(seed, steps, trained, official=None, fast=None, **options):
    """Observations of both (T + 1, 96, 96, 3), after a check that everything else is equal in every step."""
    rng, driver = np.random.default_rng(seed), RoadFollower()
    driver.start(OneRow())
    envs = [official or CarRacing(**options), fast or FastCarRacing(**options)]
    seen = [[env.reset(seed=seed)[0] for env in envs]]
    for _ in range(steps):
        if trained: action = driver.act(CAR_RACING.prepare([seen[-1][0]]), np.array([0]))[0]
        else: action = rng.uniform([-1, 0, 0], [1, 1, 0.5])
        (a, *told), (b, *told_fast) = (env.step(np.float32(action)) for env in envs)
        assert told == told_fast, "reward, terminated, truncated or info"
        seen.append([a, b])
        if told[1]: break
    return [np.stack(x) for x in zip(*seen)]


@pytest.fixture(scope="module")
def drives(): return [drive(seed, 100, trained) for seed, trained in ((3, True), (4, False), (5, True))]


def apart(official, fast): return np.abs(official.astype(int) - fast).mean((1, 2, 3))


def test_pictures_are_those_of_the_official_environment(drives):
    found = np.concatenate([apart(CAR_RACING.prepare(a), CAR_RACING.prepare(b)) for a, b in drives])
    assert found.mean() < 0.15 and found.max() < 0.4
    shifted = np.concatenate([apart(CAR_RACING.prepare(a), np.roll(CAR_RACING.prepare(b), 1, 1)) for a, b in drives])
    assert shifted.mean() > 4 * found.mean(), "one pixel off must be seen by this test"


def test_the_panel_is_that_of_the_official_environment(drives):
    found = np.concatenate([apart(a[:, PANEL:], b[:, PANEL:]) for a, b in drives])
    assert found.mean() < 1 and found.max() < 4
    assert all((b[50:, PANEL:] > 100).any((1, 2, 3)).all() for _, b in drives), "there are digits and bars"


def test_a_trained_eye_cannot_tell(drives):
    vision = load_model(data("carracing") / "vision.safetensors", Vision)
    official, fast = (encode_frames(vision, CAR_RACING.prepare(np.concatenate(x)))[0] for x in zip(*drives))
    moved = np.abs(official - fast) / official.std(0)
    assert moved.mean() < 0.1


@pytest.mark.parametrize("options", [dict(domain_randomize=True), dict(lap_complete_percent=0.5), dict(continuous=False)])
def test_the_options_of_the_official_environment_hold(options):
    if "continuous" in options:
        envs = CarRacing(**options), FastCarRacing(**options)
        for env in envs: env.reset(seed=1)
        pairs = [[env.step(k % 5) for env in envs] for k in range(60)]
        assert all(a[1:] == b[1:] for a, b in pairs)
        seen = [np.stack([pair[i][0] for pair in pairs]) for i in range(2)]
    else: seen = drive(1, 60, True, **options)
    assert apart(*seen).mean() < 0.6


def test_beyond_the_field_it_is_black():
    envs = CarRacing(), FastCarRacing()
    for env in envs:
        env.reset(seed=3)
        for body in (env.car.hull, *env.car.wheels):
            body.position = body.position[0] + 325 - env.car.hull.position[0], body.position[1]
        env.t = 1.0
    official, fast = (env.step(None)[0] for env in envs)
    assert (official[:PANEL] == 0).all(2).mean() > 0.2 and apart(official[None], fast[None])[0] < 0.6


def test_what_nobody_looks_at_is_not_drawn_and_changes_nothing():
    a, b = FastCarRacing(), FastCarRacing()
    for env in (a, b): env.reset(seed=2)
    for t in range(40):
        b.drawing = t % 4 == 3
        seen = a.step(np.float32([0.1, 0.5, 0])), b.step(np.float32([0.1, 0.5, 0]))
        assert seen[0][1:] == seen[1][1:]
        np.testing.assert_array_equal(*(x[0] for x in seen)) if b.drawing else None
    assert (seen[0][0] != a.reset(seed=5)[0]).any()


def test_people_get_the_official_pictures():
    envs = [cls(render_mode="rgb_array") for cls in (CarRacing, FastCarRacing)]
    for env in envs:
        env.reset(seed=1)
        for _ in range(30): env.step(np.float32([0.3, 0.5, 0]))
    np.testing.assert_array_equal(*(env.render() for env in envs))


def test_it_is_a_gymnasium_environment():
    env = gymnasium.make("worldmodels/CarRacing-v3", render_mode="rgb_array")
    with warnings.catch_warnings(action="ignore"): check_env(env.unwrapped, skip_close_check=True)
    assert env.spec.max_episode_steps == 1000 and env.reset(seed=0)[0].shape == (96, 96, 3)


def test_the_course_drives_it_without_a_panel_and_a_thousand_steps():
    env = fast_car()
    assert not env.reset(seed=0)[0][PANEL:].any() and env.get_wrapper_attr("_max_episode_steps") == 1000


def test_a_gymnasium_that_draws_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(FastCarRacing, "compared", False)
    monkeypatch.setattr(CarRacing, "_init_colors", lambda self: [
        setattr(self, name, np.array(c)) for name, c in (("road_color", [102] * 3), ("bg_color", [60, 90, 200]),
                                                         ("grass_color", [60, 90, 220]))])
    FastCarRacing().reset(seed=0)  # other colours are the same drawing
    monkeypatch.setattr(FastCarRacing, "compared", False)
    monkeypatch.setattr(CarRacing, "_render_road", lambda self, zoom, translation, angle: None)
    with pytest.raises(RuntimeError, match="draws CarRacing in another way.*backend official"): FastCarRacing().reset(seed=0)


def test_a_stripe_is_hidden_while_it_is_below():
    assert stripe(0.9) == (0, 0) and stripe(-0.3) == (np.cos(-0.3), 1) and stripe(3.3) == (np.cos(3.3), np.cos(4.5))


def test_a_polygon_fills_the_pixels_whose_middle_it_holds():
    """Beside the rule itself, over every pixel: a convex polygon is where all cross products have one sign."""
    rng = np.random.default_rng(0)
    middles = np.stack(np.meshgrid(np.arange(60) + 0.5, np.arange(40) + 0.5), -1)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 5))
        corners = np.stack([30 + 40 * np.cos(angles), 20 + 25 * np.sin(angles)], 1)  # some of them outside
        canvas = np.zeros((40, 60), np.uint8)
        fill(canvas, corners[:, 0].copy(), corners[:, 1].copy(), 7)
        edges = np.roll(corners, -1, 0) - corners
        away = middles[:, :, None] - corners
        cross = edges[:, 0] * away[..., 1] - edges[:, 1] * away[..., 0]
        depth = (cross / np.linalg.norm(edges, axis=1)).min(2)  # in pixels; below 0 outside
        assert (canvas[depth > 0] == 7).all() and not canvas[depth < -1].any()
    blank = np.zeros((40, 60), np.uint8)
    for far in (-500.0, 500.0): fill(blank, np.array([far, far + 9, far]), np.array([1.0, 2.0, 30.0]), 7)
    assert not blank.any()


def test_blocks_are_averaged_and_two_darker():
    canvas = np.random.default_rng(0).integers(0, 3, (8, FINE * 96), dtype=np.uint8)
    canvas[:, :40] = 2
    palette = np.array([[0, 10, 200], [255, 90, 1], [102, 204, 102]], np.int32)
    observation = np.zeros((2, 96, 3), np.uint8)
    reduce(canvas, canvas.view(np.uint32), palette, observation)
    means = palette[canvas].reshape(2, FINE, 96, FINE, 3).mean((1, 3))
    np.testing.assert_array_equal(observation, np.maximum(np.floor(means + 0.5) - 2, 0))
    assert observation[0, 0].tolist() == [100, 202, 100]


def test_a_palette_holds_each_colour_once_and_never_overflows():
    palette, known = np.zeros((256, 3), np.int32), 1
    numbers = []
    for k in range(300):
        number, known = palette_entry(palette, known, np.array([k, k, k]))
        numbers.append(number)
    assert numbers[:256] == list(range(256)) and max(numbers) == 255
    assert palette_entry(palette, 20, np.array([7, 7, 7])) == (7, 20)


def test_nothing_is_imported_before_it_is_made():
    code = "import sys, worldmodels; print(any(m in sys.modules for m in ('cv2', 'pygame', 'Box2D', 'torch', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(__file__).parents[1]).stdout.strip() == "False"
