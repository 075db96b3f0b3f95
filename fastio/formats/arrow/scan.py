"""How a file's record batches are found: by its footer, or by walking a stream from header to header.

Reads message metadata only, with ``pread``; bodies are stepped over. Of a stream with 500 rows of 100 KB per batch that
is one page in twelve thousand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from fastio.errors import ErrorKind, StoreError
from fastio.extents import Int64Array
from fastio.formats.arrow.flatbuffer import Malformed
from fastio.formats.arrow.index import ArrowIndex
from fastio.formats.arrow.messages import (
    CONTINUATION,
    BatchMeta,
    Message,
    MessageKind,
    parse_footer,
    parse_message,
    parse_prefix,
)
from fastio.formats.base import Progress

__all__ = ["FILE_MAGIC", "looks_like_stream", "scan"]

FILE_MAGIC = b"ARROW1"
_SCHEMA_AT = 8
_TAIL_BYTES = 4 + len(FILE_MAGIC)
# Metadata beyond this is taken for garbage, not for a length: a schema of 100,000 fields has about 10 MB.
_MAX_METADATA_BYTES = 256 << 20
_FIRST_GUESS_BYTES = 4096
_PROGRESS_EVERY = 256

_COMPRESSED = "its record batches are compressed, so single records can't be read; rewrite it with `fastio pack`"


@dataclass(frozen=True, slots=True)
class _Placed:
    """A message and where it lies: its first byte, its prefix, its metadata with the prefix, and its body's first."""

    message: Message
    at: int
    prefix_bytes: int
    head_bytes: int

    @property
    def body_at(self) -> int:
        return self.at + self.head_bytes

    @property
    def end(self) -> int:
        return self.body_at + self.message.body_bytes


def looks_like_stream(head: bytes) -> bool:
    """Whether these first bytes of a file begin an IPC stream: a schema message, complete or cut off by the read."""
    prefix = parse_prefix(head)
    if prefix is None or not 0 < prefix[1] <= _MAX_METADATA_BYTES:
        return False
    try:
        return parse_message(head[prefix[0] :]).kind is MessageKind.SCHEMA
    except Malformed:
        return False
    except StoreError:
        return True


def scan(fd: int, path: Path, size_bytes: int, progress: Progress | None) -> ArrowIndex:
    """Finds every record batch of an Arrow file.

    Raises:
        StoreError: the file is truncated, corrupt, compressed, big-endian or no Arrow at all.
    """
    reader = _Reader(fd, path, size_bytes)
    try:
        if reader.bytes_at(0, len(FILE_MAGIC)) == FILE_MAGIC:
            return _scan_file(reader, progress)
        return _scan_stream(reader, progress)
    except Malformed as error:
        raise StoreError(f"{path}: Arrow metadata is corrupt ({error})", kind=ErrorKind.CORRUPT) from error


