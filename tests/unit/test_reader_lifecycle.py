"""Beginning and ending: streams closed at every moment, readers closed under their streams, many streams and threads on
one reader, forks; and nothing left behind, neither threads nor descriptors."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastio import reader as reader_package
from fastio.dataset import Dataset
from fastio.errors import ClosedError, ErrorKind, UnavailableError
from fastio.plan import Strategy
from fastio.reader import Reader, ReadStream, fetch, stream
from fastio.reader.batches import BatchPlanner
from fastio.reader.pool import ThreadQueue
from fastio.spec import OrderSpec, StreamSpec
from fastio.testing.datasets import SyntheticColumn, write_dataset
from tests.unit.reader_support import (
    TIMEOUT_S,
    Consumer,
    check,
    descriptors_under,
    every_kind,
    open_descriptors,
    read_all,
    rings_open,
    use_strategy,
)

KIB = 1 << 10


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Every test here closes its readers; afterwards there are the threads and descriptors of before, and no more."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    assert set(threading.enumerate()) == threads
    left = {number: target for number, target in open_descriptors().items() if descriptors.get(number) != target}
    assert left == {}


class Gate:
    """Holds read threads up: ``waiting`` is set when one has come, ``open`` lets all of them through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting, self.open = threading.Event(), threading.Event()
        real = fetch.fetch

        def gated(*arguments: Any, **options: Any) -> int:
            self.waiting.set()
            assert self.open.wait(TIMEOUT_S)
            return real(*arguments, **options)

        monkeypatch.setattr(stream, "fetch", gated)


def records(count: int, size: int) -> dict[str, SyntheticColumn]:
    rows = [np.full(size, number % 256, dtype=np.uint8) for number in range(count)]
    return {"x": SyntheticColumn(storage="ragged", values=rows)}


def spec_of(batch_size: int, **options: Any) -> StreamSpec:
    return StreamSpec(dataset="d", batch_size=batch_size, **options)


def new_reader(threads: int = 2) -> Reader:
    return Reader(threads=threads, memory_bytes=1 << 30)


@pytest.mark.parametrize("strategy", ["extent", "mapped"])
def test_a_closed_reader_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy) -> None:
    use_strategy(monkeypatch, strategy)
    columns = every_kind(50)
    dataset = write_dataset(tmp_path, columns, [20, 30])
    reader = new_reader()
    for epoch in range(2):
        check(read_all(reader, dataset, spec_of(8, epoch=epoch)), dataset, columns, spec_of(8, epoch=epoch))
    assert descriptors_under(tmp_path)
    assert rings_open()
    reader.close()
    reader.close()
    assert descriptors_under(tmp_path) == []


def test_a_reader_that_read_nothing_ends() -> None:
    Reader().close()


def test_a_stream_closed_before_its_first_batch(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, records(50, 10 * KIB), [50])
    reader = new_reader()
    for _ in range(20):
        one = reader.open_stream(dataset, spec_of(4, window_bytes=100 * KIB), lambda: None)
        one.close()
        one.close()
        with pytest.raises(ClosedError, match="the stream was closed"):
            one.take()
    reader.close()


def test_a_stream_closed_while_it_is_read_gives_its_ring_back_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(tmp_path, records(50, 10 * KIB), [50])
    gate, reader, retired = Gate(monkeypatch), new_reader(), threading.Event()
    one = reader.open_stream(dataset, spec_of(4, window_bytes=100 * KIB), lambda: None)
    after = one._on_retired

    def note(stream: ReadStream) -> None:
        after(stream)
        retired.set()

    one._on_retired = note
    assert gate.waiting.wait(TIMEOUT_S)
    one.close()
    assert reader.statistics().streams == 1, "a thread still writes to its memory"
    assert not retired.is_set()
    gate.open.set()
    assert retired.wait(TIMEOUT_S)
    assert reader.statistics().streams == 0
    reader.close()


def test_batches_stay_valid_after_their_stream_is_closed(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, records(50, 10 * KIB), [50])
    reader, consumer = new_reader(), Consumer()
    spec = spec_of(1, order=OrderSpec(kind="sequential"), window_bytes=60 * KIB)
    one = reader.open_stream(dataset, spec, consumer.woken.set)
    batches = [consumer.take(one) for _ in range(3)]
    one.close()
    assert reader.statistics().streams == 1
    read_all(reader, dataset, spec)  # gets a ring of its own
    for number, batch in enumerate(batches):
        (payload,) = batch.buffers
        assert bytes(payload)[-10 * KIB :] == bytes([number]) * (10 * KIB)
        batch.release()
        batch.release()
    assert reader.statistics().streams == 0
    reader.close()


