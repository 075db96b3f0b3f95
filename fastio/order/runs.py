"""The record ids of a range or of a step, generated in runs and handed out in slices.

A lone batch of a few hundred ids costs nearly as much as a run of tens of thousands, because the cost is that of the
calls into NumPy. So whole runs are generated and the last few kept. :func:`record_ids` fits readers that take most of
the positions in turn; :func:`step_ids` one rank of many, for which most of a contiguous run would be thrown away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fastio.errors import RequestError
from fastio.extents import Int64Array
from fastio.order.digest import Digest, expected_digest
from fastio.order.epoch import EpochPlan
from fastio.order.permutation import Permutation
from fastio.spec import OrderSpec

__all__ = ["RUNS_KEPT", "RUN_POSITIONS", "positions_digest", "record_ids", "step_ids"]

# Measured on one shared core, N = 10**8: 256 ids alone take 61 us, 8 Ki 185 us, 32 Ki 408 us (3 us per batch of 256),
# 64 Ki 724 us. Beyond 32 Ki the gain per position is below an eighth, and the first batch of a stream waits for a run.
RUN_POSITIONS = 1 << 15

# 4 runs of 256 KiB: a plan that begins in one run and ends in the next, and one look back.
RUNS_KEPT = 4

# Steps generated together by `step_ids`, at most: bounds are computed in Python, a microsecond or two for each.
_STEPS_TOGETHER = 256


def record_ids(order: OrderSpec, records: int, epoch: int) -> Callable[[int, int], Int64Array]:
    """A function from a half-open range of positions to the record ids that stand there, int64.

    The arrays it returns are read-only and may be kept, though one may keep a run of 256 KiB alive. One planner calls
    it at a time: it is not safe to call from two threads at once.

    Raises (the function returned):
        RequestError: the range is not inside [0, N].

    >>> ids = record_ids(OrderSpec(kind="sequential"), records=10, epoch=0)
    >>> ids(3, 6)
    array([3, 4, 5])
    """
    if order.kind == "sequential":
        return _SequentialIds(records)
    return _RunCache(Permutation(records, order.seed, epoch))


def step_ids(
    order: OrderSpec, plan: EpochPlan, epoch: int, *, rank: int = 0, worker: int = 0, workers: int = 1
) -> Callable[[int], Int64Array]:
    """A function from a step to the record ids that ``rank`` takes at it, int64; as cheap for one rank of a thousand
    as for the only one. Steps of this worker (``step % workers == worker``) are generated ahead; any other is
    answered too, at the price of a lone batch.

    Returned arrays as for :func:`record_ids`, and it is not safe to call from two threads at once either.
    """
    if order.kind == "sequential":
        ids_between = _SequentialIds(plan.records)
        return lambda step: ids_between(*plan.bounds(step, rank))
    return _StepCache(Permutation(plan.records, order.seed, epoch), plan, rank, worker, workers)


def positions_digest(order: OrderSpec, records: int, epoch: int, start: int, stop: int) -> Digest:
    """The digest of the records at positions [start, stop) of an epoch, in O(1) memory, at about 25 ns per record.

    What a run resumed at ``start`` must deliver over all ranks until ``stop``; for the whole epoch it is
    ``expected_digest(records)``, which owes nothing to the order.
    """
    if (start, stop) == (0, records):
        return expected_digest(records)
    ids_between = record_ids(order, records, epoch)
    total = Digest()
    for low in range(start, stop, RUN_POSITIONS):
        total = total.add(ids_between(low, min(low + RUN_POSITIONS, stop)))
    return total


@dataclass(frozen=True, slots=True)
class _SequentialIds:
    records: int

    def __call__(self, start: int, stop: int) -> Int64Array:
        _check_range(start, stop, self.records)
        return _read_only(np.arange(start, stop, dtype=np.int64))


@dataclass(slots=True)
class _RunCache:
    """Runs of RUN_POSITIONS aligned positions, the least recently used forgotten first."""

    permutation: Permutation
    _runs: OrderedDict[int, Int64Array] = field(default_factory=OrderedDict, repr=False)

    def __call__(self, start: int, stop: int) -> Int64Array:
        _check_range(start, stop, self.permutation.records)
        if start == stop:
            return _read_only(np.empty(0, dtype=np.int64))
        first, last = start // RUN_POSITIONS, (stop - 1) // RUN_POSITIONS
        if first == last:
            return self._run(first)[start - first * RUN_POSITIONS : stop - first * RUN_POSITIONS]
        if last - first >= RUNS_KEPT:  # more than is kept: nothing would be found again
            return _read_only(self.permutation.range_ids(start, stop))
        whole = np.concatenate([self._run(run) for run in range(first, last + 1)])
        return _read_only(whole)[start - first * RUN_POSITIONS : stop - first * RUN_POSITIONS]

    def _run(self, run: int) -> Int64Array:
        ids_B = self._runs.get(run)
        if ids_B is None:
            start = run * RUN_POSITIONS
            stop = min(start + RUN_POSITIONS, self.permutation.records)
            ids_B = self._runs[run] = _read_only(self.permutation.range_ids(start, stop))
            if len(self._runs) > RUNS_KEPT:
                self._runs.popitem(last=False)
        else:
            self._runs.move_to_end(run)
        return ids_B


@dataclass(slots=True)
class _StepCache:
    """The ids of the next steps of one worker of one rank, about RUN_POSITIONS of them."""

    permutation: Permutation
    plan: EpochPlan
    rank: int
    worker: int
    workers: int
    _ids_by_step: dict[int, Int64Array] = field(default_factory=dict, repr=False)

    def __call__(self, step: int) -> Int64Array:
        ids_B = self._ids_by_step.get(step)
        if ids_B is None:
            ids_B = self._generate(step)[step]
        return ids_B

    def _generate(self, step: int) -> dict[int, Int64Array]:
        together = min(max(RUN_POSITIONS // self.plan.batch_size, 1), _STEPS_TOGETHER)
        if step % self.workers != self.worker:
            together = 1
        steps = [step, *range(step + self.workers, self.plan.steps, self.workers)[: together - 1]]
        ranges = [self.plan.bounds(one, self.rank) for one in steps]
        ids_B = _read_only(self.permutation.ids(np.concatenate([np.arange(*between) for between in ranges])))
        ends = np.cumsum([stop - start for start, stop in ranges])
        ids_by_step = dict(zip(steps, np.split(ids_B, ends[:-1]), strict=True))
        if together > 1:
            self._ids_by_step = ids_by_step
        return ids_by_step


def _read_only(ids_B: Int64Array) -> Int64Array:
    ids_B.flags.writeable = False
    return ids_B


def _check_range(start: int, stop: int, records: int) -> None:
    if not 0 <= start <= stop <= records:
        raise RequestError(f"positions must lie in [0, {records}), got [{start}, {stop})")
