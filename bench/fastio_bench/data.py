"""The dataset a benchmark reads: made for the purpose or given, and put into the state an arm needs.

Cold means verified to be absent from the page cache, warm verified to be in it; an arm that can't have its state does
not run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastio import Writer, open_dataset, pagecache
from fastio.dataset import Dataset
from fastio.errors import RequestError, StoreError
from fastio.extents import Int64Array
from fastio.formats.base import Column
from fastio.order import record_ids
from fastio.spec import OrderSpec
from fastio_bench.calibrate import Extent

__all__ = ["BenchData", "make_lmdb", "size_name"]

# What the open indexes and read transactions of two processes keep mapped, and so resident, of a file that was dropped.
_COLD_FRACTION = 0.01
_WARM_FRACTION = 0.999
_MEAN_BYTES = 110_000
_READ_BYTES = 8 << 20


def make_lmdb(path: Path, size_bytes: int, *, seed: int = 0) -> None:
    """Writes an LMDB environment of records of 100 to 120 KB of noise, about ``size_bytes`` in all."""
    import pyarrow as pa

    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, 16 << 20, dtype=np.uint8).tobytes()
    with Writer(path, pa.schema([("value", pa.binary())]), format="lmdb", shard_bytes=2 * size_bytes) as writer:
        for _ in range(max(1, size_bytes // _MEAN_BYTES)):
            length = int(random.integers(_MEAN_BYTES - 10_000, _MEAN_BYTES + 10_000))
            start = int(random.integers(0, len(noise) - length))
            writer.append({"value": noise[start : start + length]})


def size_name(mean_bytes: float) -> str:
    """The size of a record as it stands in the names of rows.

    >>> size_name(110_250), size_name(4096), size_name(300), size_name(2.9e6)
    ('110k', '4k', '300', '2900k')
    """
    if mean_bytes < 1000:
        return str(round(mean_bytes))
    if mean_bytes < 100_000 and round(mean_bytes) % 1024 == 0:
        return f"{round(mean_bytes) // 1024}k"
    digits = -3 if mean_bytes < 100_000 else -4
    return f"{round(round(mean_bytes), digits) // 1000}k"


class BenchData:
    """An opened dataset, and the largest of its fields that extents reach, in one exact order.

    Args:
        path: of the dataset.
        seed: of the order that all arms share; each arm takes positions of its own.
    """

    def __init__(self, path: Path, *, seed: int) -> None:
        self.path = path
        self.order = OrderSpec(seed=seed)
        self.dataset: Dataset = open_dataset(path)
        columns = [column for column in self.dataset.columns.values() if isinstance(column, Column)]
        if not columns:
            raise RequestError(f"{path} has no field that is read by extents; there is nothing to compare it with")
        self.column = max(columns, key=lambda column: column.table.payload_bytes)
        self.records = self.dataset.records
        self.mean_bytes = self.column.table.payload_bytes / self.records
        self._ids = record_ids(self.order, self.records, 0)
        first_S = np.unique(self.dataset.shard_start_S1[:-1])
        used = np.unique(self.extents_of(first_S[first_S < self.records])[0]).tolist()
        self._data_files = [self.dataset.files[number] for number in used]
        self._fds: dict[int, int] = {}

    def ids(self, start: int, stop: int) -> Int64Array:
        """The record ids at these positions of the order."""
        return self._ids(start, stop)

    def extents_of(self, ids_B: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Files, offsets and lengths of the largest field of these records."""
        found = self.column.table.lookup(ids_B)
        return found.file_B.astype(np.int64), found.offset_B, found.length_B

    def extents(self, start: int, stop: int) -> list[Extent]:
        """The extents at these positions, with descriptors that expect random reads."""
        file_B, offset_B, length_B = self.extents_of(self.ids(start, stop))
        fds = {number: self._fd(number) for number in np.unique(file_B).tolist()}
        triples = zip(file_B.tolist(), offset_B.tolist(), length_B.tolist(), strict=True)
        return [(fds[number], offset, length) for number, offset, length in triples]

    def largest_file(self) -> tuple[Path, int]:
        """The largest data file, and its size."""
        ref = max(self._data_files, key=lambda ref: ref.size_bytes)
        return ref.path, ref.size_bytes

    def make_cold(self) -> None:
        """Drops the data from the page cache, one file at a time, and verifies that it is gone.

        Raises:
            StoreError: pages stayed: somebody maps them, or they are dirty.
        """
        for ref in self._data_files:
            pagecache.drop(ref.path)
        fraction = self.resident_fraction()
        if fraction > _COLD_FRACTION:
            raise StoreError(
                f"{fraction:.1%} of {self.path} stayed in the page cache after it was dropped: another process maps "
                "or writes it; end that process and start again"
            )

    def make_warm(self) -> None:
        """Reads the data into the page cache and verifies that it is there.

        Raises:
            StoreError: it does not fit.
        """
        buffer = memoryview(bytearray(_READ_BYTES))
        for ref in self._data_files:
            with open(ref.path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        fraction = self.resident_fraction()
        if fraction < _WARM_FRACTION:
            raise StoreError(
                f"only {fraction:.1%} of {self.path} is in the page cache after reading it: it does not fit; "
                "use less data (--make SIZE)"
            )

    def resident_fraction(self) -> float:
        """The share of the data that is in the page cache.

        Raises:
            StoreError: the kernel does not say.
        """
        resident, total = 0, 0
        for ref in self._data_files:
            fd = os.open(ref.path, os.O_RDONLY)
            try:
                found = pagecache.resident_bytes(fd)
            finally:
                os.close(fd)
            if found is None:
                raise StoreError(f"the kernel does not say what is resident of {ref.path}; nothing can be verified")
            resident += found
            total += ref.size_bytes
        return resident / max(1, total)

    def values(self, column: Column, ids_B: Int64Array) -> list[bytes]:
        """The bytes of some records, read one by one: the plain way, to compare with."""
        found = column.table.lookup(ids_B)
        rows = zip(found.file_B.tolist(), found.offset_B.tolist(), found.length_B.tolist(), strict=True)
        return [os.pread(self._fd(number), length, offset) for number, offset, length in rows]

    def check(self, ids_B: Int64Array, values: Sequence[bytes]) -> None:
        """Compares delivered values with what the files hold.

        Raises:
            StoreError: they differ.
        """
        for record, wanted, value in zip(ids_B.tolist(), self.values(self.column, ids_B), values, strict=True):
            if wanted != value:
                raise StoreError(f"record {record} was delivered with other bytes than {self.path} holds")

    def close(self) -> None:
        """Closes the dataset."""
        for fd in self._fds.values():
            os.close(fd)
        self.dataset.close()

    def _fd(self, number: int) -> int:
        if number not in self._fds:
            fd = os.open(self.dataset.files[number].path, os.O_RDONLY)
            pagecache.expect_random(fd)
            self._fds[number] = fd
        return self._fds[number]
