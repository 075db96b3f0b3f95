"""For arbitrary schemas and data, what fastio finds in an Arrow file is what pyarrow reads from it."""

from __future__ import annotations

import base64
import datetime
import json
import tempfile
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from fastio.dataset import open_dataset
from fastio.formats.base import IndexOptions
from fastio.spec import FieldSpec
from fastio.testing.gather import gather

_SCALARS = [
    pa.bool_(),
    pa.int8(),
    pa.uint16(),
    pa.int64(),
    pa.float32(),
    pa.float64(),
    pa.timestamp("us"),
    pa.duration("ms"),
    pa.date32(),
    pa.time64("us"),
    pa.decimal128(9, 2),
]
_BYTES = [
    pa.binary(),
    pa.large_binary(),
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary_view(),
    pa.binary(3),
]


def _types() -> st.SearchStrategy[Any]:
    flat = st.sampled_from([*_SCALARS, *_BYTES, pa.null(), pa.dictionary(pa.int8(), pa.string())])
    items = st.sampled_from([*_SCALARS, pa.string(), pa.binary_view()])

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        members = st.lists(inner, min_size=1, max_size=3)
        return st.one_of(
            inner.map(pa.list_),
            inner.map(pa.large_list),
            st.tuples(items, st.integers(1, 3)).map(lambda pair: pa.list_(*pair)),
            members.map(lambda types: pa.struct([(f"m{i}", one) for i, one in enumerate(types)])),
            inner.map(lambda one: pa.map_(pa.string(), one)),
        )

    return st.one_of(flat, items.map(pa.list_), st.recursive(items, nested, max_leaves=4))


def _values(type_: Any) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), _present(type_))


def _present(type_: Any) -> st.SearchStrategy[Any]:
    types = pa.types
    if types.is_null(type_):
        return st.none()
    if types.is_dictionary(type_):
        return _present(type_.value_type)
    if types.is_struct(type_):
        return st.fixed_dictionaries({f.name: _values(f.type) for f in type_})
    if types.is_map(type_):
        return st.lists(st.tuples(st.text(max_size=3), _values(type_.item_type)), max_size=2)
    if types.is_fixed_size_list(type_):
        return st.lists(_values(type_.value_type), min_size=type_.list_size, max_size=type_.list_size)
    if types.is_list(type_) or types.is_large_list(type_):
        return st.lists(_values(type_.value_type), max_size=4)
    return _scalar(type_)


def _scalar(type_: Any) -> st.SearchStrategy[Any]:
    types = pa.types
    if types.is_boolean(type_):
        return st.booleans()
    if types.is_floating(type_):
        return st.floats(width=type_.bit_width)
    if types.is_decimal(type_):
        return st.integers(-(10**6), 10**6).map(lambda n: Decimal(n).scaleb(-2))
    if types.is_integer(type_):
        bits = type_.bit_width
        low = 0 if types.is_unsigned_integer(type_) else -(1 << (bits - 1))
        return st.integers(low, low + (1 << bits) - 1)
    if types.is_timestamp(type_):
        return st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1))
    if types.is_duration(type_):
        return st.integers(-(10**9), 10**9).map(lambda n: datetime.timedelta(milliseconds=n))
    if types.is_date(type_):
        return st.dates(datetime.date(1700, 1, 1), datetime.date(2200, 1, 1))
    if types.is_time(type_):
        return st.times()
    if types.is_fixed_size_binary(type_):
        return st.binary(min_size=type_.byte_width, max_size=type_.byte_width)
    text = types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_)
    return st.text(max_size=30) if text else st.binary(max_size=30)


@st.composite
def _tables(draw: st.DrawFn) -> Any:
    types = draw(st.lists(_types(), min_size=1, max_size=3))
    records = draw(st.integers(1, 12))
    columns = [pa.array(draw(st.lists(_values(t), min_size=records, max_size=records)), t) for t in types]
    return pa.table(columns, names=[f"c{i}" for i in range(len(types))])


