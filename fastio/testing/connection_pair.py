"""Both ends of the protocol joined by a fake wire: two byte queues, delivered in pieces of any size, in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastio.wire import ClientEnd, End, ServerEnd
from fastio.wire.messages import BatchDescriptor, Hello, OpenStream, Welcome

__all__ = ["ConnectionPair", "feed"]


def feed(end: End, data: bytes | bytearray | memoryview) -> list[Any]:
    """Fills what ``end`` wants with ``data``, piece by piece; the messages that became complete."""
    events: list[Any] = []
    view = memoryview(data)
    while len(view):
        room = end.want()
        count = min(len(room), len(view))
        room[:count] = view[:count]
        events += end.filled(count)
        view = view[count:]
    return events


class ConnectionPair:
    """A client end and a server end, and the bytes on their way between them.

    >>> from fastio.wire.messages import ListDatasets
    >>> pair = ConnectionPair.greeted()
    >>> pair.client_sends(ListDatasets())
    >>> pair.to_server()
    [ListDatasets()]
    >>> pair
    ConnectionPair(client=listing, server=listing, 0 bytes up, 0 bytes down)
    """

    def __init__(self, allocate: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size))) -> None:
        self.client = ClientEnd(allocate)
        self.server = ServerEnd()
        self.up = bytearray()
        self.down = bytearray()

    @classmethod
    def greeted(cls) -> ConnectionPair:
        """A pair after HELLO and WELCOME."""
        pair = cls()
        pair.client_sends(Hello("client"))
        pair.to_server()
        pair.server_sends(Welcome("server", 10.0, 1 << 30))
        pair.to_client()
        return pair

    @classmethod
    def asked(cls, request: OpenStream) -> ConnectionPair:
        """A pair after the server has received ``request``."""
        pair = cls.greeted()
        pair.client_sends(request)
        pair.to_server()
        return pair

    def client_sends(self, message: Any) -> None:
        """Puts a client's message on the wire."""
        self.up += self.client.send(message)

    def server_sends(self, message: Any) -> None:
        """Puts a server's message on the wire."""
        self.down += self.server.send(message)

    def server_sends_batch(self, descriptor: BatchDescriptor, payload: bytes) -> None:
        """Puts a batch on the wire."""
        self.down += self.server.send_batch(descriptor, len(payload)) + payload

    def to_server(self, limit_bytes: int | None = None) -> list[Any]:
        """Delivers up to ``limit_bytes`` bytes (None: all) to the server; what it made of them."""
        return self._deliver(self.server, self.up, limit_bytes)

    def to_client(self, limit_bytes: int | None = None) -> list[Any]:
        """Delivers up to ``limit_bytes`` bytes (None: all) to the client; what it made of them."""
        return self._deliver(self.client, self.down, limit_bytes)

    def __repr__(self) -> str:
        return (
            f"ConnectionPair(client={self.client.state}, server={self.server.state}, "
            f"{len(self.up)} bytes up, {len(self.down)} bytes down)"
        )

    @staticmethod
    def _deliver(end: End, wire: bytearray, limit_bytes: int | None) -> list[Any]:
        piece = bytes(wire[:limit_bytes])
        del wire[: len(piece)]
        return feed(end, piece)
