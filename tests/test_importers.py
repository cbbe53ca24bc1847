"""Other people's files, in their programs' formats: what comes in, how it is paired, and what is refused."""
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import cv2
import gymnasium
import numpy as np
import pytest
import torch

import solutions.mdn_rnn
import solutions.vae
from solutions.baselines import read_video
from solutions.rollouts import collect, import_latents, import_main
from worldmodels.rollouts import NoisePolicy, prepare
from worldmodels.tools import importers
from worldmodels.tools.importers import ImportSettings, import_episodes, read_actions, shrink, sources
from worldmodels.tools.show import write_mp4
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import load_model
from worldmodels.tools.encoding import Latents

ROOT = Path(__file__).parents[1]


def picture(k: int, height: int = 96, width: int = 96) -> np.ndarray:
    """Frame number k: grey of that value, with a white panel below."""
    frame = np.full((height, width, 3), k, np.uint8)
    frame[height * 7 // 8:] = 255
    return frame


def frames(n: int, first: int = 0, **size) -> np.ndarray:
    return np.stack([picture(first + k, **size) for k in range(n)])


def number(frame: np.ndarray) -> int: return int(frame[0, 0, 0])


def ctallec(path: Path, steps: int = 20, planned: int = 50, **changes) -> None:
    """What data/carracing.py of ctallec/world-models saves: at t, action t and the frame that came of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = dict(observations=frames(steps, first=1), rewards=np.arange(steps) / 10,
                  actions=np.arange(planned)[:, None] * [0.01, 0, 0], terminals=np.arange(steps) == steps - 1)
    np.savez(path, **arrays | changes)


def jk2500(folder: Path, steps: int = 12, size=(400, 600), pictures: int | None = None) -> None:
    """What CarRacingImagesActions.py saves: a frame (RGBA, by matplotlib), then the action chosen on it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["Step,Action"]
    for k in range(steps if pictures is None else pictures):
        rgba = np.dstack([picture(k, *size), np.full(size, 255, np.uint8)])
        cv2.imwrite(str(folder / f"Img_step_{k}.png"), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))
    for k in range(steps): lines.append(f"{k},{np.array([k / 100, 1, 0])}")
    (folder / "actions.txt").write_text("\n".join(lines) + "\n")


def listing(path: Path) -> dict:
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


# ---- frames

def test_frames_are_cut_and_averaged_by_area_as_the_environments_are():
    raw = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    np.testing.assert_array_equal(shrink(raw, ImportSettings()), prepare(raw, 64))
    rendered = shrink(frames(1, first=9, height=400, width=600), ImportSettings())
    assert rendered.shape == (1, 64, 64, 3) and (rendered == 9).all()


def test_a_panel_may_stay_and_other_sizes_have_none():
    assert (shrink(frames(1), ImportSettings(panel="keep"))[0, -1] == 255).all()
    assert (shrink(frames(1), ImportSettings(env_id="Other-v0"))[0, -1] == 255).all()
    assert (shrink(frames(1, height=64, width=64), ImportSettings())[0, -1] == 255).all()


def test_floats_from_0_to_1_are_frames_too():
    seen = frames(2, first=30)
    as_floats = seen.astype(np.float32) / 255
    np.testing.assert_array_equal(shrink(as_floats, ImportSettings()), shrink(seen, ImportSettings()))


@pytest.mark.parametrize("wrong, words", [
    (np.zeros((2, 3, 64, 64), np.uint8), "channels come last"),
    (np.zeros((64, 64, 3), np.uint8), r"\(n, height, width, 3\)"),
    (np.zeros((2, 64, 64, 4), np.uint8), "got"), (np.zeros((2, 64, 64, 3), np.int64), "uint8"),
    (np.full((2, 64, 64, 3), 2.0), "lie in"),
    (np.full((2, 64, 64, 3), np.nan), "lie in"), (np.zeros((0, 64, 64, 3), np.uint8), "got")])
def test_what_are_no_frames_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words): shrink(wrong, ImportSettings())


# ---- npy: frames alone

