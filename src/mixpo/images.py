"""Images in and out: any common file becomes upright RGB pixels within the limits of the recipe, or an ImageError that says why.

Also the identity of images: `reference` names a file by the digest of its bytes, `save_content` and `save_bytes` keep images
that have no file of their own under that digest. Knows nothing about questions or models.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import tempfile
import warnings
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mixpo.errors import ImageError, unwritable
from mixpo.recipe import ImageTable
from mixpo.types import ImageRef

SUFFIXES = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "DIB": ".bmp",
    "TIFF": ".tif",
    "PPM": ".ppm",
    "JPEG2000": ".jp2",
    "AVIF": ".avif",
    "ICO": ".ico",
}
"""Formats that are read, with the suffix of a stored copy. MPO is what some cameras write as .jpg. Vector and document formats are
excluded on purpose: reading them runs other programs."""

MAX_BYTES = 1 << 30
"""A larger file is refused unread."""
MAX_DECODED = 100_000_000
"""Pixels that are decoded at most, four bytes each. JPEG files are decoded at a fraction of their size where `image.max_pixels` allows."""
DRAFT_GAP = 2
"""A draft is at least so many times longer and wider than the final image, so that resizing decides how it looks."""
STRIP = 256
"""Rows of a deep or transparent image that are converted at a time, to bound memory."""

ORIENTATION = 0x0112
"""Tag of EXIF."""

_REPAIR = "replace the file or remove its rows"
_SMOOTH = Image.Resampling.BICUBIC
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files."""


# --- reading -----------------------------------------------------------------------------------------------------------


def open_image(ref: ImageRef, table: ImageTable) -> Image.Image:
    """The image as upright 8-bit RGB of `table.min_pixels` to `table.max_pixels` pixels, its proportions kept.

    Transparent parts are put on white, 16-bit values are scaled to 8 bits, an animation gives its first frame.
    Raises ImageError when the file is missing, broken, outside the limits, or no longer the one that `ref` was made from.
    """
    content = _read(Path(ref.path))
    if hashlib.sha256(content).hexdigest() != ref.digest:
        raise ImageError(
            f"{ref.path}: the image changed since the questions were read; run the source stage again", code="image-changed", path=ref.path
        )
    return _decode(content, ref.path, table)


def probe(path: Path, table: ImageTable, *, decode: bool = True) -> str | None:
    """What is wrong with an image file, or None. `decode=False` reads the header only, which misses truncated files."""
    try:
        content = _read(path)
        if decode:
            _decode(content, str(path), table)
        else:
            _check_limits(_header(content, str(path)), str(path), table)
    except ImageError as error:
        return str(error)
    return None


def _read(path: Path) -> bytes:
    try:
        if not path.exists():
            raise ImageError(f"{path}: no such image; check the path and the source's root", code="image-missing", path=path)
        if not path.is_file():
            raise ImageError(f"{path}: not a regular file; an image path must name a file", code="image-not-a-file", path=path)
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{path}: larger than {MAX_BYTES >> 30} GiB; scale it down", code="image-file-too-large", path=path)
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{str(path)!r}: cannot be read ({error}); check the path and its permissions", code="image-unreadable", path=path
        ) from None
    if not content:
        raise ImageError(f"{path}: the file is empty (0 bytes); {_REPAIR}", code="image-empty", path=path)
    return content


def _header(content: bytes, name: str) -> Image.Image:
    """An opened image whose pixels are not decoded yet."""
    try:
        return Image.open(BytesIO(content), formats=_formats())
    except UnidentifiedImageError:
        hint = "convert it to PNG or JPEG" if _is_binary(content) else "it looks like text"
        raise ImageError(f"{name}: not an image in a known format ({hint}); {_REPAIR}", code="image-format-unknown", path=name) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(
            f"{name}: more than {limit:,} pixels, refused as a possible decompression bomb; scale it down",
            code="image-too-large",
            path=name,
        ) from None
    except _BROKEN as error:
        raise ImageError(f"{name}: broken image header ({error}); {_REPAIR}", code="image-broken", path=name) from None


@cache
def _formats() -> tuple[str, ...]:
    """The formats of `SUFFIXES` that this Pillow was built with. MPO is opened by way of JPEG."""
    Image.init()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters is an ImageError; MAX_DECODED bounds what is decoded
    return tuple(name for name in SUFFIXES if name in Image.OPEN)


def _is_binary(content: bytes) -> bool:
    try:
        content[:512].decode("utf-8")
    except UnicodeDecodeError:
        return True
    return b"\0" in content[:512]


def _check_limits(image: Image.Image, name: str, table: ImageTable) -> None:
    width, height = image.size
    if max(width, height) > table.max_side:
        raise ImageError(
            f"{name}: {width} x {height} pixels, longer than image.max_side = {table.max_side}; scale it down or raise the limit",
            code="image-too-large",
            path=name,
        )
    if min(width, height) < table.min_side:
        raise ImageError(
            f"{name}: {width} x {height} pixels, shorter than image.min_side = {table.min_side}; remove its rows",
            code="image-too-small",
            path=name,
        )


def _decode(content: bytes, name: str, table: ImageTable) -> Image.Image:
    image = _header(content, name)
    _check_limits(image, name, table)
    _draft(image, table)
    if (pixels := image.width * image.height) > MAX_DECODED:
        raise ImageError(
            f"{name}: {pixels:,} pixels, more than the {MAX_DECODED:,} that are decoded; scale it down", code="image-too-large", path=name
        )
    try:
        image.load()
        decoded = _scale(_rgb(_upright(image)), table)
        return decoded.copy() if decoded is image else decoded  # without the file that it came from
    except _BROKEN as error:
        raise ImageError(f"{name}: broken or truncated image ({error}); {_REPAIR}", code="image-broken", path=name) from None


