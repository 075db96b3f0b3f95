"""Makes LMDB environments for tests: with py-lmdb's two engines, and page by page for what these do not write."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from fastio.errors import ErrorKind, StoreError
from fastio.formats.lmdb.meta import LmdbFile, Snapshot, read_snapshots
from fastio.formats.lmdb.shard import LmdbShard
from fastio.formats.lmdb.tree import walk

ENGINES = (0, 1)
Operation = tuple[bytes, bytes | None]


def make(path: Path, entries: Mapping[bytes, bytes], *, engine: int = 0, subdir: bool = True) -> Path:
    """A new environment with these entries, written in one transaction."""
    return change(path, [list(entries.items())], engine=engine, subdir=subdir)


def change(path: Path, transactions: Iterable[list[Operation]], *, engine: int = 0, subdir: bool = True) -> Path:
    """Applies transactions (put, or delete where the value is None) to a new or existing environment."""
    exists = (path / "data.mdb" if subdir else path).exists()
    version: dict[str, Any] = {} if exists else {"lib_version": engine}
    with lmdb.open(str(path), map_size=1 << 28, subdir=subdir, sync=False, **version) as env:
        for operations in transactions:
            with env.begin(write=True) as txn:
                for key, value in operations:
                    if value is None:
                        txn.delete(key)
                    else:
                        txn.put(key, value)
    return path


def data_file(path: Path) -> Path:
    return path / "data.mdb" if path.is_dir() else path


def newest(path: Path) -> tuple[Snapshot, list[tuple[bytes, bytes]]]:
    """The newest snapshot of a file and its entries, by the page parser alone: py-lmdb is not called."""
    file = LmdbFile.open(data_file(path))
    try:
        snapshots = read_snapshots(file)
        if not snapshots:
            raise StoreError(f"{file.path}: a version that only LMDB may know", kind=ErrorKind.UNSUPPORTED_LAYOUT)
        return snapshots[0], list(parsed(file, snapshots[0]))
    finally:
        file.close()


def parsed(file: LmdbFile, snapshot: Snapshot) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values as the page parser finds them; each key is read twice, and its extent must lie in the file."""
    for chunk in walk(file, snapshot):
        end = 0
        columns = (chunk.key_length_n, chunk.key_offset_n, chunk.value_offset_n, chunk.value_length_n)
        for key_length, key_offset, value_offset, value_length in zip(*(c.tolist() for c in columns), strict=True):
            key = chunk.key_bytes[end : end + key_length].tobytes()
            end += key_length
            assert file.read(key_offset, key_length) == key
            assert value_offset >= 0
            assert value_offset + value_length <= file.size_bytes
            yield key, file.read(value_offset, value_length)


def stored(path: Path) -> dict[bytes, bytes]:
    """The entries as py-lmdb's cursor returns them, in its order."""
    with lmdb.open(str(path), readonly=True, subdir=path.is_dir(), create=False) as env, env.begin() as txn:
        return dict(txn.cursor())


def records(shard: LmdbShard) -> list[tuple[bytes, ...]]:
    """Every record of a shard, read through its extents, a tuple of its fields."""
    ids = np.arange(shard.records, dtype=np.int64)
    columns = []
    for column in shard.columns.values():
        found = column.table.lookup(ids)
        values = []
        for file, offset, length in zip(found.file_B, found.offset_B, found.length_B, strict=True):
            fd = os.open(shard.files[file].path, os.O_RDONLY)
            values.append(os.pread(fd, int(length), int(offset)))
            os.close(fd)
        columns.append(values)
    return list(zip(*columns, strict=True))


def synthesise(path: Path, entries: Mapping[bytes, bytes], *, engine: int, page_bytes: int) -> Path:
    """Writes a data file by the description of the format, bulk-loaded, with pages of any size."""
    writer = _PageWriter(engine, page_bytes)
    root, depth, leaf_pages = writer.tree(sorted(entries.items()))
    path.write_bytes(writer.file(root, depth, leaf_pages, len(entries)))
    return path


