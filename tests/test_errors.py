"""Errors as values: code and place as fields, through a pickle too; and the table of their wordings."""

from __future__ import annotations

import errno
import os
import pickle
import re
from pathlib import Path

import pytest
from failures import MESSAGES, fails, parts_of, shows, table

import mixpo
from mixpo.errors import EngineError, ImageError, MissingExtra, MixpoError, RecipeError, RunError, SourceError, refused, unwritable

SOURCE = Path(mixpo.__file__).parent


@pytest.mark.parametrize(
    "error",
    [
        MixpoError("plain", code="no-place"),
        ImageError("a.png: broken", code="image-broken", path="a.png", line=3, key="image"),
        MissingExtra("LoRA", "lora"),
        refused(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error: MixpoError) -> None:
    """Ray and process pools send them as pickles."""
    error.add_note("while testing")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is type(error)
    assert (str(again), again.exit_code, vars(again)) == (str(error), error.exit_code, vars(error))
    assert again.__notes__ == ["while testing"]


def test_a_missing_extra_names_the_extra() -> None:
    with fails("missing-extra", MissingExtra, key="lora", exit_code=2) as failure:
        raise MissingExtra("train.lora", "lora")
    assert failure.parts == ("train.lora", "lora", "lora")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with fails("file-not-writable", RunError, path=tmp_path) as failure:
        raise unwritable(tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    assert failure.parts == (str(tmp_path), "No space left on device", "free some space")


def test_fails_checks_what_it_is_given() -> None:
    def error() -> MixpoError:
        return SourceError("--push requires --format datasets", code="push-without-datasets", path="a.jsonl", line=2)

    for code, kind, fields in (
        ("missing-extra", SourceError, {}),
        ("push-without-datasets", MixpoError, {}),
        ("push-without-datasets", SourceError, {"line": 3}),
        ("push-without-datasets", SourceError, {"path": None}),
    ):
        with pytest.raises(AssertionError), fails(code, kind, **fields):
            raise error()
    with fails("push-without-datasets", SourceError, path=Path("a.jsonl"), line=2, key=None):
        raise error()
    with pytest.raises(pytest.fail.Exception), fails("push-without-datasets", SourceError):
        pass
    with pytest.raises(EngineError), fails("push-without-datasets", RecipeError):
        raise EngineError("other", code="server-down")


def test_wordings() -> None:
    assert parts_of("system-refused", "/x: Input/output error; the disk, and run the same command again")[0] == "/x"
    with pytest.raises(AssertionError, match="wording"):
        parts_of("push-without-datasets", "--push requires")
    with pytest.raises(AssertionError, match=r'add to tests/cases/messages.toml.*\nno-such-code = "a \\"b\\""'):
        parts_of("no-such-code", 'a "b"')
    assert shows("missing-extra", "warning\nmixpo: A needs the lora extra: pip install 'mixpo[lora]'\n")[1:] == ("lora", "lora")
    with pytest.raises(AssertionError, match="no message"):
        shows("missing-extra", "nothing")


def test_the_table_holds_codes_of_the_package_in_order() -> None:
    used = set(re.findall(r'\bcode="([^"]*)"', "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))))
    assert set(table()) <= used
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) for code in used)
    keys = re.findall(r"^([\w-]+) =", MESSAGES.read_text(encoding="utf-8"), re.MULTILINE)
    assert keys == sorted(keys)
