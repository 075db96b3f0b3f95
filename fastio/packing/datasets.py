"""Datasets as records to be packed: Arrow through pyarrow, with every type it knows; LMDB by fastio's own index.

Compressed Arrow files, which have no extents and so can't be streamed, are read here: packing is their remedy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastio.errors import ErrorKind, StoreError
from fastio.extents import Int64Array
from fastio.formats.base import Column, DecodedColumn, FileRef
from fastio.packing.base import BATCH_BYTES, Source, bounded
from fastio.packing.tables import reading

if TYPE_CHECKING:
    from fastio.dataset import Dataset

__all__ = ["dataset_source"]

# So many records of LMDB are looked up at once.
_CHUNK_RECORDS = 4096


def dataset_source(path: Path) -> Source:
    """The records of a dataset, in its own order.

    Raises:
        StoreError: there is no dataset at ``path`` (``NOT_A_DATASET``), or it is damaged.
    """
    from fastio.dataset import open_dataset
    from fastio.formats import find_shards

    try:
        dataset = open_dataset(path)
    except StoreError as error:
        if error.kind is not ErrorKind.COMPRESSED:
            raise
        # How many records there are is then in no header that is cheap to read: a shuffle counts for itself.
        return _arrow_source(list(find_shards(path).paths), "compressed Arrow")
    if dataset.format == "lmdb":
        return _lmdb_source(dataset)
    with dataset:
        found = _arrow_source([shard.path for shard in dataset.shards], "Arrow")
        return replace(found, records=dataset.records, payload_bytes=sum(map(_payload_bytes, dataset.columns.values())))


def _arrow_source(paths: list[Path], what: str) -> Source:
    with ExitStack() as stack:
        schema = _open_arrow(paths[0], stack).schema
    shards = f"{len(paths):,} {what} shard{'s' * (len(paths) != 1)}"

    def batches() -> Iterator[Any]:
        for path in paths:
            with ExitStack() as stack, reading(path):
                yield from bounded(_record_batches(_open_arrow(path, stack)))

    return Source(description=shards, schema=schema, records=None, payload_bytes=None, batches=batches)


def _open_arrow(path: Path, stack: ExitStack) -> Any:
    import pyarrow as pa

    with reading(path):
        file = stack.enter_context(pa.memory_map(str(path)))
        try:
            return stack.enter_context(pa.ipc.open_file(file))
        except pa.ArrowInvalid:
            file.seek(0)
            return stack.enter_context(pa.ipc.open_stream(file))


def _record_batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _lmdb_source(dataset: Dataset) -> Source:
    import pyarrow as pa

    columns = {name: column for name, column in dataset.columns.items() if isinstance(column, Column)}
    schema = pa.schema([_field(column) for column in columns.values()])
    return Source(
        description=f"{len(dataset.shards):,} LMDB environment{'s' * (len(dataset.shards) != 1)}",
        schema=schema,
        records=dataset.records,
        payload_bytes=sum(column.table.payload_bytes for column in columns.values()),
        batches=lambda: _lmdb_batches(dataset, columns, schema),
    )


def _payload_bytes(column: Column | DecodedColumn) -> int:
    return column.payload_bytes if isinstance(column, DecodedColumn) else column.table.payload_bytes


def _field(column: Column) -> Any:
    import pyarrow as pa

    spec = column.field
    return pa.field(spec.name, pa.string() if spec.text else pa.binary(), nullable=spec.nullable)


def _lmdb_batches(dataset: Dataset, columns: Mapping[str, Column], schema: Any) -> Iterator[Any]:
    """Every value by its extent. The dataset is closed at the end, its read transactions with it."""
    import pyarrow as pa

    with dataset, ExitStack() as stack:
        files = [_opened(file, stack) for file in dataset.files]
        for ids_B in _chunks(dataset.records, columns):
            pairs = zip(columns.values(), schema, strict=True)
            with reading(dataset.path):
                arrays = [pa.array(_values(column, ids_B, files), field.type) for column, field in pairs]
                batch = pa.record_batch(arrays, schema=schema)
            yield batch


def _chunks(records: int, columns: Mapping[str, Column]) -> Iterator[Int64Array]:
    """Record ids, in order, as many at once as have about ``BATCH_BYTES``."""
    for start in range(0, records, _CHUNK_RECORDS):
        ids_B = np.arange(start, min(records, start + _CHUNK_RECORDS), dtype=np.int64)
        length_B = sum(column.table.lookup(ids_B).length_B for column in columns.values())
        part_B = np.cumsum(length_B) // BATCH_BYTES
        yield from np.split(ids_B, np.flatnonzero(np.diff(part_B)) + 1)


def _values(column: Column, ids_B: Int64Array, files: list[int]) -> list[bytes | None]:
    extents = column.table.lookup(ids_B)
    places = zip(extents.file_B.tolist(), extents.offset_B.tolist(), extents.length_B.tolist(), strict=True)
    values: list[bytes | None] = [os.pread(files[file], length, offset) for file, offset, length in places]
    for table in column.validity:
        byte_B, bit_B = table.lookup(ids_B), table.bit(ids_B)
        for i in np.flatnonzero(byte_B.length_B).tolist():
            byte = os.pread(files[byte_B.file_B[i]], 1, int(byte_B.offset_B[i]))[0]
            if not byte >> int(bit_B[i]) & 1:
                values[i] = None
    return values


def _opened(file: FileRef, stack: ExitStack) -> int:
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"cannot read {file.path}: {error.strerror}", kind=ErrorKind.UNREADABLE) from error
    stack.callback(os.close, descriptor)
    found = os.fstat(descriptor)
    if (found.st_size, found.st_mtime_ns) != (file.size_bytes, file.mtime_ns):
        message = f"{file.path} changed since it was indexed; pack it when it is at rest"
        raise StoreError(message, kind=ErrorKind.CHANGED)
    return descriptor