def test_a_reader_closed_with_open_streams_and_batches_in_hand(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, records(60, 10 * KIB), [60])
    before, reader, consumer = rings_open(), new_reader(), Consumer()
    streams = [reader.open_stream(dataset, spec_of(2), consumer.woken.set) for _ in range(3)]
    late = reader.open_stream(dataset, spec_of(2), consumer.woken.set, late_reads=True)
    held = [consumer.take(one) for one in [*streams, late]]
    next(iter(held[-1].buffers))
    reader.close()
    for one in streams:
        with pytest.raises(ClosedError):
            one.take()
    assert rings_open() - before == 2 * len(held), (
        "each ring has two descriptors, and is not closed under who may still send"
    )
    for batch in held:
        batch.release()
    del held, batch, late, streams, one


def test_a_closed_reader_opens_nothing(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, records(3, 10), [3])
    reader = new_reader()
    reader.close()
    with pytest.raises(ClosedError, match="the reader was closed"):
        reader.open_stream(dataset, spec_of(1), lambda: None)


def test_closing_waits_for_the_reads_that_have_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path, records(50, 10 * KIB), [50])
    gate, reader = Gate(monkeypatch), new_reader()
    reader.open_stream(dataset, spec_of(4), lambda: None)
    assert gate.waiting.wait(TIMEOUT_S)
    closing = threading.Thread(target=reader.close)
    closing.start()
    gate.open.set()
    closing.join(TIMEOUT_S)
    assert not closing.is_alive()


def test_descriptors_of_a_read_that_outlasts_close_are_closed_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_package.reader, "_CLOSE_TIMEOUT_S", 0.01)
    use_strategy(monkeypatch, "extent")
    dataset = write_dataset(tmp_path, records(50, 10 * KIB), [50])
    reader, reading, go_on = new_reader(), threading.Event(), threading.Event()
    real = fetch._fetch_extents

    def slow(*arguments: Any) -> int:
        reading.set()
        assert go_on.wait(TIMEOUT_S)
        return real(*arguments)

    monkeypatch.setattr(fetch, "_fetch_extents", slow)
    reader.open_stream(dataset, spec_of(4), lambda: None)
    assert reading.wait(TIMEOUT_S)
    reader.close()
    assert len(descriptors_under(tmp_path)) == 1, "it would become another file's"
    go_on.set()
    for thread in reader._readers._threads:
        thread.join(TIMEOUT_S)


def test_opening_while_another_thread_closes(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, records(5, 10), [5])
    for _ in range(30):
        reader, begin = new_reader(threads=1), threading.Barrier(2)
        refused: list[str] = []

        def open_some(reader: Reader = reader, begin: threading.Barrier = begin, refused: list[str] = refused) -> None:
            begin.wait(TIMEOUT_S)
            try:
                while True:
                    reader.open_stream(dataset, spec_of(2), lambda: None)
            except ClosedError as error:
                refused.append(str(error))

        opener = threading.Thread(target=open_some)
        opener.start()
        begin.wait(TIMEOUT_S)
        reader.close()
        opener.join(TIMEOUT_S)
        assert refused == ["the reader was closed"]
        assert reader.statistics().streams == 0


def test_closing_in_the_middle_of_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path, records(5, 10), [5])
    reader = new_reader()

    def close_first(*arguments: Any) -> Any:
        reader.close()
        return BatchPlanner(*arguments)

    monkeypatch.setattr(reader_package.reader, "BatchPlanner", close_first)
    with pytest.raises(ClosedError, match="the reader was closed"):
        reader.open_stream(dataset, spec_of(2), lambda: None)


def test_no_memory_for_a_window_is_said_and_leaves_the_reader_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = records(5, 10)
    dataset = write_dataset(tmp_path, columns, [5])
    reader = new_reader()
    with pytest.raises(UnavailableError, match="lower window_bytes") as caught:
        reader.open_stream(dataset, spec_of(2, window_bytes=1 << 62), lambda: None)
    assert caught.value.kind is ErrorKind.OVERLOADED
    assert reader.statistics().streams == 0
    check(read_all(reader, dataset, spec_of(2)), dataset, columns, spec_of(2))
    reader.close()


# Many at once -------------------------------------------------------------------------------------------------------


def test_many_streams_are_read_at_once_from_many_threads(tmp_path: Path) -> None:
    columns = every_kind(120)
    datasets = [write_dataset(tmp_path / str(number), columns, [50, 70]) for number in range(2)]
    reader = new_reader()
    failures: list[BaseException] = []

    def consume(rank: int) -> None:
        try:
            for epoch in range(3):
                spec = spec_of(3, rank=rank, world_size=6, epoch=epoch, window_bytes=16 * KIB)
                dataset = datasets[rank % 2]
                check(read_all(reader, dataset, spec, late_reads=rank > 3), dataset, columns, spec)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=consume, args=(rank,)) for rank in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    assert failures == []
    reader.close()


