"""A dataset: one path, its shards concatenated, its fields as one schema.

Opening is in :func:`open_dataset`; which files belong to a path, and in which order, is decided by
:mod:`fastio.formats`. Record ids count through the shards in that order. A dataset is bound to the process that opened
it, except that Arrow's columns go on working in a forked child.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

import numpy as np

from fastio.errors import ErrorKind, RequestError, StoreError
from fastio.extents import Int64Array
from fastio.formats import Found, find_shards
from fastio.formats.base import Column, DecodedColumn, FileRef, IndexOptions, Progress, Shard
from fastio.formats.concatenate import concatenate, first_difference
from fastio.spec import FieldSpec

__all__ = ["Dataset", "open_dataset"]

# Finding the batches of a stream is a chain of dependent reads, each of them one device latency: shards overlap theirs.
_OPENING_THREADS = 8
# The first of these that any shard is in is the dataset's: what cost most, or will cost again, is told.
_INDEX_STATES = ("memory", "rebuilt", "built", "fresh", "none")


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """An open dataset. Datasets are equal only to themselves.

    Attributes:
        path: what was opened.
        format: ``"arrow"`` or ``"lmdb"``.
        layout: what was recognised, and why, in a sentence.
        records: N, over all shards.
        fields: the fields, in the order of the schema.
        columns: field name -> where its values lie, in numbers of ``files``.
        files: all files that extents are in.
        shards: in order.
        shard_start_S1: the first record id of each shard, and N at the end.
        fingerprint: 32 hex digits over the shards' names relative to ``path``, sizes, record counts, and the schema.
        arrow_schema: the delivered schema of the first shard, serialised.
        index_state: of all shards, see :class:`~fastio.formats.base.Shard`.
    """

    path: Path
    format: str
    layout: str
    records: int
    fields: tuple[FieldSpec, ...]
    columns: Mapping[str, Column | DecodedColumn]
    files: tuple[FileRef, ...]
    shards: tuple[Shard, ...]
    shard_start_S1: Int64Array
    fingerprint: str
    arrow_schema: bytes
    index_state: str

    def locate(self, record: int) -> tuple[Path, int]:
        """The shard that holds a record, and its number there.

        Raises:
            RequestError: there is no such record.
        """
        if not 0 <= record < self.records:
            raise RequestError(f"record must be in [0, {self.records}), got {record}")
        shard = int(np.searchsorted(self.shard_start_S1, record, side="right")) - 1
        return self.shards[shard].path, record - int(self.shard_start_S1[shard])

    def select(self, fields: Sequence[str] | None) -> tuple[str, ...]:
        """The names of the fields to deliver, checked; all of them for None.

        Raises:
            RequestError: a field is unknown; the message lists those there are.
        """
        if fields is None:
            return tuple(self.columns)
        for name in fields:
            if name not in self.columns:
                raise RequestError(_unknown_field(name, list(self.columns), self.path), kind=ErrorKind.UNKNOWN_FIELD)
        return tuple(fields)

    def close(self) -> None:
        """Closes every shard. Extents must not be used afterwards."""
        for shard in self.shards:
            shard.close()

    def statistics(self) -> dict[str, int]:
        """Sizes of what was opened."""
        decoded = sum(isinstance(column, DecodedColumn) for column in self.columns.values())
        return {
            "records": self.records,
            "shards": len(self.shards),
            "files": len(self.files),
            "fields": len(self.fields),
            "decoded_fields": decoded,
        }

    def __repr__(self) -> str:
        shards = f"{len(self.shards)} {self.format} shard{'' if len(self.shards) == 1 else 's'}"
        return f"<Dataset {str(self.path)!r}: {self.records} records in {shards}, {len(self.fields)} fields>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_dataset(path: str | Path, *, options: IndexOptions | None = None) -> Dataset:
    """Opens whatever dataset lies at ``path``, without reading its values.

    Raises:
        StoreError: nothing that fastio reads is there, a shard is bad, or the shards' schemas differ.
    """
    root = Path(path)
    found = find_shards(root)
    shards = _open_shards(found, IndexOptions() if options is None else options)
    with ExitStack() as undo:
        for shard in shards:
            undo.callback(shard.close)
        dataset = _dataset(root, found, shards)
        undo.pop_all()
    return dataset


def _dataset(root: Path, found: Found, shards: Sequence[Shard]) -> Dataset:
    _check_counts(found, shards)
    _check_schemas(shards)
    start_S1 = np.array([0, *accumulate(shard.records for shard in shards)], dtype=np.int64)
    records = int(start_S1[-1])
    if records == 0:
        raise StoreError(f"{root} has no records: {len(shards)} shard(s), all of them empty", kind=ErrorKind.EMPTY)
    columns = concatenate(shards, start_S1)
    fields = tuple(column.field for column in columns.values())
    states = {shard.index_state for shard in shards}
    return Dataset(
        path=root,
        format=found.format,
        layout=f"{found.layout}; {shards[0].layout}" + (" (the first shard)" if len(shards) > 1 else ""),
        records=records,
        fields=fields,
        columns=columns,
        files=tuple(ref for shard in shards for ref in shard.files),
        shards=tuple(shards),
        shard_start_S1=start_S1,
        fingerprint=_fingerprint(root, shards, fields),
        arrow_schema=shards[0].arrow_schema,
        index_state=next(state for state in _INDEX_STATES if state in states),
    )


def _open_shards(found: Found, options: IndexOptions) -> list[Shard]:
    if found.format == "lmdb":
        from fastio.formats.lmdb import open_lmdb_shard

        opened: list[Shard] = []
        with ExitStack() as undo:
            for path in found.paths:
                opened.append(open_lmdb_shard(path, options))
                undo.callback(opened[-1].close)
            undo.pop_all()
        return opened
    from fastio.formats.arrow import open_arrow_shard
    from fastio.formats.cache import MappedFiles

    files = MappedFiles()
    if options.progress is not None:
        options = IndexOptions(
            directory=options.directory, progress=_one_at_a_time(options.progress), layout=options.layout
        )
    # An Arrow shard holds nothing but memory until it is read: those opened before a failure need no closing.
    with ThreadPoolExecutor(min(_OPENING_THREADS, len(found.paths)), thread_name_prefix="fastio-open") as pool:
        pending = [pool.submit(open_arrow_shard, path, options, files) for path in found.paths]
        try:
            return [one.result() for one in pending]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_at_a_time(progress: Progress) -> Progress:
    lock = Lock()

    def report(done_bytes: int, total_bytes: int) -> None:
        with lock:
            progress(done_bytes, total_bytes)

    return report


def _check_counts(found: Found, shards: Sequence[Shard]) -> None:
    for shard, wanted in zip(shards, found.records or (), strict=False):
        if shard.records != wanted:
            raise StoreError(
                f"{shard.path} has {shard.records} records, its manifest says {wanted}; write the dataset again",
                kind=ErrorKind.CHANGED,
            )


def _check_schemas(shards: Sequence[Shard]) -> None:
    first = shards[0]
    for shard in shards[1:]:
        # The schemas of one dataset are nearly always the same bytes; only others are compared field by field.
        if shard.arrow_schema == first.arrow_schema:
            continue
        difference = first_difference(first, shard)
        if difference is not None:
            raise StoreError(
                f"the shards have different schemas: {difference}; keep them in separate datasets, or rewrite one",
                kind=ErrorKind.SCHEMA_MISMATCH,
            )


def _fingerprint(root: Path, shards: Sequence[Shard], fields: tuple[FieldSpec, ...]) -> str:
    schema = [(one.name, one.kind, one.dtype, list(one.shape), one.text) for one in fields]
    digest = hashlib.blake2b(json.dumps(schema).encode(), digest_size=16)
    for shard in shards:
        name = "." if shard.path == root else shard.path.relative_to(root).as_posix()
        digest.update(json.dumps([name, _data_bytes(shard), shard.records]).encode(errors="surrogatepass"))
    return digest.hexdigest()


def _data_bytes(shard: Shard) -> int:
    """The bytes of the shard's own files; sidecars come and go without changing what the data is."""
    own = [ref for ref in shard.files if ref.path == shard.path or ref.path.parent == shard.path]
    return sum(ref.size_bytes for ref in own)


def _unknown_field(name: str, known: list[str], path: Path) -> str:
    members = [other for other in known if other.startswith(f"{name}.")]
    listed = ", ".join(known[:50]) + (f", ... ({len(known)} in all)" if len(known) > 50 else "")
    if members:
        return f"{name!r} is a struct in {path}; ask for its members: {', '.join(members)} (fields: {listed})"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{path} has no field {name!r}{hint} (fields: {listed})"
