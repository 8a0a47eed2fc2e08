"""Amounts in sentences, and no sentence of the project that writes one in another way."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import mixpo
from mixpo.cli import show
from mixpo.cli.output import Lines
from mixpo.commands.plan import Estimate
from mixpo.plural import amount, are

SOURCE = Path(mixpo.__file__).parent
NOUNS = "answer|question|row|pair|shard|model|image|mark|verdict|response|reply|choice|option|problem|file|actor|node|server|reason"
WRITTEN = re.compile(rf"\{{len\([^{{}}]*\)(:,)?\}} (\w+ )?({NOUNS})s\b|\b({NOUNS})\(s\)|({NOUNS})\{{'s' \*")
"""A number of things that is always written as several, or in a way of its own."""
SEVERAL = {
    "engine.py: {len(names)} models",
    "vllm.py: {len(request.images)} images",
    "probe.py: {len(answers)} answers",
    "sampler.py: {len(choices)} identical answers",
}
"""Sentences that are only said of two or more."""


@pytest.mark.parametrize(("count", "text"), [(0, "0 pairs"), (1, "1 pair"), (2, "2 pairs"), (12_345, "12,345 pairs")])
def test_amounts(count: int, text: str) -> None:
    assert amount(count, "pair") == text


def test_plurals_of_their_own() -> None:
    assert [amount(count, "reply is", "replies are") for count in (1, 3)] == ["1 reply is", "3 replies are"]
    assert [are(count) for count in (0, 1, 2)] == ["are", "is", "are"]


def test_no_sentence_writes_an_amount_in_another_way() -> None:
    found = {
        f"{path.name}: {match[0]}"
        for path in [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.html")]
        for match in WRITTEN.finditer(path.read_text(encoding="utf-8"))
    }
    assert found <= SEVERAL, found - SEVERAL


def test_lines_of_progress_and_tables_count_one_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(sys.stdout)
    for done, total in ((1, 1), (1, 2), (1, 0), (3, 0)):
        lines.start("sample", total, "questions")
        lines.advance(done)
        lines.finish()
    found = [line.partition(", done")[0] for line in capsys.readouterr().out.splitlines() if "done in" in line]
    assert found == ["sample: 1 of 1 question", "sample: 1 question", "sample: 1 question", "sample: 3 questions"]
    show.estimates([Estimate(stage="train", todo=1, total=1, unit="models", why="")])
    shown = capsys.readouterr().out
    assert "1 of 1 model\n" in shown
    assert "1 models" not in shown
