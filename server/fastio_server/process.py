"""One worker process as its parent sees it: started, heard, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import IO

import msgspec

from fastio.errors import ErrorKind, FastioError, StoreError, error_from_wire
from fastio_server.worker import WorkerTask

__all__ = ["WorkerProcess", "how_it_ended"]


class WorkerProcess:
    """A place for a worker: the process that fills it now, if any, and how often it crashed in a row.

    Attributes:
        task: what every process in this place is told.
        ready: the process said that it accepts connections.
        crashes: in a row; the owner counts.
        start_at_s: when the owner means to start the next one (monotonic clock), or None.
    """

    def __init__(self, task: WorkerTask) -> None:
        self.task = task
        self.ready = False
        self.crashes = 0
        self.start_at_s: float | None = None
        self._started_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""

    def start(self) -> IO[bytes]:
        """Starts a process; returns the pipe on which it reports, for waiting and then :meth:`hear`."""
        self.ready, self._said, self.start_at_s = False, b"", None
        self._started_s = time.monotonic()
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "fastio_server.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=self.task.listener_fds,
            process_group=0,  # Ctrl-C in a terminal is for the supervisor alone
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it died already; its end is noticed like any other
            process.stdin.write(msgspec.json.encode(self.task) + b"\n")
            process.stdin.flush()
        return process.stdout

    @property
    def pid(self) -> int | None:
        """Of the process; None where there is none."""
        return None if self._process is None else self._process.pid

    @property
    def lived_s(self) -> float:
        """Seconds since the last start."""
        return time.monotonic() - self._started_s

    def hear(self) -> bool:
        """Reads what the process reports, after its pipe became readable; False once it will say nothing more."""
        assert self._process is not None
        assert self._process.stdout is not None
        chunk = os.read(self._process.stdout.fileno(), 65536)
        self._said += chunk
        self.ready = b'"ready"' in self._said
        return bool(chunk)

    def reap(self) -> int | None:
        """The exit status if the process has ended, and its place is free again; else None."""
        process = self._process
        if process is None or process.poll() is None:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        self._said += process.stdout.read()
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()
        self._process = None
        return process.returncode

    def error(self, returncode: int) -> FastioError:
        """Why the process ended before it was ready: what it reported, else how it ended."""
        for line in self._said.splitlines():
            with suppress(msgspec.DecodeError, KeyError):
                found = msgspec.json.decode(line)["error"]
                return error_from_wire(found["kind"], found["message"])
        what = f"worker {self.task.worker} ended before it was ready: {how_it_ended(returncode)}"
        return StoreError(what, kind=ErrorKind.INTERNAL)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it lives."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the process, if any, and waits until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self.reap()

    def __repr__(self) -> str:
        return f"WorkerProcess({self.task.worker}, pid {self.pid}, {'ready' if self.ready else 'not ready'})"


def how_it_ended(returncode: int) -> str:
    """An exit status in words.

    >>> how_it_ended(-9), how_it_ended(1)
    ('killed by SIGKILL', 'exit status 1')
    """
    if returncode >= 0:
        return f"exit status {returncode}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-returncode).name}"
    return f"killed by signal {-returncode}"
