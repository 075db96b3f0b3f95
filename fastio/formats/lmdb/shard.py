"""Opening one LMDB environment as a shard.

The order of things matters. The meta pages are checked first, by own code, because LMDB may end the process on a file
that is not what it seems. Then a read transaction is begun, and only then is the tree of *that* transaction's snapshot
parsed (or its stored index read), so that no writer can recycle a page between looking and using. LMDB is asked for
entries only after the whole tree has been checked.

A shard shows the snapshot that was newest when it was opened. An index belongs to one snapshot of one file
(transaction id, size, time, root page); it is built anew when any of these differ. While the transaction is held others
may go on writing: the file then only grows, and the shard's pages stay as they are. Where no transaction can be held
(no locks on this file system, too many environments, opened elsewhere in this process) a write to the file shows
as a change of the file, which readers refuse.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastio.errors import ErrorKind, RequestError, StoreError
from fastio.extents import ExtentTable
from fastio.formats.base import Column, FileRef, IndexOptions
from fastio.formats.lmdb.arrange import LAYOUTS, arrange
from fastio.formats.lmdb.cursor import walk_by_cursor
from fastio.formats.lmdb.entries import Entries
from fastio.formats.lmdb.environment import Hold, hold_snapshot
from fastio.formats.lmdb.index import Index, index_in_memory, read_index, store_index
from fastio.formats.lmdb.meta import LmdbFile, Snapshot, has_magic, locate, read_snapshots
from fastio.formats.lmdb.sample import check_sample
from fastio.formats.lmdb.tree import walk
from fastio.formats.sidecar import sidecar_path
from fastio.spec import FieldSpec

__all__ = ["LmdbShard", "is_lmdb", "open_lmdb_shard"]

# Up to this size an environment is parsed faster than a stored index is opened, and thousands of them would leave
# thousands of index files.
_NO_SIDECAR_BYTES = 1 << 20
_ATTEMPTS = 3


class LmdbShard:
    """One opened LMDB environment; see :class:`fastio.formats.base.Shard`. Bound to the process that opened it."""

    def __init__(self, path: Path, data: FileRef, index: Index, index_state: str, hold: Hold, sentence: str) -> None:
        self.path = path
        self.layout = sentence
        self.records = index.records
        self.files: tuple[FileRef, ...] = (data, *index.files)
        self.columns: Mapping[str, Column] = _columns(index)
        self.arrow_schema = _schema(tuple(self.columns))
        self.index_state = index_state
        self._index = index
        self._hold = hold

    def __repr__(self) -> str:
        return f"<LmdbShard {str(self.path)!r}, {self.records} records, index {self.index_state}>"

    def statistics(self) -> dict[str, int | bool | None]:
        """The snapshot shown, and whether its pages are protected from writers."""
        return {"records": self.records, "txn_id": self._hold.txn_id, "protected": self._hold.protects}

    def close(self) -> None:
        """Ends the read transaction and lets go of the index. Extents must not be used afterwards."""
        self._hold.release()
        self._index.close()


def is_lmdb(path: Path) -> bool:
    """Whether ``path`` is a directory with a ``data.mdb``, or a file that begins like one of LMDB's. Never raises.

    >>> is_lmdb(Path("/"))
    False
    """
    if path.is_dir():
        return (path / "data.mdb").is_file()
    return has_magic(path)


def open_lmdb_shard(path: Path, options: IndexOptions) -> LmdbShard:
    """Opens the environment ``path``, a directory with a ``data.mdb`` or a single file, without reading its values.

    Raises:
        StoreError: it is missing, unreadable, truncated, damaged, written elsewhere, holds sub-databases or several
            values per key; or there is no room for its index.
        RequestError: the layout asked for is unknown, or the keys do not allow it.
    """
    if options.layout not in LAYOUTS:
        raise RequestError(f"layout must be one of {', '.join(map(repr, LAYOUTS))}, got {options.layout!r}")
    if not path.exists():
        raise StoreError(f"no such file or directory: {path}", kind=ErrorKind.MISSING)
    data, by_directory = locate(path)
    for _ in range(_ATTEMPTS):
        file = LmdbFile.open(data)
        try:
            shard = _open_once(path, file, by_directory, options)
        finally:
            file.close()
        if shard is not None:
            return shard
    message = f"{data} was written to by others each of the {_ATTEMPTS} times that it was opened"
    raise StoreError(f"{message}; open it when the writer is done", kind=ErrorKind.CHANGED)


def _open_once(path: Path, file: LmdbFile, by_directory: bool, options: IndexOptions) -> LmdbShard | None:
    """The shard, or None if a writer was faster."""
    read_snapshots(file)
    hold = hold_snapshot(file.path, by_directory)
    try:
        file = file.as_now()
        snapshots = read_snapshots(file)
        snapshot = next((s for s in snapshots if hold.txn_id in (None, s.txn_id)), None)
        if hold.inode != file.inode or (snapshots and snapshot is None):
            hold.release()
            return None
        index, state = _proven_index(file, snapshot, hold, options)
        if not _still_valid(file, index, hold):
            hold.release()
            index.close()
            return None
        ref = FileRef(file.path, file.size_bytes, file.mtime_ns, may_grow=hold.protects, inode=os.fstat(file.fd).st_ino)
        return LmdbShard(path, ref, index, state, hold, _sentence(snapshot, index, hold))
    except BaseException:
        hold.release()
        raise


def _still_valid(file: LmdbFile, index: Index, hold: Hold) -> bool:
    """Makes the index last: pins it while the snapshot is protected, else sees that nothing has changed meanwhile."""
    if hold.protects:
        return index.pin()
    hold.release()
    now = file.as_now()
    return (now.size_bytes, now.mtime_ns) == (file.size_bytes, file.mtime_ns)


def _proven_index(file: LmdbFile, snapshot: Snapshot | None, hold: Hold, options: IndexOptions) -> tuple[Index, str]:
    """An index that a sample agrees with: the stored one, else one parsed from the pages, else one by LMDB's cursor."""
    small = file.size_bytes <= _NO_SIDECAR_BYTES
    place = None if small else sidecar_path(file.path, options.directory)
    identity = _identity(file, snapshot, hold, options.layout)
    existed = place is not None and place.exists()
    wrong: str | None = "its layout is not known"
    index = None if place is None else read_index(place, identity)
    if index is not None:
        wrong = check_sample(file, snapshot, index, hold)
        if wrong is None:
            return index, "fresh"
        _discard(index)
    if snapshot is not None:
        index, state = _build(file, snapshot, hold, options, place, identity)
        wrong = check_sample(file, snapshot, index, hold)
        if wrong is None:
            return index, "rebuilt" if existed and state == "built" else state
        _discard(index)
    if hold.transaction is not None or snapshot is None:
        # LMDB is the authority: where this parser and LMDB disagree, LMDB's own cursor is believed.
        index, state = _build(file, None, hold, options, place, identity)
        wrong = check_sample(file, snapshot, index, hold)
        if wrong is None:
            return index, state
        _discard(index)
    raise StoreError(f"{file.path}: {wrong}; restore it from a copy", kind=ErrorKind.CORRUPT)


