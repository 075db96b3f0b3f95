"""The slow way to an index: LMDB's own cursor, for a layout that is not known or does not prove right.

It touches every page of every value, so that it reads the whole file once; the progress says how far it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from fastio.errors import ErrorKind, StoreError
from fastio.formats.base import Progress
from fastio.formats.lmdb.environment import Hold
from fastio.formats.lmdb.meta import LmdbFile
from fastio.formats.lmdb.tree import EntryChunk

__all__ = ["walk_by_cursor"]

_CHUNK_RECORDS = 1 << 14


def walk_by_cursor(file: LmdbFile, hold: Hold, progress: Progress | None = None) -> Iterator[EntryChunk]:
    """All entries of the main tree in key order, their places found from the addresses in LMDB's map of the file.

    Raises:
        StoreError: UNSUPPORTED_LAYOUT if LMDB cannot open the file or it has several values per key; CORRUPT if LMDB
            finds it damaged.
    """
    import lmdb

    if hold.transaction is None:
        message = f"{file.path} has a layout of LMDB that is not known ({hold.note})"
        raise StoreError(f"{message}; copy it with mdb_dump and mdb_load", kind=ErrorKind.UNSUPPORTED_LAYOUT)
    done = 0
    try:
        total = max(1, hold.transaction.stat()["entries"])
        with hold.transaction.cursor() as cursor:
            if hold.environment.open_db(txn=hold.transaction).flags()["dupsort"]:
                message = f"{file.path} keeps several values per key (DUPSORT), which have no record numbers"
                raise StoreError(message, kind=ErrorKind.UNSUPPORTED_LAYOUT)
            items = iter(cursor.iternext(keys=True, values=True))
            while chunk := list(islice(items, _CHUNK_RECORDS)):
                yield _chunk(file, chunk)
                done += len(chunk)
                if progress is not None:
                    progress(file.size_bytes * done // total, file.size_bytes)
    except lmdb.Error as error:
        message = f"{file.path} is damaged: LMDB says {error}; restore it from a copy"
        raise StoreError(message, kind=ErrorKind.CORRUPT) from error


def _chunk(file: LmdbFile, items: list[tuple[Any, Any]]) -> EntryChunk:
    keys = [key for key, _ in items]
    to_file = _map_offset(file, _address(keys[0]))
    lengths = np.array([(len(key), len(value)) for key, value in items], dtype=np.int64).reshape(-1, 2)
    value_n = np.array([_address(value) for _, value in items], dtype=np.int64)
    return EntryChunk(
        key_bytes=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_length_n=lengths[:, 0].astype(np.uint16),
        key_offset_n=np.array([_address(key) for key in keys], dtype=np.int64) + to_file,
        # An empty buffer has no address; where nothing lies does not matter.
        value_offset_n=np.where(lengths[:, 1] > 0, value_n + to_file, 0),
        value_length_n=lengths[:, 1].astype(np.uint32),
    )


def _address(buffer: Any) -> int:
    return int(np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0]) if len(buffer) else 0


def _map_offset(file: LmdbFile, address: int) -> int:
    """What to add to an address in the map of the file to get an offset in the file."""
    inode = os.fstat(file.fd).st_ino
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            span, _, offset, _, number, *_ = line.split(maxsplit=5)
            begin, end = (int(part, 16) for part in span.split("-"))
            if begin <= address < end and int(number) == inode:
                return int(offset, 16) - begin
    message = f"{file.path}: LMDB's map of it cannot be found in /proc/self/maps, without which it cannot be indexed"
    raise StoreError(message, kind=ErrorKind.UNSUPPORTED_LAYOUT)
