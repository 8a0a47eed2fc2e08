"""Small charts with exact questions: the second bundled world, with other pictures, skills and wordings than the digits.

Bars, lines and pies of 64 x 64 pixels, drawn by Pillow: matplotlib takes a hundred times longer for a figure, would be one more
dependency, and its pixels change with its version. Charts have no text; colours name the bars and slices. Values are read off
the grid lines, shares off the areas. The pools share no chart: which pool a chart is in follows from what it shows.
"""

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from mixpo.sources.build import lettered
from mixpo.sources.puzzles import Puzzle, World

POOLS = {"start": range(0, 50), "preference": range(50, 80), "validation": range(80, 90), "test": range(90, 100)}
"""Percentiles of all charts, by a checksum of kind, colours and values."""

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 220),
    "orange": (255, 150, 20),
    "purple": (150, 60, 190),
    "gray": (120, 120, 120),
}
QUARTERS = ("Q1", "Q2", "Q3", "Q4")
SIDE = 64
"""Width and height in pixels."""
UNIT = 6
"""Pixels from one grid line to the next; values go from 1 to 9."""
FINE = 4
"""Charts are drawn that many times larger and averaged, so that slanted edges are smooth."""

Kind = Literal["bars", "line", "pie"]


@dataclass(frozen=True, slots=True)
class DrawnChart:
    """Values in reading order (pies: clockwise from the top, in per cent) with their colours; a line has a single colour.

    style: seed of what no question is about, such as the width of the bars.
    """

    kind: Kind
    colours: tuple[str, ...]
    values: tuple[int, ...]
    style: int

    def percentile(self) -> int:
        """A checksum of what the chart shows, from 0 to 99."""
        return zlib.crc32(repr((self.kind, self.colours, self.values)).encode()) % 100


def compose(rng: random.Random, pool: str) -> DrawnChart:
    """A random chart of a pool."""
    while True:
        kind: Kind = rng.choice(("bars", "line", "pie"))
        if kind == "pie":
            cuts = sorted(rng.sample(range(1, 10), rng.choice((2, 3))))
            values = tuple(10 * (end - start) for start, end in zip([0, *cuts], [*cuts, 10], strict=True))
        else:
            values = tuple(rng.randint(1, 9) for _ in QUARTERS)
        colours = tuple(rng.sample(sorted(COLOURS), 1 if kind == "line" else len(values)))
        chart = DrawnChart(kind, colours, values, rng.getrandbits(16))
        if chart.percentile() in POOLS[pool]:
            return chart


# --- drawing -----------------------------------------------------------------------------------------------------------


def draw(chart: DrawnChart) -> Image.Image:
    """The chart as an RGB image of 64 x 64 pixels."""
    rng = random.Random(chart.style)
    paper = rng.randint(238, 255)
    image = Image.new("RGB", (SIDE * FINE, SIDE * FINE), (paper, paper, paper))
    canvas = ImageDraw.Draw(image)
    fills = [tuple(min(255, max(0, part + rng.randint(-15, 15))) for part in COLOURS[name]) for name in chart.colours]
    if chart.kind == "pie":
        _pie(canvas, chart, fills, rng)
    else:
        for value in range(10):
            y = _height(value)
            shade = 150 if value in (0, 5) else 215
            canvas.rectangle((0, y - 1, SIDE * FINE, y + 1), fill=(shade, shade, shade))
        (_bars if chart.kind == "bars" else _line)(canvas, chart, fills, rng)
    return image.reduce(FINE)


def _height(value: int) -> int:
    """The row of a value on the enlarged canvas."""
    return (SIDE - 4 - UNIT * value) * FINE


def _centre(place: int) -> int:
    """The column of a bar or point on the enlarged canvas."""
    return (8 + 16 * place) * FINE


def _bars(canvas: ImageDraw.ImageDraw, chart: DrawnChart, fills: list[tuple[int, ...]], rng: random.Random) -> None:
    half = rng.uniform(3.5, 6) * FINE
    for place, (value, fill) in enumerate(zip(chart.values, fills, strict=True)):
        canvas.rectangle((_centre(place) - half, _height(value), _centre(place) + half, _height(0)), fill=fill)


def _line(canvas: ImageDraw.ImageDraw, chart: DrawnChart, fills: list[tuple[int, ...]], rng: random.Random) -> None:
    points = [(_centre(place), _height(value)) for place, value in enumerate(chart.values)]
    canvas.line(points, fill=fills[0], width=round(rng.uniform(1, 2) * FINE))
    dot = rng.uniform(2, 3) * FINE
    for x, y in points:
        canvas.ellipse((x - dot, y - dot, x + dot, y + dot), fill=fills[0])


