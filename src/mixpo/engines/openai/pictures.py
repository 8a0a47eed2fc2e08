"""Images as servers take them: the pixels that training sees, as a data address."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from mixpo.images import open_image
from mixpo.recipe import ImageTable
from mixpo.types import ImageRef

AS_THEY_ARE = {"PNG": "png", "JPEG": "jpeg"}
"""Formats that every server reads. Files in them are sent byte for byte when nothing has to be done to their pixels."""


def address_of(ref: ImageRef, table: ImageTable) -> str:
    """A data address of the image within the limits of `table`. Raises ImageError as `open_image` does."""
    image = open_image(ref, table)
    content = Path(ref.path).read_bytes()
    with Image.open(BytesIO(content)) as header:
        upright = header.getexif().get(0x0112, 1) == 1
        plain = header.mode in ("RGB", "L") and header.size == image.size and upright and not header.has_transparency_data
        kind = AS_THEY_ARE.get(header.format or "")
    return data_address(content, kind) if plain and kind else data_address(png(image), "png")


def png(image: Image.Image) -> bytes:
    """Lossless, compressed little: most of the time goes there."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def data_address(content: bytes, kind: str) -> str:
    """The image in the address itself: no server has to read a file or fetch anything."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
