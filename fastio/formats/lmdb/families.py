"""Which keys are the same name with another number: ``image-000000001``, ``image-000000002``, ...?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastio.extents import Int64Array
from fastio.formats.lmdb.entries import Entries, id_chunks
from fastio.formats.lmdb.ragged import gather_fixed

__all__ = ["MAX_FAMILIES", "Family", "find_families", "same_suffixes"]

# A record of more parts than this is not what such keys mean; it also bounds the search in keys of another habit.
MAX_FAMILIES = 16
_MAX_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Family:
    """Entries ``start .. start + count - 1``, whose keys are ``prefix`` and digits."""

    prefix: bytes
    start: int
    count: int

    @property
    def field(self) -> str:
        """The field's name: the prefix without what separates it from the number; empty if that is not text."""
        try:
            name = self.prefix.decode().rstrip("-_./: ")
        except UnicodeDecodeError:
            return ""
        return name if name.isprintable() else ""


def find_families(entries: Entries, ranges: list[tuple[int, int]]) -> tuple[Family, ...] | str:
    """All entries of the ranges as families in key order, or why they are not that."""
    families: list[Family] = []
    for start, stop in ranges:
        for id_n in id_chunks(start, stop):
            skip_n = _prefix_lengths(entries, id_n)
            if (skip_n == 0).any() or (skip_n == entries.key_length_N[id_n]).any():
                return "keys are not names with numbers"
            begins_n = np.flatnonzero(_begins(entries, id_n, skip_n))
            if len(families) + len(begins_n) > 2 * MAX_FAMILIES:
                return f"keys have more than {MAX_FAMILIES} names"
            for begin, end in zip(begins_n.tolist(), [*begins_n[1:].tolist(), len(id_n)], strict=True):
                prefix = entries.key(int(id_n[begin]))[: int(skip_n[begin])]
                _add(families, Family(prefix, int(id_n[begin]), end - begin))
    if len({family.prefix for family in families}) < len(families):
        return "keys of one name are interrupted by others"
    if len(families) > MAX_FAMILIES:
        return f"keys have more than {MAX_FAMILIES} names"
    return tuple(families)


def same_suffixes(entries: Entries, one: Family, other: Family) -> bool:
    """Whether two families of one size have the same numbers, written the same."""
    for id_n in id_chunks(0, one.count):
        a, b = id_n + one.start, id_n + other.start
        a_length, b_length = entries.key_length_N[a].astype(np.int64), entries.key_length_N[b].astype(np.int64)
        if not np.array_equal(a_length - len(one.prefix), b_length - len(other.prefix)):
            return False
        if not np.array_equal(entries.keys(a, len(one.prefix)), entries.keys(b, len(other.prefix))):
            return False
    return True


def _add(families: list[Family], found: Family) -> None:
    """Appends a run of keys, joining it to the last family if it goes on with that one."""
    if families and families[-1].prefix == found.prefix and families[-1].start + families[-1].count == found.start:
        last = families.pop()
        found = Family(last.prefix, last.start, last.count + found.count)
    families.append(found)


def _prefix_lengths(entries: Entries, id_n: Int64Array) -> Int64Array:
    """The length of each key without the digits at its end (20 at most)."""
    length_n = entries.key_length_N[id_n].astype(np.int64)
    end_n = entries.key_start_N[id_n] + length_n
    digits_n = np.zeros(len(id_n), dtype=np.int64)
    alive = np.arange(len(id_n))
    for back in range(1, _MAX_DIGITS + 1):
        alive = alive[length_n[alive] >= back]
        byte_n = entries.key_bytes[end_n[alive] - back]
        alive = alive[(byte_n >= 48) & (byte_n <= 57)]
        digits_n[alive] = back
    return length_n - digits_n


def _begins(entries: Entries, id_n: Int64Array, skip_n: Int64Array) -> npt.NDArray[np.bool_]:
    """Which keys have another name than the key before; the first always does."""
    same_n = np.zeros(len(id_n), dtype=np.bool_)
    equal_n = np.flatnonzero(skip_n[1:] == skip_n[:-1]) + 1
    start_N = entries.key_start_N
    for skip in np.unique(skip_n[equal_n]).tolist():
        at = equal_n[skip_n[equal_n] == skip]
        here = gather_fixed(entries.key_bytes, start_N[id_n[at]], skip).view(np.uint8).reshape(-1, skip)
        before = gather_fixed(entries.key_bytes, start_N[id_n[at - 1]], skip).view(np.uint8).reshape(-1, skip)
        same_n[at] = (here == before).all(axis=1)
    return ~same_n