def _pie(canvas: ImageDraw.ImageDraw, chart: DrawnChart, fills: list[tuple[int, ...]], rng: random.Random) -> None:
    radius, middle, angle = rng.uniform(26, 30) * FINE, SIDE * FINE / 2, -90.0
    for value, fill in zip(chart.values, fills, strict=True):
        end = angle + 3.6 * value
        canvas.pieslice((middle - radius, middle - radius, middle + radius, middle + radius), angle, end, fill=fill)
        angle = end


# --- question families: each returns a Puzzle, or None where the chart does not suit it --------------------------------


def phrase(rng: random.Random, *templates: str) -> str:
    """One of the templates, with one option of each [group|of|options] in it."""
    return re.sub(r"\[([^]]*)\]", lambda group: rng.choice(group[1].split("|")), rng.choice(templates))


def _pick(chart: DrawnChart, rng: random.Random) -> tuple[str, int, str, int]:
    """Two different colours with their values."""
    i, j = rng.sample(range(len(chart.values)), 2)
    return chart.colours[i], chart.values[i], chart.colours[j], chart.values[j]


def _value(chart: DrawnChart, rng: random.Random) -> Puzzle | None:
    if chart.kind != "bars":
        return None
    colour, value, _, _ = _pick(chart, rng)
    text = phrase(
        rng,
        f"[What is|What's] the [value|height] of the {colour} bar?",
        f"[How high|How tall] is the {colour} bar?",
        f"[Read off|State|Give] the [value|height] of the {colour} bar.",
        f"[Which|What] value does the {colour} bar [have|show|reach]?",
    )
    return Puzzle("value", text, str(value), "number", f"The {colour} bar is {value}.")


def _compare(chart: DrawnChart, rng: random.Random) -> Puzzle | None:
    if chart.kind != "bars":
        return None
    one, a, other, b = _pick(chart, rng)
    text = phrase(
        rng,
        f"Is the {one} bar [taller|higher|larger] than the {other} [bar|one]?",
        f"Does the {one} bar [exceed|rise above] the {other} [bar|one]?",
        f"Compare {one} and {other}: is {one} [taller|higher|larger]?",
    )
    relation = "larger than" if a > b else "not larger than"
    steps = f"The {one} bar is {a}, the {other} bar is {b}, {a} is {relation} {b}."
    return Puzzle("compare", text, "yes" if a > b else "no", "yes_no", steps)


def _total(chart: DrawnChart, rng: random.Random) -> Puzzle | None:
    if chart.kind != "bars":
        return None
    a, b, c, d = chart.values
    text = phrase(
        rng,
        "What is the [sum|total] of [all|the four] bars?",
        "[Add up|Sum up] [all|the four] bars. [What do you get?|What is the result?]",
        "How much [is it|are they|do the bars make] [together|in total|all in all]?",
        "[Give|State|Work out] the [sum|total] of [all|the four] [bars|values].",
    )
    steps = f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}, {a + b + c} + {d} = {a + b + c + d}."
    return Puzzle("total", text, str(a + b + c + d), "number", steps)


def _gap(chart: DrawnChart, rng: random.Random) -> Puzzle | None:
    if chart.kind != "bars":
        return None
    high, low = max(chart.values), min(chart.values)
    text = phrase(
        rng,
        "How much [taller|higher] is the [tallest|highest] bar than the [shortest|lowest] [one|bar]?",
        "What is the [gap|difference] between the [tallest|highest] and the [shortest|lowest] bar?",
        "[Subtract|Take] the [shortest|lowest] bar from the [tallest|highest] [one|bar].",
        "By how much do the [tallest|highest] and the [shortest|lowest] bar differ?",
    )
    return Puzzle("gap", text, str(high - low), "number", f"Highest {high}, lowest {low}, {high} - {low} = {high - low}.")


def _trend(chart: DrawnChart, rng: random.Random) -> Puzzle | None:
    if chart.kind != "line":
        return None
    first, last = chart.values[0], chart.values[-1]
    text = phrase(
        rng,
        "Does the line [end|finish] [higher|above] [than where it starts|where it began]?",
        "Is the value [higher|larger] in Q4 than in Q1?",
        "[Overall|From Q1 to Q4], does the [line|value] [rise|go up|increase]?",
        "Is the [trend|change] from [Q1 to Q4|start to end] [upward|positive]?",
    )
    relation = "larger than" if last > first else "not larger than"
    steps = f"Q1 is {first}, Q4 is {last}, {last} is {relation} {first}."
    return Puzzle("trend", text, "yes" if last > first else "no", "yes_no", steps)


