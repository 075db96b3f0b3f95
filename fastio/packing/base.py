"""What every source of records offers to be packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["BATCH_BYTES", "PackProgress", "Source", "bounded"]

# What a source hands over at once, about: the memory that packing needs is a small multiple of it.
BATCH_BYTES = 16 << 20

# Called with (records done, records in all or None, what is being done).
PackProgress = Callable[[int, int | None, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Records to be packed, as a sequence of Arrow record batches.

    Attributes:
        description: what was recognised: "12 Parquet files".
        schema: the ``pyarrow.Schema`` of every batch.
        records: how many there are; None where only reading them tells.
        payload_bytes: about how many bytes they have; None likewise.
        batches: begins to read them.
    """

    description: str
    schema: Any
    records: int | None
    payload_bytes: int | None
    batches: Callable[[], Iterator[Any]]


def bounded(batches: Iterable[Any], limit_bytes: int = BATCH_BYTES) -> Iterator[Any]:
    """The same records in batches of about ``limit_bytes`` at most (a record is never cut). Nothing is copied."""
    for batch in batches:
        most = max(1, limit_bytes * batch.num_rows // max(1, batch.nbytes))
        yield from (batch.slice(start, most) for start in range(0, batch.num_rows, most))
