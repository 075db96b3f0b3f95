"""Extents of variable-size Arrow fields, found in the offsets and views that the files themselves hold.

Nothing is copied at open: a look-up gathers the few offsets it needs from the mapped file. What they say is checked
against the buffer they point into before it is used, so that a corrupt file is an error and never a wild read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fastio.errors import ErrorKind, StoreError
from fastio.extents import BitTable, Extents, ExtentTable, Int32Array, Int64Array, concat_bits, concat_extents
from fastio.formats.cache import MappedFiles

__all__ = ["OffsetsExtents", "ViewExtents", "Where", "concat_tables"]

_VIEW_BYTES = 16
_INLINE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Where:
    """The runs of a table: which records each has, and in which file.

    Attributes:
        start_R1: first record of each run, and N at the end.
        file_R: the file's number in the owner's list of files, as extents name it.
        map_R: the file's number among the :class:`~fastio.formats.cache.MappedFiles`.
    """

    start_R1: Int64Array
    file_R: Int32Array
    map_R: Int64Array

    @property
    def records(self) -> int:
        return int(self.start_R1[-1])

    def run_of(self, ids_B: Int64Array) -> Int64Array:
        if len(self.start_R1) == 2:
            return np.zeros(len(ids_B), dtype=np.int64)
        return np.searchsorted(self.start_R1, ids_B, side="right") - 1

    def shifted(self, files: int) -> Where:
        return replace(self, file_R=self.file_R + np.int32(files))

    def corrupt(self, files: MappedFiles, record: int, run: int, what: str) -> StoreError:
        """The error for a record whose offsets or view make no sense, named by its place in its own shard."""
        number = int(self.map_R[run])
        first = int(self.start_R1[int(np.argmax(self.map_R == number))])
        text = f"{files.ref(number).path}: record {record - first} is corrupt: {what}"
        return StoreError(text, kind=ErrorKind.CORRUPT)


@dataclass(frozen=True, slots=True)
class OffsetsExtents:
    """Binary, strings and lists: record k of a run is ``offsets[k] .. offsets[k + 1]``, in elements of its values.

    With L levels (lists of lists of one known shape) the offsets of each level point into the next one's.

    Attributes:
        where: the runs.
        offsets_LR: where each level's offsets begin in the file.
        entries_LR: how many elements there are at the next level, which no offset may exceed.
        offset_bytes: 4 or 8.
        values_R: where the values begin in the file.
        item_bytes: bytes per element.
        payload_bytes: of all values (an upper bound: a file may hold values that no record points to).
        width: the length that every record must have, or None.
        files: where the offsets are read.
    """

    where: Where
    offsets_LR: Int64Array
    entries_LR: Int64Array
    offset_bytes: int
    values_R: Int64Array
    item_bytes: int
    payload_bytes: int
    width: int | None
    files: MappedFiles

    @property
    def records(self) -> int:
        return self.where.records

    def lookup(self, ids_B: Int64Array) -> Extents:
        run_B = self.where.run_of(ids_B)
        map_B = self.where.map_R[run_B]
        start_B = ids_B - self.where.start_R1[run_B]
        stop_B = None
        for offsets_R, entries_R in zip(self.offsets_LR, self.entries_LR, strict=True):
            start_B, stop_B = self._step(map_B, offsets_R[run_B], start_B, stop_B)
            self._check(ids_B, run_B, (start_B < 0) | (start_B > stop_B) | (stop_B > entries_R[run_B]), start_B, stop_B)
        assert stop_B is not None
        length_B = (stop_B - start_B) * self.item_bytes
        if self.width is not None:
            self._check(ids_B, run_B, length_B != self.width, start_B, stop_B)
        return Extents(self.where.file_R[run_B], self.values_R[run_B] + start_B * self.item_bytes, length_B)

    def shifted(self, files: int) -> OffsetsExtents:
        return replace(self, where=self.where.shifted(files))

    def _step(
        self, map_B: Int64Array, offsets_B: Int64Array, start_B: Int64Array, stop_B: Int64Array | None
    ) -> tuple[Int64Array, Int64Array]:
        """The offsets numbered ``start`` and ``stop`` (None: the next one) of the lists that begin at ``offsets``."""
        size, kind = self.offset_bytes, f"<i{self.offset_bytes}"
        at_B = offsets_B + start_B * size
        if stop_B is None:
            both_B2 = self.files.gather(map_B, at_B, 2 * size).view(kind).astype(np.int64)
            return both_B2[:, 0], both_B2[:, 1]
        starts = self.files.gather(map_B, at_B, size).view(kind)
        stops = self.files.gather(map_B, offsets_B + stop_B * size, size).view(kind)
        return starts[:, 0].astype(np.int64), stops[:, 0].astype(np.int64)

    def _check(
        self,
        ids_B: Int64Array,
        run_B: Int64Array,
        bad_B: npt.NDArray[np.bool_],
        start_B: Int64Array,
        stop_B: Int64Array,
    ) -> None:
        if not bad_B.any():
            return
        i = int(np.argmax(bad_B))
        run = int(run_B[i])
        what = f"its values run from element {start_B[i]} to {stop_B[i]} of {self.entries_LR[-1, run]}"
        if self.width is not None:
            what += f", which should be {self.width // self.item_bytes} elements"
        raise self.where.corrupt(self.files, int(ids_B[i]), run, what)


@dataclass(frozen=True, slots=True)
class ViewExtents:
    """Binary and string views: 16 bytes per record, which hold up to 12 bytes of value or point into a data buffer.

    Attributes:
        where: the runs.
        views_R: where the views begin in the file.
        first_R1: which of ``data_b2`` are a run's.
        data_b2: (offset in the file, bytes) of the data buffers of all runs.
        validity: per level, bits by file number of ``files``: the view of a null record may be anything.
        payload_bytes: an upper bound.
        files: where the views are read.
    """

    where: Where
    views_R: Int64Array
    first_R1: Int64Array
    data_b2: Int64Array
    validity: tuple[BitTable, ...]
    payload_bytes: int
    files: MappedFiles

    @property
    def records(self) -> int:
        return self.where.records

    @property
    def width(self) -> int | None:
        return None

    def lookup(self, ids_B: Int64Array) -> Extents:
        run_B = self.where.run_of(ids_B)
        view_B = self.views_R[run_B] + (ids_B - self.where.start_R1[run_B]) * _VIEW_BYTES
        view_B4 = self.files.gather(self.where.map_R[run_B], view_B, _VIEW_BYTES).view("<i4").astype(np.int64)
        length_B = np.where(self._valid(ids_B), view_B4[:, 0], 0)
        inline_B = (length_B >= 0) & (length_B <= _INLINE_BYTES)
        first_B = self.first_R1[run_B]
        number_B = first_B + view_B4[:, 2]
        known_B = (view_B4[:, 2] >= 0) & (number_B < self.first_R1[run_B + 1])
        data_B2 = self.data_b2[np.where(known_B & ~inline_B, number_B, 0)] if len(self.data_b2) else _nowhere(ids_B)
        fits_B = known_B & (view_B4[:, 3] >= 0) & (length_B >= 0) & (view_B4[:, 3] + length_B <= data_B2[:, 1])
        if not (inline_B | fits_B).all():
            i = int(np.argmax(~(inline_B | fits_B)))
            what = f"its view names {length_B[i]} bytes at {view_B4[i, 3]} of data buffer {view_B4[i, 2]}"
            raise self.where.corrupt(self.files, int(ids_B[i]), int(run_B[i]), what)
        offset_B = np.where(inline_B, view_B + 4, data_B2[:, 0] + view_B4[:, 3])
        return Extents(self.where.file_R[run_B], offset_B, length_B)

    def shifted(self, files: int) -> ViewExtents:
        return replace(self, where=self.where.shifted(files))

    def _valid(self, ids_B: Int64Array) -> npt.NDArray[np.bool_]:
        valid_B = np.ones(len(ids_B), dtype=np.bool_)
        for bits in self.validity:
            found = bits.lookup(ids_B)
            asked_B = np.flatnonzero(found.length_B)
            map_B = found.file_B[asked_B].astype(np.int64)
            byte_B = self.files.gather(map_B, found.offset_B[asked_B], 1)[:, 0]
            valid_B[asked_B] &= (byte_B >> bits.bit(ids_B)[asked_B]) & 1 == 1
        return valid_B


def concat_tables(tables: list[ExtentTable]) -> ExtentTable:
    """One table over the records of all, in order, merged where their kinds allow: one vectorised step per look-up."""
    offsets = [table for table in tables if isinstance(table, OffsetsExtents)]
    views = [table for table in tables if isinstance(table, ViewExtents)]
    bits = [table for table in tables if isinstance(table, BitTable)]
    if len(tables) > 1 and len(offsets) == len(tables) and len({_kind(table) for table in offsets}) == 1:
        return _concat_offsets(offsets)
    if len(tables) > 1 and len(views) == len(tables) and len({id(table.files) for table in views}) == 1:
        return _concat_views(views)
    return concat_bits(bits) if len(tables) > 1 and len(bits) == len(tables) else concat_extents(tables)


def _kind(table: OffsetsExtents) -> tuple[object, ...]:
    return id(table.files), len(table.offsets_LR), table.offset_bytes, table.item_bytes, table.width


def _concat_offsets(tables: list[OffsetsExtents]) -> OffsetsExtents:
    return replace(
        tables[0],
        where=_concat_where([table.where for table in tables]),
        offsets_LR=np.concatenate([table.offsets_LR for table in tables], axis=1),
        entries_LR=np.concatenate([table.entries_LR for table in tables], axis=1),
        values_R=np.concatenate([table.values_R for table in tables]),
        payload_bytes=sum(table.payload_bytes for table in tables),
    )


def _concat_views(tables: list[ViewExtents]) -> ViewExtents:
    levels = max(len(table.validity) for table in tables)
    padded = [[*table.validity, *[_all_set(table.records)] * (levels - len(table.validity))] for table in tables]
    before = np.concatenate([[0], np.cumsum([len(table.data_b2) for table in tables])])
    firsts = [table.first_R1[:-1] + start for table, start in zip(tables, before[:-1], strict=True)]
    return replace(
        tables[0],
        where=_concat_where([table.where for table in tables]),
        views_R=np.concatenate([table.views_R for table in tables]),
        first_R1=np.concatenate([*firsts, before[-1:]]).astype(np.int64),
        data_b2=np.concatenate([table.data_b2 for table in tables]),
        validity=tuple(concat_bits([levels_T[level] for levels_T in padded]) for level in range(levels)),
        payload_bytes=sum(table.payload_bytes for table in tables),
    )


def _concat_where(wheres: list[Where]) -> Where:
    start_T1 = np.concatenate([[0], np.cumsum([where.records for where in wheres])])
    starts = [where.start_R1[:-1] + first for where, first in zip(wheres, start_T1[:-1], strict=True)]
    return Where(
        np.concatenate([*starts, start_T1[-1:]]).astype(np.int64),
        np.concatenate([where.file_R for where in wheres]),
        np.concatenate([where.map_R for where in wheres]),
    )


def _all_set(records: int) -> BitTable:
    one = np.zeros(1, dtype=np.int64)
    return BitTable(np.array([0, records], dtype=np.int64), one.astype(np.int32), one - 1, one)


def _nowhere(ids_B: Int64Array) -> Int64Array:
    return np.zeros((len(ids_B), 2), dtype=np.int64)
