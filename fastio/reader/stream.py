"""One stream: batches planned ahead as far as the ring has room, read in any order, handed out in step order.

The look-ahead window is the ring: a batch is planned when its region can be leased, and a region returns when its
batch was released. So memory is bounded by ``window_bytes`` whatever the consumer does, and a slow consumer stops the
planning, not the threads.

Threads: ``_plan`` runs on the planner thread, at most one at a time; pieces run on read threads; ``take``, ``close``
and the batches' ``release`` on the consumer's. ``_lock`` guards all state and is held for no I/O.

Why ``_plan_again``: room that returns while ``_plan`` runs can't start another ``_plan``, and the running one may
already have seen a full ring. Without the note that it must look again, both sides would wait for ever.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from fastio.buffers import Ring, RingPool
from fastio.errors import ClosedError, ErrorKind, FastioError, StoreError
from fastio.files import FileSet, FileSpan
from fastio.plan import BatchPlan, Reads
from fastio.reader.batches import Batch, BatchPlanner, ReadyBatch
from fastio.reader.fetch import FailedReadError, fetch
from fastio.reader.late import chunks
from fastio.reader.pieces import divide, write_known
from fastio.reader.pool import ThreadQueue
from fastio.reader.statistics import StreamStatistics
from fastio.spec import FieldSpec

__all__ = ["ReadStream", "SharedParts"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedParts:
    """What streams share; the reader owns it."""

    files: FileSet
    rings: RingPool
    planner: ThreadQueue
    readers: ThreadQueue


class ReadStream:
    """The batches of one :class:`~fastio.spec.StreamSpec`, read ahead.

    Made by :meth:`fastio.reader.Reader.open_stream`.
    """

    def __init__(
        self,
        planner: BatchPlanner,
        parts: SharedParts,
        *,
        window_bytes: int,
        late_reads: bool,
        wake: Callable[[], None],
        on_retired: Callable[[ReadStream], None],
    ) -> None:
        self.fields: tuple[FieldSpec, ...] = planner.fields
        self.steps = planner.steps
        self._planner = planner
        self._parts = parts
        self._late_reads = late_reads
        self._wake = wake
        self._on_retired = on_retired
        self._lock = threading.Lock()
        self._ring: Ring | None = parts.rings.lease(window_bytes)
        self._waiting: BatchPlan | None = None  # planned, and waiting for room
        self._planning = False
        self._plan_again = False
        self._all_planned = False
        self._batches: deque[Batch] = deque()  # planned and not yet taken, in order
        self._open_pieces = 0
        self._unreleased = 0
        self._error: FastioError | None = None
        self._closed = False
        self._pid = os.getpid()
        self._taken = np.zeros(3, dtype=np.int64)  # batches, records, bytes
        self._read = np.zeros(2, dtype=np.int64)  # reads, waited reads
        self._start_planning()

    def __repr__(self) -> str:
        s = self.statistics()
        state = f"{s.ready_batches} ready, {s.leased_bytes}/{s.window_bytes} bytes leased"
        return f"<ReadStream {s.batches}/{self._planner.batches} batches taken, {'closed' if self._closed else state}>"

    @property
    def finished(self) -> bool:
        """Whether every batch of this stream has been taken."""
        return bool(self._taken[0] >= self._planner.batches)

    def take(self) -> ReadyBatch | None:
        """The next batch in order, or None if it is not ready yet, or all have been taken.

        Raises:
            FastioError: the stream failed at this batch; it stays failed.
            ClosedError: the stream was closed, or belongs to the process that this one was forked from.
        """
        if os.getpid() != self._pid:
            raise ClosedError(f"the stream belongs to process {self._pid}, its threads did not follow; open a new one")
        with self._lock:
            if self._closed or self._ring is None:
                raise ClosedError("the stream was closed")
            if not self._batches:
                if self._error is not None:
                    raise self._error
                return None
            batch = self._batches[0]
            if batch.error is not None:
                raise batch.error
            if batch.pending:
                return None
            self._batches.popleft()
            self._unreleased += 1
            ready = ReadyBatch(batch, self._buffers(batch, self._ring), self._release)
            self._taken += (1, len(batch.plan.ids_B), ready.payload_bytes)
            return ready

    def close(self) -> None:
        """Stops reading. Batches that were taken stay valid until they are released. Returns at once."""
        with self._lock:
            self._closed = True
        self._retire()

    def statistics(self) -> StreamStatistics:
        """A snapshot; may be called at any time from any thread."""
        with self._lock:
            ring = self._ring
            batches, records, payload_bytes = self._taken.tolist()
            reads, waited_reads = self._read.tolist()
            return StreamStatistics(
                batches=batches,
                records=records,
                payload_bytes=payload_bytes,
                reads=reads,
                waited_reads=waited_reads,
                leased_bytes=ring.leased_bytes if ring else 0,
                window_bytes=ring.capacity_bytes if ring else 0,
                ready_batches=sum(not batch.pending for batch in self._batches),
            )

    def _buffers(self, batch: Batch, ring: Ring) -> Iterable[memoryview | FileSpan]:
        start = batch.region.start
        payload = ring.memory[start : start + batch.plan.layout.payload_bytes]
        if not batch.late:
            return (payload,)
        explain = partial(self._planner.explain, batch.plan)
        return chunks(payload, batch.late, self._parts.files, explain)

    def _release(self, batch: Batch) -> None:
        with self._lock:
            self._unreleased -= 1
            if self._ring is not None:
                self._ring.free(batch.region)
        self._start_planning()
        self._retire()

    def _start_planning(self) -> None:
        with self._lock:
            self._plan_again = self._planning
            if self._planning or self._closed or self._all_planned or self._error is not None:
                return
            self._planning = True
            # Under the lock: close() comes either before, and nothing is queued, or after, and the queue still runs it.
            self._parts.planner.submit(self._plan)

    def _plan(self) -> None:
        """Plans one batch and queues its reads, then queues itself again, so that streams take turns."""
        try:
            progress = self._plan_one()
        except FastioError as error:
            self._fail(error)
            progress = False
        except Exception as error:  # a bug must end this stream with a message, not the planner of all streams
            self._fail(StoreError(f"planning failed: {error!r}", kind=ErrorKind.INTERNAL))
            progress = False
        with self._lock:
            self._planning = False
            again, self._plan_again = progress or self._plan_again, False
        if again:
            self._start_planning()
        self._retire()

    def _plan_one(self) -> bool:
        plan, self._waiting = self._waiting or self._planner.next(), None
        if plan is None:
            self._all_planned = True
            return False
        with self._lock:
            ring = self._ring
            region = None if self._closed or ring is None else ring.allocate(plan.layout.payload_bytes)
        if region is None or ring is None:
            self._waiting = plan
            return False
        write_known(plan, ring.array[region.start : region.end])
        late, pieces = divide(plan, self._parts.files if self._late_reads else None)
        batch = Batch(plan, region, pending=len(pieces), late=late)
        with self._lock:
            self._batches.append(batch)
            self._open_pieces += len(pieces)
            self._read[0] += sum(map(len, late))
        for piece in pieces:
            self._parts.readers.submit(_PieceTask(self, batch, piece, ring))
        if not pieces:
            self._notify()
        return True

    def _fail(self, error: FastioError) -> None:
        with self._lock:
            self._error = error
        self._notify()

    def _notify(self) -> None:
        if not self._closed:  # what `wake` would wake may be gone
            _call(self._wake)

    def _read_piece(self, batch: Batch, piece: Reads, ring: Ring) -> None:
        error: FastioError | None = None
        waited = 0
        if not self._closed and batch.error is None:
            waited, error = _fetch(self._planner, self._parts.files, ring, batch, piece)
        with self._lock:
            batch.pending -= 1
            batch.error = batch.error or error
            self._open_pieces -= 1
            self._read += (len(piece), waited)
            news = (not batch.pending or batch.error is not None) and bool(self._batches) and self._batches[0] is batch
        if news:
            self._notify()
        self._retire()

    def _retire(self) -> None:
        """Gives the ring back once the stream is closed and nobody writes to it or reads from it any more."""
        with self._lock:
            busy = self._open_pieces or self._unreleased or self._planning
            if not self._closed or busy or self._ring is None:
                return
            ring, self._ring = self._ring, None
            self._batches.clear()
        self._parts.rings.give_back(ring)
        self._on_retired(self)


@dataclass(slots=True)
class _PieceTask:
    """A piece on its way to a read thread."""

    stream: ReadStream
    batch: Batch
    piece: Reads
    ring: Ring

    def __call__(self) -> None:
        self.stream._read_piece(self.batch, self.piece, self.ring)


def _fetch(
    planner: BatchPlanner, files: FileSet, ring: Ring, batch: Batch, piece: Reads
) -> tuple[int, FastioError | None]:
    """How many reads of the piece had to wait, and what went wrong."""
    try:
        return fetch(piece, files=files, ring=ring, base=batch.region.start), None
    except FailedReadError as failed:
        return 0, planner.explain(batch.plan, failed, piece)
    except FastioError as error:
        return 0, error
    except Exception as error:  # a bug must end this stream with a message, not a thread that others use
        return 0, StoreError(f"reading failed: {error!r}", kind=ErrorKind.INTERNAL)


def _call(wake: Callable[[], None]) -> None:
    try:
        wake()
    except Exception:  # an event loop that was closed without a word must not end a thread that others use
        _log.exception("the callback %r, which wakes the consumer of a stream, failed", wake)