def _draft(image: Image.Image, table: ImageTable) -> None:
    """Let a JPEG file be decoded at 1/2, 1/4 or 1/8 of its size, if that still is DRAFT_GAP times as long as needed."""
    if image.format in ("JPEG", "MPO") and image.width * image.height > DRAFT_GAP**2 * table.max_pixels:
        width, height = _below(*image.size, table.max_pixels)
        image.draft(None, (DRAFT_GAP * width, DRAFT_GAP * height))


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; the same object where it says nothing."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except _BROKEN:
        # Unreadable EXIF says nothing about rotation, and the pixels are good: show them as they are stored, as browsers do.
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; the same object where it is that already."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    opaque = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):
        layer = image.crop((0, top, image.width, min(top + STRIP, image.height))).convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        opaque.paste(Image.alpha_composite(white, layer).convert("RGB"), (0, top))
    return opaque


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit gray. Pillow's own conversion clips at 255 instead of scaling."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined brightness; convert it to 8-bit PNG")
    gray = Image.new("L", image.size)
    for top in range(0, image.height, STRIP):
        values = np.asarray(image.crop((0, top, image.width, min(top + STRIP, image.height))).convert("I"))
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixel values outside 0 to 65535 have no defined brightness; convert it to 8-bit PNG")
        gray.paste(Image.fromarray((values / 257).round().astype(np.uint8)), (0, top))
    return gray


def _scale(image: Image.Image, table: ImageTable) -> Image.Image:
    width, height = image.size
    pixels = width * height
    if pixels < table.min_pixels:
        factor = math.sqrt(table.min_pixels / pixels)
        size = math.ceil(width * factor), math.ceil(height * factor)
        # Rounding up may pass the upper limit where both limits are close; then the upper one decides.
        image = image.resize(size if size[0] * size[1] <= table.max_pixels else _below(width, height, table.max_pixels), _SMOOTH)
    elif pixels > table.max_pixels:
        image = image.resize(_below(width, height, table.max_pixels), _SMOOTH)
    return image


def _below(width: int, height: int, pixels: int) -> tuple[int, int]:
    """The largest size of these proportions with at most so many pixels."""
    factor = math.sqrt(pixels / (width * height))
    short = max(1, int(min(width, height) * factor))
    long = max(1, min(int(max(width, height) * factor), pixels // short))
    return (long, short) if width >= height else (short, long)


# --- identity and storage ----------------------------------------------------------------------------------------------


def digest_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal. Raises ImageError when it cannot be read or is empty."""
    return hashlib.sha256(_read(path)).hexdigest()


def reference(path: Path) -> ImageRef:
    """Name a file by absolute path and digest; it is not decoded. Raises ImageError as `digest_file` does."""
    return ImageRef(path=os.path.abspath(path), digest=digest_file(path))


def save_content(image: Image.Image, folder: Path) -> ImageRef:
    """Keep an image as PNG under `folder`, named by its content: equal pixels are one file, written once.

    The PNG is uncompressed so that its bytes, and with them the ids of questions, are the same with every version of zlib.
    """
    return _store(_png(_rgb(_upright(image))), ".png", folder)


def save_bytes(content: bytes, folder: Path, name: str = "image") -> ImageRef:
    """Keep an encoded image byte for byte under `folder`, named by its digest. `name` serves the error message.

    Raises ImageError when the bytes are not an image; pixels are not decoded.
    """
    if not content:
        raise ImageError(f"{name}: the image is empty (0 bytes); {_REPAIR}", code="image-empty", path=name)
    return _store(content, SUFFIXES[_header(content, name).format or "PNG"], folder)


def place(folder: Path, digest: str, suffix: str) -> Path:
    """Where an image of this content is kept under `folder`."""
    return folder / digest[:2] / f"{digest}{suffix}"


def _store(content: bytes, suffix: str, folder: Path) -> ImageRef:
    digest = hashlib.sha256(content).hexdigest()
    path = place(folder.absolute(), digest, suffix)
    try:
        # The content is compared because a power cut may leave a file of the right name with the wrong bytes.
        if not (path.is_file() and path.read_bytes() == content):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(content, path, folder)
    except OSError as error:
        raise unwritable(path, error) from error
    return ImageRef(path=str(path), digest=digest)


def _write(content: bytes, path: Path, folder: Path) -> None:
    """Temporary file and rename. Without fsync: `_store` repairs a torn file, and thousands of small images stay fast.

    The temporary file lies in `folder` itself, where what a kill left of it is found without going through millions of images.
    """
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _png(image: Image.Image) -> bytes:
    """Encode RGB pixels as PNG with stored (uncompressed) blocks; gray pictures take one byte for each pixel."""
    pixels = np.asarray(image)  # (H, W, 3)
    gray = bool((pixels == pixels[:, :, :1]).all())
    rows = pixels[:, :, 0] if gray else pixels.reshape(pixels.shape[0], -1)
    data = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each row starts with filter type 0
    head = struct.pack(">IIBBBBB", image.width, image.height, 8, 0 if gray else 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", head), _chunk(b"IDAT", _stored(data)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _stored(data: bytes) -> bytes:
    """A zlib stream (RFC 1950, 1951) of stored blocks only, each at most 65,535 bytes long."""
    starts = range(0, len(data), 65535)
    blocks = [
        struct.pack("<BHH", start == starts[-1], (n := len(data[start : start + 65535])), n ^ 0xFFFF) + data[start : start + n]
        for start in starts
    ]
    return b"\x78\x01" + b"".join(blocks) + struct.pack(">I", zlib.adler32(data))


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
