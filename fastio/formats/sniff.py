"""What a file is, judged by its first bytes, in words for a person; and the one place where files are opened."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from fastio.errors import ErrorKind, StoreError

__all__ = ["describe_head", "open_for_reading"]

_PACK = "; `fastio pack` turns it into Arrow"
_KNOWN = (
    (b"PAR1", "a Parquet file" + _PACK),
    (b"FEA1", "a Feather V1 file, which fastio does not read; write it again as Feather V2"),
    (b"ORC", "an ORC file, which fastio does not read"),
    (b"\x1f\x8b", "gzip-compressed; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; decompress it first"),
    (b"\x04\x22\x4d\x18", "lz4-compressed; decompress it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"SQLite format 3", "an SQLite database, which fastio does not read"),
    (b"\x89HDF", "an HDF5 file, which fastio does not read"),
    (b"\x93NUMPY", "a NumPy array, which fastio does not read"),
    (b"FASTIDX", "an index of fastio, not data"),
    (b"\xff\xd8\xff", "a JPEG image" + "; `fastio pack` packs folders of images"),
    (b"\x89PNG", "a PNG image" + "; `fastio pack` packs folders of images"),
    (b"ARROW1", "an Arrow IPC file"),
)


def describe_head(head: bytes) -> str:
    """What a file with these first bytes is.

    >>> describe_head(b"PAR1....")
    'a Parquet file; `fastio pack` turns it into Arrow'
    """
    if not head:
        return "empty"
    for magic, words in _KNOWN:
        if head.startswith(magic):
            return words
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    text = _text(head[:64])
    if text is not None:
        return f"text that begins {text[:24]!r}; `fastio pack` reads CSV and JSONL"
    return f"of an unknown kind (first bytes {head[:8].hex(' ')})"


def _text(head: bytes) -> str | None:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    return text if all(character.isprintable() or character in "\t\r\n\ufeff" for character in text) else None


def open_for_reading(path: Path) -> int:
    """A descriptor of the file.

    Raises:
        StoreError: MISSING or UNREADABLE.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist", kind=ErrorKind.MISSING) from None
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error.strerror}", kind=ErrorKind.UNREADABLE) from error
