"""How many batches may still come? Credits, counted between the receiving thread and the consumer.

At any time: credits at the server + batches on the way or in the queue + credits that wait to be sent = ``depth``. So
the receiving thread never waits for the consumer, always hears the server, and answers its keep-alives however long a
training step takes.
"""

from __future__ import annotations

import threading

from fastio.wire import FrameType
from fastio.wire.messages import Credit, OpenStream
from fastio_client.connection import Connection

__all__ = ["Flow"]


class Flow:
    """The account of one stream, over all its connections.

    Args:
        depth: batches that may be on the way or in the queue together.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._lock = threading.Lock()
        self._queued = 0
        self._unsent = 0
        self._connection: Connection | None = None
        # A quarter of the depth at a time: one small packet for several batches, and never a stall.
        self._at_once = max(1, depth // 4)

    @property
    def queued(self) -> int:
        """Batches received and not yet taken."""
        return self._queued

    def open(self, connection: Connection, request: OpenStream) -> None:
        """Opens a stream with room for all that is not queued; later credits go to this connection.

        Raises:
            UnavailableError: the connection broke.
        """
        with self._lock:
            room = self.depth - self._queued
            connection.send(request, *([Credit(room)] if room else []))
            self._connection, self._unsent = connection, 0

    def detach(self) -> None:
        """The connection is gone; credits wait for the next."""
        with self._lock:
            self._connection = None

    def arrived(self) -> None:
        """A batch goes into the queue."""
        with self._lock:
            self._queued += 1

    def taken(self) -> None:
        """The consumer took a batch: there is room for another."""
        with self._lock:
            self._queued -= 1
            self._unsent += 1
            if self._connection is not None and self._unsent >= self._at_once:
                self._connection.send_if_allowed(FrameType.CREDIT, Credit(self._unsent))
                self._unsent = 0

    def __repr__(self) -> str:
        return f"{self._queued} of {self.depth} batches queued, {self._connection}"
