"""Where every record's bytes lie: (file, offset, length), as arrays.

The question this module answers: given record ids, which bytes of which files hold one field of theirs? It reads no
file and knows no format; formats publish tables, plans consume extents. Tables answer for thousands of ids at a time;
there is no object per record.

Dimensions: N records in the table, B ids asked for, R runs (contiguous pieces of one file with one rule), F files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "BitTable",
    "ConcatExtents",
    "ExtentTable",
    "Extents",
    "FixedExtents",
    "IndexedExtents",
    "Int32Array",
    "Int64Array",
    "UInt8Array",
    "concat_bits",
    "concat_extents",
]

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Extents:
    """The bytes of B records: record i is ``[offset_B[i], offset_B[i] + length_B[i])`` of file ``file_B[i]``."""

    file_B: Int32Array
    offset_B: Int64Array
    length_B: Int64Array


class ExtentTable(Protocol):
    """Where one field of N records lies.

    Attributes:
        records: N.
        payload_bytes: the sum of all lengths (an upper bound where only that is known without reading).
        width: the length of every record in bytes where it is the same for all, else None.
    """

    @property
    def records(self) -> int: ...
    @property
    def payload_bytes(self) -> int: ...
    @property
    def width(self) -> int | None: ...

    def lookup(self, ids_B: Int64Array) -> Extents:
        """The extents of the records ``ids_B``, each in [0, N), in the order asked for. Safe from any thread."""
        ...

    def shifted(self, files: int) -> ExtentTable:
        """The same table with every file number raised by ``files``, for use in a longer list of files."""
        ...


@dataclass(frozen=True, slots=True)
class FixedExtents:
    """Fixed-width records: within a run, record k lies at ``base + k * stride``. Memory is O(runs), whatever N is.

    Attributes:
        start_R1: first record of each run, and N at the end; int64, ascending.
        file_R: the file of each run.
        base_R: offset of each run's first record.
        width: bytes per record.
        stride: bytes from one record to the next.
    """

    start_R1: Int64Array
    file_R: Int32Array
    base_R: Int64Array
    width: int
    stride: int

    @property
    def records(self) -> int:
        return int(self.start_R1[-1])

    @property
    def payload_bytes(self) -> int:
        return self.records * self.width

    def lookup(self, ids_B: Int64Array) -> Extents:
        run_B = _run_of(self.start_R1, ids_B)
        offset_B = self.base_R[run_B] + (ids_B - self.start_R1[run_B]) * self.stride
        return Extents(self.file_R[run_B], offset_B, np.full(len(ids_B), self.width, dtype=np.int64))

    def shifted(self, files: int) -> FixedExtents:
        return FixedExtents(self.start_R1, self.file_R + np.int32(files), self.base_R, self.width, self.stride)


@dataclass(frozen=True, slots=True)
class IndexedExtents:
    """Records of any length in one file, from an index of N offsets and N lengths (usually a mapped sidecar)."""

    offset_N: npt.NDArray[np.integer]
    length_N: npt.NDArray[np.integer]
    payload_bytes: int
    file: int = 0

    @property
    def records(self) -> int:
        return len(self.offset_N)

    @property
    def width(self) -> int | None:
        return None

    def lookup(self, ids_B: Int64Array) -> Extents:
        file_B = np.full(len(ids_B), self.file, dtype=np.int32)
        offset_B = self.offset_N[ids_B].astype(np.int64, copy=False)
        return Extents(file_B, offset_B, self.length_N[ids_B].astype(np.int64, copy=False))

    def shifted(self, files: int) -> IndexedExtents:
        return IndexedExtents(self.offset_N, self.length_N, self.payload_bytes, self.file + files)


@dataclass(frozen=True, slots=True)
class BitTable:
    """One bit per record, as Arrow packs booleans and validity: bit k of a run is bit ``(first + k) % 8`` (least
    significant first) of byte ``base + (first + k) // 8``.

    A run with ``base`` -1 has no bitmap: every bit of it reads as set (a column without nulls).
    """

    start_R1: Int64Array
    file_R: Int32Array
    base_R: Int64Array
    first_R: Int64Array

    @property
    def records(self) -> int:
        return int(self.start_R1[-1])

    @property
    def payload_bytes(self) -> int:
        return (self.records + 7) // 8

    @property
    def width(self) -> int | None:
        return 1

    def lookup(self, ids_B: Int64Array) -> Extents:
        """The byte that holds each record's bit; length 0 where the run has no bitmap."""
        run_B = _run_of(self.start_R1, ids_B)
        base_B = self.base_R[run_B]
        bit_B = self.first_R[run_B] + ids_B - self.start_R1[run_B]
        present_B = base_B >= 0
        offset_B = np.where(present_B, base_B + (bit_B >> 3), 0)
        return Extents(self.file_R[run_B], offset_B, present_B.astype(np.int64))

    def bit(self, ids_B: Int64Array) -> UInt8Array:
        """Which bit (0 .. 7) of the byte from :meth:`lookup` is each record's."""
        run_B = _run_of(self.start_R1, ids_B)
        return ((self.first_R[run_B] + ids_B - self.start_R1[run_B]) & 7).astype(np.uint8)

    def shifted(self, files: int) -> BitTable:
        return BitTable(self.start_R1, self.file_R + np.int32(files), self.base_R, self.first_R)


