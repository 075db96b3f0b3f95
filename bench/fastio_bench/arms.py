"""What is compared: fastio behind its daemon, and what people would write by hand. Each returns a :class:`Pass`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fastio.errors import StoreError
from fastio.formats.base import Column
from fastio_bench.daemon import Daemon
from fastio_bench.data import BenchData
from fastio_client import Loader
from fastio_client.state import LoaderState

__all__ = ["Pass", "lmdb_get", "through_daemon"]

_CHECKED_RECORDS = 4
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass over some records, as the consumer saw it.

    Attributes:
        records, payload_bytes: delivered.
        seconds: from opening the stream to the last batch.
        first_batch_s: from opening the stream to the first batch.
        waits_s: how long each later batch was waited for.
        client_cpu_s, daemon_cpu_s: CPU seconds of the consuming process and of the daemon's processes.
    """

    records: int
    payload_bytes: int
    seconds: float
    first_batch_s: float = 0.0
    waits_s: tuple[float, ...] = ()
    client_cpu_s: float = 0.0
    daemon_cpu_s: float = 0.0

    @property
    def mb_per_s(self) -> float:
        return self.payload_bytes / self.seconds / 1e6

    @property
    def client_cpu_s_per_gib(self) -> float:
        return self.client_cpu_s / (self.payload_bytes / _GIB)

    @property
    def daemon_cpu_s_per_gib(self) -> float:
        return self.daemon_cpu_s / (self.payload_bytes / _GIB)

    def wait_s(self, percent: int) -> float:
        """A percentile of the waits."""
        if len(self.waits_s) < 2:
            return self.waits_s[0] if self.waits_s else 0.0
        return statistics.quantiles(self.waits_s, n=100, method="inclusive")[percent - 1]


def through_daemon(daemon: Daemon, data: BenchData, *, start: int, batches: int, batch_size: int) -> Pass:
    """Takes ``batches`` batches from position ``start`` on through a fresh connection, and checks a few records."""
    field = data.column.field
    state = LoaderState(
        fingerprint=data.dataset.fingerprint, order=data.order, epoch=0, records_done=start, step=start // batch_size
    )
    with Loader(
        daemon.url, batch_size=batch_size, fields=[field.name], order=data.order.kind, seed=data.order.seed
    ) as loader:
        loader.load_state_dict(state.to_dict())
        len(loader)  # connects, which is not what is measured
        waits_s: list[float] = []
        records = payload_bytes = 0
        sample = None
        daemon_cpu_s, cpu_s, begin_s = daemon.cpu_s(), time.process_time(), time.perf_counter()
        asked_s = begin_s
        for batch in islice(loader, batches):
            waits_s.append(time.perf_counter() - asked_s)
            values = batch[field.name]
            payload_bytes += values.nbytes if isinstance(values, np.ndarray) else values.values.nbytes
            records += len(batch.ids)
            sample = sample or batch
            asked_s = time.perf_counter()
        result = Pass(
            records=records,
            payload_bytes=payload_bytes,
            seconds=asked_s - begin_s,
            first_batch_s=waits_s[0],
            waits_s=tuple(waits_s[1:]),
            client_cpu_s=time.process_time() - cpu_s,
            daemon_cpu_s=daemon.cpu_s() - daemon_cpu_s,
        )
        if sample is not None:
            values = sample[field.name]
            checked = [np.ascontiguousarray(values[row]).tobytes() for row in range(_CHECKED_RECORDS)]
            data.check(sample.ids[:_CHECKED_RECORDS], checked)
    return result


def lmdb_get(data: BenchData, *, start: int, records: int, readahead: bool) -> Pass | None:
    """py-lmdb's ``get`` of the keys at these positions, one after another, in a process of its own.

    None where the data is not one LMDB environment whose records have a key.
    """
    dataset = data.dataset
    key = dataset.columns.get("key")
    if dataset.format != "lmdb" or len(dataset.shards) != 1 or not isinstance(key, Column):
        return None
    path = dataset.shards[0].path
    keys = data.values(key, data.ids(start, start + records))
    command = [sys.executable, "-m", "fastio_bench.lmdb_get", str(path), str(int(readahead))]
    run = subprocess.run(
        command, input="\n".join(key.hex() for key in keys), capture_output=True, text=True, timeout=600, check=False
    )
    if run.returncode:
        raise StoreError(f"py-lmdb could not read {path}: {run.stderr.strip().splitlines()[-1:]}")
    return Pass(**json.loads(run.stdout))
