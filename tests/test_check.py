"""The check of exercises: stubs, wrong answers, right answers, and the record of them."""
import functools
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from worldmodels.tools import check as c
from worldmodels.tools.check import CheckFailed, check


@pytest.fixture(autouse=True)
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(c, "RECORD", tmp_path / ".progress.json")
    return tmp_path / ".progress.json"


def double(x): return 2 * x


def doubles(f):
    x = torch.tensor([1.0, 2.0])
    c.shape("one output for each input", f(x), (2,))
    c.close("twice the input", f(x), [2.0, 4.0])


def stub(x): raise NotImplementedError


def test_a_stub_is_told_in_one_line_and_gives_the_reference(capsys, record):
    assert check(stub, double, doubles) is double
    assert capsys.readouterr().out == "○ test_check.double: not written yet, the reference stands in.\n"
    assert not record.exists()


class InInit(nn.Module):
    def __init__(self):
        super().__init__()
        raise NotImplementedError


class InMethod(nn.Module):
    def forward(self, x): raise NotImplementedError


class InHelper(nn.Module):
    def forward(self, x): return stub(x)


@pytest.mark.parametrize("cls", [InInit, InMethod, InHelper])
def test_a_class_with_a_stub_is_untouched(cls):
    reference = nn.Identity
    assert check(cls, reference, lambda make: c.equal("is x", make()(1), 1)) is reference


def test_a_stub_under_a_decorator_is_untouched():
    assert check(torch.no_grad()(stub), double, doubles) is double


class NoForward(nn.Module): pass


def unsupported(x): raise NotImplementedError('"addmm" not implemented for \'Half\'')


@pytest.mark.parametrize("mine, message", [(unsupported, "addmm"), (NoForward(), "forward")])
def test_an_operation_that_torch_lacks_is_no_stub(mine, message):
    with pytest.raises(CheckFailed, match=message): check(mine, double, doubles)


def test_passing_gives_mine_and_records_it_once(capsys, record):
    def mine(x): return x + x
    assert check(mine, double, doubles) is mine
    assert capsys.readouterr().out == "✓ test_check.double: every property holds (2).\n"
    first = json.loads(record.read_text())
    assert list(first) == ["test_check.double"]
    check(mine, double, doubles)
    check(mine, double, doubles, name="again")
    assert json.loads(record.read_text()) | first == json.loads(record.read_text())
    assert set(c.solved()) == {"test_check.double", "again"}
    assert [p.name for p in record.parent.iterdir()] == [".progress.json"]


@pytest.mark.parametrize("mine, message", [
    (lambda x: x, "twice the input\n  got       .1., 2..\n  expected  .2.0, 4.0.\n"
                  "  exact no · within 1e-05 no · max difference 2"),
    (lambda x: 2 * x[:, None], r"one output for each input\n  got shape \(2, 1\), expected shape \(2,\)"),
    (lambda x: 2 * x / (x - x), "inf"),
    (lambda x: 2 * x + float("nan"), "2 of 2 values are not finite"),
    (lambda x: None, "got a NoneType")])
def test_a_wrong_answer_is_told_by_its_property(mine, message, record):
    with pytest.raises(CheckFailed, match=message) as e: check(mine, double, doubles)
    assert "return 2 * x" not in str(e.value) and not record.exists()
    assert e.value._render_traceback_() == [f"CheckFailed: {e.value}"]


def helper(x): return x.mean(dim=1)


def breaks(x): return helper(x)


def test_an_exception_is_told_with_the_learners_line_and_kept():
    line = r"in helper: def helper\(x\): return x.mean"
    with pytest.raises(CheckFailed, match=rf"raised IndexError(.|\n)*{line}") as e:
        check(breaks, double, doubles)
    assert isinstance(e.value.__cause__, IndexError)


def test_a_result_that_the_test_cannot_use_is_told():
    def squares(f): c.that("positive", (f(torch.ones(2)).sum() > 0))
    with pytest.raises(CheckFailed, match="could not use what your code gave back: AttributeError.*NoneType"):
        check(functools.partial(lambda x: None), double, squares)


def test_a_test_without_a_property_is_refused(record):
    with pytest.raises(ValueError, match="checked no property"): check(double, double, lambda f: f(1))
    assert not record.exists()


def test_a_reference_without_a_name_needs_one():
    with pytest.raises(ValueError, match="pass check"): check(double, functools.partial(double), doubles)


def test_the_test_is_seeded_and_leaves_the_generator_alone():
    drawn = []
    def draws(f):
        drawn.append(torch.rand(()).item())
        c.that("drew", True)
    before = torch.random.get_rng_state()
    check(double, double, draws)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    check(double, double, draws)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("got, expected", [
    (1, 1.0), (torch.tensor(2), 2), (np.float32(0.5), 0.5), (torch.ones(2), np.ones(2, np.float32)),
    ("a", "a"), ((1, torch.ones(2)), (1, torch.ones(2))), (None, None), ([1, 2], (1, 2)),
    ({"a": 1}, {"a": 1}),
    (torch.tensor([1, 2]), [1, 2]), (True, True), (np.nan, np.nan), (np.inf, np.inf),
    (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16))])
