"""Nothing grows with the number of records: a thousand million of them open, shuffle and deliver like a million."""

from __future__ import annotations

import io
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastio import open_dataset
from fastio.formats.base import Column
from fastio.order import Permutation
from fastio_client import Loader
from tests.integration.daemon_support import Daemon

BATCH = 1024
MARKED = 500
# What is read ahead is memory too, and a million of these records would not fill a large window.
WINDOW_BYTES = 4 << 20
# One bit for each of 10**9 records would be 119 MiB. Runs of the same daemon differ by up to 20 MB, because the first
# allocations of each thread take an arena of their own.
SLACK_BYTES = 64 << 20


class _WithHoles(io.RawIOBase):
    """A file that leaves out what is large: it reads back as zeros, and takes no room on the disk."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self._end = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._end

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        if length < 1 << 20:
            os.pwrite(self._fd, data, self._end)
        self._end += length
        return length

    def close(self) -> None:
        if not self.closed:
            os.ftruncate(self._fd, self._end)
            os.close(self._fd)
        super().close()


def write_sparse(path: Path, records: int) -> None:
    """An IPC file of one int32 column of zeros."""
    zeros = mmap.mmap(-1, 4 * records)  # never touched, so never there
    column = pa.Array.from_buffers(pa.int32(), records, [None, pa.py_buffer(zeros)])
    batch = pa.record_batch([column], names=["x"])
    with _WithHoles(path) as sink, pa.ipc.new_file(pa.PythonFile(sink, mode="w"), batch.schema) as writer:
        writer.write_batch(batch)


def mark(path: Path, ids_B: np.ndarray[Any, Any]) -> None:
    """Writes ``id % 997 + 1`` where these records lie."""
    with open_dataset(path) as dataset:
        column = dataset.columns["x"]
        assert isinstance(column, Column)
        offsets = column.table.lookup(ids_B).offset_B.tolist()
    fd = os.open(path, os.O_WRONLY)
    try:
        for record, offset in zip(ids_B.tolist(), offsets, strict=True):
            os.pwrite(fd, np.int32(record % 997 + 1).tobytes(), offset)
    finally:
        os.close(fd)


def first_batch_and_memory(folder: Path, records: int, start: int = 0) -> int:
    """Takes a batch at ``start`` of an epoch through a daemon, and checks it; the memory of the worker then.

    Pages of the data file that the worker has mapped are not counted: they are the page cache's, and as many as the
    records it has read, not as there are.
    """
    folder.mkdir()
    write_sparse(folder / "numbers.arrow", records)
    ids_B = Permutation(records, seed=5, epoch=0).ids(np.arange(start, start + MARKED, dtype=np.int64))
    mark(folder / "numbers.arrow", ids_B)
    with Daemon(folder, "--listen", "127.0.0.1:0", data=folder / "numbers.arrow").ready() as daemon:
        with Loader(f"{daemon.urls[0]}/train", batch_size=BATCH, seed=5, window_bytes=WINDOW_BYTES) as loader:
            state = loader.state_dict()
            loader.load_state_dict({**state, "records_done": start, "step": start // BATCH})
            batch = next(iter(loader))
            assert batch.ids[:MARKED].tolist() == ids_B.tolist()
            assert np.asarray(batch["x"])[:MARKED].tolist() == (ids_B % 997 + 1).tolist()
            assert len(loader) == (records - start) // BATCH + bool((records - start) % BATCH)
        (worker,) = daemon.workers()
        status = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
        sizes = {line.split()[0]: int(line.split()[1]) << 10 for line in status if line.startswith("Rss")}
        return sizes["RssAnon:"] + sizes["RssShmem:"]


@pytest.mark.timeout(120)
def test_memory_and_the_first_batch_do_not_depend_on_the_number_of_records(tmp_path: Path) -> None:
    million = first_batch_and_memory(tmp_path / "million", 10**6)
    milliard = first_batch_and_memory(tmp_path / "milliard", 10**9)
    assert milliard < million + SLACK_BYTES


@pytest.mark.timeout(120)
def test_the_end_of_a_huge_epoch_is_as_near_as_its_beginning(tmp_path: Path) -> None:
    first_batch_and_memory(tmp_path / "milliard", 10**9, start=9 * 10**8)
