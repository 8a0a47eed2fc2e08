"""Images: every pathology gives the right pixels or one clear error. Pixels are compared with values set by hand."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from spying import replace_in, spy

from mixpo import images
from mixpo.errors import ImageError, RunError
from mixpo.images import digest_file, open_image, probe, reference, save_bytes, save_content
from mixpo.recipe import ImageTable
from mixpo.types import ImageRef

LIMITS = ImageTable()
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def load(path: Path, table: ImageTable = LIMITS) -> Image.Image:
    image = open_image(reference(path), table)
    assert image.mode == "RGB"
    return image


def message(path: Path, table: ImageTable = LIMITS) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(reference(path), table)
    assert str(path) in str(caught.value)
    assert probe(path, table) == str(caught.value)
    return str(caught.value)


# --- good files of every kind ------------------------------------------------------------------------------------------


def test_plain_png_is_unchanged(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.png")
    assert load(tmp_path / "a.png").tobytes() == halves().tobytes()
    assert probe(tmp_path / "a.png", LIMITS) is None
    assert probe(tmp_path / "a.png", LIMITS, decode=False) is None


# Where the red half lies after an orientation tag is obeyed (EXIF 2.3, table of tag 0x0112), for a stored image with red on the left.
@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [
        (1, (40, 20), "left"),
        (2, (40, 20), "right"),
        (3, (40, 20), "right"),
        (4, (40, 20), "left"),
        (5, (20, 40), "top"),
        (6, (20, 40), "top"),
        (7, (20, 40), "bottom"),
        (8, (20, 40), "bottom"),
    ],
)
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, size: tuple[int, int], red: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    halves().save(tmp_path / "a.png", exif=exif)
    image = load(tmp_path / "a.png")
    width, height = image.size
    points = {"left": (2, height // 2), "right": (width - 3, height // 2), "top": (width // 2, 2), "bottom": (width // 2, height - 3)}
    assert image.size == size
    assert image.getpixel(points.pop(red)) == RED
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[red]
    assert image.getpixel(points[opposite]) == BLUE


def test_broken_exif_means_no_rotation(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0garbage that is no TIFF header")
    assert load(tmp_path / "a.jpg").size == (40, 20)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = load(tmp_path / "a.jpg").getpixel((8, 8))  # type: ignore[misc]
    assert red > 245
    assert max(green, blue) < 10


def test_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (2, 0, 4, 2))
    image.save(tmp_path / "a.png", transparency=1)
    shown = load(tmp_path / "a.png")
    assert shown.getpixel((0, 0)) == RED
    assert shown.getpixel((3, 0)) == WHITE


def test_palette_without_transparency(tmp_path: Path) -> None:
    halves().quantize(4).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png").getpixel((39, 0)) == BLUE


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), WHITE),
        ("LA", (10, 255), (10, 10, 10)),
        ("1", 1, WHITE),
        ("L", 77, (77, 77, 77)),
    ],
)
def test_alpha_and_gray(tmp_path: Path, mode: str, color: object, expected: tuple[int, int, int]) -> None:
    Image.new(mode, (4, 4), color).save(tmp_path / "a.png")  # type: ignore[arg-type]
    assert load(tmp_path / "a.png").getpixel((1, 1)) == expected


def test_rgb_with_a_transparent_color(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.png", transparency=BLUE)
    assert load(tmp_path / "a.png").getpixel((39, 0)) == WHITE


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32896, 65535]] * 4, dtype=np.uint16)  # 257 * 128 = 32896
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    assert [load(tmp_path / f"a{suffix}").getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "a.tif")
    assert "floating-point" in message(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)]
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], duration=50, **options)
    assert load(tmp_path / f"a{suffix}").getpixel((4, 4)) == RED


# --- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "limit"), [((200, 100), 5000), ((100, 200), 5000), ((201, 99), 4999), ((1000, 2), 100), ((2, 1000), 100), ((50, 50), 1)]
)
def test_large_images_are_scaled_down_in_proportion(tmp_path: Path, size: tuple[int, int], limit: int) -> None:
    halves(*size).save(tmp_path / "a.png")
    width, height = load(tmp_path / "a.png", ImageTable(max_pixels=limit)).size
    assert width * height <= limit
    assert min(width, height) >= 1
    if min(size) > 50:
        assert width / height == pytest.approx(size[0] / size[1], rel=0.03)
        assert width * height > 0.9 * limit


def test_20000_pixels_wide_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (20_000, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    found = probe(tmp_path / "a.png", LIMITS)
    assert found is not None
    assert "20000 x 3 pixels, longer than image.max_side = 10000" in found


def test_1x1_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    assert "1 x 1 pixels, shorter than image.min_side = 2" in message(tmp_path / "a.png")
    assert load(tmp_path / "a.png", ImageTable(min_side=1)).size == (1, 1)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    assert "decompression bomb" in message(tmp_path / "a.png", ImageTable(max_side=100_000))


# --- broken files ------------------------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-400])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated JPEG": (truncated, "broken or truncated"),
    "text": (lambda path: path.write_text("<html>404 Not Found</html>"), "looks like text"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 4), "convert it to PNG or JPEG"),
    "half a PNG header": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"), "broken"),
    "EPS": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image in a known format"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_name_path_and_remedy(tmp_path: Path, name: str) -> None:
    make, expected = BROKEN[name]
    make(tmp_path / "a.png")
    found = message(tmp_path / "a.png")
    assert expected in found
    assert "replace the file or remove its rows" in found
    assert "\n" not in found


@pytest.mark.filterwarnings(r"ignore:::PIL\.")  # Pillow's own warnings, which `mixpo.images` ignores once per process
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    """Damaged anywhere, a file opens or is an ImageError; nothing of Pillow's leaks."""
    path, rng = tmp_path / "a", np.random.default_rng(0)
    refused = 0
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        halves().save(path, kind)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 6)] = rng.integers(0, 256, 6)
            path.write_bytes(damaged.tobytes()[: rng.integers(1, len(whole) + 1)])
            refused += probe(path, LIMITS) is not None
    assert refused > 100


