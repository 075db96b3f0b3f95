"""From a batch to Arrow: which arrays do the delivered values become? Imports pyarrow when it is called.

Values are shared, not copied, wherever the dataset's type has the layout in which they were delivered: fixed-width
numbers and times, large_binary, large_string, large_list. Narrower offsets, booleans (Arrow packs them into bits),
dictionaries and views are made from these by casting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastio.spec import FieldSpec
from fastio_client.ragged import Ragged

if TYPE_CHECKING:
    from fastio_client.batch import Batch, Mask

__all__ = ["ragged_array", "record_batch"]


def record_batch(batch: Batch, schema_bytes: bytes) -> Any:
    """The ``pyarrow.RecordBatch`` of ``batch``, of the types in ``schema_bytes`` where they can be had."""
    import pyarrow as pa

    schema = pa.ipc.read_schema(pa.py_buffer(schema_bytes)) if schema_bytes else pa.schema([])
    declared = {field.name: field for field in schema}
    arrays, fields = [], []
    for spec in batch.fields:
        array = _array(batch, spec)
        field = declared.get(spec.name)
        if field is not None:
            array = _as_declared(array, field.type)
        same = field is not None and array.type == field.type
        arrays.append(array)
        fields.append(field if same else pa.field(spec.name, array.type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, metadata=schema.metadata))


def ragged_array(ragged: Ragged, mask_B: Mask | None) -> Any:
    """A large_string, large_binary or large_list array that shares the values."""
    import pyarrow as pa

    offsets = pa.py_buffer(np.ascontiguousarray(ragged.offsets_B1))
    count, validity = len(ragged), _validity(mask_B)
    if ragged.values.dtype == np.uint8 and not ragged.listed:
        kind = pa.large_string() if ragged.text else pa.large_binary()
        return pa.Array.from_buffers(kind, count, [validity, offsets, pa.py_buffer(ragged.values)])
    values = pa.array(ragged.values)
    return pa.Array.from_buffers(pa.large_list(values.type), count, [validity, offsets], children=[values])


def _array(batch: Batch, spec: FieldSpec) -> Any:
    column, mask_B = batch[spec.name], batch.masks.get(spec.name)
    if isinstance(column, Ragged):
        return ragged_array(column, mask_B)
    return _fixed(column, mask_B, batch.records)


def _fixed(values: npt.NDArray[Any], mask_B: Mask | None, records: int) -> Any:
    """Scalars, or fixed-size lists nested as deep as the shape is."""
    import pyarrow as pa

    array = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        kind = pa.list_(array.type, size)
        length = len(array) // size if size else records
        array = pa.Array.from_buffers(kind, length, [None], children=[array])
    if mask_B is None:
        return array
    children = [array.values] if values.ndim > 1 else None
    buffers = [_validity(mask_B), *array.buffers()[1:2]] if children is None else [_validity(mask_B)]
    return pa.Array.from_buffers(array.type, records, buffers, children=children)


def _as_declared(array: Any, wanted: Any) -> Any:
    """``array`` as the dataset's type; as it is where that can't be had."""
    import pyarrow as pa

    if isinstance(wanted, pa.BaseExtensionType):
        storage = _as_declared(array, wanted.storage_type)
        return pa.ExtensionArray.from_storage(wanted, storage) if storage.type == wanted.storage_type else array
    if pa.types.is_decimal(wanted) or pa.types.is_fixed_size_binary(wanted):
        return _reinterpreted(array, wanted)
    if pa.types.is_dictionary(wanted) and pa.types.is_large_binary(array.type) != pa.types.is_large_string(array.type):
        array = array.cast(wanted.value_type).dictionary_encode()
    try:
        return array.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return array


def _reinterpreted(array: Any, wanted: Any) -> Any:
    """n bytes each as the n-byte values they are."""
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(array.type) or array.type.list_size * 8 != wanted.bit_width:
        return array
    return pa.Array.from_buffers(wanted, len(array), [array.buffers()[0], array.values.buffers()[1]])


def _validity(mask_B: Mask | None) -> Any:
    import pyarrow as pa

    if mask_B is None:
        return None
    return pa.py_buffer(np.packbits(mask_B, bitorder="little"))
