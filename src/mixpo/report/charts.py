"""Small charts as inline SVG. Every label is escaped, colours come from the page's style sheet (classes c0 to c5), tooltips are <title>.

Lanes and bars stretch with the page (positions in per cent, text never scaled); histograms and curves are fixed drawings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 190
"""Drawing area of histograms and curves in SVG units."""
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 10, 34
"""Margins around their plot."""
LETTER = 7
"""What a letter of a tick takes at most."""
MAX_POINTS = 300
"""Points drawn for a curve; longer ones are averaged in equal stretches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A value with its interval in one lane. shape: "full", "hollow" or "diamond"; colour: index into the palette."""

    value: float
    low: float
    high: float
    text: str
    tip: str
    shape: str = "full"
    colour: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A labelled row of dots, drawn one below the other; `note` is small text under the label."""

    label: str
    dots: Sequence[Dot]
    note: str = ""


def element(name: str, *content: str | Markup, **attributes: object) -> Markup:
    """An element; content and attribute values are escaped unless they are Markup. Trailing _ is dropped, other _ become -."""
    inside = "".join(f' {escape(key.rstrip("_").replace("_", "-"))}="{escape(_short(value))}"' for key, value in attributes.items())
    return Markup(f"<{name}{inside}>{''.join(map(escape, content))}</{name}>")  # every part is escaped


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers inside [low, high], at least two, in steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    # With a quarter more allowed, the largest jump of the steps (2 to 5) still leaves more than two of them in the span.
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 1.25 * count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A tick's text: short, without needless digits."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
    text = f"{value:,.3f}".rstrip("0").rstrip(".")
    return text.replace("-", "−")


def tick_labels(values: Sequence[float]) -> list[str]:
    """The texts of evenly spaced ticks: with as many decimals as tell them apart, all in the same power of ten."""
    if len(values) < 2:
        return [tick_label(value) for value in values]
    largest, step = max(map(abs, values)), abs(values[1] - values[0])
    exponent = math.floor(math.log10(largest) + 1e-9) if largest and not 1e-3 <= largest < 1e5 else 0
    places = max(0, -math.floor(math.log10(step) + 1e-9) + exponent)
    ending = f"e{exponent}" if exponent else ""
    return [f"{value / 10.0**exponent:,.{places}f}{ending if value else ''}".replace("-", "−") if value else "0" for value in values]


# --- lanes: values with intervals ----------------------------------------------------------------------------------------


def lanes(rows: Sequence[Lane], summary: str, percent_points: bool = False) -> Markup:
    """Dot-and-interval chart of shares (0 to 1), or of differences of shares with a line at zero."""
    dots = [dot for row in rows for dot in row.dots]
    low, high = _span(dots, percent_points)

    def at(value: float) -> str:
        return f"{(min(max(value, low), high) - low) / (high - low) * 100:.2f}%"

    marked = ticks(low, high, 5)
    parts = [_lane(row, marked, at, percent_points) for row in rows]
    named = zip(marked, tick_labels([round(t * 100, 6) for t in marked]), strict=True)
    texts = [element("text", text, x=at(t), y=14, text_anchor=_anchor(t, low, high), class_="tick") for t, text in named]
    unit = "points" if percent_points else "%"
    axis = element("div", element("span"), element("svg", *texts, height=18, aria_hidden="true"), element("span", unit, class_="unit"))
    return element(
        "div", *parts, Markup(str(axis).replace("<div>", '<div class="lane axis">', 1)), class_="lanes", role="img", aria_label=summary
    )


def _span(dots: Sequence[Dot], around_zero: bool) -> tuple[float, float]:
    low, high = min(m.low for m in dots), max(m.high for m in dots)
    if around_zero:
        low, high = min(low, 0.0), max(high, 0.0)
        step = 0.05
    else:
        step = 0.1
    low, high = math.floor(low / step - 0.2) * step, math.ceil(high / step + 0.2) * step
    return (low, high) if around_zero else (max(0.0, low), min(1.0, high))


def _anchor(value: float, low: float, high: float) -> str:
    if value - low < 0.02 * (high - low):
        return "base"
    return "end" if high - value < 0.02 * (high - low) else "middle"


def _lane(row: Lane, marked: Sequence[float], at: Callable[[float], str], around_zero: bool) -> Markup:
    height = 20 * len(row.dots) + 10
    grid = [element("line", x1=at(t), x2=at(t), y1=0, y2=height, class_="zero" if around_zero and t == 0 else "grid") for t in marked]
    drawn, texts = [], []
    for number, dot in enumerate(row.dots):
        y = 15 + 20 * number
        drawn.append(
            element(
                "g",
                element("title", dot.tip),
                element("line", x1=at(dot.low), x2=at(dot.high), y1=y, y2=y, class_="hit"),
                element("line", x1=at(dot.low), x2=at(dot.high), y1=y, y2=y, class_="whisker"),
                _shape(dot.shape, at(dot.value), y),
                class_=f"dot c{dot.colour % 6}",
            )
        )
        texts.append(element("text", dot.text, x="100%", y=y + 4, text_anchor="end", class_="value"))
    name = element("span", row.label, *([element("small", row.note)] if row.note else []), class_="lane-label")
    plot = element("svg", *grid, *drawn, height=height)
    return element("div", name, plot, element("svg", *texts, height=height, class_="values"), class_="lane")


