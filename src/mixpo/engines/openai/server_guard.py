"""Runs a program and ends it when whoever started this ends, however that ends. Run as a script; imports nothing of mixpo.

    python guard.py PARENT program argument ...

Its standard input is a pipe whose other end the parent, process PARENT, holds: that closes when the parent closes it or dies. Should
another process have inherited that end, the parent's number tells. Should this script be killed, Linux ends the program.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 10.0
PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> int:
    """The program's exit status."""
    guard, libc = os.getpid(), ctypes.CDLL(None) if sys.platform == "linux" else None

    def end_with_guard() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it died before it was told
            os._exit(1)

    # A session of its own, so that what the program starts (vLLM starts several processes) ends with it.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_guard)
    over = threading.Event()

    def wait_for_parent() -> None:
        # The bare file descriptor: a buffered one would still be locked by this thread when the interpreter ends.
        while os.getppid() == parent and not over.is_set():
            if select.select([0], [], [], 0.5)[0] and not os.read(0, 4096):
                break
        _end(child)

    threading.Thread(target=wait_for_parent, daemon=True).start()
    # The thread ends it: this one holds the lock that waiting with a limit needs.
    signal.signal(signal.SIGTERM, lambda *_: over.set())
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
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
