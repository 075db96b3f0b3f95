"""The obvious way to read records through a dataset's columns: one ``pread`` per value, one Python object per record.

For tests, and for a look at a handful of records. Slow on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastio.dataset import Dataset
from fastio.extents import BitTable, Extents, Int64Array
from fastio.formats.base import Column, FileRef, TakenValues
from fastio.spec import FieldSpec

__all__ = ["gather"]


def gather(dataset: Dataset, field: str, ids: Sequence[int]) -> list[Any]:
    """The values of one field of these records.

    Returns:
        Per record None (null), a NumPy scalar or array (fixed fields), ``bytes`` or ``str`` (ragged bytes), or an
        array of the elements (other ragged fields).
    """
    (name,) = dataset.select([field])
    ids_B = np.asarray(ids, dtype=np.int64)
    column = dataset.columns[name]
    if isinstance(column, Column):
        return _located(dataset, column, ids_B)
    return _taken(column.field, column.take(ids_B))


def _located(dataset: Dataset, column: Column, ids_B: Int64Array) -> list[Any]:
    values: list[Any]
    if isinstance(column.table, BitTable):
        values = _bits(dataset, column.table, ids_B)
    else:
        values = list(_read(dataset.files, column.table.lookup(ids_B)))
    present = [True] * len(ids_B)
    for table in column.validity:
        present = [a and bool(b) for a, b in zip(present, _bits(dataset, table, ids_B), strict=True)]
    pairs = zip(values, present, strict=True)
    if isinstance(column.table, BitTable):
        return [value if there else None for value, there in pairs]
    return [_value(column.field, value) if there else None for value, there in pairs]


def _bits(dataset: Dataset, table: BitTable, ids_B: Int64Array) -> list[np.bool_]:
    raws = _read(dataset.files, table.lookup(ids_B))
    return [_bit(raw, bit) for raw, bit in zip(raws, table.bit(ids_B).tolist(), strict=True)]


def _read(files: Sequence[FileRef], extents: Extents) -> list[bytes]:
    found = []
    for file, offset, length in zip(
        extents.file_B.tolist(), extents.offset_B.tolist(), extents.length_B.tolist(), strict=True
    ):
        fd = os.open(files[file].path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found.append(os.pread(fd, length, offset))
        finally:
            os.close(fd)
        assert len(found[-1]) == length, f"{files[file].path}: short read at {offset}"
    return found


def _bit(raw: bytes, bit: int) -> np.bool_:
    return np.bool_(True) if not raw else np.bool_(raw[0] >> bit & 1)


def _value(field: FieldSpec, raw: bytes) -> Any:
    if field.kind == "ragged" and field.dtype == "|u1":
        return raw.decode(errors="surrogatepass") if field.text else raw
    array = np.frombuffer(raw, dtype=field.dtype)
    return array if field.kind == "ragged" else array.reshape(field.shape)[()]


def _taken(field: FieldSpec, taken: TakenValues) -> list[Any]:
    values: list[Any] = list(taken.values)
    if taken.offsets_B1 is not None:
        edges = taken.offsets_B1.tolist()
        values = [_value(field, taken.values[start:stop].tobytes()) for start, stop in pairwise(edges)]
    if taken.mask_B is None:
        return values
    return [value if there else None for value, there in zip(values, taken.mask_B.tolist(), strict=True)]
