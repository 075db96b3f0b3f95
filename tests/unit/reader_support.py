"""What the tests of the reader share: a consumer that never sleeps, and the slow way to know what must come."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastio import pagecache
from fastio.dataset import Dataset
from fastio.layout import FieldArrays, batch_layout, view_batch
from fastio.order import EpochPlan, record_ids
from fastio.plan import Strategy, StrategyChoice
from fastio.reader import Reader, ReadStream, ReadyBatch, sources
from fastio.spec import StreamSpec
from fastio.testing.datasets import SyntheticColumn
from fastio.wire.messages import BatchDescriptor

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Received:
    """A batch, copied out of the ring."""

    descriptor: BatchDescriptor
    payload: npt.NDArray[np.uint8]


@dataclass
class Consumer:
    """Takes the batches of one stream, waiting for its ``wake`` and for nothing else."""

    woken: threading.Event = field(default_factory=threading.Event)

    def take(self, stream: ReadStream) -> ReadyBatch:
        while True:
            self.woken.clear()
            batch = stream.take()
            if batch is not None:
                return batch
            assert self.woken.wait(TIMEOUT_S), f"nobody woke the consumer of {stream!r}"

    def drain(self, stream: ReadStream) -> Iterator[Received]:
        while not stream.finished:
            batch = self.take(stream)
            payload = np.concatenate([np.frombuffer(bytes(buffer), dtype=np.uint8) for buffer in batch.buffers])
            batch.release()
            assert len(payload) == batch.payload_bytes
            yield Received(batch.descriptor, payload)


def read_all(reader: Reader, dataset: Dataset, spec: StreamSpec, *, late_reads: bool = False) -> list[Received]:
    consumer = Consumer()
    stream = reader.open_stream(dataset, spec, consumer.woken.set, late_reads=late_reads)
    try:
        return list(consumer.drain(stream))
    finally:
        stream.close()


def use_strategy(monkeypatch: pytest.MonkeyPatch, strategy: Strategy) -> None:
    """Has every field that extents can reach read by this strategy."""
    choice = StrategyChoice(strategy, "the test says so")
    monkeypatch.setattr(sources, "choose_strategy", lambda **_: choice)


def needs_cachestat(path: Path) -> None:
    """Skips where the kernel can't say what is in the page cache."""
    with path.open("rb") as file:
        if pagecache.resident_bytes(file.fileno()) is None:
            pytest.skip("this kernel has no cachestat")


def make_cold(dataset: Dataset) -> None:
    """Drops the dataset's pages, and proves that they are gone."""
    for ref in dataset.files:
        needs_cachestat(ref.path)
        pagecache.drop(ref.path)
        assert resident(ref.path) == 0


def resident(path: Path) -> int:
    with path.open("rb") as file:
        found = pagecache.resident_bytes(file.fileno())
    assert found is not None
    return found


def expected_ids(dataset: Dataset, spec: StreamSpec) -> dict[int, list[int]]:
    """step -> record ids, for the steps that this stream must send."""
    plan = EpochPlan(
        records=dataset.records,
        start_records=spec.start_records,
        batch_size=spec.batch_size,
        world_size=spec.world_size,
        tail=spec.tail,
    )
    order = record_ids(spec.order, dataset.records, spec.epoch)(0, dataset.records).tolist()
    return {
        step: order[slice(*plan.bounds(step, spec.rank))]
        for step in range(plan.steps)
        if step >= spec.first_step and step % spec.workers == spec.worker
    }


def check(received: list[Received], dataset: Dataset, columns: Mapping[str, SyntheticColumn], spec: StreamSpec) -> None:
    """Compares what came, batch by batch and in order, with what the columns hold."""
    wanted = expected_ids(dataset, spec)
    assert [batch.descriptor.step for batch in received] == list(wanted)
    names = dataset.select(spec.fields)
    fields = [dataset.columns[name].field for name in names]
    for batch, ids in zip(received, wanted.values(), strict=True):
        assert batch.descriptor.epoch == spec.epoch
        layout = batch_layout(fields, batch.descriptor.records, batch.descriptor.ragged_bytes)
        assert layout.payload_bytes == len(batch.payload)
        assert not any(batch.payload[start:stop].any() for start, stop in layout.gaps)
        ids_B, arrays = view_batch(fields, layout, batch.payload)
        assert ids_B.tolist() == ids
        for name, found in zip(names, arrays, strict=True):
            same(found, columns[name].expected(np.array(ids, dtype=np.int64)), name)


def same(found: FieldArrays, wanted: FieldArrays, name: str) -> None:
    assert found.values.dtype == wanted.values.dtype, name
    assert found.values.shape == wanted.values.shape, name
    assert found.values.tobytes() == wanted.values.tobytes(), name
    assert _listed(found.offsets_B1) == _listed(wanted.offsets_B1), name
    assert _listed(found.mask_B) == _listed(wanted.mask_B), name


def _listed(array: npt.NDArray[Any] | None) -> list[Any] | None:
    return None if array is None else array.tolist()


def every_kind(records: int, *, seed: int = 0, longest: int = 40) -> dict[str, SyntheticColumn]:
    """A column of each kind that there is, nullable and not, with random contents."""
    rng = np.random.default_rng(seed)

    def mask() -> npt.NDArray[np.bool_]:
        return rng.random(records) < 0.7

    def ragged(dtype: str) -> list[npt.NDArray[Any]]:
        lengths = rng.integers(0, longest + 1, records)
        return [rng.integers(0, 200, length).astype(dtype) for length in lengths]

    images = rng.integers(0, 256, (records, 3, 2), dtype=np.uint8)
    return {
        "image": SyntheticColumn(storage="fixed", values=images),
        "score": SyntheticColumn(storage="fixed", values=rng.random(records), mask_N=mask()),
        "text": SyntheticColumn(storage="ragged", values=ragged("|u1")),
        "tokens": SyntheticColumn(storage="ragged", values=ragged("<i4"), dtype="<i4", mask_N=mask()),
        "good": SyntheticColumn(storage="bits", values=rng.random(records) < 0.5),
        "maybe": SyntheticColumn(storage="bits", values=rng.random(records) < 0.5, mask_N=mask()),
        "label": SyntheticColumn(storage="decoded", values=rng.integers(0, 99, records)),
        "deep": SyntheticColumn(storage="decoded", values=ragged("<f4"), dtype="<f4", mask_N=mask()),
    }


def open_descriptors() -> dict[str, str]:
    """This process's descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed the folder
    return found


def descriptors_under(folder: Path) -> list[str]:
    return [target for target in open_descriptors().values() if target.startswith(str(folder))]


def rings_open() -> int:
    return sum(target.startswith("/memfd:fastio-ring") for target in open_descriptors().values())
