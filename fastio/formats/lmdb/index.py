"""What is stored of an environment so that the next open need not parse it, and how it is read back.

    key_bytes             all keys of the records, one after another, in the order of the records; served from here, so
                          that reading keys never touches the data
    key_offset, _length   where each key lies; left out if all keys are equally long
    offset_K, length_K    where the values of field K lie in the data file

An environment of a single MiB or less is not worth a file: its index stays in memory, and keys are served from the
data itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastio.extents import ExtentTable, FixedExtents, IndexedExtents, Int64Array
from fastio.formats.base import FileRef
from fastio.formats.lmdb.arrange import Arrangement
from fastio.formats.lmdb.entries import Entries
from fastio.formats.lmdb.ragged import starts
from fastio.formats.sidecar import FIRST_SECTION_OFFSET, Sidecar, SidecarWriter, load_sidecar
from fastio.formats.spool import Spool

__all__ = ["Index", "index_in_memory", "read_index", "store_index"]

Append = Callable[[str, npt.NDArray[Any]], None]


@dataclass(frozen=True, slots=True)
class Index:
    """The index of one environment.

    Attributes:
        records: how many records it has.
        fields: the names of the value fields.
        with_key: whether the keys are a field too.
        sentence: what was recognised.
        prefixes: for each value field, what goes before a stored key to get the key in LMDB.
        keys: where the keys lie: in file 0, the data, or in file 1, the sidecar.
        values: where the values of each field lie, in file 0.
        sidecar: the file with the index, if there is one.
    """

    records: int
    fields: tuple[str, ...]
    with_key: bool
    sentence: str
    prefixes: tuple[bytes, ...]
    keys: ExtentTable
    values: tuple[ExtentTable, ...]
    sidecar: Sidecar | None

    @property
    def files(self) -> tuple[FileRef, ...]:
        """The files behind the data file that extents may lie in."""
        return () if self.sidecar is None else (self.sidecar.file_ref(),)

    def pin(self) -> bool:
        """Keeps the index within reach while others may replace it; False if that has happened."""
        return self.sidecar is None or self.sidecar.pin()

    def close(self) -> None:
        if self.sidecar is not None:
            self.sidecar.close()


def read_index(path: Path, identity: dict[str, Any]) -> Index | None:
    """The stored index, if there is one of this identity."""
    sidecar = load_sidecar(path, identity)
    return None if sidecar is None else _from(sidecar.meta, sidecar.array, sidecar)


def store_index(path: Path | None, identity: dict[str, Any], entries: Entries, arrangement: Arrangement) -> Index:
    """Stores the index at ``path``, or in a file in memory if that is None, and reads it back.

    Raises:
        StoreError: DISK_FULL, or IO if the place cannot be written.
    """
    with SidecarWriter(path, identity) as writer:
        writer.meta.update(_describe(arrangement), keys_in_data=False)
        writer.meta.update(_write_keys(entries, arrangement, writer.append))
        writer.meta.update(_write_values(entries, arrangement, writer.append))
    return _from(writer.sidecar.meta, writer.sidecar.array, writer.sidecar)


def index_in_memory(entries: Entries, arrangement: Arrangement) -> Index:
    """The index as arrays, without a file; keys are served from the data."""
    spools: dict[str, Spool] = {}

    def append(name: str, chunk: npt.NDArray[Any]) -> None:
        spools.setdefault(name, Spool(None)).append(chunk)

    meta = {**_describe(arrangement), "keys_in_data": True, "key_width": None}
    payload = 0
    append("key_offset", np.empty(0, dtype=np.int64))
    append("key_length", np.empty(0, dtype=np.uint16))
    for ids in _chunks(arrangement, 0):
        length_n = entries.key_length_N[ids] - np.uint16(arrangement.key_skip)
        append("key_offset", entries.key_offset_N[ids] + arrangement.key_skip)
        append("key_length", length_n)
        payload += int(length_n.sum())
    meta.update(key_payload=payload, **_write_values(entries, arrangement, append))
    return _from(meta, lambda name: spools[name].array(), None)


def _describe(arrangement: Arrangement) -> dict[str, Any]:
    return {
        "records": arrangement.records,
        "fields": [name for name, _ in arrangement.fields],
        "with_key": arrangement.with_key,
        "sentence": arrangement.sentence,
        "prefixes": [prefix.hex() for prefix in arrangement.prefixes],
    }


def _chunks(arrangement: Arrangement, field: int) -> Iterator[Int64Array]:
    return (ids for ids in arrangement.fields[field][1]() if len(ids))


def _write_keys(entries: Entries, arrangement: Arrangement, append: Append) -> dict[str, Any]:
    """Appends the keys, first of all arrays, so that the place of each in the file is known."""
    append("key_bytes", np.empty(0, dtype=np.uint8))
    width = _key_width(entries, arrangement)
    key_end = FIRST_SECTION_OFFSET
    for ids in _chunks(arrangement, 0):
        keys = entries.keys(ids, arrangement.key_skip)
        append("key_bytes", keys)
        if width is None:
            length_n = entries.key_length_N[ids] - np.uint16(arrangement.key_skip)
            append("key_offset", starts(length_n) + key_end)
            append("key_length", length_n)
        key_end += len(keys)
    return {"key_width": width, "key_payload": key_end - FIRST_SECTION_OFFSET}


def _key_width(entries: Entries, arrangement: Arrangement) -> int | None:
    """The length of the stored keys if all are equally long."""
    widths: set[int] = set()
    for ids in _chunks(arrangement, 0):
        length_n = entries.key_length_N[ids]
        widths |= {int(length_n.min()), int(length_n.max())}
        if len(widths) > 1:
            return None
    return widths.pop() - arrangement.key_skip if widths else 0


def _write_values(entries: Entries, arrangement: Arrangement, append: Append) -> dict[str, Any]:
    payload = [0] * len(arrangement.fields)
    for field in range(len(arrangement.fields)):
        append(f"offset_{field}", np.empty(0, dtype=np.int64))
        append(f"length_{field}", np.empty(0, dtype=np.uint32))
        for ids in _chunks(arrangement, field):
            length_n = entries.value_length_N[ids]
            append(f"offset_{field}", entries.value_offset_N[ids])
            append(f"length_{field}", length_n)
            payload[field] += int(length_n.sum(dtype=np.int64))
    return {"payload": payload}


def _from(meta: dict[str, Any], array: Callable[[str], npt.NDArray[Any]], sidecar: Sidecar | None) -> Index:
    values = tuple(
        IndexedExtents(array(f"offset_{field}"), array(f"length_{field}"), payload)
        for field, payload in enumerate(meta["payload"])
    )
    width, records = meta["key_width"], meta["records"]
    keys: ExtentTable
    if width is None:
        file = 0 if meta["keys_in_data"] else 1
        keys = IndexedExtents(array("key_offset"), array("key_length"), meta["key_payload"], file)
    else:
        start_R1 = np.array([0, records], dtype=np.int64)
        base_R = np.array([FIRST_SECTION_OFFSET], dtype=np.int64)
        keys = FixedExtents(start_R1, np.ones(1, dtype=np.int32), base_R, width, width)
    return Index(
        records=records,
        fields=tuple(meta["fields"]),
        with_key=meta["with_key"],
        sentence=meta["sentence"],
        prefixes=tuple(bytes.fromhex(prefix) for prefix in meta["prefixes"]),
        keys=keys,
        values=values,
        sidecar=sidecar,
    )
