"""Copies of evaluation images are kept out of training although their bytes differ; pictures of their own are not."""

from __future__ import annotations

import io
import json
import random
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import small_run
from PIL import Image, ImageDraw
from small_run import open_small, said

from mixpo.commands.plan import dry_run
from mixpo.errors import MissingExtra
from mixpo.images import reference
from mixpo.sources import image_similarity
from mixpo.sources.image_similarity import HASH_BYTES, FingerprintCache, Gallery, fingerprint_of
from mixpo.stages.questions import read_sources
from mixpo.types import ImageRef

imagehash = pytest.importorskip("imagehash", reason="needs the similar extra")


def drawing(number: int, side: int = 240, colour: tuple[int, int, int] | None = None) -> Image.Image:
    """Lines and boxes in a pattern of its own."""
    rng = random.Random(number)
    image = Image.new("RGB", (side, side), (245, 240, 230))
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        x, y = rng.randrange(side), rng.randrange(side)
        shade = colour or (rng.randrange(200), rng.randrange(200), rng.randrange(200))
        draw.rectangle((x, y, x + rng.randrange(20, 90), y + rng.randrange(20, 90)), fill=shade)
    return image


def again(image: Image.Image, kind: str = "JPEG", quality: int = 60) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return Image.open(buffer).convert("RGB")


def photograph() -> Image.Image:
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return Image.open(Path(spec.origin).parent / "datasets" / "images" / "china.jpg").convert("RGB")


def found(test: Image.Image, image: Image.Image, bits: int = 32) -> bool:
    gallery, fingerprint, other = Gallery(bits), fingerprint_of(test), fingerprint_of(image)
    if fingerprint is not None:
        gallery.add(fingerprint, "test")
    return other is not None and gallery.find(other) == "test"


