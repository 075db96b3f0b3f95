"""What ``fastio inspect`` found, as values. The JSON form is for programs: names are only ever added."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

__all__ = ["REPORT_VERSION", "FieldReport", "Report", "ShardReport", "SizeBin", "to_json"]

REPORT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldReport:
    """One field.

    Attributes:
        name, arrow_type: as stored.
        delivered: ``"fixed"`` or ``"ragged"``, with ``dtype`` and ``shape`` of a record.
        nullable: whether a mask travels with the values.
        payload_bytes: of the whole field.
        mean_bytes, min_bytes, max_bytes: of one record, over the sample; None for a field without extents.
        amplification: bytes of the pages that one cold random read touches over the bytes wanted, on average.
        strategy, reason: how it would be read, and why.
    """

    name: str
    arrow_type: str
    delivered: str
    dtype: str
    shape: tuple[int, ...]
    nullable: bool
    payload_bytes: int
    mean_bytes: float | None
    min_bytes: int | None
    max_bytes: int | None
    amplification: float | None
    strategy: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeBin:
    """How many sampled records have ``from_bytes <= size < to_bytes``, over all their fields."""

    from_bytes: int
    to_bytes: int
    records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """One shard; ``bytes`` is the size of its files, the index apart."""

    path: str
    records: int
    bytes: int
    index: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A dataset.

    Attributes:
        path, format, layout: what was recognised, and why.
        records, payload_bytes, file_bytes: N, the bytes of all values, the bytes of all data files.
        shuffled: the seed it was packed with, or None where it was not shuffled or nothing says so.
        index: the state of the index, over all shards, as :class:`~fastio.formats.base.Shard` names them.
        sampled_records: how many records' sizes were looked up.
        sizes: their histogram.
        amplification: device bytes over payload bytes that an epoch in exact order is expected to cost when nothing
            is cached. Fields that are read record by record cost whole pages; what stays in memory is read once.
        memory_bytes: what the page cache was assumed to hold.
        first_records: for each of the first records, a line about each field.
    """

    path: str
    format: str
    layout: str
    fingerprint: str
    records: int
    payload_bytes: int
    file_bytes: int
    shuffled: int | None
    index: str
    fields: tuple[FieldReport, ...]
    sampled_records: int
    sizes: tuple[SizeBin, ...]
    amplification: float
    memory_bytes: int
    shards: tuple[ShardReport, ...]
    first_records: tuple[dict[str, str], ...]
    version: int = field(default=REPORT_VERSION)


def to_json(report: Report) -> str:
    """The report as one JSON object."""
    return json.dumps(asdict(report), indent=1)