class _PageWriter:
    def __init__(self, engine: int, page_bytes: int) -> None:
        self.header, self.base, self.version = (24, 24, 3) if engine else (16, 0, 1)
        self.engine, self.size = engine, page_bytes
        self.pages: list[bytes] = [b"", b""]

    def tree(self, items: list[tuple[bytes, bytes]]) -> tuple[int, int, int]:
        level = self._level(((k, self._leaf_node(k, v)) for k, v in items), flags=2)
        depth, leaf_pages = 1, len(level)
        while len(level) > 1:
            nodes = ((k, struct.pack("<IHH", p & 0xFFFFFFFF, p >> 32, len(k)) + k) for k, p in level)
            level, depth = self._level(nodes, flags=1), depth + 1
        return level[0][1], depth, leaf_pages

    def _leaf_node(self, key: bytes, value: bytes) -> bytes:
        padding = b"\0" * (len(key) % 2 if self.engine else 0)
        if len(key) + len(value) + 8 <= self.size // 4:
            return struct.pack("<IHH", len(value), 0, len(key)) + key + padding + value
        need = (self.header - 1 + len(value)) // self.size + 1
        page = len(self.pages)
        raw = self._header(page, 4, need & 0xFFFF, need >> 16) + value
        raw += bytes(need * self.size - len(raw))
        self.pages += [raw[k * self.size : (k + 1) * self.size] for k in range(need)]
        pointer = struct.pack("<QQQ", page, 1, need) if self.engine else struct.pack("<Q", page)
        return struct.pack("<IHH", len(value), 1, len(key)) + key + padding + pointer

    def _level(self, nodes: Iterable[tuple[bytes, bytes]], flags: int) -> list[tuple[bytes, int]]:
        done: list[tuple[bytes, int]] = []
        first, held, used = b"", list[bytes](), self.header
        for key, node in nodes:
            even = node + bytes(len(node) % 2)
            if held and used + len(even) + 2 > self.size:
                done.append((first, self._page(flags, held)))
                held, used = [], self.header
            first = first if held else key
            held.append(even)
            used += len(even) + 2
        return [*done, (first, self._page(flags, held))]

    def _page(self, flags: int, nodes: list[bytes]) -> int:
        places, at = [], self.size
        for node in nodes:
            at -= len(node)
            places.append(at - self.base)
        number = len(self.pages)
        head = self._header(number, flags, self.header - self.base + 2 * len(nodes), at - self.base)
        raw = head + struct.pack(f"<{len(places)}H", *places)
        self.pages.append(raw + bytes(at - len(raw)) + b"".join(reversed(nodes)))
        return number

    def _header(self, number: int, flags: int, low: int, high: int) -> bytes:
        txn = struct.pack("<Q", 1) if self.engine else b""
        return struct.pack("<Q", number) + txn + struct.pack("<HHHH", 0, flags, low, high)

    def file(self, root: int, depth: int, leaf_pages: int, entries: int) -> bytes:
        free = struct.pack("<IHHQQQQQ", self.size, 8, 0, 0, 0, 0, 0, (1 << 64) - 1)
        main = struct.pack("<IHHQQQQQ", 0, 0, depth, 0, leaf_pages, 0, entries, root)
        for number, txn in ((0, 0), (1, 1)):
            tree = main if txn else struct.pack("<IHHQQQQQ", 0, 0, 0, 0, 0, 0, 0, (1 << 64) - 1)
            last = len(self.pages) - 1 if txn else 1
            meta = struct.pack("<IIQQ", 0xBEEFC0DE, self.version, 0, 1 << 28) + free + tree
            raw = self._header(number, 8, 0, 0) + meta + struct.pack("<QQ", last, txn)
            self.pages[number] = raw + bytes(self.size - len(raw))
        return b"".join(self.pages)
