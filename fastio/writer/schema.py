"""What a caller may call a schema, and how Python values become columns of it.

A schema is a ``pyarrow.Schema``, or a dict from field names to types, where a type is a ``pyarrow.DataType``, a name of
one ("int64", "binary"), a NumPy dtype, one of ``bytes str int float bool``, or a pair (type, shape) for arrays of a
fixed shape. Dictionary-encoded fields are stored decoded: their values then lie in extents like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastio.errors import ErrorKind, RequestError

__all__ = ["as_record_batches", "as_schema", "rows_to_batch", "value_bytes"]


def as_schema(schema: Any) -> Any:
    """The ``pyarrow.Schema`` that ``schema`` means, without dictionaries.

    >>> as_schema({"image": bytes, "pixels": ("uint8", (8, 8)), "label": "int64"}).field("image").type
    DataType(binary)
    """
    import pyarrow as pa

    if isinstance(schema, pa.Schema):
        fields = list(schema)
    elif isinstance(schema, Mapping):
        fields = [pa.field(name, _as_type(name, kind)) for name, kind in schema.items()]
    else:
        raise RequestError(f"schema must be a pyarrow.Schema or a dict of names to types, got {type(schema).__name__}")
    if not fields:
        raise RequestError("schema must have at least one field, got none")
    names = [field.name for field in fields]
    if len(set(names)) != len(names):
        raise RequestError(f"schema must have distinct field names, got {names}")
    decoded = (field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in fields)
    plain = [field.with_type(kind) for field, kind in zip(fields, decoded, strict=True)]
    return pa.schema(plain, metadata=schema.metadata if isinstance(schema, pa.Schema) else None)


def _as_type(name: str, kind: Any) -> Any:
    import pyarrow as pa

    plain = {bytes: pa.binary(), str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if isinstance(kind, pa.DataType):
        return kind
    if isinstance(kind, tuple) and len(kind) == 2:
        inner = _as_type(name, kind[0])
        for size in reversed(kind[1] if isinstance(kind[1], tuple) else (kind[1],)):
            inner = pa.list_(inner, size)
        return inner
    try:
        if kind in plain:
            return plain[kind]
        return pa.type_for_alias(kind) if isinstance(kind, str) else pa.from_numpy_dtype(np.dtype(kind))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise RequestError(f"field {name!r}: {kind!r} is not a type that Arrow knows ({error})") from error


def value_bytes(value: Any) -> int:
    """About how many bytes one value of a record takes, without converting it."""
    if isinstance(value, bytes | bytearray | str):
        return len(value)
    if isinstance(value, np.ndarray | memoryview):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(value_bytes, value.values()))
    return 8 * len(value) if isinstance(value, Sequence) else 8


def rows_to_batch(columns: Mapping[str, Any], schema: Any, *, first_record: int = 0) -> Any:
    """One ``pyarrow.RecordBatch`` of ``schema`` from a sequence of values per field.

    Args:
        first_record: the number of the first of these records, for messages.

    Raises:
        RequestError: fields are missing or unknown, lengths differ, or a value does not fit its type.
    """
    import pyarrow as pa

    _same_names(list(columns), schema.names)
    arrays = [_column(columns[field.name], field, first_record) for field in schema]
    lengths = {field.name: len(array) for field, array in zip(schema, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        raise RequestError(f"every field must have as many values, got {lengths}")
    return pa.record_batch(arrays, schema=schema)


def as_record_batches(data: Any, schema: Any, *, first_record: int = 0) -> list[Any]:
    """``data`` (RecordBatch, Table, or dict of arrays) as record batches of exactly ``schema``."""
    import pyarrow as pa

    if isinstance(data, Mapping):
        return [rows_to_batch(data, schema, first_record=first_record)]
    if not isinstance(data, pa.RecordBatch | pa.Table):
        raise RequestError(f"append_batch takes a RecordBatch, a Table or a dict of arrays, got {type(data).__name__}")
    table = pa.Table.from_batches([data]) if isinstance(data, pa.RecordBatch) else data
    _same_names(table.column_names, schema.names)
    try:
        table = table.select(schema.names).cast(schema)
    except _MISFITS as error:
        message = f"the batch does not fit the schema of the dataset: {error}"
        raise RequestError(message, kind=ErrorKind.SCHEMA_MISMATCH) from error
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise RequestError(f"field {field.name!r} is declared without nulls, got one")
    return list(table.to_batches())


def _same_names(found: list[str], wanted: list[str]) -> None:
    if set(found) != set(wanted):
        missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        parts = [f"{what} {names}" for what, names in (("without", missing), ("with unknown", unknown)) if names]
        message = f"a record must have the fields {wanted}; got one {' and '.join(parts)}"
        raise RequestError(message, kind=ErrorKind.UNKNOWN_FIELD)


def _column(values: Any, field: Any, first_record: int) -> Any:
    import pyarrow as pa

    try:
        array = _converted(values, field.type)
    except _MISFITS as error:
        number, reason = _misfit(values, field.type) or (0, error)
        message = f"record {first_record + number}, field {field.name!r}: a value does not fit {field.type}: {reason}"
        raise RequestError(message) from error
    if isinstance(array, pa.ChunkedArray):
        raise RequestError(f"field {field.name!r}: over 2 GiB in one batch; use large_{field.type} or smaller batches")
    if not field.nullable and array.null_count:
        number = array.is_null().index(True).as_py()
        raise RequestError(f"record {first_record + number}: field {field.name!r} is declared without nulls, got one")
    return array


# What pyarrow and NumPy raise for a value of another type; pyarrow's own errors derive from these.
_MISFITS = (TypeError, ValueError, OverflowError, NotImplementedError)


def _misfit(values: Any, kind: Any) -> tuple[int, Exception] | None:
    """The first value that does not fit, and why: looked for only when it is known that there is one."""
    for number, value in enumerate(values):
        try:
            _converted([value], kind)
        except _MISFITS as error:
            return number, error
    return None


def _converted(values: Any, kind: Any) -> Any:
    import pyarrow as pa

    array = _fixed_shape(values, kind)
    return pa.array(values, type=kind, from_pandas=False) if array is None else array


def _fixed_shape(values: Any, kind: Any) -> Any:
    """NumPy arrays of one fixed shape as nested fixed-size lists, without a Python object per element; else None."""
    import pyarrow as pa

    shape: list[int] = []
    leaf = kind
    while pa.types.is_fixed_size_list(leaf):
        shape.append(leaf.list_size)
        leaf = leaf.value_type
    if not shape or not pa.types.is_primitive(leaf) or not all(isinstance(value, np.ndarray) for value in values):
        return None
    wrong = next((value.shape for value in values if value.shape != tuple(shape)), None)
    if wrong is not None:
        raise ValueError(f"wanted an array of shape {tuple(shape)}, got {wrong}")
    flat = np.ravel(values if isinstance(values, np.ndarray) else np.stack(list(values)))
    array = pa.array(flat).cast(leaf)
    for depth in range(len(shape) - 1, -1, -1):
        array = pa.FixedSizeListArray.from_arrays(array, type=_at_depth(kind, depth))
    return array


def _at_depth(kind: Any, depth: int) -> Any:
    for _ in range(depth):
        kind = kind.value_type
    return kind
