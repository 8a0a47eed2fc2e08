"""Whether a text goes round in circles: what a preference-tuned model does first when it breaks, while its scores may still look good."""

from __future__ import annotations

LONGEST = 64
"""A cycle of more words than this is not looked for."""
TAIL = 600
"""Only the last words are looked at: a loop does not end by itself."""
SHORTEST = 12
"""Fewer repeated words than this are a list or a table."""


def loops(text: str) -> bool:
    """Whether the end of the text is one phrase at least four times in a row (words; characters where a language has no spaces)."""
    words = text.split()
    if len(text) > 12 * max(1, len(words)):
        words = list(text.replace(" ", ""))
    words = words[-TAIL:]
    return any(_run(words, period) >= max(3 * period, SHORTEST) for period in range(1, min(LONGEST, len(words) // 4) + 1))


def _run(words: list[str], period: int) -> int:
    """How many words from the end equal the one `period` words before them."""
    length = 0
    while length + period < len(words) and words[-1 - length] == words[-1 - length - period]:
        length += 1
    return length
