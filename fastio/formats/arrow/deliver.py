"""From Arrow arrays to the arrays of a batch: what :mod:`fastio.formats.arrow.types` promises, carried out.

This is the slow way, for what extents can't reach; JSON makes Python objects per record.
"""

from __future__ import annotations

import base64
import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from fastio.extents import Int64Array
from fastio.formats.base import TakenValues
from fastio.spec import FieldSpec

__all__ = ["deliver", "deliver_json", "integers_for_times"]


def deliver(array: Any, field: FieldSpec) -> TakenValues:
    """The values of B records; null records are zeros or nothing, null items of lists NaN (floats) or zeros."""
    mask_B = _valid(array)
    mask = mask_B if field.nullable else None
    count = len(array)
    if field.kind == "fixed":
        values = np.zeros((count, *field.shape), dtype=field.dtype)
        values[mask_B] = _flat(array.drop_null(), field).reshape(-1, *field.shape)
        return TakenValues(values, None, mask)
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(array.type):
        return TakenValues(np.empty(0, dtype=field.dtype), np.zeros(count + 1, dtype=np.int64), mask)
    if _is_bytes(array.type):
        length_B = np.zeros(count, dtype=np.int64)
        values, length_B[mask_B] = _bytes(array.drop_null(), field)
    else:
        length_B = pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64)
        values = _flat(array.drop_null(), field)
    return TakenValues(values, np.concatenate([[0], np.cumsum(length_B)]).astype(np.int64), mask)


def _bytes(array: Any, field: FieldSpec) -> tuple[npt.NDArray[Any], Int64Array]:
    import pyarrow as pa

    # Views of strings are not cast to binary at once, hence two steps.
    wide = array.cast(pa.large_string()).cast(pa.large_binary()) if field.text else array.cast(pa.large_binary())
    if not len(wide):
        return np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int64)
    _, offsets, data = wide.buffers()
    offsets_B1 = np.frombuffer(offsets, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    values = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return values[offsets_B1[0] : offsets_B1[-1]], np.diff(offsets_B1)


def deliver_json(values: list[Any], field: FieldSpec) -> TakenValues:
    """Python values, None for null, as JSON text."""
    mask_B = np.array([value is not None for value in values], dtype=np.bool_)
    texts = [b"" if value is None else _json(value) for value in values]
    lengths = [len(text) for text in texts]
    offsets_B1 = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TakenValues(np.frombuffer(b"".join(texts), np.uint8), offsets_B1, mask_B if field.nullable else None)


def integers_for_times(type_: Any) -> Any:
    """``type_`` with every temporal type inside replaced by the integers it is stored as; unions are left alone."""
    import pyarrow as pa

    types = pa.types
    if types.is_interval(type_) or types.is_union(type_) or types.is_run_end_encoded(type_):
        return type_
    if types.is_temporal(type_):
        return pa.int32() if type_.bit_width == 32 else pa.int64()
    if types.is_struct(type_):
        return pa.struct([_with_integers(type_.field(i)) for i in range(type_.num_fields)])
    if types.is_map(type_):
        return pa.map_(integers_for_times(type_.key_type), integers_for_times(type_.item_type))
    if types.is_fixed_size_list(type_):
        return pa.list_(_with_integers(type_.field(0)), type_.list_size)
    if types.is_list(type_):
        return pa.list_(_with_integers(type_.field(0)))
    if types.is_large_list(type_):
        return pa.large_list(_with_integers(type_.field(0)))
    return type_


def _with_integers(field: Any) -> Any:
    return field.with_type(integers_for_times(field.type))


def _flat(array: Any, field: FieldSpec) -> npt.NDArray[Any]:
    """All scalars of an array of lists of any depth, in order."""
    values, valid = _scalars(array)
    dtype = np.dtype(field.dtype)
    if not valid.all():
        values = values.copy()
        values[~valid] = 0
    # Of fixed-width items _scalars gives the bytes, one row per item.
    flat = values if values.dtype == np.bool_ else values.reshape(-1).view(dtype)
    if dtype.kind == "f" and not valid.all():
        flat[~valid] = np.nan
    return flat


def _scalars(array: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    import pyarrow as pa

    types = pa.types
    if types.is_fixed_size_list(array.type):
        size = array.type.list_size
        values, valid = _scalars(array.values.slice(array.offset * size, len(array) * size))
        return values, valid & np.repeat(_valid(array), len(valid) // max(len(array), 1))
    if array.type.num_fields:
        return _scalars(array.flatten())
    if types.is_boolean(array.type):
        return array.fill_null(False).to_numpy(zero_copy_only=False).astype(np.bool_), _valid(array)
    width = array.type.bit_width // 8
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.empty((0, width), dtype=np.uint8), np.ones(0, dtype=np.bool_)
    start = array.offset * width
    return np.frombuffer(data, np.uint8)[start : start + len(array) * width].reshape(-1, width), _valid(array)


def _valid(array: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)


def _is_bytes(type_: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    wide = types.is_large_binary(type_) or types.is_large_string(type_)
    views = types.is_binary_view(type_) or types.is_string_view(type_)
    return bool(wide or views or types.is_binary(type_) or types.is_string(type_))


def _json(value: Any) -> bytes:
    return json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no place in JSON")