def _shape(shape: str, x: str, y: int) -> Markup:
    if shape == "diamond":
        return element("svg", element("path", d="M0-5.5 5.5 0 0 5.5-5.5 0Z", class_="dot"), x=x, y=y, overflow="visible")
    return element("circle", cx=x, cy=y, r=5, class_="dot hollow" if shape == "hollow" else "dot")


# --- bars ------------------------------------------------------------------------------------------------------------------


def bars(items: Sequence[tuple[str, float, str]], summary: str, colour: int = 2) -> Markup:
    """Horizontal bars: (label, value, text of the value)."""
    largest = max((value for _, value, _ in items), default=0) or 1
    rows = []
    for name, value, text in items:
        bar = element(
            "rect", element("title", f"{name}: {text}"), width=f"{value / largest * 100:.2f}%", height=14, y=4, rx=3, class_="bar"
        )
        plot = element("svg", bar, height=22, class_=f"c{colour}")
        rows.append(
            element("div", element("span", name, class_="lane-label"), plot, element("span", text, class_="bar-value"), class_="lane")
        )
    return element("div", *rows, class_="lanes bars", role="img", aria_label=summary)


def stack(segments: Sequence[tuple[str, int, int]], summary: str) -> Markup:
    """One bar cut into shares: (label, count, colour). Its legend names every part with count and share."""
    total = sum(count for _, count, _ in segments) or 1
    start, drawn, legend = 0.0, [], []
    for name, count, colour in segments:
        share = count / total * 100
        tip = element("title", f"{name}: {count:,} ({share:.1f} %)")
        drawn.append(element("rect", tip, x=f"{start:.3f}%", width=f"{share:.3f}%", height=22, class_=f"bar part c{colour}"))
        text = f"{name} {count:,} ({share:.1f} %)"
        legend.append(element("li", element("i", class_=f"chip c{colour}"), text))
        start += share
    plot = element("svg", *drawn, height=22, class_="stack")
    return element("div", plot, element("ul", *legend, class_="legend"), role="img", aria_label=summary)


# --- histograms and curves ---------------------------------------------------------------------------------------------------


