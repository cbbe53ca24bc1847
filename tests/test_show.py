"""Figures and videos show what they were given, and refuse what they cannot show."""
import base64
import io
import subprocess
import sys

import imageio_ffmpeg
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

from worldmodels.tools import show


@pytest.fixture
def clip():
    """Five frames in the shades that a figure keeps."""
    return 4 * np.random.default_rng(0).integers(0, 64, (5, 64, 64, 3), dtype=np.uint8)


def pixels(fig) -> np.ndarray:
    """(H, W, 3) uint8 as a notebook shows the figure."""
    data, _ = show.mime_bundle(fig, fig.alt)
    rgba = matplotlib.image.imread(io.BytesIO(base64.b64decode(data["image/png"])))
    return np.rint(rgba[..., :3] * 255).astype(np.uint8)


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_frames_are_shown_pixel_by_pixel(clip, columns):
    shown = pixels(show.frames(clip, columns=columns))
    k, cell = 2, 2 * 64 + 6
    assert shown.shape == (-(-5 // columns) * cell + 6, columns * cell + 6, 3)
    for i, frame in enumerate(clip):
        y, x = 6 + i // columns * cell, 6 + i % columns * cell
        np.testing.assert_array_equal(shown[y:y + 128, x:x + 128], frame.repeat(k, 0).repeat(k, 1))


def test_strip_shows_every_nth_frame_of_each_row(clip):
    shown = pixels(show.strip({"real": clip, "dream": clip[::-1]}, every=2))
    right = shown[:, -3 * 132 - 6:]
    np.testing.assert_array_equal(right[28:28 + 128, 132:132 + 128], clip[2].repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(right[160:160 + 128, :128], clip[4].repeat(2, 0).repeat(2, 1))


def test_a_figure_describes_itself_and_leaves_nothing_open(clip):
    before = plt.get_fignums()
    fig = show.strip({"real": clip, "dream": clip})
    data, metadata = show.mime_bundle(fig, fig.alt)
    assert "real, dream" in data["text/plain"] and metadata["image/png"]["alt"] in data["text/plain"]
    assert plt.get_fignums() == before


def test_a_notebook_stores_the_small_picture_and_its_words_after_pyplot_has_drawn_inline_too():
    drawn = "from worldmodels.tools import show\nshow.curves({'a': [1, 2]}, 'x', 'y')"
    pyplot = "import matplotlib.pyplot as plt\nplt.subplots()\nplt.close()"
    cells = [nbformat.v4.new_code_cell(code) for code in (drawn, pyplot, drawn)]
    notebook = NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=120).execute()
    for cell in (notebook.cells[0], notebook.cells[2]):
        output, = cell.outputs
        assert output.metadata["image/png"]["alt"] in output.data["text/plain"] == "<Picture: y against x: a>"
        assert Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).mode == "RGB"


@pytest.mark.parametrize("images", [
    lambda x: torch.from_numpy(x), lambda x: x / 255, lambda x: torch.from_numpy(x).div(255).requires_grad_(),
    lambda x: list(x)])
def test_pictures_of_every_kind_are_the_same(clip, images):
    np.testing.assert_array_equal(show.as_uint8(images(clip)), clip)


@pytest.mark.parametrize("images, message", [
    (np.zeros((64, 64, 3), np.uint8), r"\(n, height, width, 3\)"),
    (np.zeros((2, 3, 64, 64), np.uint8), "channels come last"),
    (np.zeros((0, 64, 64, 3), np.uint8), "at least 1"),
    (np.zeros((2, 64, 64, 3), np.int64), "uint8"),
    (np.full((2, 64, 64, 3), 255.0), r"\[0, 1\]"),
    (np.full((2, 64, 64, 3), np.nan), r"\[0, 1\]")])
def test_other_pictures_are_refused_and_no_video_is_left(images, message, tmp_path):
    with pytest.raises(ValueError, match=message): show.frames(images)
    with pytest.raises(ValueError, match=message): show.write_mp4(tmp_path / "x.mp4", images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call, message", [
    (lambda x: show.frames(x, labels=["a"]), "1 labels for 5 images"),
    (lambda x: show.frames(x, color=["real"]), "1 colors for 5 images"),
    (lambda x: show.frames(x, columns=0), "columns"),
    (lambda x: show.strip({}), "at least one row"),
    (lambda x: show.strip({"real": x, "dream": x[:3]}), "one shape"),
    (lambda x: show.strip({"real": x}, labels=["a"]), "1 labels for 5 columns"),
    (lambda x: show.side_by_side(x, x[:, :32]), "one shape"),
    (lambda x: show.side_by_side(), "one shape"),
    (lambda x: show.side_by_side(x, labels=["a", "b"]), "2 labels for 1 clips"),
    (lambda x: show.curves({}, "x", "y"), "at least one series"),
    (lambda x: show.curves({"a": []}, "x", "y"), "'a' must be"),
    (lambda x: show.curves({"a": ([1, 2], [1, 2, 3])}, "x", "y"), "'a' must be"),
    (lambda x: show.curves({"a": [np.nan]}, "x", "y"), "no finite value"),
    (lambda x: show.curves({"a": [1, 0]}, "x", "y", log=True), "logarithmic"),
    (lambda x: show.curves({"a": [1, 2]}, "x", "y", hline=3.0), "hline"),
    (lambda x: show.curves({"a": [1, 2]}, "x", "y", band={"b": (0, 1)}), "belongs to no line"),
    (lambda x: show.curves({c: [1, 2] for c in "abcde"}, "x", "y"), "at most 4 names"),
    (lambda x: show.bands([1, 2], {}, "x", "y"), "at least one name"),
    (lambda x: show.bands([1, 2], {"a": np.zeros((3, 3))}, "x", "y"), r"\(episodes, 2\)"),
    (lambda x: show.bands([1, 2], {"a": [[0, np.nan]]}, "x", "y"), "no episode left at x = 2"),
    (lambda x: show.latent_pca(np.zeros(3), np.zeros(3), "c"), "z must be"),
    (lambda x: show.latent_pca(np.eye(4), np.zeros(3), "c"), r"color must be \(4,\)"),
    (lambda x: show.latent_pca(np.full((4, 4), np.nan), np.zeros(4), "c"), "finite"),
    (lambda x: show.latent_pca(np.ones((4, 4)), np.zeros(4), "c"), "all the same")])