def test_empty_missing_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for path, expected in [(tmp_path / "empty.png", "0 bytes"), (tmp_path / "gone.png", "no such image"), (tmp_path, "not a regular file")]:
        with pytest.raises(ImageError, match=expected):
            reference(path)
        assert expected in str(probe(path, LIMITS))


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    assert "cannot be read" in str(probe(Path("a\0b"), LIMITS)) or "no such image" in str(probe(Path("a\0b"), LIMITS))
    assert probe(tmp_path / ("x" * 5000), LIMITS) is not None


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    halves().save(path)
    ref = reference(path)
    halves(42).save(path)
    with pytest.raises(ImageError, match=r"a\.png: the image changed since the questions were read; run the source stage again"):
        open_image(ref, LIMITS)


def test_digest_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert digest_file(tmp_path / "a") == expected
    assert reference(tmp_path / "a") == ImageRef(path=str(tmp_path / "a"), digest=expected)


# --- copies by content ---------------------------------------------------------------------------------------------------


def test_save_content_is_one_valid_file_per_content(tmp_path: Path) -> None:
    first, second = save_content(halves(), tmp_path), save_content(halves().copy(), tmp_path)
    other = save_content(halves(44), tmp_path)
    assert first == second != other
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
    assert open_image(first, LIMITS).tobytes() == halves().tobytes()
    with Image.open(first.path) as image:
        image.verify()


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (300, 300)])
@pytest.mark.parametrize("gray", [False, True])
def test_saved_pixels_come_back(tmp_path: Path, size: tuple[int, int], gray: bool) -> None:
    shape = (size[1], size[0]) if gray else (size[1], size[0], 3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    saved = save_content(image, tmp_path)
    with Image.open(saved.path) as stored:
        assert stored.mode == ("L" if gray else "RGB")
        assert stored.convert("RGB").tobytes() == image.convert("RGB").tobytes()


def test_stored_bytes_do_not_depend_on_a_library_version(tmp_path: Path) -> None:
    """The digest of this image is fixed forever: ids of questions rest on it. Worked out from RFC 2083 by hand below."""
    saved = save_content(Image.new("RGB", (2, 1), RED), tmp_path)
    data = b"\0" + bytes(RED) * 2
    stream = b"\x78\x01\x01\x07\x00\xf8\xff" + data + struct.pack(">I", zlib.adler32(data))
    head = chunk(b"IHDR", b"\0\0\0\x02\0\0\0\x01\x08\x02\0\0\0")
    expected = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    assert Path(saved.path).read_bytes() == expected
    assert saved.digest == hashlib.sha256(expected).hexdigest()


def test_torn_copy_is_repaired(tmp_path: Path) -> None:
    saved = save_content(halves(), tmp_path)
    Path(saved.path).write_bytes(b"")
    assert save_content(halves(), tmp_path) == saved
    assert open_image(saved, LIMITS).size == (40, 20)


def test_save_bytes_keeps_every_byte(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    saved = save_bytes(content, tmp_path / "kept")
    assert Path(saved.path).read_bytes() == content
    assert saved.path.endswith(f"{saved.digest}.jpg")
    for bad in (b"", b"no image"):
        with pytest.raises(ImageError):
            save_bytes(bad, tmp_path / "kept")


def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    replace_in(monkeypatch, images, "os", replace=full)
    with pytest.raises(RunError, match="No space left on device"):
        save_content(halves(), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("size", "low", "high"), [((10, 10), 900, 1000), ((3, 40), 5000, 6000), ((100, 20), 2500, 2500), ((7, 7), 50, 50)])
def test_small_images_are_scaled_up_between_the_limits(tmp_path: Path, size: tuple[int, int], low: int, high: int) -> None:
    Image.new("RGB", size, (9, 99, 199)).save(tmp_path / "a.png")
    width, height = load(tmp_path / "a.png", ImageTable(min_pixels=low, max_pixels=high)).size
    assert width * height <= high
    assert width * height >= min(low, high * 0.85)
    assert width / height == pytest.approx(size[0] / size[1], rel=0.15)


def test_limits_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="min_pixels must not exceed max_pixels"):
        ImageTable(min_pixels=101, max_pixels=100)


def test_a_large_jpeg_is_decoded_at_a_fraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves(2400, 1600).save(tmp_path / "a.jpg", quality=95)
    table, sizes = ImageTable(max_pixels=60_000), list[tuple[int, int]]()
    plain = halves(2400, 1600).resize((300, 200), Image.Resampling.BICUBIC)
    spy(monkeypatch, images, "_scale", lambda image, _table: sizes.append(image.size))
    drafted = load(tmp_path / "a.jpg", table)
    assert sizes == [(600, 400)]
    assert drafted.size == plain.size == (300, 200)
    difference = np.abs(np.asarray(drafted).astype(int) - np.asarray(plain).astype(int))
    assert difference.mean() < 2
    assert load(tmp_path / "a.jpg", ImageTable(max_pixels=2_000_000)).size == (1732, 1154), "a draft would be too small"


def test_pixels_are_bounded_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_DECODED", 10_000)
    halves(200, 100).save(tmp_path / "a.png")
    halves(200, 100).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    assert "20,000 pixels, more than the 10,000 that are decoded; scale it down" in message(tmp_path / "a.png")
    monkeypatch.undo()
    monkeypatch.setattr(images, "MAX_DECODED", 10_000)
    assert load(tmp_path / "a.jpg", ImageTable(max_pixels=1_000)).size == (44, 22)


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "LA", "P"])
def test_strips_change_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 65536, (70, 50), dtype=np.uint16) if mode == "I;16" else rng.integers(0, 256, (70, 50, 4), dtype=np.uint8)
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values).convert(mode)
    options: dict[str, Any] = {"transparency": 3} if mode == "P" else {}
    image.save(tmp_path / "a.png", **options)
    whole = load(tmp_path / "a.png")
    monkeypatch.setattr(images, "STRIP", 16)
    assert load(tmp_path / "a.png").tobytes() == whole.tobytes()


def test_pillow_prints_no_warning_of_its_own(tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(tmp_path / "a.png")
    with warnings.catch_warnings(record=True) as caught:
        images._formats.cache_clear()
        assert load(tmp_path / "a.png", ImageTable(max_pixels=10_000)).size == (105, 94)
    assert not caught


@pytest.mark.slow
def test_memory_of_large_images(tmp_path: Path) -> None:
    from large_images import measure

    assert measure(tmp_path, "jpeg", 6000)["peak_mb"] < 150
    assert measure(tmp_path, "transparent", 6000)["peak_mb"] < 500
