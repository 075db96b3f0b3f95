"""From record ids to reads: which bytes go where in a batch, and how they are best fetched.

Pure: no file is touched here. :func:`choose_strategy` decides once per stream and field, :func:`plan_batch` lays out
one batch and lists its reads as arrays, :func:`split_reads` cuts the list into pieces for the reader's threads.

Dimensions: B records in the batch, R reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastio.errors import StoreError
from fastio.extents import BitTable, Extents, ExtentTable, Int32Array, Int64Array
from fastio.layout import ALIGNMENT_BYTES, BatchLayout, FieldArrays, batch_layout, fixed_bytes
from fastio.spec import FieldSpec

__all__ = [
    "BatchPlan",
    "FieldSource",
    "Reads",
    "Strategy",
    "StrategyChoice",
    "choose_strategy",
    "plan_batch",
    "split_reads",
]

Strategy = Literal["extent", "mapped", "decoded"]

# Below 16 KiB a preadv per record costs more than the copy it does (2 us against 1.3 us), and mapping wins; above, the
# two are level when warm and preadv is twice as fast when cold.
_LARGE_RECORD_BYTES = 16 << 10
# A field this small stays resident whatever else is read; its pages are worth keeping for each of its records.
_SMALL_FIELD_BYTES = 64 << 20
_ZEROS = np.zeros(ALIGNMENT_BYTES, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class StrategyChoice:
    """How a field is read, and why, in words for ``inspect`` and the log."""

    strategy: Strategy
    reason: str


def choose_strategy(*, payload_bytes: int, records: int, dataset_bytes: int, memory_bytes: int) -> StrategyChoice:
    """Chooses how one field is read.

    Args:
        payload_bytes: bytes of the whole field.
        records: N.
        dataset_bytes: bytes of all fields that are streamed.
        memory_bytes: what the page cache may hold.

    >>> choose_strategy(payload_bytes=10**9, records=10**4, dataset_bytes=10**9, memory_bytes=10**10).strategy
    'extent'
    >>> choose_strategy(payload_bytes=10**9, records=10**6, dataset_bytes=10**9, memory_bytes=10**10).strategy
    'mapped'
    """
    mean_bytes = payload_bytes / max(1, records)
    if payload_bytes <= _SMALL_FIELD_BYTES and mean_bytes < _LARGE_RECORD_BYTES:
        return StrategyChoice("mapped", f"the whole field is {payload_bytes} bytes: it stays in memory")
    if mean_bytes >= _LARGE_RECORD_BYTES:
        return StrategyChoice("extent", f"records of {mean_bytes:.0f} bytes are read straight into the batch")
    if dataset_bytes <= memory_bytes:
        return StrategyChoice("mapped", f"records of {mean_bytes:.0f} bytes, and the dataset fits in memory")
    return StrategyChoice("extent", f"records of {mean_bytes:.0f} bytes, and the dataset exceeds memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSource:
    """Where the planner gets one field from: exactly one of ``table`` and ``take``.

    Attributes:
        field: how it is delivered.
        strategy: how its extents are read.
        table: the extents of its values.
        validity: bit tables that must all be set where a value is present.
        take: ids -> values, for fields that are small or not reachable by extents.
    """

    field: FieldSpec
    strategy: Strategy
    table: ExtentTable | None = None
    validity: tuple[BitTable, ...] = ()
    take: Callable[[Int64Array], FieldArrays] | None = None


@dataclass(frozen=True, slots=True)
class Reads:
    """R reads of one field: ``length_R`` bytes at ``offset_R`` of file ``file_R`` go to ``dest_R`` of the payload.

    ``row_R`` is the place in the batch of the record that each read belongs to; ``fixed_width`` the length of every
    read, where it is the same by the field's type. Destinations ascend, and those of a ragged field leave no gap.
    """

    field: int
    strategy: Strategy
    fixed_width: int | None
    file_R: Int32Array
    offset_R: Int64Array
    length_R: Int64Array
    dest_R: Int64Array
    row_R: Int64Array

    def __len__(self) -> int:
        return len(self.offset_R)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Everything about one batch but its bytes.

    Attributes:
        step, epoch: which batch.
        ids_B: its records.
        layout: where everything lies in the payload.
        ragged_bytes: per ragged field, the bytes of its values.
        known: (payload offset, array) pairs to be copied in: ids, masks, offsets, values known already.
        reads: what has to be fetched, per field.
    """

    step: int
    epoch: int
    ids_B: Int64Array
    layout: BatchLayout
    ragged_bytes: tuple[int, ...]
    known: tuple[tuple[int, npt.NDArray[Any]], ...]
    reads: tuple[Reads, ...]


ReadBits = Callable[[BitTable, Int64Array], npt.NDArray[np.bool_]]


