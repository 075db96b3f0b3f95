"""The daemon's end of a connection. See :mod:`fastio.wire.ends`."""

from __future__ import annotations

from typing import Any, NoReturn

from fastio.errors import ErrorKind, LocalProtocolError, RemoteProtocolError
from fastio.spec import StreamSpec
from fastio.wire.codec import encode_descriptor
from fastio.wire.ends import End
from fastio.wire.frames import FrameType, Header
from fastio.wire.messages import BatchDescriptor, Credit, OpenStream
from fastio.wire.transitions import SERVER, State

__all__ = ["ServerEnd"]


class ServerEnd(End):
    """The server's end: receives requests and credits, sends batches.

    Attributes:
        spec: the stream that was asked for last.
    """

    def __init__(self) -> None:
        super().__init__(SERVER)
        self.spec: StreamSpec | None = None

    @property
    def can_send_batch(self) -> bool:
        """Whether a batch may be sent now: a stream is open and the client has room."""
        return self.credits > 0 and self.may_send(FrameType.BATCH)

    def send_batch(self, descriptor: BatchDescriptor, payload_bytes: int) -> bytes:
        """Header and descriptor of a batch; the caller puts exactly ``payload_bytes`` bytes on the wire after them.

        Takes one credit.

        Raises:
            LocalProtocolError: no stream is open, there is no credit, or the payload exceeds the stream's window;
                nothing has changed.
        """
        after = self._after_sending(FrameType.BATCH)
        if self.credits == 0:
            raise LocalProtocolError("a batch may not be sent without a credit")
        if self.spec is not None and payload_bytes > self.spec.window_bytes:
            raise LocalProtocolError(
                f"a batch may be at most window_bytes={self.spec.window_bytes} long, this one is {payload_bytes}"
            )
        encoded = encode_descriptor(descriptor)
        self.credits -= 1
        self.state = after
        head = self._header(FrameType.BATCH, payload_bytes=payload_bytes, descriptor_bytes=len(encoded))
        return head + encoded

    def _awaits(self, state: State) -> bool:
        return False  # a client may leave whenever it likes

    def _check_outgoing(self, message: Any) -> None:
        pass  # the table says it all

    def _note_outgoing(self, message: Any) -> None:
        pass

    def _note_incoming(self, message: Any) -> None:
        if isinstance(message, OpenStream):
            self.spec = message.spec
            self.credits = 0
        elif isinstance(message, Credit):
            self._credit_granted(message, RemoteProtocolError)
            if self.state is not State.ENDED:  # it was on its way when the stream ended
                self.credits += message.batches

    def _batch(self, header: Header) -> NoReturn:
        raise RemoteProtocolError("a client sent a batch", kind=ErrorKind.UNEXPECTED_MESSAGE)
