from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixpo.report.charts import Dot, Lane, bars, curves, element, histogram, lanes, stack, thin, tick_label, tick_labels, ticks


def dot(value: float, low: float, high: float) -> Dot:
    return Dot(value=value, low=low, high=high, text=f"{value:.2f}", tip="tip")


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_inside_and_even(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert found == sorted(found)
    assert len(found) <= 7
    slack = 1e-6 * max(abs(low), span)
    assert all(low - slack <= t <= low + span + slack for t in found)


def test_ticks_are_round() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(3, 3) == [3]
    assert ticks(0, float("nan")) == [0]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1200, "1,200"), (-0.05, "−0.05"), (3e-5, "3e−5"), (250000, "2.5e5"), (1.05e9, "1.05e9"), (0.5, "0.5")]
)
def test_labels(value: float, text: str) -> None:
    assert tick_label(value) == text


@given(st.floats(-1e7, 1e7), st.floats(1e-11, 1e7))
def test_labels_tell_ticks_apart(low: float, span: float) -> None:
    """Two at least, all different, in order, and each the value that it stands for."""
    found = ticks(low, low + span, 4)
    if span < 1e-9 * abs(low):
        return  # nothing that is drawn has so many digits
    texts = tick_labels(found)
    values = [float(text.replace("\N{MINUS SIGN}", "-").replace(",", "")) for text in texts]
    assert len(found) >= 2
    assert len(set(texts)) == len(texts)
    assert values == pytest.approx(found, rel=1e-6, abs=1e-6 * (found[1] - found[0]))


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.06, 0.99, ["0.2", "0.4", "0.6", "0.8"]),
        (0.3648, 0.3672, ["0.3650", "0.3655", "0.3660", "0.3665", "0.3670"]),
        (0, 1.6e-9, ["0", "0.5e−9", "1.0e−9", "1.5e−9"]),
        (-0.0107, 0.0086, ["−0.010", "−0.005", "0", "0.005"]),
        (1e5, 3e6, ["1e6", "2e6", "3e6"]),
    ],
)
def test_labels_by_hand(low: float, high: float, texts: list[str]) -> None:
    assert tick_labels(ticks(low, high, 4)) == texts


def test_a_curve_that_never_changes_has_its_value_as_the_only_tick() -> None:
    drawing = str(curves([1, 2, 3], {"rate": [1e-4, 1e-4, 1e-4]}, "s", [2]))
    assert re.findall(r'text-anchor="end" class="tick">([^<]+)<', drawing) == ["1e−4"]


def test_labels_of_an_axis_stay_inside_the_drawing() -> None:
    """Eight characters of 11 units with tabular figures, right-aligned before the plot."""
    drawing = str(curves([1, 2], {"shift": [-1.4e-9, 1.6e-9]}, "s", [2]))
    names = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="end" class="tick">([^<]+)<', drawing)
    assert len(names) >= 2
    assert all(float(x) >= 6.6 * len(text) for x, text in names)


def test_lanes_put_values_where_they_belong() -> None:
    drawing = str(lanes([Lane(label="m", dots=[dot(0.5, 0.4, 0.6)])], "summary"))
    # 0.4 to 0.6 shown from 0.3 to 0.7: the middle is at 50 %, the ends at 25 and 75 %.
    assert 'cx="50.00%"' in drawing
    assert 'x1="25.00%" x2="75.00%"' in drawing
    assert 'aria-label="summary"' in drawing


def test_lanes_of_differences_show_zero() -> None:
    drawing = str(lanes([Lane(label="m", dots=[dot(0.1, 0.05, 0.15)])], "s", percent_points=True))
    assert 'class="zero"' in drawing


def test_lanes_at_the_ends() -> None:
    drawing = str(lanes([Lane(label="m", dots=[dot(0, 0, 0), dot(1, 1, 1)])], "s"))
    assert 'cx="0.00%"' in drawing
    assert 'cx="100.00%"' in drawing


def test_bars_and_stacks_are_proportional() -> None:
    assert re.findall(r'width="([\d.]+)%"', str(bars([("a", 10, "10"), ("b", 5, "5")], "s"))) == ["100.00", "50.00"]
    assert re.findall(r'width="([\d.]+)%"', str(stack([("a", 1, 0), ("b", 3, 1)], "s"))) == ["25.000", "75.000"]
    assert "b 3 (75.0 %)" in stack([("a", 1, 0), ("b", 3, 1)], "s")
    assert "0.0 %" in stack([("a", 0, 0)], "s")


