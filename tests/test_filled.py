"""Every exercise of every chapter, solved: the answer stands in the notebook in place of the stub, and its check passes there.

`make test` also runs the notebooks from top to bottom like this (tests/fill.py); here only the exercises themselves are run, in seconds.
"""
import contextlib
import io
import re
from pathlib import Path

import pytest
from fill import NBS, answer, exercises, filled, is_stub, namespace, parsed, read, source

from worldmodels.tools import check as c

CHAPTERS = sorted(NBS.glob("0*.ipynb"))


@pytest.fixture(autouse=True)
def record(tmp_path, monkeypatch): monkeypatch.setattr(c, "RECORD", tmp_path / ".progress.json")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_has_exercises_with_everything_that_belongs_to_one(path):
    cells = read(path)["cells"]
    text = "\n\n".join(source(cell) for cell in cells if cell["cell_type"] == "markdown")
    parts = re.split(r"^#{3,4} (?=Exercise \d)", text, flags=re.M)[1:]
    enough = 5 if path.stem[2] == "_" else 1  # 05b goes on where 05 ends
    assert len(parts) >= enough and len(exercises(cells)) >= enough
    assert [int(re.match(r"Exercise (\d+)", part)[1]) for part in parts] == list(range(1, len(parts) + 1))
    for part in parts:
        part = re.split(r"^#{1,4} ", part, maxsplit=1, flags=re.M)[0]
        title = part.splitlines()[0]
        assert re.search(r"\d+ minutes", part) and re.search(r"easy|medium|hard|open|[Dd]ifficulty", part), f"{title}: difficulty and minutes"
        assert all(f"<summary>Hint {k}</summary>" in part for k in (1, 2)), f"{title}: two hints"
        assert "Solution" in part, f"{title}: where its solution is"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_stub_can_be_filled_and_then_passes_its_check(path):
    cells = read(path)["cells"]
    found, names = exercises(cells), namespace(cells)
    calls = sum(len(re.findall(r"^\w+ = check\(", source(cell), re.M)) for cell in cells if cell["cell_type"] == "code")
    assert len(found) == calls, "a check without a stub, or one that fill.py does not find"
    for e in found:
        here = dict(names)
        code = answer(e, cells, names)
        exec(compile(code, f"{path.stem}: {e.title}", "exec"), here)
        said = io.StringIO()
        with contextlib.redirect_stdout(said): mine = c.check(here[e.mine], eval(e.reference, names), eval(e.test, names), name=e.name)
        assert mine is here[e.mine] and said.getvalue().startswith("✓"), f"{e.title}: {said.getvalue()}"
    assert len(c.solved()) == len(found)


def test_a_filled_notebook_leaves_the_record_alone_and_has_no_stub(tmp_path):
    cells = filled(read(CHAPTERS[1]))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(is_stub(node) for cell in code for node in parsed(cell).body)  # chapter 01 has no abstract class
    here = {}
    exec(source(code[1]), here)
    assert c.RECORD != Path(c.__file__).parents[2] / ".progress.json" and not c.RECORD.exists()
