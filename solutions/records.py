"""Results kept as JSON: what has been computed once is read from then on."""
import json
from collections.abc import Callable
from pathlib import Path

from worldmodels.tools.settings import write_json


def cached_json(path: Path, make: Callable[[], dict]) -> dict:
    """The JSON in `path`, made by `make()` unless it is there."""
    if not path.exists(): write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))
