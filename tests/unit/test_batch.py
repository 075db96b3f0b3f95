"""Batches and ragged arrays: views, Python objects, padding, Arrow."""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from fastio.errors import RemoteProtocolError, RequestError
from fastio.layout import batch_layout
from fastio.spec import FieldSpec
from fastio_client.batch import Batch, BatchSource, make_batch
from fastio_client.ragged import Ragged


def ragged_of(records: list[Any], dtype: str = "<i4", **how: bool) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(record) for record in records])]).astype(np.int64)
    values = np.concatenate([np.asarray(record, dtype=dtype) for record in records]) if records else np.empty(0, dtype)
    return Ragged(values.astype(dtype), offsets, **how)


def text_of(words: Sequence[str | bytes], **how: bool) -> Ragged:
    return ragged_of([list(word.encode() if isinstance(word, str) else word) for word in words], "|u1", **how)


def pack(
    fields: list[FieldSpec],
    ids: list[int],
    columns: dict[str, Any],
    masks: dict[str, list[bool]] | None = None,
    schema: pa.Schema | None = None,
) -> Batch:
    """A batch as it would be received: columns written into one payload, then viewed."""
    ragged_bytes = [columns[field.name].values.nbytes for field in fields if field.kind == "ragged"]
    layout = batch_layout(fields, len(ids), ragged_bytes)
    payload = np.zeros(layout.payload_bytes, dtype=np.uint8)
    payload[: 8 * len(ids)].view(np.int64)[:] = ids
    for field, part in zip(fields, layout.fields, strict=True):
        column = columns[field.name]
        if part.mask_start is not None:
            payload[part.mask_start : part.mask_start + len(ids)] = (masks or {})[field.name]
        if isinstance(column, Ragged):
            assert part.offsets_start is not None
            end = part.offsets_start + 8 * (len(ids) + 1)
            payload[part.offsets_start : end].view(np.int64)[:] = column.offsets_B1
            column = column.values
        data = np.ascontiguousarray(column, dtype=field.dtype).reshape(-1).view(np.uint8)
        payload[part.values_start : part.values_start + part.values_bytes] = data
    arrow_schema = b"" if schema is None else schema.serialize().to_pybytes()
    source = BatchSource(tuple(fields), 100, arrow_schema)
    return make_batch(source, layout, payload.data, step=3, epoch=1)


RECORDS = st.lists(st.lists(st.integers(-9, 9), max_size=12), max_size=8)


@given(RECORDS, st.integers(-9, 9), st.integers(-9, 9))
def test_ragged_is_a_list_of_arrays(records: list[list[int]], start: int, stop: int) -> None:
    ragged = ragged_of(records)
    assert len(ragged) == len(records)
    assert ragged.to_list() == records
    assert [item.tolist() for item in ragged] == records
    assert [ragged[index].tolist() for index in range(-len(records), len(records))] == records + records
    assert ragged[start:stop].to_list() == records[start:stop]
    assert ragged.lengths_B.tolist() == [len(record) for record in records]
    assert ragged[start:stop].to_arrow().to_pylist() == records[start:stop]
    for outside in (len(records), -len(records) - 1):
        with pytest.raises(IndexError):
            ragged[outside]


@given(RECORDS, st.one_of(st.none(), st.integers(0, 15), st.just(300)), st.integers(0, 4))
def test_padding_is_a_loop_over_records(records: list[list[int]], length: int | None, skipped: int) -> None:
    padded, lengths = ragged_of(records)[skipped:].to_padded(fill=7, length=length)
    rows = records[skipped:]
    width = max(map(len, rows), default=0) if length is None else length
    assert padded.tolist() == [(row + [7] * width)[:width] for row in rows]
    assert lengths.tolist() == [min(len(row), width) for row in rows]


