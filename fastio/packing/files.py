"""A directory of files as records: one file, one record; one folder, one class.

Records come in the order of their paths, compared as bytes, whatever the file system lists first. Hidden files and
folders are left out. The names of the classes, in the order of their numbers, are in the schema's metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastio.errors import ErrorKind, RequestError, StoreError
from fastio.packing.base import BATCH_BYTES, Source

__all__ = ["CLASSES_KEY", "files_source"]

CLASSES_KEY = "classes"
# `binary` counts bytes in 31 bits.
_BINARY_LIMIT_BYTES = (1 << 31) - 1


def files_source(root: Path) -> Source:
    """The files below ``root`` as records of ``file`` (its path), ``data``, and ``label`` if there are folders.

    Raises:
        StoreError: there is no file, or one can't be read.
        RequestError: files lie beside folders, so that it is not clear what a class is.
    """
    import pyarrow as pa

    found = sorted(_walk(root), key=lambda item: os.fsencode(item[0]))
    if not found:
        raise StoreError(f"{root} holds no file; hidden ones are not counted", kind=ErrorKind.EMPTY)
    classes = _classes(root, [name for name, _ in found])
    large = max(size for _, size in found) > _BINARY_LIMIT_BYTES
    fields = [
        pa.field("file", pa.string(), nullable=False),
        pa.field("data", pa.large_binary() if large else pa.binary(), nullable=False),
    ]
    metadata = None
    if classes:
        fields.append(pa.field("label", pa.int64(), nullable=False))
        metadata = {CLASSES_KEY: json.dumps(classes)}
    schema = pa.schema(fields, metadata=metadata)
    what = f"{len(found):,} files" + (f" in {len(classes):,} classes" if classes else "")
    return Source(
        description=what,
        schema=schema,
        records=len(found),
        payload_bytes=sum(size for _, size in found),
        batches=lambda: _batches(root, found, classes, schema),
    )


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    """(path from ``root``, size) of every file that is not hidden."""
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix(), path.stat().st_size


def _refuse(error: OSError) -> None:
    raise StoreError(f"cannot list {error.filename}: {error.strerror}", kind=ErrorKind.UNREADABLE) from error


def _classes(root: Path, names: list[str]) -> list[str]:
    """The folders directly below ``root``, in order; none if all files lie in ``root`` itself."""
    beside = [name for name in names if "/" not in name]
    if beside and len(beside) < len(names):
        message = (
            f"{root} holds files beside folders ({beside[0]} is one of {len(beside)}): "
            "each folder is a class, so move or hide the files"
        )
        raise RequestError(message)
    return sorted({name.split("/")[0] for name in names} - set(beside), key=os.fsencode)


def _batches(root: Path, found: list[tuple[str, int]], classes: list[str], schema: Any) -> Iterator[Any]:
    import pyarrow as pa

    number = {name: label for label, name in enumerate(classes)}
    start = 0
    while start < len(found):
        names: list[str] = []
        data: list[bytes] = []
        size = 0
        while start < len(found) and (size < BATCH_BYTES or not names):
            name = found[start][0]
            names.append(_text(name))
            data.append(_read(root / name))
            size += len(data[-1])
            start += 1
        columns = [pa.array(names, pa.string()), pa.array(data, schema.field("data").type)]
        if classes:
            columns.append(pa.array([number[name.split("/")[0]] for name in names], pa.int64()))
        yield pa.record_batch(columns, schema=schema)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}", kind=ErrorKind.UNREADABLE) from error


def _text(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the file name {os.fsencode(name)!r} is not UTF-8; rename the file") from error
    return name
