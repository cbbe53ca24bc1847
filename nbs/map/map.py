"""Draws the map of the course, once for the README and once for each chapter, with "you are here": python nbs/map/map.py"""
from html import escape
from pathlib import Path

from worldmodels.tools.show import COLORS, FACE, FAINT, INK, OTHER_COLORS

FOLDER = Path(__file__).parent
TEAL, _, VIOLET, BROWN = OTHER_COLORS
CHAPTERS = {  # number: (left, top, width, height, colour, title, what it is)
    "00": (40, 76, 190, 84, INK, "00  Rollouts", "worlds, policies, records"),
    "01": (335, 76, 190, 84, COLORS["reconstruction"], "01  V", "a frame in 32 numbers"),
    "04": (650, 76, 190, 84, TEAL, "04  C", "867 numbers that drive"),
    "02": (650, 224, 190, 66, COLORS["dream"], "02  M", "what happens next"),
    "03": (650, 298, 190, 54, BROWN, "03  Transformers", "other Ms"),
    "06": (40, 258, 190, 84, VIOLET, "06  Doom", "trained in dreams alone"),
    "07": (40, 432, 820, 46, "#6a6a73", "07  Baselines", "PPO, controls, comparisons that hold: what is a world model worth?"),
}
DREAM = (615, 48, 260, 364)
ALT = ("Map of the course. Frames recorded in a world (00) become 32 numbers in V (01); M (02, or one of the transformers of 03) remembers them and "
       "foresees the next; C (04) drives the world on both. In the dream (05) M takes the world's place and C drives there; Doom (06) meets a C found in "
       "a dream alone; baselines (07) stand under all of it.")


def alt(here: str | None = None) -> str:
    """What stands for the map in words: all of it in the README, the place on it in a chapter."""
    if here is None: return ALT
    title, about = ("05  The dream", "M in the world's place") if here == "05" else CHAPTERS[here][-2:]
    return f"The map of the course (in words in the README). You are here: {title.replace('  ', ', ')}: {about}."


def text(x: float, y: float, words: str, size: int = 13, color: str = INK, anchor: str = "start", weight: str = "normal", more: str = "") -> str:
    return (f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}"{more}>{escape(words)}</text>')


def tag(x: float, y: float, color: str) -> str:
    """"You are here", its lower right corner at (x, y)."""
    return (f'<rect x="{x - 96}" y="{y - 20}" width="96" height="20" rx="10" fill="{FACE}" stroke="{color}" stroke-width="1.5"/>'
            + text(x - 48, y - 6, "you are here", 12, color, "middle", "bold"))


def box(number: str, here: str | None) -> str:
    x, y, w, h, color, title, about = CHAPTERS[number]
    on = number == here
    wide = number == "07"
    words = FACE if on else color
    first = (x + 16, y + 29) if wide else (x + 16, y + h / 2 - 3)
    second = (x + 168, y + 29) if wide else (x + 16, y + h / 2 + 18)
    return (f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="10" fill="{color}" fill-opacity="{1 if on else 0.09}" stroke="{color}" stroke-width="1.6"/>'
            + text(*first, title, 17, words, weight="bold", more=' xml:space="preserve"') + text(*second, about, 13, FACE if on else INK)
            + (tag(x + w - 10, y + {"02": 34, "03": 48}.get(number, 9), color) if on else ""))


def arrow(path: str, words: str = "", at: tuple[float, float] = (0, 0), color: str = INK, anchor: str = "middle", dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    line = f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8"{dashes} marker-end="url(#{"dream" if color != INK else "tip"})"/>'
    return line + (text(*at, words, 13, color, anchor) if words else "")


def tip(name: str, color: str) -> str:
    return (f'<marker id="{name}" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0,0.5 L9.5,5 L0,9.5 z" fill="{color}"/></marker>')


def draw(here: str | None = None) -> str:
    """The map as SVG, with chapter `here` filled; its own light ground makes it readable in a dark theme, too."""
    dream = COLORS["dream"]
    x, y, w, h = DREAM
    on = here == "05"
    parts = [
        f'<rect width="900" height="500" rx="14" fill="{FACE}" stroke="{FAINT}"/>',
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="16" fill="{dream}" fill-opacity="{0.16 if on else 0.05}" stroke="{dream}" stroke-width="{2.6 if on else 1.6}" stroke-dasharray="7 5"/>',
        text(x + w / 2, y + h - 34, "05  The dream", 17, dream, "middle", "bold", ' xml:space="preserve"'),
        text(x + w / 2, y + h - 14, "M in the world's place", 13, INK, "middle"),
        arrow("M232,118 H331", "frames", (282, 109)),
        arrow("M527,118 H646", "z", (572, 109)),
        arrow("M430,162 V257 H646", "z", (440, 210), anchor="start"),
        arrow("M700,222 V164", "memory", (692, 198), anchor="end"),
        arrow("M790,162 V220", "action", (798, 198), anchor="start"),
        arrow("M745,74 V30 H135 V72", "action", (440, 23)),
        arrow("M613,306 H234", "C, found in the dream", (424, 298), dream, dash="7 5"),
        *(box(number, here) for number in CHAPTERS),
    ]
    if on: parts.append(tag(x + w - 14, y + 10, dream))
    name = escape(alt(here))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 500" width="900" height="500" role="img" '
            f'font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"><title>{name}</title><defs>{tip("tip", INK)}{tip("dream", dream)}</defs>\n'
            + "\n".join(parts) + "\n</svg>\n")


def maps() -> dict[str, str]:
    """Every file's name and what it holds."""
    return {"course.svg": draw(), **{f"{n}.svg": draw(n) for n in sorted([*CHAPTERS, "05"])}}


if __name__ == "__main__":
    for name, svg in maps().items(): (FOLDER / name).write_text(svg, encoding="utf-8")
