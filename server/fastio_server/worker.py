"""A worker process: opens the datasets, serves connections on sockets it was given, ends when told or orphaned.

The parent talks to a worker in the plainest way that survives a kill of either side:

- stdin: one JSON line with the task; then nothing, until its end, which means that the parent is gone. The kernel
  closes a dead parent's pipes however it died; PR_SET_PDEATHSIG would follow the *thread* that spawned us, and a
  parent that died before we asked for the signal would never send it.
- stdout: one JSON line: ``{"ready": true}``, or ``{"error": {"kind", "message"}}``. Anything printed goes to stderr.
- SIGTERM: drain; a second one: leave at once.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import msgspec
import uvloop

from fastio.errors import ErrorKind, FastioError, StoreError
from fastio.reader import Reader
from fastio_server.catalogue import Catalogue, open_catalogue
from fastio_server.config import ServerConfig
from fastio_server.credentials import Credentials
from fastio_server.logs import Log, configure_logs
from fastio_server.service import Limits, Service
from fastio_server.session import Terms
from fastio_server.streams import Streams

__all__ = ["ControlPipe", "WorkerTask", "main", "serve_sockets"]

# The loop shares the GIL with reader and sender threads. At CPython's default of 5 ms a PONG or a credit waits that
# long whenever a thread computes; batches are then sent in bursts with idle gaps between. 0.5 ms keeps the loop's
# reaction below the time of one batch; 0.05 ms changed neither throughput nor the time to the first batch measurably.
_SWITCH_INTERVAL_S = 0.0005


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What the supervisor tells a worker: everything, so that a worker reads no file that may have changed."""

    config: ServerConfig
    tokens: Mapping[str, str] = field(default_factory=dict)
    worker: int
    listener_fds: tuple[int, ...]


class ControlPipe:
    """The worker's end of the pipes to its parent. Made first: it takes stdin and stdout for itself."""

    def __init__(self) -> None:
        self._report_fd = os.dup(1)
        os.dup2(2, 1)

    def task(self) -> bytes:
        """The parent's line; empty if it died before it wrote one."""
        return sys.stdin.buffer.readline()

    def watch(self) -> None:
        """From now on the process ends when the parent does."""
        # A thread of its own, and no clean-up: this must work while the loop hangs, and nothing outlives the process.
        threading.Thread(target=_end_with_parent, name="fastio-lifeline", daemon=True).start()

    def ready(self) -> None:
        """Tells the parent that connections are accepted."""
        self._say({"ready": True})

    def failed(self, error: FastioError) -> None:
        """Tells the parent why not."""
        self._say({"error": {"kind": error.kind.value, "message": str(error)}})

    def _say(self, what: Mapping[str, object]) -> None:
        os.write(self._report_fd, msgspec.json.encode(what) + b"\n")


def serve_sockets(
    listeners: Sequence[socket.socket],
    config: ServerConfig,
    credentials: Credentials,
    ready: Callable[[], None],
    log: Log,
) -> None:
    """Serves ``config.data`` on ``listeners`` until SIGTERM, then drains. Calls ``ready`` once it accepts.

    Raises:
        FastioError: a dataset can't be opened.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    limits = Limits(max_connections=config.max_connections, sender_threads=config.sender_threads)
    with open_catalogue(config.data, config.index_directory) as catalogue:
        terms = _terms(config, catalogue, credentials)
        reader = Reader(threads=config.reader_threads) if config.reader_threads else Reader()
        streams = Streams(reader, catalogue.datasets, config.memory_bytes)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_until_told(lambda: Service(listeners, terms, streams, limits, log), ready, config.drain_s))
        finally:
            streams.shutdown()
            reader.close()


async def _until_told(make_service: Callable[[], Service], ready: Callable[[], None], drain_s: float) -> None:
    """Serves until SIGTERM, then drains; a second SIGTERM ends the process."""
    told = asyncio.Event()

    def tell() -> None:
        if told.is_set():
            os._exit(128 + signal.SIGTERM)
        told.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, tell)
    service = make_service()
    service.start()
    ready()
    await told.wait()
    await service.drain("the daemon is stopping", drain_s)


def _terms(config: ServerConfig, catalogue: Catalogue, credentials: Credentials) -> Terms:
    return Terms(
        server=f"fastio {version('fastio')}",
        catalogue=catalogue.infos(),
        credentials=credentials,
        keepalive_s=config.keepalive_s,
        max_window_bytes=config.max_window_bytes,
    )


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    """The entry point of ``python -m fastio_server.worker``; started by the supervisor only."""
    # Ctrl-C reaches the supervisor, which decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    pipe = ControlPipe()
    line = pipe.task()
    if not line:
        return
    task = msgspec.json.decode(line, type=WorkerTask)
    pipe.watch()
    log = configure_logs(task.config.log_level, task.config.log_format, worker=task.worker, pid=os.getpid())
    listeners = [socket.socket(fileno=fd) for fd in task.listener_fds]
    for listener in listeners:
        listener.setblocking(False)
    code = 0
    try:
        serve_sockets(listeners, task.config, Credentials(task.tokens), pipe.ready, log)
    except FastioError as error:
        pipe.failed(error)
        code = 1
    except Exception as error:
        log.exception("internal error")
        pipe.failed(StoreError(f"internal error: {error!r}", kind=ErrorKind.INTERNAL))
        code = 1
    # Not sys.exit: a thread that hangs in a disk read would hold the interpreter's exit for as long.
    os._exit(code)


if __name__ == "__main__":
    main()
