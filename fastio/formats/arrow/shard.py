"""One Arrow file as a shard: recognised, indexed (or its index read back), its fields made columns."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fastio.errors import ErrorKind, StoreError
from fastio.formats.arrow.columns import BatchBuffers, extent_column
from fastio.formats.arrow.decoded import decoded_column
from fastio.formats.arrow.index import ArrowIndex, index_identity, index_of, store_index
from fastio.formats.arrow.messages import CONTINUATION, parse_prefix
from fastio.formats.arrow.rebuild import ArrayBuilder
from fastio.formats.arrow.scan import FILE_MAGIC, looks_like_stream, scan
from fastio.formats.arrow.schema import Leaf, plan_schema
from fastio.formats.base import Column, DecodedColumn, FileRef, IndexOptions
from fastio.formats.cache import MappedFiles
from fastio.formats.sidecar import load_sidecar, sidecar_path
from fastio.formats.sniff import describe_head, open_for_reading

__all__ = ["ArrowShard", "is_arrow", "is_arrow_head", "open_arrow_shard"]

_HEAD_BYTES = 4096
_MAX_SCHEMA_BYTES = 16 << 20
# With fewer record batches the headers themselves are read as fast as a sidecar (those of a file, found by its footer,
# may be read in any order), and storing one costs an fsync.
_SIDECAR_FROM_BATCHES = {"file": 16, "stream": 5}


def is_arrow_head(head: bytes) -> bool:
    """Whether a file that begins with these bytes is an Arrow IPC file or stream."""
    return head.startswith(FILE_MAGIC) or looks_like_stream(head)


def is_arrow(path: Path) -> bool:
    """Whether the file is an Arrow IPC file or stream, by its first bytes. False where it can't be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_arrow_head(_head(fd))
    except OSError:
        return False
    finally:
        os.close(fd)


def _head(fd: int) -> bytes:
    """The first bytes of a file; of what may be a stream, as many as its schema message says it has."""
    head = os.pread(fd, _HEAD_BYTES, 0)
    prefix = parse_prefix(head)
    if prefix is not None and _HEAD_BYTES < sum(prefix) <= _MAX_SCHEMA_BYTES and not head.startswith(FILE_MAGIC):
        head += os.pread(fd, sum(prefix) - _HEAD_BYTES, _HEAD_BYTES)
    return head


@dataclass(slots=True)
class ArrowShard:
    """An opened Arrow file; see :class:`~fastio.formats.base.Shard`."""

    path: Path
    layout: str
    records: int
    files: tuple[FileRef, ...]
    columns: dict[str, Column | DecodedColumn]
    arrow_schema: bytes
    index_state: str
    _maker: _ColumnMaker

    def decoded(self, name: str, reason: str) -> DecodedColumn:
        """The field by the slow way, whatever way this shard would allow: for datasets that need it elsewhere."""
        return self._maker.decoded(name, reason)

    def close(self) -> None:
        """Lets go of the maps, which shards of one dataset share."""
        self._maker.files.close()


@dataclass(frozen=True, slots=True)
class _ColumnMaker:
    leaves: dict[str, Leaf]
    buffers: BatchBuffers
    files: MappedFiles
    builder: ArrayBuilder

    def columns(self) -> dict[str, Column | DecodedColumn]:
        return {name: self._column(leaf) for name, leaf in self.leaves.items()}

    def decoded(self, name: str, reason: str) -> DecodedColumn:
        return decoded_column(self.buffers, self.leaves[name], self.files, self.builder, reason)

    def _column(self, leaf: Leaf) -> Column | DecodedColumn:
        if leaf.delivery.route == "decoded":
            return self.decoded(leaf.name, leaf.delivery.reason)
        column = extent_column(self.buffers, leaf, self.files)
        return column if isinstance(column, Column) else self.decoded(leaf.name, column)


def open_arrow_shard(path: Path, options: IndexOptions, files: MappedFiles | None = None) -> ArrowShard:
    """Opens an Arrow IPC file or stream without reading its values.

    Args:
        path: the file.
        options: where sidecars go, and who is told about progress.
        files: where the shards of one dataset share their maps; None: this one's own.

    Raises:
        StoreError: the file is missing, unreadable, no Arrow, truncated, corrupt, compressed or big-endian.
    """
    fd = open_for_reading(path)
    try:
        status = os.fstat(fd)
        ref = FileRef(path, status.st_size, status.st_mtime_ns)
        index, state = _index(fd, ref, options)
    finally:
        os.close(fd)
    return _shard(ref, index, state, MappedFiles() if files is None else files)


def _shard(ref: FileRef, index: ArrowIndex, state: str, files: MappedFiles) -> ArrowShard:
    try:
        plan = plan_schema(index.schema, index.version)
    except StoreError as error:
        raise StoreError(f"{ref.path}: {error}", kind=error.kind) from error
    number = files.add(ref)
    buffers = BatchBuffers.of(str(ref.path), index, plan, number)
    leaves = {leaf.name: leaf for leaf in plan.leaves}
    maker = _ColumnMaker(leaves, buffers, files, ArrayBuilder(files, number, index, plan.dictionary_of_node))
    batches = len(index.rows_R)
    layout = f"Arrow IPC {index.form}, {batches} record batch{'' if batches == 1 else 'es'}"
    columns = maker.columns()
    return ArrowShard(ref.path, layout, index.records, (ref,), columns, plan.arrow_schema, state, maker)


def _index(fd: int, ref: FileRef, options: IndexOptions) -> tuple[ArrowIndex, str]:
    place = sidecar_path(ref.path, options.directory)
    stale = place.exists()
    sidecar = load_sidecar(place, index_identity(ref)) if stale else None
    if sidecar is not None:
        return index_of(sidecar), "fresh"
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    _refuse_foreign(fd, ref)
    index = scan(fd, ref.path, ref.size_bytes, options.progress)
    if len(index.rows_R) < _SIDECAR_FROM_BATCHES[index.form]:
        return index, "none"
    if not store_index(place, ref, index):
        return index, "memory"
    return index, "rebuilt" if stale else "built"


def _refuse_foreign(fd: int, ref: FileRef) -> None:
    head = _head(fd)
    prefix = parse_prefix(head)
    # A stream whose schema is cut off is left to the scan, which says that it is truncated.
    cut_off = prefix is not None and head.startswith(CONTINUATION) and ref.size_bytes < sum(prefix) <= _MAX_SCHEMA_BYTES
    if cut_off or is_arrow_head(head):
        return
    raise StoreError(
        f"{ref.path} is not an Arrow IPC file or stream: it is {describe_head(head)}", kind=ErrorKind.NOT_A_DATASET
    )
