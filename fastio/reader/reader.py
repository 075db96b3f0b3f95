"""The owner of everything that reading takes: threads, open files, rings. One per process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from fastio import pagecache
from fastio.buffers import RingPool
from fastio.dataset import Dataset
from fastio.errors import ClosedError
from fastio.files import FileSet, default_descriptor_limit
from fastio.reader.batches import BatchPlanner
from fastio.reader.pool import ThreadQueue
from fastio.reader.sources import field_sources
from fastio.reader.statistics import ReaderStatistics
from fastio.reader.stream import ReadStream, SharedParts
from fastio.spec import StreamSpec

__all__ = ["DEFAULT_READ_THREADS", "Reader"]

# 4 threads, each with a piece of 32 reads in flight, reach the device's limit for 110 KB records here (1.0-1.2 GB/s,
# the rate of 64 threads with one read each); 8 leave room for devices with twice that depth.
DEFAULT_READ_THREADS = 8
# Two windows of the default size: what the next epoch of a pair of ranks takes over from the last.
_IDLE_RING_BYTES = 512 << 20
_CLOSE_TIMEOUT_S = 5.0


class Reader:
    """Reads the streams of one process. Threads start here and end in :meth:`close`.

    Args:
        threads: read threads; each has a piece of up to 32 reads in flight.
        memory_bytes: what the page cache may hold; None asks the system when a stream is opened.
    """

    def __init__(self, *, threads: int = DEFAULT_READ_THREADS, memory_bytes: int | None = None) -> None:
        self._memory_bytes = memory_bytes
        self._rings = RingPool(idle_bytes=_IDLE_RING_BYTES)
        self._planner = ThreadQueue(threads=1, name="fastio-plan")
        self._readers = ThreadQueue(threads=threads, name="fastio-read")
        self._lock = threading.Lock()
        self._files: dict[Dataset, FileSet] = {}
        self._streams: set[ReadStream] = set()
        self._closed = False
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<Reader {len(self._streams)} streams, {self._readers!r}>"

    def open_stream(
        self, dataset: Dataset, spec: StreamSpec, wake: Callable[[], None], *, late_reads: bool = False
    ) -> ReadStream:
        """Begins to read a stream ahead.

        Args:
            dataset: stays open, and owned by the caller, until the reader is closed.
            spec: what to read; ``spec.dataset`` is not looked at.
            wake: called from threads of the reader whenever a batch became ready or the stream failed; must return
                at once and must not call the stream.
            late_reads: large records that are in the page cache may stay there: a batch's buffers then name them as
                :class:`~fastio.files.FileSpan`. For consumers that can send those.

        Raises:
            ClosedError: the reader was closed, or belongs to the process that this one was forked from.
            RequestError: a field is unknown, or there are fewer records than ranks.
            UnavailableError: there is no memory for the window.
        """
        self._check_usable()
        names = dataset.select(spec.fields)
        memory_bytes = pagecache.available_memory_bytes() if self._memory_bytes is None else self._memory_bytes
        files = self._files_of(dataset)
        sources = field_sources(dataset, names, files, memory_bytes=memory_bytes)
        planner = BatchPlanner(dataset, spec, sources, files)
        parts = SharedParts(files=files, rings=self._rings, planner=self._planner, readers=self._readers)
        with self._lock:
            self._check_usable()  # again: close() comes before, or finds this stream
            stream = ReadStream(
                planner,
                parts,
                window_bytes=spec.window_bytes,
                late_reads=late_reads,
                wake=wake,
                on_retired=self._streams.discard,
            )
            self._streams.add(stream)
            return stream

    def unmap_idle(self) -> None:
        """Unmaps what no stream is reading, if there is no stream at all. Pages that a process maps can be neither
        dropped by others nor reclaimed cheaply, so an idle reader should not hold them; call it once in a while.
        """
        with self._lock:
            if not self._streams:
                for files in self._files.values():
                    files.unmap()

    def statistics(self) -> ReaderStatistics:
        """A snapshot; may be called at any time from any thread."""
        return ReaderStatistics(len(self._streams), self._readers.waiting, self._planner.waiting)

    def close(self) -> None:
        """Closes all streams, ends the threads, closes the files. Batches must not be used afterwards.

        In a process that was forked from the reader's own there is nothing to end, and nothing is done.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for stream in list(self._streams):
            stream.close()
        self._planner.close(timeout_s=_CLOSE_TIMEOUT_S)
        self._readers.close(timeout_s=_CLOSE_TIMEOUT_S)
        self._rings.close()
        for files in self._files.values():
            files.close()

    def _files_of(self, dataset: Dataset) -> FileSet:
        with self._lock:
            self._check_usable()
            files = self._files.get(dataset)
            if files is None:
                self._files[dataset] = files = FileSet(dataset.files, descriptor_limit=default_descriptor_limit())
            return files

    def _check_usable(self) -> None:
        if self._closed:
            raise ClosedError("the reader was closed")
        if os.getpid() != self._pid:
            raise ClosedError(f"the reader belongs to process {self._pid}, its threads did not follow; make a new one")
