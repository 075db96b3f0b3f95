"""The reader against plain reads, for random orders, batch sizes, worlds, workers, resumptions and windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastio.dataset import Dataset
from fastio.plan import Strategy, StrategyChoice
from fastio.reader import Reader, ReadyBatch, sources
from fastio.spec import OrderSpec, StreamSpec, Tail
from fastio.testing.datasets import SyntheticColumn, write_dataset
from tests.unit.reader_support import Consumer, check, every_kind, expected_ids

# Records of the datasets made here, and how they are spread over files.
SHARDS = ([1], [2, 3], [40], [0, 17, 1, 0, 60], [300] * 3)
# What a batch of one record of `every_kind` takes at most: buffers of 64 bytes each, and its longest texts.
RECORD_BYTES = 2048


@dataclass(frozen=True)
class Made:
    reader: Reader
    datasets: list[Dataset]
    columns: list[dict[str, SyntheticColumn]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder: Path = tmp_path_factory.mktemp("datasets")
    columns = [every_kind(sum(shards), seed=number) for number, shards in enumerate(SHARDS)]
    datasets = [write_dataset(folder / str(number), columns[number], shards) for number, shards in enumerate(SHARDS)]
    reader = Reader(threads=2, memory_bytes=1 << 30)
    yield Made(reader, datasets, columns)
    reader.close()


@st.composite
def specs(draw: st.DrawFn, records: int) -> StreamSpec:
    world_size = draw(st.integers(1, min(5, records)))
    workers = draw(st.integers(1, 4))
    batch_size = draw(st.one_of(st.integers(1, 6), st.integers(1, 200)))
    tail: Tail = draw(st.sampled_from(["even", "drop"]))
    if tail == "drop" and records < batch_size * world_size:
        tail = "even"
    return StreamSpec(
        dataset="d",
        batch_size=batch_size,
        fields=draw(st.none() | st.lists(st.sampled_from(list(every_kind(0))), min_size=1, unique=True).map(tuple)),
        order=OrderSpec(kind=draw(st.sampled_from(["exact", "sequential"])), seed=draw(st.integers(0, 2**64 - 1))),
        epoch=draw(st.integers(0, 2**40)),
        start_records=draw(st.integers(0, records)) if draw(st.booleans()) else 0,
        first_step=draw(st.integers(0, 6)),
        rank=draw(st.integers(0, world_size - 1)),
        world_size=world_size,
        worker=draw(st.integers(0, workers - 1)),
        workers=workers,
        tail=tail,
        window_bytes=batch_size * RECORD_BYTES * draw(st.integers(1, 9)),
    )


@given(data=st.data(), strategy=st.sampled_from(["extent", "mapped"]), late_reads=st.booleans())
def test_a_stream_delivers_its_batches_in_order_and_within_its_window(
    made: Made, data: st.DataObject, strategy: Strategy, late_reads: bool
) -> None:
    number = data.draw(st.integers(0, len(SHARDS) - 1))
    dataset, columns = made.datasets[number], made.columns[number]
    spec = data.draw(specs(dataset.records))
    consumer = Consumer()
    with mock.patch.object(sources, "choose_strategy", return_value=StrategyChoice(strategy, "")):
        stream = made.reader.open_stream(dataset, spec, consumer.woken.set, late_reads=late_reads)
    received = []
    for batch in consumer.drain(stream):
        received.append(batch)
        statistics = stream.statistics()
        assert statistics.leased_bytes <= statistics.window_bytes < spec.window_bytes + 4096
    assert stream.finished
    assert stream.take() is None
    check(received, dataset, columns, spec)
    assert stream.statistics().records == sum(len(ids) for ids in expected_ids(dataset, spec).values())
    stream.close()


@given(
    number=st.integers(1, len(SHARDS) - 1),
    batch_size=st.integers(1, 50),
    world_size=st.integers(1, 4),
    workers=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
)
@example(number=1, batch_size=1, world_size=4, workers=3, seed=0)
def test_all_ranks_and_workers_together_get_each_record_once(
    made: Made, number: int, batch_size: int, world_size: int, workers: int, seed: int
) -> None:
    dataset = made.datasets[number]
    delivered: list[int] = []
    for rank in range(world_size):
        for worker in range(workers):
            spec = StreamSpec(
                dataset="d",
                batch_size=batch_size,
                fields=("label",),
                order=OrderSpec(seed=seed),
                rank=rank,
                world_size=world_size,
                worker=worker,
                workers=workers,
            )
            consumer = Consumer()
            stream = made.reader.open_stream(dataset, spec, consumer.woken.set)
            for batch in consumer.drain(stream):
                delivered += batch.payload[: 8 * batch.descriptor.records].view("<i8").tolist()
            stream.close()
    assert sorted(delivered) == list(range(dataset.records))


@settings(max_examples=15)
@given(data=st.data())
def test_batches_may_be_held_and_released_in_any_order(made: Made, data: st.DataObject) -> None:
    dataset, columns = made.datasets[3], made.columns[3]
    spec = StreamSpec(dataset="d", batch_size=3, window_bytes=4 * 4096)
    consumer = Consumer()
    stream = made.reader.open_stream(dataset, spec, consumer.woken.set)
    held: list[ReadyBatch] = []
    received: list[tuple[int, bytes]] = []
    next_step = 0
    while not stream.finished or held:
        # The ring holds four of these batches, and room returns in order: the fifth comes when the oldest is released.
        room = next_step - min((batch.descriptor.step for batch in held), default=next_step) < 4
        if not stream.finished and room and (not held or data.draw(st.booleans())):
            held.append(consumer.take(stream))
            next_step += 1
        else:
            batch = held.pop(data.draw(st.integers(0, len(held) - 1)))
            received.append((batch.descriptor.step, b"".join(map(bytes, batch.buffers))))
            batch.release()
    stream.close()
    plain = Consumer()
    again = made.reader.open_stream(dataset, spec, plain.woken.set)
    whole = list(plain.drain(again))
    again.close()
    check(whole, dataset, columns, spec)
    assert sorted(received) == [(batch.descriptor.step, batch.payload.tobytes()) for batch in whole]