def test_a_slow_consumer_stalls_nobody_else(tmp_path: Path) -> None:
    columns = records(40, 4 * KIB)
    dataset = write_dataset(tmp_path, columns, [40])
    reader, slow = new_reader(threads=1), Consumer()
    full = reader.open_stream(dataset, spec_of(2, window_bytes=20 * KIB), slow.woken.set)
    held = slow.take(full)
    check(read_all(reader, dataset, spec_of(4)), dataset, columns, spec_of(4))
    held.release()
    assert sum(batch.descriptor.records for batch in slow.drain(full)) == 38
    reader.close()


def test_releases_from_another_thread_never_get_lost(tmp_path: Path) -> None:
    """A window of one batch, released by a thread of its own: each release must start the next plan, whichever of
    planner, releaser and consumer comes first."""
    dataset = write_dataset(tmp_path, records(400, 8), [400])
    reader, consumer = new_reader(), Consumer()
    one = reader.open_stream(dataset, spec_of(1, window_bytes=200), consumer.woken.set)
    for _ in range(400):
        thread = threading.Thread(target=consumer.take(one).release)
        thread.start()
        thread.join(TIMEOUT_S)
    assert one.finished
    reader.close()


def test_room_that_returns_while_a_full_ring_is_found_out_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story that `_plan_again` is for, told step by step."""
    dataset = write_dataset(tmp_path, records(2, 8), [2])
    full, released = threading.Event(), threading.Event()
    real = ReadStream._plan_one

    def plan_one(one: ReadStream) -> bool:
        progress = real(one)
        if not progress and not released.is_set():
            full.set()
            assert released.wait(TIMEOUT_S)
        return progress

    monkeypatch.setattr(ReadStream, "_plan_one", plan_one)
    reader, consumer = new_reader(), Consumer()
    one = reader.open_stream(dataset, spec_of(1, window_bytes=200), consumer.woken.set)
    batch = consumer.take(one)
    assert full.wait(TIMEOUT_S)  # the planner has seen a full ring, and has not yet said that it is done
    batch.release()
    released.set()
    consumer.take(one).release()
    assert one.finished
    reader.close()


def test_500_files_are_read_with_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = every_kind(1000, longest=3)
    dataset = write_dataset(tmp_path, columns, [2] * 500)
    monkeypatch.setattr(reader_package.reader, "default_descriptor_limit", lambda: 24)
    for strategy in ("extent", "mapped"):
        use_strategy(monkeypatch, strategy)
        reader, consumer = new_reader(), Consumer()
        spec = spec_of(4)
        one = reader.open_stream(dataset, spec, consumer.woken.set)
        received, most = [], 0
        for batch in consumer.drain(one):
            received.append(batch)
            most = max(most, len(descriptors_under(tmp_path)))
        check(received, dataset, columns, spec)
        # What is kept, and what three threads borrow at a time: 4 files each, with two descriptors.
        assert most <= 24 + 3 * 4 * 2
        one.close()
        assert len(descriptors_under(tmp_path)) <= 24
        reader.close()


# Processes ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # said from Python 3.12 on, and meant
def test_a_forked_child_is_told_and_does_not_hang(tmp_path: Path) -> None:
    columns = records(20, 100)
    dataset = write_dataset(tmp_path, columns, [20])
    reader, consumer = new_reader(), Consumer()
    one = reader.open_stream(dataset, spec_of(2), consumer.woken.set)
    batch = consumer.take(one)
    child = _fork(reader, one, dataset)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    batch.release()
    assert sum(1 for _ in consumer.drain(one)) == 9
    check(read_all(reader, dataset, spec_of(2)), dataset, columns, spec_of(2))
    reader.close()


def _fork(reader: Reader, one: ReadStream, dataset: Dataset) -> int:
    child = os.fork()
    if child:
        return child
    said = 0
    try:
        signal.alarm(20)
        try:
            one.take()
        except ClosedError as error:
            said += "belongs to process" in str(error)
        try:
            reader.open_stream(dataset, spec_of(2), lambda: None)
        except ClosedError as error:
            said += 2 * ("belongs to process" in str(error))
        reader.close()
        with_own = Reader(threads=1, memory_bytes=1 << 30)
        said += 4 * (len(read_all(with_own, dataset, spec_of(2))) == 10)
        with_own.close()
    finally:
        os._exit(said)


# The threads --------------------------------------------------------------------------------------------------------


def test_tasks_run_in_order_and_those_queued_before_the_end_still_run() -> None:
    queue, done, go_on = ThreadQueue(threads=1, name="test"), list[int](), threading.Event()
    queue.submit(lambda: done.append(-1) if go_on.wait(TIMEOUT_S) else None)
    for number in range(10):
        queue.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    assert queue.waiting >= 10
    go_on.set()
    queue.close(timeout_s=TIMEOUT_S)
    assert done == list(range(-1, 10))
    assert repr(queue) == "<ThreadQueue 1 threads, 0 tasks waiting>"
