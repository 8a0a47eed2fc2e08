"""easy-VQA: questions about single coloured shapes, with the 5,000 images inside the PyPI package `easy-vqa`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mixpo.errors import MissingExtra, SourceError
from mixpo.images import reference
from mixpo.recipe import EasyVqaSource
from mixpo.sources.build import SourceRow, make_question
from mixpo.types import ImageRef, Skipped

SHAPES = frozenset({"circle", "rectangle", "triangle"})


def read(source: EasyVqaSource, recipe_folder: Path, images: Path) -> Iterator[SourceRow | Skipped]:
    """`count` questions spread evenly over the split, in its order. The domain is what is asked for: shape, color or yes_no."""
    try:
        import easy_vqa
    except ImportError:
        raise MissingExtra('source.kind = "easy_vqa"', "easy-vqa") from None
    train = source.split == "train"
    texts, answers, owners = easy_vqa.get_train_questions() if train else easy_vqa.get_test_questions()
    paths = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
    total = len(texts)
    if source.count > total:
        raise SourceError(
            f"source.count = {source.count}, but easy-VQA's {source.split} split has {total} questions; set count = 0 for all",
            code="too-few-rows",
            key="source.count",
        )
    count = source.count or total
    known: dict[int, ImageRef] = {}
    for position in range(count):
        number = position * total // count
        owner, answer = owners[number], answers[number]
        if owner not in known:
            known[owner] = reference(Path(paths[owner]))
        domain = "yes_no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "color"
        question = make_question(text=texts[number], images=[known[owner]], answer=answer, domain=domain, source=f"easy_vqa/{source.split}")
        yield SourceRow(where=f"easy_vqa/{source.split}[{number}]", question=question)
