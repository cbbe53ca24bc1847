"""The house keeps its rule: one notebook, one module."""
from pathlib import Path

from nbdev.export import ExportModuleProc
from nbdev.process import NBProcessor

ROOT = Path(__file__).parents[1]


def exported_by(notebook: Path) -> str:
    proc = ExportModuleProc()
    NBProcessor(notebook, procs=[proc]).process()
    return proc.default_exp


def test_every_module_has_a_notebook_and_every_notebook_a_module():
    notebooks = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    package = ROOT / "worldmodels"
    modules = {".".join(p.relative_to(package).with_suffix("").parts) for p in package.rglob("*.py")
               if p.name not in ("__init__.py", "_modidx.py")}
    assert sorted(exported_by(p) for p in notebooks) == sorted(modules)
