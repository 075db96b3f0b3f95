"""From a schema plan and a file's index to columns: which table serves each field, and whether the file allows it.

Every buffer that a table will use is checked here, for all record batches at once, to be as long as its records need.
What lies *in* the buffers (offsets, views) is checked when it is looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastio.errors import ErrorKind, StoreError
from fastio.extents import BitTable, ExtentTable, FixedExtents, Int64Array
from fastio.formats.arrow.index import ArrowIndex
from fastio.formats.arrow.schema import Leaf, SchemaPlan
from fastio.formats.arrow.tables import OffsetsExtents, ViewExtents, Where
from fastio.formats.arrow.types import Footprint
from fastio.formats.base import Column
from fastio.formats.cache import MappedFiles

__all__ = ["BatchBuffers", "extent_column", "validity_tables"]

_VIEW_BYTES = 16


@dataclass(frozen=True, slots=True)
class BatchBuffers:
    """The nodes and buffers of an index as a schema plan names them. Runs are the record batches that hold records.

    Attributes:
        label: the file, for messages.
        where: the runs; all tables share it.
        batch_R: which record batch each run is.
        rows_R: records per run.
    """

    label: str
    index: ArrowIndex
    where: Where
    batch_R: Int64Array
    rows_R: Int64Array
    views_before_RV1: Int64Array

    @classmethod
    def of(cls, label: str, index: ArrowIndex, plan: SchemaPlan, number: int) -> BatchBuffers:
        """Checks that the batches have as many nodes and buffers as the schema needs.

        Args:
            number: the file's number among the mapped files.

        Raises:
            StoreError: they don't.
        """
        wanted = plan.total.buffers + index.variadic_RV.sum(axis=1)
        if len(index.rows_R) and (
            index.nodes_RK2.shape[1] != plan.total.nodes
            or index.variadic_RV.shape[1] != plan.total.views
            or (np.diff(index.buffer_start_R1) != wanted).any()
        ):
            raise StoreError(
                f"{label}: Arrow metadata is corrupt (record batches with {index.nodes_RK2.shape[1]} nodes where the "
                f"schema has {plan.total.nodes}, or with other buffers than it has)",
                kind=ErrorKind.CORRUPT,
            )
        batch_R = np.flatnonzero(index.rows_R)
        rows_R = index.rows_R[batch_R]
        start_R1 = np.concatenate([[0], np.cumsum(rows_R)]).astype(np.int64)
        zeros = np.zeros(len(batch_R), dtype=np.int64)
        where = Where(start_R1, zeros.astype(np.int32), zeros + number)
        views_before_RV1 = np.zeros((len(batch_R), plan.total.views + 1), dtype=np.int64)
        if len(batch_R):
            np.cumsum(index.variadic_RV[batch_R], axis=1, out=views_before_RV1[:, 1:])
        return cls(label, index, where, batch_R, rows_R, views_before_RV1)

    def numbers(self, place: Footprint, buffer: int = 0) -> Int64Array:
        """Where in ``index.buffers_b2`` the given buffer of the column at ``place`` is, per run."""
        start_R = self.index.buffer_start_R1[self.batch_R]
        return start_R + place.buffers + buffer + self.views_before_RV1[:, place.views]

    def buffer(self, place: Footprint, buffer: int) -> tuple[Int64Array, Int64Array]:
        """(offset in the file, bytes) of the given buffer of the column at ``place``, per run."""
        found_R2 = self.index.buffers_b2[self.numbers(place, buffer)]
        return found_R2[:, 0], found_R2[:, 1]

    def node(self, place: Footprint) -> tuple[Int64Array, Int64Array]:
        """(length, null count) of the column at ``place``, per run."""
        found_R2 = self.index.nodes_RK2[self.batch_R, place.nodes] if len(self.batch_R) else np.empty((0, 2), np.int64)
        return found_R2[:, 0], found_R2[:, 1]

    def require(self, leaf: Leaf, enough_R: npt.NDArray[np.bool_], what: str) -> None:
        """Refuses the file unless every run has enough of something."""
        if not enough_R.all():
            batch = int(self.batch_R[int(np.argmin(enough_R))])
            text = f"{self.label}: record batch {batch} is corrupt: field {leaf.name!r} has too short {what}"
            raise StoreError(text, kind=ErrorKind.CORRUPT)


def validity_tables(buffers: BatchBuffers, leaf: Leaf) -> tuple[BitTable, ...]:
    """One bit table for every level (the structs around the field, the field) at which some record is null."""
    tables = []
    for place, storage_has_bitmap in _levels(leaf):
        length_R, nulls_R = buffers.node(place)
        buffers.require(leaf, length_R >= buffers.rows_R, "a column for its records")
        if not storage_has_bitmap or not nulls_R.any():
            continue
        offset_R, size_R = buffers.buffer(place, 0)
        buffers.require(leaf, (nulls_R == 0) | (size_R >= (buffers.rows_R + 7) // 8), "a validity bitmap")
        where = buffers.where
        base_R = np.where(nulls_R > 0, offset_R, -1)
        tables.append(BitTable(where.start_R1, where.file_R, base_R, np.zeros(len(base_R), dtype=np.int64)))
    return tuple(tables)


def extent_column(buffers: BatchBuffers, leaf: Leaf, files: MappedFiles) -> Column | str:
    """The column of a field that its type allows to be served by extents, or the reason why this file does not."""
    validity = validity_tables(buffers, leaf)
    inner = _inner_nulls(buffers, leaf)
    if inner:
        return "has nulls inside its lists"
    if leaf.delivery.width_must_hold and validity:
        return "has nulls among lists of one shape"
    table: ExtentTable
    if leaf.delivery.route == "bits":
        table = _bits(buffers, leaf)
    elif leaf.delivery.route == "fixed":
        table = _fixed(buffers, leaf)
    elif leaf.delivery.route == "offsets":
        table = _offsets(buffers, leaf, files)
    else:
        table = _views(buffers, leaf, files, validity)
    return Column(field=leaf.spec(nullable=bool(validity)), table=table, validity=validity)


def _levels(leaf: Leaf) -> list[tuple[Footprint, bool]]:
    import pyarrow as pa

    own = leaf.storage
    bitmap = not (pa.types.is_null(own) or pa.types.is_union(own) or pa.types.is_run_end_encoded(own))
    return [*((place, True) for place in leaf.chain[:-1]), (leaf.place, bitmap)]


def _inner_nulls(buffers: BatchBuffers, leaf: Leaf) -> bool:
    """Whether any item of the field's lists is null."""
    storage, place = leaf.storage, leaf.place
    while (below := _item(storage, place)) is not None:
        storage, place = below
        if buffers.node(place)[1].any():
            return True
    return False


