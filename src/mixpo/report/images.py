"""Images for a page: decoded pixels as data URIs, so that nothing of the original file but its picture gets in."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from mixpo.errors import ImageError
from mixpo.images import open_image
from mixpo.recipe import ImageTable
from mixpo.types import ImageRef

LIMITS = ImageTable(max_pixels=640 * 640, max_side=100_000, min_side=1)
"""Larger images are scaled down to this area; the sides were checked when the questions were read."""
CRISP_SIDE = 112
"""Up to this side an image is kept without loss and shown enlarged, with its pixels visible."""
SHOWN_SIDE = 172
"""How large a tiny image is shown, at most."""


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """A data URI with the size to show it at, or `problem` when the image could not be read (then `uri` is empty)."""

    uri: str = ""
    width: int = 0
    height: int = 0
    crisp: bool = False
    problem: str = ""


def picture(ref: ImageRef) -> EmbeddedImage:
    """Read an image for the page. A missing or broken one gives one that says so: a report never fails over it."""
    try:
        image = open_image(ref, LIMITS)
    except ImageError as error:
        return EmbeddedImage(problem=str(error))
    longest = max(image.size)
    crisp = longest <= CRISP_SIDE
    factor = SHOWN_SIDE // longest if crisp else 1
    buffer, kind = io.BytesIO(), "png" if crisp else "jpeg"
    image.save(buffer, format=kind, optimize=True, quality=85)  # PNG knows no quality and ignores it
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return EmbeddedImage(uri, image.width * factor, image.height * factor, crisp)
