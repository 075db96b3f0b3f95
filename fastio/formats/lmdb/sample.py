"""Does an index prove right? A few entries are compared with what LMDB itself returns for their keys.

Reading is kept small, because this happens at every open: small values are preferred, and of a large one only the
header of its first overflow page is looked at.
"""

from __future__ import annotations

import os

import numpy as np

from fastio.extents import ExtentTable
from fastio.formats.lmdb.environment import Hold
from fastio.formats.lmdb.index import Index
from fastio.formats.lmdb.meta import LmdbFile, Snapshot

__all__ = ["check_sample"]

_SAMPLES = 16
_CANDIDATES = 64
# At most 1/512 of the file, so that sampling stays well under the one per cent that opening may read; never less
# than what a handful of small values takes, never more than LMDB faults in within some 10 ms.
_FILE_SHARE = 512
_LEAST_BYTES, _MOST_BYTES = 64 << 10, 2 << 20
_SMALL_FILE_BYTES = 1 << 20
_OVERFLOW = 0x04


def check_sample(file: LmdbFile, snapshot: Snapshot | None, index: Index, hold: Hold) -> str | None:
    """What does not agree, or None. Without a transaction only the headers of overflow pages can be looked at."""
    if not index.records:
        return None
    generator = np.random.default_rng()
    few = file.size_bytes <= _SMALL_FILE_BYTES
    for field, table in enumerate(index.values):
        id_c = np.unique(generator.integers(0, index.records, 2 if few else _CANDIDATES))
        length_c = table.lookup(id_c).length_B
        id_s = id_c[np.argsort(length_c, kind="stable")][:_SAMPLES]
        wrong = _check_field(file, index, hold, field, id_s.tolist())
        if wrong is None and snapshot is not None and not few:
            wrong = _check_overflow(file, snapshot, table, int(id_c[length_c.argmax()]))
        if wrong is not None:
            return wrong
    return None


def _check_field(file: LmdbFile, index: Index, hold: Hold, field: int, ids: list[int]) -> str | None:
    import lmdb

    if hold.transaction is None:
        return None
    left_bytes = max(_LEAST_BYTES, min(_MOST_BYTES, file.size_bytes // _FILE_SHARE))
    for record in ids:
        offset, length = _extent(index.values[field], record)
        left_bytes -= length
        if left_bytes < 0:
            return None
        key = index.prefixes[field] + _key(file, index, record)
        if len(key) > hold.max_key_bytes:
            continue  # written by an LMDB that was built for longer keys
        # Read first: LMDB would fault the same pages in one by one.
        own = file.read(offset, length)
        try:
            theirs = hold.transaction.get(key)
        except lmdb.Error as error:
            return f"LMDB says {error} about key {key!r}"
        if theirs is None or theirs != own:
            found = "nothing" if theirs is None else f"another value of {len(theirs)} bytes"
            return f"record {record}: {length} bytes expected under key {key!r}, LMDB has {found}"
    return None


def _check_overflow(file: LmdbFile, snapshot: Snapshot, table: ExtentTable, record: int) -> str | None:
    """Looks at the header of the page on which a large value begins; small values lie inside leaf pages."""
    offset, length = _extent(table, record)
    page, header = divmod(offset, snapshot.page_bytes)
    if header != snapshot.header_bytes or length <= snapshot.page_bytes // 2:
        return None
    raw = file.read(page * snapshot.page_bytes, header)
    number, flags = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[header - 6 : header - 4], "little")
    pages = int.from_bytes(raw[header - 4 :], "little")
    # A value that was overwritten by a shorter one in the same transaction keeps its pages.
    if (number, flags) == (page, _OVERFLOW) and pages >= (header - 1 + length) // snapshot.page_bytes + 1:
        return None
    return f"record {record}: its {length} bytes should begin on page {page}, which holds something else"


def _extent(table: ExtentTable, record: int) -> tuple[int, int]:
    found = table.lookup(np.array([record], dtype=np.int64))
    return int(found.offset_B[0]), int(found.length_B[0])


def _key(file: LmdbFile, index: Index, record: int) -> bytes:
    offset, length = _extent(index.keys, record)
    if index.sidecar is None:
        return file.read(offset, length)
    with open(index.sidecar.path, "rb", buffering=0) as keys:
        return os.pread(keys.fileno(), length, offset)
