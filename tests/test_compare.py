"""The comparison: its measures on what is known, and the whole of it at scale `ci`, killed and resumed."""
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from solutions.compare import run
from solutions.compare_report import claims, table, verdict
from solutions.measures import auc, cdf, explained_variance, interval, select
from solutions.records import cached_json
from solutions.settings import CompareSettings
from worldmodels.mdn_rnn import Mixture
from worldmodels.tools.settings import load
from worldmodels.tools.world import data
from worldmodels.tools.encoding import Latents

ROOT = Path(__file__).parents[1]
ROWS = ["dynamics", "transformer", "trade", "vit_wm"]

# Runs the comparison and kills itself, as SIGKILL does, before the file of the row `name` is put in place.
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


def compare(folder: Path, source: Path, *before: str, flags: tuple = ()) -> subprocess.CompletedProcess:
    start = ["-c", *before] if before else ["-m", "solutions.compare"]
    settings = ["--settings", "ci", "--run", str(folder), "--source", str(source), *flags]
    return subprocess.run([sys.executable, *start, *settings], cwd=ROOT, capture_output=True, text=True,
                          timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"})


def assert_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """It ended in one clear error that says all of `words`."""
    assert done.returncode != 0 and "Traceback" not in done.stderr
    for word in words: assert word in done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A run folder with V and episodes, made of what comes with the course."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copy(data() / "vision.safetensors", folder)
    shutil.copytree(data() / "sample", folder / "store")
    return folder


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory) -> tuple[Path, Path, str]:
    """A comparison killed twice and resumed, the folder it is published to, and what it printed at last."""
    folder = tmp_path_factory.mktemp("compare") / "run"
    to = tmp_path_factory.mktemp("published")
    for name in ("trade-0.json", "transformer.car.json"):
        done = compare(folder, source, KILLER, name)
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    rows = {p: p.stat().st_mtime_ns for p in (folder / "rows").iterdir() if p.suffix == ".json"}
    assert folder / "rows" / "vit_wm-1.json" in rows
    done = compare(folder, source, flags=("--to", str(to)))
    assert done.returncode == 0, done.stderr[-3000:]
    for path, made in rows.items(): assert path.stat().st_mtime_ns == made, f"{path.name} has been made again"
    return folder, to, done.stdout


def test_every_row_has_everything_and_it_is_finite(finished):
    folder, _, _ = finished
    for row in [f"{r}-{k}" for r in ROWS for k in (0, 1)] + ["joint-0"]:
        found = json.loads((folder / "rows" / f"{row}.json").read_text())
        episodes = len(found["nll"])
        for name in ("reward_errors", "latent", "pixels"): assert len(found[name]) == episodes, name
        assert len(found["latent"][0]) == 20
        for name in ("nll", "latent", "pixels", "pit", "reward_errors"):
            assert np.isfinite(found[name]).all(), name
        assert np.mean(found["pit"]) == pytest.approx(1)
        for name in ("updates", "parameters", "dream_steps_per_s", "training_steps_per_s"):
            assert found[name] > 0, name


def test_the_rows_have_about_as_many_parameters(finished):
    report = json.loads((finished[0] / "report.json").read_text())
    counts = [report["rows"][row]["parameters"] for row in ROWS]
    assert counts[0] == 422_368 + 2 * 257 and all(abs(n / counts[0] - 1) < 0.05 for n in counts)


def test_the_table_says_what_is_not_comparable_and_how_to_make_it(finished):
    folder, to, printed = finished
    text = (folder / "table.md").read_text()
    assert text in printed and "solutions.compare" in text and text.count("not comparable") == 6
    assert "bits a dimension" in text and text.count(" drove ") == 4 and "no such head" not in text
    for name in ("report.json", "table.md", "compare.png"):
        assert (to / name).read_bytes() == (folder / name).read_bytes()
    assert (to / "TransformerMDN.safetensors").stat().st_size < 1.2e6


def test_a_comparison_can_be_run_from_python(finished, source, tmp_path):
    copied = shutil.copytree(finished[0], tmp_path / "run")
    for name in ("report.json", "table.md", "compare.png"): (copied / name).unlink()
    s = load(CompareSettings, ["--settings", "ci"], prefix="compare")
    assert run(replace(s, run=str(copied), source=str(source))) == copied
    before = json.loads((finished[0] / "report.json").read_text())
    after = json.loads((copied / "report.json").read_text())
    assert before.keys() == after.keys()
    for name in before.keys() - {"command", "revision", "cores"}: assert before[name] == after[name], name
    assert (copied / "compare.png").read_bytes() == (finished[0] / "compare.png").read_bytes()
    assert table(after) == (copied / "table.md").read_text()


