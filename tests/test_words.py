"""Pages, recipes, messages, docstrings and names use the standard terms of the field (docs/glossary.md).

Listed are only words that a search finds without false alarms. `PROSE_LEFT` and `NAMES_LEFT` count what the source still holds; a count
may only shrink.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from parsing import parse

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NOT_YET: set[str] = set()
"""Pages that are still to be rewritten."""
RECIPES = [
    *sorted((ROOT / "recipes").glob("**/*.toml")),
    *sorted((ROOT / "recipes").glob("**/*.yaml")),
    *sorted(ROOT.glob("src/mixpo/assets/*.toml")),
]
FILES = sorted((ROOT / "src" / "mixpo").rglob("*.py"))

PROSE = {
    r"against (?:the )?start": "Δ vs. base",
    r"(?:start|starting) model|frozen start|same start": "base model",
    r"what thinking first is worth": "chain of thought vs. direct",
    r"left out|leav(?:e|es|ing) (?:\w+ )?out": "filtered, dropped, skipped, omitted",
    r"(?:go|goes|going|went|gone) on": "continue, resume",
    r"in circles": "repetition",
    r"ranked right": "reward accuracy",
    r"put(?:s|ting)? before (?:it|a judge|the judge)|go(?:es)? before a judge|before the judge again": "send to",
    r"speak(?:s|ing)? against": "disagree with",
    r"nothing to correct": "no problems found",
    r"(?:of|have) like lengths": "length-bucketed, of similar length",
    r"how late": "shared-prefix length",
    r"(?:make|makes|made|making) (?:anew|again)|anew": "redo, recompute, retry",
    r"ask(?:s|ed|ing)? (?:\w+ )?again|tried again": "retry",
    r"taken for": "treated as",
    r"beside(?! the point)": "next to, with",
    r"without a word|aloud|in plain words|in words": "silently; as text",
    r"stands? (?:in|on|above|behind|beside|there)": "is in",
    r"(?:is|are|was|were) said": "is logged, is reported",
    r"look(?:s|ed|ing)? at": "inspect, read, see",
    r"a place to start from": "a starting point",
    r"to the letter": "exactly",
    r"for want of": "for lack of",
    r"mend(?:s|ed|ing)?": "fix",
    r"ghosts?": "dummy batch",
    r"crew": "executor",
    r"blindly": "without the image",
    r"(?:mean|best) mark|marks of (?:a|the|different) judges?": "score",
    r"the checker": "the verifier",
    r"as far as (?:it|they) can": "where supported",
    r"speaks? of": "mention",
    r"at hand": "available",
    r"(?<!-)alike": "the same way, both",
    r"besides": "also, other than",
    r"till|thereof|whence|ere|therein": "plain words",
}
"""Pattern of whole words, in any case -> what to write instead."""

NAMES = {
    "amounts": "plural",
    "asking": "sampler",
    "barred": "ContaminationFilter",
    "crew": "RayExecutor",
    "found": "what was found: match, rows, result",
    "foreign": "eval_only",
    "ghost": "dummy_batch",
    "late": "deferred",
    "looks": "image_similarity, vision_probe",
    "marking": "grading",
    "mend": "transformers_fixes",
    "said": "text, reply, answer",
    "told": "logged",
    "weightless": "tokenizer_only",
}
"""Part of an identifier (`late` in `is_late` and `LateFailure`) -> what to call it instead."""

PROSE_LEFT: dict[str, int] = {
    r"look(?:s|ed|ing)? at": 3,
    r"beside(?! the point)": 2,
    r"till|thereof|whence|ere|therein": 1,
}
"""How often each pattern may still occur in the source: patterns that search for a response's own words, and one judge prompt."""

NAMES_LEFT: dict[str, int] = {
    "found": 2,
}
"""How often each part may still occur in identifiers of the source."""

SEARCH = {pattern: re.compile(rf"\b(?:{pattern})\b".replace(" ", r"[\s#]+"), re.IGNORECASE) for pattern in PROSE}


@functools.cache
def tokens_of(text: str) -> list[tokenize.TokenInfo]:
    """The tokens of a module; two tests read them."""
    return list(tokenize.generate_tokens(io.StringIO(text).readline))


def prose_of(text: str) -> Iterator[tuple[int, str]]:
    """(first line, text) of the comments and strings of a module."""
    for token in tokens_of(text):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def words_in(path: Path, parts: Iterable[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """(pattern, place and remedy) of every listed word. A space matches a line break too."""
    parts = [*parts]
    whole = "\0".join(text for _, text in parts)
    present = {pattern: search for pattern, search in SEARCH.items() if search.search(whole)}
    for line, text in parts:
        for pattern, search in present.items():
            for match in search.finditer(text):
                number = line + text.count("\n", 0, match.start())
                yield pattern, f"{path.relative_to(ROOT).as_posix()}:{number}: {' '.join(match[0].split())!r}; write: {PROSE[pattern]}"


def names_in(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """(part, place and remedy) of every listed part of an identifier."""
    for token in tokens_of(text):
        if token.type == tokenize.NAME and "NotFound" not in token.string:
            for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", token.string):
                if part.lower() in NAMES:
                    yield (
                        part.lower(),
                        f"{path.relative_to(ROOT).as_posix()}:{token.start[0]}: {token.string}; call it: {NAMES[part.lower()]}",
                    )


def counted(places: Iterable[tuple[str, str]], left: dict[str, int]) -> list[str]:
    """The places of the words that occur more often than they may."""
    places = [*places]
    counts = Counter(word for word, _ in places)
    return [place for word, place in places if counts[word] > left.get(word, 0)]


@pytest.mark.parametrize("path", [*(page for page in PAGES if page.name not in NOT_YET), *RECIPES], ids=lambda path: path.name)
def test_pages_and_recipes(path: Path) -> None:
    found = [place for _, place in words_in(path, [(1, path.read_text(encoding="utf-8"))])]
    assert not found, "\n".join(found)


def test_comments_docstrings_and_messages() -> None:
    places = (place for path in FILES for place in words_in(path, prose_of(path.read_text(encoding="utf-8"))))
    assert not (over := counted(places, PROSE_LEFT)), "\n".join(over)


def test_names() -> None:
    places = (place for path in FILES for place in names_in(path, path.read_text(encoding="utf-8")))
    assert not (over := counted(places, NAMES_LEFT)), "\n".join(over)


def test_the_search_finds_what_it_should() -> None:
    here = ROOT / "x.py"
    text = 'def late_found(x):\n    """Goes\n    on."""  # left\n    return "nothing to correct"\n'
    assert [word for word, _ in names_in(here, text)] == ["late", "found"]
    assert {place.split("; ")[0] for _, place in words_in(here, prose_of(text))} == {"x.py:2: 'Goes on'", "x.py:4: 'nothing to correct'"}
