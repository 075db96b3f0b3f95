"""How a frame begins: the 32 bytes before every message, and how long each kind of frame may be.

    offset  bytes  field
    0       4      magic, b"FSTI"
    4       1      major version: peers of different majors do not talk
    5       1      minor version: peers of different minors do
    6       1      frame type
    7       1      flags: bit 0, the receiver may skip this frame if it does not know its type; others are ignored
    8       4      descriptor length in bytes; 0 except for BATCH
    12      4      reserved: 0 when sent, ignored when received
    16      8      sequence: counts the frames of this direction of this connection, from 0
    24      8      payload length in bytes

Everything is little-endian. A control frame is a header and a msgpack payload; a BATCH is a header, a msgpack
descriptor and the payload that :mod:`fastio.layout` describes. Lengths are checked against :data:`MAX_PAYLOAD_BYTES`
before any memory is taken for them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from fastio.errors import ErrorKind, RemoteProtocolError

__all__ = [
    "HEADER_BYTES",
    "MAGIC",
    "MAJOR",
    "MAX_DESCRIPTOR_BYTES",
    "MAX_PAYLOAD_BYTES",
    "MINOR",
    "SKIPPABLE",
    "FrameType",
    "Header",
    "decode_header",
    "encode_header",
]

MAGIC: Final = b"FSTI"
MAJOR: Final = 1
MINOR: Final = 0
# Flag bit 0. A newer minor version sets it on frame types that an older one may skip unread.
SKIPPABLE: Final = 1

_HEADER = struct.Struct("<4sBBBBIIQQ")
HEADER_BYTES: Final = _HEADER.size


class FrameType(IntEnum):
    """The kind of a frame. Append-only: the numbers are on the wire."""

    HELLO = 1
    WELCOME = 2
    LIST = 3
    DATASETS = 4
    DESCRIBE = 5
    DATASET_INFO = 6
    OPEN = 7
    OPENED = 8
    CREDIT = 9
    BATCH = 10
    END = 11
    CLOSE = 12
    STREAM_CLOSED = 13
    PING = 14
    PONG = 15
    GOODBYE = 16
    ERROR = 17
    FATAL = 18


_KIB = 1 << 10
_MIB = 1 << 20

# Nine bytes hold the length of one ragged field: room for a hundred thousand of them.
MAX_DESCRIPTOR_BYTES: Final = _MIB

# A peer that has not been let in can make the other end take 64 KiB, no more. Sixteen MiB describe a dataset of a
# hundred thousand fields, or a server of half a million datasets. The limit of BATCH is the window of its stream.
MAX_PAYLOAD_BYTES: Final[Mapping[FrameType, int]] = MappingProxyType(
    {
        FrameType.HELLO: 64 * _KIB,
        FrameType.WELCOME: 64 * _KIB,
        FrameType.LIST: _KIB,
        FrameType.DATASETS: 16 * _MIB,
        FrameType.DESCRIBE: 64 * _KIB,
        FrameType.DATASET_INFO: 16 * _MIB,
        FrameType.OPEN: 4 * _MIB,
        FrameType.OPENED: 16 * _MIB,
        FrameType.CREDIT: _KIB,
        FrameType.END: _KIB,
        FrameType.CLOSE: _KIB,
        FrameType.STREAM_CLOSED: _KIB,
        FrameType.PING: _KIB,
        FrameType.PONG: _KIB,
        FrameType.GOODBYE: 64 * _KIB,
        FrameType.ERROR: 64 * _KIB,
        FrameType.FATAL: 64 * _KIB,
    }
)
# The longest payload of a frame of unknown type that is skipped.
MAX_SKIPPED_BYTES: Final = 64 * _KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 32 bytes of a frame. ``type`` is a plain number: a newer peer may use one that is not known here."""

    type: int
    sequence: int
    payload_bytes: int
    descriptor_bytes: int = 0
    flags: int = 0
    major: int = MAJOR
    minor: int = MINOR

    @property
    def skippable(self) -> bool:
        """Whether a receiver that does not know ``type`` may go on without this frame."""
        return bool(self.flags & SKIPPABLE)


def encode_header(header: Header) -> bytes:
    """The 32 bytes of ``header``.

    >>> encode_header(Header(type=FrameType.PING, sequence=1, payload_bytes=2))[:8]
    b'FSTI\\x01\\x00\\x0e\\x00'
    """
    return _HEADER.pack(
        MAGIC,
        header.major,
        header.minor,
        header.type,
        header.flags,
        header.descriptor_bytes,
        0,
        header.sequence,
        header.payload_bytes,
    )


def decode_header(data: bytes | bytearray | memoryview) -> Header:
    """Reads a header; its lengths and type are for the caller to judge.

    Raises:
        RemoteProtocolError: this is not a frame of fastio, or one of another major version (the message names both).
    """
    magic, major, minor, kind, flags, descriptor_bytes, _, sequence, payload_bytes = _HEADER.unpack(data)
    if magic != MAGIC:
        raise RemoteProtocolError(f"the peer does not speak fastio: a frame begins with {MAGIC!r}, got {magic!r}")
    if major != MAJOR:
        raise RemoteProtocolError(
            f"the peer speaks version {major}.{minor} of the protocol, this side {MAJOR}.{MINOR}; "
            "install fastio of the same major version on both",
            kind=ErrorKind.VERSION_MISMATCH,
        )
    return Header(
        type=kind,
        sequence=sequence,
        payload_bytes=payload_bytes,
        descriptor_bytes=descriptor_bytes,
        flags=flags,
        major=major,
        minor=minor,
    )
