"""Reading many pages of an LMDB file at once, and decoding their headers and nodes with no Python per page or record.

Pages are asked for in the order of their keys and read in the order of the file. Everything decoded is checked before
it is used as an address: a damaged page is an error that names it, never a wrong read.

Dimensions: P pages of one block in key order, n nodes of all these pages in key order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fastio.errors import ErrorKind, StoreError
from fastio.extents import Int64Array, UInt8Array
from fastio.formats.lmdb.meta import LmdbFile, Snapshot, corrupt
from fastio.formats.lmdb.ragged import gather_fixed

__all__ = ["BRANCH", "LEAF", "Nodes", "PageBlock", "check_pages", "decode_nodes", "read_blocks", "refuse_nodes"]

BRANCH = 0x01
LEAF = 0x02

# A block is read while the one before is parsed. 4 MiB keep the device busy (128 KiB random reads saturate the
# measured one at depth 32) and the decoded arrays of small records within reach of the cache.
_BLOCK_BYTES = 4 << 20
# The kernel silently caps one WILLNEED at the larger of read_ahead_kb and the device's largest request.
_ADVICE_BYTES = 128 << 10
_NODE_BYTES = 8
_SLACK_BYTES = 8  # so that eight bytes may be taken from any even position of a page


@dataclass(frozen=True, slots=True)
class PageBlock:
    """Pages as they were read.

    Attributes:
        flat: the bytes of the pages in file order, and some slack behind them.
        page_P: page numbers, in key order.
        start_P: where in ``flat`` each of them begins.
    """

    flat: UInt8Array
    page_P: Int64Array
    start_P: Int64Array


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes of a block's pages: ``head_n`` is a node's first 8 bytes as one number, ``start_n`` its place in the
    block's ``flat``, ``in_page_n`` its offset within its page, ``count_P`` how many each page has.
    """

    count_P: Int64Array
    start_n: Int64Array
    in_page_n: Int64Array
    head_n: npt.NDArray[np.uint64]

    @property
    def key_bytes_n(self) -> Int64Array:
        return (self.head_n >> np.uint64(48)).astype(np.int64)

    @property
    def flags_n(self) -> npt.NDArray[np.uint16]:
        return (self.head_n >> np.uint64(32)).astype(np.uint16)

    @property
    def value_bytes_n(self) -> npt.NDArray[np.uint32]:
        """Of leaf nodes: the length of the value."""
        return self.head_n.astype(np.uint32)

    @property
    def child_n(self) -> Int64Array:
        """Of branch nodes: the page below."""
        return (self.head_n & np.uint64((1 << 48) - 1)).astype(np.int64)


def check_pages(file: LmdbFile, snapshot: Snapshot, page_P: Int64Array, parent: int) -> None:
    """Refuses page numbers that are not in the snapshot or not in the file.

    Raises:
        StoreError: CORRUPT or TRUNCATED, naming the page.
    """
    outside_P = (page_P < 2) | (page_P > snapshot.last_page)
    if outside_P.any():
        page = int(page_P[outside_P.argmax()])
        raise corrupt(file.path, parent, f"it or a neighbour points at page {page} of {snapshot.last_page + 1}")
    last = int(page_P.max(initial=0))
    if (last + 1) * snapshot.page_bytes > file.size_bytes:
        message = f"{file.path} is truncated: page {last} would end beyond its {file.size_bytes} bytes"
        raise StoreError(f"{message}; restore it from a copy", kind=ErrorKind.TRUNCATED)


