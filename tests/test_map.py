"""The map of the course: its files are what nbs/map/map.py draws, and every chapter begins with the one on which it is marked."""
import importlib.util
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("course_map", ROOT / "nbs" / "map" / "map.py")
course = importlib.util.module_from_spec(spec)
spec.loader.exec_module(course)


@pytest.mark.parametrize("name, svg", course.maps().items(), ids=course.maps())
def test_a_file_is_what_the_code_draws(name, svg):
    assert (course.FOLDER / name).read_text(encoding="utf-8") == svg, "run python nbs/map/map.py"
    texts = [t.text for t in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("you are here") == (name != "course.svg")


def test_the_readme_shows_the_whole_map_with_its_description():
    assert f"![{course.ALT}](nbs/map/course.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")


CHAPTERS = [pytest.param(p, id=p.stem) for p in sorted((ROOT / "nbs").glob("0*.ipynb"))]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_begins_with_the_map(chapter):
    number = chapter.stem[:2]
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    opening = next("".join(c["source"]) for c in cells[1:] if c["cell_type"] == "markdown")
    assert re.match(rf"!\[[^\]]+You are here: [^\]]+\]\(map/{number}\.svg\)", opening), f"![{course.alt(number)}](map/{number}.svg)"
