"""How a batch lies in memory: the layout against its drawing, the view against what was written, lies refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastio.errors import RemoteProtocolError
from fastio.layout import ALIGNMENT_BYTES, batch_layout, fixed_bytes, view_batch
from fastio.spec import FieldSpec

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
DTYPES = st.sampled_from(["|u1", "<i2", "<f4", "<f8", "|b1", "|V5"])


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[FieldSpec], int, list[int]]:
    fields, sizes = [], []
    for number in range(draw(st.integers(0, 4))):
        dtype, nullable = draw(DTYPES), draw(st.booleans())
        if draw(st.booleans()):
            fields.append(FieldSpec(name=f"f{number}", kind="ragged", dtype=dtype, nullable=nullable))
            sizes.append(np.dtype(dtype).itemsize * draw(st.integers(0, 300)))
        else:
            shape = draw(SHAPES)
            fields.append(FieldSpec(name=f"f{number}", kind="fixed", dtype=dtype, shape=shape, nullable=nullable))
    return fields, draw(st.integers(0, 200)), sizes


def model(fields: list[FieldSpec], records: int, sizes: list[int]) -> list[tuple[str, int]]:
    """The buffers of a payload, in order: (which, bytes)."""
    remaining = list(sizes)
    buffers = [("ids", 8 * records)]
    for field in fields:
        if field.nullable:
            buffers.append((f"{field.name} mask", records))
        if field.kind == "ragged":
            buffers.append((f"{field.name} offsets", 8 * (records + 1)))
            buffers.append((f"{field.name} values", remaining.pop(0)))
        else:
            items = 1
            for extent in field.shape:
                items *= extent
            buffers.append((f"{field.name} values", records * items * np.dtype(field.dtype).itemsize))
    return buffers


@given(batch=batches())
def test_buffers_follow_one_another_at_multiples_of_64(batch: tuple[list[FieldSpec], int, list[int]]) -> None:
    fields, records, sizes = batch
    layout = batch_layout(fields, records, sizes)
    places: list[int | None] = [0]
    for field, part in zip(fields, layout.fields, strict=True):
        places += [part.mask_start] if field.nullable else []
        places += [part.offsets_start] if field.kind == "ragged" else []
        places.append(part.values_start)
        assert (part.mask_start is None, part.offsets_start is None) == (not field.nullable, field.kind == "fixed")
    used = np.zeros(layout.payload_bytes, dtype=np.int64)
    position = 0
    for (name, length), place in zip(model(fields, records, sizes), places, strict=True):
        position = (position + 63) // 64 * 64
        assert place == position, name
        used[position : position + length] += 1
        position += length
    for start, stop in layout.gaps:
        assert 0 < stop - start < ALIGNMENT_BYTES
        used[start:stop] += 1
    assert layout.payload_bytes == (position + 63) // 64 * 64
    assert (used == 1).all(), "every byte belongs to one buffer or one gap"


@given(batch=batches(), seed=st.integers(0, 99))
def test_a_view_shows_what_was_written_and_copies_nothing(
    batch: tuple[list[FieldSpec], int, list[int]], seed: int
) -> None:
    fields, records, sizes = batch
    rng = np.random.default_rng(seed)
    layout = batch_layout(fields, records, sizes)
    payload = rng.integers(0, 2, layout.payload_bytes, dtype=np.uint8)
    wanted = []
    for field, part in zip(fields, layout.fields, strict=True):
        if part.offsets_start is not None:
            items = part.values_bytes // np.dtype(field.dtype).itemsize
            if not records and items:
                return  # values of no record: refused, as below
            cuts = np.sort(rng.integers(0, items + 1, max(records - 1, 0)))
            offsets = np.array([0, *cuts, items] if records else [0], dtype="<i8")
            payload[part.offsets_start : part.offsets_start + 8 * (records + 1)] = offsets.view(np.uint8)
            wanted.append(offsets.tolist())
        else:
            wanted.append(None)
    ids_B, arrays = view_batch(fields, layout, payload)
    assert ids_B.tobytes() == payload[: 8 * records].tobytes()
    for field, part, found, offsets in zip(fields, layout.fields, arrays, wanted, strict=True):
        assert found.values.dtype == np.dtype(field.dtype)
        assert found.values.tobytes() == payload[part.values_start : part.values_start + part.values_bytes].tobytes()
        assert (None if found.offsets_B1 is None else found.offsets_B1.tolist()) == offsets
        assert (found.mask_B is not None) == field.nullable
        if field.kind == "fixed":
            assert found.values.shape == (records, *field.shape)
        for view in (found.values, found.offsets_B1, found.mask_B):
            assert view is None or not view.nbytes or np.shares_memory(view, payload)


TEXT = FieldSpec(name="text", kind="ragged", dtype="|u1")
BIGGEST = 2**63 - 1


@pytest.mark.parametrize(
    "offsets",
    [
        [1, 2, 5],  # does not begin at 0
        [0, 2, 4],  # ends before the values do
        [0, 2, 6],  # ends behind them
        [0, 6, 5],  # descends
        [0, -1, 5],
        [0, BIGGEST, 5],
        # each difference overflows into a positive number
        [0, BIGGEST, -2, 5],
    ],
)
def test_offsets_that_do_not_fit_their_values_are_refused(offsets: list[int]) -> None:
    layout = batch_layout([TEXT], len(offsets) - 1, [5])
    payload = np.zeros(layout.payload_bytes, dtype=np.uint8)
    start = layout.fields[0].offsets_start
    assert start is not None
    payload[start : start + 8 * len(offsets)] = np.array(offsets, dtype="<i8").view(np.uint8)
    with pytest.raises(RemoteProtocolError, match=r"'text'.*over 5 values"):
        view_batch([TEXT], layout, payload)


def test_an_empty_batch_of_no_fields_takes_nothing() -> None:
    layout = batch_layout([], 0, [])
    assert (layout.payload_bytes, layout.gaps, layout.fields) == (0, (), ())
    ids_B, arrays = view_batch([], layout, np.zeros(0, dtype=np.uint8))
    assert ids_B.tolist() == []
    assert arrays == ()


def test_a_record_that_holds_nothing_has_no_bytes() -> None:
    assert fixed_bytes(FieldSpec(name="x", kind="fixed", dtype="<f4", shape=(3, 0))) == 0
    assert fixed_bytes(FieldSpec(name="x", kind="fixed", dtype="<f4")) == 4
