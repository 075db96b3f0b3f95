"""Where does every entry of an LMDB snapshot lie? Walks the main tree without touching a value.

Branch pages level by level, then leaf pages; of a value on overflow pages only the pointer in its leaf is read. Parsing
happens here and not through LMDB because LMDB's own cursor touches every page of every value, and because LMDB may
end the process on a damaged file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastio.errors import ErrorKind, StoreError
from fastio.extents import Int64Array, UInt8Array
from fastio.formats.base import Progress
from fastio.formats.lmdb.meta import LmdbFile, Snapshot, corrupt
from fastio.formats.lmdb.pages import (
    BRANCH,
    LEAF,
    Nodes,
    PageBlock,
    check_pages,
    decode_nodes,
    read_blocks,
    refuse_nodes,
)
from fastio.formats.lmdb.ragged import gather, gather_fixed

__all__ = ["EntryChunk", "walk"]

_BIG, _SUB_DATABASE, _DUPLICATES = 0x01, 0x02, 0x04
_NODE_BYTES = 8
# What a leaf holds of a big value: its first page (0.9); first page, transaction and number of pages (1.0).
_BIG_NODE_BYTES = {16: 8, 24: 24}


@dataclass(frozen=True, slots=True)
class EntryChunk:
    """Some consecutive entries in key order.

    Attributes:
        key_bytes: their keys, one after another.
        key_length_n: the length of each.
        key_offset_n: where each key lies in the data file.
        value_offset_n, value_length_n: where each value lies in the data file.
    """

    key_bytes: UInt8Array
    key_length_n: npt.NDArray[np.uint16]
    key_offset_n: Int64Array
    value_offset_n: Int64Array
    value_length_n: npt.NDArray[np.uint32]


def walk(file: LmdbFile, snapshot: Snapshot, progress: Progress | None = None) -> Iterator[EntryChunk]:
    """All entries of the main tree in key order, a block of pages at a time.

    Raises:
        StoreError: CORRUPT or TRUNCATED, naming the page; UNSUPPORTED_LAYOUT for sub-databases.
    """
    if snapshot.root is None:
        return
    leaf_N = _leaf_pages(file, snapshot, snapshot.root)
    found, pages_done, last_prefix = 0, 0, 0
    for block in read_blocks(file, snapshot, leaf_N):
        nodes = decode_nodes(file, snapshot, block, LEAF)
        if snapshot.ordered:
            last_prefix = _check_order(file, block, nodes, last_prefix)
        yield _entries(file, snapshot, block, nodes)
        found, pages_done = found + len(nodes.head_n), pages_done + len(block.page_P)
        if progress is not None:
            progress(pages_done * snapshot.page_bytes, len(leaf_N) * snapshot.page_bytes)
    if found != snapshot.entries:
        what = f"the tree below it holds {found} entries, the meta page says {snapshot.entries}"
        raise corrupt(file.path, snapshot.root, what)


def _leaf_pages(file: LmdbFile, snapshot: Snapshot, root: int) -> Int64Array:
    """The numbers of all leaf pages in key order."""
    level_N = np.array([root], dtype=np.int64)
    check_pages(file, snapshot, level_N, 0)
    seen = [level_N]
    for _ in range(snapshot.depth - 1):
        below: list[Int64Array] = []
        total = 0
        for block in read_blocks(file, snapshot, level_N):
            child_n = decode_nodes(file, snapshot, block, BRANCH).child_n
            check_pages(file, snapshot, child_n, int(block.page_P[0]))
            below.append(child_n)
            total += len(child_n)
            # A tree cannot have more pages than the file: without this bound a few crossed pointers could ask for
            # exponentially many.
            if total > snapshot.last_page:
                raise corrupt(file.path, root, "its tree has more pages than the file")
        level_N = np.concatenate(below)
        seen.append(level_N)
        _refuse_twice(file, np.concatenate(seen))
    return level_N


def _refuse_twice(file: LmdbFile, page_N: Int64Array) -> None:
    sorted_N = np.sort(page_N)
    twice_N = sorted_N[1:][sorted_N[1:] == sorted_N[:-1]]
    if len(twice_N):
        raise corrupt(file.path, int(twice_N[0]), "it is reached twice in the tree")


def _check_order(file: LmdbFile, block: PageBlock, nodes: Nodes, before: int) -> int:
    """Refuses keys that descend in their first 8 bytes; returns those of the last key."""
    prefix_n = gather_fixed(block.flat, nodes.start_n + _NODE_BYTES, 8).view(">u8").astype(np.uint64)
    short_n = np.maximum(8 - nodes.key_bytes_n, 0).astype(np.uint64) * np.uint64(8)
    # Shifting a 64-bit number by 64 is undefined: an empty key cannot be stored in LMDB, so it is damage.
    refuse_nodes(file, block, nodes.count_P, short_n == 64, "it holds an empty key")
    prefix_n = prefix_n >> short_n << short_n
    descends_n = np.concatenate([prefix_n[:1] < np.uint64(before), prefix_n[1:] < prefix_n[:-1]])
    refuse_nodes(file, block, nodes.count_P, descends_n, "its keys are out of order")
    return int(prefix_n[-1])


def _entries(file: LmdbFile, snapshot: Snapshot, block: PageBlock, nodes: Nodes) -> EntryChunk:
    flags_n, key_n, value_n = nodes.flags_n, nodes.key_bytes_n, nodes.value_bytes_n
    key_start_n = nodes.start_n + _NODE_BYTES
    skip_n = _NODE_BYTES + (key_n + (key_n & 1) if snapshot.even_keys else key_n)
    odd_n = flags_n & ~np.uint16(_BIG)
    if odd_n.any():
        _refuse_flags(file, block, nodes)
    big_n = np.flatnonzero(flags_n)
    held_n = value_n.astype(np.int64)
    held_n[big_n] = _BIG_NODE_BYTES[snapshot.header_bytes]
    beyond_n = nodes.in_page_n + skip_n + held_n > snapshot.page_bytes
    refuse_nodes(file, block, nodes.count_P, beyond_n, "a value runs over its end")
    to_file_n = np.repeat(block.page_P * snapshot.page_bytes - block.start_P, nodes.count_P)
    offset_n = nodes.start_n + skip_n
    if len(big_n):
        page_b = _big_pages(file, snapshot, block, nodes, big_n)
        offset_n[big_n] = page_b * snapshot.page_bytes + snapshot.header_bytes - to_file_n[big_n]
    return EntryChunk(
        key_bytes=gather(block.flat, key_start_n, key_n),
        key_length_n=key_n.astype(np.uint16),
        key_offset_n=key_start_n + to_file_n,
        value_offset_n=offset_n + to_file_n,
        value_length_n=value_n,
    )


def _big_pages(
    file: LmdbFile, snapshot: Snapshot, block: PageBlock, nodes: Nodes, big_n: npt.NDArray[np.intp]
) -> Int64Array:
    """The first overflow page of each big value, all of whose pages are checked to lie in the file."""
    key_b = nodes.key_bytes_n[big_n]
    at_b = nodes.start_n[big_n] + _NODE_BYTES + (key_b + (key_b & 1) if snapshot.even_keys else key_b)
    page_b = gather_fixed(block.flat, at_b, 8).view("<u8").astype(np.int64)
    need_b = (snapshot.header_bytes - 1 + nodes.value_bytes_n[big_n].astype(np.int64)) // snapshot.page_bytes + 1
    has_b = need_b
    if snapshot.header_bytes == 24:
        # A value that was overwritten by a shorter one in the same transaction keeps its pages.
        has_b = np.minimum(gather_fixed(block.flat, at_b + 16, 8).view("<u8"), np.uint64(1 << 48)).astype(np.int64)
    # A number of 2**63 and above has become negative; one near it may overflow when the length is added.
    bad_b = (page_b < 2) | (page_b > snapshot.last_page) | (page_b + has_b > snapshot.last_page + 1) | (has_b < need_b)
    bad_n = np.zeros(len(nodes.head_n), dtype=np.bool_)
    bad_n[big_n] = bad_b
    refuse_nodes(file, block, nodes.count_P, bad_n, "a value's overflow pages lie outside the file")
    end_b = page_b + need_b - 1
    check_pages(file, snapshot, end_b, int(block.page_P[0]))
    return page_b


def _refuse_flags(file: LmdbFile, block: PageBlock, nodes: Nodes) -> None:
    """Raises what the flags of a node other than 'plain' and 'big' mean."""
    flags_n = nodes.flags_n
    refuse_nodes(file, block, nodes.count_P, (flags_n & ~np.uint16(7)) != 0, "a node has unknown flags")
    duplicates_n = (flags_n & _DUPLICATES) != 0
    refuse_nodes(file, block, nodes.count_P, duplicates_n, "a node holds duplicates where none are allowed")
    sub_n = np.flatnonzero(flags_n == _SUB_DATABASE)[:8]
    if not len(sub_n):
        refuse_nodes(file, block, nodes.count_P, flags_n > 2, "a node has impossible flags")
        return
    starts, lengths = nodes.start_n[sub_n] + _NODE_BYTES, nodes.key_bytes_n[sub_n]
    raw = [bytes(block.flat[s : s + n]) for s, n in zip(starts, lengths, strict=True)]
    names = [name.rstrip(b"\0").decode(errors="replace") for name in raw]  # LMDB 1.0 stores the final zero
    message = f"{file.path} holds named sub-databases ({', '.join(names)}), which are not read"
    remedy = f"copy one into an environment of its own: mdb_dump -s {names[0]} SRC | mdb_load DST"
    raise StoreError(f"{message}; {remedy}", kind=ErrorKind.UNSUPPORTED_LAYOUT)
