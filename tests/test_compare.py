"""The comparison: its measures on what is known, and the whole of it at scale `ci`, killed and resumed."""
import json, os, shutil, signal, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch

from solutions.compare import claims, verdict
from solutions.measures import auc, cdf, explained, interval, select
from worldmodels.mdn_rnn import MDNRNN, MDNRNNSettings, Mixture
from worldmodels.tools.world import data, save_model
from worldmodels.vae import Latents

ROOT = Path(__file__).parents[1]
ROWS = ["dynamics", "transformer", "trade", "vit_wm"]

# Runs the comparison and kills itself, as SIGKILL does, before a row whose file's name is `name` is put in place.
KILLER = """
import os, runpy, signal, sys
name, real = sys.argv[1], os.replace
def replace(source, target):
    if str(target).endswith(name): os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
sys.argv = ['compare', *sys.argv[2:]]
runpy.run_module('solutions.compare', run_name='__main__')
"""


def compare(run: Path, source: Path, *before: str, flags: tuple = ()) -> subprocess.CompletedProcess:
    command = ["-c", *before] if before else ["-m", "solutions.compare"]
    return subprocess.run([sys.executable, *command, "--settings", "ci", "--run", str(run), "--source", str(source), *flags], cwd=ROOT,
                          capture_output=True, text=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A run folder with V and episodes, made of what comes with the course."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copy(data() / "vision.safetensors", folder)
    shutil.copytree(data() / "sample", folder / "store")
    return folder


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory) -> tuple[Path, Path, str]:
    """A comparison killed twice and resumed, the folder it was told to publish to, and what the last start printed."""
    run, to = tmp_path_factory.mktemp("compare") / "run", tmp_path_factory.mktemp("published")
    for name in ("trade-0.json", "transformer.car.json"):
        done = compare(run, source, KILLER, name)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    rows = {p: p.stat().st_mtime_ns for p in (run / "rows").iterdir() if p.suffix == ".json"}
    assert (run / "rows" / "vit_wm-1.json") in rows
    done = compare(run, source, flags=("--to", str(to)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(p.stat().st_mtime_ns == t for p, t in rows.items()), "rows that were there have been made again"
    return run, to, done.stdout


def test_every_row_has_everything_and_it_is_finite(finished):
    run, _, _ = finished
    for row in [f"{r}-{k}" for r in ROWS for k in (0, 1)] + ["joint-0"]:
        found = json.loads((run / "rows" / f"{row}.json").read_text())
        episodes = len(found["nll"])
        assert episodes == len(found["reward_errors"]) == len(found["latent"]) == len(found["pixels"]) and len(found["latent"][0]) == 20
        for name in ("nll", "latent", "pixels", "pit", "reward_errors"): assert np.isfinite(found[name]).all(), name
        assert np.mean(found["pit"]) == pytest.approx(1) and min(found[k] for k in ("updates", "parameters", "dream_steps_per_s", "training_steps_per_s")) > 0


def test_the_rows_have_about_as_many_parameters(finished):
    report = json.loads((finished[0] / "report.json").read_text())
    counts = [report["rows"][row]["parameters"] for row in ROWS]
    assert counts[0] == 422_368 + 2 * 257 and all(abs(n / counts[0] - 1) < 0.05 for n in counts)


def test_the_table_says_what_is_not_comparable_and_how_to_make_it(finished):
    run, to, printed = finished
    text = (run / "table.md").read_text()
    assert text in printed and "solutions.compare" in text and text.count("not comparable") == 6
    assert "bits a dimension" in text and text.count(" drove ") == 4 and "no such head" not in text
    for name in ("report.json", "table.md", "compare.png"): assert (to / name).read_bytes() == (run / name).read_bytes()
    assert (to / "TransformerMDN.safetensors").stat().st_size < 1.2e6


def test_another_source_under_a_comparison_is_refused(finished, source, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(source, other)
    part = min((source / "store").glob("*.zip"))
    (other / "store" / part.name).unlink()
    done = compare(finished[0], other)
    assert done.returncode != 0 and "other settings" in done.stderr and "source" in done.stderr and "Traceback" not in done.stderr
    shutil.move(part, tmp_path / "kept.zip")
    try: done = compare(finished[0], source)
    finally: shutil.move(tmp_path / "kept.zip", part)
    assert done.returncode != 0 and "is not what" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("flags, words", [
    (("--seconds", "0"), "seconds must be above 0"), (("--tracks", "1000000"), "tracks must be at most 100,000"),
    (("--fit.lrate", "1"), "did you mean --fit.lr")])
def test_bad_settings_are_refused_and_nothing_is_written(source, tmp_path, flags, words):
    done = compare(tmp_path / "run", source, flags=flags)
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_a_source_that_is_none_says_how_to_make_one(tmp_path):
    done = compare(tmp_path / "run", tmp_path / "nothing")
    assert done.returncode != 0 and "solutions.train --settings laptop --run" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# Measures

def test_the_pit_of_a_right_mixture_is_uniform_and_of_a_wrong_one_is_not():
    torch.manual_seed(0)
    one = [torch.randn(1, 3, 4) for _ in range(3)]
    right = Mixture(*(x.expand(20_000, 3, 4) for x in one))
    z = right.sample()
    u = cdf(right, z)
    assert torch.allclose(u.mean(0), torch.full((3,), 0.5), atol=0.02) and torch.allclose(u.var(0), torch.full((3,), 1 / 12), atol=0.005)
    narrow = Mixture(right.log_pi, right.mu, right.log_sigma - 1)
    assert (cdf(narrow, z).var(0) > 0.095).all()
    far = cdf(right, torch.full((20_000, 3), 50.0))
    assert torch.allclose(far, torch.ones_like(far))


def test_auc_is_the_chance_that_a_true_case_scores_higher():
    labels = np.array([0, 0, 1, 1], bool)
    assert auc(np.array([1.0, 2, 3, 4]), labels) == 1 and auc(np.array([4.0, 3, 2, 1]), labels) == 0
    assert auc(np.array([1.0, 1, 1, 1]), labels) == 0.5 and auc(np.array([1.0, 3, 2, 4]), labels) == 0.75
    assert auc(np.ones(3), np.zeros(3, bool)) is None


def test_intervals_cover_and_pair_the_episodes():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 1, 30)  # episodes differ by far more than the models do
    x, y = level + 0.1 + 0.02 * rng.normal(size=(3, 30)), level + 0.02 * rng.normal(size=(3, 30))
    alone, paired = interval(x), interval(x, y)
    assert alone["low"] < alone["mean"] < alone["high"] and alone["high"] - alone["low"] > 0.4
    assert paired["low"] < 0.1 < paired["high"] and paired["high"] - paired["low"] < 0.06
    assert verdict(paired, "better", "worse") == "worse" and verdict(interval(y, x), "better", "worse") == "better"
    assert "no difference" in verdict(interval(x, x), "better", "worse")
    means = np.array([[0.0] * 30, [1.0] * 30, [2.0] * 30])  # seeds that differ widen the interval too
    assert interval(means)["high"] - interval(means)["low"] > 1
    few = np.array([np.ptp(list(interval(rng.normal(size=(3, 1)).repeat(30, 1), draws=500).values())[1:]) for _ in range(200)])
    assert 1.5 < few.mean() < 2.4, "the mean of 3 numbers of sd 1 has an interval of some 2 · 1.96 / √3 = 2.3"


def test_explained_variance():
    assert explained([[0.0, 0.0]], [[2.0, 3.0]])["mean"] == 1 and explained([[2.0, 3.0]], [[2.0, 3.0]])["mean"] == 0
    alike, apart = explained([[1.0] * 9, [1.0] * 9], [[2.0] * 9] * 2), explained([[0.5] * 9, [1.5] * 9], [[2.0] * 9] * 2)
    assert alike["mean"] == apart["mean"] == 0.5 and alike["low"] == alike["high"] and apart["high"] - apart["low"] > 0.3, "seeds that differ widen it"


def test_selected_episodes_are_those():
    mu = torch.arange(12.0)[:, None]
    latents = Latents(mu=mu, logvar=mu, actions=mu, rewards=mu[:, 0], terminated=mu[:, 0] > 5, first=torch.tensor([0, 4, 9]), lengths=torch.tensor([3, 4, 2]))
    some = select(latents, np.array([2, 0]))
    assert len(some) == 2 and some.mu[some.episode(0)].flatten().tolist() == [9, 10, 11] and some.mu[some.episode(1)].flatten().tolist() == [0, 1, 2, 3]


def test_claims_are_what_the_intervals_carry():
    d = lambda low, high: {"mean": (low + high) / 2, "low": low, "high": high}
    def line(name, nll, pixels, car): return {"name": name, "nll_minus_lstm": nll, "latent_minus_lstm": {100: nll}, "pixels_minus_lstm": {100: pixels}, "car": car}
    tracks = np.random.default_rng(0).normal(0, 100, 32)
    drove = lambda shift: {"returns": (800 + shift + tracks).tolist()}  # paired, the spread of the tracks is no excuse
    lines = {"dynamics": line("LSTM", d(0, 0), d(0, 0), drove(0)), "trade": line("TraDE", d(-0.02, -0.01), d(-1, 1), drove(20)),
             "joint": line("joint", None, d(1, 2), drove(-20)) | {"latent_minus_lstm": {100: None}}}
    said = " ".join(claims(lines, [100]))
    assert "TraDE: NLL -0.0150" in said and "better" in said and "joint: NLL" not in said and "no difference" in said and "larger" in said
    assert "TraDE: its one C, from one search, drove +20 (+20 to +20) against the LSTM's on the same tracks: better" in said
    assert "joint: its one C, from one search, drove -20 (-20 to -20) against the LSTM's on the same tracks: worse" in said
