"""Parquet, CSV and JSON lines as records, streamed; several files must have one schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fastio.errors import ErrorKind, StoreError
from fastio.packing.base import BATCH_BYTES, Source, bounded

__all__ = ["TableKind", "table_kind", "table_source"]

TableKind = Literal["Parquet", "CSV", "JSON lines"]

_KINDS: dict[str, TableKind] = {
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
}


def table_kind(path: Path) -> TableKind | None:
    """What the name of a file says it is."""
    return _KINDS.get(path.suffix.lower())


def table_source(paths: Sequence[Path], kind: TableKind) -> Source:
    """The rows of ``paths``, one file after another.

    Raises:
        StoreError: a file can't be read or is not of its kind, or its schema differs from the first one's.
    """
    first = _open(paths[0], kind)
    schema = first.schema.remove_metadata() if kind == "Parquet" else first.schema
    records = payload_bytes = None
    if kind == "Parquet":
        counts = [_parquet_counts(path) for path in paths]
        records, payload_bytes = sum(rows for rows, _ in counts), sum(size for _, size in counts)

    def batches() -> Iterator[Any]:
        for path in paths:
            with reading(path):
                table = _open(path, kind)
                _same_schema(paths[0], schema, path, table.schema)
                yield from bounded(table.batches())

    what = f"{len(paths):,} {kind} file{'s' * (len(paths) != 1)}"
    return Source(description=what, schema=schema, records=records, payload_bytes=payload_bytes, batches=batches)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what pyarrow says of a bad file into a StoreError that names it."""
    import pyarrow as pa

    try:
        yield
    except StoreError:
        raise
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"cannot read {path}: {reason}", kind=ErrorKind.CORRUPT) from error
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist", kind=ErrorKind.MISSING) from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}", kind=ErrorKind.UNREADABLE) from error


class _Table:
    """One file: its schema, and a way to begin reading it."""

    def __init__(self, schema: Any, batches: Callable[[], Iterator[Any]]) -> None:
        self.schema = schema
        self.batches = batches


def _open(path: Path, kind: TableKind) -> _Table:
    with reading(path):
        if kind == "Parquet":
            return _open_parquet(path)
        if kind == "CSV":
            from pyarrow import csv

            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            reader = csv.open_csv(path, parse_options=csv.ParseOptions(delimiter=delimiter))
        else:
            from pyarrow import json

            reader = json.open_json(path)
        return _Table(reader.schema, lambda: iter(reader))


def _open_parquet(path: Path) -> _Table:
    from pyarrow import parquet

    file = parquet.ParquetFile(path, memory_map=True)
    rows, size = _parquet_counts(path)
    most = max(1, min(1 << 16, BATCH_BYTES * rows // max(1, size)))
    return _Table(file.schema_arrow, lambda: file.iter_batches(batch_size=most))


def _parquet_counts(path: Path) -> tuple[int, int]:
    """(rows, bytes when decompressed)."""
    from pyarrow import parquet

    with reading(path):
        metadata = parquet.read_metadata(path)
    return metadata.num_rows, sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def _same_schema(first: Path, wanted: Any, path: Path, found: Any) -> None:
    if not found.equals(wanted, check_metadata=False):
        texts = [{f"{field.name}: {field.type}" for field in schema} for schema in (wanted, found)]
        differing = sorted(texts[0] ^ texts[1]) or ["the order of the fields"]
        message = f"{path} has other fields than {first}: {', '.join(differing[:4])}"
        raise StoreError(message, kind=ErrorKind.SCHEMA_MISMATCH)
