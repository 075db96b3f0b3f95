"""What one IPC message says: its kind, the size of its body, and where in the body each buffer lies.

Decodes metadata only. Bodies are never touched here, and schemas are left to pyarrow.

Source: Arrow's columnar format, "Serialization and Interprocess Communication", and its Message.fbs and File.fbs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from fastio.errors import ErrorKind, StoreError
from fastio.extents import Int64Array
from fastio.formats.arrow.flatbuffer import Malformed, Table, root_table

__all__ = [
    "CONTINUATION",
    "BatchMeta",
    "FooterMeta",
    "Message",
    "MessageKind",
    "parse_footer",
    "parse_message",
    "parse_prefix",
]

CONTINUATION = b"\xff\xff\xff\xff"

_U8 = struct.Struct("<B")
_I16 = struct.Struct("<h")
_I64 = struct.Struct("<q")
_PAIR = np.dtype((np.int64, (2,)))
_BLOCK = np.dtype([("offset", "<i8"), ("metadata_bytes", "<i4"), ("padding", "<i4"), ("body_bytes", "<i8")])
_MAX_VERSION = 4  # V5, the newest there is
_MIN_VERSION = 3  # V4, of Arrow 0.8 (2017); older metadata has other layouts


class MessageKind(IntEnum):
    """The union tags of a message header."""

    SCHEMA = 1
    DICTIONARY = 2
    BATCH = 3
    TENSOR = 4
    SPARSE_TENSOR = 5


@dataclass(frozen=True, slots=True)
class Message:
    """One message's metadata. ``big_endian`` is meaningful for schemas only."""

    kind: MessageKind
    version: int
    body_bytes: int
    header: Table

    @property
    def big_endian(self) -> bool:
        return self.kind is MessageKind.SCHEMA and self.header.number(0, _I16) != 0

    def batch(self) -> BatchMeta:
        """What a record batch or dictionary message says about its body."""
        table = self.header
        if self.kind is MessageKind.DICTIONARY:
            data = table.table(1)
            if data is None:
                raise Malformed("a dictionary message holds no values")
            table = data
        return BatchMeta(
            rows=table.number(0, _I64),
            nodes=_as_int64(table.vector(1, _PAIR)),
            buffers=_as_int64(table.vector(2, _PAIR)),
            variadic=_as_int64(table.vector(4, np.int64)),
            compressed=table.table(3) is not None,
        )

    def dictionary_ids(self) -> dict[int, int]:
        """Of a schema: node number -> id of the dictionary that the node's values are in."""
        ids: dict[int, int] = {}
        nodes = 0
        waiting = self.header.tables(1)[::-1]
        while waiting:
            field = waiting.pop()
            encoding = field.table(4)
            if encoding is None:
                waiting.extend(field.tables(5)[::-1])
            else:
                ids[nodes] = encoding.number(0, _I64)
            nodes += 1
        return ids

    def dictionary(self) -> tuple[int, bool]:
        """The id of a dictionary message, and whether it adds to the one before it."""
        return self.header.number(0, _I64), bool(self.header.number(2, _U8))


@dataclass(frozen=True, slots=True)
class BatchMeta:
    """A record batch: K nodes of (length, null count) and b buffers of (offset in the body, length)."""

    rows: int
    nodes: Int64Array
    buffers: Int64Array
    variadic: Int64Array
    compressed: bool


@dataclass(frozen=True, slots=True)
class FooterMeta:
    """The blocks of an IPC file: per message its offset, its metadata's size (prefix included) and its body's."""

    version: int
    dictionaries: npt.NDArray[Any]
    batches: npt.NDArray[Any]


def parse_prefix(data: bytes) -> tuple[int, int] | None:
    """The (prefix bytes, metadata bytes) at the head of a message; None if ``data`` is too short to say.

    Since Arrow 0.15 a message begins with a continuation marker and its metadata's size; before, with the size alone.
    Zero metadata bytes mark the end of a stream.
    """
    if len(data) < 4:
        return None
    if data[:4] != CONTINUATION:
        return 4, int.from_bytes(data[:4], "little", signed=True)
    return (8, int.from_bytes(data[4:8], "little", signed=True)) if len(data) >= 8 else None


def parse_message(metadata: bytes) -> Message:
    """Decodes the metadata of one message.

    Raises:
        Malformed: this is no Arrow message.
    """
    table = root_table(metadata)
    kind, header = table.number(1, _U8), table.table(2)
    version, body_bytes = table.number(0, _I16), table.number(3, _I64)
    if header is None or not 1 <= kind <= 5 or not 0 <= version <= _MAX_VERSION or body_bytes < 0:
        raise Malformed(f"message kind {kind}, metadata version {version}, body of {body_bytes} bytes")
    if version < _MIN_VERSION:
        raise StoreError(
            f"Arrow metadata version V{version + 1} is older than V4 (Arrow 0.8); rewrite the file with a newer Arrow",
            kind=ErrorKind.UNSUPPORTED_LAYOUT,
        )
    return Message(MessageKind(kind), version, body_bytes, header)


def parse_footer(footer: bytes) -> FooterMeta:
    """Decodes the footer of an IPC file.

    Raises:
        Malformed: this is no Arrow footer.
    """
    table = root_table(footer)
    return FooterMeta(table.number(0, _I16), table.vector(2, _BLOCK), table.vector(3, _BLOCK))


def _as_int64(vector: npt.NDArray[Any]) -> Int64Array:
    return np.asarray(vector, dtype=np.int64)
