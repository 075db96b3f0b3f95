"""Which positions of an epoch does a rank take at a step, so that all ranks take equally many steps?

Arithmetic on integers only: nothing here knows the permutation, and nothing of size N or of the number of steps exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from fastio.errors import ErrorKind, RequestError
from fastio.spec import Tail

__all__ = ["EpochPlan"]


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """How the rest of one epoch is cut into steps, and each step into one batch per rank.

    Let W be the world size, B the batch size and R = ``records - start_records`` what is left. Step s takes the WB
    positions from ``start_records + sWB`` on; rank r takes the r-th run of B of them. If R is not a multiple of WB:

    - ``tail="drop"``: the incomplete step is left out.
    - ``tail="even"``: the last two steps (the only one, if R < WB) share what the full steps before them leave, as
      evenly as can be: first the larger half, each half cut into W contiguous runs that differ by at most one record.
      Every record is delivered once, no batch exceeds B, and no batch is empty, wherever arithmetic allows that. It
      does not where fewer records than ranks are left: at the end of an epoch with B = 1, or on a resume. Then the
      highest ranks get an empty batch in the last step, and still every rank takes every step.

    Taking the first k steps and planning the rest anew from ``done_after(k - 1)`` with the same W and B gives the same
    remaining batches, for every k.

    Args:
        records: N, of the whole dataset.
        start_records: positions of this epoch already delivered, over all ranks.
        batch_size: B, per rank.
        world_size: W.
        tail: ``"even"`` or ``"drop"``.

    Raises:
        RequestError: a number is out of its range; or a fresh epoch has nothing for some rank (N < W, or N < WB with
            ``tail="drop"``): an epoch of no steps would make a training loop spin or hang without a word.
    """

    records: int
    start_records: int
    batch_size: int
    world_size: int
    tail: Tail = "even"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise RequestError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.world_size < 1:
            raise RequestError(f"world_size must be at least 1, got {self.world_size}", kind=ErrorKind.BAD_RANK)
        if self.tail not in get_args(Tail):
            raise RequestError(f"tail must be one of {', '.join(map(repr, get_args(Tail)))}, got {self.tail!r}")
        if not 0 <= self.start_records <= max(self.records, 0):
            limit = f"[0, {self.records}], the records of the dataset"
            raise RequestError(f"start_records must lie in {limit}, got {self.start_records}")
        self._check_enough()

    def _check_enough(self) -> None:
        if self.start_records > 0:
            return
        if self.records < self.world_size:
            raise RequestError(
                f"the dataset has fewer records ({self.records}) than there are ranks ({self.world_size}): "
                "every rank needs at least one; use fewer ranks",
                kind=ErrorKind.TOO_FEW_RECORDS,
            )
        if self.tail == "drop" and self.records < self._step_records:
            raise RequestError(
                f'the dataset has {self.records} records, and tail="drop" leaves out steps of fewer than '
                f"{self._step_records} (batch_size {self.batch_size} x world_size {self.world_size}), which leaves "
                'no step at all; use a smaller batch_size or tail="even"',
                kind=ErrorKind.TOO_FEW_RECORDS,
            )

    @property
    def steps(self) -> int:
        """How many steps every rank takes from ``start_records`` on; 0 if nothing is left."""
        return self._full_steps + len(self._last_shares)

    @property
    def end_records(self) -> int:
        """Positions delivered, over all ranks, once all steps are done: N, or less with ``tail="drop"``."""
        return self.done_after(self.steps - 1)

    def bounds(self, step: int, rank: int) -> tuple[int, int]:
        """The half-open range of positions that ``rank`` takes at ``step``. Microseconds: called once per batch.

        Raises:
            RequestError: the step is not in [0, steps) or the rank not in [0, W).

        >>> plan = EpochPlan(records=10, start_records=0, batch_size=2, world_size=2)
        >>> [[plan.bounds(step, rank) for rank in range(2)] for step in range(plan.steps)]
        [[(0, 2), (2, 4)], [(4, 6), (6, 7)], [(7, 9), (9, 10)]]
        """
        if not 0 <= rank < self.world_size:
            message = f"rank must be in [0, world_size={self.world_size}), got {rank}"
            raise RequestError(message, kind=ErrorKind.BAD_RANK)
        if 0 <= step < self._full_steps:
            start = self.start_records + (step * self.world_size + rank) * self.batch_size
            return start, start + self.batch_size
        if not 0 <= step < self.steps:
            raise RequestError(f"step must be in [0, steps={self.steps}), got {step}")
        start = self.done_after(step - 1)
        each, one_more = divmod(self.done_after(step) - start, self.world_size)
        start += rank * each + min(rank, one_more)
        return start, start + each + (rank < one_more)

    def done_after(self, step: int) -> int:
        """Positions of the epoch delivered, over all ranks, once ``step`` is done; ``start_records`` for step -1.

        Raises:
            RequestError: the step is not in [-1, steps).
        """
        full = self._full_steps
        if not -1 <= step < self.steps:
            raise RequestError(f"step must be in [-1, steps={self.steps}), got {step}")
        last = self._last_shares[: max(step + 1 - full, 0)]
        return self.start_records + min(step + 1, full) * self._step_records + sum(last)

    @property
    def _step_records(self) -> int:
        return self.world_size * self.batch_size

    @property
    def _full_steps(self) -> int:
        """Steps of WB records: all of them, less the one that has to share with an incomplete last one."""
        full, rest = divmod(self.records - self.start_records, self._step_records)
        return full - 1 if rest and full and self.tail == "even" else full

    @property
    def _last_shares(self) -> tuple[int, ...]:
        """Records of the steps after the full ones: none, one or two numbers."""
        if self.tail == "drop":
            return ()
        shared = self.records - self.start_records - self._full_steps * self._step_records
        if shared <= self._step_records:
            return (shared,) if shared else ()
        # Not less than one for each rank: with B = 1 an even split would leave empty batches in both steps.
        first = max(-(-shared // 2), self.world_size)
        return (first, shared - first)
