"""Arrow files and streams: what is recognised, what is read at open, what is refused and in which words."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastio.dataset import Dataset, open_dataset
from fastio.errors import ErrorKind, StoreError
from fastio.extents import FixedExtents
from fastio.formats.arrow import is_arrow, open_arrow_shard
from fastio.formats.arrow.messages import parse_message, parse_prefix
from fastio.formats.base import Column, DecodedColumn, IndexOptions
from fastio.testing.gather import gather

N = 30
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(
        table: Any, name: str = "data.arrow", *, form: str = "stream", rows: int = 7, options: Any = None
    ) -> Path:
        path = tmp_path / name
        make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
        with make(path, table.schema, options=options) as writer:
            for start in range(0, len(table), rows):
                writer.write_table(table.slice(start, rows))
        return path

    return write


def _opened(path: Path) -> Dataset:
    return open_dataset(path, options=IndexOptions(directory=path.parent / ".index"))


def _table(**columns: Any) -> Any:
    return pa.table(columns)


def _refused(path: Path, kind: ErrorKind) -> str:
    with pytest.raises(StoreError) as caught:
        _opened(path)
    assert caught.value.kind is kind
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", ["file", "stream"])
def test_recognised_by_its_first_bytes_whatever_its_name(write: Write, form: str) -> None:
    path = write(_table(x=pa.array(range(N))), "no-suffix", form=form)
    assert is_arrow(path)
    with _opened(path) as dataset:
        assert dataset.format == "arrow"
        assert f"Arrow IPC {form}, 5 record batches" in dataset.layout
        assert gather(dataset, "x", [29, 0, 7]) == [29, 0, 7]


def test_a_schema_longer_than_the_first_read_is_recognised(write: Write) -> None:
    path = write(pa.table({f"column-{i}": pa.array([i]) for i in range(2000)}), "wide")
    assert is_arrow(path)
    with _opened(path) as dataset:
        assert gather(dataset, "column-1999", [0]) == [1999]


@pytest.mark.parametrize("form", ["file", "stream"])
def test_framing_from_before_arrow_0_15_is_read(write: Write, form: str) -> None:
    options = pa.ipc.IpcWriteOptions(use_legacy_format=True, metadata_version=pa.ipc.MetadataVersion.V4)
    path = write(_table(x=pa.array(["a", None, "ccc"] * 10)), form=form, options=options)
    assert is_arrow(path)
    with _opened(path) as dataset:
        assert gather(dataset, "x", [0, 1, 2]) == ["a", None, "ccc"]


def test_fields_without_nulls_have_no_mask(write: Write) -> None:
    path = write(_table(a=pa.array(range(N)), b=pa.array([None, *range(N - 1)])))
    with _opened(path) as dataset:
        assert [field.nullable for field in dataset.fields] == [False, True]


@pytest.mark.parametrize(
    ("array", "dtype", "shape"),
    [
        (pa.array([1, 2], pa.timestamp("ns")), "<M8[ns]", ()),
        (pa.array([1, 2], pa.duration("s")), "<m8[s]", ()),
        (pa.array([1, 2], pa.date64()), "<M8[ms]", ()),
        (pa.array([1, 2], pa.date32()), "<i4", ()),
        (pa.array([1, 2], pa.time32("s")), "<i4", ()),
        (pa.array([1, 2], pa.time64("us")), "<i8", ()),
        (pa.array(np.array([1, 2], np.float16)), "<f2", ()),
        (pa.array([1, 2], pa.decimal128(5)), "|u1", (16,)),
        (pa.array([1, 2], pa.decimal256(5)), "|u1", (32,)),
        (pa.array([b"ab", b"cd"], pa.binary(2)), "|u1", (2,)),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.uint8(), 2)), "|u1", (2,)),
        (pa.array([[[1, 2]], [[3, 4]]], pa.list_(pa.list_(pa.float32(), 2), 1)), "<f4", (1, 2)),
        (pa.array([True, False]), "|b1", ()),
    ],
)
def test_fixed_fields_are_served_by_extents(write: Write, array: Any, dtype: str, shape: tuple[int, ...]) -> None:
    with _opened(write(_table(x=array))) as dataset:
        (field,) = dataset.fields
        assert (field.kind, field.dtype, field.shape) == ("fixed", dtype, shape)
        assert isinstance(dataset.columns["x"], Column)


@pytest.mark.parametrize(
    ("array", "dtype", "text"),
    [
        (pa.array(["a", "b"]), "|u1", True),
        (pa.array(["a", "b"], pa.large_string()), "|u1", True),
        (pa.array([b"a", b"b" * 40], pa.binary_view()), "|u1", False),
        (pa.array([[1], []], pa.list_(pa.int16())), "<i2", False),
        (pa.array([[1], []], pa.large_list(pa.timestamp("ms"))), "<M8[ms]", False),
    ],
)
def test_ragged_fields_are_served_by_extents(write: Write, array: Any, dtype: str, text: bool) -> None:
    with _opened(write(_table(x=array))) as dataset:
        (field,) = dataset.fields
        assert (field.kind, field.dtype, field.text) == ("ragged", dtype, text)
        assert isinstance(dataset.columns["x"], Column)


@pytest.mark.parametrize(
    ("array", "expected", "reason"),
    [
        (pa.array([["a"], None], pa.list_(pa.string())), ['["a"]', None], "nested deeper"),
        (pa.array([[{"x": b"\0"}], []]), ['[{"x":"AA=="}]', "[]"], "nested deeper"),
        (pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int8())), ['[["k",1]]', "[]"], "nested deeper"),
        (pa.array(["b", None]).dictionary_encode(), ["b", None], "dictionary"),
        (pa.array([7, None], pa.dictionary(pa.int8(), pa.int32())), [7, None], "dictionary"),
        (pa.DictionaryArray.from_arrays([0, 0], pa.array(["v"], pa.string_view())), ["v", "v"], "dictionary"),
        (pa.array([1, None], pa.run_end_encoded(pa.int32(), pa.int64())), [1, None], "run-end"),
        (pa.nulls(2), [None, None], "no values"),
        (pa.array([{}, None], pa.struct([])), ["{}", None], "nested deeper"),
    ],
)
def test_deep_fields_are_decoded_and_say_why(write: Write, array: Any, expected: list[Any], reason: str) -> None:
    with _opened(write(_table(x=array))) as dataset:
        column = dataset.columns["x"]
        assert isinstance(column, DecodedColumn)
        assert reason in column.reason
        assert gather(dataset, "x", [1, 0]) == expected[::-1]


def test_unions_of_both_kinds_and_metadata_versions_are_decoded(write: Write) -> None:
    codes = pa.array([0, 1, 1], pa.int8())
    children = [pa.array([5, 0, 0]), pa.array(["", "b", None])]
    sparse = pa.UnionArray.from_sparse(codes, children)
    dense = pa.UnionArray.from_dense(codes, pa.array([0, 1, 2], pa.int32()), children)
    for name, array in (("sparse", sparse), ("dense", dense)):
        for version in (pa.ipc.MetadataVersion.V4, pa.ipc.MetadataVersion.V5):
            options = pa.ipc.IpcWriteOptions(metadata_version=version)
            path = write(_table(u=array, x=pa.array([1, 2, 3])), f"{name}-{version}", options=options)
            with _opened(path) as dataset:
                assert gather(dataset, "u", [2, 1, 0]) == [None, '"b"', "5"]
                assert gather(dataset, "x", [2, 0]) == [3, 1]


def test_structs_are_flattened_and_their_nulls_reach_their_members(write: Write) -> None:
    inner = [{"c": "x", "d": 1}, None, {"c": None, "d": 3}]
    rows = [{"b": one, "a": [1]} for one in inner] + [None]
    with _opened(write(_table(s=pa.array(rows)))) as dataset:
        assert [field.name for field in dataset.fields] == ["s.b.c", "s.b.d", "s.a"]
        assert gather(dataset, "s.b.c", [0, 1, 2, 3]) == ["x", None, None, None]
        assert gather(dataset, "s.b.d", [0, 1, 2, 3]) == [1, None, 3, None]


def test_null_items_of_lists_are_nan_or_zero_and_never_garbage(write: Write) -> None:
    floats = pa.array([[1.0, None], None, []], pa.list_(pa.float32()))
    whole = pa.array([[1, None], [3, 4], None], pa.list_(pa.int64(), 2))
    with _opened(write(_table(f=floats, w=whole))) as dataset:
        first, second, third = gather(dataset, "f", [0, 1, 2])
        np.testing.assert_array_equal(first, np.array([1, np.nan], np.float32))
        assert second is None
        assert len(third) == 0
        values = gather(dataset, "w", [0, 1, 2])
        assert [None if value is None else value.tolist() for value in values] == [[1, 0], [3, 4], None]


def test_dictionaries_that_grow_or_are_replaced_in_a_stream(tmp_path: Path) -> None:
    schema = pa.schema([("x", pa.dictionary(pa.int8(), pa.string()))])

    def batch(indices: list[int], words: list[str]) -> Any:
        return pa.record_batch([pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), words)], schema=schema)

    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pa.ipc.new_stream(tmp_path / "x", schema, options=options) as writer:
        writer.write_batch(batch([0, 1], ["a", "b"]))
        writer.write_batch(batch([2, 0], ["a", "b", "c"]))
        writer.write_batch(batch([0, 1], ["y", "z"]))
        writer.write_batch(batch([2, 1], ["y", "z", "w"]))
    with _opened(tmp_path / "x") as dataset:
        assert gather(dataset, "x", [7, 6, 5, 4, 3, 2, 1, 0]) == ["z", "w", "z", "y", "a", "c", "b", "a"]


def test_a_field_decoded_in_one_shard_is_decoded_in_all(write: Write, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write(_table(x=pa.array([[1, 2], [3]], pa.list_(pa.int32()))), "d/1")
    write(_table(x=pa.array([[None], None], pa.list_(pa.int32()))), "d/2")
    with _opened(tmp_path / "d") as dataset:
        column = dataset.columns["x"]
        assert isinstance(column, DecodedColumn)
        assert "nulls inside" in column.reason
        assert dataset.fields[0].nullable
        found = gather(dataset, "x", [3, 2, 1, 0, 1])
        assert [None if one is None else one.tolist() for one in found] == [None, [0], [3], [1, 2], [3]]
        assert gather(dataset, "x", []) == []


def test_empty_batches_and_empty_shards_hold_no_records(write: Write, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    table = _table(x=pa.array(["a", "b"]), v=pa.array(["c", "d"], pa.string_view()), i=pa.array([1, 2]))
    write(table.slice(0, 0), "d/1")
    write(table, "d/2")
    with pa.ipc.new_file(tmp_path / "d/3", table.schema) as writer:
        writer.write_batch(table.to_batches()[0].slice(0, 0))
    with _opened(tmp_path / "d") as dataset:
        assert [shard.records for shard in dataset.shards] == [0, 2, 0]
        assert [gather(dataset, name, [1, 0]) for name in ("x", "v", "i")] == [["b", "a"], ["d", "c"], [2, 1]]
        assert dataset.locate(1) == (tmp_path / "d/2", 1)


def test_a_dataset_without_records_is_refused(write: Write) -> None:
    _refused(write(_table(x=pa.array([], pa.int8()))), ErrorKind.EMPTY)


def test_compressed_bodies_are_refused_with_the_remedy(write: Write) -> None:
    for form in ("file", "stream"):
        path = write(_table(x=pa.array(range(N))), form=form, options=pa.ipc.IpcWriteOptions(compression="lz4"))
        assert "fastio pack" in _refused(path, ErrorKind.COMPRESSED)


@pytest.mark.parametrize("form", ["file", "stream"])
def test_truncation_anywhere_is_noticed_at_open(write: Write, form: str) -> None:
    path = write(_table(x=pa.array(["text"] * N), y=pa.array(range(N))), form=form)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 8, 97):
        path.write_bytes(whole[:size])
        try:
            with _opened(path) as dataset:
                # Only a stream cut exactly between two messages can't be told from a shorter one.
                assert form == "stream"
                assert dataset.records % 7 == 0
        except StoreError as error:
            expected = {ErrorKind.TRUNCATED, ErrorKind.NOT_A_DATASET, ErrorKind.EMPTY}
            assert error.kind in expected, (size, error)  # noqa: PT017
            assert error.kind is not ErrorKind.TRUNCATED or str(size) in str(error)  # noqa: PT017


def test_random_damage_is_an_error_or_other_values_but_never_a_crash(write: Write) -> None:
    words = pa.array(["text", None, "x" * 20] * 10)
    table = _table(x=words, v=words.cast(pa.string_view()), d=words.dictionary_encode(), j=pa.array([["a"]] * N))
    random = np.random.default_rng(5)
    for form in ("file", "stream"):
        path = write(table, form=form)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for at in random.integers(0, len(whole), 8).tolist():
                damaged[at] = int(random.integers(256))
            path.write_bytes(damaged)
            try:
                with _opened(path) as dataset:
                    for field in dataset.fields:
                        gather(dataset, field.name, [0, 1, dataset.records - 1])
            except (StoreError, UnicodeDecodeError):
                continue


def test_offsets_that_point_nowhere_name_shard_and_record(write: Write) -> None:
    path = write(_table(x=pa.array(["aaaa", "bbbb", "cccc"])), form="file")
    whole = path.read_bytes()
    at = whole.index(struct.pack("<4i", 0, 4, 8, 12))
    path.write_bytes(whole[:at] + struct.pack("<4i", 0, 4, 99, 12) + whole[at + 16 :])
    with _opened(path) as dataset:
        assert gather(dataset, "x", [0]) == ["aaaa"]
        with pytest.raises(StoreError, match=r"data\.arrow: record 1 is corrupt") as caught:
            gather(dataset, "x", [0, 1])
        assert caught.value.kind is ErrorKind.CORRUPT


def test_views_that_point_nowhere_name_shard_and_record(write: Write) -> None:
    path = write(_table(x=pa.array(["a" * 20, "b" * 20], pa.string_view())), form="file")
    whole = path.read_bytes()
    at = whole.index(struct.pack("<i4s2i", 20, b"bbbb", 0, 20))
    path.write_bytes(whole[:at] + struct.pack("<i4s2i", 20, b"bbbb", 3, 20) + whole[at + 16 :])
    with _opened(path) as dataset, pytest.raises(StoreError, match="record 1 is corrupt") as caught:
        gather(dataset, "x", [0, 1])
    assert caught.value.kind is ErrorKind.CORRUPT


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"PAR1" + bytes(100), "fastio pack"),
        (b"FEA1" + bytes(100), "Feather V1"),
        (b"hello, world", "text that begins 'hello, world'"),
        (bytes(range(128, 256)), "unknown kind"),
    ],
)
def test_what_is_no_arrow_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.arrow"
    path.write_bytes(content)
    assert not is_arrow(path)
    assert words in _refused(path, ErrorKind.NOT_A_DATASET)


def test_two_streams_in_one_file_are_refused(write: Write) -> None:
    path = write(_table(x=pa.array(range(N))))
    path.write_bytes(path.read_bytes() * 2)
    assert "more than one Arrow stream" in _refused(path, ErrorKind.UNSUPPORTED_LAYOUT)


def test_big_endian_is_refused(write: Write) -> None:
    path = write(_table(x=pa.array(range(N))))
    whole = bytearray(path.read_bytes())
    # pyarrow leaves little-endianness, the default, out of the table: give its slot a place where something else lies.
    header = parse_message(bytes(whole[8:])).header
    entry = 8 + header._vtable + 4
    whole[entry : entry + 2] = struct.pack("<H", 4)
    path.write_bytes(whole)
    assert "big-endian" in _refused(path, ErrorKind.UNSUPPORTED_LAYOUT)


def test_two_fields_of_one_name_are_refused(write: Write) -> None:
    table = pa.table([pa.array([1]), pa.array([{"b": 1}])], names=["a.b", "a"])
    assert "'a.b'" in _refused(write(table), ErrorKind.UNSUPPORTED_LAYOUT)


def test_a_stream_is_scanned_once_and_again_when_it_changed(write: Write) -> None:
    path = write(_table(x=pa.array(range(N))))
    options = IndexOptions(directory=path.parent / ".index")
    assert [open_arrow_shard(path, options).index_state for _ in range(2)] == ["built", "fresh"]
    write(_table(x=pa.array(range(N + 1))))
    shard = open_arrow_shard(path, options)
    assert (shard.index_state, shard.records) == ("rebuilt", N + 1)


def test_an_index_that_can_not_be_stored_is_kept_in_memory(write: Write, tmp_path: Path) -> None:
    path = write(_table(x=pa.array(range(N))))
    (tmp_path / "taken").write_text("a file where the directory should be")
    assert open_arrow_shard(path, IndexOptions(directory=tmp_path / "taken")).index_state == "memory"


def test_a_file_with_few_batches_needs_no_index(write: Write) -> None:
    few = write(_table(x=pa.array(range(N))), form="file")
    many = write(_table(x=pa.array(range(N))), "many", form="file", rows=1)
    options = IndexOptions(directory=few.parent / ".index")
    assert [open_arrow_shard(path, options).index_state for path in (few, many, many)] == ["none", "built", "fresh"]
    assert open_arrow_shard(many, options).records == N


def test_a_file_that_changed_after_opening_is_refused_when_it_is_mapped(write: Write) -> None:
    path = write(_table(x=pa.array(["a", "b"])))
    with _opened(path) as dataset:
        write(_table(x=pa.array(["c", "d", "e"])))
        with pytest.raises(StoreError, match="changed after it was indexed") as caught:
            gather(dataset, "x", [0])
        assert caught.value.kind is ErrorKind.CHANGED


def test_progress_is_told_while_a_stream_is_scanned(write: Write) -> None:
    path = write(_table(x=pa.array(range(600))), rows=1)
    calls: list[tuple[int, int]] = []
    options = IndexOptions(directory=path.parent / ".index", progress=lambda done, total: calls.append((done, total)))
    open_arrow_shard(path, options)
    assert len(calls) >= 2
    assert all(done <= total == path.stat().st_size for done, total in calls)


def test_fixed_fields_of_many_records_cost_nothing_per_record(tmp_path: Path) -> None:
    """10**9 int64 records in one record batch: a sparse file whose metadata alone is written."""
    records = 10**9
    path = tmp_path / "huge.arrow"
    small = pa.table({"x": pa.array([0], pa.int64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, small.schema) as writer:
        writer.write_table(small)
    data = sink.getvalue().to_pybytes()
    prefix = parse_prefix(data)
    assert prefix is not None
    schema_bytes = sum(prefix)
    batch_prefix = parse_prefix(data[schema_bytes:])
    assert batch_prefix is not None
    head = data[schema_bytes : schema_bytes + sum(batch_prefix)]
    # In this metadata 64-bit ones are the row count and the node's length; the body and its buffer have 8 bytes.
    patched = head.replace(struct.pack("<q", 1), struct.pack("<q", records))
    patched = patched.replace(struct.pack("<q", 8), struct.pack("<q", records * 8))
    with path.open("wb") as file:
        file.write(data[:schema_bytes] + patched)
        value_at = file.tell() + (records - 1) * 8
        file.truncate(value_at)
        file.seek(value_at)
        file.write(struct.pack("<q", 42))
    with _opened(path) as dataset:
        assert dataset.records == records
        table = dataset.columns["x"].table  # type: ignore[union-attr]
        assert isinstance(table, FixedExtents)
        assert len(table.base_R) == 1
        assert gather(dataset, "x", [0, records - 1]) == [0, 42]


def test_the_delivered_schema_is_arrows_and_keeps_metadata(write: Write) -> None:
    table = _table(s=pa.array([{"a": 1}])).replace_schema_metadata({"names": json.dumps(["cat", "dog"])})
    with _opened(write(table)) as dataset:
        schema = pa.ipc.read_schema(pa.py_buffer(dataset.arrow_schema))
        assert schema.names == ["s.a"]
        assert schema.metadata == {b"names": b'["cat", "dog"]'}


def test_fixed_shape_tensors_keep_their_shape(write: Write) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(24, dtype=np.float32).reshape(4, 3, 2))
    with _opened(write(_table(t=tensors))) as dataset:
        assert dataset.fields[0].shape == (3, 2)
        assert isinstance(dataset.columns["t"], Column)
        np.testing.assert_array_equal(gather(dataset, "t", [3])[0], np.arange(18, 24).reshape(3, 2))
