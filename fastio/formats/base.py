"""What every format hands to the rest of fastio: files, columns, shards.

A *shard* is one file or environment, opened; a *column* says where one field of its records lies (or, for what
extents can't reach, how to take it the slow way). Nothing here reads anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fastio.extents import BitTable, ExtentTable, Int64Array
from fastio.layout import FieldArrays
from fastio.spec import FieldSpec

__all__ = ["Column", "DecodedColumn", "FileRef", "IndexOptions", "Progress", "Shard", "TakenValues"]

# Values of B records that were taken rather than located: the arrays of one field of a batch.
TakenValues = FieldArrays

# Called while a shard is indexed, with (bytes done, bytes in all). May be called often; must be cheap.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file as it was when it was indexed. Who reads it later compares, and refuses a file that changed.

    ``may_grow`` is for a file whose indexed bytes stay valid while others append to it (an LMDB file, whose pages are
    held by a read transaction): then only truncation is a change, and being another file: ``inode`` says which it was.
    """

    path: Path
    size_bytes: int
    mtime_ns: int
    may_grow: bool = False
    inode: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A field served by extents.

    Attributes:
        field: how it is delivered.
        table: where the bytes of each record's value lie, in file numbers of the owner's ``files``. For a boolean
            field this is a :class:`~fastio.extents.BitTable`.
        validity: bit tables that must all be set for the value to be present (the field's own nulls and those of
            the structs around it); empty if the field is not nullable. Lengths of null records count as given by
            the table; the reader zeroes them.
    """

    field: FieldSpec
    table: ExtentTable
    validity: tuple[BitTable, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedColumn:
    """A field that extents can't reach (dictionaries, deep nesting): taken in Arrow, batch by batch. Slower.

    Attributes:
        field: how it is delivered.
        reason: why it is not served by extents, for ``fastio inspect``.
        take: ids (B,) int64 -> values. Safe from any thread; may read whole record batches.
        payload_bytes: an estimate of the bytes of the whole column.
    """

    field: FieldSpec
    reason: str
    take: Callable[[Int64Array], TakenValues]
    payload_bytes: int


class Shard(Protocol):
    """One opened file or environment.

    Attributes:
        path: what the user would call it.
        layout: what was recognised, and why, in a sentence for ``fastio inspect``.
        records: how many records it holds.
        files: the files that the columns' extents are in (the data, and index sidecars that hold small fields).
        columns: field name -> column, in the order of the shard's schema.
        arrow_schema: the serialised Arrow schema of the fields delivered (``pyarrow.Schema.serialize``).
        index_state: "fresh" (sidecar read), "built" (and stored), "rebuilt" (was stale), "memory" (could not be
            stored), or "none" (not needed).
    """

    @property
    def path(self) -> Path: ...
    @property
    def layout(self) -> str: ...
    @property
    def records(self) -> int: ...
    @property
    def files(self) -> tuple[FileRef, ...]: ...
    @property
    def columns(self) -> Mapping[str, Column | DecodedColumn]: ...
    @property
    def arrow_schema(self) -> bytes: ...
    @property
    def index_state(self) -> str: ...

    def close(self) -> None:
        """Lets go of maps, descriptors and read transactions. Extents must not be used afterwards."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """How shards are opened.

    Attributes:
        directory: where index sidecars go; None: beside the data if writable, else the user's cache directory.
        progress: called while an index is built.
        layout: "auto", or the name of an LMDB layout that overrides what would be recognised.
    """

    directory: Path | None = None
    progress: Progress | None = field(default=None, compare=False)
    layout: str = "auto"
