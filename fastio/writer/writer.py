"""What a caller holds while writing a dataset: it gathers records into batches, and batches into shards.

It decides when a batch is full and when a shard is; how a shard is laid out is the shard writer's, and what becomes of
the directory is :mod:`fastio.writer.partial`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from fastio.errors import ClosedError, ErrorKind, RequestError
from fastio.writer.arrow import ArrowShardWriter
from fastio.writer.lmdb import LmdbShardWriter, lmdb_layout
from fastio.writer.manifest import Manifest, ShardEntry, checksum
from fastio.writer.partial import PartialDirectory, store_errors
from fastio.writer.schema import as_record_batches, as_schema, rows_to_batch, value_bytes

__all__ = ["DEFAULT_BATCH_BYTES", "DEFAULT_SHARD_BYTES", "Writer", "WriterFormat"]

WriterFormat = Literal["arrow", "lmdb"]

# 1 GiB is copied, checked or re-written in seconds, and 1,000 of them, a terabyte, are opened in one.
DEFAULT_SHARD_BYTES = 1 << 30
# Few enough batches that their headers don't matter, small enough that reading one whole is not felt.
DEFAULT_BATCH_BYTES = 8 << 20
# Of tiny records, so many are converted at once: it bounds the Python objects that wait.
_BATCH_RECORDS = 1 << 16


class Writer:
    """Writes a dataset, whole or not at all. Use it as a context manager, from one thread.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home, Writer(f"{home}/squares", {"x": int, "square": int}) as writer:
    ...     for x in range(3):
    ...         writer.append({"x": x, "square": x * x})
    ...     writer.records
    3

    Args:
        path: the directory that will be the dataset. It must not hold anything yet.
        schema: a ``pyarrow.Schema``, or a dict of names to types as :mod:`fastio.writer.schema` describes.
        format: ``"arrow"`` (IPC files, any schema) or ``"lmdb"`` (the layouts in :mod:`fastio.writer.lmdb`).
        shard_bytes: a shard is closed before it would outgrow this; a single larger record has a shard of its own.
        batch_bytes: how much is gathered before it is written.
        overwrite: replace a dataset at ``path`` that a Writer made, or what a killed run of one left.
        shuffle_seed: noted in the manifest: the records come in an order shuffled by this seed.

    Raises:
        RequestError: an argument or a record is wrong. The dataset is given up.
        StoreError: something is at ``path`` already, or the disk refused. The dataset is given up.
    """

    def __init__(
        self,
        path: str | Path,
        schema: Any,
        *,
        format: WriterFormat = "arrow",
        shard_bytes: int = DEFAULT_SHARD_BYTES,
        batch_bytes: int = DEFAULT_BATCH_BYTES,
        overwrite: bool = False,
        shuffle_seed: int | None = None,
    ) -> None:
        if format not in get_args(WriterFormat):
            raise RequestError(f"format must be 'arrow' or 'lmdb', got {format!r}")
        for name, value in (("shard_bytes", shard_bytes), ("batch_bytes", batch_bytes)):
            if value < 1:
                raise RequestError(f"{name} must be at least 1, got {value}")
        self.schema = as_schema(schema)
        if format == "lmdb":
            lmdb_layout(self.schema)
        self._format = format
        self._shard_bytes = shard_bytes
        self._batch_bytes = min(batch_bytes, shard_bytes)
        self._shuffle_seed = shuffle_seed
        self._partial = PartialDirectory(Path(path), overwrite=overwrite)
        self._open = False
        self._records = 0
        self._rows: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        self._rows_bytes = 0
        self._tables: list[Any] = []
        self._tables_bytes = 0
        self._shard: ArrowShardWriter | LmdbShardWriter | None = None
        self._entries: list[ShardEntry] = []

    def __repr__(self) -> str:
        return f"Writer({str(self._partial.target)!r}, format={self._format!r}, records={self._records})"

    @property
    def path(self) -> Path:
        """Where the dataset will be."""
        return self._partial.target

    @property
    def scratch(self) -> Path:
        """A directory that may be made for temporary files on the same disk; it is removed when the writer closes."""
        return self._partial.path / ".scratch"

    @property
    def records(self) -> int:
        """How many records were appended."""
        return self._records

    def __enter__(self) -> Self:
        self._partial.create()
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._open:
            return
        self._open = False
        try:
            if error is None:
                self._finish()
        finally:
            if self._shard is not None:
                self._shard.abandon()
            self._partial.discard()

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record, a value for each field of the schema (None where a field is null)."""
        self._writable()
        if record.keys() != self._rows.keys():
            rows_to_batch({name: [value] for name, value in record.items()}, self.schema)
        for name, value in record.items():
            self._rows[name].append(value)
            self._rows_bytes += value_bytes(value)
        self._records += 1
        if self._rows_bytes >= self._batch_bytes or len(self._rows[self.schema.names[0]]) >= _BATCH_RECORDS:
            self._take_rows()

    def append_batch(self, data: Any) -> None:
        """Adds many records: a ``pyarrow`` RecordBatch or Table, or a dict of one array per field."""
        self._writable()
        self._take_rows()
        for batch in as_record_batches(data, self.schema, first_record=self._records):
            self._records += batch.num_rows
            self._queue(batch)

    def _writable(self) -> None:
        if not self._open:
            raise ClosedError(f"{self!r} is not open: append inside its `with` block")

    def _take_rows(self) -> None:
        if not self._rows[self.schema.names[0]]:
            return
        rows, self._rows, self._rows_bytes = self._rows, {name: [] for name in self._rows}, 0
        first = self._records - len(rows[self.schema.names[0]])
        self._queue(rows_to_batch(rows, self.schema, first_record=first))

    def _queue(self, batch: Any) -> None:
        """Joins small batches, cuts large ones: what is written has about ``batch_bytes``, or is a single record."""
        most = max(1, self._batch_bytes * batch.num_rows // max(1, batch.nbytes))
        for start in range(0, batch.num_rows, most):
            piece = batch.slice(start, most)
            if self._tables_bytes + piece.nbytes > self._batch_bytes:
                self._flush()
            self._tables.append(piece)
            self._tables_bytes += piece.nbytes

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._tables:
            return
        tables, self._tables, size, self._tables_bytes = self._tables, [], self._tables_bytes, 0
        batch = tables[0] if len(tables) == 1 else pa.concat_batches(tables)
        with store_errors(self._partial.path, "write"):
            if self._shard is not None and self._shard.payload_bytes + size > self._shard_bytes:
                self._close_shard()
            if self._shard is None:
                self._shard = self._new_shard()
            self._shard.write(batch)

    def _new_shard(self) -> ArrowShardWriter | LmdbShardWriter:
        path = self._partial.data / f"shard-{len(self._entries):05d}.{self._format}"
        if self._format == "arrow":
            return ArrowShardWriter(path, self.schema)
        return LmdbShardWriter(path, self.schema, shard_bytes=self._shard_bytes)

    def _close_shard(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.close()
            name = shard.path.relative_to(self._partial.data).as_posix()
            size, digest = shard.path.stat().st_size, checksum(shard.path)
            self._entries.append(ShardEntry(path=name, records=shard.records, bytes=size, checksum=digest))

    def _finish(self) -> None:
        self._take_rows()
        self._flush()
        if not self._records:
            message = f"no record was appended: {self._partial.target} would be empty, and is not written"
            raise RequestError(message, kind=ErrorKind.TOO_FEW_RECORDS)
        with store_errors(self._partial.path, "write"):
            self._close_shard()
        metadata = {
            key.decode(errors="replace"): value.decode(errors="replace")
            for key, value in (self.schema.metadata or {}).items()
        }
        self._partial.publish(
            Manifest(
                format=self._format,
                records=self._records,
                fields={field.name: str(field.type) for field in self.schema},
                metadata=metadata,
                shuffled=self._shuffle_seed,
                shards=tuple(self._entries),
            )
        )
