"""Choosing strategies, and the edges of planning. The model of planning is in tests/property/test_plan_model.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastio.extents import FixedExtents, IndexedExtents, Int64Array
from fastio.plan import FieldSource, Reads, choose_strategy, plan_batch, split_reads
from fastio.spec import FieldSpec

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("payload_bytes", "records", "dataset_bytes", "memory_bytes", "expected"),
    [
        # small fields stay in memory whatever else is read
        (64 * MIB, MIB, 900 * GIB, GIB, "mapped"),
        (64 * MIB, 64 * MIB, 900 * GIB, 0, "mapped"),
        # large records are read, however few and whatever fits
        (64 * MIB, 64, 64 * MIB, 64 * GIB, "extent"),
        (16 * KIB, 1, 16 * KIB, GIB, "extent"),
        (16 * KIB - 1, 1, 16 * KIB, GIB, "mapped"),
        (16 * GIB, MIB, 16 * GIB, 64 * GIB, "extent"),
        # small records of a large field: mapped if everything fits
        (64 * MIB + 1, MIB, GIB, GIB, "mapped"),
        (64 * MIB + 1, MIB, GIB + 1, GIB, "extent"),
        # nothing at all
        (0, 0, 0, 0, "mapped"),
    ],
)
def test_strategies(payload_bytes: int, records: int, dataset_bytes: int, memory_bytes: int, expected: str) -> None:
    choice = choose_strategy(
        payload_bytes=payload_bytes, records=records, dataset_bytes=dataset_bytes, memory_bytes=memory_bytes
    )
    assert choice.strategy == expected
    assert choice.reason


@given(payload=st.integers(0, 2**50), records=st.integers(0, 2**40), other=st.integers(0, 2**50))
def test_more_memory_never_turns_mapping_into_reading(payload: int, records: int, other: int) -> None:
    chosen = [
        choose_strategy(
            payload_bytes=payload, records=records, dataset_bytes=payload + other, memory_bytes=memory
        ).strategy
        for memory in (0, GIB, 2**62)
    ]
    assert chosen == sorted(chosen)  # "extent" comes before "mapped"


def no_bits(*_: object) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    raise AssertionError("nothing here has a bit")


def ids(*values: int) -> Int64Array:
    return np.array(values, dtype=np.int64)


def test_a_batch_of_a_billion_records_dataset_costs_what_the_batch_is() -> None:
    table = FixedExtents(ids(0, 10**9), np.zeros(1, np.int32), ids(0), 1 << 20, 1 << 20)
    field = FieldSpec(name="x", kind="fixed", dtype="|u1", shape=(1 << 20,))
    source = FieldSource(field=field, strategy="extent", table=table)
    plan = plan_batch([source], ids(999_999_999, 1), step=0, epoch=0, read_bits=no_bits)
    assert plan.reads[0].offset_R.tolist() == [999_999_999 << 20, 1 << 20]
    assert plan.reads[0].dest_R.tolist() == [64, 64 + (1 << 20)]


def test_values_of_4_gib_in_one_batch_do_not_overflow() -> None:
    lengths = np.array([2**32 - 1, 2**32 - 1], dtype=np.uint32)
    table = IndexedExtents(ids(0, 2**40), lengths, 2**33 - 2)
    source = FieldSource(field=FieldSpec(name="x", kind="ragged", dtype="|u1"), strategy="extent", table=table)
    plan = plan_batch([source], ids(1, 0), step=0, epoch=0, read_bits=no_bits)
    assert plan.ragged_bytes == (2**33 - 2,)
    pieces = split_reads(plan.reads[0], max_reads=32, max_bytes=4 * MIB)
    assert sum(int(piece.length_R.sum()) for piece in pieces) == 2**33 - 2
    assert max(len(piece) for piece in pieces) <= 2, "a piece holds a piece of a record, and may begin the next"


def test_nothing_is_read_for_an_empty_batch_or_for_empty_records() -> None:
    ragged = FieldSource(
        field=FieldSpec(name="x", kind="ragged", dtype="<f4"),
        strategy="mapped",
        table=IndexedExtents(ids(7), ids(0), 0),
    )
    for asked in (ids(), ids(0, 0, 0)):
        plan = plan_batch([ragged], asked, step=0, epoch=0, read_bits=no_bits)
        assert plan.reads == ()
        assert plan.ragged_bytes == (0,)


def test_no_reads_make_no_pieces() -> None:
    nothing = Reads(0, "extent", None, np.zeros(0, np.int32), ids(), ids(), ids(), ids())
    assert split_reads(nothing, max_reads=1, max_bytes=1) == []
