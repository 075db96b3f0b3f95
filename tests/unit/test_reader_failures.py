"""What goes wrong while a stream is read: the error names file, record and field, what came before is delivered, other
streams go on, and the process lives."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastio.dataset import Dataset
from fastio.errors import ErrorKind, FastioError, RequestError, StoreError
from fastio.extents import IndexedExtents, Int64Array
from fastio.files import OpenFile
from fastio.formats.base import DecodedColumn, TakenValues
from fastio.layout import FieldArrays
from fastio.plan import Strategy
from fastio.reader import Reader, fetch
from fastio.spec import OrderSpec, StreamSpec
from fastio.testing.datasets import SyntheticColumn, write_dataset
from tests.unit.reader_support import Consumer, check, descriptors_under, every_kind, read_all, use_strategy

KIB = 1 << 10
PAGE = os.sysconf("SC_PAGE_SIZE")
SEQUENTIAL = OrderSpec(kind="sequential")


@pytest.fixture
def reader() -> Iterator[Reader]:
    one = Reader(threads=2, memory_bytes=1 << 30)
    yield one
    one.close()


def spec_of(batch_size: int, **options: Any) -> StreamSpec:
    return StreamSpec(dataset="d", batch_size=batch_size, **({"order": SEQUENTIAL} | options))


def column_of(kind: str, records: int) -> dict[str, SyntheticColumn]:
    """Records of two pages, so that the last ones lie beyond a file cut in half."""
    rows = np.arange(records * 2 * PAGE, dtype=np.uint32).astype(np.uint8).reshape(records, 2 * PAGE)
    if kind == "fixed":
        return {"x": SyntheticColumn(storage="fixed", values=rows)}
    return {"x": SyntheticColumn(storage="ragged", values=list(rows))}


def until_error(reader: Reader, dataset: Dataset, spec: StreamSpec, **options: Any) -> tuple[list[int], FastioError]:
    """The steps that were delivered whole, and the error after them."""
    consumer = Consumer()
    stream = reader.open_stream(dataset, spec, consumer.woken.set, **options)
    steps: list[int] = []
    try:
        with pytest.raises(FastioError) as caught:
            steps.extend(batch.descriptor.step for batch in consumer.drain(stream))
        return steps, caught.value
    finally:
        stream.close()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(path)


def modify(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"!")
    os.utime(path, ns=(1, 1))


DAMAGES = [
    (truncate, ErrorKind.TRUNCATED),
    (delete, ErrorKind.MISSING),
    (replace, ErrorKind.CHANGED),
    (modify, ErrorKind.CHANGED),
]


@pytest.mark.parametrize(("damage", "kind"), DAMAGES)
@pytest.mark.parametrize("strategy", ["extent", "mapped"])
@pytest.mark.parametrize("storage", ["fixed", "ragged"])
def test_a_bad_file_is_named_with_the_record_and_field_that_needed_it(
    tmp_path: Path,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    kind: ErrorKind,
    strategy: Strategy,
    storage: str,
) -> None:
    use_strategy(monkeypatch, strategy)
    columns = column_of(storage, 12)
    dataset = write_dataset(tmp_path, columns, [4, 4, 4])
    damage(dataset.files[1].path)
    steps, error = until_error(reader, dataset, spec_of(3))
    assert steps == [0], "the batch before it is whole, and was delivered"
    assert isinstance(error, StoreError)
    assert error.kind is kind
    assert "field 'x' of record 4 (record 0 of " in str(error)
    assert str(error).count(str(dataset.files[1].path)) == 2
    # The rest of the dataset, and this process, are as good as before.
    spec = spec_of(4, start_records=8)
    check(read_all(reader, dataset, spec), dataset, columns, spec)


@pytest.mark.parametrize(("damage", "kind"), [DAMAGES[0], DAMAGES[3]])
@pytest.mark.parametrize("strategy", ["extent", "mapped"])
@pytest.mark.parametrize("storage", ["fixed", "ragged"])
def test_a_file_that_goes_bad_while_it_is_open_is_found_out(
    tmp_path: Path,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    kind: ErrorKind,
    strategy: Strategy,
    storage: str,
) -> None:
    use_strategy(monkeypatch, strategy)
    dataset = write_dataset(tmp_path, column_of(storage, 12), [12])
    consumer = Consumer()
    stream = reader.open_stream(dataset, spec_of(1, window_bytes=3 * PAGE), consumer.woken.set)
    held = consumer.take(stream)  # fills the window: nothing is read before it is released
    damage(dataset.files[0].path)
    held.release()
    with pytest.raises(StoreError, match=r"field 'x' of record 1 \(record 1 of ") as caught:
        consumer.take(stream)
    assert caught.value.kind is kind
    stream.close()


@pytest.mark.parametrize("damage", [delete, replace])
def test_a_file_that_is_open_is_served_to_its_end_whatever_its_name_becomes(
    tmp_path: Path, reader: Reader, damage: Callable[[Path], None]
) -> None:
    columns = column_of("ragged", 12)
    dataset = write_dataset(tmp_path, columns, [12])
    spec = spec_of(5)
    check(read_all(reader, dataset, spec), dataset, columns, spec)
    damage(dataset.files[0].path)
    check(read_all(reader, dataset, spec), dataset, columns, spec)


@pytest.mark.parametrize("strategy", ["extent", "mapped"])
@pytest.mark.parametrize("storage", ["fixed", "ragged"])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_truncated_between_the_check_and_the_copy_does_not_kill(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, strategy: Strategy, storage: str, mapped: bool
) -> None:
    use_strategy(monkeypatch, strategy)
    dataset = write_dataset(tmp_path, column_of(storage, 12), [12])
    path = dataset.files[0].path
    if mapped:
        read_all(reader, dataset, spec_of(12))

    def truncate_now(*_: object) -> Any:
        os.truncate(path, PAGE)
        return np.zeros(0, dtype=np.int64)

    if strategy == "mapped":
        monkeypatch.setattr(OpenFile, "not_resident", truncate_now)
    else:
        monkeypatch.setattr(fetch, "_read_resident", lambda *_: len(truncate_now()))
    steps, error = until_error(reader, dataset, spec_of(6))
    assert steps == []
    assert error.kind is ErrorKind.TRUNCATED
    assert "field 'x' of record 0 (record 0 of " in str(error)
    assert str(path) in str(error)


def test_the_gather_stops_at_the_record_that_is_cut(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_strategy(monkeypatch, "mapped")
    dataset = write_dataset(tmp_path, column_of("ragged", 12), [12])

    def truncate_now(file: OpenFile, _: object) -> Any:
        os.truncate(file.ref.path, 8 * PAGE)  # in the middle of record 3
        return np.zeros(0, dtype=np.int64)

    read_all(reader, dataset, spec_of(12))  # now it is mapped
    monkeypatch.setattr(OpenFile, "not_resident", truncate_now)
    with monkeypatch.context() as patched:
        patched.setattr(fetch, "_checked_view", lambda _reads, _number, file: file.view())  # checked a moment too early
        _, error = until_error(reader, dataset, spec_of(12))
    assert error.kind is ErrorKind.TRUNCATED
    assert "of record 3 " in str(error)


@pytest.mark.parametrize("late_reads", [False, True])
def test_an_error_of_the_device_is_passed_on(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, late_reads: bool
) -> None:
    use_strategy(monkeypatch, "extent")
    dataset = write_dataset(tmp_path, column_of("ragged", 6), [6])
    table = dataset.columns["x"].table  # type: ignore[union-attr]
    bad = int(table.lookup(np.array([4], dtype=np.int64)).offset_B[0])
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if offset == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    steps, error = until_error(reader, dataset, spec_of(2), late_reads=late_reads)
    assert steps == [0, 1]
    assert error.kind is ErrorKind.IO
    assert f"field 'x' of record 4 (record 4 of {dataset.shards[0].path}): reading " in str(error)
    assert "Input/output error" in str(error)


def test_a_file_truncated_while_it_is_sent_is_named_with_its_record(tmp_path: Path, reader: Reader) -> None:
    rows = [np.full(300 * KIB, number, dtype=np.uint8) for number in range(4)]
    dataset = write_dataset(tmp_path, {"x": SyntheticColumn(storage="ragged", values=rows)}, [2, 2])
    consumer = Consumer()
    for damage, kind in ((truncate, ErrorKind.TRUNCATED), (delete, None)):
        stream = reader.open_stream(dataset, spec_of(4), consumer.woken.set, late_reads=True)
        batch = consumer.take(stream)
        buffers = iter(batch.buffers)
        next(buffers)
        next(buffers)
        damage(dataset.files[1].path)
        if kind is None:  # it is open, and its bytes are still there
            break
        with pytest.raises(StoreError, match=r"field 'x' of record 2 \(record 0 of ") as caught:
            list(map(bytes, buffers))
        assert caught.value.kind is kind
        batch.release()
        stream.close()
        for number in (0, 1):  # as good as new
            path = dataset.files[number].path
            os.truncate(path, dataset.files[number].size_bytes)
            os.utime(path, ns=(dataset.files[number].mtime_ns,) * 2)
    list(map(bytes, buffers))
    batch.release()
    stream.close()


@pytest.mark.parametrize("late_reads", [False, True])
def test_a_file_changed_before_it_is_sent_is_refused(tmp_path: Path, reader: Reader, late_reads: bool) -> None:
    rows = [np.full(40 * KIB, number, dtype=np.uint8) for number in range(4)]
    dataset = write_dataset(tmp_path, {"x": SyntheticColumn(storage="ragged", values=rows)}, [4])
    modify(dataset.files[0].path)
    steps, error = until_error(reader, dataset, spec_of(2), late_reads=late_reads)
    assert (steps, error.kind) == ([], ErrorKind.CHANGED)
    assert "field 'x' of record 0 " in str(error)


@pytest.mark.parametrize("name", ["score", "tokens", "good", "maybe"])
def test_bits_of_a_bad_file_end_the_stream_by_name(tmp_path: Path, reader: Reader, name: str) -> None:
    dataset = write_dataset(tmp_path, every_kind(20), [10, 10])
    truncate(dataset.files[1].path)
    steps, error = until_error(reader, dataset, spec_of(4, fields=(name,)))
    assert steps == [0, 1]
    assert error.kind is ErrorKind.TRUNCATED
    assert str(dataset.files[1].path) in str(error)
    assert str(error).startswith(f"step 2, field {name!r}: record 10: {dataset.files[1].path} is truncated")


# A damaged index ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["extent", "mapped"])
@pytest.mark.parametrize(("offset", "length"), [(-5, 4), (-PAGE, 4), (10**6, 4), (10**15, 1), (0, 10**6)])
def test_extents_outside_their_file_are_refused(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, strategy: Strategy, offset: int, length: int
) -> None:
    use_strategy(monkeypatch, strategy)
    dataset = write_dataset(tmp_path, column_of("ragged", 6), [6])
    table = dataset.columns["x"].table  # type: ignore[union-attr]
    assert isinstance(table, IndexedExtents)
    table.offset_N[3], table.length_N[3] = offset, length
    steps, error = until_error(reader, dataset, spec_of(2))
    assert steps == [0]
    assert error.kind in (ErrorKind.CORRUPT, ErrorKind.TRUNCATED, ErrorKind.IO)
    assert "field 'x' of record 3 " in str(error)


# Faults of others, and of ours --------------------------------------------------------------------------------------


def with_decoded(dataset: Dataset, take: Callable[[Int64Array], TakenValues]) -> Dataset:
    column = dataset.columns["label"]
    assert isinstance(column, DecodedColumn)
    object.__setattr__(column, "take", take)
    return dataset


def raises(ids_B: Int64Array) -> TakenValues:
    if 7 in ids_B:
        raise KeyError("a bug in a format")
    return FieldArrays(ids_B, None, None)


def too_many(ids_B: Int64Array) -> TakenValues:
    return FieldArrays(np.zeros(1 << 20, dtype=np.int64) if 7 in ids_B else ids_B, None, None)


@pytest.mark.parametrize("take", [raises, too_many])
def test_a_bug_in_a_column_ends_its_stream_and_nothing_else(
    tmp_path: Path, reader: Reader, take: Callable[[Int64Array], TakenValues]
) -> None:
    columns = every_kind(12)
    dataset = with_decoded(write_dataset(tmp_path / "bad", columns, [12]), take)
    steps, error = until_error(reader, dataset, spec_of(2, fields=("label",), window_bytes=64 * KIB))
    assert steps == [0, 1, 2]
    assert error.kind is ErrorKind.INTERNAL
    # The ring that the failed stream leaves behind is as good as new: the next stream fills all of it.
    good = write_dataset(tmp_path / "good", columns, [12])
    spec = spec_of(2, window_bytes=64 * KIB)
    for _ in range(3):
        check(read_all(reader, good, spec), good, columns, spec)


def test_a_plan_that_fails_after_its_room_was_leased_leaves_the_ring_usable(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = column_of("ragged", 8)
    dataset = write_dataset(tmp_path, columns, [8])
    spec = spec_of(1, window_bytes=3 * PAGE)
    with monkeypatch.context() as patched:

        def fail(*_: object) -> None:
            raise ZeroDivisionError("after the lease")

        patched.setattr("fastio.reader.stream.write_known", fail)
        assert until_error(reader, dataset, spec)[1].kind is ErrorKind.INTERNAL
    check(read_all(reader, dataset, spec), dataset, columns, spec)


def test_a_bug_in_a_read_ends_its_stream_and_not_the_thread(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = column_of("ragged", 8)
    dataset = write_dataset(tmp_path, columns, [8])
    with monkeypatch.context() as patched:

        def fail(*_: object) -> int:
            raise ZeroDivisionError("in a read")

        patched.setattr(fetch, "_fetch_mapped", fail)
        patched.setattr(fetch, "_fetch_extents", fail)
        for _ in range(5):
            error = until_error(reader, dataset, spec_of(1))[1]
            assert (error.kind, "in a read" in str(error)) == (ErrorKind.INTERNAL, True)
    check(read_all(reader, dataset, spec_of(2)), dataset, columns, spec_of(2))


def test_a_wake_that_raises_harms_only_who_waits_for_it(
    tmp_path: Path, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    columns = column_of("ragged", 40)
    dataset = write_dataset(tmp_path, columns, [40])

    def broken() -> None:
        raise RuntimeError("Event loop is closed")

    with caplog.at_level(logging.CRITICAL, "fastio"):
        streams = [reader.open_stream(dataset, spec_of(2), broken) for _ in range(6)]
        check(read_all(reader, dataset, spec_of(2)), dataset, columns, spec_of(2))
    for stream in streams:
        stream.close()


def test_a_stream_that_fails_closes_its_files_when_the_reader_does(tmp_path: Path) -> None:
    reader = Reader(threads=1, memory_bytes=1 << 30)
    dataset = write_dataset(tmp_path, column_of("ragged", 6), [3, 3])
    truncate(dataset.files[1].path)
    until_error(reader, dataset, spec_of(2))
    reader.close()
    assert descriptors_under(tmp_path) == []


def test_bad_requests_are_refused_when_a_stream_is_opened(tmp_path: Path, reader: Reader) -> None:
    dataset = write_dataset(tmp_path, every_kind(10), [10])
    with pytest.raises(RequestError, match=r"no field 'labell'; did you mean 'label'") as caught:
        reader.open_stream(dataset, spec_of(2, fields=("labell",)), lambda: None)
    assert caught.value.kind is ErrorKind.UNKNOWN_FIELD
    with pytest.raises(RequestError, match=r"fewer records \(10\) than there are ranks \(11\)") as caught:
        reader.open_stream(dataset, spec_of(2, world_size=11), lambda: None)
    assert caught.value.kind is ErrorKind.TOO_FEW_RECORDS
    assert reader.statistics().streams == 0
