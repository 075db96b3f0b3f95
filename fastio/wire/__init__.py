"""The protocol, sans-I/O: frames, messages, and both ends of a connection. Nothing here owns a socket.

Join both ends in one process with :class:`fastio.testing.connection_pair.ConnectionPair`.
"""

from fastio.wire.client import BatchReceived, ClientEnd
from fastio.wire.ends import MAX_CREDITS, End, Event
from fastio.wire.frames import HEADER_BYTES, MAJOR, MINOR, FrameType, Header, decode_header, encode_header
from fastio.wire.server import ServerEnd
from fastio.wire.transitions import State

__all__ = [
    "HEADER_BYTES",
    "MAJOR",
    "MAX_CREDITS",
    "MINOR",
    "BatchReceived",
    "ClientEnd",
    "End",
    "Event",
    "FrameType",
    "Header",
    "ServerEnd",
    "State",
    "decode_header",
    "encode_header",
]
