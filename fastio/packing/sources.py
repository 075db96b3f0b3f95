"""What a path is, for packing: a table, a dataset, or a directory of files, tried in this order."""

from __future__ import annotations

from pathlib import Path

from fastio.errors import ErrorKind, StoreError
from fastio.formats import natural_key
from fastio.packing.base import Source
from fastio.packing.files import files_source
from fastio.packing.tables import table_kind, table_source

__all__ = ["open_source"]


def open_source(path: Path) -> Source:
    """Recognises ``path``.

    Raises:
        StoreError: nothing is there, it can't be read, or it is damaged.
        RequestError: it is a directory of files whose classes are not clear.
    """
    from fastio.packing.datasets import dataset_source

    if not path.exists():
        raise StoreError(f"{path} does not exist", kind=ErrorKind.MISSING)
    if path.is_file():
        kind = table_kind(path)
        return table_source([path], kind) if kind else dataset_source(path)
    tables = _tables_in(path)
    if tables is not None:
        return tables
    try:
        return dataset_source(path)
    except StoreError as error:
        # Only "this is no dataset" makes it a directory of files: a damaged one must not be packed as its pieces.
        if error.kind not in (ErrorKind.NOT_A_DATASET, ErrorKind.EMPTY):
            raise
    return files_source(path)


def _tables_in(directory: Path) -> Source | None:
    """The tables in a directory that holds nothing else, in the order of their names, numbers as numbers."""
    visible = sorted(directory.iterdir(), key=lambda path: natural_key(path.name))
    found = [path for path in visible if not path.name.startswith(".")]
    kinds = {table_kind(path) if path.is_file() else None for path in found}
    if len(kinds) != 1:
        return None
    kind = kinds.pop()
    return table_source(found, kind) if kind else None