def test_frames_alone_become_episodes_without_actions(tmp_path):
    for k, n in ((1, 5), (2, 7), (10, 3)):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        np.save(tmp_path / "theirs" / f"episode{k}.npy", frames(n, first=10 * k))
    store = import_episodes(tmp_path / "theirs", tmp_path / "store")
    assert len(store) == 3 and store.action_dim == 0 and store.n_frames == 15 and store.size == 64
    order = [number(episode.frames[0]) for episode in store.episodes()]
    assert order == [10, 20, 100], "in the order of the numbers in their names"
    episode = store.episode(1)
    assert episode.actions.shape == (6, 0) and len(episode.frames) == 7 and not episode.rewards.any()
    assert not episode.terminated.any() and episode.truncated.tolist() == [False] * 5 + [True]
    assert next(store.batches(4)).shape == (4, 64, 64, 3)


def test_v_learns_from_frames_alone_and_m_says_why_it_cannot(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    for k in range(3): np.save(tmp_path / "theirs" / f"{k}.npy", frames(30))
    import_episodes(tmp_path / "theirs", tmp_path / "store")
    flags = ["--settings", "ci", "--scout.generations", "0"]
    places = ["--run", str(tmp_path / "run"), "--store", str(tmp_path / "store")]
    monkeypatch.setattr(sys, "argv", ["", *flags, *places])
    solutions.vae.main()
    assert (tmp_path / "run" / "vision.safetensors").exists()
    with pytest.raises(ValueError, match="no actions: V can learn from it"): solutions.mdn_rnn.main()
    assert not (tmp_path / "run" / "latents.safetensors").exists()


# ---- npz: ctallec's rollouts

def test_ctallecs_rollouts_are_paired_as_his_own_loader_pairs_them(tmp_path):
    ctallec(tmp_path / "theirs" / "thread_0" / "rollout_0.npz")
    episode = import_episodes(tmp_path / "theirs", tmp_path / "store").episode(0)
    assert len(episode.frames) == 20 and len(episode) == 19
    for t in range(19):  # frame k was seen after action k - 1, so action k leads from frame k to frame k + 1
        k = number(episode.frames[t])
        assert number(episode.frames[t + 1]) == k + 1
        assert episode.actions[t, 0] == pytest.approx(k / 100) and episode.rewards[t] == pytest.approx(k / 10)
    assert episode.terminated.tolist() == [False] * 18 + [True] and not episode.truncated.any()


def test_files_that_saw_before_acting_stay_as_they_are(tmp_path):
    ctallec(tmp_path / "a" / "r.npz")
    episode = import_episodes(tmp_path / "a", tmp_path / "store", ImportSettings(seen="before")).episode(0)
    assert len(episode.frames) == len(episode) == 20
    assert number(episode.frames[3]) == 4 and episode.actions[3, 0] == pytest.approx(0.03)
    ctallec(tmp_path / "b" / "r.npz", observations=frames(21))
    episode = import_episodes(tmp_path / "b", tmp_path / "store2").episode(0)
    assert len(episode.frames) == 21 and len(episode) == 20
    assert number(episode.frames[3]) == 3 and episode.actions[3, 0] == pytest.approx(0.03)


@pytest.mark.parametrize("over, steps, ended", [(True, 20, (True, False)), (False, 20, (False, True)),
                                                (True, 30, (False, True))])
def test_an_end_by_the_clock_is_truncated(tmp_path, over, steps, ended):
    ctallec(tmp_path / "a" / "r.npz", steps, terminals=(np.arange(steps) == steps - 1) & over)
    episode = import_episodes(tmp_path / "a", tmp_path / "store", ImportSettings(max_steps=30)).episode(0)
    assert (bool(episode.terminated[-1]), bool(episode.truncated[-1])) == ended


@pytest.mark.parametrize("changes, words", [
    (dict(rewards=np.zeros(19)), "20 observations, 50 actions, 19 rewards, 20 terminals"),
    (dict(terminals=np.zeros(7, bool)), "7 terminals"),
    (dict(actions=np.zeros((10, 3))), "actions has 10 entries, and 20 steps"),
    (dict(actions=np.zeros(20)), "2 dimensions"),
    (dict(observations=np.zeros((20, 3, 96, 96), np.uint8)), "channels come last"),
    (dict(terminals=np.arange(20) == 4), "goes on after terminated"),
    (dict(rewards=np.full(20, np.nan)), "not finite"),
    (dict(observations=np.array([None] * 20)), "allow_pickle"),
    (dict(actions=np.array(["left"] * 20)), "must be numbers")])
def test_a_broken_rollout_is_named_and_nothing_is_left_of_it(tmp_path, changes, words):
    ctallec(tmp_path / "theirs" / "rollout_7.npz", **changes)
    with pytest.raises(ValueError, match=words) as refusal:
        import_episodes(tmp_path / "theirs", tmp_path / "store")
    assert "rollout_7.npz" in str(refusal.value) and not (tmp_path / "store").exists()


def test_a_rollout_that_lacks_an_array_says_what_it_has(tmp_path):
    np.savez(tmp_path / "r.npz", obs=np.zeros(3), actions=np.zeros((3, 3)))
    missing = "there is no observations and no rewards and no terminals; it holds obs, actions"
    with pytest.raises(ValueError, match=f"r.npz: {missing}"):
        import_episodes(tmp_path / "r.npz", tmp_path / "store")


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "flipped"])
def test_a_damaged_file_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"bad{suffix}"
    if suffix == ".npz": ctallec(path)
    else: np.save(path, frames(20))
    data = bytearray(path.read_bytes())
    if damage == "flipped": data[len(data) // 2] ^= 255
    left = {"cut": bytes(data[:len(data) // 2]), "empty": b"", "noise": b"not a file of arrays",
            "flipped": bytes(data)}
    path.write_bytes(left[damage])
    if suffix == ".npy" and damage == "flipped": return  # a .npy has no checksum: nobody can tell
    with pytest.raises(ValueError, match=f"bad{suffix}"): import_episodes(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_pickle_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self): return (Path.touch, (tmp_path / "exploded",))
    np.save(tmp_path / "bomb.npy", np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(ValueError, match="bomb.npy"):
        import_episodes(tmp_path / "bomb.npy", tmp_path / "store")
    assert not (tmp_path / "exploded").exists()


# ---- png: jk2500's folders

def test_pictures_and_actions_become_an_episode(tmp_path):
    for k in (1, 2, 10): jk2500(tmp_path / "MDN-RNN" / f"episode_{k}", steps=10 + k)
    store = import_episodes(tmp_path / "MDN-RNN", tmp_path / "store")
    assert store.lengths.tolist() == [11, 12, 20], "in the order of the numbers in their names"
    episode = store.episode(2)
    shown = [number(frame) for frame in episode.frames]
    assert shown == list(range(20)), "Img_step_9 comes before Img_step_10"
    np.testing.assert_allclose(episode.actions, np.array([[k / 100, 1, 0] for k in range(20)]), atol=1e-6)
    assert (episode.frames[5] == 5).all(), "the panel is gone, and so is the alpha"


def test_colours_stay_what_they_are(tmp_path):
    jk2500(tmp_path / "episode_1", steps=2)
    red = np.zeros((400, 600, 3), np.uint8)
    red[..., 2] = 200  # OpenCV's order
    for k in range(2): cv2.imwrite(str(tmp_path / "episode_1" / f"Img_step_{k}.png"), red)
    assert import_episodes(tmp_path, tmp_path / "store").episode(0).frames[0, 0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("text, rows", [
    ("Step,Action\n0,[0.84940237 1.         0.        ]\n1,[-1.0e+00  0.5  0. ]\n",
     [[0.84940237, 1, 0], [-1, 0.5, 0]]),
    ("0.1 0.2 0.3\n\n0.4 0.5 0.6\n", [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]),
    ("[0.1, 0.2, 0.3]\n", [[0.1, 0.2, 0.3]]), ("0.1,0.2,0.3\n", [[0.1, 0.2, 0.3]])])
def test_actions_are_read_however_they_are_written(tmp_path, text, rows):
    (tmp_path / "actions.txt").write_text(text)
    np.testing.assert_allclose(read_actions(tmp_path / "actions.txt"), rows, rtol=1e-6)


@pytest.mark.parametrize("text, words", [
    ("", "no action in it"), ("Step,Action\n", "no action in it"),
    ("0,[1 2 3]\n1,[1 2]\n", "line 2 has 2 numbers"), ("0,[1 2 3]\n1,[1 2 x]\n", "line 2 is no action"),
    ("Step,Action\n0,[]\n", "line 2")])
def test_wrong_actions_are_named_with_their_line(tmp_path, text, words):
    (tmp_path / "actions.txt").write_text(text)
    with pytest.raises(ValueError, match=f"actions.txt.*{words}"): read_actions(tmp_path / "actions.txt")


def breaking(name):
    def cut(folder): (folder / "Img_step_3.png").write_bytes((folder / "Img_step_3.png").read_bytes()[:-200])
    def noise(folder):
        data = b"\x89PNG\r\n\x1a\n" + bytes(300) + b"IEND\xaeB`\x82"
        (folder / "Img_step_3.png").write_bytes(data)
    def renamed(folder): (folder / "Img_step_3.png").write_bytes(b"BM" + bytes(200))
    def missing(folder): (folder / "Img_step_3.png").unlink()
    def actionless(folder): (folder / "actions.txt").unlink()
    def pictureless(folder): [p.unlink() for p in folder.glob("*.png")]
    return locals()[name]


@pytest.mark.parametrize("name, words", [
    ("cut", "Img_step_3.png"), ("noise", "Img_step_3.png"), ("renamed", "Img_step_3.png"),
    ("missing", r"episode_2: 11 pictures and 12 actions"),
    ("actionless", "episode_2: there is no actions.txt"),
    ("pictureless", "episode_2: there is no .png")])
def test_a_broken_folder_is_named_and_the_whole_ones_are_kept(tmp_path, name, words):
    for k in (1, 2): jk2500(tmp_path / "theirs" / f"episode_{k}")
    breaking(name)(tmp_path / "theirs" / "episode_2")
    with pytest.raises(ValueError, match=words): import_episodes(tmp_path / "theirs", tmp_path / "store")
    assert len(RolloutStore(tmp_path / "store")) == 1
    jk2500(tmp_path / "theirs" / "episode_2")
    assert len(import_episodes(tmp_path / "theirs", tmp_path / "store")) == 2, "mended, it goes on there"


# ---- Minari

def minari_episode(steps: int, ended: bool, action_dim: int):
    """What Minari records of an episode that the world ended, or the clock."""
    from minari.data_collector import EpisodeBuffer
    last = [k == steps - 1 for k in range(steps)]
    never = [False] * steps
    return EpisodeBuffer(observations=list(frames(steps + 1)), rewards=[float(k) for k in range(steps)],
                         actions=[np.float32([k / 10] + [0] * (action_dim - 1)) for k in range(steps)],
                         terminations=last if ended else never, truncations=never if ended else last)


@pytest.fixture
def write_minari(tmp_path, monkeypatch):
    """Writes a Minari data set, of 6 steps that ended and of 9 that were cut; gives its folder."""
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))

    def write(env_id: str | None = None, action_dim: int = 3) -> Path:
        name = f"{env_id or 'nobodys'}/demo-v0"
        buffers = [minari_episode(6, True, action_dim), minari_episode(9, False, action_dim)]
        box = gymnasium.spaces.Box
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no author, no algorithm
            minari.create_dataset_from_buffers(
                name, buffers, env=env_id and gymnasium.spec(env_id), jpeg_encoding=False,
                observation_space=box(0, 255, (96, 96, 3), np.uint8), action_space=box(-1, 1, (action_dim,)))
        return tmp_path / "sets" / name
    return write


@pytest.fixture
def minari_set(write_minari) -> Path: return write_minari()


def test_a_minari_data_set_keeps_everything(minari_set, tmp_path):
    store = import_episodes(minari_set, tmp_path / "store")
    first, second = store.episodes()
    assert len(first) == 6 and [number(frame) for frame in first.frames] == list(range(7))
    np.testing.assert_allclose(second.actions[:, 0], np.arange(9) / 10, rtol=1e-6)
    np.testing.assert_allclose(second.rewards, np.arange(9))
    assert first.terminated[-1] and not first.truncated[-1]
    assert second.truncated[-1] and not second.terminated[-1]
    assert len(import_episodes(minari_set, tmp_path / "store")) == 2


def test_without_minari_one_sentence_says_how_to_get_it(minari_set, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"pip install.*\[minari\]"):
        import_episodes(minari_set, tmp_path / "store")


# ---- which environment it was

def test_the_formats_of_carracings_own_code_keep_its_name(tmp_path):
    ctallec(tmp_path / "npz" / "r.npz")
    jk2500(tmp_path / "png" / "episode_1", 3)
    for kind in ("npz", "png"):
        assert import_episodes(tmp_path / kind, tmp_path / f"store {kind}").env_id == "CarRacing-v3"


def test_what_nobody_names_is_unknown_and_driving_on_in_it_is_refused(tmp_path):
    ctallec(tmp_path / "other" / "r.npz", actions=np.zeros((50, 1)))
    (tmp_path / "alone").mkdir()
    np.save(tmp_path / "alone" / "e.npy", frames(5))
    for folder in ("other", "alone"):
        store = import_episodes(tmp_path / folder, tmp_path / f"store {folder}")
        assert store.env_id == "unknown"
        with pytest.raises(ValueError, match="'unknown'"): collect(store, NoisePolicy(), 1)
    frame = RolloutStore(tmp_path / "store other").episode(0).frames[0]
    assert (frame[-1] == 255).all(), "no panel is cut off"


@pytest.mark.parametrize("env_id, action_dim, cut", [("CarRacing-v3", 3, True), ("Pendulum-v1", 1, False)])
def test_a_minari_data_set_names_its_environment(write_minari, tmp_path, env_id, action_dim, cut):
    store = import_episodes(write_minari(env_id, action_dim), tmp_path / "store")
    assert store.env_id == env_id and store.action_dim == action_dim
    assert (store.episode(0).frames[0, -1] == (0 if cut else 255)).all()


def test_a_minari_data_set_without_an_environment_is_unknown(minari_set, tmp_path):
    assert import_episodes(minari_set, tmp_path / "store").env_id == "unknown"


def test_the_users_word_counts_first(write_minari, tmp_path):
    ctallec(tmp_path / "t" / "r.npz")
    mine = ImportSettings(env_id="Mine-v0")
    store = import_episodes(tmp_path / "t", tmp_path / "store", mine)
    assert store.env_id == "Mine-v0" and (store.episode(0).frames[0, -1] == 255).all()
    assert import_episodes(write_minari("Pendulum-v1", 1), tmp_path / "store2", mine).env_id == "Mine-v0"


def test_what_nobody_names_takes_the_name_of_the_store_that_it_is_added_to(tmp_path):
    (tmp_path / "t").mkdir()
    np.save(tmp_path / "t" / "0.npy", frames(5))
    import_episodes(tmp_path / "t", tmp_path / "store", ImportSettings(env_id="CarRacing-v3"))
    np.save(tmp_path / "t" / "1.npy", frames(5))
    store = import_episodes(tmp_path / "t", tmp_path / "store")
    assert len(store) == 2 and store.env_id == "CarRacing-v3"


def test_data_of_another_environment_is_refused_and_the_remedy_named(write_minari, tmp_path):
    RolloutStore.create(tmp_path / "store", "CarRacing-v3", 64, 1)
    refusal = "Pendulum-v1.* do not fit the store: CarRacing-v3.*--env_id CarRacing-v3"
    with pytest.raises(ValueError, match=refusal):
        import_episodes(write_minari("Pendulum-v1", 1), tmp_path / "store")


# ---- ready latents

def ready(folder: Path, steps: int = 400, latent: int = 8, sigma: float = 0.25, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    mu = rng.normal(size=(steps, latent)).astype(np.float32)
    np.save(folder / "representations_mu.npy", mu)
    np.save(folder / "representations_z.npy", mu + sigma * rng.normal(size=mu.shape))
    lines = [f"{k},[{k / 1000} 1. 0.]\n" for k in range(steps)]
    (folder / "actions.txt").write_text("Step,Action\n" + "".join(lines))
    return mu


def test_ready_latents_become_what_m_learns_from(tmp_path):
    mus = [ready(tmp_path / "MDN-RNN" / f"episode_{k}", 100 * k, seed=k) for k in (1, 2, 10)]
    latents = import_latents(tmp_path / "MDN-RNN", tmp_path / "runs" / "ready.safetensors")
    assert latents.lengths.tolist() == [99, 199, 999] and latents.first.tolist() == [0, 100, 300]
    again = Latents.load(tmp_path / "runs" / "ready.safetensors")
    np.testing.assert_array_equal(again.mu[again.episode(1)], mus[1])
    np.testing.assert_allclose(again.actions[again.episode(2)][:3, 0], [0, 0.001, 0.002], atol=1e-6)
    assert torch.allclose(again.logvar[300:].mul(0.5).exp(), torch.tensor(0.25), rtol=0.1)


def test_a_saved_logvar_is_taken_as_it_is(tmp_path):
    ready(tmp_path / "episode_1", 20)
    np.save(tmp_path / "episode_1" / "representations_logvar.npy", np.full((20, 8), -3.0))
    assert (import_latents(tmp_path, tmp_path / "l.safetensors").logvar == -3).all()


@pytest.mark.parametrize("broken, words", [
    (lambda f: np.save(f / "representations_z.npy", np.zeros((5, 8))),
     r"episode_2: shapes do not fit: mu \(20, 8\), z \(5, 8\)"),
    (lambda f: np.save(f / "representations_mu.npy", np.full((20, 8), np.nan)), "episode_2.*not finite"),
    (lambda f: (f / "representations_mu.npy").unlink(), "episode_2: there is no representations_mu.npy"),
    (lambda f: (f / "representations_z.npy").unlink(), "episode_2.*representations_z.npy"),
    (lambda f: (f / "actions.txt").write_text("0,[1 2 3]"), r"actions \(1, 3\)"),
    (lambda f: ready(f, 20, latent=4), "episode_2: 4 numbers a latent")])
def test_broken_latents_are_named_and_nothing_is_written(tmp_path, broken, words):
    for k in (1, 2): ready(tmp_path / "t" / f"episode_{k}", 20)
    broken(tmp_path / "t" / "episode_2")
    with pytest.raises(ValueError, match=words): import_latents(tmp_path / "t", tmp_path / "l.safetensors")
    assert not (tmp_path / "l.safetensors").exists()


def test_m_learns_from_ready_latents_alone(tmp_path, monkeypatch):
    for k in range(3): ready(tmp_path / "t" / f"episode_{k}", 50)
    import_latents(tmp_path / "t", tmp_path / "l.safetensors")
    places = ["--run", str(tmp_path / "run"), "--latents", str(tmp_path / "l.safetensors")]
    flags = ["--settings", "ci", "--scout.generations", "0", *places]
    monkeypatch.setattr(sys, "argv", ["", *flags, "--vae.latent", "8", "--dynamics.latent", "8"])
    solutions.mdn_rnn.main()
    assert load_model(tmp_path / "run" / "dynamics.safetensors").latent == 8
    monkeypatch.setattr(sys, "argv", ["", *flags, "--fresh"])
    with pytest.raises(ValueError, match="latents of 8 numbers, and dynamics.latent is 32"):
        solutions.mdn_rnn.main()


# ---- finding, resuming, the shell

def test_what_kind_it_is_is_found_out(tmp_path):
    for name in ("thread_1/rollout_2", "thread_0/rollout_10", "thread_0/rollout_9"):
        ctallec(tmp_path / "a" / f"{name}.npz")
    names = ["/".join(name.split("/")[-2:]) for name, _ in sources(tmp_path / "a", ImportSettings())]
    assert names == ["thread_0/rollout_9.npz", "thread_0/rollout_10.npz", "thread_1/rollout_2.npz"]
    jk2500(tmp_path / "b" / "episode_1", 3)
    for folder in (tmp_path / "b", tmp_path / "b" / "episode_1"):
        assert sources(folder, ImportSettings())[0][0].startswith("png:")
    with pytest.raises(FileNotFoundError, match="none"): sources(tmp_path / "none", ImportSettings())
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match="nothing to import"): sources(tmp_path / "c", ImportSettings())
    ready(tmp_path / "d" / "episode_1", 5)
    with pytest.raises(ValueError, match="--latents imports those"): sources(tmp_path / "d", ImportSettings())


def test_a_second_run_only_adds_what_is_new(tmp_path):
    for k in range(3): ctallec(tmp_path / "t" / f"rollout_{k}.npz")
    import_episodes(tmp_path / "t", tmp_path / "store", ImportSettings(part=25))
    before = listing(tmp_path / "store")
    import_episodes(tmp_path / "t", tmp_path / "store")
    assert listing(tmp_path / "store") == before
    ctallec(tmp_path / "t" / "rollout_3.npz")
    store = import_episodes(tmp_path / "t", tmp_path / "store")
    assert len(store) == 4 and len(set(store.sources)) == 4
    assert all(source.startswith(f"npz:{(tmp_path / 't').resolve()}") for source in store.sources)
    assert {k: v for k, v in listing(tmp_path / "store").items() if k in before} == before


def test_episodes_that_do_not_fit_the_store_are_refused(tmp_path):
    ctallec(tmp_path / "t" / "a.npz")
    import_episodes(tmp_path / "t", tmp_path / "store")
    before = listing(tmp_path / "store")
    (tmp_path / "frames").mkdir()
    np.save(tmp_path / "frames" / "e.npy", frames(5))
    with pytest.raises(ValueError, match="e.npy: .* 0 numbers an action do not fit the store"):
        import_episodes(tmp_path / "frames", tmp_path / "store")
    ctallec(tmp_path / "t" / "b.npz")
    with pytest.raises(ValueError, match="b.npz: .*32 pixels"):
        import_episodes(tmp_path / "t", tmp_path / "store", ImportSettings(size=32))
    assert listing(tmp_path / "store") == before


KILLED = """
import sys, time
import worldmodels.tools.importers as importers
real = importers.read_npz
def slow(file, settings):
    time.sleep(0.3)
    return real(file, settings)
importers.read_npz = slow
from worldmodels.tools.importers import ImportSettings, import_episodes
import_episodes(sys.argv[1], sys.argv[2], ImportSettings(part=1))
"""


def test_killed_at_any_moment_it_goes_on(tmp_path):
    for k in range(12): ctallec(tmp_path / "t" / f"rollout_{k}.npz")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "t"), str(tmp_path / "store")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while len(list((tmp_path / "store").glob("*.zip"))) < 3 and time.time() < deadline: time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = len(RolloutStore(tmp_path / "store"))
    assert 3 <= there < 12
    store = import_episodes(tmp_path / "t", tmp_path / "store")
    assert len(store) == 12 and [number(ep.frames[0]) for ep in store.episodes()] == [1] * 12
    assert [int(source.split("_")[-1].split(".")[0]) for source in store.sources] == list(range(12))


def test_the_shell_imports_and_says_what_came_in(tmp_path):
    ctallec(tmp_path / "t" / "rollout_0.npz")
    importing = [sys.executable, "-m", "solutions.rollouts", "import"]
    command = [*importing, str(tmp_path / "t"), "--to", str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "1 episodes, 20 frames" in done.stdout, done.stderr
    (tmp_path / "t" / "rollout_1.npz").write_bytes(b"PK broken")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "rollout_1.npz" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(ValueError, match="needs a path"): import_main(["--to", "x"])


def test_the_disk_is_asked_before_a_part_is_written(tmp_path, monkeypatch):
    ctallec(tmp_path / "t" / "rollout_0.npz")
    def full(path, nbytes): raise OSError(28, "no room", str(path))
    monkeypatch.setattr(importers, "require_space", full)
    with pytest.raises(OSError, match="no room"): import_episodes(tmp_path / "t", tmp_path / "store")
    assert not list((tmp_path / "store").glob("*.zip"))


def test_memory_stays_at_a_few_episodes(tmp_path):
    import tracemalloc
    for k in range(12): ctallec(tmp_path / "t" / f"rollout_{k}.npz", steps=200, planned=200)
    def peak(part):
        tracemalloc.start()
        import_episodes(tmp_path / "t", tmp_path / f"store{part}", ImportSettings(part=part))
        return tracemalloc.get_traced_memory()[1], tracemalloc.stop()
    assert peak(200)[0] < 4 * 200 * 96 * 96 * 3 + 3 * 200 * 64 * 64 * 3 + 10e6


# ---- exercise 8

def test_a_video_becomes_an_episode_for_v(tmp_path):
    greys = np.linspace(0, 250, 30).astype(np.uint8)
    clip = np.broadcast_to(greys[:, None, None, None], (30, 64, 64, 3))
    write_mp4(tmp_path / "drive.mp4", clip, scale=2)
    episode = read_video(tmp_path / "drive.mp4")
    assert len(episode.frames) == 30 and episode.actions.shape == (29, 0)
    assert episode.source.endswith("drive.mp4")
    np.testing.assert_allclose(episode.frames.mean((1, 2, 3)), np.linspace(0, 250, 30), atol=12)
    (tmp_path / "none.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="none.mp4"): read_video(tmp_path / "none.mp4")
