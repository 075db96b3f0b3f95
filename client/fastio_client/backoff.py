"""How long to wait before the next attempt? Pure: the caller waits, and tells the time."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["delays_s"]

_FIRST_S = 0.05
_LONGEST_S = 5.0


def delays_s(random_unit: random.Random) -> Iterator[float]:
    """Waits between attempts: none, then doubling up to 5 s, each spread over half its length, so that the ranks of a
    job do not all come back in the same instant.

    >>> [round(delay, 2) for delay, _ in zip(delays_s(random.Random(1)), range(5))]
    [0.0, 0.03, 0.09, 0.18, 0.25]
    """
    yield 0.0
    longest = _FIRST_S
    while True:
        yield longest * (0.5 + 0.5 * random_unit.random())
        longest = min(2 * longest, _LONGEST_S)
