"""Films: the game beside what V sees, clips side by side, and a window."""
import imageio_ffmpeg
import numpy as np
import pytest

import worldmodels.films as f
from worldmodels.controller import ControllerSettings, WorldModelPolicy, controllers_for, score
from worldmodels.envs import LocalEnv
from worldmodels.rollouts import run_episodes
from worldmodels.tools.games import CAR_RACING

C = ControllerSettings()


@pytest.fixture(scope="module")
def params(world) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(controllers_for(world, C).dimension)


def test_a_film_shows_the_game_beside_what_v_sees(world, params, tmp_path):
    total = f.film_episode(world, C, params, 3, tmp_path / "drive.mp4", max_steps=7)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "drive.mp4"))
    meta = next(reader)
    width, height = meta["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    assert len(frames) == 4 and meta["fps"] == 25 and np.isfinite(total)
    left, right = np.split(frames[0][32:].astype(int), [width // 2], axis=1)
    assert left.std() > 10 and np.abs(left[:, :400] - right[:, :400]).mean() > 10
    assert [p.name for p in tmp_path.iterdir()] == ["drive.mp4"]


def test_a_c_of_another_width_is_refused_before_anything_moves(world, tmp_path, monkeypatch):
    def never(*_, **__): raise AssertionError("an environment was made")
    monkeypatch.setattr(f, "LocalEnv", never)
    with pytest.raises(ValueError, match="has 39 parameters, got 867"):
        f.film_episode(world, C, np.zeros(867), 0, tmp_path / "drive.mp4")
    assert not list(tmp_path.iterdir())


def test_the_drawing_is_cut_where_v_stops_seeing():
    drawing = np.zeros((400, 600, 3), np.uint8)
    drawing[350:] = 255  # the instrument panel
    small = f.resize_with_caption(CAR_RACING.cut(drawing), (480, 280))
    assert small.shape == (280, 480, 3) and not small.any()
    assert f.resize_with_caption(np.zeros((64, 64, 3), np.uint8), (480, 280), "x").max() > 200


def test_one_local_environment_is_the_official_environment(world, params):
    alone = []
    for seed in (3, 4):
        car = LocalEnv("CarRacing", seed, 64, "rgb_array")
        alone.extend(run_episodes(car, WorldModelPolicy(world, controllers_for(world, C, params)), 8)[0])
        car.close()
    np.testing.assert_allclose(score(world, C, params, [3, 4], max_steps=8), alone, atol=1e-4)


# ---- watching

@pytest.fixture
def invisible(monkeypatch):
    """A window that nobody sees."""
    import pygame
    pygame.quit()
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    yield pygame
    pygame.quit()


def test_watching_goes_through_the_tracks(world, params, invisible, capsys):
    f.watch(world, C, params, [3, 4], max_steps=3)
    printed = capsys.readouterr().out
    assert "seed 3: return" in printed and "seed 4: return" in printed


@pytest.mark.parametrize("kind", ["escape", "close"])
def test_escape_and_closing_the_window_leave(world, params, invisible, monkeypatch, capsys, kind):
    pygame, steps = invisible, []
    events = {"escape": pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE),
              "close": pygame.event.Event(pygame.QUIT)}
    leave = f.leave_on_escape

    def press(*_):
        steps.append(1)
        if len(steps) == 2: pygame.event.post(events[kind])
        leave()

    monkeypatch.setattr(f, "leave_on_escape", press)
    f.watch(world, C, params, range(50), max_steps=1000)
    assert len(steps) == 2 and "seed" not in capsys.readouterr().out
    assert not pygame.display.get_init()


def test_without_a_display_there_is_nothing_to_watch(world, params, monkeypatch):
    import pygame
    pygame.quit()
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pygame.display, "get_driver", lambda: "offscreen")  # what SDL chooses then
    with pytest.raises(RuntimeError, match="no display.*--video"): f.watch(world, C, params, [3])
    pygame.quit()
