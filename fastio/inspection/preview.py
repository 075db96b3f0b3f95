"""The first records, a line for each field: enough to recognise one's own data."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastio.dataset import Dataset
from fastio.errors import FastioError
from fastio.extents import BitTable, Int64Array
from fastio.formats.base import Column, DecodedColumn
from fastio.inspection.sniff import HEAD_BYTES, sniff
from fastio.spec import FieldSpec

__all__ = ["first_records"]

_SHOWN_VALUES = 6


def first_records(dataset: Dataset, count: int) -> tuple[dict[str, str], ...]:
    """What the first ``count`` records hold, at most ``HEAD_BYTES`` of each value read."""
    ids_B = np.arange(min(count, dataset.records), dtype=np.int64)
    by_field = {name: _described(dataset, column, ids_B) for name, column in dataset.columns.items()}
    return tuple({name: texts[i] for name, texts in by_field.items()} for i in range(len(ids_B)))


def _described(dataset: Dataset, column: Column | DecodedColumn, ids_B: Int64Array) -> list[str]:
    try:
        if isinstance(column, DecodedColumn):
            return _taken(column, ids_B)
        return [_one(dataset, column, ids_B[i : i + 1]) for i in range(len(ids_B))]
    except (FastioError, OSError) as error:
        return [f"unreadable: {error}"] * len(ids_B)


def _taken(column: DecodedColumn, ids_B: Int64Array) -> list[str]:
    values = column.take(ids_B)
    texts = []
    for i in range(len(ids_B)):
        if values.mask_B is not None and not values.mask_B[i]:
            texts.append("null")
        elif values.offsets_B1 is None:
            texts.append(_numbers(values.values[i]))
        else:
            value = values.values[values.offsets_B1[i] : values.offsets_B1[i + 1]]
            texts.append(_ragged(column.field, value.tobytes()))
    return texts


def _one(dataset: Dataset, column: Column, id_1: Int64Array) -> str:
    if any(_bit(dataset, table, id_1) is False for table in column.validity):
        return "null"
    if isinstance(column.table, BitTable):
        return str(_bit(dataset, column.table, id_1))
    extents = column.table.lookup(id_1)
    size = int(extents.length_B[0])
    head = _read(dataset, int(extents.file_B[0]), int(extents.offset_B[0]), min(size, HEAD_BYTES))
    if column.field.kind == "ragged":
        return _ragged(column.field, head, size)
    whole = len(head) == size
    dtype = np.dtype(column.field.dtype)
    values = np.frombuffer(head[: len(head) // dtype.itemsize * dtype.itemsize], dtype=dtype)
    return _numbers(values.reshape(column.field.shape) if whole else values, column.field.shape)


def _ragged(field: FieldSpec, head: bytes, size: int | None = None) -> str:
    size = len(head) if size is None else size
    dtype = np.dtype(field.dtype)
    if dtype == np.uint8:
        return sniff(head[:HEAD_BYTES], size)
    elements = size // dtype.itemsize
    return _numbers(np.frombuffer(head[: len(head) // dtype.itemsize * dtype.itemsize], dtype=dtype), (elements,))


def _numbers(values: Any, shape: tuple[int, ...] | None = None) -> str:
    array = np.asarray(values)
    shape = array.shape if shape is None else shape
    if shape == ():
        return str(array.reshape(-1)[0])
    shown = " ".join(str(value) for value in array.reshape(-1)[:_SHOWN_VALUES])
    return f"{array.dtype} {shape} {shown}{' ...' * (array.size > _SHOWN_VALUES)}"


def _bit(dataset: Dataset, table: BitTable, id_1: Int64Array) -> bool:
    extents = table.lookup(id_1)
    if not extents.length_B[0]:
        return True
    byte = _read(dataset, int(extents.file_B[0]), int(extents.offset_B[0]), 1)[0]
    return bool(byte >> int(table.bit(id_1)[0]) & 1)


def _read(dataset: Dataset, file: int, offset: int, size: int) -> bytes:
    descriptor = os.open(dataset.files[file].path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Without this, reading a page of a cold file drags a whole read-ahead window in.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