def histogram(edges: Sequence[float], series: Mapping[str, Sequence[float]], unit: str, summary: str, first_colour: int = 2) -> Markup:
    """Overlaid outlines of counts over common bins, drawn equally wide whatever they span.

    Bin i is [edges[i], edges[i + 1]); the last also counts everything above. Empty bins at both ends are not drawn.
    """
    used = [i for i in range(len(edges) - 1) if any(counts[i] for counts in series.values())] or [0]
    first, last = used[0], used[-1] + 1
    top = max(max(counts) for counts in series.values()) or 1
    at_x, at_y = _scale(first, last, LEFT, WIDTH - RIGHT), _scale(0, top, HEIGHT - BOTTOM, TOP)
    drawn = []
    for number, (name, counts) in enumerate(series.items()):
        outline = f"M{at_x(first):.1f} {at_y(0):.1f}"
        outline += "".join(f"V{at_y(counts[i]):.1f}H{at_x(i + 1):.1f}" for i in range(first, last)) + f"V{at_y(0):.1f}"
        drawn.append(element("path", d=outline, class_=f"outline c{first_colour + number} d{number}"))
        for i in range(first, last):
            if counts[i]:
                tip = element("title", f"{name}, {_bin(edges, i)} {unit}: {counts[i]:,.0f}")
                height = at_y(0) - at_y(counts[i])
                drawn.append(element("rect", tip, x=at_x(i), y=at_y(counts[i]), width=at_x(i + 1) - at_x(i), height=height, class_="hover"))
    longest = max(len(tick_label(edges[i])) for i in range(first, last + 1))
    room = max(1, min(9, (WIDTH - LEFT - RIGHT) // (LETTER * longest + 10)))
    marked = [(i, tick_label(edges[i])) for i in range(first, last + 1, math.ceil((last - first) / room))]
    return _figure(drawn, (first, last), (0, top), unit, summary, marked) + _legend(list(series), first_colour)


def _bin(edges: Sequence[float], number: int) -> str:
    return (
        f"{tick_label(edges[number])} to {tick_label(edges[number + 1])}"
        if number + 2 < len(edges)
        else f"{tick_label(edges[number])} or more"
    )


def curves(
    steps: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    summary: str,
    colours: Sequence[int],
    limits: Mapping[str, float] = MappingProxyType({}),
) -> Markup:
    """Curves over steps; a missing value is a gap. Long curves are drawn as the means of equal stretches.

    limits: warning thresholds by name, drawn as dashed lines.
    """
    known = [v for values in series.values() for v in values if v is not None]
    if not known:
        return element("p", "no finite values", class_="quiet")
    known += limits.values()
    low, high = min(known), max(known)
    ticked = [low] if low == high else None
    pad = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    low, high = low - pad, high + pad
    ends = (steps[0], steps[-1] if steps[-1] > steps[0] else steps[0] + 1)
    at_x, at_y = _scale(*ends, LEFT, WIDTH - RIGHT), _scale(low, high, HEIGHT - BOTTOM, TOP)
    drawn = []
    if low < 0 < high:
        drawn.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at_y(0), y2=at_y(0), class_="zero"))
    for name, limit in limits.items():
        tip = element("title", f"{name}: {limit:g}")
        drawn.append(element("line", tip, x1=LEFT, x2=WIDTH - RIGHT, y1=at_y(limit), y2=at_y(limit), class_="limit"))
    for (name, values), colour, dash in zip(series.items(), colours, range(len(series)), strict=True):
        points = thin(steps, values)
        path, pen = "", "M"
        for step, value in points:
            path += f"{pen}{at_x(step):.1f} {at_y(value):.1f}" if value is not None else ""
            pen = "M" if value is None else "L"
        drawn.append(element("path", element("title", name), d=path, class_=f"curve c{colour} d{dash}"))
        if len(points) == 1 and points[0][1] is not None:
            # A line through one point would not be seen.
            drawn.append(element("circle", cx=at_x(points[0][0]), cy=at_y(points[0][1]), r=3.5, class_=f"dot c{colour}"))
        for step, value in points[:: max(1, len(points) // 40)]:
            if value is not None:
                tip = element("title", f"{name}, step {tick_label(step)}: {value:.4g}")
                drawn.append(element("circle", tip, cx=at_x(step), cy=at_y(value), r=5, class_=f"spot c{colour}"))
    whole = _named([step for step in ticks(*ends, 5) if float(step).is_integer()])
    return _figure(drawn, ends, (low, high), "step", summary, whole, ticked) + _legend(list(series), colours)


def thin(steps: Sequence[float], values: Sequence[float | None]) -> list[tuple[float, float | None]]:
    """At most MAX_POINTS points: the means of equal stretches (a stretch without any value stays a gap)."""
    size = math.ceil(len(steps) / MAX_POINTS) or 1
    points: list[tuple[float, float | None]] = []
    for start in range(0, len(steps), size):
        here, known = steps[start : start + size], [v for v in values[start : start + size] if v is not None]
        points.append((sum(here) / len(here), sum(known) / len(known) if known else None))
    return points


def _named(values: Sequence[float]) -> list[tuple[float, str]]:
    return list(zip(values, tick_labels(values), strict=True))


class _scale:  # noqa: N801 (reads as a function)
    """Linear map from [low, high] to [start, end]."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start, self.slope = low, start, (end - start) / ((high - low) or 1)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.slope


def _figure(
    drawn: list[Markup],
    x: tuple[float, float],
    y: tuple[float, float],
    unit: str,
    summary: str,
    marked: Sequence[tuple[float, str]],
    ticked: Sequence[float] | None = None,
) -> Markup:
    """Axes around what was drawn. marked: the ticks of x. ticked: those of y, where they are not simply round numbers."""
    at_x, at_y = _scale(*x, LEFT, WIDTH - RIGHT), _scale(*y, HEIGHT - BOTTOM, TOP)
    axes = []
    for t, text in _named(ticks(*y, 4) if ticked is None else ticked):
        axes.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at_y(t), y2=at_y(t), class_="grid"))
        axes.append(element("text", text, x=LEFT - 6, y=at_y(t) + 4, text_anchor="end", class_="tick"))
    for t, text in marked:
        axes.append(element("line", x1=at_x(t), x2=at_x(t), y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="axis-line"))
        axes.append(element("text", text, x=at_x(t), y=HEIGHT - BOTTOM + 16, text_anchor="middle", class_="tick"))
    axes.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis-line"))
    axes.append(element("text", unit, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle", class_="tick"))
    return element("svg", *axes, *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=summary, class_="plot")


def _legend(names: Sequence[str], colours: Sequence[int] | int) -> Markup:
    picked = colours if not isinstance(colours, int) else range(colours, colours + len(names))
    if len(names) < 2:
        return Markup("")
    key = [
        element("svg", element("line", x1=0, x2=22, y1=5, y2=5, class_=f"curve c{colour} d{dash}"), width=22, height=10, aria_hidden="true")
        for dash, colour in enumerate(picked)
    ]
    return element("ul", *(element("li", line, name) for line, name in zip(key, names, strict=True)), class_="legend")
