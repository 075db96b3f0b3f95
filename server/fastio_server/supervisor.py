"""The daemon's parent process: binds, starts workers, restarts those that crash, and ends in good order.

It serves nobody itself, so that whatever goes wrong with data or peers can only hit a worker. Workers are started as
fresh programs (no fork of a process with threads and maps), get the listening sockets by inheritance and everything
else on stdin, and end when their stdin does: a supervisor that was killed leaves nothing running.

Signals: SIGTERM or SIGINT drains (stop accepting, let open streams finish); a second one leaves at once.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastio.errors import RequestError
from fastio_server.config import ServerConfig
from fastio_server.credentials import Credentials
from fastio_server.listeners import Listener, close_all
from fastio_server.logs import Log
from fastio_server.notify import notify
from fastio_server.process import WorkerProcess, how_it_ended
from fastio_server.worker import WorkerTask

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["Supervisor", "restart_delay_s"]

# The first restart follows at once, for the clients that wait; a worker that keeps crashing is tried ever more rarely,
# so that a machine with a broken disk is not kept busy with it.
_FIRST_RESTART_S = 0.1
_LONGEST_RESTART_S = 30.0
# A worker that lived this long before it crashed is counted as healthy again.
_HEALTHY_S = 10.0

# What draining workers get beyond the drain time before they are killed.
_KILL_AFTER_S = 5.0

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def restart_delay_s(crashes: int) -> float:
    """How long to wait before starting a worker again that crashed this many times in a row.

    >>> [restart_delay_s(crashes) for crashes in (1, 2, 3, 10, 1000)]
    [0.1, 0.2, 0.4, 30.0, 30.0]
    """
    return min(_LONGEST_RESTART_S, _FIRST_RESTART_S * 2.0 ** min(crashes - 1, 30))


class Supervisor:
    """Runs the workers of one daemon. ``run`` once, from the main thread."""

    def __init__(
        self,
        config: ServerConfig,
        credentials: Credentials,
        listeners: Sequence[Listener],
        log: Log,
        address_file: Path | None = None,
    ) -> None:
        self._config = config
        self._listeners = listeners
        self._log = log
        self._address_file = address_file
        fds = tuple(listener.sock.fileno() for listener in listeners)
        self._workers = [
            WorkerProcess(WorkerTask(config=config, tokens=credentials.tokens, worker=number, listener_fds=fds))
            for number in range(config.workers)
        ]
        self._selector = selectors.DefaultSelector()
        self._announced = False
        self._stopping_since_s: float | None = None

    def run(self) -> int:
        """Serves until told to stop; returns the exit status.

        Raises:
            FastioError: a worker could not start at all.
        """
        with _signals_as_bytes(self._selector):
            try:
                for worker in self._workers:
                    self._start(worker)
                while self._stopping_since_s is None or self._alive():
                    self._wait_and_react()
                return 0
            except _LeaveNow as now:
                return 128 + now.signal
            finally:
                self._kill_all()
                close_all(self._listeners)
                if self._address_file is not None:
                    self._address_file.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"Supervisor({self._alive()} of {len(self._workers)} workers running)"

    def _wait_and_react(self) -> None:
        for key, _ in self._selector.select(self._patience_s()):
            if isinstance(key.data, WorkerProcess):
                self._hear(key.data, key.fileobj)
            else:
                for number in os.read(key.fd, 4096):
                    if number in _STOP_SIGNALS:
                        self._stop(signal.Signals(number))
        for worker in self._workers:
            pid = worker.pid
            returncode = worker.reap()
            if returncode is not None:
                self._ended(worker, pid, returncode)
            if worker.start_at_s is not None and time.monotonic() >= worker.start_at_s:
                self._start(worker)
        if self._stopping_since_s is not None and time.monotonic() > self._kill_at_s():
            self._log.warning("killing workers that did not end", workers=self._alive())
            self._kill_all()

    def _patience_s(self) -> float | None:
        """How long until something is due without any event."""
        due = [worker.start_at_s for worker in self._workers if worker.start_at_s is not None]
        if self._stopping_since_s is not None:
            due.append(self._kill_at_s())
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _kill_at_s(self) -> float:
        assert self._stopping_since_s is not None
        return self._stopping_since_s + self._config.drain_s + _KILL_AFTER_S

    def _alive(self) -> int:
        return sum(worker.pid is not None for worker in self._workers)

    # --- workers

    def _start(self, worker: WorkerProcess) -> None:
        self._selector.register(worker.start(), selectors.EVENT_READ, worker)

    def _hear(self, worker: WorkerProcess, pipe: FileDescriptorLike) -> None:
        # The end of the pipe is not the news, the exit status is; but it would be readable for ever.
        if not worker.hear():
            self._selector.unregister(pipe)
        elif worker.ready:
            self._log.debug("worker ready", worker=worker.task.worker, worker_pid=worker.pid)
            if not self._announced and all(worker.ready for worker in self._workers):
                self._announce()

    def _ended(self, worker: WorkerProcess, pid: int | None, returncode: int) -> None:
        # reap() closed the pipe; what epoll forgot by itself, the selector must be told.
        for key in [key for key in self._selector.get_map().values() if key.data is worker]:
            self._selector.unregister(key.fileobj)
        if self._stopping_since_s is not None:
            return
        error = None if worker.ready else worker.error(returncode)
        if error is not None and not self._announced:
            raise error
        worker.crashes = 1 if worker.lived_s >= _HEALTHY_S else worker.crashes + 1
        delay_s = restart_delay_s(worker.crashes)
        worker.start_at_s = time.monotonic() + delay_s
        self._log.error(
            "worker ended",
            worker=worker.task.worker,
            worker_pid=pid,
            how=how_it_ended(returncode),
            lived_s=round(worker.lived_s, 1),
            restart_in_s=delay_s,
            **({} if error is None else {"error": str(error)}),
        )

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.signal(signal.SIGKILL)
        for worker in self._workers:
            worker.kill()

    # --- beginning and end

    def _announce(self) -> None:
        self._announced = True
        urls = [listener.url for listener in self._listeners]
        names = sorted(self._config.data)
        self._log.info(
            "ready",
            addresses=urls,
            datasets=names,
            workers=len(self._workers),
            connect=[f"{url}/{names[0]}" for url in urls],
        )
        if self._address_file is not None:
            _write_whole(self._address_file, "".join(f"{url}\n" for url in urls))
        notify(f"READY=1\nSTATUS=serving {', '.join(names)} on {', '.join(urls)}")

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping_since_s is not None:
            self._log.warning("leaving at once", signal=number.name)
            raise _LeaveNow(number)
        self._stopping_since_s = time.monotonic()
        self._log.info("stopping", signal=number.name, drain_s=self._config.drain_s)
        notify("STOPPING=1")
        # Ours too: a listening socket that anyone holds open takes connections which nobody would accept.
        close_all(self._listeners)
        for worker in self._workers:
            worker.start_at_s = None
            worker.signal(signal.SIGTERM)


class _LeaveNow(Exception):
    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number


@contextmanager
def _signals_as_bytes(selector: selectors.BaseSelector) -> Iterator[None]:
    """Inside, signals arrive as bytes on a pipe in ``selector``, so that no wait has a gap through which one slips."""
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.signal(number, _ignore) for number in (*_STOP_SIGNALS, signal.SIGCHLD)}
    wakeup_before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    selector.register(readable, selectors.EVENT_READ)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        selector.close()
        os.close(readable)
        os.close(writable)


def _ignore(_number: int, _frame: object) -> None:
    """Signals are read from the pipe; without a handler there would be none."""


def _write_whole(path: Path, text: str) -> None:
    """Readers find the old file, no file, or all of ``text``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise RequestError(f"--address-file {path}: can't be written: {error.strerror}") from None
