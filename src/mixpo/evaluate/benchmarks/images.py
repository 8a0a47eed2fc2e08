"""Images as benchmark files hold them: paths below the root, bytes, data URIs, base64 text."""

from __future__ import annotations

import base64
import binascii
import re

from mixpo.errors import SourceError
from mixpo.sources.images import Pictures
from mixpo.types import ImageRef

SHORTEST = 64
"""Base64 text of an image is longer than this; a path may be as short as it likes."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")


def refer(value: object, pictures: Pictures) -> ImageRef:
    """The image that a field stands for. Raises SourceError or ImageError with the reason."""
    if isinstance(value, str):
        content = encoded(value)
        return pictures.find(value) if content is None else pictures.one(content)
    return pictures.one(value)


def encoded(text: str) -> bytes | None:
    """The bytes behind a data URI or base64 text, or None for a path. Raises SourceError for base64 that is none."""
    head, comma, body = text.partition(",")
    if text[:5].casefold() == "data:":
        if not comma or not head.casefold().endswith(";base64"):
            raise SourceError("image is a data URI without base64 content")
        text = body
    elif len(text) <= SHORTEST or not _BASE64.fullmatch(text):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SourceError(f"image is not valid base64 ({error}); the file may have been cut") from None
