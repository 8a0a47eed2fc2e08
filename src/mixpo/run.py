"""A run directory: where each stage's shards live, which are done, what is stale and why.

    RUN/recipe.json                     the resolved recipe of the last command
    RUN/models/<name>                   link to a trained model, under a name that does not change
    RUN/images/                         content-addressed copies of images that have no file of their own
    RUN/<stage>/manifest.json           settings, inputs, versions, counts, timings; size and digest of every file
    RUN/<stage>/00012-<key>.parquet     one shard; it is done when the file is there and has the recorded size

A shard's key is a digest of the stage's settings and of the shard it was made from. So "done" needs no bookkeeping that a
kill could tear, a changed setting or changed input makes exactly the shards that depend on it stale, and everything
else is used again. Shards and JSON records hold a checksum of themselves, which every reader compares.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from mixpo import sealed
from mixpo.errors import RecordError, RunError
from mixpo.integrity import FileRecord, Records, records_of
from mixpo.plural import amount, are
from mixpo.records import read_rows, write_rows, write_text
from mixpo.types import content_id

Row = TypeVar("Row")

FORMAT = 2
"""Version of the layout of a run directory."""
ATTEMPTS = "attempts.json"
"""In the folder of a stage: from the number of a shard to how often its failed questions were retried."""
REBUILD = "{path}: damaged, rebuilding it"
CHANGE = 160
"""Characters of a changed setting that are told; the manifest has all of it."""


@dataclass(kw_only=True)
class Manifest:
    """What a stage did. `settings` holds everything that decides its output; `counts` what was made or dropped.

    facts: what is known about a server: what it supports, what was retried. files: size and digest of each file, see `mixpo.integrity`.
    replaced: of files that are being rebuilt, what they were; what was made from them is stale if they come out different.
    """

    stage: str
    settings: dict[str, Any]
    inputs: list[str]
    shards: list[str]
    finished: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    started: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is left to do in a stage: shard names (all, in order), which of them are missing, and why the stage is not fresh."""

    shards: tuple[str, ...]
    missing: tuple[str, ...]
    reasons: tuple[str, ...]


