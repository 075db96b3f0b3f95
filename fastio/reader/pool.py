"""A few threads and one queue: what the reader runs its pieces on.

``concurrent.futures`` costs 10-20 us a task for results and callbacks that nobody here wants; this is a queue.
Order: tasks start in the order they were submitted. Bounds: the queue has none of its own; each stream submits no more
than fits its ring. A task must not raise: it carries its own way of reporting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["ThreadQueue"]


class ThreadQueue:
    """``threads`` daemon threads that run what is submitted until :meth:`close`."""

    def __init__(self, *, threads: int, name: str) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        return f"<ThreadQueue {len(self._threads)} threads, {self._queue.qsize()} tasks waiting>"

    @property
    def waiting(self) -> int:
        """Tasks submitted and not yet started. Near 0: the threads keep up; large: they are the bottleneck."""
        return self._queue.qsize()

    def submit(self, task: Callable[[], None]) -> None:
        """Queues a task; returns at once."""
        self._queue.put(task)

    def close(self, *, timeout_s: float) -> None:
        """Ends the threads after what is queued; waits for each up to ``timeout_s``."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout_s)

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            task()
            del task  # a finished task must not keep its batch alive while this thread waits for the next
