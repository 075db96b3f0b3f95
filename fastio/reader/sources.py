"""A dataset's columns, as the planner takes them: strategy chosen, bits and decoded columns behind one call.

Validity and booleans are a bit per record: they are looked up through maps while a batch is planned, because the size
of a batch depends on which of its records are null.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from fastio.dataset import Dataset
from fastio.errors import StoreError
from fastio.extents import BitTable, Int64Array
from fastio.files import BadFileError, FileSet
from fastio.formats.base import Column, DecodedColumn
from fastio.layout import FieldArrays
from fastio.plan import FieldSource, StrategyChoice, choose_strategy

__all__ = ["choose_strategies", "field_sources", "read_bits"]


def choose_strategies(dataset: Dataset, fields: Sequence[str], *, memory_bytes: int) -> dict[str, StrategyChoice]:
    """How each of these fields of a dataset would be read, and why, if they were streamed together.

    Args:
        dataset: the dataset.
        fields: names of its fields.
        memory_bytes: what the page cache may hold.
    """
    sizes = {name: _payload_bytes(dataset.columns[name]) for name in fields}
    choices = {}
    for name in fields:
        column = dataset.columns[name]
        if isinstance(column, DecodedColumn):
            choices[name] = StrategyChoice("decoded", column.reason)
            continue
        choices[name] = choose_strategy(
            payload_bytes=sizes[name],
            records=dataset.records,
            dataset_bytes=sum(sizes.values()),
            memory_bytes=memory_bytes,
        )
    return choices


def field_sources(
    dataset: Dataset, fields: Sequence[str], files: FileSet, *, memory_bytes: int
) -> tuple[FieldSource, ...]:
    """What :func:`fastio.plan.plan_batch` needs of each of these fields."""
    choices = choose_strategies(dataset, fields, memory_bytes=memory_bytes)
    return tuple(_source(dataset.columns[name], files, choices[name]) for name in fields)


def read_bits(files: FileSet, table: BitTable, ids_B: Int64Array) -> npt.NDArray[np.bool_]:
    """The bits of B records; true where the table has no bitmap.

    Raises:
        StoreError: a file is gone, or no longer what was indexed.
    """
    extents = table.lookup(ids_B)
    byte_B = np.full(len(ids_B), 0xFF, dtype=np.uint8)
    present_B = extents.length_B > 0
    if present_B.any():
        bit_B = table.bit(ids_B)
        try:
            with files.borrow(np.unique(extents.file_B[present_B]).tolist()) as opened:
                for number, file in opened.items():
                    picked = np.flatnonzero(present_B & (extents.file_B == number))
                    byte_B[picked] = file.view()[extents.offset_B[picked]] >> bit_B[picked]
        except BadFileError as bad:
            record = ids_B[(present_B & (extents.file_B == bad.number)).argmax()]
            raise StoreError(f"record {record}: {bad}", kind=bad.kind) from bad
    return (byte_B & 1).astype(np.bool_)


def _source(column: Column | DecodedColumn, files: FileSet, choice: StrategyChoice) -> FieldSource:
    if isinstance(column, DecodedColumn):
        return FieldSource(field=column.field, strategy="decoded", take=column.take)
    if isinstance(column.table, BitTable):
        take = partial(_take_booleans, files, column.table, column.validity)
        return FieldSource(field=column.field, strategy="mapped", take=take)
    return FieldSource(field=column.field, strategy=choice.strategy, table=column.table, validity=column.validity)


def _take_booleans(files: FileSet, table: BitTable, validity: tuple[BitTable, ...], ids_B: Int64Array) -> FieldArrays:
    values_B = read_bits(files, table, ids_B)
    mask_B = None
    for bits in validity:
        present_B = read_bits(files, bits, ids_B)
        mask_B = present_B if mask_B is None else mask_B & present_B
    return FieldArrays(values_B if mask_B is None else values_B & mask_B, None, mask_B)


def _payload_bytes(column: Column | DecodedColumn) -> int:
    return column.payload_bytes if isinstance(column, DecodedColumn) else column.table.payload_bytes
