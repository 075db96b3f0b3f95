"""Which entries of an environment are records, in which order, and which of them belong together?

Decided from the keys alone, which are all that is looked at. The habits recognised are those under which LMDB data sets
are published: bookkeeping keys that are no records, decimal keys whose byte order is not their numeric order, and two
or more keys for one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastio.errors import RequestError
from fastio.extents import Int64Array
from fastio.formats.lmdb.entries import Entries, id_chunks
from fastio.formats.lmdb.families import Family, find_families, same_suffixes

__all__ = ["LAYOUTS", "RESERVED_KEYS", "Arrangement", "arrange"]

LAYOUTS = ("auto", "plain", "decimal", "pairs")

# Keys under which writers keep counts, lists of keys and pickled metadata beside the records.
RESERVED_KEYS = (b"__keys__", b"__len__", b"__metadata__", b"length", b"nextid", b"num-samples", b"num_examples")

# Families are taken for the parts of one record only if one of them is named so; "cat-001" and "dog-001" are classes.
_PARTS = frozenset({"caption", "gt", "image", "img", "input", "label", "lq", "mask", "target", "text"})

Ids = Callable[[], Iterator[Int64Array]]


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How records are made of entries.

    Attributes:
        fields: the name of each value field, with the entry of every record, in chunks.
        key_skip: how many leading bytes of the (first field's) key are left out of the stored one.
        prefixes: what goes before the stored key to get each field's key.
        with_key: whether the key is a field too.
        records: how many there are.
        sentence: what was recognised, and why.
    """

    fields: tuple[tuple[str, Ids], ...]
    prefixes: tuple[bytes, ...]
    key_skip: int
    with_key: bool
    records: int
    sentence: str


def arrange(entries: Entries, *, ordered: bool, layout: str) -> Arrangement:
    """Decides how the entries are read; ``layout`` "auto" recognises, any other insists.

    Raises:
        RequestError: the keys do not allow the layout asked for.
    """
    ranges, left_out = _without_reserved(entries) if ordered else ([(0, len(entries))], "")
    records = sum(stop - start for start, stop in ranges)
    why = "as asked for"
    if layout in ("auto", "decimal") and records:
        order = _decimal_order(entries, ranges)
        if isinstance(order, tuple):
            why, ids = order
            return _plain(ids, records, f"every key is a decimal number{why}; fields key and value{left_out}")
        why = order
        if layout == "decimal":
            raise RequestError(f"layout 'decimal' was asked for, but {why}; leave it out to get key order")
    if layout in ("auto", "pairs") and records:
        parts = _paired(entries, ranges, insist=layout == "pairs")
        if isinstance(parts, tuple):
            return _pairs(entries, parts, left_out)
        why = f"{why}, and {parts}" if layout == "auto" else parts
        if layout == "pairs":
            raise RequestError(f"layout 'pairs' was asked for, but {why}; leave it out to get one record per key")
    ids = _in_key_order(ranges)
    if not records:
        return _plain(ids, 0, f"no records; fields key and value{left_out}")
    return _plain(ids, records, f"one record per key, in key order ({why}); fields key and value{left_out}")


def _plain(ids: Ids, records: int, sentence: str) -> Arrangement:
    return Arrangement((("value", ids),), (b"",), 0, True, records, sentence)


def _without_reserved(entries: Entries) -> tuple[list[tuple[int, int]], str]:
    """The ranges of entries between the reserved keys, and what to say about these."""
    found = sorted((place, key) for key in RESERVED_KEYS if (place := entries.find(key)) is not None)
    edges = [-1, *(place for place, _ in found), len(entries)]
    ranges = [(a + 1, b) for a, b in pairwise(edges) if a + 1 < b]
    names = ", ".join(key.decode() for _, key in found)
    return ranges, f"; left out, as bookkeeping: {names}" if found else ""


def _in_key_order(ranges: list[tuple[int, int]]) -> Ids:
    return lambda: (ids for start, stop in ranges for ids in id_chunks(start, stop))


def _by_length(entries: Entries, ranges: list[tuple[int, int]], lengths: list[int]) -> Ids:
    """Shorter keys first, and keys of one length in key order: for decimals without leading zeros, numeric order."""

    def ids() -> Iterator[Int64Array]:
        for length in lengths:
            for chunk in _in_key_order(ranges)():
                yield chunk[entries.key_length_N[chunk] == length]

    return ids


def _decimal_order(entries: Entries, ranges: list[tuple[int, int]]) -> tuple[str, Ids] | str:
    """The numeric order, if every key is a decimal number and their order is plain; else why not."""
    lengths: set[int] = set()
    padded: set[int] = set()
    for ids in _in_key_order(ranges)():
        keys = entries.keys(ids)
        if (keys - np.uint8(48) > 9).any():
            return "keys are not decimal numbers"
        length_n = entries.key_length_N[ids]
        lengths.update(np.unique(length_n).tolist())
        zero_n = entries.key_bytes[entries.key_start_N[ids]] == 48
        padded.update(np.unique(length_n[zero_n]).tolist())
    if len(lengths) == 1:
        return f" of {min(lengths)} digits, so key order is numeric order", _in_key_order(ranges)
    # Shorter is smaller unless a longer number begins with zeros that a shorter one has not.
    if padded - {min(lengths)}:
        return "keys are decimal numbers padded to different lengths"
    return ", so records are in numeric order", _by_length(entries, ranges, sorted(lengths))


def _paired(entries: Entries, ranges: list[tuple[int, int]], *, insist: bool) -> tuple[Family, ...] | str:
    """The families of keys whose equally numbered members make one record, or why there are none."""
    families = find_families(entries, ranges)
    if isinstance(families, str):
        return families
    names = ", ".join(f"{family.prefix.decode(errors='replace')}* ({family.count})" for family in families)
    if len(families) < 2:
        return f"there is one family of numbered keys: {names}"
    if len({family.field for family in families}) < len(families) or not all(family.field for family in families):
        return f"the families of numbered keys have no names for fields: {names}"
    if len({family.count for family in families}) > 1:
        return f"the families of numbered keys are not of equal size: {names}"
    if not insist and not _PARTS & {family.field.lower() for family in families}:
        return f"the families of numbered keys {names} are not named like parts of a record (layout 'pairs' joins them)"
    if not all(same_suffixes(entries, families[0], other) for other in families[1:]):
        return f"the families of numbered keys {names} do not have the same numbers"
    return families


def _pairs(entries: Entries, families: tuple[Family, ...], left_out: str) -> Arrangement:
    first = families[0]
    spread = np.unique(entries.key_length_N[first.start : first.start + first.count]).tolist()
    fields = []
    for family in families:
        lengths = [length - len(first.prefix) + len(family.prefix) for length in spread]
        fields.append((family.field, _by_length(entries, [(family.start, family.start + family.count)], lengths)))
    names = " and ".join(family.field for family in families)
    keys = " / ".join(family.prefix.decode(errors="replace") + "N" for family in families)
    sentence = f"keys {keys} have the same numbers, so the values of each number are one record; fields {names}"
    prefixes = tuple(family.prefix for family in families)
    return Arrangement(tuple(fields), prefixes, len(first.prefix), False, first.count, f"{sentence}{left_out}")