def _discard(index: Index) -> None:
    """Removes an index that did not prove right, so that nobody takes it for good."""
    index.close()
    if index.sidecar is not None:
        with suppress(OSError):
            index.sidecar.path.unlink()


def _build(
    file: LmdbFile,
    snapshot: Snapshot | None,
    hold: Hold,
    options: IndexOptions,
    place: Path | None,
    identity: dict[str, Any],
) -> tuple[Index, str]:
    """Parses the snapshot (or asks LMDB's cursor, if that is None) and stores what was found."""
    if snapshot is not None:
        chunks, ordered = walk(file, snapshot, options.progress), snapshot.ordered
    else:
        chunks, ordered = walk_by_cursor(file, hold, options.progress), False
    storable = place is not None and (options.directory is not None or _can_write(place.parent))
    entries = Entries.collect(chunks, place.parent if place is not None and storable else None)
    arrangement = arrange(entries, ordered=ordered, layout=options.layout)
    if place is None:
        return index_in_memory(entries, arrangement), "none"
    if storable:
        return store_index(place, identity, entries, arrangement), "built"
    return store_index(None, identity, entries, arrangement), "memory"


def _can_write(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


def _identity(file: LmdbFile, snapshot: Snapshot | None, hold: Hold, layout: str) -> dict[str, Any]:
    common = {"format": "lmdb", "layout": layout, "size": file.size_bytes, "mtime_ns": file.mtime_ns}
    if snapshot is None:
        return {**common, "txn": hold.txn_id}
    pages = {"header": snapshot.header_bytes, "page": snapshot.page_bytes, "last": snapshot.last_page}
    tree = {"root": snapshot.root, "depth": snapshot.depth, "entries": snapshot.entries}
    return {**common, "txn": snapshot.txn_id, **pages, **tree}


def _sentence(snapshot: Snapshot | None, index: Index, hold: Hold) -> str:
    notes = "" if not hold.note else f"; not protected from writers, since {hold.note}"
    if snapshot is None:
        return f"LMDB of a layout that only LMDB knows: {index.sentence}{notes}"
    if snapshot.damaged_meta is not None:
        notes += f"; meta page {snapshot.damaged_meta} is damaged, so that the last commit may be missing"
    return f"LMDB {snapshot.version}: {index.sentence}{notes}"


def _columns(index: Index) -> dict[str, Column]:
    tables: list[tuple[str, ExtentTable]] = [("key", index.keys)] if index.with_key else []
    tables += zip(index.fields, index.values, strict=True)
    return {
        name: Column(field=FieldSpec(name=name, kind="ragged", dtype="|u1", arrow_type="binary"), table=table)
        for name, table in tables
    }


@lru_cache(maxsize=64)
def _schema(names: tuple[str, ...]) -> bytes:
    import pyarrow as pa

    schema: bytes = pa.schema([pa.field(name, pa.binary(), nullable=False) for name in names]).serialize().to_pybytes()
    return schema
