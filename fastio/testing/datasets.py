"""Datasets made rather than found: real files with real bytes, described in memory, and the slow way to read them.

:func:`write_dataset` writes columns to plain files and describes them with the same tables that formats publish, so
that a reader can be run over every kind of column without a format in between. :meth:`SyntheticColumn.expected` says
what must come out, from the arrays that went in.

Files hold bytes of no record between the records, and garbage where a value is null: what is read from a wrong place
or delivered instead of a null shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastio.dataset import Dataset
from fastio.extents import BitTable, ExtentTable, FixedExtents, IndexedExtents, Int64Array
from fastio.formats.base import Column, DecodedColumn, FileRef, TakenValues
from fastio.formats.concatenate import concatenate
from fastio.layout import FieldArrays
from fastio.spec import FieldSpec

__all__ = ["Storage", "SyntheticColumn", "SyntheticShard", "write_dataset"]

Storage = Literal["fixed", "ragged", "bits", "decoded"]

_GAP = b"\xee" * 37
_GARBAGE = 0xBA


@dataclass(frozen=True, eq=False, kw_only=True)
class SyntheticColumn:
    """What one field of N records holds, and how it is stored.

    Attributes:
        storage: ``"fixed"`` (rows with a gap after each), ``"ragged"`` (one after another, gaps between), ``"bits"``
            (booleans, packed) or ``"decoded"`` (not in a file at all).
        values: an array (N, ...) of fixed-width values, or N one-dimensional arrays of one type.
        mask_N: False where a value is null; None for a field that is not nullable.
        dtype: of the elements of a ragged field, which may have no record to tell it.
    """

    storage: Storage
    values: npt.NDArray[Any] | Sequence[npt.NDArray[Any]]
    mask_N: npt.NDArray[np.bool_] | None = None
    dtype: str = "|u1"

    @property
    def ragged(self) -> bool:
        return not isinstance(self.values, np.ndarray)

    def spec(self, name: str) -> FieldSpec:
        """The field as it is delivered."""
        nullable = self.mask_N is not None
        if isinstance(self.values, np.ndarray):
            dtype, shape = self.values.dtype.str, self.values.shape[1:]
            return FieldSpec(name=name, kind="fixed", dtype=dtype, shape=shape, nullable=nullable)
        return FieldSpec(name=name, kind="ragged", dtype=self.dtype, nullable=nullable)

    def expected(self, ids_B: Int64Array) -> FieldArrays:
        """What a batch of these records holds: one record after another, in plain Python."""
        mask_B = None if self.mask_N is None else np.array([self.mask_N[i] for i in ids_B], dtype=np.bool_)
        present = [self.mask_N is None or bool(self.mask_N[i]) for i in ids_B]
        if isinstance(self.values, np.ndarray):
            values = np.zeros((len(ids_B), *self.values.shape[1:]), dtype=self.values.dtype)
            for row, (record, there) in enumerate(zip(ids_B, present, strict=True)):
                if there:
                    values[row] = self.values[record]
            return FieldArrays(values, None, mask_B)
        nothing = np.zeros(0, dtype=self.dtype)
        pieces = [self.values[i] if there else nothing for i, there in zip(ids_B, present, strict=True)]
        offsets = [0]
        for piece in pieces:
            offsets.append(offsets[-1] + len(piece))
        return FieldArrays(np.concatenate([nothing, *pieces]), np.array(offsets, dtype=np.int64), mask_B)

    def part(self, start: int, stop: int) -> SyntheticColumn:
        """The records [start, stop)."""
        mask = None if self.mask_N is None else self.mask_N[start:stop]
        return SyntheticColumn(storage=self.storage, values=self.values[start:stop], mask_N=mask, dtype=self.dtype)


@dataclass(frozen=True, eq=False, kw_only=True)
class SyntheticShard:
    """One file and the columns in it, as a format would publish them."""

    path: Path
    records: int
    files: tuple[FileRef, ...]
    columns: Mapping[str, Column | DecodedColumn]
    layout: str = "synthetic"
    arrow_schema: bytes = b""
    index_state: str = "none"
    closed: list[bool] = field(default_factory=list)

    def close(self) -> None:
        self.closed.append(True)


def write_dataset(
    folder: Path, columns: Mapping[str, SyntheticColumn], shard_records: Sequence[int], *, may_grow: bool = False
) -> Dataset:
    """Writes the columns into one file per shard, in ``folder``, and opens them as a dataset.

    Args:
        folder: where the files go; made if it is not there.
        columns: all with the same number of records.
        shard_records: how many of them each file holds, in order.
        may_grow: what the files' :class:`~fastio.formats.base.FileRef` say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start_S1 = np.concatenate([[0], np.cumsum(shard_records)]).astype(np.int64)
    shards = []
    for number, records in enumerate(shard_records):
        start = int(start_S1[number])
        parts = {name: column.part(start, start + records) for name, column in columns.items()}
        shards.append(_write_shard(folder / f"shard-{number:05}.bin", parts, records, may_grow=may_grow))
    concatenated = concatenate(shards, start_S1)
    return Dataset(
        path=folder,
        format="synthetic",
        layout="made for a test",
        records=int(start_S1[-1]),
        fields=tuple(column.field for column in concatenated.values()),
        columns=concatenated,
        files=tuple(ref for shard in shards for ref in shard.files),
        shards=tuple(shards),
        shard_start_S1=start_S1,
        fingerprint="",
        arrow_schema=b"",
        index_state="none",
    )


