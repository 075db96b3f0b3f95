"""Exactly once, whatever breaks: random cuts of the connection, random resumptions, against lists of what is due."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fastio.order import Digest, EpochPlan, expected_digest, record_ids
from fastio.spec import OrderSpec
from fastio.testing.fake_server import FakeDataset, FakeServer, Fault
from fastio_client import Loader
from fastio_client.progress import Geometry, Place, Progress


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 6000), max_size=6),
    batch_size=st.integers(1, 20),
    records=st.integers(1, 60),
    window=st.sampled_from([2000, 1 << 20]),
)
def test_each_record_once_through_any_cuts(cuts: list[int], batch_size: int, records: int, window: int) -> None:
    data = FakeDataset(records=records)
    faults = [Fault(), *(Fault(cut_after_bytes=cut) for cut in cuts)]
    with (
        FakeServer({"d": data}, faults=faults) as server,
        Loader(server.url("d"), batch_size=batch_size, window_bytes=window) as loader,
    ):
        taken = []
        for step, batch in enumerate(loader):
            assert batch.step == step
            word = batch["word"]
            assert word.to_list() == [data.word(record).decode() for record in batch.ids]  # type: ignore[union-attr]
            taken += batch.ids.tolist()
        expected = record_ids(OrderSpec(), records, 0)(0, records)
        assert taken == expected.tolist()
        assert loader.verify_epoch()


class Consumer(RuleBasedStateMachine):
    """A consumer that takes, stops, saves and resumes under other geometries, against the list of an epoch's ids.

    The model: the ids delivered of the current epoch, in order; they are always the first ones of the epoch's order.
    """

    RECORDS = 37

    @initialize(batch_size=st.integers(1, 12), seed=st.integers(0, 3))
    def make(self, batch_size: int, seed: int) -> None:
        self.order = OrderSpec(seed=seed)
        self.geometry = self.with_batch_size(batch_size)
        self.progress = Progress()
        self.delivered: list[int] = []
        self.epoch = 0
        self.running = False

    def with_batch_size(self, batch_size: int) -> Geometry:
        return Geometry(
            records=self.RECORDS, batch_size=batch_size, rank=0, world_size=1, tail="even", order=self.order
        )

    def due(self) -> list[int]:
        ids: list[int] = record_ids(self.order, self.RECORDS, self.epoch)(0, self.RECORDS).tolist()
        return ids

    @rule()
    def begin(self) -> None:
        if len(self.delivered) == self.RECORDS and not self.running:
            self.epoch, self.delivered = self.epoch + 1, []
        begin = self.progress.begin_iteration()
        self.delivered = self.delivered[: begin.records_done]
        assert (begin.epoch, begin.records_done) == (self.epoch, len(self.delivered))
        self.running = True

    @precondition(lambda self: self.running)
    @rule(steps=st.integers(1, 5))
    def take(self, steps: int) -> None:
        plan = self.geometry.plan(self.progress.begin.records_done)
        for _ in range(steps):
            if self.progress.taken == plan.steps:
                self.progress.finish()
                self.running = False
                assert self.delivered == self.due()
                assert self.progress.verify(self.geometry)
                return
            start, stop = plan.bounds(self.progress.taken, 0)
            assert start == len(self.delivered)
            ids = self.due()[start:stop]
            self.progress.took(np.array(ids, dtype=np.int64))
            self.delivered += ids
        assert self.progress.verify(self.geometry)

    @rule(batch_size=st.integers(1, 12))
    def resume(self, batch_size: int) -> None:
        place = self.progress.place(self.geometry)
        assert (place.epoch, place.records_done) == (self.epoch, len(self.delivered))
        assert place.delivered == Digest().add(np.array(self.delivered, dtype=np.int64))
        self.geometry = self.with_batch_size(batch_size)
        self.progress = Progress()
        self.progress.load(Place(place.epoch, place.records_done, place.step, place.delivered, True), self.geometry)
        self.running = False

    @rule()
    def set_the_same_epoch(self) -> None:
        finished = len(self.delivered) == self.RECORDS and not self.running
        if not finished:
            self.progress.set_epoch(self.epoch)
            self.delivered = self.delivered[: self.progress.begin.records_done]
            self.running = False


TestConsumer = Consumer.TestCase
TestConsumer.settings = settings(max_examples=60, stateful_step_count=25)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 30))
def test_a_place_after_steps_is_where_taking_them_leads(records: int, batch_size: int, steps: int) -> None:
    geometry = Geometry(
        records=records, batch_size=batch_size, rank=0, world_size=1, tail="even", order=OrderSpec(kind="sequential")
    )
    epoch_steps = EpochPlan(records, 0, batch_size, 1).steps
    place = Progress().place_after(steps, geometry)
    whole = (steps - 1) // epoch_steps if steps else 0
    assert (place.epoch, place.step) == (whole, steps - whole * epoch_steps)
    assert place.records_done == min(records, place.step * batch_size) or records % batch_size


def test_a_finished_epoch_owes_nothing_to_the_order() -> None:
    progress = Progress()
    geometry = Geometry(records=9, batch_size=9, rank=0, world_size=1, tail="even", order=OrderSpec())
    progress.begin_iteration()
    progress.took(np.arange(9))
    assert progress.verify(geometry).expected == expected_digest(9)


@pytest.mark.parametrize("wrong", [[0, 1, 2, 2], [0, 1, 2, 4]])
def test_verify_finds_what_was_not_due(wrong: list[int]) -> None:
    progress = Progress()
    order = OrderSpec(kind="sequential")
    for world_size in (1, 2):
        geometry = Geometry(records=8, batch_size=4, rank=0, world_size=world_size, tail="even", order=order)
        progress.set_epoch(world_size)
        progress.begin_iteration()
        progress.took(np.array(wrong))
        assert not progress.verify(geometry)
