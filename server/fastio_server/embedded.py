"""A private daemon for one process: ``python -m fastio_server.embedded``, started by the client for a plain path.

The same session and transport as the standalone daemon, in one process without a supervisor. It reads one JSON line
from stdin, answers with one on stdout, and ends at once when stdin does, that is with its parent, however that died.
An abstract Unix socket has no file, so nothing is left behind.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Mapping

import msgspec

from fastio.errors import ErrorKind, FastioError, RequestError, StoreError
from fastio_server.config import LogLevel, ServerConfig
from fastio_server.credentials import Credentials
from fastio_server.listeners import bind_unix
from fastio_server.logs import configure_logs
from fastio_server.worker import ControlPipe, serve_sockets

__all__ = ["EmbeddedTask", "main"]


class EmbeddedTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the parent says.

    Attributes:
        data: dataset name -> path.
        token: what connections must bring; the socket can be reached by every user of the machine.
        address: a path (beginning with ``/``), or the name of an abstract socket, with or without its leading NUL.
        max_window_bytes: the largest window a stream may ask for.
        index_directory: where indexes are kept; None for the default places.
        log_level: what is worth a line on the parent's stderr.
    """

    data: Mapping[str, str]
    token: str
    address: str
    max_window_bytes: int = ServerConfig.max_window_bytes
    index_directory: str | None = None
    log_level: LogLevel = "error"


def main() -> None:
    """Serves one parent until it is gone."""
    # Ctrl-C in a terminal reaches every process of the training job; the parent decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    pipe = ControlPipe()
    line = pipe.task()
    if not line:
        return
    pipe.watch()
    code = 0
    try:
        _serve(_task(line), pipe)
    except FastioError as error:
        pipe.failed(error)
        code = 1
    except Exception as error:
        pipe.failed(StoreError(f"internal error of the embedded daemon: {error!r}", kind=ErrorKind.INTERNAL))
        code = 1
    os._exit(code)


def _task(line: bytes) -> EmbeddedTask:
    try:
        return msgspec.json.decode(line, type=EmbeddedTask)
    except msgspec.DecodeError as error:
        raise RequestError(f"the embedded daemon was started with a bad task: {error}") from None


def _serve(task: EmbeddedTask, pipe: ControlPipe) -> None:
    address = task.address if task.address.startswith("/") else "\0" + task.address.removeprefix("\0")
    config = ServerConfig(
        data=task.data,
        unix=address,
        drain_s=0.0,
        index_directory=task.index_directory,
        log_level=task.log_level,
        max_window_bytes=task.max_window_bytes,
    )
    log = configure_logs(config.log_level, "console", pid=os.getpid())
    listener = bind_unix(address)
    try:
        serve_sockets([listener.sock], config, Credentials({"parent": task.token}), pipe.ready, log)
    finally:
        listener.close()


if __name__ == "__main__":
    main()
