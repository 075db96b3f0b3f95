"""One shard as an LMDB environment, in one of the three layouts that others read too.

    value     one binary or text field:            keys 000000000000, 000000000001, ... and the bytes as they are
    keyed     fields ``key`` and ``value``:        as given, distinct within a shard; read back in the order of the keys
    pairs     fields ``image`` and ``label``:      ``image-000000001``, ``label-000000001``, ... and ``num-samples``

Anything else has no place in LMDB that others would recognise: Arrow holds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from fastio.errors import ErrorKind, RequestError, StoreError

__all__ = ["LmdbLayout", "LmdbShardWriter", "lmdb_layout"]

LmdbLayout = Literal["value", "keyed", "pairs"]

# What readers of such environments take for bookkeeping, not for a record.
_RESERVED = frozenset({b"length", b"__len__", b"__keys__", b"__metadata__", b"num-samples", b"num_examples", b"nextid"})
_PAGE_BYTES = 4096
_ENTRY_BYTES = 16


def lmdb_layout(schema: Any) -> LmdbLayout:
    """Which layout records of ``schema`` are written in.

    Raises:
        RequestError: none of them fits.
    """
    import pyarrow as pa

    binary = (pa.types.is_binary, pa.types.is_string, pa.types.is_large_binary, pa.types.is_large_string)
    if all(any(is_binary(field.type) for is_binary in binary) for field in schema):
        if len(schema) == 1:
            return "value"
        if set(schema.names) == {"key", "value"}:
            return "keyed"
        if set(schema.names) == {"image", "label"}:
            return "pairs"
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    message = (
        "LMDB holds one binary field, or two binary fields named key and value, or image and label; "
        f"got {found}: write it as format 'arrow'"
    )
    raise RequestError(message, kind=ErrorKind.UNSUPPORTED_LAYOUT)


class LmdbShardWriter:
    """Appends record batches to one new environment, a directory.

    Attributes:
        path: the data file.
        records, payload_bytes: what was written so far, the bytes as LMDB rounds them to pages.
    """

    def __init__(self, directory: Path, schema: Any, *, shard_bytes: int) -> None:
        import lmdb

        self.path = directory / "data.mdb"
        self.records = 0
        self.payload_bytes = 0
        self._layout = lmdb_layout(schema)
        # A map costs address space only; it doubles when the estimate was too small.
        self._map_bytes = max(64 << 20, 2 * shard_bytes)
        self._env = lmdb.open(
            str(directory), map_size=self._map_bytes, sync=False, metasync=False, lock=False, readahead=False
        )

    def __repr__(self) -> str:
        return f"LmdbShardWriter({str(self.path)!r}, records={self.records})"

    def write(self, batch: Any) -> None:
        """Writes a batch in one transaction.

        Raises:
            RequestError: a key is empty, too long, reserved, or there already; or a value is null.
        """
        self._put(list(self._entries(batch)))
        self.records += batch.num_rows

    def close(self) -> None:
        if self._layout == "pairs":
            self._put([(b"num-samples", str(self.records).encode())])
        self._env.sync(True)
        self._env.close()
        (self.path.parent / "lock.mdb").unlink(missing_ok=True)

    def abandon(self) -> None:
        """Lets go of the environment as it is, to be deleted."""
        self._env.close()

    def _entries(self, batch: Any) -> Iterator[tuple[bytes, Any]]:
        columns = {name: _values(batch, name) for name in batch.schema.names}
        if self._layout == "keyed":
            yield from zip(map(self._checked_key, columns["key"]), columns["value"], strict=True)
        elif self._layout == "value":
            (values,) = columns.values()
            yield from ((b"%012d" % number, value) for number, value in enumerate(values, self.records))
        else:
            # All of one kind, then all of the other: each run of keys ascends, and pages fill up.
            for name in ("image", "label"):
                prefix = name.encode()
                numbered = enumerate(columns[name], self.records + 1)
                yield from ((b"%s-%09d" % (prefix, number), value) for number, value in numbered)

    def _checked_key(self, value: Any) -> bytes:
        key = bytes(value)
        longest = self._env.max_key_size()
        if not 1 <= len(key) <= longest:
            raise RequestError(f"an LMDB key must have 1 to {longest} bytes, got {len(key)}: {key[:40]!r}")
        if key in _RESERVED:
            raise RequestError(f"the key {key!r} is reserved: readers of LMDB data take it for bookkeeping")
        return key

    def _put(self, entries: list[tuple[bytes, Any]]) -> None:
        import lmdb

        size = sum(_stored_bytes(len(key) + len(value)) for key, value in entries)
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for key, value in entries:
                        if not transaction.put(key, value, overwrite=False):
                            raise RequestError(f"the key {key!r} was written before; keys must be distinct")
                break
            except lmdb.MapFullError:
                self._map_bytes *= 2
                self._env.set_mapsize(self._map_bytes)
            except lmdb.Error as error:
                self._ask_for_room(size)
                raise StoreError(f"cannot write {self.path}: {error}", kind=ErrorKind.IO) from error
        self.payload_bytes += size

    def _ask_for_room(self, size_bytes: int) -> None:
        """LMDB says EIO when a full disk took only a part of a write: asking for the same room again, of a file that
        is given up anyway, gets the true reason as an OSError.
        """
        with self.path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), self.path.stat().st_size, size_bytes + (1 << 20))


def _stored_bytes(payload: int) -> int:
    size = payload + _ENTRY_BYTES
    return size if size < _PAGE_BYTES // 2 else -(-size // _PAGE_BYTES) * _PAGE_BYTES


def _values(batch: Any, name: str) -> Iterable[memoryview]:
    column = batch.column(name)
    if column.null_count:
        raise RequestError(f"field {name!r} holds a null, and LMDB has none: write it as format 'arrow'")
    return (memoryview(value.as_buffer()) for value in column)
