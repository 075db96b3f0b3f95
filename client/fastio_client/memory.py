"""Memory for received batches: who may use it, and when does it come back?

A slot is a piece of anonymous memory. :meth:`SlotPool.lease` gives it out as a NumPy array, and whoever makes views of
that array owns the slot with them: NumPy, torch (``from_numpy``), Arrow buffers and memoryviews all keep the array they
came from alive. When the last of them dies, a finalizer gives the slot back to the pool. A consumer that keeps batches
costs memory, never a wait and never an overwrite.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from fastio.errors import ErrorKind, UnavailableError
from fastio.extents import UInt8Array

__all__ = ["MemoryStatistics", "SlotPool"]

_PAGE_BYTES = mmap.PAGESIZE
_HUGE_PAGE_BYTES = 2 << 20
# Sizes are rounded up to one of this many steps per doubling: batches of about one size share slots, and at most an
# eighth of a slot is never touched (and so never becomes memory).
_STEPS_PER_DOUBLING = 8


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """Slots in use and waiting for reuse, in bytes.

    Attributes:
        leased_bytes: held by batches that are alive or on their way. Growing without end: the consumer keeps batches.
        free_bytes: kept for the next batches.
    """

    leased_bytes: int
    free_bytes: int


class SlotPool:
    """Slots, recycled by size.

    Nothing here takes a lock, because a slot comes back from a finalizer, which can run inside any allocation of any
    thread, also inside this pool's own: a lock it waits for might be held by the very code it interrupts. What is used
    instead are single operations of deque and dict, which are atomic.

    Args:
        idle_bytes: how many bytes of free slots are kept, for each size in use.
    """

    def __init__(self, *, idle_bytes: int) -> None:
        self._idle_bytes = idle_bytes
        self._free_by_size: dict[int, deque[mmap.mmap]] = {}
        self._leased_by_number: dict[int, int] = {}
        self._numbers = iter(range(1 << 62))
        # Between threads that lease; never taken by a finalizer.
        self._lock = threading.Lock()

    def lease(self, length_bytes: int) -> UInt8Array:
        """Memory of ``length_bytes``, page aligned, its content undefined. It is given back when the array and every
        view of it are gone.

        Raises:
            UnavailableError: there is no memory.
        """
        size = slot_bytes(length_bytes)
        with self._lock:
            free = self._free_by_size.get(size)
            if free is None:
                free = self._free_by_size[size] = deque(maxlen=max(1, self._idle_bytes // size))
            number = next(self._numbers)
        try:
            memory = free.pop()
        except IndexError:
            memory = _allocate(size)
        slot = np.frombuffer(memory, dtype=np.uint8)
        # A deque that is full drops its oldest slot for the new one; that bounds what is kept, atomically.
        finalizer = weakref.finalize(slot, _give_back, free, memory, self._leased_by_number, number)
        finalizer.atexit = False
        self._leased_by_number[number] = size
        return slot[:length_bytes]

    def statistics(self) -> MemoryStatistics:
        """What is in use now."""
        free_bytes = sum(size * len(free) for size, free in list(self._free_by_size.items()))
        return MemoryStatistics(sum(list(self._leased_by_number.values())), free_bytes)

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<SlotPool {now.leased_bytes} bytes leased, {now.free_bytes} free>"


def slot_bytes(length_bytes: int) -> int:
    """The size of the slot for a payload: whole pages, few different ones.

    >>> [slot_bytes(length) for length in (0, 4096, 4097, 1_000_000, 28_000_000)]
    [4096, 4096, 8192, 1048576, 29360128]
    """
    step = max(_PAGE_BYTES, (1 << max(length_bytes - 1, 0).bit_length()) // (2 * _STEPS_PER_DOUBLING))
    return max(1, -(-length_bytes // step)) * step


def _allocate(size: int) -> mmap.mmap:
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise UnavailableError(
            f"no memory for a batch of {size} bytes ({error.strerror}); lower batch_size or window_bytes, "
            "or keep fewer batches",
            kind=ErrorKind.OVERLOADED,
        ) from error
    if size >= _HUGE_PAGE_BYTES:
        # One page fault for 2 MiB instead of 512. Filling a fresh slot of 28 MB takes 3.6 ms, without it 17; filling it
        # again 1.9 ms, without it 3.4.
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _give_back(free: deque[mmap.mmap], memory: mmap.mmap, leased_by_number: dict[int, int], number: int) -> None:
    leased_by_number.pop(number, None)
    free.append(memory)
