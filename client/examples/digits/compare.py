"""How fast the same LMDB is read, batch by batch in random order: fastio against what one writes by hand."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import lmdb
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from daemon import Daemon
from fastio_client.torch import RemoteDataset

ROUNDS = 3
SECONDS = 1.0


class LmdbDataset(Dataset[torch.Tensor]):
    """The hand-written way: one ``get`` per record, opened in each worker."""

    def __init__(self, path: Path) -> None:
        self._path = next(path.rglob("data.mdb")).parent
        self._transaction: lmdb.Transaction | None = None
        with lmdb.open(str(self._path), readonly=True, lock=False) as environment:
            self._records = environment.stat()["entries"]

    def __len__(self) -> int:
        return int(self._records)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._transaction is None:
            self._transaction = lmdb.open(str(self._path), readonly=True, lock=False, readahead=False).begin()
        value = self._transaction.get(b"%012d" % index)
        assert isinstance(value, bytes)
        return torch.frombuffer(bytearray(value), dtype=torch.uint8)


def print_comparison(console: Console, daemon: Daemon, stores: dict[str, Path], batch_sizes: dict[str, int]) -> None:
    """Measures each store in turns (so that a drift of the machine favours nobody) and prints a table."""
    table = Table(title="exact shuffle, warm, as tensors; the limit is a plain send and receive of such batches")
    for heading in ("store", "reader", "records/s", "MB/s", "of the limit"):
        table.add_column(heading, justify="left" if heading in ("store", "reader") else "right")
    for name, batch_size in batch_sizes.items():
        dataset = RemoteDataset(daemon.url(name), batch_size=batch_size, fields=["value"])
        by_hand = LmdbDataset(stores[name])
        record_bytes = len(LmdbDataset(stores[name])[0])  # an instance of its own: an open one must not be forked
        readers = {
            "fastio": partial(_fastio, dataset),
            "DataLoader, 0 workers": partial(_by_hand, by_hand, batch_size, 0),
            "DataLoader, 2 workers": partial(_by_hand, by_hand, batch_size, 2),
        }
        best = dict.fromkeys(readers, 0.0)
        limit = 0.0
        for _ in range(ROUNDS):
            limit = max(limit, _loopback_rate(batch_size * record_bytes) / record_bytes)
            for reader, batches in readers.items():
                best[reader] = max(best[reader], _rate(batches()))
        for reader, rate in best.items():
            share = rate / limit
            table.add_row(name, reader, f"{rate:,.0f}", f"{rate * record_bytes / 1e6:,.1f}", f"{share:.1%}")
    console.print(table)


def _fastio(dataset: RemoteDataset) -> Iterator[int]:
    while True:
        for batch in dataset:
            yield len(batch["_id"])


def _by_hand(dataset: LmdbDataset, batch_size: int, workers: int) -> Iterator[int]:
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    while True:
        for batch in loader:
            yield len(batch)


def _rate(batches: Iterator[int]) -> float:
    """Records per second; starting up is not counted."""
    next(batches)
    begin_s = now_s = time.perf_counter()
    records = 0
    while now_s - begin_s < SECONDS:
        records += next(batches)
        now_s = time.perf_counter()
    return records / (now_s - begin_s)


_SENDER = """
import socket, sys
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
message = bytes(int(sys.argv[2]))
try:
    while True:
        peer.sendall(message)
except OSError:
    pass
"""


def _loopback_rate(message_bytes: int) -> float:
    """Bytes per second that a process receives from another over loopback TCP in messages of this size."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", _SENDER, str(listener.getsockname()[1]), str(message_bytes)]
        sender = subprocess.Popen(command)
        peer, _ = listener.accept()
    slot = memoryview(bytearray(message_bytes))
    with peer:
        peer.recv_into(slot, message_bytes, socket.MSG_WAITALL)
        begin_s = now_s = time.perf_counter()
        moved = 0
        while now_s - begin_s < SECONDS / 2:
            moved += peer.recv_into(slot, message_bytes, socket.MSG_WAITALL)
            now_s = time.perf_counter()
    sender.wait(10)
    return moved / (now_s - begin_s)
