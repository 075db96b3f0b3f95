"""Where records lie: each table against the arithmetic of its docstring, one record at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastio.extents import (
    BitTable,
    ConcatExtents,
    Extents,
    ExtentTable,
    FixedExtents,
    IndexedExtents,
    concat_bits,
    concat_extents,
)

Triple = tuple[int, int, int]


def triples(extents: Extents) -> list[Triple]:
    assert extents.file_B.dtype == np.int32
    assert extents.offset_B.dtype == extents.length_B.dtype == np.int64
    return list(zip(extents.file_B.tolist(), extents.offset_B.tolist(), extents.length_B.tolist(), strict=True))


def ids(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def fixed(runs: list[tuple[int, int, int]], width: int = 4, stride: int = 10) -> FixedExtents:
    """Runs of (records, file, base)."""
    counts, files, bases = zip(*runs, strict=True) if runs else ((), (), ())
    start_R1 = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return FixedExtents(start_R1, np.array(files, np.int32), np.array(bases, np.int64), width, stride)


def model_fixed(runs: list[tuple[int, int, int]], width: int = 4, stride: int = 10) -> list[Triple]:
    return [(file, base + k * stride, width) for records, file, base in runs for k in range(records)]


def indexed(rows: list[tuple[int, int]], file: int = 0) -> IndexedExtents:
    offsets, lengths = zip(*rows, strict=True) if rows else ((), ())
    return IndexedExtents(np.array(offsets, np.uint64), np.array(lengths, np.uint32), sum(lengths), file)


RUNS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 10**12)), max_size=5)
ROWS = st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**32 - 1)), max_size=5)


@given(runs=RUNS, data=st.data())
def test_fixed_records_lie_at_base_plus_stride(runs: list[tuple[int, int, int]], data: st.DataObject) -> None:
    table, model = fixed(runs), model_fixed(runs)
    assert table.records == len(model)
    assert table.payload_bytes == 4 * len(model)
    asked = data.draw(st.lists(st.integers(0, len(model) - 1), max_size=9) if model else st.just([]))
    assert triples(table.lookup(ids(*asked))) == [model[i] for i in asked]
    assert triples(table.shifted(7).lookup(ids(*asked))) == [(f + 7, o, n) for f, o, n in (model[i] for i in asked)]


@given(
    parts=st.lists(st.one_of(RUNS.map(lambda runs: ("fixed", runs)), ROWS.map(lambda rows: ("rows", rows))), max_size=5)
)
def test_concatenated_tables_answer_as_their_parts_in_turn(parts: list[tuple[str, list]]) -> None:  # type: ignore[type-arg]
    tables: list[ExtentTable] = []
    model: list[Triple] = []
    for kind, rows in parts:
        if kind == "fixed":
            tables.append(fixed(rows))
            model += model_fixed(rows)
        else:
            tables.append(indexed(rows, file=len(tables)))
            model += [(len(tables) - 1, offset, length) for offset, length in rows]
    if not tables:
        return
    table = concat_extents(tables)
    assert table.records == len(model)
    assert table.payload_bytes == sum(length for _, _, length in model)
    backwards = np.arange(len(model), dtype=np.int64)[::-1]
    assert triples(table.lookup(backwards)) == model[::-1]
    assert triples(table.lookup(np.repeat(backwards, 2))) == [row for row in model[::-1] for _ in range(2)]
    assert triples(table.shifted(3).lookup(backwards)) == [(f + 3, o, n) for f, o, n in model[::-1]]
    assert triples(table.lookup(ids())) == []


def test_fixed_tables_of_one_shape_merge_and_others_do_not() -> None:
    merged = concat_extents([fixed([(3, 0, 0)]), fixed([(0, 1, 0), (2, 1, 50)])])
    assert isinstance(merged, FixedExtents)
    assert merged.width == 4
    mixed = concat_extents([fixed([(3, 0, 0)]), fixed([(3, 1, 0)], stride=11)])
    assert isinstance(mixed, ConcatExtents)
    assert mixed.width == 4
    assert concat_extents([fixed([(3, 0, 0)]), fixed([(3, 1, 0)], width=5)]).width is None
    assert concat_extents([fixed([(3, 0, 0)]), indexed([(0, 4)])]).width is None


def test_memory_of_a_billion_fixed_records_is_that_of_their_runs() -> None:
    table = fixed([(10**9, 2, 64)], width=110_000, stride=110_000)
    assert triples(table.lookup(ids(999_999_999, 0))) == [(2, 64 + 999_999_999 * 110_000, 110_000), (2, 64, 110_000)]
    assert table.payload_bytes == 110_000 * 10**9


@given(
    runs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(-1, 3), st.integers(0, 20)), max_size=4),
    split=st.integers(0, 4),
    content=st.binary(min_size=16, max_size=16),
)
def test_bits_are_those_of_arrow(runs: list[tuple[int, int, int, int]], split: int, content: bytes) -> None:
    def table(part: list[tuple[int, int, int, int]]) -> BitTable:
        counts, files, bases, firsts = zip(*part, strict=True) if part else ((), (), (), ())
        start_R1 = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return BitTable(start_R1, np.array(files, np.int32), np.array(bases, np.int64), np.array(firsts, np.int64))

    model: list[tuple[int, bool | None]] = []  # (file, the bit or None where there is no bitmap)
    for records, file, base, first in runs:
        for k in range(records):
            bit = first + k
            model.append((file, None if base < 0 else bool(content[base + bit // 8] >> (bit % 8) & 1)))

    for bits in (table(runs), concat_bits([table(runs[:split]), table(runs[split:])])):
        asked = np.arange(bits.records, dtype=np.int64)[::-1]
        found, bit_B = bits.lookup(asked), bits.bit(asked)
        assert bits.records == len(model)
        for (file, offset, length), bit, wanted in zip(triples(found), bit_B.tolist(), model[::-1], strict=True):
            assert length == (0 if wanted[1] is None else 1)
            if wanted[1] is not None:
                assert (file, bool(content[offset] >> bit & 1)) == wanted
    shifted = table(runs).shifted(5)
    assert shifted.lookup(asked).file_B.tolist() == (found.file_B + 5).tolist()


@pytest.mark.parametrize("records", [1, 8, 9])
def test_bits_take_an_eighth_of_a_byte(records: int) -> None:
    table = BitTable(ids(0, records), np.zeros(1, np.int32), ids(0), ids(0))
    assert table.payload_bytes == (records + 7) // 8
    assert table.width == 1