def _item(storage: Any, place: Footprint) -> tuple[Any, Footprint] | None:
    """The item type of a list, and where its column begins."""
    import pyarrow as pa

    types = pa.types
    if types.is_fixed_size_list(storage):
        return storage.value_type, place + Footprint(1, 1, 0)
    if types.is_list(storage) or types.is_large_list(storage):
        return storage.value_type, place + Footprint(1, 2, 0)
    return None


def _bits(buffers: BatchBuffers, leaf: Leaf) -> BitTable:
    base_R, size_R = buffers.buffer(leaf.place, 1)
    buffers.require(leaf, size_R >= (buffers.rows_R + 7) // 8, "a bitmap of values")
    where = buffers.where
    return BitTable(where.start_R1, where.file_R, base_R, np.zeros(len(base_R), dtype=np.int64))


def _fixed(buffers: BatchBuffers, leaf: Leaf) -> FixedExtents:
    storage, place = leaf.storage, leaf.place
    while (below := _item(storage, place)) is not None:
        storage, place = below
    width = np.dtype(leaf.delivery.dtype).itemsize * prod(leaf.delivery.shape)
    base_R, size_R = buffers.buffer(place, 1)
    buffers.require(leaf, size_R // width >= buffers.rows_R, "values")
    return FixedExtents(buffers.where.start_R1, buffers.where.file_R, base_R, width, width)


def _offsets(buffers: BatchBuffers, leaf: Leaf, files: MappedFiles) -> OffsetsExtents:
    how, place = leaf.delivery, leaf.place
    offset_bytes = _offset_bytes(leaf.storage)
    item_bytes = np.dtype(how.dtype).itemsize
    offsets, entries, rows_R = [], [], buffers.rows_R
    for level in range(how.levels):
        offset_R, size_R = buffers.buffer(place, 1)
        # A list without any element below it may have no offsets at all; then nothing ever asks for them.
        enough_R = (rows_R == 0) | (size_R // offset_bytes > rows_R)
        buffers.require(leaf, enough_R, "offsets")
        offsets.append(offset_R)
        if level + 1 < how.levels:
            place += Footprint(1, 2, 0)
            rows_R = buffers.node(place)[0]
            entries.append(rows_R)
    values_R, values_bytes_R, count_R = _values(buffers, leaf, place, item_bytes)
    return OffsetsExtents(
        where=buffers.where,
        offsets_LR=np.stack(offsets),
        entries_LR=np.stack([*entries, count_R]),
        offset_bytes=offset_bytes,
        values_R=values_R,
        item_bytes=item_bytes,
        payload_bytes=int(values_bytes_R.sum()),
        width=item_bytes * prod(how.shape) if how.kind == "fixed" else None,
        files=files,
    )


def _values(
    buffers: BatchBuffers, leaf: Leaf, place: Footprint, item_bytes: int
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Per run: where the values begin, how many bytes they have, and how many elements."""
    if _item(leaf.storage, place) is None:
        values_R, bytes_R = buffers.buffer(place, 2)
        return values_R, bytes_R, bytes_R // item_bytes
    below = place + Footprint(1, 2, 0)
    values_R, bytes_R = buffers.buffer(below, 1)
    count_R = buffers.node(below)[0]
    buffers.require(leaf, bytes_R // item_bytes >= count_R, "items")
    return values_R, count_R * item_bytes, count_R


def _views(buffers: BatchBuffers, leaf: Leaf, files: MappedFiles, validity: tuple[BitTable, ...]) -> ViewExtents:
    views_R, size_R = buffers.buffer(leaf.place, 1)
    buffers.require(leaf, size_R // _VIEW_BYTES >= buffers.rows_R, "views")
    count_R = np.diff(buffers.views_before_RV1, axis=1)[:, leaf.place.views]
    first_R1 = np.concatenate([[0], np.cumsum(count_R)]).astype(np.int64)
    data = np.repeat(buffers.numbers(leaf.place, 2) - first_R1[:-1], count_R) + np.arange(first_R1[-1])
    data_b2 = buffers.index.buffers_b2[data]
    number = np.int32(buffers.where.map_R[0]) if len(buffers.where.map_R) else np.int32(0)
    return ViewExtents(
        where=buffers.where,
        views_R=views_R,
        first_R1=first_R1,
        data_b2=data_b2,
        validity=tuple(bits.shifted(int(number)) for bits in validity),
        payload_bytes=int(data_b2[:, 1].sum() + _VIEW_BYTES * buffers.rows_R.sum()),
        files=files,
    )


def _offset_bytes(storage: Any) -> int:
    import pyarrow as pa

    types = pa.types
    return 8 if types.is_large_list(storage) or types.is_large_binary(storage) or types.is_large_string(storage) else 4
