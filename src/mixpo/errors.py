"""Every error that mixpo raises on purpose.

    MixpoError                 one sentence for the user: what is wrong, where, and the remedy
    ├── RecipeError            the recipe: unknown key, wrong value, keys that contradict each other
    ├── MissingExtra           an optional library is needed and not installed
    ├── SourceError            a row, file or image of the user's data
    │   └── ImageError         an image that is missing, broken or outside the limits
    ├── RecordError            a record file of a run that is torn or has another schema
    ├── RunError               a run directory: locked by another process, or inconsistent
    ├── EngineError            sampling cannot continue (the model or the server, not one question)
    ├── ModelError             a model folder that cannot be used, or weights that went bad
    ├── TrainError             training cannot start or had to stop
    ├── EvaluateError          predictions that cannot be scored or compared
    └── UnfinishedError        a part of the evaluation failed; everything else was done

The command line prints the message and exits with `exit_code`; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from mixpo.masking import masked


class MixpoError(Exception):
    """Base of all errors meant for the user; the message says what is wrong, where, and what to do.

    code: stable name of the kind of error in kebab-case ("image-missing"), for programs and tests; the wording may change.
    Secrets in the message are masked.
    path, line, key: the place as fields, where there is one: a file, its line (from 1), a recipe key, column or row id.
    """

    exit_code = 1

    def __init__(self, message: str, *, code: str, path: Path | str | None = None, line: int | None = None, key: str | None = None) -> None:
        super().__init__(masked(message))
        self.code, self.path, self.line, self.key = code, path, line, key

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray and process pools pickle errors. The default calls the class with the message alone, which subclasses may not accept.
        return _unpickled, (type(self), str(self)), self.__dict__


def _unpickled(error_type: type[MixpoError], message: str) -> MixpoError:
    return error_type.__new__(error_type, message)


class RecipeError(MixpoError):
    """The recipe cannot be used as it is written."""

    exit_code = 2


class MissingExtra(MixpoError):  # noqa: N818
    """An optional library is needed."""

    exit_code = 2

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the {extra} extra: pip install 'mixpo[{extra}]'", code="missing-extra", key=extra)


class SourceError(MixpoError):
    """A file or row of the data source is unusable."""

    exit_code = 3


class ImageError(SourceError):
    """An image is missing, broken or outside the limits."""


class RecordError(MixpoError):
    """A record file cannot be read as what it claims to be."""


class RunError(MixpoError):
    """The run directory is locked or inconsistent."""


class EngineError(MixpoError):
    """Sampling cannot continue."""


class ModelError(MixpoError):
    """A model folder is incomplete, or its weights are unusable."""


class TrainError(MixpoError):
    """Training cannot start, or was stopped to protect the weights."""


class EvaluateError(MixpoError):
    """Predictions cannot be scored, or are not about the same questions."""


class UnfinishedError(MixpoError):
    """A part of the evaluation failed; what does not need it was done all the same."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, at most 300 characters; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


_FULL = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space")
_REMEDIES = {
    **_FULL,
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give yourself the permission, or use another place"),
    errno.EROFS: "use another place",
    errno.EIO: "the disk or its connection may be broken",
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), "use a shorter path, without links that lead in a circle"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files with `ulimit -n`"),
}
"""By the number of the system's error."""


def unwritable(path: Path, error: OSError) -> RunError:
    """The error to raise when a file of a run cannot be written; the remedy for a full disk differs from that for a read-only one."""
    remedy = _FULL.get(error.errno or 0, "correct that, or use another directory")
    message = f"{path}: cannot be written ({error.strerror or error}); {remedy}, and run the same command again"
    return RunError(message, code="file-not-writable", path=path)


def refused(error: OSError, path: Path | None = None) -> RunError | None:
    """The error to raise for an OSError with a known remedy: permission denied, disk full, I/O error. None for all others.

    path: the file, where the OSError does not name it.
    """
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    where = path or error.filename or "a file"
    message = f"{where}: {os.strerror(error.errno or 0)}; {remedy}, and run the same command again"
    return RunError(message, code="system-refused", path=path or error.filename)
