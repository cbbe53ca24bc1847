"""The widgets of chapters 01, 02 and 03 in a real browser: the chapters' own cells, a slider that is moved, and a picture that changes."""
import json
import re

import pytest
from lab import ROOT, opened, served, started_browser


def cell(chapter: str, pattern: str) -> str:
    """The one code cell of a chapter in which `pattern` is found."""
    cells = json.loads((ROOT / "nbs" / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = [text for c in cells if c["cell_type"] == "code" and re.search(pattern, text := "".join(c["source"]), re.M)]
    assert len(found) == 1, f"{pattern} is in {len(found)} cells of {chapter}"
    return found[0]


WORLD = """
%matplotlib inline
import math
import ipywidgets, matplotlib.pyplot as plt, numpy as np, torch
from worldmodels.mdn_rnn import Mixture
from worldmodels.tools import show
from worldmodels.tools.store import RolloutStore
from worldmodels.tools.world import WorldModel, data
from worldmodels.attention_maps import attention_maps
from worldmodels.transformer import TransformerMDN
from worldmodels.tools.encoding import encode_frames
from worldmodels.tools.sliders import latent_sliders
torch.set_num_threads(1)
store, pretrained = RolloutStore(data("carracing") / "sample"), WorldModel.load(data("carracing")).vision
episode, order = store.episode(0), np.arange(32)
z0 = encode_frames(pretrained, episode.frames[80:81])[0][0]
"""
READ = """
from types import SimpleNamespace
driven, at, latents = 0, slice(0, 100), SimpleNamespace(first=torch.zeros(1, dtype=torch.int))
torch.manual_seed(0)
maps = attention_maps(TransformerMDN(), torch.randn(1, 100, 32), torch.from_numpy(episode.actions[None, :100]))[:, 0]
"""
CELLS = [WORLD, cell("01_vae", r"^sliders = latent_sliders\("), cell("02_mdn_rnn", r"^def density\(mixture"),
         cell("02_mdn_rnn", r"interact\(explore"), READ, cell("03_transformer", r"interact\(explore")]
# what the density's static figure is drawn from, beside the cells of the widget
CELLS[2] = CELLS[2].split("\ngrid = ")[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The notebook of all of them, open in JupyterLab and run."""
    with started_browser() as browser, served(tmp_path_factory.mktemp("lab"), CELLS) as address:
        page = opened(browser, address, height=2600)
        page.click(".jp-Notebook .jp-Cell")
        for _ in CELLS: page.keyboard.press("Shift+Enter")
        page.wait_for_function("n => [...document.querySelectorAll('.jp-Notebook .jp-InputPrompt')].filter(p => /\\[\\d+\\]/.test(p.innerText)).length >= n",
                               arg=len(CELLS), timeout=240_000)
        yield page


@pytest.mark.parametrize("number, slider, image", [
    (1, "z[0]", "img.widget-image"), (3, "temperature", ".widget-output img"), (5, "moment", ".widget-output img"), (5, "head", ".widget-output img")])
def test_a_slider_moves_and_the_picture_with_it(page, number, slider, image):
    here = page.locator(".jp-Notebook .jp-Cell").nth(number)
    here.scroll_into_view_if_needed()
    picture = here.locator(image)
    picture.wait_for(timeout=60_000)
    before = picture.evaluate("e => e.src")
    control = here.locator(".widget-slider", has_text=slider)
    shown = control.locator(".widget-readout").inner_text()
    for _ in range(5): control.locator(".noUi-handle").press("ArrowLeft" if slider == "moment" else "ArrowRight")  # it begins at its right end
    page.wait_for_function("([cell, image, src]) => { const i = cell.querySelector(image); return i && i.src && i.src !== src; }",
                           arg=[here.element_handle(), image, before], timeout=60_000)
    assert control.locator(".widget-readout").inner_text() != shown
    assert here.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
