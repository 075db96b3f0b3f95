"""The datasets of a daemon, opened, and what clients are told about them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fastio.dataset import Dataset, open_dataset
from fastio.errors import FastioError
from fastio.formats.base import Column, IndexOptions
from fastio.wire.messages import DatasetInfo

__all__ = ["Catalogue", "describe", "open_catalogue"]

# Index builds take minutes on large cold data: often enough to see that it lives, rare enough for a log.
_PROGRESS_EVERY_S = 2.0


@dataclass(frozen=True)
class Catalogue:
    """Open datasets by name. A context manager; bound to the process that opened it."""

    datasets: Mapping[str, Dataset]

    def infos(self) -> dict[str, DatasetInfo]:
        """What clients are told, by name."""
        return {name: describe(name, dataset) for name, dataset in self.datasets.items()}

    def close(self) -> None:
        """Closes every dataset; no stream may be open on them."""
        for dataset in self.datasets.values():
            dataset.close()

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_catalogue(
    data: Mapping[str, str], index_directory: str | None, report: Callable[[str, int, int], None] | None = None
) -> Catalogue:
    """Opens all datasets, or none.

    Args:
        data: name -> path.
        index_directory: where indexes are kept; None: the default places.
        report: called every few seconds with (name, bytes done, bytes in all) while an index is built.

    Raises:
        FastioError: a dataset can't be opened; the message begins with its name.
    """
    directory = None if index_directory is None else Path(index_directory)
    opened: dict[str, Dataset] = {}
    with ExitStack() as undo:
        for name, path in data.items():
            progress = None if report is None else _throttled(name, report)
            try:
                opened[name] = open_dataset(path, options=IndexOptions(directory=directory, progress=progress))
            except FastioError as error:
                raise type(error)(f"dataset {name!r}: {error}", kind=error.kind) from error
            undo.callback(opened[name].close)
        undo.pop_all()
    return Catalogue(opened)


def describe(name: str, dataset: Dataset) -> DatasetInfo:
    """What clients are told about ``dataset``."""
    columns = [dataset.columns[spec.name] for spec in dataset.fields]
    sizes = tuple(col.table.payload_bytes if isinstance(col, Column) else col.payload_bytes for col in columns)
    return DatasetInfo(
        dataset=name,
        records=dataset.records,
        fields=dataset.fields,
        payload_bytes_by_field=sizes,
        fingerprint=dataset.fingerprint,
        format=dataset.format,
        shards=len(dataset.shards),
        arrow_schema=dataset.arrow_schema,
    )


def _throttled(name: str, report: Callable[[str, int, int], None]) -> Callable[[int, int], None]:
    due_s = time.monotonic() + _PROGRESS_EVERY_S

    def progress(done_bytes: int, total_bytes: int) -> None:
        nonlocal due_s
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + _PROGRESS_EVERY_S
            report(name, done_bytes, total_bytes)

    return progress
