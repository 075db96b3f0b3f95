"""The real daemon as a child process, for as long as a benchmark needs it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from fastio.errors import UnavailableError

__all__ = ["Daemon"]

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0
_CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Daemon:
    """``fastio serve`` of one dataset on a free loopback port. A context manager.

    Args:
        name, path: the dataset.
        workers: worker processes.
    """

    def __init__(self, name: str, path: Path, *, workers: int = 1) -> None:
        self._name = name
        self._folder = tempfile.TemporaryDirectory(prefix="fastio-bench-")
        self._address_file = Path(self._folder.name) / "address"
        self._log = Path(self._folder.name) / "log"
        command = [sys.executable, "-m", "fastio_server", "--data", f"{name}={path}", "--listen", "127.0.0.1:0"]
        command += ["--workers", str(workers), "--address-file", str(self._address_file), "--log-format", "json"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not self._address_file.exists():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                log = self._log.read_text(errors="replace")
                self.close()
                raise UnavailableError(f"the daemon did not start: {log.strip().splitlines()[-1:]}")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """What a loader connects to."""
        address = self._address_file.read_text().split()[0].rstrip("/")
        return f"{address}/{self._name}"

    def cpu_s(self) -> float:
        """CPU seconds of the daemon and its workers so far."""
        return sum(_cpu_s(pid) for pid in _tree(self._process.pid))

    def close(self) -> None:
        """Ends the daemon."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(found for child in children for found in _tree(int(child)))]


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS_PER_S
