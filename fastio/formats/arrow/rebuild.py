"""Arrow arrays over a mapped file: one field of one record batch, without reading the others.

Buffers are views of the map; nothing is copied. pyarrow trusts what it is given, so an array is validated in full the
first time it is made: a corrupt file must not reach its kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastio.errors import ErrorKind, StoreError
from fastio.extents import Int64Array
from fastio.formats.arrow.index import ArrowIndex
from fastio.formats.arrow.messages import parse_message
from fastio.formats.arrow.types import Footprint, children, footprint, own_buffers
from fastio.formats.cache import MappedFiles

__all__ = ["ArrayBuilder", "Body"]


@dataclass(frozen=True, slots=True)
class Body:
    """The nodes (length, null count) and buffers (offset in the file, bytes) of one message, and the data buffers per
    view field.
    """

    nodes_K2: Int64Array
    buffers_b2: Int64Array
    variadic_V: Int64Array

    @classmethod
    def of_batch(cls, index: ArrowIndex, batch: int) -> Body:
        first, stop = index.buffer_start_R1[batch : batch + 2]
        return cls(index.nodes_RK2[batch], index.buffers_b2[first:stop], index.variadic_RV[batch])


class ArrayBuilder:
    """Makes arrays of one file's columns.

    Args:
        files: where the file is mapped.
        number: its number there.
        index: its index.
        dictionary_of_node: the id of the dictionary that a node's values are in, by the schema.
    """

    def __init__(
        self, files: MappedFiles, number: int, index: ArrowIndex, dictionary_of_node: Mapping[int, int]
    ) -> None:
        self._files = files
        self._number = number
        self._index = index
        self._dictionary_of_node = dictionary_of_node
        self._valid: set[tuple[Footprint, int]] = set()

    def column(self, storage: Any, place: Footprint, batch: int) -> Any:
        """The column of type ``storage`` at ``place`` of record batch ``batch``.

        Raises:
            StoreError: it is corrupt.
        """
        import pyarrow as pa

        try:
            array = self._array(storage, place, Body.of_batch(self._index, batch), batch)
            if (place, batch) not in self._valid:
                array.validate(full=True)
                self._valid.add((place, batch))
        except (pa.ArrowException, ValueError) as error:
            path = self._files.ref(self._number).path
            raise StoreError(f"{path}: record batch {batch} is corrupt: {error}", kind=ErrorKind.CORRUPT) from error
        return array

    def bitmap(self, place: Footprint, batch: int) -> Any:
        """The validity of the column at ``place`` as a BooleanArray; None if nothing is null."""
        import pyarrow as pa

        body = Body.of_batch(self._index, batch)
        length, nulls = body.nodes_K2[place.nodes].tolist()
        if not nulls:
            return None
        return pa.Array.from_buffers(pa.bool_(), length, [None, self._buffer(body, place, 0)])

    def _array(self, storage: Any, place: Footprint, body: Body, batch: int) -> Any:
        import pyarrow as pa

        length, nulls = body.nodes_K2[place.nodes].tolist()
        buffers = self._buffers(storage, place, body, nulls)
        if pa.types.is_dictionary(storage):
            values = self._dictionary(storage, self._dictionary_of_node[place.nodes], batch)
            return pa.DictionaryArray.from_buffers(storage, length, buffers, values, nulls)
        below = place + Footprint(1, *own_buffers(storage, self._index.version))
        arrays = []
        for child in children(storage):
            arrays.append(self._array(child, below, body, batch))
            below += footprint(child, self._index.version)
        maker = pa.RunEndEncodedArray if pa.types.is_run_end_encoded(storage) else pa.Array
        unknown = pa.types.is_union(storage) or pa.types.is_run_end_encoded(storage)
        return maker.from_buffers(storage, length, buffers, 0 if unknown else nulls, 0, arrays)

    def _buffers(self, storage: Any, place: Footprint, body: Body, nulls: int) -> list[Any]:
        import pyarrow as pa

        fixed, views = own_buffers(storage, self._index.version)
        count = fixed + (int(body.variadic_V[place.views]) if views else 0)
        if pa.types.is_null(storage) or pa.types.is_run_end_encoded(storage):
            return [None]
        buffers = [self._buffer(body, place, number) for number in range(count)]
        if pa.types.is_union(storage):
            return [None, *buffers[self._index.version < 4 :]]
        return buffers if nulls else [None, *buffers[1:]]

    def _buffer(self, body: Body, place: Footprint, number: int) -> Any:
        import pyarrow as pa

        at = place.buffers + number + int(body.variadic_V[: place.views].sum())
        offset, size = body.buffers_b2[at].tolist()
        return pa.py_buffer(self._files.view(self._number)[offset : offset + size])

    def _dictionary(self, storage: Any, wanted: int, batch: int) -> Any:
        """The values of dictionary ``wanted`` as they stand at record batch ``batch``: the last whole one before it,
        and what was added since. In the file format dictionaries hold for all batches, wherever they lie.
        """
        import pyarrow as pa

        pieces: list[tuple[int, Any]] = []
        for number, (at, head_bytes, prefix_bytes, before) in enumerate(self._index.dictionaries_D4.tolist()):
            message = parse_message(self._files.view(self._number)[at + prefix_bytes : at + head_bytes].tobytes())
            name, adds = message.dictionary()
            if name == wanted and (self._index.form == "file" or before <= batch):
                pieces = [*pieces, (number, message)] if adds else [(number, message)]
        if not pieces:
            raise ValueError(f"dictionary {wanted} is missing")

        def build() -> Any:
            arrays = [self._dictionary_values(storage.value_type, *piece) for piece in pieces]
            return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)

        return self._files.decoded.get((self._number, f"dictionary {wanted}", pieces[-1][0]), build)

    def _dictionary_values(self, values: Any, number: int, message: Any) -> Any:
        at, head_bytes = self._index.dictionaries_D4[number, :2].tolist()
        meta = message.batch()
        buffers_b2 = meta.buffers + np.array([at + head_bytes, 0])
        array = self._array(values, Footprint(0, 0, 0), Body(meta.nodes, buffers_b2, meta.variadic), -1)
        array.validate(full=True)
        return array