def read_blocks(file: LmdbFile, snapshot: Snapshot, page_N: Int64Array) -> Iterator[PageBlock]:
    """The pages in the order given (their keys'), some MiB at a time, each block read in file order and the next one
    asked for ahead. The page numbers must have been checked.
    """
    step = max(1, _BLOCK_BYTES // snapshot.page_bytes)
    if len(page_N) > 1:
        _advise(file, snapshot, np.sort(page_N[:step]))
    for first in range(0, len(page_N), step):
        if first + step < len(page_N):
            _advise(file, snapshot, np.sort(page_N[first + step : first + 2 * step]))
        yield _read_block(file, snapshot, page_N[first : first + step])


def decode_nodes(file: LmdbFile, snapshot: Snapshot, block: PageBlock, kind: int) -> Nodes:
    """Checks the pages' headers and finds all their nodes.

    Raises:
        StoreError: CORRUPT, naming the page.
    """
    half = block.flat.view("<u2")
    header, base, size = snapshot.header_bytes, snapshot.page_base, snapshot.page_bytes
    floor = header - base
    number_P = gather_fixed(block.flat, block.start_P, 8).view("<u8").astype(np.int64)
    at_P = (block.start_P + header) // 2
    flags_P, lower_P, upper_P = half[at_P - 3], half[at_P - 2].astype(np.int64), half[at_P - 1].astype(np.int64)
    _refuse(file, block, number_P != block.page_P, "it carries the number of another page")
    name = "leaf" if kind == LEAF else "branch"
    _refuse(file, block, flags_P != kind, f"it is not the {name} page that it should be")
    bad_P = (lower_P <= floor) | (lower_P > upper_P) | (upper_P > size - base) | ((lower_P - floor) % 2 != 0)
    _refuse(file, block, bad_P, "its free space has impossible bounds")
    count_P = (lower_P - floor) >> 1
    first_P = np.cumsum(count_P) - count_P
    slot_n = np.arange(int(count_P.sum())) + np.repeat(at_P - first_P, count_P)
    in_page_n = half[slot_n].astype(np.int64) + base
    least_n = np.repeat(upper_P + base, count_P)
    bad_n = (in_page_n < least_n) | (in_page_n > size - _NODE_BYTES) | (in_page_n % 2 != 0)
    refuse_nodes(file, block, count_P, bad_n, "a node lies outside it")
    start_n = in_page_n + np.repeat(block.start_P, count_P)
    head_n = gather_fixed(block.flat, start_n, _NODE_BYTES).view("<u8")
    nodes = Nodes(count_P, start_n, in_page_n, head_n)
    refuse_nodes(file, block, count_P, in_page_n + _NODE_BYTES + nodes.key_bytes_n > size, "a key runs over its end")
    return nodes


def refuse_nodes(
    file: LmdbFile, block: PageBlock, count_P: Int64Array, bad_n: npt.NDArray[np.bool_], what: str
) -> None:
    """Raises CORRUPT for the page of the first bad node, if there is one."""
    if bad_n.any():
        page = int(np.searchsorted(np.cumsum(count_P), int(bad_n.argmax()), side="right"))
        raise corrupt(file.path, int(block.page_P[page]), what)


def _refuse(file: LmdbFile, block: PageBlock, bad_P: npt.NDArray[np.bool_], what: str) -> None:
    if bad_P.any():
        raise corrupt(file.path, int(block.page_P[bad_P.argmax()]), what)


def _runs(page_P: Int64Array) -> Iterator[tuple[int, int]]:
    """The stretches of adjacent pages in a sorted array, as (index of the first, how many)."""
    if not len(page_P):
        return iter(())
    edges = [0, *((np.flatnonzero(page_P[1:] - page_P[:-1] != 1) + 1).tolist()), len(page_P)]
    return ((begin, end - begin) for begin, end in pairwise(edges))


def _advise(file: LmdbFile, snapshot: Snapshot, page_P: Int64Array) -> None:
    for first, count in _runs(page_P):
        begin = int(page_P[first]) * snapshot.page_bytes
        for offset in range(begin, begin + count * snapshot.page_bytes, _ADVICE_BYTES):
            length = min(_ADVICE_BYTES, begin + count * snapshot.page_bytes - offset)
            os.posix_fadvise(file.fd, offset, length, os.POSIX_FADV_WILLNEED)


def _read_block(file: LmdbFile, snapshot: Snapshot, page_P: Int64Array) -> PageBlock:
    size = snapshot.page_bytes
    order_P = np.argsort(page_P, kind="stable")
    sorted_P = page_P[order_P]
    flat = np.empty(len(page_P) * size + _SLACK_BYTES, dtype=np.uint8)
    flat[-_SLACK_BYTES:] = 0
    view = memoryview(flat.data)
    for first, count in _runs(sorted_P):
        _read_into(file, view[first * size : (first + count) * size], int(sorted_P[first]) * size)
    start_P = np.empty(len(page_P), dtype=np.int64)
    start_P[order_P] = np.arange(len(page_P)) * size
    return PageBlock(flat, page_P, start_P)


def _read_into(file: LmdbFile, view: memoryview, offset: int) -> None:
    try:
        while view.nbytes:
            got = os.preadv(file.fd, [view], offset)
            if not got:
                message = f"{file.path} was truncated while it was indexed; restore it from a copy"
                raise StoreError(message, kind=ErrorKind.TRUNCATED)
            view, offset = view[got:], offset + got
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot read {file.path}: {error.strerror}", kind=ErrorKind.UNREADABLE) from error
