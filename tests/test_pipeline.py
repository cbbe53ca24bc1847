"""The whole pipeline at scale `ci`: killed at every stage, it goes on where it was and ends with the same bits."""
import json, os, signal, subprocess, sys
from pathlib import Path

import pytest
import torch

from worldmodels.tools.training import read_lines
from worldmodels.tools.world import load_tensors

ROOT = Path(__file__).parents[1]
MODELS = ["vision.safetensors", "latents.safetensors", "dynamics.safetensors", "controller.safetensors"]

# Runs solutions.train and kills itself, as SIGKILL does, around the n-th time that a file whose name holds `part` is put in place.
KILLER = """
import os, runpy, signal, sys
part, n, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
real, seen = os.replace, 0
def replace(source, target):
    global seen
    hit = part in str(target)
    seen += hit
    if hit and seen == n and when == 'half': os.truncate(source, os.path.getsize(source) // 2)
    if hit and seen == n and when in ('before', 'half'): os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
    if hit and seen == n and when == 'after': os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
sys.argv = ['train', *sys.argv[4:]]
runpy.run_module('solutions.train', run_name='__main__')
"""

# Kills itself in the middle of writing the n-th generation's line.
HALF_A_LINE = """
import json, os, runpy, signal, sys
import worldmodels.controller as controller
real, seen, n = controller.append_line, 0, int(sys.argv[1])
def append_line(path, line):
    global seen
    seen += 1
    if seen < n: return real(path, line)
    open(path, 'a').write(json.dumps(line)[:40])
    os.kill(os.getpid(), signal.SIGKILL)
controller.append_line = append_line
sys.argv = ['train', *sys.argv[2:]]
runpy.run_module('solutions.train', run_name='__main__')
"""


def train(run: Path, *before: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    flags = ["--settings", "ci", "--run", str(run), *flags]
    command = ["-c", *before, *flags] if before else ["-m", "solutions.train", *flags]
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """A run that nobody disturbed, and what it printed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = train(run)
    assert done.returncode == 0, done.stderr[-3000:]
    return run, done.stdout


def test_a_run_leaves_everything_in_its_folder(whole):
    run, _ = whole
    for name in [*MODELS, "config.json", "metrics.jsonl", "evolution.jsonl", "report.json", "drive.mp4", "store", "tensorboard"]:
        assert (run / name).exists(), name


def test_every_number_is_finite(whole):
    run, _ = whole
    for name in MODELS:
        tensors, _ = load_tensors(run / name)
        assert all(t.isfinite().all() for t in tensors.values()), name


def test_report_names_what_it_takes_to_repeat_it(whole):
    report = json.loads((whole[0] / "report.json").read_text())
    assert report["environment"] == "CarRacing-v3" and report["seeds"][0] >= 200_000
    assert "solutions.train" in report["command"] and "ci" in report["command"]
    found = report["gymnasium"]
    assert len(found["returns"]) == found["episodes"] and found["low"] <= found["mean"] <= found["high"]


def test_killed_at_every_stage_it_goes_on_and_ends_with_the_same_bits(whole, tmp_path):
    run = tmp_path / "run"

    def killed(*before) -> str:
        done = train(run, *before)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        return done.stderr

    killed(KILLER, "random-fast", "2", "half")  # collecting, in the middle of writing the second part
    first = run / "store" / "random-fast-00000-00001.zip"
    written = first.stat().st_mtime_ns
    assert list((run / "store").glob("*.tmp")) and len(list((run / "store").glob("*.zip"))) == 1

    killed(KILLER, "scout/controller", "1", "before")  # the scout's C, found but not yet saved
    evolved = read_lines(run / "scout" / "evolution.jsonl")
    assert first.stat().st_mtime_ns == written, "the part that was there has been made again"

    killed(KILLER, "run/vision.checkpoint", "2", "half")  # V, in the middle of writing the second checkpoint
    assert read_lines(run / "scout" / "evolution.jsonl") == evolved, "generations that were there have been made again"
    assert load_tensors(run / "vision.checkpoint.safetensors")[1]["step"] == 4

    killed(KILLER, "run/dynamics.checkpoint", "1", "after")  # M, after its first checkpoint
    assert load_tensors(run / "vision.checkpoint.safetensors")[1]["step"] == 10
    vision = (run / "vision.safetensors").stat().st_mtime_ns

    printed = killed(HALF_A_LINE, "2")  # C, in the middle of writing the second generation
    assert len(read_lines(run / "evolution.jsonl")) == 1
    assert "dynamics:  40%" in printed and "dynamics:   0%" not in printed, "updates of M that were done have been done again"
    dynamics = (run / "dynamics.safetensors").stat().st_mtime_ns

    done = train(run)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (run / "vision.safetensors").stat().st_mtime_ns == vision
    assert (run / "dynamics.safetensors").stat().st_mtime_ns == dynamics
    assert "evolve:  50%" in done.stderr, "the first generation has been made again"
    for name in MODELS:
        mine, theirs = load_tensors(run / name)[0], load_tensors(whole[0] / name)[0]
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine), name
    mine, theirs = (json.loads((folder / "report.json").read_text()) for folder in (run, whole[0]))
    assert mine["gymnasium"]["returns"] == theirs["gymnasium"]["returns"]


def test_v_goes_on_from_its_checkpoint(whole, tmp_path):
    run = tmp_path / "run"
    assert train(run, KILLER, "scout/vision.checkpoint", "1", "after").returncode == -signal.SIGKILL
    done = train(run, KILLER, "scout/vision.checkpoint", "1", "after")
    assert "vision:  80%" in done.stderr.replace("\r", "\n") and "vision:   0%" not in done.stderr


def test_a_run_with_other_settings_is_refused_and_left_alone(whole):
    run, _ = whole
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    done = train(run, flags=("--window", "8"))
    assert done.returncode != 0 and "window: 16 -> 8" in done.stderr and "--fresh" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_a_controller_that_least_squares_cannot_find_begins_at_zero(tmp_path):
    done = train(tmp_path / "run", flags=("--controller.hidden", "5", "--controller.memory", "false", "--evaluate.episodes", "1"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert not load_tensors(tmp_path / "run" / "start.safetensors")[0]["params"].any()
    assert load_tensors(tmp_path / "run" / "controller.safetensors")[0]["params"].any()
