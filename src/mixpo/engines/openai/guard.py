"""Runs a program and ends it when whoever started this ends, however that ends. Run as a script; imports nothing of mixpo.

    python guard.py program argument ...

Its standard input is a pipe whose other end the parent holds: that closes when the parent closes it or dies.
"""

import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 10.0


def main(command: list[str]) -> int:
    """The program's exit status."""
    # A session of its own, so that what the program starts (vLLM starts several processes) ends with it.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def wait_for_parent() -> None:
        # The bare file descriptor: a buffered one would still be locked by this thread when the interpreter ends.
        while os.read(0, 4096):
            pass
        _end(child)

    threading.Thread(target=wait_for_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: _end(child))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C goes to the parent, which closes the pipe when it is ready
    return child.wait()


def _end(child: "subprocess.Popen[bytes]") -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, kind)
            child.wait(GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