def test_equal_holds(got, expected): c.equal("p", got, expected)


@pytest.mark.parametrize("got, expected, why", [
    (1, 2, "max difference 1"), (1.0, 1.0 + 1e-12, "max difference"), (None, 1, "NoneType"),
    ("a", "b", "not equal"),
    (torch.ones(2), torch.ones(2, dtype=torch.int64), "dtype float32, expected int64"),
    (torch.ones(1, 2), torch.ones(2), "shape"), ((1, 2), (1, 2, 3), "2 items, expected 3"),
    ((1, (2, 3)), (1, (2, 4)), r"p \[1\] \[1\]"), ({"a": 1}, {"b": 1}, "keys"),
    (np.array([0], np.uint8), np.array([255], np.uint8), "max difference 255"),
    (torch.tensor([True, False]), torch.tensor([True, True]), "1 of 2 differ"),
    (np.nan, 1.0, "not finite"), (torch.tensor([1]), [1, 2], "shape"), (1, (1, 2), "")])
def test_equal_fails(got, expected, why):
    with pytest.raises(CheckFailed, match="p") as e: c.equal("p", got, expected)
    assert re.search(why, str(e.value)), str(e.value)


def test_close_has_a_tolerance_and_no_broadcasting():
    c.close("p", torch.tensor([1e6]), [1e6 + 5], tol=1e-5)
    with pytest.raises(CheckFailed, match="within 1e-07 no"):
        c.close("p", torch.tensor([1e6]), [1e6 + 5], tol=1e-7)
    with pytest.raises(CheckFailed, match="shape"): c.close("p", torch.ones(3, 1), torch.ones(3))
    with pytest.raises(CheckFailed, match="shape"): c.close("p", torch.tensor(1.0), torch.ones(3))
    assert len(c._brief(torch.randn(1000, 1000))) < 100


def test_that_needs_one_boolean():
    c.that("p", torch.tensor(True))
    with pytest.raises(CheckFailed, match="positive\n  this does not hold: look"):
        c.that("positive", 0, "look")
    with pytest.raises(ValueError, match="use .all"): c.that("p", torch.ones(2) > 0)


@pytest.mark.parametrize("text", ["{broken", "[1, 2]", '{"a": 1}', ""])
def test_an_unreadable_record_is_told_and_kept(text, record, capsys):
    record.write_text(text)
    def mine(x): return x + x
    assert check(mine, double, doubles) is mine  # solving it counts for the notebook all the same
    assert "Not recorded" in capsys.readouterr().out
    with pytest.raises(ValueError, match="move it away"): c.progress()
    assert record.read_text() == text and len(list(record.parent.iterdir())) == 1


def test_a_kill_while_writing_leaves_the_old_record(record, monkeypatch):
    check(double, double, doubles)
    before = record.read_text()
    def killed(*_): raise KeyboardInterrupt
    monkeypatch.setattr(c.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt): check(double, double, doubles, name="other")
    assert record.read_text() == before and len(list(record.parent.iterdir())) == 1


def test_progress_lists_what_is_solved(capsys, record):
    c.progress()
    assert capsys.readouterr().out.splitlines()[-1] == "No exercise solved yet."
    check(double, double, doubles)
    c.progress()
    assert capsys.readouterr().out.splitlines()[-1].endswith("  test_check.double")


def test_progress_knows_the_exercises_of_the_chapters(capsys, record):
    chapters = c.exercises()
    assert len(chapters) == 9
    assert all(len(titles) >= 5 for name, titles in chapters.items() if name != "05b_planning")
    names = [name for titles in chapters.values() for name in titles.values()]
    assert len(set(names)) == len(names)  # one record line solves one exercise
    of_the_last = [f"baselines.{name}" for name in chapters["07_baselines"].values()]
    for name in ("vae.reparameterize", "vae.kl_divergence", *of_the_last): c._record(name)
    c.progress()
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["00_rollouts"].endswith("○○○○○○  next: Exercise 1: prepare")
    assert "●●○○○ " in lines["01_vae"] and lines["01_vae"].endswith("next: Exercise 3: the encoder")
    assert lines["07_baselines"].endswith("●●●●●●  all solved")


def test_a_chapter_that_is_no_notebook_is_named(tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "03_x.ipynb").write_text("<<<<<<< ours")
    monkeypatch.setattr(c, "_root", tmp_path)
    with pytest.raises(ValueError, match="03_x.ipynb is not a notebook"): c.progress()


def test_progress_without_notebooks_is_a_plain_list(tmp_path, monkeypatch, capsys, record):
    monkeypatch.setattr(c, "_root", tmp_path)
    check(double, double, doubles)
    c.progress()
    assert len(capsys.readouterr().out.splitlines()) == 2  # what check says, and the line of the record
