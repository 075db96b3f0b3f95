"""The entries of one snapshot in key order, as arrays that stay in memory while they are small."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fastio.extents import Int64Array, UInt8Array
from fastio.formats.lmdb.ragged import gather, starts
from fastio.formats.lmdb.tree import EntryChunk
from fastio.formats.spool import Spool, naming_place

__all__ = ["Entries", "id_chunks"]

# How many entries are looked at in one step: their arrays take some 20 MB.
_CHUNK_RECORDS = 1 << 18


def id_chunks(start: int, stop: int) -> Iterator[Int64Array]:
    """The numbers of a range, some hundred thousand at a time."""
    for first in range(start, stop, _CHUNK_RECORDS):
        yield np.arange(first, min(stop, first + _CHUNK_RECORDS), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Entries:
    """N entries. Key i is ``key_bytes[key_start_N[i] :][: key_length_N[i]]`` and also lies at ``key_offset_N[i]`` of
    the data file; its value lies at ``value_offset_N[i]``, ``value_length_N[i]`` bytes long.
    """

    key_bytes: UInt8Array
    key_start_N: Int64Array
    key_length_N: npt.NDArray[np.uint16]
    key_offset_N: Int64Array
    value_offset_N: Int64Array
    value_length_N: npt.NDArray[np.uint32]

    @classmethod
    def collect(cls, chunks: Iterable[EntryChunk], directory: Path | None) -> Self:
        """Puts chunks together, in unnamed temporary files in ``directory`` where they are large.

        Raises:
            StoreError: DISK_FULL if there is no room for these; whatever the chunks raise.
        """
        spools = [(Spool(directory), dtype) for dtype in ("u1", "<i8", "<u2", "<i8", "<i8", "<u4")]
        key_end = 0
        try:
            for chunk in chunks:
                for (spool, dtype), array in zip(spools, _columns(chunk, key_end), strict=True):
                    with naming_place(directory):
                        spool.append(array.astype(dtype, copy=False))
                key_end += len(chunk.key_bytes)
            return cls(*(spool.array().astype(dtype, copy=False) for spool, dtype in spools))
        finally:
            for spool, _ in spools:
                spool.close()

    def __len__(self) -> int:
        return len(self.key_start_N)

    def key(self, entry: int) -> bytes:
        start = int(self.key_start_N[entry])
        return self.key_bytes[start : start + int(self.key_length_N[entry])].tobytes()

    def find(self, key: bytes) -> int | None:
        """The entry of this key by binary search; keys must be in byte order."""
        place = bisect.bisect_left(range(len(self)), key, key=self.key)
        return place if place < len(self) and self.key(place) == key else None

    def keys(self, id_n: Int64Array, skip: int = 0) -> UInt8Array:
        """The keys of these entries one after another, each without its first ``skip`` bytes."""
        return gather(self.key_bytes, self.key_start_N[id_n] + skip, self.key_length_N[id_n].astype(np.int64) - skip)


def _columns(chunk: EntryChunk, key_end: int) -> tuple[npt.NDArray[Any], ...]:
    """A chunk's arrays in the order of the attributes of :class:`Entries`."""
    start_n = starts(chunk.key_length_n) + key_end
    keys = (chunk.key_bytes, start_n, chunk.key_length_n, chunk.key_offset_n)
    return (*keys, chunk.value_offset_n, chunk.value_length_n)
