"""Rings and their pool: what is handed out, what comes back, and what is left of it. The model is in
tests/property/test_ring_model.py."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from fastio.buffers import Region, Ring, RingPool
from fastio.errors import ErrorKind, UnavailableError
from tests.unit.reader_support import rings_open

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def ring() -> Iterator[Ring]:
    one = Ring(4 * PAGE)
    yield one
    one.close()


def lease(ring: Ring, length_bytes: int) -> Region:
    region = ring.allocate(length_bytes)
    assert region is not None
    return region


def test_regions_begin_at_pages_and_hold_what_was_asked(ring: Ring) -> None:
    first, second = lease(ring, 1), lease(ring, PAGE + 1)
    assert (first.start, first.length_bytes, first.end) == (0, 1, PAGE)
    assert (second.start, second.length_bytes, second.end) == (PAGE, PAGE + 1, 3 * PAGE)
    assert ring.leased_bytes == 3 * PAGE


def test_capacity_is_rounded_up_to_pages() -> None:
    one = Ring(PAGE + 1)
    assert one.capacity_bytes == one.size_bytes == len(one.memory) == len(one.array) == 2 * PAGE
    one.close()


def test_a_ring_can_be_filled_to_the_last_byte_and_not_beyond(ring: Ring) -> None:
    regions = [lease(ring, PAGE) for _ in range(4)]
    assert ring.leased_bytes == ring.capacity_bytes
    assert ring.allocate(1) is None
    ring.free(regions[0])
    assert lease(ring, PAGE).start == 0
    assert ring.allocate(0) is None, "head and tail meet: full, not empty"
    assert ring.leased_bytes == ring.capacity_bytes


def test_nothing_takes_a_page_and_more_than_all_is_never_given(ring: Ring) -> None:
    assert lease(ring, 0).end == PAGE
    assert Ring.allocate(ring, 4 * PAGE + 1) is None


def test_room_returns_in_order_whatever_the_order_of_giving_back(ring: Ring) -> None:
    first, second = lease(ring, 2 * PAGE), lease(ring, 2 * PAGE)
    ring.free(second)
    assert ring.allocate(1) is None
    ring.free(first)
    assert ring.leased_bytes == 0
    assert lease(ring, 4 * PAGE).start == 0


def test_a_gap_at_the_end_counts_as_leased_until_it_is_passed(ring: Ring) -> None:
    first, second = lease(ring, 2 * PAGE), lease(ring, PAGE)
    ring.free(first)
    third = lease(ring, 2 * PAGE)  # does not fit behind the second: the last page is skipped
    assert (third.start, ring.leased_bytes) == (0, 4 * PAGE)
    ring.free(second)
    assert ring.leased_bytes == 2 * PAGE
    assert lease(ring, 2 * PAGE).start == 2 * PAGE


def test_giving_back_twice_is_giving_back_once(ring: Ring) -> None:
    first, second = lease(ring, PAGE), lease(ring, PAGE)
    ring.free(first)
    ring.free(first)
    assert ring.leased_bytes == PAGE
    ring.free(second)
    assert ring.leased_bytes == 0


def test_the_array_the_memory_and_the_descriptor_are_one(ring: Ring) -> None:
    ring.array[5] = 9
    os.pwrite(ring.fd, b"\x07", 6)
    assert bytes(ring.memory[5:7]) == b"\x09\x07"


def test_views_outlive_a_closed_ring() -> None:
    before = rings_open()
    one = Ring(PAGE)
    view = one.memory[:3]
    one.array[:3] = 1, 2, 3
    one.close()
    del one
    assert bytes(view) == b"\x01\x02\x03"
    view.release()
    assert rings_open() == before


def test_no_memory_is_an_error_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rings_open()

    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(UnavailableError, match=r"window of 4096 bytes .*lower window_bytes") as caught:
        Ring(1)
    assert caught.value.kind is ErrorKind.OVERLOADED
    assert rings_open() == before


def test_the_pool_lends_what_came_back_and_as_if_new() -> None:
    pool = RingPool(idle_bytes=16 * PAGE)
    used = pool.lease(8 * PAGE)
    lease(used, PAGE)  # lost: nobody will give it back
    pool.give_back(used)
    again = pool.lease(5 * PAGE - 1)
    assert again is used
    assert (again.capacity_bytes, again.size_bytes, again.leased_bytes) == (5 * PAGE, 8 * PAGE, 0)
    assert again.allocate(6 * PAGE) is None, "the window is what was asked for, however large the memory"
    pool.give_back(again)
    grown = pool.lease(8 * PAGE)
    assert grown is used
    assert grown.capacity_bytes == 8 * PAGE
    pool.give_back(grown)
    pool.close()


@pytest.mark.parametrize("capacity_bytes", [3 * PAGE, 9 * PAGE])
def test_the_pool_makes_a_ring_where_none_fits(capacity_bytes: int) -> None:
    pool = RingPool(idle_bytes=16 * PAGE)
    used = pool.lease(8 * PAGE)
    pool.give_back(used)
    other = pool.lease(capacity_bytes)
    assert other is not used
    other.close()
    pool.close()


def test_the_pool_keeps_no_more_than_its_limit_and_drops_the_oldest() -> None:
    before = rings_open()
    pool = RingPool(idle_bytes=4 * PAGE)
    rings = [pool.lease(2 * PAGE) for _ in range(3)]
    for one in rings:
        pool.give_back(one)
    kept = [pool.lease(2 * PAGE), pool.lease(2 * PAGE)]
    assert kept == rings[1:]
    for one in kept:
        pool.give_back(one)
    pool.give_back(Ring(5 * PAGE))  # alone beyond the limit
    del rings, kept, one
    assert rings_open() == before


def test_rings_that_come_back_after_the_end_are_freed() -> None:
    before = rings_open()
    pool = RingPool(idle_bytes=1 << 30)
    out, idle = pool.lease(PAGE), pool.lease(PAGE)
    pool.give_back(idle)
    pool.close()
    pool.give_back(out)
    del out, idle
    assert rings_open() == before
