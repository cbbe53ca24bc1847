"""A JupyterLab on loopback and a browser, for the tests that try widgets as a person would."""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


@contextmanager
def started_browser() -> Iterator:
    """Debian's Chromium; without one the test is skipped, loudly, and in CI it fails."""
    def missing(message: str):
        if os.environ.get("CI"): pytest.fail(message)
        pytest.skip(message)
    if CHROMIUM is None: missing("no chromium on the PATH: the widgets were NOT tested in a browser (apt install chromium)")
    try: from playwright import sync_api
    except ImportError: missing("no playwright: the widgets were NOT tested in a browser (pip install playwright)")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@contextmanager
def served(folder: Path, sources: list[str]) -> Iterator[str]:
    """A JupyterLab with a notebook of these cells in `folder`; gives the notebook's address."""
    cells = [{"cell_type": "code", "id": f"cell-{i}", "metadata": {}, "source": source, "outputs": [], "execution_count": None} for i, source in enumerate(sources)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (folder / "play.ipynb").write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
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


def opened(browser, address: str, height: int = 720):
    """A page with the notebook in it, its kernel idle. JupyterLab draws only what is in sight: `height` in pixels says how much that is."""
    page = browser.new_page(viewport={"width": 1280, "height": height})
    page.goto(address, timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.wait_for_function("() => document.body.innerText.includes('| Idle')", timeout=120_000)
    return page
