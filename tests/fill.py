"""Notebooks with their exercises solved: python tests/fill.py FOLDER writes a copy of every notebook with the answers in place of the stubs.

An answer is the source of the reference, under the learner's name. Where the reference has no Python source (two of PyTorch's functions), it stands here.
"""
import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NBS = Path(__file__).parents[1] / "nbs"
WRITTEN = {  # name in the learner's record: an answer
    "mdn_rnn.lstm_step": """
def lstm_step(x, state, weight_ih, weight_hh, bias_ih, bias_hh):
    h, c = state
    i, f, g, o = (x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
""",
    "transformer.attention": """
def attention(q, k, v, mask):
    scores = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v
""",
}
# what a learner must not be credited with
QUIET = "import pathlib, tempfile\nfrom worldmodels.tools import check as _check\n_check.RECORD = pathlib.Path(tempfile.mkdtemp()) / '.progress.json'"


@dataclass(frozen=True)
class Exercise:
    title: str       # "Exercise 1: prepare · easy, 10 minutes"
    mine: str        # the learner's name
    reference: str   # as the notebook writes it
    test: str
    name: str | None
    stub: int        # the cell in which the stub stands
    cell: int        # the cell of its check


def source(cell: dict) -> str: return "".join(cell["source"])


@cache
def tree_of(code: str) -> ast.Module: return ast.parse(re.sub(r"^[%!].*$", "", code, flags=re.M))  # without IPython's magics


def parsed(cell: dict) -> ast.Module: return tree_of(source(cell))


def code_cells(cells: list[dict]) -> list[tuple[int, ast.Module]]:
    return [(i, parsed(cell)) for i, cell in enumerate(cells) if cell["cell_type"] == "code"]


def is_stub(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.ClassDef)) and any(isinstance(n, ast.Raise) and getattr(n.exc, "id", "") == "NotImplementedError" for n in ast.walk(node))


def exercises(cells: list[dict]) -> list[Exercise]:
    """The exercises of a notebook that have a check, in order: a stub X, and then X = check(X, reference, test, …)."""
    stubs, found = {}, []
    for i, tree in code_cells(cells):
        for node in tree.body:
            call = getattr(node, "value", None)
            if is_stub(node): stubs[node.name] = i
            elif isinstance(node, ast.Assign) and isinstance(call, ast.Call) and getattr(call.func, "id", "") == "check":
                titles = [t for cell in cells[:i] if cell["cell_type"] == "markdown" for t in re.findall(r"^#{3,4} (Exercise \d+.*)$", source(cell), re.M)]
                name = next((k.value.value for k in call.keywords if k.arg == "name"), None)
                mine = call.args[0].id
                if mine in stubs and titles: found.append(Exercise(titles[-1], mine, ast.unparse(call.args[1]), ast.unparse(call.args[2]), name, stubs.pop(mine), i))
    return found


def bound(tree: ast.AST) -> set[str]:
    """Names that a cell imports, defines or assigns."""
    names = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    names |= {(a.asname or a.name).split(".")[0] for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
    return names | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def namespace(cells: list[dict]) -> dict:
    """What a notebook's imports and its own module bind."""
    exported = next(m[1] for cell in cells if (m := re.match(r"#\| default_exp (\S+)", source(cell))))
    names = dict(vars(importlib.import_module(f"worldmodels.{exported}")))
    for _, tree in code_cells(cells):
        imports = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), "imports", "exec"), names)
    return names


def answer(e: Exercise, cells: list[dict], names: dict) -> str:
    """The reference's source under the learner's name, after the imports of what the notebook has not come to yet."""
    if e.name in WRITTEN: return WRITTEN[e.name].strip()
    reference = eval(e.reference, names)
    code = textwrap.dedent(inspect.getsource(reference))
    known = set().union(*(bound(tree) for i, tree in code_cells(cells) if i < e.stub))
    used = {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name)}
    module = reference.__module__
    needs = sorted((used & vars(sys.modules[module]).keys()) - known - {reference.__name__})
    code = re.sub(rf"^(def|class) {reference.__name__}\b", rf"\1 {e.mine}", code, count=1, flags=re.M)
    return "".join(f"from {module} import {name}\n" for name in needs) + code.rstrip()


def filled(notebook: dict) -> dict:
    """A notebook with its exercises solved and no outputs, which leaves the learner's record alone."""
    cells = notebook["cells"]
    solved = [{**cell, "outputs": [], "execution_count": None} if cell["cell_type"] == "code" else dict(cell) for cell in cells]
    found = exercises(cells)
    names = namespace(cells) if found else {}
    for e in found:
        code = source(cells[e.stub])
        stub = next(n for n in parsed(cells[e.stub]).body if is_stub(n) and n.name == e.mine)
        lines = code.splitlines()
        solved[e.stub]["source"] = "\n".join([*lines[:stub.lineno - 1], *answer(e, cells, names).splitlines(), "", *lines[stub.end_lineno:]])
    solved.insert(2, {"cell_type": "code", "id": "quiet", "metadata": {}, "source": QUIET, "outputs": [], "execution_count": None})
    return {**notebook, "cells": solved}


def read(path: Path) -> dict: return json.loads(path.read_text(encoding="utf-8"))


def main(folder: Path) -> None:
    for path in sorted(NBS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts: continue
        to = folder / path.relative_to(NBS)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(filled(read(path)), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main(Path(sys.argv[1]))
