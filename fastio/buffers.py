"""Memory for batches: one ring per stream, allocated front to back, given back in any order.

A stream's batches are produced and consumed in order, so a ring is all the allocator it needs: exact accounting (the
ring *is* the look-ahead window), no fragmentation, and one descriptor. The memory is a memfd, because the kernel can
then gather small records straight into it (``pwritev``), and because it can be shared with another process by passing
the descriptor; nothing is named, so nothing is left behind when a process is killed.

Who owns what: the ring owns the memory; a :class:`Region` is leased with :meth:`Ring.allocate` and given back with
:meth:`Ring.free`, once. Views of a region are valid until then.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from fastio.errors import ErrorKind, UnavailableError
from fastio.extents import UInt8Array

__all__ = ["Region", "Ring", "RingPool"]

_PAGE_BYTES = mmap.PAGESIZE


@dataclass(slots=True, eq=False)
class Region:
    """A leased piece ``[start, start + length_bytes)`` of a ring. ``end`` is where the ring's next region begins."""

    start: int
    length_bytes: int
    end: int
    freed: bool = False


class Ring:
    """A ring of ``capacity_bytes`` (rounded up to pages) that hands out contiguous, page-aligned regions.

    Not locked: its stream calls it under its own lock.

    Attributes:
        capacity_bytes: what may be leased at a time.
        size_bytes: the memory behind it; more than the capacity in a ring that was larger once.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = self.size_bytes = _whole_pages(capacity_bytes)
        self.fd = os.memfd_create("fastio-ring", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, self.capacity_bytes)
            memory = mmap.mmap(self.fd, self.capacity_bytes)
        except OSError as error:
            os.close(self.fd)
            raise UnavailableError(
                f"no memory for a window of {self.capacity_bytes} bytes ({error.strerror}); lower window_bytes",
                kind=ErrorKind.OVERLOADED,
            ) from error
        self.memory = memoryview(memory)
        self.array: UInt8Array = np.frombuffer(memory, dtype=np.uint8)
        self._leased: deque[Region] = deque()

    def __repr__(self) -> str:
        return f"<Ring {self.leased_bytes}/{self.capacity_bytes} bytes leased in {len(self._leased)} regions>"

    @property
    def leased_bytes(self) -> int:
        """Bytes that can't be allocated now: leased ones, and gaps between them."""
        if not self._leased:
            return 0
        tail, head = self._leased[0].start, self._leased[-1].end
        return head - tail if head > tail else self.capacity_bytes - tail + head

    def allocate(self, length_bytes: int) -> Region | None:
        """Leases a region of ``length_bytes`` (at least 1), or None where there is no room now."""
        size = _whole_pages(max(1, length_bytes))
        start = self._place(size)
        if start is None:
            return None
        region = Region(start, length_bytes, start + size)
        self._leased.append(region)
        return region

    def free(self, region: Region) -> None:
        """Gives a region back. Its room returns to the ring when all regions leased before it are back too."""
        region.freed = True
        while self._leased and self._leased[0].freed:
            self._leased.popleft()

    def _place(self, size: int) -> int | None:
        if size > self.capacity_bytes:
            return None
        if not self._leased:
            return 0
        tail, head = self._leased[0].start, self._leased[-1].end
        if head > tail:  # leased memory is one piece: room behind it, else in front of it
            if self.capacity_bytes - head >= size:
                return head
            return 0 if tail >= size else None
        return head if tail - head >= size else None

    def reset(self, capacity_bytes: int) -> None:
        """Makes the ring empty, whoever leased from it, and ``capacity_bytes`` (at most its size) its capacity."""
        self._leased.clear()
        self.capacity_bytes = _whole_pages(capacity_bytes)

    def close(self) -> None:
        """Gives the memory up; it is freed when the last view of it is gone."""
        os.close(self.fd)


class RingPool:
    """Keeps the rings of closed streams for the next ones: touching fresh memory for the first time costs more than
    filling it (0.25 s per GB of page faults here), and each epoch opens a stream of the same size again.

    Args:
        idle_bytes: how much unused ring memory is kept at most.
    """

    def __init__(self, *, idle_bytes: int) -> None:
        self._idle_limit_bytes = idle_bytes
        self._idle: list[Ring] = []
        self._closed = False
        self._lock = threading.Lock()

    def lease(self, capacity_bytes: int) -> Ring:
        """An empty ring of this capacity (in whole pages); the memory behind it may be up to twice as large."""
        with self._lock:
            for ring in self._idle:
                if capacity_bytes <= ring.size_bytes <= 2 * _whole_pages(capacity_bytes):
                    self._idle.remove(ring)
                    ring.reset(capacity_bytes)
                    return ring
        return Ring(capacity_bytes)

    def give_back(self, ring: Ring) -> None:
        """Takes a ring back that nobody reads from or writes to any more."""
        with self._lock:
            self._idle.append(ring)
            surplus = []
            limit_bytes = 0 if self._closed else self._idle_limit_bytes
            while sum(idle.size_bytes for idle in self._idle) > limit_bytes:
                surplus.append(self._idle.pop(0))
        for idle in surplus:
            idle.close()

    def close(self) -> None:
        """Frees all unused rings; one that comes back later is freed then."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for ring in idle:
            ring.close()


def _whole_pages(length_bytes: int) -> int:
    return -(-length_bytes // _PAGE_BYTES) * _PAGE_BYTES
