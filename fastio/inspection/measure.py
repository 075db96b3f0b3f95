"""From an open dataset to a report: sizes and amplification from a sample of the extents, in bounded time.

The sample is runs of neighbouring records spread over the dataset, because looking up one record of a cold index costs
a page, and its thousand neighbours cost nothing more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastio import pagecache
from fastio.dataset import Dataset, open_dataset
from fastio.extents import Extents, Int64Array
from fastio.formats.base import Column, DecodedColumn, IndexOptions, Shard
from fastio.inspection.preview import first_records
from fastio.inspection.report import FieldReport, Report, ShardReport, SizeBin
from fastio.plan import StrategyChoice
from fastio.reader import choose_strategies
from fastio.writer import read_manifest

__all__ = ["inspect_dataset", "report_on"]

_RUNS = 64
_RUN_RECORDS = 1024
_SAMPLING_S = 1.0
_PAGE_BYTES = 4096
_FIRST_RECORDS = 3


def inspect_dataset(path: str | Path, options: IndexOptions | None = None) -> Report:
    """Opens ``path`` and reports on it.

    Raises:
        StoreError: there is no dataset, or it is damaged.
    """
    with open_dataset(path, options=options or IndexOptions()) as dataset:
        return report_on(dataset)


def report_on(dataset: Dataset) -> Report:
    """What there is to say about an open dataset."""
    memory_bytes = pagecache.available_memory_bytes()
    choices = choose_strategies(dataset, list(dataset.columns), memory_bytes=memory_bytes)
    sample = _sample(dataset)
    fields = tuple(_field(column, choices[name], sample.fields[name]) for name, column in dataset.columns.items())
    shards = tuple(_shard(shard) for shard in dataset.shards)
    manifest = read_manifest(Path(dataset.path))
    return Report(
        path=str(dataset.path),
        format=dataset.format,
        layout=dataset.layout,
        fingerprint=dataset.fingerprint,
        records=dataset.records,
        payload_bytes=sum(entry.payload_bytes for entry in fields),
        file_bytes=sum(shard.bytes for shard in shards),
        shuffled=manifest.shuffled if manifest else None,
        index=dataset.index_state,
        fields=fields,
        sampled_records=sample.records,
        sizes=_histogram(np.concatenate(sample.sizes)) if sample.sizes else (),
        amplification=_amplification(fields),
        memory_bytes=memory_bytes,
        shards=shards,
        first_records=first_records(dataset, _FIRST_RECORDS),
    )


@dataclass(slots=True)
class _FieldSample:
    """Sums over the sampled records of one field."""

    records: int = 0
    total_bytes: int = 0
    page_bytes: int = 0
    min_bytes: int | None = None
    max_bytes: int = 0

    def add(self, extents: Extents) -> None:
        length_B = extents.length_B
        self.records += len(length_B)
        self.total_bytes += int(length_B.sum())
        first_B = extents.offset_B // _PAGE_BYTES
        last_B = -(-(extents.offset_B + length_B) // _PAGE_BYTES)
        self.page_bytes += int(((last_B - first_B) * (length_B > 0)).sum()) * _PAGE_BYTES
        least = int(length_B.min())
        self.min_bytes = least if self.min_bytes is None else min(self.min_bytes, least)
        self.max_bytes = max(self.max_bytes, int(length_B.max()))


@dataclass(slots=True)
class _Sample:
    fields: dict[str, _FieldSample]
    sizes: list[Int64Array] = field(default_factory=list)
    records: int = 0


def _sample(dataset: Dataset) -> _Sample:
    sample = _Sample({name: _FieldSample() for name in dataset.columns})
    end_s = time.monotonic() + _SAMPLING_S
    for ids_B in _runs(dataset.records):
        size_B = np.zeros(len(ids_B), dtype=np.int64)
        for name, column in dataset.columns.items():
            if isinstance(column, Column):
                extents = column.table.lookup(ids_B)
                sample.fields[name].add(extents)
                size_B += extents.length_B
        sample.sizes.append(size_B)
        sample.records += len(ids_B)
        if time.monotonic() > end_s:
            break
    return sample


def _runs(records: int) -> Iterator[Int64Array]:
    """Runs of record ids, spread evenly; in an order in which the first few are spread as well."""
    if records <= _RUNS * _RUN_RECORDS:
        edges = range(0, records, _RUN_RECORDS)
        yield from (np.arange(start, min(records, start + _RUN_RECORDS), dtype=np.int64) for start in edges)
        return
    starts = np.linspace(0, records - _RUN_RECORDS, _RUNS).astype(np.int64)
    for number in np.random.default_rng(0).permutation(_RUNS):
        yield np.arange(starts[number], starts[number] + _RUN_RECORDS, dtype=np.int64)


def _field(column: Column | DecodedColumn, choice: StrategyChoice, sample: _FieldSample) -> FieldReport:
    spec = column.field
    decoded = isinstance(column, DecodedColumn)
    return FieldReport(
        name=spec.name,
        arrow_type=spec.arrow_type,
        delivered=spec.kind,
        dtype=spec.dtype,
        shape=spec.shape,
        nullable=spec.nullable,
        payload_bytes=column.payload_bytes if isinstance(column, DecodedColumn) else column.table.payload_bytes,
        mean_bytes=sample.total_bytes / sample.records if sample.records else None,
        min_bytes=None if decoded else sample.min_bytes,
        max_bytes=None if decoded else sample.max_bytes,
        amplification=sample.page_bytes / sample.total_bytes if sample.total_bytes else None,
        strategy=choice.strategy,
        reason=choice.reason,
    )


def _amplification(fields: tuple[FieldReport, ...]) -> float:
    """Over all fields: those read record by record cost their pages, those kept in memory are read once."""
    wanted = sum(entry.payload_bytes for entry in fields)
    read = sum(
        entry.payload_bytes * (entry.amplification if entry.strategy == "extent" and entry.amplification else 1.0)
        for entry in fields
    )
    return read / wanted if wanted else 1.0


def _histogram(size_B: Int64Array) -> tuple[SizeBin, ...]:
    """Bins that double, from the smallest size to the largest."""
    power_B = np.where(size_B > 0, np.floor(np.log2(np.maximum(size_B, 1))).astype(np.int64) + 1, 0)
    counts = np.bincount(power_B)
    first = int(power_B.min())
    return tuple(
        SizeBin(from_bytes=(1 << power) >> 1, to_bytes=1 << power, records=int(counts[power]))
        for power in range(first, len(counts))
    )


def _shard(shard: Shard) -> ShardReport:
    sizes = {file.path: file.size_bytes for file in shard.files if file.path.suffix != ".idx"}
    return ShardReport(path=str(shard.path), records=shard.records, bytes=sum(sizes.values()), index=shard.index_state)