def test_histogram_leaves_out_empty_ends_and_names_every_bin() -> None:
    drawing = histogram([0, 10, 20, 30, 40], {"chosen": [0, 3, 0, 5], "rejected": [0, 0, 1, 0]}, "tokens", "s")
    titles = re.findall(r"<title>(.*?)</title>", str(drawing))
    assert titles == ["chosen, 10 to 20 tokens: 3", "chosen, 30 or more tokens: 5", "rejected, 20 to 30 tokens: 1"]
    assert ">0</text>" in drawing  # the axis of counts
    assert re.findall(r">(\d+)</text>", str(drawing)).count("10") == 1


def test_curves_have_gaps_where_values_are_missing() -> None:
    drawing = str(curves([1, 2, 3, 4], {"loss": [1.0, None, 2.0, 3.0]}, "s", [2]))
    path = re.search(r' d="(M[^"]*)"', drawing)
    assert path
    assert path[1].count("M") == 2
    assert "loss, step 3: 2" in drawing
    assert "no finite values" in curves([1], {"loss": [None]}, "s", [2])
    assert "step 5: 0.3" in curves([5], {"loss": [0.3]}, "s", [2])


def test_thin_keeps_means() -> None:
    steps = list(range(1000))
    points = thin(steps, [float(s) for s in steps])
    assert len(points) <= 300
    assert points[0] == (1.5, 1.5)
    assert thin([1, 2], [None, 4.0]) == [(1.0, None), (2.0, 4.0)]


def test_everything_is_escaped() -> None:
    evil = '"><script>alert(1)</script>'
    drawings = [
        lanes([Lane(label=evil, note=evil, dots=[Dot(value=0.5, low=0.4, high=0.6, text=evil, tip=evil)])], evil),
        bars([(evil, 1, evil)], evil),
        stack([(evil, 1, 0)], evil),
        histogram([0, 1], {evil: [2], evil + "2": [1]}, evil, evil),
        curves([1, 2], {evil: [1, 2], evil + "2": [1, 2]}, evil, [0, 1]),
        element("text", evil, x=evil),
    ]
    assert all("<script" not in drawing for drawing in drawings)


def test_one_step_is_seen() -> None:
    """A path of one point draws nothing."""
    drawing = str(curves([1], {"loss": [0.5]}, "s", [0]))
    assert 'class="dot c0"' in drawing
    assert 'class="dot' not in str(curves([1, 2], {"loss": [0.5, 0.4]}, "s", [0]))


def test_steps_are_marked_with_whole_numbers() -> None:
    drawing = str(curves([1, 2, 3], {"loss": [0.5, 0.4, 0.3]}, "s", [0]))
    assert re.findall(r'text-anchor="middle"[^>]*>([^<]+)<', drawing)[:-1] == ["1", "2", "3"]


def test_ticks_of_one_axis_are_told_apart() -> None:
    assert tick_labels(ticks(0.69310, 0.69318, 4)) == ["0.69310", "0.69312", "0.69314", "0.69316", "0.69318"]
    assert tick_labels([0, 0.5, 1]) == ["0", "0.5", "1.0"]
    assert tick_labels(ticks(1e-13, 4e-13, 3)) == ["1e−13", "2e−13", "3e−13", "4e−13"]
    drawing = str(curves([1, 2], {"loss": [0.69311, 0.69317]}, "s", [0]))
    heights = re.findall(r'text-anchor="end"[^>]*>([^<]+)<', drawing)
    assert len(heights) == len(set(heights)) > 2


def test_edges_do_not_run_into_each_other() -> None:
    """Seven letters of at most 7 units and a gap, under bins that are equally wide."""
    edges = [1000 * number for number in range(41)]
    drawing = str(histogram(edges, {"chosen": [1] * 40}, "tokens", "s"))
    places = [float(x) for x, text in re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="middle"[^>]*>([^<]+)<', drawing) if text != "tokens"]
    assert len(places) > 3
    assert min(b - a for a, b in itertools.pairwise(places)) >= 7 * len("10,000") + 10
