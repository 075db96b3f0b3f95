"""How a batch lies in memory, the same on both ends of a connection.

A payload is a sequence of buffers, each starting at a multiple of 64 bytes:

    ids (B int64), then for each field in order:
        [mask     B bytes, 1 where a value is present]      if the field is nullable
        [offsets  B + 1 int64, in elements]                 if the field is ragged
        values

so that every buffer is a NumPy, Arrow or torch view of the payload, without a copy. The sizes of all buffers follow
from B and, for ragged fields, the byte count of their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastio.errors import RemoteProtocolError
from fastio.extents import Int64Array, UInt8Array
from fastio.spec import FieldSpec

__all__ = ["ALIGNMENT_BYTES", "BatchLayout", "FieldArrays", "FieldLayout", "batch_layout", "fixed_bytes", "view_batch"]

# A cache line, and what Arrow recommends for its buffers.
ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class FieldLayout:
    """Where one field's buffers begin in the payload, in bytes; None where the field has no such buffer."""

    mask_start: int | None
    offsets_start: int | None
    values_start: int
    values_bytes: int


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Where everything of one batch lies in its payload. ``ids`` begin at 0.

    ``gaps`` are the half-open ranges between buffers that alignment leaves; a sender zeroes them.
    """

    records: int
    fields: tuple[FieldLayout, ...]
    gaps: tuple[tuple[int, int], ...]
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class FieldArrays:
    """One field of one batch, as views of its payload.

    Attributes:
        values: shape (B, *shape) for a fixed field, (elements,) for a ragged one.
        offsets_B1: element offsets of a ragged field, else None.
        mask_B: booleans, False where a value is null; None for a field that is not nullable.
    """

    values: npt.NDArray[Any]
    offsets_B1: Int64Array | None
    mask_B: npt.NDArray[np.bool_] | None


def fixed_bytes(field: FieldSpec) -> int:
    """Bytes of one record of a fixed field.

    >>> fixed_bytes(FieldSpec(name="x", kind="fixed", dtype="<f4", shape=(3, 2)))
    24
    """
    return np.dtype(field.dtype).itemsize * prod(field.shape)


def batch_layout(fields: Sequence[FieldSpec], records: int, ragged_bytes: Sequence[int]) -> BatchLayout:
    """Lays out a batch of ``records`` records.

    Args:
        fields: the fields delivered, in order.
        records: B.
        ragged_bytes: for each **ragged** field, in order, the byte count of all its values in this batch.
    """
    sizes = iter(ragged_bytes)
    ends = [records * 8]
    gaps = []

    def place(length_bytes: int) -> int:
        start = _aligned(ends[-1])
        gaps.append((ends[-1], start))
        ends.append(start + length_bytes)
        return start

    parts = []
    for field in fields:
        mask_start = place(records) if field.nullable else None
        offsets_start = place(8 * (records + 1)) if field.kind == "ragged" else None
        values_bytes = next(sizes) if field.kind == "ragged" else records * fixed_bytes(field)
        parts.append(FieldLayout(mask_start, offsets_start, place(values_bytes), values_bytes))
    payload_bytes = place(0)
    return BatchLayout(records, tuple(parts), tuple(gap for gap in gaps if gap[0] < gap[1]), payload_bytes)


def view_batch(
    fields: Sequence[FieldSpec], layout: BatchLayout, payload: UInt8Array
) -> tuple[Int64Array, tuple[FieldArrays, ...]]:
    """Views a received payload as arrays; nothing is copied, every view keeps ``payload`` alive.

    Raises:
        RemoteProtocolError: the offsets of a ragged field do not fit its values.
    """
    records = layout.records
    ids_B = payload[: records * 8].view(np.int64)
    arrays = []
    for field, part in zip(fields, layout.fields, strict=True):
        dtype = np.dtype(field.dtype)
        values = payload[part.values_start : part.values_start + part.values_bytes].view(dtype)
        mask_B = offsets_B1 = None
        if part.mask_start is not None:
            mask_B = payload[part.mask_start : part.mask_start + records].view(np.bool_)
        if part.offsets_start is None:
            values = values.reshape(records, *field.shape)
        else:
            offsets_B1 = payload[part.offsets_start : part.offsets_start + 8 * (records + 1)].view(np.int64)
            # Compared, not subtracted: the difference of offsets that a hostile peer chose can overflow and look fine.
            descends = bool((offsets_B1[1:] < offsets_B1[:-1]).any())
            if offsets_B1[0] != 0 or offsets_B1[-1] != len(values) or descends:
                span = f"from {offsets_B1[0]} to {offsets_B1[-1]}"
                raise RemoteProtocolError(f"field {field.name!r}: offsets run {span} over {len(values)} values")
        arrays.append(FieldArrays(values, offsets_B1, mask_B))
    return ids_B, tuple(arrays)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