class _Reader:
    """Reads messages of one file at given offsets, and refuses what reaches beyond its end."""

    def __init__(self, fd: int, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._fd = fd
        self._guess_bytes = _FIRST_GUESS_BYTES

    def bytes_at(self, at: int, count: int) -> bytes:
        try:
            return os.pread(self._fd, max(0, min(count, self.size_bytes - at)), at)
        except OSError as error:
            raise StoreError(f"{self.path}: reading at byte {at} failed: {error.strerror}") from error

    def message_at(self, at: int) -> _Placed | None:
        """The message at ``at``; None at the end-of-stream marker or the end of the file."""
        data = self.bytes_at(at, self._guess_bytes)
        if not data:
            return None
        prefix = parse_prefix(data)
        if prefix is None:
            raise self.truncated(f"{len(data)} bytes of a message's head")
        prefix_bytes, metadata_bytes = prefix
        if metadata_bytes == 0:
            return None
        if not 0 < metadata_bytes <= _MAX_METADATA_BYTES:
            raise Malformed(f"a message of {metadata_bytes} bytes of metadata at byte {at}")
        head_bytes = prefix_bytes + metadata_bytes
        if at + head_bytes > self.size_bytes:
            raise self.truncated(f"a message's metadata ends at byte {at + head_bytes}")
        # Heads of one file are alike: the next one is most likely read whole by the first call.
        self._guess_bytes = max(_FIRST_GUESS_BYTES // 4, head_bytes)
        if len(data) < head_bytes:
            data = self.bytes_at(at, head_bytes)
        placed = _Placed(parse_message(data[prefix_bytes:head_bytes]), at, prefix_bytes, head_bytes)
        if placed.end > self.size_bytes:
            raise self.truncated(f"a message's body ends at byte {placed.end}")
        return placed

    def truncated(self, wanted: str) -> StoreError:
        found = f"the file has {self.size_bytes} bytes"
        return StoreError(f"{self.path} is truncated: {wanted}, {found}; write it again", kind=ErrorKind.TRUNCATED)

    def schema_at(self, at: int) -> tuple[_Placed, bytes]:
        placed = self.message_at(at)
        if placed is None or placed.message.kind is not MessageKind.SCHEMA:
            raise Malformed("it does not begin with a schema")
        if placed.message.big_endian:
            raise StoreError(
                f"{self.path} is big-endian, which fastio does not read; rewrite it on a little-endian machine",
                kind=ErrorKind.UNSUPPORTED_LAYOUT,
            )
        return placed, self.bytes_at(at, placed.head_bytes)


def _scan_file(reader: _Reader, progress: Progress | None) -> ArrowIndex:
    size_bytes = reader.size_bytes
    tail = reader.bytes_at(size_bytes - _TAIL_BYTES, _TAIL_BYTES) if size_bytes >= _TAIL_BYTES + _SCHEMA_AT else b""
    if tail[4:] != FILE_MAGIC:
        raise reader.truncated("an Arrow IPC file ends with its footer, and this one does not")
    footer_bytes = int.from_bytes(tail[:4], "little", signed=True)
    footer_at = size_bytes - _TAIL_BYTES - footer_bytes
    if footer_bytes <= 0 or footer_at < _SCHEMA_AT:
        raise Malformed(f"a footer of {footer_bytes} bytes in a file of {size_bytes}")
    footer = parse_footer(reader.bytes_at(footer_at, footer_bytes))
    schema, schema_bytes = reader.schema_at(_SCHEMA_AT)
    builder = _Builder(reader.path, "file", schema.message.version, schema_bytes)
    for placed in _blocks(reader, footer.dictionaries):
        builder.add(placed, MessageKind.DICTIONARY)
    for number, placed in enumerate(_blocks(reader, footer.batches)):
        builder.add(placed, MessageKind.BATCH)
        if progress is not None and number % _PROGRESS_EVERY == 0:
            progress(placed.end, size_bytes)
    return builder.index()


def _blocks(reader: _Reader, blocks: npt.NDArray[np.void]) -> Iterator[_Placed]:
    for at, head_bytes, _, body_bytes in blocks.tolist():
        if at < _SCHEMA_AT or at + head_bytes + body_bytes > reader.size_bytes:
            raise reader.truncated(f"the footer names a block at byte {at} that ends at {at + head_bytes + body_bytes}")
        placed = reader.message_at(at)
        if placed is None:
            raise Malformed(f"no message at byte {at}, where the footer names one")
        # The body begins where the footer says: writers may pad the metadata beyond what its prefix counts.
        yield _Placed(placed.message, at, placed.prefix_bytes, head_bytes)


def _scan_stream(reader: _Reader, progress: Progress | None) -> ArrowIndex:
    schema, schema_bytes = reader.schema_at(0)
    builder = _Builder(reader.path, "stream", schema.message.version, schema_bytes)
    at, number = schema.end, 0
    while (placed := reader.message_at(at)) is not None:
        builder.add(placed, placed.message.kind)
        at, number = placed.end, number + 1
        if progress is not None and number % _PROGRESS_EVERY == 0:
            progress(at, reader.size_bytes)
    after = at + (8 if reader.bytes_at(at, 4) == CONTINUATION else 4)
    if looks_like_stream(reader.bytes_at(after, _FIRST_GUESS_BYTES)):
        raise StoreError(
            f"{reader.path} holds more than one Arrow stream: another begins at byte {after}; write one per file",
            kind=ErrorKind.UNSUPPORTED_LAYOUT,
        )
    return builder.index()


class _Builder:
    """Gathers what the messages say into the arrays of an index."""

    def __init__(self, path: Path, form: Literal["file", "stream"], version: int, schema: bytes) -> None:
        self._path, self._form, self._version, self._schema = path, form, version, schema
        self._batches: list[BatchMeta] = []
        self._bodies: list[tuple[int, int]] = []
        self._dictionaries: list[tuple[int, int, int, int]] = []

    def add(self, placed: _Placed, expected: MessageKind) -> None:
        message = placed.message
        if message.kind is not expected or message.kind not in (MessageKind.DICTIONARY, MessageKind.BATCH):
            raise Malformed(f"a {message.kind.name.lower()} message at byte {placed.at}")
        batch = message.batch()
        if batch.compressed:
            raise StoreError(f"{self._path}: {_COMPRESSED}", kind=ErrorKind.COMPRESSED)
        number = len(self._batches)
        _check_buffers(batch, number, message.body_bytes)
        if message.kind is MessageKind.DICTIONARY:
            self._dictionaries.append((placed.at, placed.head_bytes, placed.prefix_bytes, number))
            return
        first = self._batches[0] if number else batch
        if batch.nodes.shape != first.nodes.shape or batch.variadic.shape != first.variadic.shape:
            raise Malformed(f"record batch {number} has {len(batch.nodes)} nodes, the first one {len(first.nodes)}")
        self._batches.append(batch)
        self._bodies.append((placed.body_at, message.body_bytes))

    def index(self) -> ArrowIndex:
        batches = self._batches
        body_R2 = np.array(self._bodies, dtype=np.int64).reshape(-1, 2)
        counts_R = np.array([len(batch.buffers) for batch in batches], dtype=np.int64)
        buffers_b2 = np.concatenate([np.empty((0, 2), np.int64), *[batch.buffers for batch in batches]])
        buffers_b2[:, 0] += np.repeat(body_R2[:, 0], counts_R)
        nodes = [batch.nodes for batch in batches]
        return ArrowIndex(
            form=self._form,
            version=self._version,
            schema=self._schema,
            rows_R=np.array([batch.rows for batch in batches], dtype=np.int64),
            body_R2=body_R2,
            nodes_RK2=np.stack(nodes) if nodes else np.empty((0, 0, 2), np.int64),
            buffer_start_R1=np.concatenate([[0], np.cumsum(counts_R)]).astype(np.int64),
            buffers_b2=buffers_b2,
            variadic_RV=_stack([batch.variadic for batch in batches]),
            dictionaries_D4=np.array(self._dictionaries, dtype=np.int64).reshape(-1, 4),
        )


def _check_buffers(batch: BatchMeta, number: int, body_bytes: int) -> None:
    if batch.rows < 0 or (batch.nodes < 0).any() or (batch.variadic < 0).any():
        raise Malformed(f"record batch {number} has a negative count")
    offsets, sizes = batch.buffers[:, 0], batch.buffers[:, 1]
    # Compared without adding, so that no sum can overflow.
    if (offsets < 0).any() or (sizes < 0).any() or ((sizes > 0) & (offsets > body_bytes - sizes)).any():
        raise Malformed(f"a buffer of record batch {number} lies outside its body of {body_bytes} bytes")


def _stack(rows: list[Int64Array]) -> Int64Array:
    return np.stack(rows) if rows else np.empty((0, 0), np.int64)
