"""The server of `mixpo view`: this machine only, until Ctrl+C."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from mixpo.errors import MissingExtra, RunError
from mixpo.progress import Progress
from mixpo.stages.job import Context

HOST = "127.0.0.1"


def serve(context: Context, port: int, progress: Progress, ready: Callable[[str], None]) -> None:
    """Index the run, then answer on the loopback address; port 0 takes a free one. `ready` is given the address.

    Raises MissingExtra without the viewer's libraries, RunError when the port is taken.
    """
    from mixpo.viewer.app import create_app
    from mixpo.viewer.views import Views

    try:
        import uvicorn
    except ImportError:
        raise MissingExtra("mixpo view", "viewer") from None
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            what = "in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
            raise RunError(f"port {port} is {what}; give another one with --port, or 0 for any that is free") from None
        listener.listen()  # who asks as soon as the address is told waits, and is not refused
        views = Views(context, progress)
        try:
            ready(f"http://{HOST}:{listener.getsockname()[1]}/")
            server = uvicorn.Server(uvicorn.Config(create_app(views), log_level="warning", access_log=False, ws="none", lifespan="off"))
            server.run(sockets=[listener])
        finally:
            views.index.close()
