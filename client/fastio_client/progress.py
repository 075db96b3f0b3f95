"""Where is the consumer, and where does the next iteration begin? Pure: integers and digests, no connection.

    state      what happened last                     the next iteration begins
    READY      made, set_epoch, or a state loaded     at ``begin``
    RUNNING    an iteration was begun                 at ``begin`` again: what was taken is delivered anew
    FINISHED   an iteration came to its end           at the start of the next epoch

A loaded state that has nothing left of its epoch is FINISHED, so that a resumed run goes on as the unbroken one would;
where ``set_epoch`` then names that very epoch, the iteration is empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from fastio.extents import Int64Array
from fastio.order import Digest, EpochPlan, Verdict, positions_digest, step_ids
from fastio.spec import OrderSpec, Tail

__all__ = ["Geometry", "Place", "Progress"]

# Ids are added to the digest together: 23 us for a batch of 256 alone, 7 us as one of many.
_IDS_TOGETHER = 1 << 14
_BATCHES_TOGETHER = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What stays the same over all epochs: which positions a rank takes at which step."""

    records: int
    batch_size: int
    rank: int
    world_size: int
    tail: Tail
    order: OrderSpec

    def plan(self, start_records: int) -> EpochPlan:
        """The steps of an epoch from ``start_records`` on."""
        return EpochPlan(self.records, start_records, self.batch_size, self.world_size, self.tail)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an iteration begins.

    Attributes:
        epoch: which.
        records_done: positions of it that are delivered already, over all ranks.
        step: steps of it that are done already, for people.
        delivered: the digest of those records, where it is known.
        loaded: it comes from a saved state.
    """

    epoch: int = 0
    records_done: int = 0
    step: int = 0
    delivered: Digest | None = field(default_factory=Digest)
    loaded: bool = False


class _Phase(Enum):
    READY = "ready"
    RUNNING = "running"
    FINISHED = "finished"


class Progress:
    """The consumer's place. Changed by the verbs of a loader.

    Attributes:
        begin: where the current iteration began, or the next one begins if none is.
        taken: steps taken in it.
    """

    def __init__(self) -> None:
        self.begin = Place()
        self.taken = 0
        self._ids = Digest()
        self._waiting: list[Int64Array] = []
        self._waiting_ids = 0
        self._phase = _Phase.READY

    @property
    def ids(self) -> Digest:
        """The digest of the record ids taken in the iteration, by this rank."""
        if self._waiting:
            self._ids = self._ids.add(np.concatenate(self._waiting))
            self._waiting, self._waiting_ids = [], 0
        return self._ids

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is ``epoch``. A loaded place in that same epoch is kept."""
        if epoch == self.begin.epoch and (self._phase is not _Phase.FINISHED or (self.begin.loaded and not self.taken)):
            self._reset(self.begin)
        else:
            self._reset(Place(epoch))

    def load(self, place: Place, geometry: Geometry) -> None:
        """The next iteration begins at ``place``."""
        self._reset(place)
        if place.records_done and not geometry.plan(place.records_done).steps:
            self._phase = _Phase.FINISHED

    def begin_iteration(self) -> Place:
        """Notes that an iteration begins; where."""
        self._reset(self.upcoming())
        self._phase = _Phase.RUNNING
        return self.begin

    def upcoming(self) -> Place:
        """Where the next iteration would begin."""
        return Place(self.begin.epoch + 1) if self._phase is _Phase.FINISHED else self.begin

    def took(self, ids_B: Int64Array) -> None:
        """Notes that the consumer took a batch."""
        self.taken += 1
        self._waiting.append(ids_B.copy())  # the batch is the consumer's, and may be changed or dropped
        self._waiting_ids += len(ids_B)
        if self._waiting_ids >= _IDS_TOGETHER or len(self._waiting) >= _BATCHES_TOGETHER:
            _ = self.ids

    def finish(self) -> None:
        """Notes that the iteration came to its end."""
        self._phase = _Phase.FINISHED

    def place(self, geometry: Geometry) -> Place:
        """Where the consumer is now."""
        delivered = self.begin.delivered
        if self.taken and delivered is not None:
            delivered = delivered.merge(self.ids) if geometry.world_size == 1 else None
        return replace(self.place_after(self.taken, geometry), delivered=delivered)

    def place_after(self, steps: int, geometry: Geometry) -> Place:
        """Where a consumer is that took so many steps from ``begin`` on, over the ends of epochs."""
        begin = self.begin
        while steps > (available := geometry.plan(begin.records_done).steps):
            steps -= available
            begin = Place(begin.epoch + 1)
        done = geometry.plan(begin.records_done).done_after(steps - 1)
        return Place(begin.epoch, done, begin.step + steps, begin.delivered if not steps else None, begin.loaded)

    def verify(self, geometry: Geometry) -> Verdict:
        """Compares the ids that this rank took with those it was due; see :meth:`Loader.verify_epoch`."""
        start, epoch, order = self.begin.records_done, self.begin.epoch, geometry.order
        plan = geometry.plan(start)
        if geometry.world_size > 1:
            ids_of = step_ids(order, plan, epoch, rank=geometry.rank)
            expected = Digest()
            for step in range(self.taken):
                expected = expected.add(ids_of(step))
            return Verdict(expected=expected, found=self.ids)
        stop, found = plan.done_after(self.taken - 1), self.ids
        if self.begin.delivered is not None:
            start, found = 0, self.begin.delivered.merge(found)
        return Verdict(expected=positions_digest(order, geometry.records, epoch, start, stop), found=found)

    def __repr__(self) -> str:
        return f"{self._phase.value} at step {self.begin.step + self.taken} of epoch {self.begin.epoch}"

    def _reset(self, place: Place) -> None:
        self.begin, self.taken, self._phase = place, 0, _Phase.READY
        self._ids, self._waiting, self._waiting_ids = Digest(), [], 0