def test_what_records_become_as_python_objects() -> None:
    assert text_of(["süß", ""], text=True).to_list() == ["süß", ""]
    assert text_of([b"\xff\x00", b""]).to_list() == [b"\xff\x00", b""]
    assert text_of([b"\x01\x02"], listed=True).to_list() == [[1, 2]]
    assert repr(text_of(["ab", "c"], text=True)) == "<Ragged 2 records, 3 x uint8, text>"
    with pytest.raises(UnicodeDecodeError):
        text_of([b"\xff"], text=True).to_list()


def test_ragged_refuses() -> None:
    with pytest.raises(RequestError, match="step 1, got 2"):
        ragged_of([[1], [2]])[::2]
    with pytest.raises(RequestError, match="length must be at least 0, got -1"):
        ragged_of([[1]]).to_padded(length=-1)


IMAGE = FieldSpec(name="image", kind="ragged", dtype="|u1", arrow_type="binary")
LABEL = FieldSpec(name="label", kind="fixed", dtype="<i4", nullable=True, arrow_type="int32")
BOX = FieldSpec(name="box", kind="fixed", dtype="<f4", shape=(2, 2), arrow_type="fixed_size_list")


def small() -> Batch:
    columns = {"image": text_of([b"abc", b"", b"de"]), "label": [1, 0, 3], "box": np.arange(12).reshape(3, 2, 2)}
    return pack([IMAGE, LABEL, BOX], [5, 0, 99], columns, {"label": [True, False, True]})


def test_a_batch_is_a_mapping_of_views() -> None:
    batch = small()
    assert list(batch) == ["image", "label", "box"]
    assert (len(batch), batch.records, batch.step, batch.epoch) == (3, 3, 3, 1)
    assert batch.ids.tolist() == [5, 0, 99]
    image, label, box = batch["image"], batch["label"], batch["box"]
    assert isinstance(image, Ragged)
    assert image.to_list() == [b"abc", b"", b"de"]
    assert isinstance(label, np.ndarray)
    assert isinstance(box, np.ndarray)
    assert label.tolist() == [1, 0, 3]
    assert label.dtype == np.dtype("<i4")
    assert box.shape == (3, 2, 2)
    assert batch.masks["label"].tolist() == [True, False, True]
    label[0] = 8  # it is ours
    assert "label" in batch
    assert repr(batch) == "<Batch step 3 of epoch 1, 3 records: image, label, box>"
    with pytest.raises(KeyError, match="no field 'x' in this batch; there are: image, label, box"):
        batch["x"]


def test_what_a_peer_cannot_mean() -> None:
    for ids in ([100, 0, 1], [-1, 0, 1]):
        with pytest.raises(RemoteProtocolError, match=r"record ids .* of 100 records"):
            pack([IMAGE], ids, {"image": text_of([b"", b"", b""])})
    with pytest.raises(RemoteProtocolError, match="mask of field 'label' holds more than 0 and 1"):
        pack([LABEL], [1], {"label": [1]}, {"label": [2]})  # type: ignore[list-item]
    bad = text_of([b"ab", b"c"])
    bad.offsets_B1[1] = 9
    with pytest.raises(RemoteProtocolError, match="offsets run"):
        pack([IMAGE], [1, 2], {"image": bad})


def test_an_empty_batch() -> None:
    batch = pack([IMAGE, BOX], [], {"image": text_of([]), "box": np.empty((0, 2, 2))})
    assert (batch.records, batch["image"].to_list(), batch["box"].shape) == (0, [], (0, 2, 2))  # type: ignore[union-attr]
    assert batch.to_arrow().num_rows == 0


def test_arrow_shares_what_it_can() -> None:
    batch = small()
    arrow = batch.to_arrow()
    assert arrow.to_pydict() == {
        "image": [b"abc", b"", b"de"],
        "label": [1, None, 3],
        "box": [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]],
    }
    image = batch["image"]
    assert isinstance(image, Ragged)
    assert arrow["image"].buffers()[2].address == image.values.__array_interface__["data"][0]


def words(count: int) -> list[str]:
    return ["one", "", "three"][:count]


