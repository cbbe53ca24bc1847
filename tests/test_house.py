"""The house keeps its rules: one notebook, one module; small modules and functions; chapters for ideas."""
import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbdev.export import ExportModuleProc
from nbdev.process import NBProcessor

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
WITHOUT_MODULE = {"own_game.ipynb"}  # it shows, and exports nothing
MODULES = [p for folder in ("worldmodels", "solutions") for p in sorted((ROOT / folder).rglob("*.py"))
           if p.name != "_modidx.py"]
WIDTH = 110


def exported_by(notebook: Path) -> str:
    proc = ExportModuleProc()
    NBProcessor(notebook, procs=[proc]).process()
    return proc.default_exp


def test_every_module_has_a_notebook_and_every_notebook_a_module():
    package = ROOT / "worldmodels"
    modules = {".".join(p.relative_to(package).with_suffix("").parts) for p in package.rglob("*.py")
               if p.name not in ("__init__.py", "_modidx.py")}
    assert sorted(exported_by(p) for p in NOTEBOOKS if p.name not in WITHOUT_MODULE) == sorted(modules)


def code_cells(notebook: Path) -> list[str]:
    return [c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "code"]


def code_lines(source: str) -> list[str]:
    return [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]


def nodes(kind: type, modules: list[Path]) -> list[ast.AST]:
    return [n for p in modules for n in ast.walk(ast.parse(p.read_text())) if isinstance(n, kind)]


def is_packed(assignment: ast.Assign) -> bool:
    return isinstance(assignment.targets[0], ast.Tuple) and isinstance(assignment.value, ast.Tuple)


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_can_be_read_in_one_sitting(module):
    lines = module.read_text().splitlines()
    assert len(lines) <= 500
    generated = re.compile(r"__all__ = \[|           '\w+")  # nbdev's list of names has a width of its own
    assert not [line for line in lines if len(line) > WIDTH and not generated.match(line)]
    functions = nodes((ast.FunctionDef, ast.AsyncFunctionDef), [module])
    assert not [f.name for f in functions if f.end_lineno - f.lineno + 1 > 50]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_cell_is_wider_than_the_page(notebook):
    wide = [line for source in code_cells(notebook) for line in source.splitlines() if len(line) > WIDTH]
    assert not wide


@pytest.mark.parametrize("folder", ["worldmodels", "solutions"])
def test_lambdas_and_packed_assignments_are_few(folder):
    modules = [p for p in MODULES if p.is_relative_to(ROOT / folder)]
    thousands = sum(len(p.read_text().splitlines()) for p in modules) / 1000
    assert len(nodes(ast.Lambda, modules)) <= 10 * thousands
    assert sum(map(is_packed, nodes(ast.Assign, modules))) <= 15 * thousands


@pytest.mark.parametrize("chapter", sorted((ROOT / "nbs").glob("0*.ipynb")), ids=lambda p: p.stem)
def test_a_chapter_is_for_ideas(chapter):
    """Of its code at most half is the library's, and at most 300 lines; tests of exercises are not counted."""
    exported = written = 0
    for source in code_cells(chapter):
        is_export = re.search(r"^#\|\s*exporti?\b", source, re.M)
        body = ast.parse(source).body if is_export else []
        tests = [d for d in body if getattr(d, "name", "").startswith("test_")]
        rows = source.splitlines()
        lines = len(code_lines(source)) - sum(len(code_lines("\n".join(rows[d.lineno - 1:d.end_lineno]))) for d in tests)
        written += lines
        exported += lines if is_export else 0
    assert exported <= 300 and exported <= written / 2


def test_a_star_import_brings_no_tests():
    for module in MODULES:
        names = [n for n in nodes(ast.Assign, [module]) if getattr(n.targets[0], "id", "") == "__all__"]
        for listed in names: assert not [x for x in ast.literal_eval(listed.value) if x.startswith("test_")], module