def plan_batch(
    sources: Sequence[FieldSource], ids_B: Int64Array, *, step: int, epoch: int, read_bits: ReadBits
) -> BatchPlan:
    """Plans one batch.

    Args:
        sources: the fields, in the order of delivery.
        ids_B: the records, in order.
        step, epoch: copied into the plan.
        read_bits: looks bits up (validity); the one thing that sizes can depend on.

    Raises:
        StoreError: what ``read_bits``, a table or ``take`` raised, with step and field named.
    """
    parts = []
    for source in sources:
        try:
            parts.append(_plan_field(source, ids_B, read_bits))
        except StoreError as error:
            raise StoreError(f"step {step}, field {source.field.name!r}: {error}", kind=error.kind) from error
    ragged_bytes = tuple(part.value_bytes for part, source in zip(parts, sources, strict=True) if _ragged(source))
    layout = batch_layout([source.field for source in sources], len(ids_B), ragged_bytes)
    known: list[tuple[int, npt.NDArray[Any]]] = [(0, ids_B)]
    known.extend((start, _ZEROS[: stop - start]) for start, stop in layout.gaps)
    reads = []
    for index, (part, place, source) in enumerate(zip(parts, layout.fields, sources, strict=True)):
        if place.mask_start is not None:
            known.append((place.mask_start, part.mask(len(ids_B))))
        if place.offsets_start is not None and part.offsets_B1 is not None:
            known.append((place.offsets_start, part.offsets_B1))
        if part.values is not None:
            known.append((place.values_start, part.values))
        if part.extents is not None and part.start_B is not None:
            reads.append(_reads(index, source, part.extents, part.start_B + place.values_start))
    return BatchPlan(
        step=step,
        epoch=epoch,
        ids_B=ids_B,
        layout=layout,
        ragged_bytes=ragged_bytes,
        known=tuple(known),
        reads=tuple(piece for piece in reads if len(piece)),
    )


def split_reads(reads: Reads, *, max_reads: int, max_bytes: int) -> list[Reads]:
    """Cuts reads into pieces of at most ``max_reads`` reads and about ``max_bytes`` bytes, each for one thread.

    A read longer than ``max_bytes`` is itself cut, so that a record of hundreds of megabytes is read by many threads.
    """
    if len(reads) and int(reads.length_R.max()) > max_bytes:
        reads = _cut_long(reads, max_bytes)
    end_R = np.cumsum(reads.length_R)
    pieces = []
    start = 0
    while start < len(reads):
        before = int(end_R[start - 1]) if start else 0
        stop = int(np.searchsorted(end_R, before + max_bytes, side="right"))
        stop = min(max(stop, start + 1), start + max_reads)
        pieces.append(_sliced(reads, start, stop))
        start = stop
    return pieces


@dataclass(slots=True)
class _FieldPlan:
    """One field of one batch, before its place in the payload is known. ``start_B`` counts from its values' start."""

    value_bytes: int
    mask_B: npt.NDArray[np.bool_] | None = None
    offsets_B1: Int64Array | None = None
    values: npt.NDArray[Any] | None = None
    extents: Extents | None = None
    start_B: Int64Array | None = None

    def mask(self, records: int) -> npt.NDArray[np.bool_]:
        return np.ones(records, dtype=np.bool_) if self.mask_B is None else self.mask_B


def _plan_field(source: FieldSource, ids_B: Int64Array, read_bits: ReadBits) -> _FieldPlan:
    if source.take is not None:
        taken = source.take(ids_B)
        return _FieldPlan(taken.values.nbytes, taken.mask_B, taken.offsets_B1, taken.values)
    assert source.table is not None
    extents = source.table.lookup(ids_B)
    mask_B = None
    for bits in source.validity:
        present_B = read_bits(bits, ids_B)
        mask_B = present_B if mask_B is None else mask_B & present_B
    if mask_B is not None:
        extents = Extents(extents.file_B, extents.offset_B, np.where(mask_B, extents.length_B, 0))
    if not _ragged(source):
        width = fixed_bytes(source.field)
        start_B = np.arange(len(ids_B), dtype=np.int64) * width
        # Nothing is read for a null record, and the memory held another batch before: null values are zeroed first.
        zeros = None if mask_B is None or mask_B.all() else np.zeros(width * len(ids_B), dtype=np.uint8)
        return _FieldPlan(width * len(ids_B), mask_B, None, zeros, extents, start_B)
    end_B1 = np.zeros(len(ids_B) + 1, dtype=np.int64)
    np.cumsum(extents.length_B, out=end_B1[1:])
    offsets_B1 = end_B1 // np.dtype(source.field.dtype).itemsize
    return _FieldPlan(int(end_B1[-1]), mask_B, offsets_B1, None, extents, end_B1[:-1])


def _ragged(source: FieldSource) -> bool:
    return source.field.kind == "ragged"


def _reads(field: int, source: FieldSource, extents: Extents, dest_B: Int64Array) -> Reads:
    row_R = np.flatnonzero(extents.length_B)
    return Reads(
        field,
        source.strategy,
        None if _ragged(source) else fixed_bytes(source.field),
        extents.file_B[row_R],
        extents.offset_B[row_R],
        extents.length_B[row_R],
        dest_B[row_R],
        row_R,
    )


def _sliced(reads: Reads, start: int, stop: int) -> Reads:
    return Reads(
        reads.field,
        reads.strategy,
        reads.fixed_width,
        reads.file_R[start:stop],
        reads.offset_R[start:stop],
        reads.length_R[start:stop],
        reads.dest_R[start:stop],
        reads.row_R[start:stop],
    )


def _cut_long(reads: Reads, max_bytes: int) -> Reads:
    pieces_R = -(-reads.length_R // max_bytes)
    source = np.repeat(np.arange(len(reads)), pieces_R)
    first_R = np.cumsum(pieces_R) - pieces_R
    skipped = (np.arange(len(source)) - first_R[source]) * max_bytes
    length = np.minimum(reads.length_R[source] - skipped, max_bytes)
    return Reads(
        reads.field,
        reads.strategy,
        None,
        reads.file_R[source],
        reads.offset_R[source] + skipped,
        length,
        reads.dest_R[source] + skipped,
        reads.row_R[source],
    )
