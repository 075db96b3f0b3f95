"""The reader end to end over real files: every kind of column, every strategy, against plain Python reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastio.plan import Strategy
from fastio.reader import Reader
from fastio.spec import OrderSpec, StreamSpec
from fastio.testing.datasets import write_dataset
from tests.unit.reader_support import check, every_kind, read_all, use_strategy


@pytest.fixture
def reader() -> Iterator[Reader]:
    one = Reader(threads=2, memory_bytes=1 << 30)
    yield one
    one.close()


@pytest.mark.parametrize("strategy", ["extent", "mapped"])
@pytest.mark.parametrize("late_reads", [False, True])
@pytest.mark.parametrize("shard_records", [[97], [1, 0, 50, 13, 33]])
def test_every_kind_of_column_arrives_as_it_was_written(
    tmp_path: Path,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
    strategy: Strategy,
    late_reads: bool,
    shard_records: list[int],
) -> None:
    use_strategy(monkeypatch, strategy)
    columns = every_kind(97)
    dataset = write_dataset(tmp_path, columns, shard_records)
    spec = StreamSpec(dataset="d", batch_size=10, order=OrderSpec(seed=3), epoch=2)
    check(read_all(reader, dataset, spec, late_reads=late_reads), dataset, columns, spec)
