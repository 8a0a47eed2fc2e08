"""Damaged files of a run: what its stage can rebuild is removed, and logged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container
from pathlib import Path

from mixpo import sealed
from mixpo.errors import EvaluateError, MixpoError, ModelError, RecordError, SourceError
from mixpo.run import REBUILD, Run
from mixpo.stages import imported
from mixpo.stages.answer import source_name
from mixpo.stages.job import Context, Plan
from mixpo.stages.question_index import INDEX, REPLAY
from mixpo.stages.questions import read_sources
from mixpo.stages.reference import GROUPS

IMAGES = ("image-changed", "image-missing", "image-empty", "image-format-unknown", "image-broken", "image-unreadable")
"""Codes of errors about an image, which sources write again where it has no file of its own."""
REMADE = (*IMAGES, "record-broken", "record-missing", "index-broken", "model-damaged", "given-broken")
"""Codes of errors about a file that its stage can rebuild."""


def drop_damaged_manifests(run: Run, say: Callable[[str], None]) -> None:
    """Remove manifests and indices that cannot be read; they are rebuilt from the shards and the sources."""
    for path in [*run.manifests()]:
        for file in (path, path.with_name(INDEX)):
            try:
                sealed.load(file)
            except FileNotFoundError:
                continue
            except ValueError:
                file.unlink()
                say(REBUILD.format(path=file))


def until_whole(context: Context, plan: Plan, kinds: Container[str], work: Callable[[], None]) -> None:
    """Do some work on the stages of these kinds; where it meets a damaged file that they or a source made, remove it and start over.

    What is finished costs nothing the second time. Other errors are raised, as is one about a file that was rebuilt already.
    """
    removed: set[Path] = set()
    while True:
        try:
            return work()
        except (RecordError, ModelError, EvaluateError, SourceError) as error:
            path = _remake(context, plan, kinds, error)
            if path is None or path in removed:
                raise
            removed.add(path)
            context.progress.say(REBUILD.format(path=path))
            if path.parent in source_folders(context) or context.run.images in path.parents:
                read_sources(context)


def _remake(context: Context, plan: Plan, kinds: Container[str], error: MixpoError) -> Path | None:
    """Remove the damaged file that an error is about; None where it cannot be rebuilt here."""
    if error.code not in REMADE or error.path is None or context.ranks.world_size > 1:
        return None
    path = Path(error.path)
    if error.code in IMAGES:
        if context.run.images not in path.parents:
            return None
        path.unlink(missing_ok=True)
        for folder in source_folders(context):  # read again, whatever it is
            (folder / INDEX).unlink(missing_ok=True)
        return path
    if path.parent in source_folders(context):
        path.unlink(missing_ok=True)
        return path
    for planned in (planned for planned in plan.planned.values() if planned.job.kind in kinds):
        for file in (planned.stage.folder / GROUPS, *(file for shard in planned.names() for file in planned.files(shard))):
            if file == path or file in path.parents:
                shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
                return path
    return None


def source_folders(context: Context) -> list[Path]:
    """The folders of questions and ready-made pairs."""
    names = ("source", imported.STAGE, REPLAY, *(source_name(s.name) for s in context.recipe.evaluate.sets))
    return [context.run.stage(name).folder for name in names]
