"""Masks secrets in text from outside: servers, the Hub, libraries and other programs may repeat a key that they were given.

`MixpoError` masks its message and the command line masks what it prints, so a new boundary needs nothing. Text that is stored
(responses, judge replies, server logs) is masked where it comes in. Imports nothing of mixpo.
"""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

MASKED = "[secret]"
SHORTEST = 8
"""Characters of the shortest value of an environment variable that is masked: a shorter one, such as the "EMPTY" that local servers
take for a key, also occurs in ordinary text."""

_NAMES = re.compile(r"(?i)(?:^|_)(?:api_?key|access_key|secret_key|token|secret|password|passwd)$")
"""Environment variables that hold a secret: HF_TOKEN, WANDB_API_KEY, OPENAI_API_KEY, AWS_SECRET_ACCESS_KEY, ..."""
_SHAPES = re.compile(r"(?i)(?<=\bbearer )[\w.~+/=-]{4,}|(?<=://)[^/\s:@?#]*:[^/\s@?#]+(?=@)|\bhf_[a-z0-9]{16,}|\bsk-[\w-]{16,}")
"""A bearer header, user and password in an address, and keys that their prefix shows."""


_ESCAPE = re.compile(r"\\u00([2-7][0-9a-fA-F])")


def masked(text: str, *secrets: str) -> str:
    """A message without the values of `secrets`, of secrets in the environment, and without what has the form of a secret."""
    return _SHAPES.sub(MASKED, masked_values(text, *secrets))


def masked_values(text: str, *secrets: str) -> str:
    """The text without the values of `secrets` and of secrets in the environment; for text in which other forms are content."""
    pattern = _pattern((*filter(None, secrets), *environment_secrets()))
    return pattern.sub(MASKED, text) if pattern else text


def masked_body(content: bytes, *secrets: str) -> str:
    """The body of an error as text, masked; JSON's escapes of plain characters are undone before."""
    text = content.decode(errors="replace").replace("\\/", "/")
    return masked(_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text), *secrets)


def masked_reply(content: bytes, value: Any, *secrets: str) -> Any:
    """A parsed JSON reply with `masked_values` in every string. content: its bytes, which mostly show that there is nothing to mask.

    Secrets shorter than SHORTEST are not masked: the text is a response, and training data must not change.
    """
    known = (*(secret for secret in secrets if len(secret) >= SHORTEST), *environment_secrets())
    escaped = b"\\u00" in content or b"\\/" in content
    pattern = _pattern(known)
    if pattern and (escaped or any(form.encode(errors="replace") in content for form in _forms(known))):
        return _walk(value, pattern)
    return value


def environment_secrets() -> tuple[str, ...]:
    """The values of all environment variables that hold a secret by their name, and the token of `hf auth login`."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface")
    named = (os.environ[name] for name in os.environ if _is_secret(name))
    login = _stored_token(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"))
    return tuple(value for value in (*named, login) if len(value) >= SHORTEST)


@lru_cache(maxsize=512)
def _is_secret(name: str) -> bool:
    return bool(_NAMES.search(name))


@lru_cache(maxsize=8)
def _stored_token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _walk(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(MASKED, value)
    if isinstance(value, dict):
        return {_walk(key, pattern): _walk(inner, pattern) for key, inner in value.items()}
    return [_walk(inner, pattern) for inner in value] if isinstance(value, list) else value


@lru_cache(maxsize=64)
def _pattern(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """The longest first, so that none is masked in part."""
    return re.compile("|".join(map(re.escape, sorted(_forms(secrets), key=len, reverse=True)))) if secrets else None


@lru_cache(maxsize=64)
def _forms(secrets: tuple[str, ...]) -> frozenset[str]:
    """Every secret in the forms in which it may be repeated."""
    return frozenset(form for one in secrets for form in (one, quote(one, safe=""), json.dumps(one)[1:-1], repr(one)[1:-1]))
