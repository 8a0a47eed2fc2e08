"""How often `evaluate.decontaminate = "similar"` errs: copies that it misses, and pictures of their own that it takes for copies.

Pictures: easy-VQA (64 x 64 pixels, plain shapes in many colours: the hardest case for a perceptual hash), the digits of the demo, and
parts of the two photographs that scikit-learn brings, those of one against those of the other. Found: copies of a sample of pictures,
each changed in several ways. False alarms: training pictures that are said to look like a test picture, none of which is a copy.

python benchmarks/similar.py [--bits 32] [--json]
"""

from __future__ import annotations

import argparse
import io
import random
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from history import emit
from PIL import Image

from mixpo.recipe import DigitsSource, EasyVqaSource, EvaluateTable
from mixpo.sources import read_rows
from mixpo.sources.build import SourceRow
from mixpo.sources.image_similarity import Gallery, fingerprint_of

SAMPLE = 200
"""Pictures of which copies are made."""


def encoded(kind: str, **options: int) -> Callable[[Image.Image], Image.Image]:
    """Written and read in another format."""

    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return Image.open(buffer).convert("RGB")

    return change


def scaled(factor: float) -> Callable[[Image.Image], Image.Image]:
    """Scaled by a factor."""
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 95": encoded("JPEG", quality=95),
    "JPEG 75": encoded("JPEG", quality=75),
    "JPEG 50": encoded("JPEG", quality=50),
    "WebP 60": encoded("WEBP", quality=60),
    "half size": scaled(0.5),
    "double size": scaled(2),
    "half size, JPEG 75": lambda image: encoded("JPEG", quality=75)(scaled(0.5)(image)),
    "made gray": lambda image: image.convert("L").convert("RGB"),
    "2 % cut off": lambda image: image.crop(
        (image.width // 50, image.height // 50, image.width - image.width // 50, image.height - image.height // 50)
    ),
}


def pictures(table: DigitsSource | EasyVqaSource, folder: Path) -> list[Image.Image]:
    """Every picture of a source, once."""
    paths = {
        item.question.images[0].path: None for item in read_rows(table, recipe_folder=folder, images=folder) if isinstance(item, SourceRow)
    }
    return [Image.open(path).convert("RGB") for path in paths]


def tiles(photo: Image.Image) -> list[Image.Image]:
    """Parts of a photograph, 300 x 300 pixels each, one every 40 pixels."""
    lefts, tops = range(0, photo.width - 299, 40), range(0, photo.height - 299, 40)
    return [photo.crop((left, top, left + 300, top + 300)) for left in lefts for top in tops]


def photographs() -> list[Image.Image]:
    """The two that come with scikit-learn."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return [Image.open(path).convert("RGB") for path in sorted((Path(spec.origin).parent / "datasets" / "images").glob("*.jpg"))]


def measure(train: Sequence[Image.Image], test: Sequence[Image.Image], bits: int) -> dict[str, object]:
    """Shares: `flat` of the test pictures have no look; `false` of the training pictures resemble one; `found` of the copies, by change."""
    gallery, fingerprints = Gallery(bits), [fingerprint_of(image) for image in test]
    for number, fingerprint in enumerate(fingerprints):
        if fingerprint is not None:
            gallery.add(fingerprint, str(number))
    seen = [image for image, fingerprint in zip(test, fingerprints, strict=True) if fingerprint is not None]
    sample = random.Random(0).sample(seen, min(SAMPLE, len(seen)))
    return {
        "train": len(train),
        "test": len(test),
        "flat": fingerprints.count(None) / len(fingerprints),
        "false": sum(resembles(gallery, image) for image in train) / len(train),
        "found": {name: sum(resembles(gallery, change(image)) for image in sample) / len(sample) for name, change in CHANGES.items()},
    }


def resembles(gallery: Gallery, image: Image.Image) -> bool:
    """Whether a picture would be left out."""
    fingerprint = fingerprint_of(image)
    return fingerprint is not None and gallery.find(fingerprint) is not None


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sets = {
            "easy-VQA": [pictures(EasyVqaSource(kind="easy_vqa", split=name), Path(folder)) for name in ("train", "test")],
            "digits": [pictures(DigitsSource(kind="digits", pool=name, count=1000), Path(folder)) for name in ("preference", "test")],
            "parts of photographs": [tiles(photo) for photo in photographs()],
        }
        results = {name: measure(train, test, args.bits) for name, (train, test) in sets.items()}
    for name, row in results.items():
        print(f"{name}: {row['train']} pictures against {row['test']}, false alarms {row['false']:.2%}, no look {row['flat']:.1%}")
        print("  found: " + ", ".join(f"{change} {share:.1%}" for change, share in row["found"].items()))  # type: ignore[attr-defined]
    emit("similar", {"bits": args.bits, **results}, show=args.json)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=EvaluateTable().similar_bits)
    parser.add_argument("--json", action="store_true")
    main(parser.parse_args())
