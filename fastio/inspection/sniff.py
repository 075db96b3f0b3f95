"""What some bytes look like, from their beginning alone. Nothing is decoded, and a pickle is never loaded."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

__all__ = ["HEAD_BYTES", "sniff"]

# Enough for every header below, and for the frame header of most JPEGs.
HEAD_BYTES = 4096
_PREVIEW_CHARACTERS = 48


def sniff(head: bytes, size_bytes: int) -> str:
    """A few words about a value of ``size_bytes`` bytes that begins with ``head``.

    >>> sniff(b"GIF89a" + bytes([16, 0, 8, 0]), 5000)
    'GIF 16 x 8, 5,000 bytes'
    >>> sniff(b"plain words", 11)
    "text 'plain words'"
    """
    if size_bytes == 0:
        return "empty"
    for recognise in (_image, _sound, _numpy, _archive, _pickle):
        found = recognise(head)
        if found:
            return f"{found}, {size_bytes:,} bytes"
    return _text(head, size_bytes) or f"{_msgpack(head) or 'binary'}, {size_bytes:,} bytes"


def _image(head: bytes) -> str | None:
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG" + _jpeg_size(head)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG" + _size(">II", head, 16)
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF" + _size("<HH", head, 6)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    return "BMP" if head[:2] == b"BM" and head[6:10] == bytes(4) else None


def _jpeg_size(head: bytes) -> str:
    """Width and height from the frame header, if it is near enough: a walk over the segments before it."""
    place = 2
    while place + 9 <= len(head) and head[place] == 0xFF:
        marker, length = head[place + 1], int.from_bytes(head[place + 2 : place + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", head, place + 5)
            return f" {width} x {height}"
        place += 2 + length
    return ""


def _size(form: str, head: bytes, offset: int) -> str:
    if len(head) < offset + struct.calcsize(form):
        return ""
    width, height = struct.unpack_from(form, head, offset)
    return f" {width} x {height}"


def _sound(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        if len(head) < 28:
            return "WAV"
        channels, rate = struct.unpack_from("<HI", head, 22)
        return f"WAV {rate:,} Hz, {channels} channel{'s' * (channels != 1)}"
    return {b"fLaC": "FLAC", b"OggS": "Ogg"}.get(head[:4])


def _numpy(head: bytes) -> str | None:
    if not head.startswith(b"\x93NUMPY"):
        return None
    described = re.search(rb"'descr': '([^']+)'.*'shape': (\([^)]*\))", head, re.DOTALL)
    return f"NumPy {described[1].decode()} {described[2].decode()}" if described else "NumPy"


def _archive(head: bytes) -> str | None:
    starts = {
        b"PK\x03\x04": "zip or npz",
        b"\x1f\x8b": "gzip",
        b"\x28\xb5\x2f\xfd": "zstd",
        b"\x04\x22\x4d\x18": "lz4",
        b"BZh": "bzip2",
        b"%PDF": "PDF",
    }
    return next((name for start, name in starts.items() if head.startswith(start)), None)


def _pickle(head: bytes) -> str | None:
    """Protocols 2 to 5 begin with a PROTO opcode; what follows tells them from MessagePack's empty map."""
    if len(head) < 3 or head[0] != 0x80 or not 2 <= head[1] <= 5:
        return None
    follows: Callable[[int], bool] = (lambda code: code == 0x95) if head[1] >= 4 else (lambda code: code < 0x80)
    return f"pickle-looking (protocol {head[1]}; fastio never unpickles)" if follows(head[2]) else None


def _msgpack(head: bytes) -> str | None:
    """A map whose first key is a short text: what nearly every writer of MessagePack records makes."""
    first = head[0]
    skip = 1 if 0x81 <= first <= 0x8F else {0xDE: 3, 0xDF: 5}.get(first)
    if skip is None or len(head) <= skip:
        return None
    key = head[skip]
    length, start = (key & 0x1F, skip + 1) if 0xA0 <= key <= 0xBF else (head[skip + 1 : skip + 2] or b"\0", skip + 2)
    if isinstance(length, bytes):
        if key not in (0xC4, 0xD9):
            return None
        length = length[0]
    name = head[start : start + length]
    readable = name.isascii() and name.decode("ascii", "replace").isprintable()
    return f"msgpack-looking, first key {name.decode()!r}" if name and readable else None


def _text(head: bytes, size_bytes: int) -> str | None:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        # The head may end inside a character; anywhere else it is no text.
        if len(head) == size_bytes or error.start < len(head) - 3:
            return None
        text = head[: error.start].decode()
    if any(not character.isprintable() and character not in "\t\r\n" for character in text):
        return None
    shown = text[:_PREVIEW_CHARACTERS]
    kind = "JSON" if text[:1] in ("{", "[") else "text"
    cut = len(shown) < len(text) or len(head) < size_bytes
    return f"{kind} {shown!r}" + (f"..., {size_bytes:,} bytes" if cut else "")