@dataclass(frozen=True, slots=True)
class ConcatExtents:
    """Tables one after another: record ids of table t begin at ``start_T1[t]``."""

    tables: tuple[ExtentTable, ...]
    start_T1: Int64Array

    @property
    def records(self) -> int:
        return int(self.start_T1[-1])

    @property
    def payload_bytes(self) -> int:
        return sum(table.payload_bytes for table in self.tables)

    @property
    def width(self) -> int | None:
        widths = {table.width for table in self.tables}
        return widths.pop() if len(widths) == 1 else None

    def lookup(self, ids_B: Int64Array) -> Extents:
        table_B = _run_of(self.start_T1, ids_B)
        by_table_B = np.argsort(table_B, kind="stable")
        found_T, first_T = np.unique(table_B[by_table_B], return_index=True)
        out = Extents(
            np.empty(len(ids_B), dtype=np.int32),
            np.empty(len(ids_B), dtype=np.int64),
            np.empty(len(ids_B), dtype=np.int64),
        )
        # strict=False: splitting nothing yields one empty piece, which belongs to no table.
        for table, picked in zip(found_T.tolist(), np.split(by_table_B, first_T[1:]), strict=False):
            part = self.tables[table].lookup(ids_B[picked] - self.start_T1[table])
            out.file_B[picked], out.offset_B[picked], out.length_B[picked] = part.file_B, part.offset_B, part.length_B
        return out

    def shifted(self, files: int) -> ConcatExtents:
        return ConcatExtents(tuple(table.shifted(files) for table in self.tables), self.start_T1)


def concat_extents(tables: list[ExtentTable]) -> ExtentTable:
    """One table over the records of all, in order. Fixed-width tables merge into one, so that look-ups stay a single
    vectorised step however many shards there are.
    """
    if len(tables) == 1:
        return tables[0]
    start_T1 = np.concatenate([[0], np.cumsum([table.records for table in tables])]).astype(np.int64)
    fixed = [table for table in tables if isinstance(table, FixedExtents)]
    if len(fixed) == len(tables) and len({(table.width, table.stride) for table in fixed}) == 1:
        return FixedExtents(
            _concat_starts([table.start_R1 for table in fixed], start_T1),
            np.concatenate([table.file_R for table in fixed]),
            np.concatenate([table.base_R for table in fixed]),
            fixed[0].width,
            fixed[0].stride,
        )
    return ConcatExtents(tuple(tables), start_T1)


def concat_bits(tables: list[BitTable]) -> BitTable:
    """One bit table over the records of all, in order."""
    start_T1 = np.concatenate([[0], np.cumsum([table.records for table in tables])]).astype(np.int64)
    return BitTable(
        _concat_starts([table.start_R1 for table in tables], start_T1),
        np.concatenate([table.file_R for table in tables]),
        np.concatenate([table.base_R for table in tables]),
        np.concatenate([table.first_R for table in tables]),
    )


def _concat_starts(start_R1s: list[Int64Array], start_T1: Int64Array) -> Int64Array:
    shifted = [starts[:-1] + first for starts, first in zip(start_R1s, start_T1[:-1], strict=True)]
    return np.concatenate([*shifted, start_T1[-1:]])


def _run_of(start_R1: Int64Array, ids_B: Int64Array) -> Int64Array:
    """The run that holds each id. Empty runs are never chosen: the last run that starts at or before the id is."""
    if len(start_R1) == 2:
        return np.zeros(len(ids_B), dtype=np.int64)
    return np.searchsorted(start_R1, ids_B, side="right") - 1