def test_another_source_under_a_comparison_is_refused(finished, source, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(source, other)
    part = min((source / "store").glob("*.zip"))
    (other / "store" / part.name).unlink()
    assert_refused(compare(finished[0], other), "other settings", "source")
    shutil.move(part, tmp_path / "kept.zip")
    try: done = compare(finished[0], source)
    finally: shutil.move(tmp_path / "kept.zip", part)
    assert_refused(done, "is not what")


@pytest.mark.parametrize("flags, words", [
    (("--seconds", "0"), "seconds must be above 0"),
    (("--tracks", "1000000"), "tracks must be at most 100,000"),
    (("--fit.lrate", "1"), "did you mean --fit.lr")])
def test_bad_settings_are_refused_and_nothing_is_written(source, tmp_path, flags, words):
    assert_refused(compare(tmp_path / "run", source, flags=flags), words)
    assert not (tmp_path / "run").exists()


def test_a_source_that_is_none_says_how_to_make_one(tmp_path):
    assert_refused(compare(tmp_path / "run", tmp_path / "nothing"), "solutions.train --settings laptop --run")
    assert not (tmp_path / "run").exists()


# Records

def test_a_cached_json_is_made_once(tmp_path):
    made = []
    def make():
        made.append(1)
        return {"σ": 0.5}
    path = tmp_path / "row.json"
    assert cached_json(path, make) == cached_json(path, make) == {"σ": 0.5} and len(made) == 1


def test_nothing_is_cached_where_making_it_fails(tmp_path):
    with pytest.raises(ZeroDivisionError): cached_json(tmp_path / "row.json", lambda: {"x": 1 / 0})
    assert not list(tmp_path.iterdir())


# Measures

def test_the_pit_of_a_right_mixture_is_uniform_and_of_a_wrong_one_is_not():
    torch.manual_seed(0)
    one = [torch.randn(1, 3, 4) for _ in range(3)]
    right = Mixture(*(x.expand(20_000, 3, 4) for x in one))
    z = right.sample()
    u = cdf(right, z)
    assert torch.allclose(u.mean(0), torch.full((3,), 0.5), atol=0.02)
    assert torch.allclose(u.var(0), torch.full((3,), 1 / 12), atol=0.005)
    narrow = Mixture(right.log_pi, right.mu, right.log_sigma - 1)
    assert (cdf(narrow, z).var(0) > 0.095).all()
    far = cdf(right, torch.full((20_000, 3), 50.0))
    assert torch.allclose(far, torch.ones_like(far))


def test_auc_is_the_chance_that_a_true_case_scores_higher():
    labels = np.array([0, 0, 1, 1], bool)
    assert auc(np.array([1.0, 2, 3, 4]), labels) == 1 and auc(np.array([4.0, 3, 2, 1]), labels) == 0
    assert auc(np.array([1.0, 1, 1, 1]), labels) == 0.5 and auc(np.array([1.0, 3, 2, 4]), labels) == 0.75


@pytest.mark.parametrize("labels", [np.zeros(3, bool), np.ones(3, bool), np.zeros(0, bool)])
def test_auc_is_none_where_a_kind_is_missing(labels): assert auc(np.ones(len(labels)), labels) is None


def test_auc_counts_ties_half():
    rng = np.random.default_rng(0)
    labels = rng.random(500) < 0.2
    scores = rng.integers(0, 10, 500).astype(np.float32)  # nearly all are tied
    true, false = scores[labels][:, None], scores[~labels][None]
    pairs = (true > false) + 0.5 * (true == false)
    assert auc(scores, labels) == pytest.approx(pairs.mean(), rel=1e-12)


def test_intervals_cover_and_pair_the_episodes():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 1, 30)  # episodes differ by far more than the models do
    x = level + 0.1 + 0.02 * rng.normal(size=(3, 30))
    y = level + 0.02 * rng.normal(size=(3, 30))
    alone = interval(x)
    paired = interval(x, y)
    assert alone["low"] < alone["mean"] < alone["high"] and alone["high"] - alone["low"] > 0.4
    assert paired["low"] < 0.1 < paired["high"] and paired["high"] - paired["low"] < 0.06
    assert verdict(paired, "better", "worse") == "worse"
    assert verdict(interval(y, x), "better", "worse") == "better"
    assert "no difference" in verdict(interval(x, x), "better", "worse")