@pytest.mark.parametrize("original", [drawing(1), drawing(2), photograph()], ids=["drawing", "other drawing", "photograph"])
def test_copies_are_found(original: Image.Image) -> None:
    half = original.resize((original.width // 2, original.height // 2))
    for copy in (original, again(original), again(original, "WEBP"), half, original.resize((300, 200)), again(half, quality=75)):
        assert found(original, copy)


def test_pictures_of_their_own_are_not() -> None:
    pictures = [drawing(number) for number in range(40)]
    gallery = Gallery(32)
    for number, picture in enumerate(pictures[:20]):
        fingerprint = fingerprint_of(picture)
        assert fingerprint is not None
        gallery.add(fingerprint, str(number))
    named = [gallery.find(fingerprint) if (fingerprint := fingerprint_of(picture)) else None for picture in pictures]
    assert named == [*(str(number) for number in range(20)), *[None] * 20]


def test_other_colours_are_another_picture() -> None:
    """The hash sees brightness alone: red and green of the same brightness are one to it."""
    red, green = drawing(3, colour=(190, 30, 30)), drawing(3, colour=(20, 108, 20))
    bits = [fingerprint[:HASH_BYTES] for picture in (red, green) if (fingerprint := fingerprint_of(picture))]
    assert sum((a ^ b).bit_count() for a, b in zip(*bits, strict=True)) <= 32
    assert not found(red, green)


def test_what_is_of_one_colour_has_no_look() -> None:
    assert fingerprint_of(Image.new("RGB", (100, 100), (200, 30, 30))) is None
    noise = np.random.default_rng(0).integers(250, 256, (100, 100, 3), dtype=np.uint8)
    assert fingerprint_of(Image.fromarray(noise)) is None


def test_distances_are_those_of_the_library() -> None:
    """The nearest of many, against imagehash's own difference, one by one."""
    pictures = [drawing(number, 60) for number in range(60)]
    gallery = Gallery(96)
    for number, picture in enumerate(pictures):
        fingerprint = fingerprint_of(picture)
        assert fingerprint is not None
        gallery.add(fingerprint, str(number))
    hashes = [imagehash.phash(picture, hash_size=16) for picture in pictures]
    for number in (4, 17, 33):
        copy = again(pictures[number], quality=20)
        fingerprint, own = fingerprint_of(copy), imagehash.phash(copy, hash_size=16)
        assert fingerprint is not None
        distances = [own - other for other in hashes]
        assert gallery.find(fingerprint) == str(int(np.argmin(distances))) == str(number)
        exact = Gallery(min(distances) - 1)
        exact.add(fingerprint_of(pictures[number]) or b"", "it")
        assert exact.find(fingerprint) is None


def test_an_empty_gallery_finds_nothing() -> None:
    assert Gallery(32).find(fingerprint_of(drawing(0)) or b"") is None


# --- kept looks ------------------------------------------------------------------------------------------------------------


def test_an_image_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(0).save(tmp_path / "a.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "flat.png")
    refs = [reference(tmp_path / name) for name in ("a.png", "flat.png")]
    first = [FingerprintCache(tmp_path / "fingerprints.sqlite").of(ref) for ref in refs]
    assert first == [fingerprint_of(drawing(0)), None]
    monkeypatch.setattr(image_similarity, "open_image", lambda *_: pytest.fail("decoded again"))
    assert [FingerprintCache(tmp_path / "fingerprints.sqlite").of(ref) for ref in refs] == first


def test_a_broken_cache_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "fingerprints.sqlite").write_bytes(b"no database at all" * 100)
    drawing(0).save(tmp_path / "a.png")
    assert FingerprintCache(tmp_path / "fingerprints.sqlite").of(reference(tmp_path / "a.png")) == fingerprint_of(drawing(0))


def test_an_image_that_cannot_be_read_has_no_look_and_is_looked_at_again(tmp_path: Path) -> None:
    drawing(0).save(tmp_path / "a.png")
    ref, whole = reference(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:500])
    known = FingerprintCache(tmp_path / "fingerprints.sqlite")
    assert known.of(ref) is None
    assert known.of(ImageRef(path=str(tmp_path / "gone.png"), digest="0" * 64)) is None
    (tmp_path / "a.png").write_bytes(whole)
    assert known.of(ref) is not None


# --- runs ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    """Question 3 of the training source has a small JPEG of the picture of an evaluation question."""
    made = small_run.make(tmp_path, tiny_folder)
    for number in [*range(11, 21), *range(501, 507)]:
        drawing(number).save(tmp_path / "images" / f"{number}.png")
    drawing(501).resize((150, 150)).save(tmp_path / "images" / "copy.jpg", quality=70)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    rows[2]["image"] = "images/copy.jpg"
    small_run.write_jsonl(tmp_path / "questions.jsonl", rows)
    return made


def test_a_copy_in_the_training_source_is_left_out_and_listed(recipe: Path) -> None:
    run = recipe.parent / "run"
    assert read_sources(open_small(recipe, run)).train.questions == 10
    context = open_small(recipe, run, "evaluate.decontaminate=similar")
    assert read_sources(context).train.questions == 9
    (row,) = [json.loads(line) for line in (run / "source" / "skipped.jsonl").read_text().splitlines()]
    assert row["where"].endswith("questions.jsonl:3")
    assert row["reason"] == "its image looks like one of the evaluation set 'held-out'"
    assert (run / "cache" / "fingerprints.sqlite").exists()


def test_a_dry_run_counts_the_same_and_keeps_nothing(recipe: Path) -> None:
    run = recipe.parent / "none"
    context = open_small(recipe, run, "evaluate.decontaminate=similar")
    estimates = {row.stage: row for row in dry_run(context)}
    assert estimates["source"].todo == 9
    assert "1 row skipped" in estimates["source"].why
    assert not (run / "cache").exists()
    assert any("decoding every image" in line for line in said(context))


def test_a_dry_run_takes_the_looks_that_a_run_kept(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recipe.parent / "run"
    read_sources(open_small(recipe, run, "evaluate.decontaminate=similar"))
    monkeypatch.setattr(image_similarity, "open_image", lambda *_: pytest.fail("decoded again"))
    context = open_small(recipe, run, "evaluate.decontaminate=similar")
    assert next(row.todo for row in dry_run(context) if row.stage == "source") == 9
    assert not any("decoding" in line for line in said(context))


def test_without_the_library_the_extra_is_named(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.delitem(sys.modules, "imagehash")
    with pytest.raises(MissingExtra, match=r"similar extra: pip install 'mixpo\[similar\]'"):
        read_sources(open_small(recipe, recipe.parent / "run", "evaluate.decontaminate=similar"))
