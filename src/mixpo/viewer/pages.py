"""From names and values to HTML: the template environment of the viewer. Everything is escaped unless a chart made it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from mixpo.errors import MixpoError
from mixpo.plural import amount
from mixpo.progress import duration
from mixpo.report import words
from mixpo.report.benchmarks import CAUSES
from mixpo.report.render import asked, unlisted
from mixpo.viewer.evaluations import CHANGES
from mixpo.viewer.index import OUTCOME
from mixpo.viewer.listing import BALANCES, ORIGINS, OUTCOMES
from mixpo.viewer.text import brief, parts, plain, shade

STATIC = Path(__file__).parent / "static"
SIDES = {**words.OUTCOMES, "unjudged": "completed without the image"}
"""What the rejected side of a pair can be."""
ANSWERED = {**words.BALANCE, "undecided": "some undecided", "open": "no answer key", "unjudged": "not verified yet"}
"""How a question can be answered."""
ICONS = {"correct": "✓", "wrong": "✗", "malformed": "?", "undecided": "·", "unjudged": "–"}


class UnknownPage(MixpoError):  # noqa: N818
    """There is no such page."""


@cache
def static_files() -> dict[str, Path]:
    """Every file that may be served as it is, by name. A request is looked up here, so no path from outside is ever opened."""
    files = {path.relative_to(STATIC).as_posix(): path for path in sorted(STATIC.rglob("*")) if path.is_file()}
    return {**files, "report.css": Path(str(words.__file__)).parent / "page.css"}


@cache
def static_url(name: str) -> str:
    """The address of a static file; it changes with the content, so that browsers may keep it."""
    return f"/static/{name}?v={hashlib.sha256(static_files()[name].read_bytes()).hexdigest()[:10]}"


def with_query(path: str, *queries: Mapping[str, Any], **more: object) -> str:
    """An address with a query string; empty values are omitted."""
    values = {name: value for query in (*queries, more) for name, value in query.items() if value not in ("", None)}
    return f"{path}?{urlencode(values)}" if values else path


def spelled(letters: str) -> list[str]:
    """The outcomes that the letters of the index stand for."""
    return [OUTCOME[letter] for letter in letters]


@cache
def environment() -> Environment:
    """The templates with their filters."""
    made = Environment(
        loader=PackageLoader("mixpo.viewer", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for name in ("percent", "points", "p_value", "interval", "no_answer", "count", "model_name", "title_case"):
        made.filters[name] = getattr(words, name)
    made.filters |= {
        "amount": amount,
        "duration": duration,
        "asked": asked,
        "moment": words.moment,
        "unlisted": unlisted,
        "brief": brief,
        "parts": parts,
        "plain": plain,
        "shade": shade,
        "spelled": spelled,
    }
    made.globals |= {
        "url": with_query, "static": static_url, "words": words, "icons": ICONS, "sides": SIDES, "answered": ANSWERED,
        "origins": ORIGINS, "outcomes": OUTCOMES, "balances": BALANCES, "causes": CAUSES, "changes": CHANGES,
    }  # fmt: skip
    return made


def page(template: str, **values: Any) -> str:
    """A page as HTML."""
    return environment().get_template(template).render(**values)