def test_wrong_input_is_one_clear_error(clip, call, message):
    with pytest.raises(ValueError, match=message): call(clip)


def test_a_long_curve_is_drawn_twice_and_its_median_ignores_spikes():
    y = np.ones(1000)
    y[::50] = 1e6
    fig = show.curves({"train": y}, "step", "loss")
    raw, smooth = fig.axes[0].lines
    assert raw.get_ydata().max() == 1e6 and set(smooth.get_ydata()) == {1.0}
    assert smooth.get_xdata()[[0, -1]].tolist() == [0, 999] and smooth.get_color() == show.COLORS["train"]
    assert len(show.curves({"train": y[:200]}, "step", "loss").axes[0].lines) == 1


def test_bands_show_the_median_of_the_episodes_that_are_left():
    y = np.array([[1.0, 1.0], [2.0, np.nan], [9.0, 3.0]])
    line, = show.bands([0, 1], {"dream": torch.from_numpy(y)}, "t", "error").axes[0].lines
    assert line.get_ydata().tolist() == [2.0, 2.0]


def test_pca_finds_the_widest_direction_and_says_its_share():
    rng = np.random.default_rng(0)
    direction = np.array([3.0, 4.0, 0.0]) / 5
    z = rng.normal(size=(500, 1)) * direction * 10 + rng.normal(size=(500, 3)) * 0.5
    ax = show.latent_pca(z, z @ direction, "position (m)").axes[0]
    share = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2
    assert f"{share[0] / share.sum():.0%}" in ax.get_xlabel()
    dots = ax.collections[0]
    assert np.corrcoef(dots.get_offsets()[:, 0], dots.get_array())[0, 1] > 0.999


@pytest.mark.parametrize("z", [np.random.default_rng(0).normal(size=(200, 5)) * [1, 5, 2, 1, 1],
                               np.random.default_rng(1).normal(size=(20, 300))])
def test_the_picture_of_a_latent_space_does_not_hang_on_signs(z):
    """A decomposition with any signs gives the same picture: each direction's largest number is positive."""
    _, _, axes = np.linalg.svd(z - z.mean(0), full_matrices=False)
    for k, axis in enumerate(axes[:2]):
        along = (z - z.mean(0)) @ axis * np.sign(axis[np.abs(axis).argmax()])
        dots = show.latent_pca(z, along, "place").axes[0].collections[0]
        np.testing.assert_allclose(dots.get_offsets()[:, k], dots.get_array(), atol=1e-9)


