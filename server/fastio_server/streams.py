"""The open streams of a worker: opened within a bound on memory, and off the event loop.

Opening opens files and maps indexes, which takes as long as a slow disk does, so it happens in threads while the loop
goes on serving the other connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from fastio.dataset import Dataset
from fastio.errors import ErrorKind, UnavailableError
from fastio.reader import Reader, ReadStream
from fastio.spec import StreamSpec

__all__ = ["Streams"]

# Opens that may hang on a slow disk at the same time; the next ones queue.
_THREADS = 4


class Streams:
    """Opens and closes read streams whose windows together stay within ``memory_bytes``. Used from the event loop."""

    def __init__(self, reader: Reader, datasets: Mapping[str, Dataset], memory_bytes: int) -> None:
        self._reader = reader
        self._datasets = datasets
        self._memory_bytes = memory_bytes
        self._reserved_bytes = 0
        self._windows: dict[int, int] = {}
        self._opened = 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fastio-open")

    async def open(self, spec: StreamSpec, wake: Callable[[], None]) -> ReadStream:
        """Opens a stream; ``wake`` is called from reader threads when it has something.

        Raises:
            UnavailableError: the windows of the open streams leave too little memory for this one.
            FastioError: what the reader says is wrong with the spec or the data.
        """
        if self._reserved_bytes + spec.window_bytes > self._memory_bytes:
            raise UnavailableError(
                f"this worker has {self._memory_bytes - self._reserved_bytes} of {self._memory_bytes} bytes left for "
                f"windows, the stream asks for {spec.window_bytes}: use a smaller window_bytes, fewer streams, or give "
                "the daemon a larger max_memory_bytes",
                kind=ErrorKind.OVERLOADED,
            )
        self._reserved_bytes += spec.window_bytes
        try:
            stream = await asyncio.get_running_loop().run_in_executor(self._threads, self._open, spec, wake)
        except BaseException:
            self._reserved_bytes -= spec.window_bytes
            raise
        self._windows[id(stream)] = spec.window_bytes
        self._opened += 1
        return stream

    def close(self, stream: ReadStream) -> None:
        """Closes a stream that :meth:`open` returned. Batches on their way to a socket stay valid until released."""
        self._reserved_bytes -= self._windows.pop(id(stream))
        stream.close()

    def tidy(self) -> None:
        """Called every now and then: an idle worker keeps no data files mapped."""
        if not self._windows:
            self._threads.submit(self._reader.unmap_idle)

    def statistics(self) -> dict[str, int]:
        """Streams open now, opened ever, and bytes reserved by windows out of how many."""
        return {
            "open_streams": len(self._windows),
            "opened_streams": self._opened,
            "window_bytes": self._reserved_bytes,
            "memory_bytes": self._memory_bytes,
        }

    def shutdown(self) -> None:
        """Lets the threads go. Streams that are still open are the reader's to close."""
        self._threads.shutdown(wait=False)

    def __repr__(self) -> str:
        return f"Streams({len(self._windows)} open, {self._reserved_bytes} of {self._memory_bytes} bytes)"

    def _open(self, spec: StreamSpec, wake: Callable[[], None]) -> ReadStream:
        return self._reader.open_stream(self._datasets[spec.dataset], spec, wake, late_reads=True)