def _write(path: Path, table: Any, cuts: list[int], form: str, options: Any) -> None:
    make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    # In a stream the empty dictionary of this batch replaces the one before it, and the next batch replaces it again.
    nothing = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in table.schema], schema=table.schema)
    edges = sorted({0, len(table), *[cut % (len(table) + 1) for cut in cuts]})
    with make(path, table.schema, options=options) as writer:
        writer.write_table(table.slice(0, 0))
        for start, stop in pairwise(edges):
            writer.write_table(table.slice(start, stop - start))
            if form == "stream" or not any(pa.types.is_dictionary(one) for one in table.schema.types):
                writer.write_batch(nothing)


@given(
    table=_tables(),
    cuts=st.lists(st.integers(0, 12), max_size=3),
    form=st.sampled_from(["file", "stream"]),
    version=st.sampled_from([pa.ipc.MetadataVersion.V4, pa.ipc.MetadataVersion.V5]),
    legacy=st.booleans(),
    split=st.integers(0, 12),
    data=st.data(),
)
def test_every_record_is_what_pyarrow_reads(
    table: Any, cuts: list[int], form: str, version: Any, legacy: bool, split: int, data: st.DataObject
) -> None:
    records = len(table)
    split %= records + 1
    options = pa.ipc.IpcWriteOptions(
        use_legacy_format=legacy, metadata_version=version, unify_dictionaries=form == "file"
    )
    ids = data.draw(st.lists(st.integers(0, records - 1), max_size=20))
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder, "part-2"), table.slice(0, split), cuts, form, options)
        _write(Path(folder, "part-10"), table.slice(split), cuts, form, options)
        with open_dataset(folder, options=IndexOptions(directory=Path(folder, ".index"))) as dataset:
            assert dataset.records == records
            for field, array in _flattened(table):
                found = gather(dataset, field, ids)
                expected = [array[i] for i in ids]
                spec = next(one for one in dataset.fields if one.name == field)
                _assert_equal(found, expected, spec)


def _flattened(table: Any) -> list[tuple[str, Any]]:
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return [(name, table.column(i).combine_chunks()) for i, name in enumerate(table.column_names)]


def _assert_equal(found: list[Any], expected: list[Any], spec: FieldSpec) -> None:
    for got, scalar in zip(found, expected, strict=True):
        want = scalar.as_py()
        if want is None:
            assert got is None
            assert spec.nullable
        elif spec.text and not isinstance(want, str):
            assert json.loads(got) == json.loads(json.dumps(_jsonable(want, scalar.type)))
        elif isinstance(want, str | bytes) and spec.kind == "ragged":
            assert got == want
        else:
            np.testing.assert_array_equal(got, _as_array(want, scalar.type, spec))


def _as_array(want: Any, type_: Any, spec: FieldSpec) -> Any:
    """The obvious way: through pyarrow's own buffers, item by item."""
    if not isinstance(want, list):
        return np.frombuffer(_item(want, type_), dtype=spec.dtype).reshape(spec.shape)
    items = b"".join(_item(one, type_.value_type) for one in want)
    return np.frombuffer(items, dtype=spec.dtype).reshape(spec.shape if spec.kind == "fixed" else -1)


def _item(want: Any, type_: Any) -> bytes:
    if pa.types.is_boolean(type_):
        return bytes([bool(want)])
    if want is None:
        filler = np.nan if pa.types.is_floating(type_) else 0
        return np.array([filler], dtype=f"f{type_.bit_width // 8}").tobytes() if filler else bytes(type_.bit_width // 8)
    return bytes(pa.array([want], type_).buffers()[1])[: type_.bit_width // 8]


def _jsonable(want: Any, type_: Any) -> Any:
    types = pa.types
    if want is None:
        return None
    if types.is_map(type_):
        return [[key, _jsonable(value, type_.item_type)] for key, value in want]
    if types.is_nested(type_) and isinstance(want, dict):
        return {field.name: _jsonable(want[field.name], field.type) for field in type_}
    if types.is_nested(type_):
        return [_jsonable(one, type_.value_type) for one in want]
    if types.is_temporal(type_):
        return int(pa.array([want], type_).cast(pa.int32() if type_.bit_width == 32 else pa.int64())[0].as_py())
    if isinstance(want, bytes):
        return base64.b64encode(want).decode()
    if isinstance(want, float) and want != want:
        return "NaN"
    return str(want) if isinstance(want, Decimal) else want