@pytest.mark.parametrize("shape, scale, size", [
    ((7, 64, 64, 3), None, (256, 256)), ((3, 15, 21, 3), 1, (22, 16)), ((1, 96, 96, 3), None, (288, 288)),
    ((2, 15, 21, 3), 2, (42, 30))])
def test_a_video_has_every_frame_and_even_sides(shape, scale, size, tmp_path):
    clip = np.broadcast_to(np.linspace(40, 220, shape[0]).reshape(-1, 1, 1, 1), shape).astype(np.uint8)
    path = show.write_mp4(tmp_path / "new" / "clip.mp4", clip, fps=35, scale=scale)
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    assert meta["size"] == size and meta["fps"] == 35
    assert "yuv420p" in meta["pix_fmt"] and meta["codec"] == "h264"
    means = [np.frombuffer(frame, np.uint8).mean() for frame in reader]
    np.testing.assert_allclose(means, clip[:, 0, 0, 0], atol=6)
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("name, kwargs, message", [
    ("x.avi", {}, ".mp4"), ("x.mp4", {"scale": 0}, "scale"), ("x.mp4", {"scale": 1.5}, "scale"),
    ("x.mp4", {"fps": 0}, "fps")])
def test_a_video_that_cannot_be_written_is_refused(clip, tmp_path, name, kwargs, message):
    with pytest.raises(ValueError, match=message): show.write_mp4(tmp_path / name, clip, **kwargs)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_video_leaves_the_old_one(clip, tmp_path, monkeypatch):
    path = show.write_mp4(tmp_path / "x.mp4", clip)
    before = path.read_bytes()
    with monkeypatch.context() as m:
        m.setattr(show.imageio_ffmpeg, "count_frames_and_secs", lambda _: (3, 0.06))  # as after a full disk
        with pytest.raises(OSError, match="only 3 of 5 frames"): show.write_mp4(path, clip[::-1])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.mp4"]


def test_side_by_side_keeps_the_clips_and_names_them(clip):
    plain = show.side_by_side(clip, clip[::-1])
    assert plain.shape == (5, 64, 130, 3)
    np.testing.assert_array_equal(plain[:, :, :64], clip)
    np.testing.assert_array_equal(plain[:, :, 66:], clip[::-1])
    too_long = "a name far too long for the width of one clip, τ = 1.15"
    named = show.side_by_side(clip, clip, labels=["real", too_long])
    assert named.shape == (5, 32 + 256, 2 * 256 + 8, 3)
    np.testing.assert_array_equal(named[:, 32:, :256], clip.repeat(4, 1).repeat(4, 2))
    face = named[0, 0, 0]
    for left in (0, 264):
        title = named[0, :32, left:left + 256]
        assert (title != face).any(), "there is text"
        assert (title[:, [0, -1]] == face).all(), "it is not cut off"


def test_a_video_in_a_notebook_is_embedded_and_small(clip, tmp_path):
    path = show.write_mp4(tmp_path / "x.mp4", clip)
    html = show.video(path)._repr_html_()
    assert base64.b64encode(path.read_bytes()).decode() in html and str(tmp_path) not in html
    with pytest.raises(ValueError, match="3.0 MB"): show.video(bytes(3_000_000))


def test_a_figure_can_be_shown_and_saved_again_in_the_style(clip, tmp_path, recwarn):
    with matplotlib.rc_context():
        show.use_style()
        fig = show.frames(clip, labels=list("abcde"))
        first = pixels(fig)
        fig.savefig(tmp_path / "fig.png")
        np.testing.assert_array_equal(pixels(fig), first)
    assert not recwarn.list


def test_style_is_only_set_on_request():
    code = ("import matplotlib; before = dict(matplotlib.rcParams); from worldmodels.tools import show;"
            "assert dict(matplotlib.rcParams) == before;"
            "show.use_style(); assert dict(matplotlib.rcParams) != before")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_figure_of_pyplots_is_shown_with_its_description_and_closed(monkeypatch):
    shown = []
    def display(data, metadata, raw): shown.append((data, metadata, raw))
    monkeypatch.setattr("IPython.display.display", display)
    plt.plot([1, 2])
    show.plotted("A line that rises.")
    (data, metadata, raw), = shown
    assert data["image/png"] and data["text/plain"] == "<Picture: A line that rises.>"
    assert metadata == {"image/png": {"alt": "A line that rises."}} and raw
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="nothing has been drawn"): show.plotted("A line.")
    with pytest.raises(ValueError, match="needs a description"): show.plotted(" ")
