"""easy-VQA: the published counts, even spreading, and a helpful error without the package."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mixpo.errors import MissingExtra, SourceError
from mixpo.images import open_image
from mixpo.recipe import ImageTable

pytest.importorskip("easy_vqa")


@pytest.mark.slow
def test_published_counts(collect: Callable[..., Any]) -> None:
    train, skipped = collect(kind="easy_vqa")
    test, more = collect(kind="easy_vqa", split="test")
    assert skipped == more == []
    assert (len(train), len(test), len(train) + len(test)) == (38_575, 9_673, 48_248)
    everything = [*train, *test]
    assert len({q.images[0].digest for q in everything}) == 5_000
    assert len({q.id for q in everything}) == 48_248
    assert len({q.answer for q in everything}) == 13
    assert Counter((q.domain, q.kind) for q in everything).keys() == {("yes_no", "yes_no"), ("shape", "text"), ("color", "text")}
    assert {q.answer for q in everything if q.domain == "shape"} == {"circle", "rectangle", "triangle"}
    assert not {q.images[0].digest for q in train} & {q.images[0].digest for q in test}


def test_count_is_spread_evenly(collect: Callable[..., Any]) -> None:
    questions, _ = collect(kind="easy_vqa", split="test", count=100)
    numbers = sorted(int(q.images[0].path.rpartition("/")[2].removesuffix(".png")) for q in questions)
    assert len(questions) == 100
    assert numbers[0] < 20
    assert numbers[-1] > 970
    assert max(b - a for a, b in itertools.pairwise(numbers)) < 40
    image = open_image(questions[0].images[0], ImageTable())
    assert (image.mode, image.size) == ("RGB", (64, 64))


def test_more_than_there_are(collect: Callable[..., Any]) -> None:
    with pytest.raises(SourceError, match="test split has 9673 questions; set count = 0 for all"):
        collect(kind="easy_vqa", split="test", count=10_000)


def test_missing_package(collect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(MissingExtra, match=r"pip install 'mixpo\[easy-vqa\]'"):
        collect(kind="easy_vqa")
