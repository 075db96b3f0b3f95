"""Planning against the slow way: a plan, executed byte by byte on files held in memory, gives the batch that records
put together one after another give."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from fastio.extents import BitTable, Extents, ExtentTable, IndexedExtents, Int64Array, concat_extents
from fastio.layout import FieldArrays, view_batch
from fastio.plan import BatchPlan, FieldSource, Reads, Strategy, plan_batch, split_reads
from fastio.spec import FieldSpec

RECORDS = 6
ITEMS = {"|u1": 1, "<i4": 4, "<f8": 8}


@dataclass(frozen=True)
class Made:
    """A field of RECORDS records in two files, and its values in plain Python (None: null)."""

    source: FieldSource
    rows: list[bytes | None]
    masks: list[npt.NDArray[np.bool_]]


@st.composite
def made_fields(draw: st.DrawFn, files: list[bytearray]) -> Made:
    dtype = draw(st.sampled_from(sorted(ITEMS)))
    ragged = draw(st.booleans())
    shape = () if ragged else draw(st.sampled_from([(), (2,), (3, 0)]))
    width = ITEMS[dtype] * int(np.prod(shape, dtype=np.int64))
    lengths = [draw(st.integers(0, 5)) * ITEMS[dtype] if ragged else width for _ in range(RECORDS)]
    rows = [draw(st.binary(min_size=n, max_size=n)) for n in lengths]
    masks = [
        np.array(draw(st.lists(st.booleans(), min_size=RECORDS, max_size=RECORDS)))
        for _ in range(draw(st.integers(0, 2)))
    ]
    name = f"f{draw(st.integers(0, 10**9))}"
    nullable = bool(masks) or draw(st.booleans())
    field = FieldSpec(name=name, kind="ragged" if ragged else "fixed", dtype=dtype, shape=shape, nullable=nullable)
    strategy: Strategy = draw(st.sampled_from(["extent", "mapped"]))
    if draw(st.integers(0, 3)) == 0:
        return Made(FieldSource(field=field, strategy="decoded", take=_take(field, rows)), list(rows), [])
    source = FieldSource(field=field, strategy=strategy, table=_table(files, rows), validity=_bits(masks))
    present = np.logical_and.reduce([np.ones(RECORDS, dtype=np.bool_), *masks])
    return Made(source, [row if there else None for row, there in zip(rows, present, strict=True)], masks)


def _table(files: list[bytearray], rows: list[bytes]) -> ExtentTable:
    tables: list[ExtentTable] = []
    for file, part in enumerate((rows[:2], rows[2:])):
        offsets = []
        for row in part:
            files[file] += b"?"
            offsets.append(len(files[file]))
            files[file] += row
        lengths = np.array([len(row) for row in part], dtype=np.int64)
        tables.append(IndexedExtents(np.array(offsets, dtype=np.int64), lengths, int(lengths.sum()), file))
    return concat_extents(tables)


def _bits(masks: list[npt.NDArray[np.bool_]]) -> tuple[BitTable, ...]:
    """One table per mask; which mask it is stands where the base would."""
    one = np.array([0, RECORDS], dtype=np.int64), np.zeros(1, dtype=np.int32)
    return tuple(
        BitTable(*one, np.array([number], dtype=np.int64), np.zeros(1, np.int64)) for number in range(len(masks))
    )


def _take(field: FieldSpec, rows: list[bytes]) -> Any:
    def take(ids_B: Int64Array) -> FieldArrays:
        picked = [rows[i] for i in ids_B]
        values = np.frombuffer(b"".join(picked), dtype=field.dtype)
        if field.kind == "fixed":
            return FieldArrays(values.reshape(len(ids_B), *field.shape), None, None)
        ends = np.cumsum([0, *map(len, picked)]) // values.dtype.itemsize
        return FieldArrays(values, ends.astype(np.int64), None)

    return take


def execute(plan: BatchPlan, files: list[bytearray]) -> npt.NDArray[np.uint8]:
    payload = bytearray(b"\xdd" * plan.layout.payload_bytes)
    for start, array in plan.known:
        data = array.tobytes()
        payload[start : start + len(data)] = data
    for reads in plan.reads:
        run(reads, files, payload)
    assert len(payload) == plan.layout.payload_bytes, "something was written behind the end"
    return np.frombuffer(payload, dtype=np.uint8)


def run(reads: Reads, files: list[bytearray], payload: bytearray) -> None:
    rows = zip(reads.file_R, reads.offset_R, reads.length_R, reads.dest_R, strict=True)
    for file, offset, length, dest in rows:
        payload[dest : dest + length] = files[file][offset : offset + length]


@given(data=st.data())
def test_a_plan_makes_the_batch_that_records_make_one_by_one(data: st.DataObject) -> None:
    files = [bytearray(b"12345"), bytearray()]
    made = data.draw(st.lists(made_fields(files), max_size=3))
    ids = data.draw(st.lists(st.integers(0, RECORDS - 1), max_size=8))
    masks = {id(bits): mask for one in made for bits, mask in zip(one.source.validity, one.masks, strict=True)}

    def read_bits(bits: BitTable, ids_B: Int64Array) -> npt.NDArray[np.bool_]:
        return masks[id(bits)][ids_B]

    ids_B = np.array(ids, dtype=np.int64)
    plan = plan_batch([one.source for one in made], ids_B, step=4, epoch=2, read_bits=read_bits)
    assert (plan.step, plan.epoch, plan.ids_B.tolist()) == (4, 2, ids)
    payload = execute(plan, files)
    assert not any(payload[start:stop].any() for start, stop in plan.layout.gaps)
    fields = [one.source.field for one in made]
    found_ids, arrays = view_batch(fields, plan.layout, payload)
    assert found_ids.tolist() == ids
    ragged = [one for one in made if one.source.field.kind == "ragged"]
    assert plan.ragged_bytes == tuple(sum(len(one.rows[i] or b"") for i in ids) for one in ragged)
    for one, found in zip(made, arrays, strict=True):
        _compare(one, ids, found)


def _compare(one: Made, ids: list[int], found: FieldArrays) -> None:
    field = one.source.field
    if field.nullable:
        assert found.mask_B is not None
        assert found.mask_B.tolist() == [one.rows[i] is not None for i in ids]
    if found.offsets_B1 is None:
        width = ITEMS[field.dtype] * int(np.prod(field.shape, dtype=np.int64))
        wanted = b"".join(one.rows[i] or bytes(width) for i in ids)
    else:
        wanted = b"".join(one.rows[i] or b"" for i in ids)
        ends = np.cumsum([0, *(len(one.rows[i] or b"") // ITEMS[field.dtype] for i in ids)])
        assert found.offsets_B1.tolist() == ends.tolist()
    assert found.values.tobytes() == wanted


@st.composite
def some_reads(draw: st.DrawFn) -> Reads:
    lengths = np.array(draw(st.lists(st.integers(1, 40), max_size=12)), dtype=np.int64)
    gaps = np.array(draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths))), dtype=np.int64)
    count = len(lengths)
    extents = Extents(
        np.array(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), dtype=np.int32),
        np.array(draw(st.lists(st.integers(0, 2**40), min_size=count, max_size=count)), dtype=np.int64),
        lengths,
    )
    dest_R = np.cumsum(lengths + gaps) - lengths
    row_R = np.flatnonzero(np.ones(count)) * 2
    return Reads(1, "extent", 4, extents.file_B, extents.offset_B, lengths, dest_R, row_R)


@given(reads=some_reads(), max_reads=st.integers(1, 5), max_bytes=st.integers(1, 60))
def test_pieces_read_the_same_bytes_to_the_same_places(reads: Reads, max_reads: int, max_bytes: int) -> None:
    pieces = split_reads(reads, max_reads=max_reads, max_bytes=max_bytes)
    for piece in pieces:
        assert 1 <= len(piece) <= max_reads
        assert int(piece.length_R.sum()) <= max_bytes
        assert (piece.length_R > 0).all()
        assert (piece.field, piece.strategy) == (1, "extent")
        assert piece.fixed_width in (None, 4)
    assert [byte for piece in pieces for byte in bytes_of(piece)] == list(bytes_of(reads))
    if len(reads) and int(reads.length_R.max()) <= max_bytes:
        assert all(piece.fixed_width == 4 for piece in pieces), "nothing was cut"
        _greedy(pieces, max_reads, max_bytes)


def _greedy(pieces: list[Reads], max_reads: int, max_bytes: int) -> None:
    """No piece could have taken the next one's first read."""
    for piece, after in pairwise(pieces):
        assert len(piece) == max_reads or int(piece.length_R.sum() + after.length_R[0]) > max_bytes


def bytes_of(reads: Reads) -> list[tuple[int, int, int, int]]:
    """(file, offset, destination, row) of every single byte."""
    rows = zip(reads.file_R, reads.offset_R, reads.length_R, reads.dest_R, reads.row_R, strict=True)
    return [(f, o + k, d + k, r) for f, o, n, d, r in rows for k in range(n)]
