"""One global shuffle in bounded memory: record i goes to place P(i), P being the seed's exact permutation.

Two passes over temporary files beside the data. The first scatters the records into buckets, a bucket being a range of
places; the second sorts one bucket after another by place, in memory. A bucket that came out larger than the limit is
taken in several ranges, so that the limit holds whatever the estimate of the source's size was.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastio.errors import ErrorKind, StoreError
from fastio.extents import Int64Array
from fastio.order import Permutation
from fastio.packing.base import PackProgress, Source, bounded
from fastio.writer.partial import store_errors

__all__ = ["MEMORY_BYTES", "shuffled"]

# What is held at once; packing needs about three times this.
MEMORY_BYTES = 256 << 20
# Open files, and a smallest batch per bucket that is still worth its header.
_MOST_BUCKETS = 256


def shuffled(
    source: Source, seed: int, scratch: Path, *, progress: PackProgress, memory_bytes: int = MEMORY_BYTES
) -> Iterator[Any]:
    """The records of ``source``, all of them once, in the order of ``seed``.

    Args:
        scratch: a directory that does not exist yet; it takes as much room as the records, and is removed at the end.
        memory_bytes: a limit for the records that are held at once.

    Raises:
        StoreError: the source gave another number of records than it had said, or the disk refused.
    """
    with store_errors(scratch, "write"):
        scratch.mkdir(parents=True)
        if source.records is None or source.payload_bytes is None:
            source = _spooled(source, scratch, progress)
        assert source.records is not None
        assert source.payload_bytes is not None
        buckets = min(_MOST_BUCKETS, source.records, -(-source.payload_bytes // memory_bytes) or 1)
        edges = [-(-bucket * source.records // buckets) for bucket in range(buckets + 1)]
        permutation = Permutation(source.records, seed, 0)
        _scatter(source, permutation, edges, scratch, progress=progress, memory_bytes=memory_bytes)
        for bucket in range(buckets):
            path = _bucket_path(scratch, bucket)
            yield from _sorted(path, edges[bucket], edges[bucket + 1], memory_bytes)
            path.unlink()
        shutil.rmtree(scratch)


def _spooled(source: Source, scratch: Path, progress: PackProgress) -> Source:
    """The source in a temporary file, because its records have to be counted before the first can be placed."""
    import pyarrow as pa

    path = scratch / "spool"
    records = payload_bytes = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, source.schema) as writer:
        for batch in source.batches():
            writer.write_batch(batch)
            records += batch.num_rows
            payload_bytes += batch.nbytes
            progress(records, None, "counting")
    return Source(
        description=source.description,
        schema=source.schema,
        records=records,
        payload_bytes=payload_bytes,
        batches=lambda: bounded(_stream(path)),
    )


def _scatter(
    source: Source,
    permutation: Permutation,
    edges: list[int],
    scratch: Path,
    *,
    progress: PackProgress,
    memory_bytes: int,
) -> None:
    import pyarrow as pa

    assert source.records is not None
    schema = _placed(source.schema)
    paths = [_bucket_path(scratch, bucket) for bucket in range(len(edges) - 1)]
    sinks = [pa.OSFile(str(path), "wb") for path in paths]
    writers = [pa.ipc.new_stream(sink, schema) for sink in sinks]
    start = 0
    for batch in _joined(source.batches(), memory_bytes // 4):
        stop = start + batch.num_rows
        if stop > source.records:
            raise _changed(source, stop)
        place_B = permutation.ids(np.arange(start, stop, dtype=np.int64))
        _write_by_place(batch, place_B, np.asarray(edges, dtype=np.int64), writers)
        start = stop
        progress(start, source.records, "scattering")
    if start != source.records:
        raise _changed(source, start)
    for writer, sink in zip(writers, sinks, strict=True):
        writer.close()
        sink.close()


def _placed(schema: Any) -> Any:
    import pyarrow as pa

    return schema.append(pa.field("place", pa.int64()))


def _write_by_place(batch: Any, place_B: Int64Array, edges: Int64Array, writers: list[Any]) -> None:
    import pyarrow as pa

    order_B = np.argsort(place_B)
    placed = pa.record_batch([*batch.columns, pa.array(place_B)], schema=_placed(batch.schema))
    ordered = placed.take(pa.array(order_B))
    cuts = np.searchsorted(place_B[order_B], edges).tolist()
    for writer, (first, last) in zip(writers, pairwise(cuts), strict=True):
        if first < last:
            writer.write_batch(ordered.slice(first, last - first))


def _sorted(path: Path, start: int, stop: int, memory_bytes: int) -> Iterator[Any]:
    """The records of one bucket by place, in as many ranges of places as the limit asks for."""
    parts = max(1, min(stop - start, -(-path.stat().st_size // memory_bytes)))
    for part in range(parts):
        low, high = (start + (stop - start) * edge // parts for edge in (part, part + 1))
        yield _range(path, low, high, whole=parts == 1)


def _range(path: Path, low: int, high: int, *, whole: bool) -> Any:
    """The records of a bucket with a place in [low, high), by place. At the most, two copies of them are held."""
    import pyarrow as pa

    found = pa.concat_batches([batch if whole else _between(batch, low, high) for batch in _stream(path)])
    place_B = found.column(found.num_columns - 1).to_numpy()
    schema = pa.schema(list(found.schema)[:-1])
    return pa.record_batch(found.columns[:-1], schema=schema).take(pa.array(np.argsort(place_B)))


def _between(batch: Any, low: int, high: int) -> Any:
    import pyarrow as pa

    place_B: Int64Array = batch.column(batch.num_columns - 1).to_numpy()
    return batch.take(pa.array(np.flatnonzero((place_B >= low) & (place_B < high))))


def _stream(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        yield from pa.ipc.open_stream(file)


def _joined(batches: Iterable[Any], limit_bytes: int) -> Iterator[Any]:
    """Small batches joined up to about ``limit_bytes``, large ones cut."""
    import pyarrow as pa

    pending: list[Any] = []
    size = 0
    for batch in bounded(batches, limit_bytes):
        if pending and size + batch.nbytes > limit_bytes:
            yield pa.concat_batches(pending)
            pending, size = [], 0
        pending.append(batch)
        size += batch.nbytes
    if pending:
        yield pa.concat_batches(pending)


def _bucket_path(scratch: Path, bucket: int) -> Path:
    return scratch / f"bucket-{bucket:03d}"


def _changed(source: Source, found: int) -> StoreError:
    message = f"{source.description}: {source.records:,} records were counted, but {found:,} read: did it change?"
    return StoreError(message, kind=ErrorKind.CHANGED)
