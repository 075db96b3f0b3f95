"""The reader end to end over real files: every kind of column, every strategy, against plain Python reads."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastio import pagecache
from fastio.buffers import Region, Ring
from fastio.dataset import Dataset
from fastio.errors import ErrorKind, RequestError
from fastio.files import FileSpan
from fastio.plan import Strategy
from fastio.reader import Reader, ReadStream, choose_strategies, pieces
from fastio.spec import OrderSpec, StreamSpec
from fastio.testing.datasets import SyntheticColumn, write_dataset
from tests.unit.reader_support import (
    Consumer,
    check,
    every_kind,
    make_cold,
    read_all,
    resident,
    use_strategy,
)

PAGE = os.sysconf("SC_PAGE_SIZE")
KIB = 1 << 10


@pytest.fixture
def reader() -> Iterator[Reader]:
    one = Reader(threads=2, memory_bytes=1 << 30)
    yield one
    one.close()


def large_records(records: int, *, size: int = 40 * KIB, seed: int = 1) -> dict[str, SyntheticColumn]:
    rng = np.random.default_rng(seed)
    values = [rng.integers(0, 256, size + int(extra), dtype=np.uint8) for extra in rng.integers(0, 5000, records)]
    return {"image": SyntheticColumn(storage="ragged", values=values)}


def spec_of(batch_size: int, **options: Any) -> StreamSpec:
    return StreamSpec(dataset="d", batch_size=batch_size, **options)


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
    spec = spec_of(10, order=OrderSpec(seed=3), epoch=2)
    check(read_all(reader, dataset, spec, late_reads=late_reads), dataset, columns, spec)


@pytest.mark.parametrize("name", list(every_kind(1)))
@pytest.mark.parametrize("records", [1, 5])
def test_each_kind_alone_in_batches_of_one(tmp_path: Path, reader: Reader, name: str, records: int) -> None:
    columns = every_kind(records, seed=8)
    dataset = write_dataset(tmp_path, columns, [records])
    spec = spec_of(1, fields=(name,))
    check(read_all(reader, dataset, spec), dataset, columns, spec)


@pytest.mark.parametrize("strategy", ["extent", "mapped"])
@pytest.mark.parametrize("present", [False, True])
def test_all_null_and_all_present(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, strategy: Strategy, present: bool
) -> None:
    use_strategy(monkeypatch, strategy)
    columns = {
        name: SyntheticColumn(
            storage=column.storage, values=column.values, dtype=column.dtype, mask_N=np.full(20, present)
        )
        for name, column in every_kind(20).items()
    }
    dataset = write_dataset(tmp_path, columns, [12, 8])
    spec = spec_of(7)
    check(read_all(reader, dataset, spec), dataset, columns, spec)


def test_nulls_are_zeros_in_memory_that_held_other_batches(tmp_path: Path, reader: Reader) -> None:
    columns = every_kind(60, seed=5)
    dataset = write_dataset(tmp_path, columns, [60])
    for epoch in range(3):  # rings, and their contents, pass from stream to stream
        spec = spec_of(6, epoch=epoch, window_bytes=16 * KIB)
        check(read_all(reader, dataset, spec), dataset, columns, spec)


def test_records_without_bytes(tmp_path: Path, reader: Reader) -> None:
    columns = {
        "nothing": SyntheticColumn(storage="fixed", values=np.zeros((9, 0), dtype="<f4")),
        "blank": SyntheticColumn(storage="ragged", values=[np.zeros(0, dtype=np.uint8)] * 9),
    }
    dataset = write_dataset(tmp_path, columns, [4, 5])
    spec = spec_of(4)
    check(read_all(reader, dataset, spec), dataset, columns, spec)


def test_ranks_that_get_nothing_get_an_empty_batch(tmp_path: Path, reader: Reader) -> None:
    columns = every_kind(11)
    dataset = write_dataset(tmp_path, columns, [5, 6])
    for rank in range(4):
        spec = spec_of(3, rank=rank, world_size=4, start_records=9)
        received = read_all(reader, dataset, spec)
        check(received, dataset, columns, spec)
        assert [batch.descriptor.records for batch in received] == [int(rank < 2)]


def test_a_stream_with_no_steps_left_is_finished_from_the_start(tmp_path: Path, reader: Reader) -> None:
    dataset = write_dataset(tmp_path, every_kind(10), [10])
    for options in ({"start_records": 10}, {"first_step": 5}, {"workers": 9, "worker": 8}):
        stream = reader.open_stream(dataset, spec_of(2, **options), lambda: None)
        assert stream.finished
        assert stream.take() is None
        stream.close()


def test_shards_records_and_batches_beyond_one_piece(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_PIECE_BYTES", 1000)
    columns = large_records(12, size=3000)
    dataset = write_dataset(tmp_path, columns, [3] * 4)
    spec = spec_of(5)
    for strategy in ("extent", "mapped"):
        use_strategy(monkeypatch, strategy)
        check(read_all(reader, dataset, spec), dataset, columns, spec)


def test_more_small_records_than_one_gather_takes(tmp_path: Path, reader: Reader) -> None:
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 256, length, dtype=np.uint8) for length in rng.integers(0, 6, 3000)]
    columns = {"word": SyntheticColumn(storage="ragged", values=values)}
    dataset = write_dataset(tmp_path, columns, [1700, 1300])
    spec = spec_of(3000)
    check(read_all(reader, dataset, spec), dataset, columns, spec)


# Cold and warm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["extent", "mapped"])
@pytest.mark.parametrize("late_reads", [False, True])
def test_cold_files_are_read_right_and_counted_as_waited_for(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, strategy: Strategy, late_reads: bool
) -> None:
    use_strategy(monkeypatch, strategy)
    columns = large_records(40)
    dataset = write_dataset(tmp_path, columns, [20, 20])
    make_cold(dataset)
    consumer = Consumer()
    spec = spec_of(10)
    stream = reader.open_stream(dataset, spec, consumer.woken.set, late_reads=late_reads)
    check(list(consumer.drain(stream)), dataset, columns, spec)
    statistics = stream.statistics()
    stream.close()
    assert (statistics.batches, statistics.records, statistics.reads) == (4, 40, 40)
    assert statistics.waited_reads > 20, "nearly all: a page may hold the end of one record and the start of another"


def test_a_cold_record_brings_in_its_own_pages_and_no_others(tmp_path: Path, reader: Reader) -> None:
    columns = large_records(100, size=20 * KIB)
    dataset = write_dataset(tmp_path, columns, [100])
    make_cold(dataset)
    spec = spec_of(1, start_records=90)
    check(read_all(reader, dataset, spec), dataset, columns, spec)
    assert resident(dataset.files[0].path) <= 10 * (25 * KIB + 2 * PAGE)


def test_warm_files_are_not_waited_for(tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = large_records(20)
    dataset = write_dataset(tmp_path, columns, [20])
    make_cold(dataset)
    dataset.files[0].path.read_bytes()
    for strategy in ("extent", "mapped"):
        use_strategy(monkeypatch, strategy)
        consumer = Consumer()
        stream = reader.open_stream(dataset, spec_of(5), consumer.woken.set)
        check(list(consumer.drain(stream)), dataset, columns, spec_of(5))
        assert stream.statistics().waited_reads == 0
        stream.close()


def test_an_idle_reader_can_be_made_to_map_nothing(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_strategy(monkeypatch, "mapped")
    columns = large_records(4)
    dataset = write_dataset(tmp_path, columns, [4])
    read_all(reader, dataset, spec_of(2))
    reader.unmap_idle()
    make_cold(dataset)  # mapped pages would stay
    check(read_all(reader, dataset, spec_of(2)), dataset, columns, spec_of(2))


# What the system can't do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_without_nowait_reads_wait(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, code: int, cold: bool
) -> None:
    real = os.preadv
    asked = []

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            asked.append(fd)
            raise OSError(code, os.strerror(code))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    columns = large_records(30)
    dataset = write_dataset(tmp_path, columns, [30])
    if cold:
        make_cold(dataset)
    check(read_all(reader, dataset, spec_of(10)), dataset, columns, spec_of(10))
    assert 1 <= len(asked) <= 2, "once per file is enough to know (twice, if two threads ask at once)"


@pytest.mark.parametrize("strategy", ["extent", "mapped"])
@pytest.mark.parametrize("late_reads", [False, True])
def test_without_cachestat_everything_is_prefetched(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, strategy: Strategy, late_reads: bool
) -> None:
    monkeypatch.setattr(pagecache, "resident_bytes", lambda *_: None)
    use_strategy(monkeypatch, strategy)
    columns = every_kind(50) | large_records(50, size=17 * KIB)
    dataset = write_dataset(tmp_path, columns, [25, 25])
    spec = spec_of(8)
    check(read_all(reader, dataset, spec, late_reads=late_reads), dataset, columns, spec)


@pytest.mark.parametrize("late_reads", [False, True])
def test_short_reads_are_continued(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, late_reads: bool
) -> None:
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        return real(fd, [buffers[0][:7001]], offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    columns = large_records(12)
    dataset = write_dataset(tmp_path, columns, [12])
    check(read_all(reader, dataset, spec_of(5), late_reads=late_reads), dataset, columns, spec_of(5))


# The window ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late_reads", [False, True])
def test_a_window_of_one_batch_is_enough_and_never_exceeded(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, late_reads: bool
) -> None:
    columns = {"x": SyntheticColumn(storage="fixed", values=np.arange(2 * 1024 * 60).reshape(60, -1))}
    dataset = write_dataset(tmp_path, columns, [60])
    batch_bytes = 64 + 2 * 16 * KIB
    leased = _watch_leases(monkeypatch)
    spec = spec_of(2, window_bytes=batch_bytes)
    check(read_all(reader, dataset, spec, late_reads=late_reads), dataset, columns, spec)
    assert set(leased) == {-(-batch_bytes // PAGE) * PAGE}


def test_a_window_of_many_batches_is_used_and_never_exceeded(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = large_records(200, size=9 * KIB)
    dataset = write_dataset(tmp_path, columns, [200])
    window = 200 * KIB
    # What an earlier stream leaves behind is up to twice as large; the window must not be.
    read_all(reader, dataset, spec_of(3, window_bytes=2 * window))
    leased = _watch_leases(monkeypatch)
    spec = spec_of(3, window_bytes=window)
    check(read_all(reader, dataset, spec), dataset, columns, spec)
    assert window / 2 < max(leased) <= window


def _watch_leases(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    leased: list[int] = []
    real = Ring.allocate

    def allocate(ring: Ring, length_bytes: int) -> Region | None:
        region = real(ring, length_bytes)
        leased.append(ring.leased_bytes)
        return region

    monkeypatch.setattr(Ring, "allocate", allocate)
    return leased


def test_batches_that_are_held_stop_the_planning_and_keep_their_bytes(tmp_path: Path, reader: Reader) -> None:
    columns = large_records(60, size=10 * KIB)
    dataset = write_dataset(tmp_path, columns, [60])
    consumer = Consumer()
    spec = spec_of(2, order=OrderSpec(kind="sequential"), window_bytes=128 * KIB)
    stream = reader.open_stream(dataset, spec, consumer.woken.set)
    held = [consumer.take(stream) for _ in range(4)]
    copies = [b"".join(map(bytes, batch.buffers)) for batch in held]
    assert stream.statistics().leased_bytes <= 128 * KIB
    for _ in range(3):  # out of order, the oldest last
        held.pop(1).release()
        copies.pop(1)
        assert [b"".join(map(bytes, batch.buffers)) for batch in held] == copies
    held[0].release()
    steps = [batch.descriptor.step for batch in consumer.drain(stream)]
    assert steps == list(range(4, 30))
    stream.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_record_beyond_the_window_is_named_and_what_comes_before_it_delivered(
    tmp_path: Path, reader: Reader, workers: int
) -> None:
    values = [np.full(100, number, dtype=np.uint8) for number in range(20)]
    values[13] = np.zeros(50 * KIB, dtype=np.uint8)
    columns = {"text": SyntheticColumn(storage="ragged", values=values)}
    dataset = write_dataset(tmp_path, columns, [8, 12])
    consumer = Consumer()
    spec = spec_of(1, order=OrderSpec(kind="sequential"), window_bytes=40 * KIB, workers=workers, worker=13 % workers)
    stream = reader.open_stream(dataset, spec, consumer.woken.set)
    for step in range(13 % workers, 13, workers):
        batch = consumer.take(stream)
        assert batch.descriptor.step == step
        batch.release()
    with pytest.raises(RequestError) as caught:
        consumer.take(stream)
    assert caught.value.kind is ErrorKind.RECORD_TOO_LARGE
    wanted = (
        f"record 13 (record 5 of {dataset.shards[1].path}) has 51200 bytes in field 'text', but the window holds 40960"
    )
    assert wanted in str(caught.value)
    with pytest.raises(RequestError):  # it stays failed
        stream.take()
    assert not stream.finished
    stream.close()


def test_a_batch_beyond_the_window_says_what_it_needs(tmp_path: Path, reader: Reader) -> None:
    columns = large_records(10, size=10 * KIB)
    dataset = write_dataset(tmp_path, columns, [10])
    with pytest.raises(RequestError, match=r"step 0 \(5 records\) needs \d+ bytes, but the window holds 30000"):
        read_all(reader, dataset, spec_of(5, window_bytes=30_000))
    exact = 64 + 64 + 10 * KIB + 5000
    check(read_all(reader, dataset, spec_of(1, window_bytes=exact)), dataset, columns, spec_of(1, window_bytes=exact))


# Reading while sending ----------------------------------------------------------------------------------------------


def _late_stream(reader: Reader, dataset: Dataset, consumer: Consumer, **options: Any) -> ReadStream:
    for ref in dataset.files:
        ref.path.read_bytes()
    return reader.open_stream(dataset, spec_of(4, **options), consumer.woken.set, late_reads=True)


def test_resident_large_records_stay_in_their_files(tmp_path: Path, reader: Reader) -> None:
    columns = large_records(8, size=300 * KIB)
    dataset = write_dataset(tmp_path, columns, [5, 3])
    consumer = Consumer()
    stream = _late_stream(reader, dataset, consumer)
    batch = consumer.take(stream)
    assert isinstance(batch.buffers, Generator)
    buffers = list(batch.buffers)
    assert sum(map(len, buffers)) == batch.payload_bytes
    assert [isinstance(buffer, FileSpan) for buffer in buffers] == [False, True, True, True, True, False]
    batch.release()
    stream.close()


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_a_batch_may_be_released_before_it_is_read(tmp_path: Path, reader: Reader, chunks: int) -> None:
    columns = large_records(12, size=300 * KIB)
    dataset = write_dataset(tmp_path, columns, [12])
    consumer = Consumer()
    stream = _late_stream(reader, dataset, consumer)
    batch = consumer.take(stream)
    for _, _ in zip(range(chunks), batch.buffers, strict=False):
        pass
    batch.release()
    batch.release()
    assert [one.descriptor.step for one in consumer.drain(stream)] == [1, 2]
    stream.close()


def test_nothing_is_late_that_is_not_resident(tmp_path: Path, reader: Reader) -> None:
    columns = large_records(8)
    dataset = write_dataset(tmp_path, columns, [8])
    make_cold(dataset)
    consumer = Consumer()
    stream = reader.open_stream(dataset, spec_of(4), consumer.woken.set, late_reads=True)
    batch = consumer.take(stream)
    assert not isinstance(batch.buffers, Generator)
    batch.release()
    stream.close()


# What it says of itself ---------------------------------------------------------------------------------------------


def test_strategies_are_told_before_anything_is_read(tmp_path: Path) -> None:
    columns = every_kind(30) | large_records(30)
    dataset = write_dataset(tmp_path, columns, [30])
    chosen = choose_strategies(dataset, dataset.select(None), memory_bytes=0)
    assert {name: choice.strategy for name, choice in chosen.items()} == {
        name: {"image": "extent", "label": "decoded", "deep": "decoded"}.get(name, "mapped") for name in columns
    }
    assert all(choice.reason for choice in chosen.values())


def test_statistics_and_names(tmp_path: Path, reader: Reader) -> None:
    dataset = write_dataset(tmp_path, every_kind(30), [30])
    consumer = Consumer()
    stream = reader.open_stream(dataset, spec_of(10), consumer.woken.set)
    received = list(consumer.drain(stream))
    statistics = stream.statistics()
    assert (statistics.batches, statistics.records) == (3, 30)
    assert statistics.payload_bytes == sum(len(batch.payload) for batch in received)
    assert (statistics.leased_bytes, statistics.ready_batches) == (0, 0)
    assert repr(stream).startswith("<ReadStream 3/3 batches taken, 0 ready, 0/")
    assert reader.statistics().streams == 1
    assert repr(reader).startswith("<Reader 1 streams, <ThreadQueue 2 threads, ")
    stream.close()
    assert repr(stream) == "<ReadStream 3/3 batches taken, closed>"
    assert reader.statistics() == type(reader.statistics())(0, 0, 0)
    assert all(first.descriptor.step + 1 == second.descriptor.step for first, second in pairwise(received))
