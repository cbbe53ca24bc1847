"""Every picture that a notebook keeps has a description in words, and no notebook is too large to read."""
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).parents[1] / "nbs"
NOTEBOOKS = [p for p in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_pictures_have_alternative_text(path):
    assert path.stat().st_size < 1_000_000
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown": assert all(alt.strip() for alt in re.findall(r"!\[([^\]]*)\]\(", source)), source[:80]
        else:
            assert not re.search(r"^plt\.show\(\)", source, re.M), "show.plotted('what is to be seen')"
            for output in cell["outputs"]:
                if "image/png" in output.get("data", {}): assert output["metadata"].get("image/png", {}).get("alt", "").strip(), source[:80]