class Stage:
    """One stage's folder. Shards are named `<number>-<key>`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    @property
    def manifest(self) -> Manifest | None:
        """The last manifest, or None; not to be changed. Raises RunError for a damaged one."""
        path = self.folder / "manifest.json"
        try:
            stat = path.stat()
            return _load(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        except FileNotFoundError:
            return None
        except PermissionError:
            raise  # no reason to delete it
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                f"{path}: not a manifest of this version ({error}); delete this file and run again, finished shards are kept",
                code="manifest-broken",
                path=path,
            ) from None

    def save_manifest(self, manifest: Manifest) -> None:
        """Write the manifest atomically."""
        write_text(self.folder / "manifest.json", sealed.dumps(asdict(manifest), indent=2))

    def names(self, settings: Mapping[str, Any], inputs: Sequence[str]) -> tuple[str, ...]:
        """The names of the shards that these settings make of these inputs."""
        return tuple(f"{number:05d}-{content_id(settings, shard)}" for number, shard in enumerate(inputs))

    def plan(self, settings: Mapping[str, Any], inputs: Sequence[str]) -> Work:
        """Compare what should be there with what is there. `inputs` are the names of the shards that feed this stage."""
        shards = self.names(settings, inputs)
        records = {} if (last := self.manifest) is None else last.files
        missing = tuple(shard for shard in shards if not self.has(shard, records))
        return Work(shards=shards, missing=missing, reasons=self._reasons(settings, inputs, missing))

    def has(self, shard: str, records: Records) -> bool:
        """Whether a shard is there, with the size that `records` give it."""
        path = self.path(shard)
        record = records.get(path.name)
        return path.exists() if record is None else not FileRecord.parse(record).damage(path, read=False)

    def kept(self, records: Records, shards: Sequence[str]) -> dict[str, str]:
        """Those of `records` that are of these shards."""
        names = (self.path(shard).name for shard in shards)
        return {name: records[name] for name in names if name in records}

    def _reasons(self, settings: Mapping[str, Any], inputs: Sequence[str], missing: Sequence[str]) -> tuple[str, ...]:
        if not missing:
            return ()
        last = self.manifest
        if last is None:
            return ("not run yet",)
        reasons = changed_settings(last.settings, json.loads(json.dumps(settings)))
        fresh = len(set(inputs) - set(last.inputs))
        if fresh:
            reasons.append(f"{fresh} of {amount(len(inputs), 'input shard')} {are(fresh)} new or changed")
        if reasons:
            return tuple(reasons)
        damaged = sum(self.path(shard).exists() for shard in missing)
        gone = len(missing) - damaged
        return (
            *([f"{amount(damaged, 'shard has', 'shards have')} another size than was written"] if damaged else []),
            *([f"{amount(gone, 'shard is', 'shards are')} {'gone' if last.finished else 'not finished'}"] if gone else []),
        )

    def path(self, shard: str) -> Path:
        """File of a shard."""
        return self.folder / f"{shard}.parquet"

    def write(self, shard: str, row: type[Row], rows: Sequence[Row]) -> None:
        """Write one shard; from then on it is done. What the manifest records of it is brought up to date by who makes the stage."""
        write_rows(self.path(shard), row, rows)

    def rewrite(self, shard: str, row: type[Row], rows: Sequence[Row], records: Records, say: Callable[[str], None]) -> dict[str, str]:
        """Write a shard of what was read from outside, unless it holds these rows; returns its record. `say` is told of a damaged one."""
        path, same = self.path(shard), False
        try:
            same = path.exists() and self.read(shard, row) == list(rows)
        except RecordError:
            say(REBUILD.format(path=path))
        if not same:
            self.write(shard, row, rows)
        return {path.name: records[path.name]} if same and path.name in records else records_of(self.folder, [path])

    def read(self, shard: str, row: type[Row]) -> list[Row]:
        """Read one shard."""
        return read_rows(self.path(shard), row)

    def read_all(self, row: type[Row]) -> Iterator[Row]:
        """All rows of the shards named in the manifest, shard by shard. Raises RunError when the stage has not finished."""
        manifest = self.manifest
        if manifest is None or not manifest.finished:
            raise RunError(f"{self.folder}: stage {self.name} has not finished; run it first", code="stage-unfinished", path=self.folder)
        for shard in manifest.shards:
            yield from self.read(shard, row)

    def lists(self) -> list[Path]:
        """The files next to the shards that tell people or later stages something, such as the rows that were skipped."""
        others = ("manifest.json", ATTEMPTS)
        files = (path for path in self.folder.iterdir() if path.is_file() and path.suffix != ".parquet" and not path.name.startswith("."))
        return sorted(path for path in files if path.name not in others)

    def prune(self, keep: Sequence[str]) -> None:
        """Delete shards that no longer belong (stale ones) and left-over temporary files."""
        wanted = {f"{shard}.parquet" for shard in keep}
        stale = [path for path in self.folder.glob("*.parquet") if path.name not in wanted]
        for path in [*stale, *self.folder.glob(".*.tmp")]:
            path.unlink(missing_ok=True)


class Run:
    """A run directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage(self, name: str) -> Stage:
        """The folder of a stage; `name` may have parts, as in "round-1/sample"."""
        return Stage(self.root / name, name)

    @property
    def images(self) -> Path:
        """Content-addressed images made by sources that have no files of their own."""
        return self.root / "images"

    @property
    def verdicts(self) -> Path:
        """Verdicts on formulas, kept from stage to stage and from round to round."""
        return self.root / "cache" / "verdicts.sqlite"

    @property
    def fingerprints(self) -> Path:
        """What images look like, kept over runs of the same directory (see `mixpo.sources.image_similarity`)."""
        return self.root / "cache" / "fingerprints.sqlite"

    @property
    def models(self) -> Path:
        """Links to the trained models by name."""
        return self.root / "models"

    def manifests(self) -> Iterator[Path]:
        """The manifests of all stages, in order."""
        for folder, folders, files in os.walk(self.root):
            # Not into folders of models, nor into that of images, which may hold millions.
            into = (name for name in folders if not name.startswith((".", "work-", "model-")) and Path(folder, name) != self.images)
            folders[:] = sorted(into)
            if "manifest.json" in files:
                yield Path(folder, "manifest.json")

    def sweep(self) -> None:
        """Remove what a killed process left half written. Nobody else writes here while the run is locked."""
        for folder, folders, files in os.walk(self.root):
            left = [name for name in (*folders, *files) if name.startswith(".") and name.endswith((".tmp", ".old"))]
            # Below the top folder of images there is nothing half written, and there may be millions of them.
            folders[:] = [name for name in folders if name not in left and Path(folder) != self.images]
            for path in (Path(folder, name) for name in left):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for this process; the lock ends with the process, however it ends."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise RunError(
                f"{self.root}: cannot be used as a run directory ({error.strerror})", code="run-not-writable", path=self.root
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise RunError(
                f"{self.root}: another mixpo process is working in this run; wait for it or use another directory",
                code="run-locked",
                path=self.root,
            ) from None
        try:
            yield
        finally:
            os.close(handle)


@lru_cache(maxsize=32)
def _load(path: Path, *stamp: int) -> Manifest:
    """The manifest in a file; read once for every `stamp`."""
    return Manifest(**sealed.load(path))


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every setting that differs, nested keys joined by dots."""
    changes = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_settings(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key}: {_change(before, after)}")
    return changes


def _change(before: object, after: object) -> str:
    """Both values on one line; of long ones the part where they begin to differ."""
    left, right = (" ".join(str(value).split()) for value in (before, after))
    if left == right:  # they differ in white space alone
        left, right = repr(before), repr(after)
    start = 0
    if max(len(left), len(right)) > CHANGE:
        from rapidfuzz.distance import Prefix

        start = max(0, Prefix.similarity(left, right) - CHANGE // 4)
    return " -> ".join(("…" if start else "") + _cut(text[start:]) for text in (left, right))


def _cut(text: str) -> str:
    return text if len(text) <= CHANGE else text[: CHANGE - 1] + "…"


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = ("mixpo", "torch", "transformers", "accelerate", "tokenizers", "pillow", "math-verify")
    return {"python": platform.python_version(), **{package: version_of(package) for package in packages}}


@cache
def version_of(package: str) -> str:
    """The version of an installed package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def now() -> str:
    """Current time in UTC, ISO 8601, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
