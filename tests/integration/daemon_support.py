"""A real daemon for tests: started as users start it, watched through its log, ended by its own id."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from tests.integration.server_support import TIMEOUT_S, wait_until

__all__ = ["Daemon", "fastio_serve", "write_arrow"]

RECORDS = 2000


def write_arrow(path: Path, records: int = RECORDS, width: int = 4) -> Path:
    """An Arrow file of one fixed field ``x`` (``width`` int64, all the record's number)."""
    values = pa.array(np.repeat(np.arange(records), width))
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(values, width)})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=512)
    return path


def fastio_serve(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a daemon that is expected to end by itself."""
    command = [sys.executable, "-m", "fastio_server", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class Daemon:
    """``fastio serve`` in its own process; a context manager that leaves no process behind."""

    def __init__(self, directory: Path, *arguments: object, data: Path | None = None, env: Any = None) -> None:
        self.directory = directory
        self.address_file = directory / "addresses"
        self.log_file = directory / "log"
        self._seen: list[psutil.Process] = []
        data = write_arrow(directory / "data.arrow") if data is None else data
        command = [sys.executable, "-m", "fastio_server", "--data", f"train={data}", "--address-file"]
        options = [self.address_file, "--log-format", "json", "--log-level", "debug", *arguments]
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen([*command, *map(str, options)], stderr=log, env=env)

    def ready(self) -> Daemon:
        """Waits until connections are accepted."""
        wait_until(lambda: self.address_file.exists() or self.process.poll() is not None, "the daemon is ready", 60)
        assert self.process.poll() is None, self.log_file.read_text()
        return self

    @property
    def urls(self) -> list[str]:
        return self.address_file.read_text().split()

    def workers(self) -> list[psutil.Process]:
        """The worker processes that are alive."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children()
        self._seen += [worker for worker in found if worker not in self._seen]
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log events of this name so far."""
        lines = self.log_file.read_text().splitlines()
        parsed = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in parsed if event["event"] == name]

    def wait_for(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """The events of this name, once there are so many."""
        wait_until(lambda: len(self.events(name)) >= count, f"{count} events {name!r} in the log")
        return self.events(name)

    def exit_code(self) -> int:
        """Waits for the end."""
        return self.process.wait(TIMEOUT_S)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.workers()
            self.process.kill()
            self.process.wait()
        _, alive = psutil.wait_procs(self._seen, timeout=5)
        for worker in alive:
            worker.kill()
        if kind is not None:
            print(self.log_file.read_text())  # noqa: T201 - shown with the failure
        assert not alive, f"workers outlived their supervisor: {alive}"
