"""The ring against an obvious model: a list of leased pages, searched from the head on."""

from __future__ import annotations

import os
from collections import deque

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastio.buffers import Region, Ring

PAGE = os.sysconf("SC_PAGE_SIZE")
PAGES = 7


class RingMachine(RuleBasedStateMachine):
    """Leases and gives back at random. The model keeps, oldest first, which pages each lease holds and whether it was
    given back, and finds room by trying: behind the newest lease, else at the front, never on a page in use.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(PAGES * PAGE)
        self.capacity = PAGES
        self.leases: deque[tuple[range, Region, int]] = deque()
        self.stamp = 0

    def teardown(self) -> None:
        self.ring.close()

    def blocked(self) -> set[int]:
        """Pages that can't be leased: from the oldest lease that is out, round to the end of the newest."""
        if not self.leases:
            return set()
        page, end = self.leases[0][0].start, self.leases[-1][0].stop
        pages = {page}
        page = (page + 1) % self.capacity
        while page != end % self.capacity:
            pages.add(page)
            page = (page + 1) % self.capacity
        return pages

    def find(self, pages: int) -> range | None:
        head = self.leases[-1][0].stop if self.leases else 0
        blocked = self.blocked()
        for start in (head, 0):
            place = range(start, start + pages)
            if place.stop > self.capacity or blocked & set(place):
                continue
            # Beginning again at 0 is allowed only where the lease stays behind the oldest one.
            if self.leases and start < head and self.leases[0][0].start >= head:
                continue
            if self.leases and start != head and place.stop > self.leases[0][0].start:
                continue
            return place
        return None

    @rule(length=st.integers(0, (PAGES + 1) * PAGE))
    def allocate(self, length: int) -> None:
        place = self.find(max(1, -(-length // PAGE)))
        region = self.ring.allocate(length)
        assert (region is None) == (place is None)
        if region is None or place is None:
            return
        assert (region.start, region.end) == (place.start * PAGE, place.stop * PAGE)
        assert region.length_bytes == length
        self.stamp = (self.stamp + 1) % 256
        self.ring.array[region.start : region.end] = self.stamp
        self.leases.append((place, region, self.stamp))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.leases) - 1))
        self.ring.free(self.leases[index][1])
        while self.leases and self.leases[0][1].freed:
            self.leases.popleft()

    @precondition(lambda self: not self.leases)
    @rule(pages=st.integers(1, PAGES))
    def reset(self, pages: int) -> None:
        self.ring.reset(pages * PAGE)
        self.capacity = pages

    @invariant()
    def what_is_leased_is_never_written_by_another(self) -> None:
        for _, region, stamp in self.leases:
            if not region.freed:
                assert np.all(self.ring.array[region.start : region.end] == stamp)

    @invariant()
    def the_accounts_are_right(self) -> None:
        assert self.ring.leased_bytes == len(self.blocked()) * PAGE
        assert self.ring.leased_bytes <= self.ring.capacity_bytes == self.capacity * PAGE


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=60, stateful_step_count=40)
