"""Fields that extents can't reach, taken through pyarrow: dictionaries, run ends, deep nesting, null items.

A record batch is prepared once (built over the map, validated, decoded where taking needs it) and kept in the bounded
cache of the dataset's files; taking from it costs what is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastio.errors import ErrorKind, StoreError
from fastio.extents import Int64Array
from fastio.formats.arrow.columns import BatchBuffers, validity_tables
from fastio.formats.arrow.deliver import deliver, deliver_json, integers_for_times
from fastio.formats.arrow.rebuild import ArrayBuilder
from fastio.formats.arrow.schema import Leaf
from fastio.formats.base import DecodedColumn, TakenValues
from fastio.formats.cache import MappedFiles
from fastio.formats.taken import grouped
from fastio.spec import FieldSpec

__all__ = ["decoded_column"]


def decoded_column(
    buffers: BatchBuffers, leaf: Leaf, files: MappedFiles, builder: ArrayBuilder, reason: str
) -> DecodedColumn:
    """The column of a field by the slow way; ``reason`` says why it is needed."""
    import pyarrow as pa

    storage = leaf.storage
    may_hide_nulls = (
        pa.types.is_null(storage)
        or pa.types.is_union(storage)
        or pa.types.is_run_end_encoded(storage)
        or pa.types.is_dictionary(storage)
    )
    field = leaf.spec(nullable=may_hide_nulls or bool(validity_tables(buffers, leaf)))
    taker = _Taker(buffers, leaf, field, files, builder)
    return DecodedColumn(field=field, reason=reason, take=taker.take, payload_bytes=_estimate(buffers, leaf, field))


@dataclass(frozen=True, slots=True)
class _Taker:
    """Takes records of one field of one shard."""

    buffers: BatchBuffers
    leaf: Leaf
    field: FieldSpec
    files: MappedFiles
    builder: ArrayBuilder

    def take(self, ids_B: Int64Array) -> TakenValues:
        import pyarrow as pa

        where = self.buffers.where
        run_B = where.run_of(ids_B)
        row_B = ids_B - where.start_R1[run_B]
        groups = grouped(run_B)
        if self.leaf.delivery.json:
            values: list[Any] = [None] * len(ids_B)
            for run, places in groups:
                array, present = self._prepared(run), self._parents(run)
                for place, row in zip(places.tolist(), row_B[places].tolist(), strict=True):
                    values[place] = array[row].as_py() if present is None or present[row].as_py() else None
            return deliver_json(values, self.field)
        parts = [self._part(run, row_B[places]) for run, places in groups]
        if not parts:
            return self._nothing()
        order_B = np.argsort(np.concatenate([places for _, places in groups]))
        try:
            return deliver(pa.concat_arrays(parts).take(pa.array(order_B)), self.field)
        except (pa.ArrowException, ValueError) as error:
            path = self.files.ref(int(where.map_R[0])).path
            text = f"{path}: field {self.field.name!r} can't be decoded for records {ids_B.tolist()[:8]}: {error}"
            raise StoreError(text, kind=ErrorKind.CORRUPT) from error

    def _part(self, run: int, row_B: Int64Array) -> Any:
        import pyarrow as pa

        present = self._parents(run)
        absent_B = None if present is None else ~present.take(pa.array(row_B)).to_numpy(zero_copy_only=False)
        part = self._prepared(run).take(pa.array(row_B, mask=absent_B))
        return part.dictionary.take(part.indices) if pa.types.is_dictionary(part.type) else part

    def _prepared(self, run: int) -> Any:
        key = (int(self.buffers.where.map_R[run]), self.field.name, run)
        return self.files.decoded.get(key, lambda: self._prepare(int(self.buffers.batch_R[run])))

    def _prepare(self, batch: int) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        array = self.builder.column(self.leaf.storage, self.leaf.place, batch)
        if pa.types.is_dictionary(array.type):
            return pa.DictionaryArray.from_arrays(array.indices, _without_views(array.dictionary))
        if pa.types.is_run_end_encoded(array.type):
            ends, values = array.run_ends, _without_views(array.values)
            array = pc.run_end_decode(pa.RunEndEncodedArray.from_arrays(ends, values))
        if self.leaf.delivery.json:
            plain = integers_for_times(array.type)
            array = array if plain == array.type else array.cast(plain)
        return array

    def _parents(self, run: int) -> Any:
        """Whether the structs around each record of a run are there; None if all are."""
        import pyarrow.compute as pc

        batch = int(self.buffers.batch_R[run])
        present = None
        for place in self.leaf.chain[:-1]:
            bits = self.builder.bitmap(place, batch)
            if bits is not None:
                present = bits if present is None else pc.and_(present, bits)
        return present

    def _nothing(self) -> TakenValues:
        mask_B = np.empty(0, dtype=np.bool_) if self.field.nullable else None
        offsets_B1 = np.zeros(1, dtype=np.int64) if self.field.kind == "ragged" else None
        return TakenValues(np.empty((0, *self.field.shape), dtype=self.field.dtype), offsets_B1, mask_B)


def _without_views(values: Any) -> Any:
    """The values with views of bytes made plain, which pyarrow's kernels for taking and decoding ask for."""
    import pyarrow as pa

    if pa.types.is_string_view(values.type):
        return values.cast(pa.large_string())
    return values.cast(pa.large_binary()) if pa.types.is_binary_view(values.type) else values


def _estimate(buffers: BatchBuffers, leaf: Leaf, field: FieldSpec) -> int:
    """The bytes of the whole column: exact for fixed fields, what its own buffers hold for the others."""
    from fastio.formats.arrow.types import footprint

    records = buffers.where.records
    if field.kind == "fixed":
        return records * np.dtype(field.dtype).itemsize * int(np.prod(field.shape, dtype=np.int64))
    owned = footprint(leaf.storage, buffers.index.version)
    total = 0
    for number in range(owned.buffers):
        total += int(buffers.buffer(leaf.place, number)[1].sum())
    return total
