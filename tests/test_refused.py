"""What the machine refuses is one sentence with the remedy, and no traceback. Root may read everything, so errors are put in by hand."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from failures import shows

from mixpo.cli import main
from mixpo.errors import refused

Capture = pytest.CaptureFixture[str]
HIDDEN = "round-1/pair"


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing below a folder of this name may be looked at."""
    real = {name: getattr(os, name) for name in ("stat", "open")}

    def guarded(name: str) -> object:
        def call(path: object, *more: object, **named: object) -> object:
            if f"{HIDDEN}/" in str(path):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real[name](path, *more, **named)

        return call

    for name in real:
        monkeypatch.setattr(os, name, guarded(name))


@pytest.mark.parametrize("command", [["status"], ["export", "--to", "pairs"], ["audit"]])
def test_a_folder_of_a_run_that_may_not_be_read(own_run: Path, hidden: None, command: list[str], capsys: Capture) -> None:
    assert main([command[0], str(own_run / "run"), *command[1:]]) == 1
    path, reason, remedy = shows("system-refused", capsys.readouterr().err)
    assert f"{HIDDEN}/" in path
    assert (reason, remedy) == ("Permission denied", "give yourself the permission, or use another place")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "give yourself the permission, or use another place"),
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "use another place"),
        (errno.EIO, "the disk or its connection may be broken"),
        (errno.EMFILE, "allow more open files with `ulimit -n`"),
    ],
)
def test_the_remedy(number: int, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def fails(folder: Path) -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr("mixpo.commands.doctor.examine", fails)
    assert main(["doctor"]) == 1
    assert shows("system-refused", capsys.readouterr().err) == ("/some/file", os.strerror(number), remedy)


def test_what_may_be_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None

    def fails(folder: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    monkeypatch.setattr("mixpo.commands.doctor.examine", fails)
    with pytest.raises(FileNotFoundError):
        main(["doctor"])
