"""The functions by which mixpo's commands read each file of a run; `chaos_flips.py` reads damaged files with them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from chaos_compare import plan_of

from mixpo.cache import Cache
from mixpo.evaluate.judge import _load as load_reply
from mixpo.human_labels import LABELS, read_labels
from mixpo.images import open_image
from mixpo.integrity import FileRecord, files_below
from mixpo.pipeline import open_run
from mixpo.progress import Silent
from mixpo.recipe import ImageTable
from mixpo.run import ATTEMPTS, Run, Stage
from mixpo.stages.attempts import _load as load_attempts
from mixpo.stages.models import check_trained
from mixpo.stages.question_index import INDEX, load_index
from mixpo.stages.report import DATA, PAGE, load_report
from mixpo.stages.source import SKIPPED, load_skipped
from mixpo.train.checkpoint import TrainState, find_checkpoint
from mixpo.train.metrics import read_metrics
from mixpo.types import ImageRef
from mixpo.viewer.index import RunIndex
from mixpo.vlm.hashes import _read as read_digests

VIEWED = ("block", "question", "judged", "dropped", "pair")
"""Tables of the viewer's index."""


class Changed(Exception):  # noqa: N818
    """A derived file is not as it was written, so that it is rebuilt."""


def never(value: Any, whole: Any) -> bool:
    """The default of `Reader.same`: only equal values are as good as the whole."""
    return False


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One file and what reads it. same: whether less than the whole is right as well (a cache that misses).

    copied: files that reading changes; they are put back.
    """

    kind: str
    path: Path
    read: Callable[[], Any]
    same: Callable[[Any, Any], bool] = never
    copied: tuple[Path, ...] = field(default=())

    @contextmanager
    def own(self) -> Iterator[Path]:
        """The file to flip a bit in; put back as it was where reading it changes it."""
        if not self.copied:
            yield self.path
            return
        with tempfile.TemporaryDirectory() as temporary:
            for path in self.copied:
                shutil.copy2(path, temporary)
            yield self.path
            for path in self.copied:
                if not path.exists() or path.read_bytes() != Path(temporary, path.name).read_bytes():
                    shutil.copy2(Path(temporary, path.name), path)


def readers(root: Path) -> Iterator[Reader]:
    """All files of a run that hold something, with their readers."""
    yield from _records(root)
    for path in Run(root).manifests():
        yield from _stage(Run(root).stage(path.parent.relative_to(root).as_posix()))
    for folder in root.glob("round-*/train/*/work-*"):
        yield from _training(folder)
    yield from _caches(root)
    yield from _viewer(root)
    for path in Run(root).images.glob("??/*"):
        ref = ImageRef(path=str(path), digest=path.stem)
        yield Reader(kind="image", path=path, read=lambda ref=ref: open_image(ref, ImageTable()).tobytes())  # type: ignore[misc]


def _records(root: Path) -> Iterator[Reader]:
    for name in ("recipe.json", "command.json"):
        yield Reader(kind=name, path=root / name, read=lambda: (open_run(root).recipe, open_run(root).limit, open_run(root).models.known))
    yield Reader(kind="human labels", path=root / LABELS, read=lambda: read_labels(root))
    if (root / DATA).exists():
        yield Reader(kind="report.json", path=root / DATA, read=lambda: load_report(root))
        yield Reader(kind="report.html", path=root / PAGE, read=lambda: _derived(root))


def _derived(root: Path) -> None:
    if plan_of(root).planned["report"].work().missing:
        raise Changed


def _stage(stage: Stage) -> Iterator[Reader]:
    yield Reader(kind="manifest", path=stage.folder / "manifest.json", read=lambda: stage.manifest)
    rows = plan_of(Path(str(stage.folder).removesuffix(f"/{stage.name}")))._rows.get(stage.name)
    manifest = stage.manifest
    assert manifest is not None
    for shard in manifest.shards if rows is not None else ():
        if rows is not None and stage.path(shard).exists():
            yield Reader(kind=f"shard of {rows.__name__}", path=stage.path(shard), read=partial(stage.read, shard, rows))
    for name, read in ((INDEX, load_index), (SKIPPED, load_skipped), (ATTEMPTS, load_attempts)):
        if (stage.folder / name).exists() and (stage.folder / name).stat().st_size:
            yield Reader(kind=name, path=stage.folder / name, read=lambda read=read: read(stage))  # type: ignore[misc]
    for name in ("all_wrong.jsonl", "unmatched.jsonl"):
        if name in manifest.files and (stage.folder / name).stat().st_size:
            yield Reader(kind=name, path=stage.folder / name, read=lambda name=name: _listed(stage, name))  # type: ignore[misc]
    for folder in stage.folder.glob("model-*"):
        for path in files_below(folder):
            kind = "model weights" if path.suffix == ".safetensors" else "other model files"
            yield Reader(kind=kind, path=path, read=lambda folder=folder: check_trained(folder))  # type: ignore[misc]


def _listed(stage: Stage, name: str) -> None:
    """What `list_all_wrong` and `mixpo verify-run` ask."""
    manifest = stage.manifest
    if manifest is None or FileRecord.parse(manifest.files[name]).damage(stage.folder / name):
        raise Changed


def _training(work: Path) -> Iterator[Reader]:
    for path in work.glob("metrics*.jsonl"):
        yield Reader(kind="metrics.jsonl", path=path, read=lambda path=path: read_metrics(path))  # type: ignore[misc]
    for folder in sorted(work.glob("checkpoints/step-*")):
        state = json.loads((folder / "state.json").read_text())
        expected = TrainState(data=state["data"], settings=state["settings"])

        def read(folder: Path = folder, expected: TrainState = expected, step: int = state["step"]) -> Any:
            checkpoint = find_checkpoint(folder.parent, expected, lambda text: None, False)
            if checkpoint is None or checkpoint.state.step < step:
                raise Changed
            tensors = {name: value.numpy().tobytes() for name, value in checkpoint.tensors.items()}
            return checkpoint.state, tensors

        if folder == sorted(work.glob("checkpoints/step-*"))[-1]:  # older ones are not looked at
            for path in files_below(folder):
                yield Reader(kind=f"checkpoint {path.name}", path=path, read=read)


def _caches(root: Path) -> Iterator[Reader]:
    for path in sorted((root / "cache").glob("*.sqlite")):
        cache = Cache(path)
        keys = [key for (key,) in cache._connection.execute("SELECT key FROM results")]
        cache._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cache.close()

        def read(path: Path = path, keys: list[str] = keys) -> dict[str, str | None]:
            cache = Cache(path)
            try:
                return {key: cache.get(key) for key in keys}
            finally:
                cache.close()

        yield Reader(kind=f"cache {path.name}", path=path, read=read, same=_misses, copied=(path,))
    for path in sorted((root / "judged").glob("??/*.json")):
        yield Reader(kind="judge reply", path=path, read=lambda path=path: load_reply(path), same=lambda value, _: value is None)  # type: ignore[misc]
    digests = root.parent / "cache" / "mixpo" / "digests.json"
    if digests.exists():
        yield Reader(kind="remembered digests", path=digests, read=read_digests, same=lambda value, _: value == {})


def _viewer(root: Path) -> Iterator[Reader]:
    path = root / ".view" / "index.duckdb"
    if not path.exists():
        return

    def read() -> tuple[list[Any], list[str]]:
        progress = Silent()
        index = RunIndex(Run(root), progress)
        try:
            return [index.rows(f"SELECT * FROM {table} ORDER BY ALL") for table in VIEWED], progress.lines
        finally:
            index.close()

    yield Reader(kind="viewer index", path=path, read=read, same=lambda value, whole: value[0] == whole[0], copied=(path,))


def _misses(value: dict[str, str | None], whole: dict[str, str | None]) -> bool:
    return all(one is None or one == whole[key] for key, one in value.items())
