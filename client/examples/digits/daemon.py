"""The real daemon as a child process, and the hand that kills one of its workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


class Daemon:
    """``fastio serve`` of some stores on a free loopback port, logging JSON to a file. A context manager."""

    def __init__(self, stores: dict[str, Path], log: Path, *, workers: int) -> None:
        self._log = log
        self._address_file = log.with_name("address")
        data = [argument for name, path in stores.items() for argument in ("--data", f"{name}={path}")]
        options = ["--listen", "127.0.0.1:0", "--workers", str(workers), "--address-file", str(self._address_file)]
        command = [sys.executable, "-m", "fastio_server", *data, *options, "--log-format", "json"]
        with log.open("wb") as sink:
            self._process = subprocess.Popen(command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._address_file.exists():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the daemon did not start:\n{self._log.read_text()}")
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def address(self) -> str:
        """Where it listens, as ``fastio://host:port``."""
        return self._address_file.read_text().split()[0].rstrip("/")

    def url(self, name: str) -> str:
        """What a loader connects to."""
        return f"{self.address}/{name}"

    def workers(self) -> list[int]:
        """The process ids of the workers."""
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def kill_serving_worker(self) -> int:
        """Kills, with SIGKILL, the worker that opened the last stream; its process id."""
        opened = [event for event in self._events() if event.get("event") == "stream"]
        pid = int(opened[-1]["pid"])
        os.kill(pid, signal.SIGKILL)
        return pid

    def _events(self) -> list[dict[str, str]]:
        lines = self._log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