def test_intervals_of_one_seed_are_the_percentile_bootstrap():
    x = np.random.default_rng(0).gamma(2, size=25)
    ours = interval([x])
    theirs = scipy.stats.bootstrap([x], np.mean, method="percentile", rng=1).confidence_interval
    assert ours["low"] == pytest.approx(theirs.low, abs=0.03)
    assert ours["high"] == pytest.approx(theirs.high, abs=0.03)


def test_seeds_that_differ_widen_an_interval():
    rng = np.random.default_rng(0)
    wide = interval(np.array([[0.0] * 30, [1.0] * 30, [2.0] * 30]))
    assert wide["high"] - wide["low"] > 1
    found = [interval(rng.normal(size=(3, 1)).repeat(30, 1), draws=500) for _ in range(200)]
    widths = [x["high"] - x["low"] for x in found]
    assert 1.5 < np.mean(widths) < 2.4, "3 numbers of sd 1: their mean has some 2 · 1.96 / √3 = 2.3"


def test_explained_variance():
    assert explained_variance([[0.0, 0.0]], [[2.0, 3.0]])["mean"] == 1
    assert explained_variance([[2.0, 3.0]], [[2.0, 3.0]])["mean"] == 0
    spreads = [[2.0] * 9] * 2
    alike = explained_variance([[1.0] * 9, [1.0] * 9], spreads)
    apart = explained_variance([[0.5] * 9, [1.5] * 9], spreads)
    assert alike["mean"] == apart["mean"] == 0.5
    assert alike["low"] == alike["high"] and apart["high"] - apart["low"] > 0.3, "seeds that differ widen it"


def test_selected_episodes_are_those():
    mu = torch.arange(12.0)[:, None]
    latents = Latents(mu=mu, logvar=mu, actions=mu, rewards=mu[:, 0], terminated=mu[:, 0] > 5,
                      first=torch.tensor([0, 4, 9]), lengths=torch.tensor([3, 4, 2]))
    some = select(latents, np.array([2, 0]))
    assert len(some) == 2
    assert some.mu[some.episode(0)].flatten().tolist() == [9, 10, 11]
    assert some.mu[some.episode(1)].flatten().tolist() == [0, 1, 2, 3]


# The report

def difference(low: float, high: float) -> dict: return {"mean": (low + high) / 2, "low": low, "high": high}


def report_line(name: str, nll: dict | None, latent: dict | None, pixels: dict, shift: float) -> dict:
    """A line of a report whose C drove `shift` more than the LSTM's on every track."""
    tracks = np.random.default_rng(0).normal(0, 100, 32)
    return {"name": name, "nll_minus_lstm": nll,
            "latent_minus_lstm": {"100": latent}, "pixels_minus_lstm": {"100": pixels},
            "car": {"returns": (800 + shift + tracks).tolist()}}


def test_claims_are_what_the_intervals_carry():
    none = difference(0, 0)
    lower = difference(-0.02, -0.01)
    lines = {"dynamics": report_line("LSTM", none, none, none, 0),
             "trade": report_line("TraDE", lower, lower, difference(-1, 1), 20),
             "joint": report_line("joint", None, None, difference(1, 2), -20)}
    said = " ".join(claims(lines, 100))
    assert "TraDE: NLL -0.0150" in said and "better" in said and "joint: NLL" not in said
    assert "no difference" in said and "larger" in said
    same = "against the LSTM's on the same tracks"
    assert f"TraDE: its one C, from one search, drove +20 (+20 to +20) {same}: better" in said
    assert f"joint: its one C, from one search, drove -20 (-20 to -20) {same}: worse" in said


def test_the_published_table_and_claims_are_those_of_the_published_report():
    published = data().with_name("compare")
    report = json.loads((published / "report.json").read_text())
    assert table(report) == (published / "table.md").read_text()
    assert claims(report["rows"], report["horizons"][-1]) == report["claims"]
