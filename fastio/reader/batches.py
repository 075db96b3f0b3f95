"""Batches on their way: what a stream plans, one after another, and what it hands out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fastio.buffers import Region
from fastio.dataset import Dataset
from fastio.errors import ErrorKind, FastioError, RequestError, StoreError
from fastio.extents import BitTable, Int64Array
from fastio.files import FileSet, FileSpan
from fastio.order import EpochPlan, step_ids
from fastio.plan import BatchPlan, FieldSource, Reads, plan_batch
from fastio.reader.fetch import FailedReadError
from fastio.reader.sources import read_bits
from fastio.spec import FieldSpec, StreamSpec
from fastio.wire.messages import BatchDescriptor

__all__ = ["Batch", "BatchPlanner", "ReadyBatch"]


class BatchPlanner:
    """Plans the batches of one stream in step order, and knows how to name a record when something is wrong with it.

    Used by one thread at a time.
    """

    def __init__(self, dataset: Dataset, spec: StreamSpec, sources: tuple[FieldSource, ...], files: FileSet) -> None:
        self.fields: tuple[FieldSpec, ...] = tuple(source.field for source in sources)
        self._dataset = dataset
        self._spec = spec
        self._sources = sources
        self._files = files
        self._epoch_plan = EpochPlan(
            records=dataset.records,
            start_records=spec.start_records,
            batch_size=spec.batch_size,
            world_size=spec.world_size,
            tail=spec.tail,
        )
        self._ids = step_ids(
            spec.order, self._epoch_plan, spec.epoch, rank=spec.rank, worker=spec.worker, workers=spec.workers
        )
        self._next_step = spec.first_step + (spec.worker - spec.first_step) % spec.workers
        self.batches = max(0, -(-(self.steps - self._next_step) // spec.workers))

    @property
    def steps(self) -> int:
        """How many steps the rank takes from ``start_records`` on, over all of its workers."""
        return self._epoch_plan.steps

    def next(self) -> BatchPlan | None:
        """The plan of the next batch of this stream; None after the last.

        Raises:
            RequestError: the batch, or a record of it, is larger than the window.
            StoreError: what the plan depends on can't be read.
        """
        if self._next_step >= self.steps:
            return None
        step = self._next_step
        ids_B = self._ids(step)
        plan = plan_batch(self._sources, ids_B, step=step, epoch=self._spec.epoch, read_bits=self._read_bits)
        self._check_fits(plan)
        self._next_step = step + self._spec.workers
        return plan

    def explain(self, plan: BatchPlan, failed: FailedReadError, piece: Reads) -> StoreError:
        """The error of a failed read, with the record, shard and field that it belongs to."""
        record = int(plan.ids_B[piece.row_R[failed.read]])
        name = self.fields[piece.field].name
        message = f"field {name!r} of record {record} ({self._where(record)}): {failed.error}"
        return StoreError(message, kind=failed.error.kind)

    def _read_bits(self, table: BitTable, ids_B: Int64Array) -> npt.NDArray[np.bool_]:
        return read_bits(self._files, table, ids_B)

    def _check_fits(self, plan: BatchPlan) -> None:
        need, window = plan.layout.payload_bytes, self._spec.window_bytes
        if need <= window:
            return
        for reads in plan.reads:
            longest = int(reads.length_R.argmax())
            if reads.length_R[longest] > window:
                record = int(plan.ids_B[reads.row_R[longest]])
                raise RequestError(
                    f"record {record} ({self._where(record)}) has {reads.length_R[longest]} bytes in field "
                    f"{self.fields[reads.field].name!r}, but the window holds {window}; raise window_bytes",
                    kind=ErrorKind.RECORD_TOO_LARGE,
                )
        raise RequestError(
            f"the batch of step {plan.step} ({len(plan.ids_B)} records) needs {need} bytes, but the window holds "
            f"{window}; raise window_bytes or lower batch_size",
            kind=ErrorKind.RECORD_TOO_LARGE,
        )

    def _where(self, record: int) -> str:
        shard, place = self._dataset.locate(record)
        return f"record {place} of {shard}"


class Batch:
    """A batch between its plan and its release. ``pending`` pieces of it are still to be read; ``late`` ones will be
    read when they are sent.
    """

    __slots__ = ("error", "late", "pending", "plan", "region")

    def __init__(self, plan: BatchPlan, region: Region, *, pending: int, late: Sequence[Reads] = ()) -> None:
        self.plan = plan
        self.region = region
        self.pending = pending
        self.late = late
        self.error: FastioError | None = None


class ReadyBatch:
    """A batch whose bytes can be sent.

    Attributes:
        descriptor: what the payload holds.
        payload_bytes: its length.
        buffers: the payload, in order, to be gone through once: memory, and (with late reads) spans of files. Each is
            valid until the next is asked for, and none after :meth:`release`. Asking for one may block, and raise
            StoreError.
    """

    __slots__ = ("_release", "buffers", "descriptor", "payload_bytes")

    def __init__(
        self, batch: Batch, buffers: Iterable[memoryview | FileSpan], release: Callable[[Batch], None]
    ) -> None:
        plan = batch.plan
        self.descriptor = BatchDescriptor(plan.step, plan.epoch, len(plan.ids_B), plan.ragged_bytes)
        self.payload_bytes = plan.layout.payload_bytes
        self.buffers = buffers
        self._release: Callable[[], None] | None = lambda: release(batch)

    def release(self) -> None:
        """Gives the memory back; the buffers must not be used afterwards. Later calls do nothing.

        The room returns to the window when the batches taken before this one are released too.
        """
        release, self._release = self._release, None
        if release is not None:
            if isinstance(self.buffers, Generator):
                self.buffers.close()  # gives back the files it borrowed, if it was not gone through to its end
            self.buffers = ()
            release()