def _count(chart: DrawnChart, rng: random.Random) -> Puzzle | None:
    if chart.kind != "line":
        return None
    limit = rng.randint(2, 7)
    text = phrase(
        rng,
        f"In how many quarters is the [value|line] [above|higher than|larger than] {limit}?",
        f"How many [points|quarters] [lie|are] [above|over] {limit}?",
        f"Count the [points|quarters] [above|over] {limit}.",
        f"How often does the line [exceed|pass] {limit}?",
    )
    hits = sum(value > limit for value in chart.values)
    judged = ", ".join(f"{value} {'yes' if value > limit else 'no'}" for value in chart.values)
    return Puzzle("count", text, str(hits), "number", f"Above {limit}: {judged}. That makes {hits}.")


def _peak(chart: DrawnChart, rng: random.Random) -> Puzzle | None:
    best = max(chart.values)
    if chart.kind != "line" or chart.values.count(best) > 1:
        return None
    text = phrase(
        rng,
        "[When|In which quarter] is the [line|value] [highest|largest]?",
        "[Which|What] quarter has the [highest|largest] [value|point]?",
        "[When|In which quarter] does the line [peak|reach its highest point]?",
    )
    options = rng.sample(QUARTERS, len(QUARTERS))
    quarter = QUARTERS[chart.values.index(best)]
    letter = "ABCD"[options.index(quarter)]
    steps = f"The highest is {best}, in {quarter}, which is {letter}."
    return Puzzle("peak", f"{text}\n{lettered(options)}", letter, "choice", steps, tuple(options))


def _share(chart: DrawnChart, rng: random.Random) -> Puzzle | None:
    if chart.kind != "pie":
        return None
    colour, value, _, _ = _pick(chart, rng)
    text = phrase(
        rng,
        f"What [percentage|share, in percent,] of the [pie|circle] is {colour}?",
        f"How many percent [are|is] {colour}?",
        f"[Estimate|Give|State] the {colour} [slice|share] in percent.",
        f"How [large|big] is the {colour} slice, in percent?",
    )
    return Puzzle("share", text, str(value), "number", f"The {colour} slice is {value}.")


def _together(chart: DrawnChart, rng: random.Random) -> Puzzle | None:
    if chart.kind != "pie":
        return None
    one, a, other, b = _pick(chart, rng)
    text = phrase(
        rng,
        f"What percentage do {one} and {other} [have|make up] [together|in total]?",
        f"How many percent are {one} and {other} [together|combined|in total]?",
        f"[Add|Combine] {one} and {other}[. How many percent is that?|: what percentage is it?]",
    )
    steps = f"The {one} slice is {a}, the {other} slice is {b}, {a} + {b} = {a + b}."
    return Puzzle("together", text, str(a + b), "number", steps)


def _largest(chart: DrawnChart, rng: random.Random) -> Puzzle | None:
    word = rng.choice(("largest", "smallest"))
    best = max(chart.values) if word == "largest" else min(chart.values)
    if chart.kind != "pie" or chart.values.count(best) > 1:
        return None
    text = phrase(
        rng,
        f"[Which|What] colour has the {word} [slice|share]?",
        f"What is the colour of the {word} slice?",
        f"[Name|Give] the colour of the {word} slice.",
        f"[Which|What] slice is the {word}? [Name its colour.|Give its colour.]",
    )
    colour = chart.colours[chart.values.index(best)]
    return Puzzle("largest", text, colour, "text", f"The {word} is {best}, which is {colour}.")


def _open(chart: DrawnChart, rng: random.Random) -> Puzzle:
    text = phrase(
        rng, "Describe the [chart|picture].", "What [do you see|is shown] in this [chart|picture]?", "What does the [chart|picture] show?"
    )
    return Puzzle("open", text, None, "none", f"The highest is {max(chart.values)}, the lowest {min(chart.values)}.")


WORLD = World(
    name="charts",
    compose=compose,
    draw=draw,
    families={
        "value": _value,
        "compare": _compare,
        "total": _total,
        "gap": _gap,
        "trend": _trend,
        "count": _count,
        "peak": _peak,
        "share": _share,
        "together": _together,
        "largest": _largest,
    },
    open_family=_open,
)