def _write_shard(path: Path, columns: Mapping[str, SyntheticColumn], records: int, *, may_grow: bool) -> SyntheticShard:
    content = bytearray(_GAP)
    placed: dict[str, Column | DecodedColumn] = {}
    for name, column in columns.items():
        if column.storage == "decoded":
            placed[name] = _decoded(name, column)
            continue
        table = _TABLES[column.storage](content, column)
        validity = () if column.mask_N is None else (_put_bits(content, column.mask_N, first=5),)
        placed[name] = Column(field=column.spec(name), table=table, validity=validity)
    path.write_bytes(content)
    status = path.stat()
    ref = FileRef(path, status.st_size, status.st_mtime_ns, may_grow=may_grow, inode=status.st_ino)
    return SyntheticShard(path=path, records=records, files=(ref,), columns=placed)


def _decoded(name: str, column: SyntheticColumn) -> DecodedColumn:
    def take(ids_B: Int64Array) -> TakenValues:
        return column.expected(ids_B)

    size = sum(row.nbytes for row in column.values)
    return DecodedColumn(field=column.spec(name), reason="made for a test", take=take, payload_bytes=size)


def _stored(column: SyntheticColumn) -> list[bytes]:
    """The bytes of each record as they lie in the file: garbage where the value is null."""
    rows = [np.ascontiguousarray(row).tobytes() for row in column.values]
    if column.mask_N is None:
        return rows
    return [row if there else bytes([_GARBAGE]) * len(row) for row, there in zip(rows, column.mask_N, strict=True)]


def _put_fixed(content: bytearray, column: SyntheticColumn) -> ExtentTable:
    assert isinstance(column.values, np.ndarray)
    width = int(column.values.dtype.itemsize * np.prod(column.values.shape[1:], dtype=np.int64))
    base, gap = len(content), _GAP[:3]
    for row in _stored(column):
        content += row + gap
    return FixedExtents(*_run(len(column.values), base), width=width, stride=width + len(gap))


def _put_ragged(content: bytearray, column: SyntheticColumn) -> ExtentTable:
    offsets, lengths = [], []
    for row in _stored(column):
        offsets.append(len(content))
        lengths.append(len(row))
        content += row + _GAP[: len(row) % 5]
    return IndexedExtents(np.array(offsets, dtype=np.int64), np.array(lengths, dtype=np.uint32), sum(lengths))


def _put_bits(content: bytearray, bits_N: npt.NDArray[np.bool_], first: int) -> BitTable:
    base = len(content)
    content += np.packbits(np.concatenate([np.ones(first, dtype=np.bool_), bits_N]), bitorder="little").tobytes()
    return BitTable(*_run(len(bits_N), base), np.array([first], dtype=np.int64))


def _put_booleans(content: bytearray, column: SyntheticColumn) -> ExtentTable:
    assert isinstance(column.values, np.ndarray)
    values = column.values if column.mask_N is None else column.values | ~column.mask_N
    return _put_bits(content, values, first=3)


def _run(records: int, base: int) -> tuple[Int64Array, npt.NDArray[np.int32], Int64Array]:
    return np.array([0, records], dtype=np.int64), np.zeros(1, dtype=np.int32), np.array([base], dtype=np.int64)


_TABLES = {"fixed": _put_fixed, "ragged": _put_ragged, "bits": _put_booleans}
