"""Slots: whoever holds a view owns the memory, and nobody else."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from fastio.errors import UnavailableError
from fastio_client.memory import SlotPool, slot_bytes

KEEPERS: dict[str, Callable[[Any], Any]] = {
    "the array": lambda slot: slot,
    "a slice": lambda slot: slot[3:7],
    "another type": lambda slot: slot[:64].view(np.int64).reshape(2, 4)[1],
    "an element by frombuffer": lambda slot: np.frombuffer(memoryview(slot)[8:16], dtype="<i8"),
    "a memoryview": lambda slot: memoryview(slot)[2:],
    "a tensor": lambda slot: torch.from_numpy(slot[:8].view(np.int32)),
    "a view of a tensor": lambda slot: torch.from_numpy(slot).view(-1)[4:],
    "an Arrow buffer": lambda slot: pa.py_buffer(slot[:32]),
    "an Arrow array": lambda slot: pa.Array.from_buffers(pa.int64(), 4, [None, pa.py_buffer(slot[:32])]),
    "NumPy of an Arrow array": lambda slot: pa.Array.from_buffers(
        pa.int64(), 4, [None, pa.py_buffer(slot[:32])]
    ).to_numpy(),
}


@pytest.mark.parametrize("how", KEEPERS)
def test_a_slot_is_its_holders_until_the_last_view_dies(how: str) -> None:
    pool = SlotPool(idle_bytes=1 << 20)
    slot: Any = pool.lease(4096)
    address = slot.__array_interface__["data"][0]
    kept = KEEPERS[how](slot)
    del slot
    gc.collect()
    other: Any = pool.lease(4096)
    assert other.__array_interface__["data"][0] != address
    assert pool.statistics().leased_bytes == 8192
    del kept
    gc.collect()
    assert pool.statistics().leased_bytes == 4096
    again: Any = pool.lease(4000)
    assert again.__array_interface__["data"][0] == address


def test_slots_are_writable_aligned_and_as_long_as_asked() -> None:
    pool = SlotPool(idle_bytes=1 << 20)
    for length in (0, 1, 4095, 4097, 3 << 20):
        slot = pool.lease(length)
        assert (len(slot), slot.flags.writeable) == (length, True)
        assert slot.ctypes.data % 4096 == 0
        slot[:] = 7


def test_free_slots_are_bounded_in_bytes() -> None:
    pool = SlotPool(idle_bytes=64 << 10)
    held = [pool.lease(8 << 10) for _ in range(100)]
    assert repr(pool) == "<SlotPool 819200 bytes leased, 0 free>"
    del held
    gc.collect()
    assert pool.statistics().free_bytes == 64 << 10


def test_a_slot_larger_than_the_bound_is_still_recycled() -> None:
    pool = SlotPool(idle_bytes=4096)
    slot = pool.lease(1 << 20)
    address = slot.ctypes.data
    del slot
    assert pool.lease(1 << 20).ctypes.data == address


def test_sizes_waste_at_most_an_eighth() -> None:
    sizes = set()
    for length in range(1, 1 << 22, 1009):
        size = slot_bytes(length)
        assert length <= size
        assert size % 4096 == 0
        assert size <= max(length + 4096, length * 9 / 8 + 1)
        sizes.add(size)
    assert len(sizes) < 100


def test_views_outlive_the_pool() -> None:
    pool = SlotPool(idle_bytes=1 << 20)
    view = pool.lease(4096)[10:20]
    view[:] = 5
    del pool
    gc.collect()
    assert view.tolist() == [5] * 10


def test_no_memory_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UnavailableError, match=r"no memory for a batch of \d+ bytes .*; lower batch_size"):
        SlotPool(idle_bytes=0).lease(1 << 60)


def test_threads_that_lease_and_drop_never_share_a_slot() -> None:
    pool = SlotPool(idle_bytes=1 << 20)
    wrong: list[int] = []

    def work(mark: int) -> None:
        held = []
        for turn in range(300):
            slot = pool.lease(4096 * (1 + turn % 2))
            slot[:] = mark
            held.append(slot)
            if len(held) > 3:
                wrong.extend(int(kept[0]) for kept in held if not (kept == mark).all())
                held.clear()

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    assert pool.statistics().leased_bytes == 0


def test_a_slot_may_come_back_while_another_is_leased() -> None:
    """The cyclic collector runs inside allocations: here inside every one, with slots held by cycles."""
    pool = SlotPool(idle_bytes=1 << 20)
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(200):
            cycle: list[Any] = [pool.lease(4096)]
            cycle.append(cycle)
            del cycle
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert pool.statistics().leased_bytes == 0
