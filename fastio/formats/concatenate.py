"""The columns of several shards as one column per field, in the numbers of one list of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol, runtime_checkable

import numpy as np

from fastio.errors import ErrorKind, StoreError
from fastio.extents import BitTable, Int64Array, concat_bits
from fastio.formats.arrow.schema import same_type
from fastio.formats.arrow.tables import concat_tables
from fastio.formats.base import Column, DecodedColumn, Shard, TakenValues
from fastio.formats.taken import take_grouped
from fastio.spec import FieldSpec

__all__ = ["concatenate", "first_difference"]

_ELSEWHERE = "is decoded because a shard of the dataset needs it"


@runtime_checkable
class _Decodes(Protocol):
    """A shard that can deliver any field by the slow way."""

    def decoded(self, name: str, reason: str) -> DecodedColumn: ...


def concatenate(shards: Sequence[Shard], start_S1: Int64Array) -> dict[str, Column | DecodedColumn]:
    """One column per field of the first shard, over the records of all.

    Args:
        shards: of one schema, see :func:`first_difference`.
        start_S1: first record id of each shard, and N at the end.
    """
    first_file_S = [0, *accumulate(len(shard.files) for shard in shards)]
    columns: dict[str, Column | DecodedColumn] = {}
    for name in shards[0].columns:
        parts = [shard.columns[name] for shard in shards]
        located = [part for part in parts if isinstance(part, Column)]
        if len(located) == len(parts):
            shifted = [_shifted(part, files) for part, files in zip(located, first_file_S, strict=False)]
            columns[name] = _concat_located(shifted)
        else:
            columns[name] = _concat_decoded([_decoded(shard, name) for shard in shards], start_S1)
    return columns


def first_difference(first: Shard, other: Shard) -> str | None:
    """In words, where the fields of two shards differ; None if both hold the same. Nullability may differ."""
    ours, theirs = ([column.field for column in shard.columns.values()] for shard in (first, other))
    for a, b in zip(ours, theirs, strict=False):
        if not _same(a, b):
            return f"{first.path} has {_words(a)} where {other.path} has {_words(b)}"
    if len(ours) == len(theirs):
        return None
    more, fewer = (first, other) if len(ours) > len(theirs) else (other, first)
    extra = list(more.columns.values())[min(len(ours), len(theirs))].field
    return f"{more.path} has {_words(extra)}, which {fewer.path} lacks"


def _same(a: FieldSpec, b: FieldSpec) -> bool:
    return replace(a, nullable=False, arrow_type="") == replace(b, nullable=False, arrow_type="") and same_type(
        a.arrow_type, b.arrow_type
    )


def _words(field: FieldSpec) -> str:
    return f"field {field.name!r} of type {field.arrow_type}"


def _shifted(column: Column, files: int) -> Column:
    if not files:
        return column
    validity = tuple(bits.shifted(files) for bits in column.validity)
    return replace(column, table=column.table.shifted(files), validity=validity)


def _concat_located(parts: list[Column]) -> Column:
    levels = max(len(part.validity) for part in parts)
    validity = tuple(concat_bits([_level(part, level) for part in parts]) for level in range(levels))
    field = replace(parts[0].field, nullable=any(part.field.nullable for part in parts))
    return Column(field=field, table=concat_tables([part.table for part in parts]), validity=validity)


def _level(part: Column, level: int) -> BitTable:
    """The bits of one level of nulls; all set for a shard that has fewer levels."""
    if level < len(part.validity):
        return part.validity[level]
    start_R1 = np.array([0, part.table.records], dtype=np.int64)
    zero_R = np.zeros(1, dtype=np.int64)
    return BitTable(start_R1, zero_R.astype(np.int32), zero_R - 1, zero_R)


def _decoded(shard: Shard, name: str) -> DecodedColumn:
    column = shard.columns[name]
    if isinstance(column, DecodedColumn):
        return column
    if isinstance(shard, _Decodes):
        return shard.decoded(name, _ELSEWHERE)
    text = f"{shard.path}: field {name!r} is served in another way than in the other shards"
    raise StoreError(text, kind=ErrorKind.SCHEMA_MISMATCH)


def _concat_decoded(parts: list[DecodedColumn], start_S1: Int64Array) -> DecodedColumn:
    if len(parts) == 1:
        return parts[0]
    reason = next((part.reason for part in parts if part.reason != _ELSEWHERE), _ELSEWHERE)
    field = replace(parts[0].field, nullable=any(part.field.nullable for part in parts))
    taker = _ShardTaker(field, tuple(parts), start_S1)
    payload_bytes = sum(part.payload_bytes for part in parts)
    return DecodedColumn(field=field, reason=reason, take=taker.take, payload_bytes=payload_bytes)


@dataclass(frozen=True, slots=True)
class _ShardTaker:
    """Takes from each shard what is its."""

    field: FieldSpec
    parts: tuple[DecodedColumn, ...]
    start_S1: Int64Array

    def take(self, ids_B: Int64Array) -> TakenValues:
        shard_B = np.searchsorted(self.start_S1, ids_B, side="right") - 1

        def of_shard(shard: int, places: Int64Array) -> TakenValues:
            return self.parts[shard].take(ids_B[places] - self.start_S1[shard])

        return take_grouped(self.field, shard_B, of_shard)