ARROW_COLUMNS: list[tuple[FieldSpec, Any, pa.DataType, list[Any] | None]] = [
    (FieldSpec(name="x", kind="ragged", dtype="|u1", text=True), text_of(words(3)), pa.string(), words(3)),
    (FieldSpec(name="x", kind="ragged", dtype="|u1", text=True), text_of(words(3)), pa.string_view(), words(3)),
    (
        FieldSpec(name="x", kind="ragged", dtype="|u1", text=True),
        text_of(words(3)),
        pa.dictionary(pa.int8(), pa.string()),
        words(3),
    ),
    (FieldSpec(name="x", kind="fixed", dtype="|b1"), [True, False, True], pa.bool_(), [True, False, True]),
    (
        FieldSpec(name="x", kind="ragged", dtype="<f4"),
        ragged_of([[1, 2], [], [3]], "<f4"),
        pa.list_(pa.float32()),
        [[1, 2], [], [3]],
    ),
    (
        FieldSpec(name="x", kind="ragged", dtype="|u1", arrow_type="list<item: uint8>"),
        text_of([b"\x01", b"", b"\x02"]),
        pa.list_(pa.uint8()),
        [[1], [], [2]],
    ),
    (
        FieldSpec(name="x", kind="fixed", dtype="<f8", shape=(2,)),
        np.arange(6).reshape(3, 2),
        pa.list_(pa.float64(), 2),
        [[0, 1], [2, 3], [4, 5]],
    ),
    (
        FieldSpec(name="x", kind="fixed", dtype="|u1", shape=(2,)),
        np.frombuffer(b"abcdef", np.uint8),
        pa.binary(2),
        [b"ab", b"cd", b"ef"],
    ),
    (
        FieldSpec(name="x", kind="fixed", dtype="|u1", shape=(16,)),
        np.array([150, 0, 25, 0, -100, -1], dtype="<i8").view(np.uint8),
        pa.decimal128(5, 2),
        [decimal.Decimal("1.50"), decimal.Decimal("0.25"), decimal.Decimal("-1.00")],
    ),
    (FieldSpec(name="x", kind="fixed", dtype="<i4"), [0, 1, 2], pa.date32(), None),
    (FieldSpec(name="x", kind="fixed", dtype="<M8[us]"), [0, 1, 2], pa.timestamp("us", "UTC"), None),
    (FieldSpec(name="x", kind="fixed", dtype="<f2"), [0, 1, 2], pa.float16(), [0, 1, 2]),
    (
        FieldSpec(name="x", kind="ragged", dtype="|u1", text=True),
        text_of(['{"a":1}'] * 3),
        pa.struct([("a", pa.int8())]),
        None,
    ),
]


@pytest.mark.parametrize("nullable", [False, True])
@pytest.mark.parametrize(("field", "values", "kind", "expected"), ARROW_COLUMNS, ids=lambda item: "")
def test_arrow_has_the_types_of_the_dataset(
    field: FieldSpec, values: Any, kind: pa.DataType, expected: list[Any] | None, nullable: bool
) -> None:
    from dataclasses import replace

    mask = [True, False, True]
    schema = pa.schema([pa.field("x", kind, metadata={"k": "v"})], metadata={"m": "n"})
    masks = {"x": mask} if nullable else None
    arrow = pack([replace(field, nullable=nullable)], [1, 2, 3], {"x": values}, masks, schema).to_arrow()
    arrow.validate(full=True)
    if pa.types.is_struct(kind):
        assert arrow.schema.field("x").type == pa.large_string()  # JSON
        return
    assert arrow.schema == schema
    assert arrow.schema.metadata == {b"m": b"n"}
    assert arrow.column(0).null_count == (1 if nullable else 0)
    if expected is not None:
        found = arrow.column(0).to_pylist()
        assert found == [None if nullable and not valid else item for item, valid in zip(expected, mask, strict=True)]
