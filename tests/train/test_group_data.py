"""Groups in a file are those that were written, whatever is read first; damage is an error that names the file."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from failures import fails
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpo.errors import RecordError
from mixpo.train.batch import step_chunks
from mixpo.train.group_data import INDEX, GroupRow, in_memory, open_groups, stored_digest, write_groups
from mixpo.train.groups import repeated
from mixpo.train.layout_check import check_sample
from mixpo.train.schedule import Schedule
from mixpo.types import Group, ImageRef, Message, Question

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def rows(draw: st.DrawFn) -> GroupRow:
    images = tuple(ImageRef(path=f"{number}.png", digest="d") for number in range(draw(st.integers(0, 3))))
    history = (Message(role="system", text=draw(TEXTS)),) * draw(st.integers(0, 1))
    asked = Question(
        id=draw(TEXTS), text=draw(TEXTS), images=images, history=history, source=draw(st.sampled_from("abc")), answers=("x", "x")
    )
    responses = draw(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6).map(tuple), min_size=2, max_size=5))
    places = st.integers(0, len(responses) - 1)
    pairs = draw(st.lists(st.tuples(places, places), max_size=4))
    scores = tuple(draw(st.lists(st.floats(-1e3, 0), min_size=len(responses), max_size=len(responses))))
    group = Group(
        question=asked, prompt=draw(TEXTS), responses=tuple(responses), pairs=tuple(pairs), reference=draw(st.sampled_from([None, scores])),
        prompt_tokens=draw(st.integers(0, 3)),
    )  # fmt: skip
    repeats = st.lists(st.integers(1, 3), min_size=len(pairs), max_size=len(pairs)).map(tuple)
    return GroupRow(group, draw(st.just(()) | repeats))


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(given_rows=st.lists(rows(), max_size=14))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, given_rows: list[GroupRow]) -> None:
    path = tmp_path_factory.mktemp("groups") / "groups.rows"
    write_groups(path, given_rows, "of these")
    expected = [group for row in given_rows for group in repeated(row.group, row.repeats)]
    groups, listed = open_groups(path), in_memory(expected)
    assert [groups[number] for number in reversed(range(len(groups)))] == expected[::-1]
    assert (groups.digest, stored_digest(path)) == ("of these", "of these")
    assert INDEX.names is not None
    for name in (name for name in INDEX.names if name not in ("start", "bytes", "crc", "turn")):
        assert np.array_equal(groups.sizes[name], listed.sizes[name]), name
    assert groups.sample == listed.sample
    found = [chunk.group for chunk in check_sample(groups[number] for number in groups.sample)]
    assert found == [chunk.group for chunk in check_sample(group for group in expected if group.pairs)]
    assert groups.smallest_prompts(4) == listed.smallest_prompts(4) == _smallest(expected)[:4]


def _smallest(groups: list[Group]) -> list[int]:
    paired = [number for number, group in enumerate(groups) if group.pairs]
    pictured = [number for number in paired if groups[number].question.images] or paired
    return sorted(pictured, key=lambda number: len(groups[number].question.images))


GROUP = Group(question=Question(id="q", text="", images=()), prompt="", responses=((1, 2), (3,)), pairs=((0, 1),), reference=(-1.0, -2.0))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "groups.rows"
    write_groups(path, [GroupRow(replace(GROUP, prompt=str(number))) for number in range(5)], "x")
    return path


def read(path: Path) -> list[Group]:
    return [*open_groups(path)]


@pytest.mark.slow
def test_every_flipped_bit_is_noticed(written: Path) -> None:
    content = written.read_bytes()
    for place in range(len(content)):
        written.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        if place in (len(content) - 1, content.rfind(b"\n", 0, -1)):  # between index and last line, and the end: no part of either
            continue
        with pytest.raises(RecordError) as error:
            read(written)
        assert (error.value.code, error.value.path) == ("record-broken", written), place


def test_other_damage(written: Path, tmp_path: Path) -> None:
    content = written.read_bytes()
    for left in (0, 10, len(content) // 2, len(content) - 5):
        written.write_bytes(content[:left])
        assert stored_digest(written) is None
        with fails("record-broken", RecordError, path=written):
            open_groups(written)
    with fails("record-broken", RecordError, path=tmp_path / "gone"):
        open_groups(tmp_path / "gone")


def test_groups_are_read_when_asked_for(written: Path) -> None:
    groups = open_groups(written)
    content = bytearray(written.read_bytes())
    content[int(groups.sizes["start"][3])] ^= 1
    written.write_bytes(content)
    assert [group.prompt for group in groups[:3]] == ["0", "1", "2"]
    with fails("record-broken", RecordError, path=written):
        groups[3]
    with pytest.raises(IndexError):
        groups[5]


def test_memory_hardly_grows_with_the_groups(tmp_path: Path) -> None:
    """A start reads the index and one step of groups, each of which is 15 KB as Python values."""
    held, group = [], replace(GROUP, responses=(tuple(range(1000, 1200)), tuple(range(2000, 2200))))
    for count in (200, 4200):
        write_groups(tmp_path / "groups.rows", (GroupRow(group) for _ in range(count)), "x")
        tracemalloc.start()
        groups = open_groups(tmp_path / "groups.rows")
        step = next(Schedule(pair_counts=groups.sizes["pairs"], batch_size=8, epochs=1, seed=0).steps(0))
        assert len(step_chunks(step, groups)) == 8
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert held[1] - held[0] < 4000 * 100
