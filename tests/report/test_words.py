"""Counts of a manifest in words: one and several, nothing that is not there, nothing twice."""

from __future__ import annotations

import pytest

from mixpo.report.words import describe_counts


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (
            {"images": 1, "questions": 1, "open": 1, "skipped": 1},
            ["1 image", "1 question", "1 question without an answer", "1 row filtered"],
        ),
        ({"questions": 1200, "failed": 0, "answers": 9600}, ["1,200 questions", "9,600 answers"]),
        ({"answers": 2, "ended: stop": 1, "ended: length": 1}, ["2 answers", "1 truncated at the length limit"]),
        ({"all_right": 1, "all_wrong": 2}, ["1 question with all answers right", "2 questions with all answers wrong"]),
        ({"undecided": 3, "undecided: time-out": 2, "undecided: crash": 1}, ["2 undecided: time-out", "1 undecided: crash"]),
        ({"undecided": 3}, ["3 undecided"]),
        ({"origin: format": 2, "dropped: over_cap": 1}, ["2 correct vs. no final answer", "1 filtered: over cap"]),
        ({"answered by: some-model_v1.5": 4}, ["4 by some-model_v1.5"]),
        ({"a word of tomorrow": 1}, ["1 a word of tomorrow"]),
        ({}, []),
    ],
)
def test_counts_in_words(counts: dict[str, int], words: list[str]) -> None:
    assert describe_counts(counts) == words
