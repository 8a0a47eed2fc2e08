"""Starts a server for a run: a list of arguments, no shell, on a free local port, its output in a file."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mixpo.engines.openai import server_guard
from mixpo.errors import EngineError
from mixpo.masking import masked
from mixpo.recipe import ServerTable

HOST = "127.0.0.1"
LOG_LINES = 5
"""Lines of a server's output that an error shows."""
LONGEST_LINE = 1 << 16
"""Bytes of a longer line are copied in parts."""
COPY_SECONDS = 5.0
"""Time for the rest of the output of a server that has ended; a process that it left behind may hold the pipe open."""

TRANSFORMERS = [sys.executable, "-m", "transformers.cli.transformers", "serve", "{model}", "--host", "{host}", "--port", "{port}"]
"""What `serve = "transformers"` starts."""


class ServerProcess:
    """A server of this run at `url`. It ends with `close` or with this process, however that ends.

    log: the file of its output, in which `key` and the secrets in the environment are masked.
    """

    def __init__(self, command: list[str], url: str, log: Path, key: str = "") -> None:
        self.url, self.log = url, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, server_guard.__file__, str(os.getpid()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._copier = threading.Thread(target=self._copy_output, args=(key,), name="mixpo-server-log", daemon=True)
        self._copier.start()

    def _copy_output(self, key: str) -> None:
        """Append the output to the log, line by line. Reads on when the disk is full: the server must not block."""
        assert self._process.stdout is not None
        with suppress(ValueError, OSError), self.log.open("ab", buffering=0) as log:
            while line := self._process.stdout.readline(LONGEST_LINE):
                with suppress(OSError):
                    log.write(masked(line.decode(errors="replace"), key).encode())

    def check(self) -> None:
        """Raise EngineError when the server has ended."""
        status = self._process.poll()
        if status is not None:
            self._copier.join(COPY_SECONDS)
            raise EngineError(f"the server ended with status {status}; {self.output()}", code="server-ended", path=self.log)

    def close(self) -> None:
        """End the server and wait until it has ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._copier.join(COPY_SECONDS)

    def output(self) -> str:
        """The end of the server's output."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            lines = []
        return f"{self.log} says: " + (" | ".join(line.strip() for line in lines if line.strip())[-200 * LOG_LINES :] or "nothing")


def start(table: ServerTable, model: Path, device: str, log: Path, notify: Callable[[str], None], key: str = "") -> ServerProcess:
    """Start what `table` names with the model in `model`. key: masked in the log. Raises EngineError when the program cannot be found."""
    port = free_port()
    arguments = [*TRANSFORMERS, *(["--device", device] if device != "auto" else [])] if table.serve else table.start
    values = {"{model}": str(model), "{host}": HOST, "{port}": str(port)}
    command = [_filled(argument, values) for argument in arguments]
    if problem := missing_program(command[0]):
        raise EngineError(problem, code="program-missing", key="sample.server.start")
    notify(f"starting a server: {shlex.join(command)} (its output: {log})")
    return ServerProcess(command, f"http://{HOST}:{port}/v1", log, key)


def missing_program(program: str) -> str:
    """A sentence when `program` cannot be run on this machine; "" when it can."""
    if shutil.which(program) is not None:
        return ""
    return f"sample.server.start: no program {program!r} can be run here; each item is one argument, no shell is involved"


def _filled(argument: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        argument = argument.replace(name, value)
    return argument


def free_port() -> int:
    """A local port that is free now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
