"""Digests of large files are remembered, and never when they may be wrong."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from mixpo.vlm import hashes
from mixpo.vlm.hashes import sha256

OLD = 1_700_000_000


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "LARGE", 4)
    return tmp_path / "cache/mixpo/digests.json"


def write(path: Path, content: bytes, changed: int = OLD) -> Path:
    path.write_bytes(content)
    os.utime(path, (changed, changed))
    return path


def expected(*contents: bytes) -> list[str]:
    return [hashlib.sha256(content).hexdigest() for content in contents]


def remembered(kept: Path) -> set[str]:
    """The paths in the file, which also holds its own checksum."""
    return set(json.loads(kept.read_text())) - {"checksum"}


def test_a_large_file_is_read_once(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / "a", b"first"), write(tmp_path / "b", b"second"), write(tmp_path / "c", b"s")]
    assert sha256(files) == expected(b"first", b"second", b"s")
    assert remembered(kept) == {str(files[0]), str(files[1])}, "a small file is not worth it"
    monkeypatch.setattr(hashlib, "file_digest", lambda handle, name: hashlib.sha256(b"read again"))
    assert sha256(files) == [*expected(b"first", b"second"), *expected(b"read again")]


def test_a_changed_file_is_read_again(tmp_path: Path, kept: Path) -> None:
    path = write(tmp_path / "a", b"first")
    sha256([path])
    assert sha256([write(path, b"other", OLD + 1)]) == expected(b"other"), "the same size at another time"
    assert sha256([write(path, b"longer", OLD + 1)]) == expected(b"longer"), "another size at the same time"
    assert json.loads(kept.read_text())[str(path)][2] == expected(b"longer")[0]


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, kept: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"first")
    assert sha256([path]) == expected(b"first")
    assert not kept.exists()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = write(tmp_path / "a", b"first"), hashlib.file_digest

    def slow(handle: object, name: str) -> object:
        found = real(handle, name)  # type: ignore[arg-type]
        write(path, b"other", OLD + 1)
        return found

    monkeypatch.setattr(hashlib, "file_digest", slow)
    sha256([path])
    monkeypatch.undo()
    assert not kept.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": [1]}', "\0"])
def test_what_was_remembered_may_be_broken(tmp_path: Path, kept: Path, content: str) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_text(content)
    path = write(tmp_path / "a", b"first")
    assert sha256([path]) == expected(b"first")
    assert remembered(kept) == {str(path)}


def test_where_nothing_can_be_kept_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(hashes, "LARGE", 4)
    path = write(tmp_path / "a", b"first")
    assert sha256([path]) == sha256([path]) == expected(b"first")


def test_a_file_that_cannot_be_written_costs_time_only(tmp_path: Path, kept: Path) -> None:
    kept.mkdir(parents=True)  # nothing can take the place of a folder
    path = write(tmp_path / "a", b"first")
    assert sha256([path]) == expected(b"first")


def test_only_so_many_are_remembered(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "MOST", 2)
    files = [write(tmp_path / name, name.encode() * 9) for name in "abc"]
    for path in files:
        sha256([path])
    assert remembered(kept) == {str(path) for path in files[1:]}
