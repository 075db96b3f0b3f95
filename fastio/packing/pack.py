"""Packing: a source, perhaps shuffled, goes into a writer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastio.errors import ErrorKind, RequestError, StoreError
from fastio.packing.base import PackProgress, Source
from fastio.packing.shuffle import MEMORY_BYTES, shuffled
from fastio.packing.sources import open_source
from fastio.writer import Writer, read_manifest
from fastio.writer.writer import DEFAULT_SHARD_BYTES, WriterFormat

__all__ = ["PackOptions", "Packed", "pack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions:
    """How a source is packed.

    Attributes:
        format: ``"arrow"`` or ``"lmdb"``.
        shuffle_seed: None keeps the source's order; a seed permutes all records by it, once.
        shard_bytes: about how large a shard becomes.
        memory_bytes: how much of the records a shuffle holds at once.
    """

    format: WriterFormat = "arrow"
    shuffle_seed: int | None = None
    shard_bytes: int = DEFAULT_SHARD_BYTES
    memory_bytes: int = MEMORY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What was packed: counts over all shards, and what the source was recognised as."""

    source: str
    records: int
    shards: int
    bytes: int


def pack(
    source: str | Path,
    destination: str | Path,
    options: PackOptions | None = None,
    *,
    overwrite: bool = False,
    progress: PackProgress | None = None,
) -> Packed:
    """Writes what ``source`` holds as a dataset at ``destination``, whole or not at all.

    Raises:
        RequestError: an option is wrong, or the format can't hold the source's fields.
        StoreError: the source can't be read, something is at the destination already, or the disk is full.
    """
    options = options or PackOptions()
    progress = progress or _silent
    source, destination = Path(source), Path(destination)
    _apart(source, destination)
    found = open_source(source)
    if options.format == "lmdb":
        found = _for_lmdb(found, options)
    writer = Writer(
        destination,
        found.schema,
        format=options.format,
        shard_bytes=options.shard_bytes,
        overwrite=overwrite,
        shuffle_seed=options.shuffle_seed,
    )
    with writer:
        for batch in _ordered(found, options, writer.scratch, progress):
            writer.append_batch(batch)
            progress(writer.records, found.records, "writing")
        if writer.records == 0:
            raise StoreError(f"{source} holds no record ({found.description})", kind=ErrorKind.EMPTY)
    manifest = read_manifest(destination)
    assert manifest is not None
    return Packed(
        source=found.description,
        records=manifest.records,
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
    )


def _ordered(source: Source, options: PackOptions, scratch: Path, progress: PackProgress) -> Iterator[Any]:
    if options.shuffle_seed is None or source.records == 0:
        return source.batches()
    return shuffled(source, options.shuffle_seed, scratch, progress=progress, memory_bytes=options.memory_bytes)


def _apart(source: Path, destination: Path) -> None:
    """What is being written must not be read, nor what is read be replaced."""
    inside, outside = destination.resolve(), source.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise RequestError(f"source {source} and destination {destination} must not lie in one another")


def _for_lmdb(source: Source, options: PackOptions) -> Source:
    """Files go to LMDB by their paths, as image datasets are commonly kept. Other sources stay as they are."""
    if source.schema.names[:2] == ["file", "data"]:
        file, data = source.schema.field("file"), source.schema.field("data")
        source = _keyed(source, [file.with_name("key"), data.with_name("value")])
    if set(source.schema.names) == {"key", "value"} and options.shuffle_seed is not None:
        message = "LMDB keeps records in the order of their keys, which would undo the shuffle: pack as format 'arrow'"
        raise RequestError(message)
    return source


def _keyed(source: Source, fields: list[Any]) -> Source:
    import pyarrow as pa

    schema = pa.schema(fields)

    def batches() -> Iterator[Any]:
        for batch in source.batches():
            yield pa.record_batch(batch.columns[: len(fields)], schema=schema)

    return replace(source, schema=schema, batches=batches)


def _silent(done: int, total: int | None, phase: str) -> None:
    pass
