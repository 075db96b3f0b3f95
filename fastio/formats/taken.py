"""Values that were taken piece by piece (from several batches or shards), put into the order they were asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fastio.extents import Int64Array
from fastio.formats.base import TakenValues
from fastio.spec import FieldSpec

__all__ = ["grouped", "ragged_of", "take_grouped"]


def grouped(owner_B: Int64Array) -> list[tuple[int, Int64Array]]:
    """(owner, places of its ids among the B) for every distinct owner.

    >>> grouped(np.array([7, 3, 7]))
    [(3, array([1])), (7, array([0, 2]))]
    """
    order_B = np.argsort(owner_B, kind="stable")
    owners, first = np.unique(owner_B[order_B], return_index=True)
    return list(zip(owners.tolist(), np.split(order_B, first[1:]) if len(owners) else [], strict=True))


def take_grouped(field: FieldSpec, owner_B: Int64Array, take: Callable[[int, Int64Array], TakenValues]) -> TakenValues:
    """Takes from each owner what is its, and merges.

    Args:
        field: how the merged values are delivered; parts without a mask count as present.
        owner_B: who holds each of the B values.
        take: (owner, places among the B) -> values of those, in that order.
    """
    parts = [(places, take(owner, places)) for owner, places in grouped(owner_B)]
    order_B = np.concatenate([places for places, _ in parts]) if parts else np.empty(0, dtype=np.int64)
    mask_B = _merge_masks(parts, len(owner_B)) if field.nullable else None
    if field.kind == "fixed":
        values = np.empty((len(owner_B), *field.shape), dtype=field.dtype)
        for places, part in parts:
            values[places] = part.values
        return TakenValues(values, None, mask_B)
    length_B = np.zeros(len(owner_B), dtype=np.int64)
    for places, part in parts:
        length_B[places] = _lengths(part)
    together = np.concatenate([np.empty(0, dtype=field.dtype), *[part.values for _, part in parts]])
    start_B = np.empty(len(owner_B), dtype=np.int64)
    start_B[order_B] = np.cumsum(length_B[order_B]) - length_B[order_B]
    return ragged_of(together, start_B, length_B, mask_B)


def ragged_of(
    values: npt.NDArray[np.generic], start_B: Int64Array, length_B: Int64Array, mask_B: npt.NDArray[np.bool_] | None
) -> TakenValues:
    """The pieces ``values[start : start + length]``, one after another."""
    offsets_B1 = np.concatenate([[0], np.cumsum(length_B)]).astype(np.int64)
    picked = np.arange(offsets_B1[-1]) + np.repeat(start_B - offsets_B1[:-1], length_B)
    return TakenValues(values[picked], offsets_B1, mask_B)


def _lengths(part: TakenValues) -> Int64Array:
    assert part.offsets_B1 is not None
    return np.diff(part.offsets_B1)


def _merge_masks(parts: list[tuple[Int64Array, TakenValues]], count: int) -> npt.NDArray[np.bool_]:
    mask_B = np.ones(count, dtype=np.bool_)
    for places, part in parts:
        if part.mask_B is not None:
            mask_B[places] = part.mask_B
    return mask_B
