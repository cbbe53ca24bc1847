"""The player in a real browser: JupyterLab on loopback, the chapter's own cell, keys, and a picture that changes."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium; without one the test is skipped, loudly, and in CI it fails."""
    if CHROMIUM is None:
        message = "no chromium on the PATH: the player was NOT tested in a browser (apt install chromium)"
        if os.environ.get("CI"): pytest.fail(message)
        pytest.skip(message)
    try: from playwright import sync_api
    except ImportError:
        message = "no playwright: the player was NOT tested in a browser (pip install playwright)"
        if os.environ.get("CI"): pytest.fail(message)
        pytest.skip(message)
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


def cell_of_the_chapter() -> str:
    """The one cell of the chapter that makes a Player, which must stand on its own."""
    cells = json.loads((ROOT / "nbs" / "05_dream.ipynb").read_text(encoding="utf-8"))["cells"]
    found = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and re.search(r"^Player\(", "".join(c["source"]), re.M)]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def lab(tmp_path_factory, browser):
    """A JupyterLab with a notebook of that one cell; gives the notebook's address."""
    folder = tmp_path_factory.mktemp("lab")
    cell = {"cell_type": "code", "id": "play", "metadata": {}, "source": cell_of_the_chapter(), "outputs": [], "execution_count": None}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (folder / "play.ipynb").write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    homes = {name: str(folder / "home") for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.token=", "--ServerApp.password=", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    with open(folder / "lab.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder,
                                  env=os.environ | homes | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))})
    try:
        deadline, up = time.time() + 240, False
        while not up and server.poll() is None and time.time() < deadline:
            try: up = urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).status == 200
            except OSError: time.sleep(0.25)
        assert up, (folder / "lab.log").read_text()[-3000:]
        yield f"http://127.0.0.1:{port}/lab/tree/play.ipynb"
    finally:
        server.terminate()
        try: server.wait(15)
        except subprocess.TimeoutExpired: server.kill()


def test_a_person_drives_through_the_dream(browser, lab):
    page = browser.new_page()
    page.goto(lab, timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.wait_for_function("() => document.body.innerText.includes('| Idle')", timeout=120_000)  # the kernel is there
    page.click(".jp-Notebook .jp-Cell")
    page.keyboard.press("Shift+Enter")
    player = page.wait_for_selector(".dream-player[data-step]", timeout=240_000)
    step, wheel = lambda: int(player.get_attribute("data-step")), lambda: float(player.get_attribute("data-wheel"))
    picture = lambda: page.evaluate("""() => { const image = document.querySelector('.dream-player img'), canvas = document.createElement('canvas');
        canvas.width = canvas.height = 64; const pen = canvas.getContext('2d'); pen.drawImage(image, 0, 0); return Array.from(pen.getImageData(0, 0, 64, 64).data); }""")
    page.wait_for_function("() => Number(document.querySelector('.dream-player').dataset.step) > 5", timeout=60_000)

    began, before, at = picture(), step(), time.time()
    player.query_selector("img").click()
    for key in ("ArrowUp", "ArrowLeft"): page.keyboard.down(key)
    page.wait_for_function(f"() => Number(document.querySelector('.dream-player').dataset.step) > {before + 40}", timeout=60_000)
    assert wheel() < -0.5, "the left arrow does not turn the wheel"
    for key in ("ArrowUp", "ArrowLeft"): page.keyboard.up(key)
    rate, now = (step() - before) / (time.time() - at), picture()
    assert len(now) == 64 * 64 * 4 and sum(abs(a - b) for a, b in zip(began, now)) / len(now) > 1, "the picture has not changed"
    assert page.evaluate("document.activeElement.classList.contains('dream-player')"), "the keys went to the notebook"
    assert rate >= 20 and float(page.inner_text(".dream-player .frames-s")) >= 20, f"{rate:.0f} frames a second are too few to drive"
    assert page.inner_text(".dream-player .done").endswith("%")

    button = page.query_selector(".dream-player button[aria-label=right]").bounding_box()
    page.mouse.move(button["x"] + 5, button["y"] + 5)
    page.mouse.down()
    here = step()
    page.wait_for_function(f"() => Number(document.querySelector('.dream-player').dataset.step) > {here + 25}", timeout=60_000)
    assert wheel() > 0.5, "the button does not turn the wheel"
    page.mouse.up()

    page.evaluate("() => { const s = document.querySelector('.dream-player .temperature'); s.value = 0.5; s.dispatchEvent(new Event('input')); }")
    page.wait_for_function("() => document.querySelector('.dream-player .tau').textContent === '0.50'", timeout=30_000)
    assert not page.is_disabled(".dream-player .controller")
    page.check(".dream-player .controller")
    here = step()
    page.wait_for_function(f"() => Number(document.querySelector('.dream-player').dataset.step) > {here + 10}", timeout=60_000)
    here = step()
    page.click(".dream-player .reset")
    page.wait_for_function(f"() => Number(document.querySelector('.dream-player').dataset.step) < {here}", timeout=30_000)
    page.close()
