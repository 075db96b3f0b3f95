"""Both ends of a connection, without a socket: bytes in, messages out; messages in, bytes out.

An end says which memory it wants filled next (:meth:`End.want`), is told how much was (:meth:`End.filled`), and answers
with the messages that became complete. Batch payloads are read straight into memory that the caller allocates. What may
be said when is in :mod:`fastio.wire.transitions`; here it is enforced, together with the rules that a table cannot
hold: credits, sequence numbers, lengths, and which steps a stream must bring.

An end is not thread-safe: a caller that sends and receives from two threads holds a lock around :meth:`End.filled` and
:meth:`End.send` (not while it fills the memory it was given), and puts frames on the wire in the order they were made.

Errors: :class:`~fastio.errors.LocalProtocolError` means that this side broke the rules and nothing has changed;
:class:`~fastio.errors.RemoteProtocolError` that the peer did, after which the end is ``FAULTED`` and reads no more
(a server may still say why, by a fatal ErrorMessage).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NoReturn, TypeAlias

import msgspec

from fastio.errors import ErrorKind, LocalProtocolError, RemoteProtocolError, UnavailableError
from fastio.wire.codec import decode_message, encode_message, frame_type
from fastio.wire.frames import (
    HEADER_BYTES,
    MAJOR,
    MAX_DESCRIPTOR_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_SKIPPED_BYTES,
    MINOR,
    FrameType,
    Header,
    decode_header,
    encode_header,
)
from fastio.wire.messages import Credit
from fastio.wire.transitions import State, Table

__all__ = ["MAX_CREDITS", "End", "Event"]

# Leave for more batches than any window holds is a mistake, not a wish.
MAX_CREDITS = 1 << 20

Event: TypeAlias = Any
_Parser: TypeAlias = Generator[memoryview, int, None]


class End:
    """What both ends have in common. Use :class:`ClientEnd` or :class:`ServerEnd`.

    Attributes:
        state: where this end is.
        credits: batches that may still come (client) or be sent (server) without a further CREDIT.
        peer_version: (major, minor) of the peer; None before its first frame.
    """

    def __init__(self, table: Table) -> None:
        self.state = State.NEW
        self.credits = 0
        self.peer_version: tuple[int, int] | None = None
        self._table = table
        self._sent_frames = 0
        self._received_frames = 0
        self._in_frame = False
        self._events: list[Event] = []
        self._parser = self._frames()
        self._room = next(self._parser)

    def want(self) -> memoryview:
        """The memory to fill next: never empty, and exactly as much as the current part of a frame lacks.

        Raises:
            LocalProtocolError: this end reads no more.
        """
        if self.state in (State.FAULTED, State.CLOSED):
            raise LocalProtocolError(f"a connection that is {self.state} reads no more")
        return self._room

    def filled(self, count: int) -> list[Event]:
        """Notes that the first ``count`` bytes of :meth:`want` were filled; the messages that became complete.

        Raises:
            LocalProtocolError: ``count`` is not in [1, len(want())].
            RemoteProtocolError: the peer broke the rules; this end is ``FAULTED`` from now on.
        """
        if not 0 < count <= len(self.want()):
            raise LocalProtocolError(f"filled must be told 1 .. {len(self._room)} bytes, got {count}")
        try:
            self._room = self._parser.send(count)
        except BaseException:
            self.state = State.FAULTED
            raise
        events, self._events = self._events, []
        return events

    def eof(self) -> None:
        """Notes that the peer will send no more bytes; this end is ``CLOSED`` from now on.

        Raises:
            UnavailableError: something was still to come: the connection broke.
        """
        state, self.state = self.state, State.CLOSED
        if state in (State.FAULTED, State.CLOSED):
            return
        if self._in_frame:
            raise UnavailableError("the connection ended in the middle of a frame")
        if self._awaits(state):
            raise UnavailableError(f"the connection ended while {state}")

    def send(self, message: msgspec.Struct) -> bytes:
        """The frame of a control message; it must go on the wire in the order in which frames were made.

        Raises:
            LocalProtocolError: the message may not be sent in this state; nothing has changed.
        """
        kind = frame_type(message)
        after = self._after_sending(kind)
        self._check_outgoing(message)
        payload = encode_message(kind, message)
        self._note_outgoing(message)
        self.state = after
        return self._header(kind, payload_bytes=len(payload)) + payload

    def may_send(self, kind: FrameType) -> bool:
        """Whether the table allows to send a frame of this kind now."""
        return kind in self._table[self.state].send

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.state}, credits={self.credits})"

    # --- for the two ends to fill in

    def _awaits(self, state: State) -> bool:
        """Whether the peer owes an answer in ``state``."""
        raise NotImplementedError

    def _check_outgoing(self, message: Any) -> None:
        """Raises LocalProtocolError for a message that the table allows and this end's counts do not."""
        raise NotImplementedError

    def _note_outgoing(self, message: Any) -> None:
        """Remembers what a message that is being sent changes, beside the state."""
        raise NotImplementedError

    def _note_incoming(self, message: Any) -> None:
        """Checks a received message beyond the table, and remembers what it changes."""
        raise NotImplementedError

    def _batch(self, header: Header) -> _Parser:
        """Reads what follows the header of a BATCH."""
        raise NotImplementedError

    # --- sending

    def _after_sending(self, kind: FrameType) -> State:
        after = self._table[self.state].send.get(kind)
        if after is None:
            allowed = ", ".join(sorted(item.name for item in self._table[self.state].send)) or "nothing"
            raise LocalProtocolError(f"{kind.name} may not be sent while {self.state}; allowed: {allowed}")
        return after

    def _header(self, kind: FrameType, *, payload_bytes: int, descriptor_bytes: int = 0) -> bytes:
        header = Header(
            type=kind, sequence=self._sent_frames, payload_bytes=payload_bytes, descriptor_bytes=descriptor_bytes
        )
        self._sent_frames += 1
        return encode_header(header)

    # --- receiving

    def _frames(self) -> _Parser:
        """Reads frames for ever: yields the memory it wants, is sent the number of bytes that were filled."""
        while True:
            self._in_frame = False
            head = bytearray(HEADER_BYTES)
            yield from self._fill(memoryview(head))
            header = decode_header(head)
            self._check_sequence(header)
            kind = _known(header)
            if kind is None:
                yield from self._fill(memoryview(bytearray(header.payload_bytes)))
                continue
            self._after_receiving(kind)  # before memory is taken
            _check_lengths(kind, header)
            if kind is FrameType.BATCH:
                yield from self._batch(header)
                continue
            payload = bytearray(header.payload_bytes)
            yield from self._fill(memoryview(payload))
            self._deliver(kind, decode_message(kind, payload))

    def _fill(self, view: memoryview) -> _Parser:
        while len(view):
            count = yield view
            self._in_frame = True
            view = view[count:]

    def _deliver(self, kind: FrameType, message: Event) -> None:
        # Looked up again: this side may have sent CLOSE since the header was judged.
        after = self._after_receiving(kind)
        self._note_incoming(message)
        self.state = after
        self._events.append(message)

    def _after_receiving(self, kind: FrameType) -> State:
        after = self._table[self.state].receive.get(kind)
        if after is None:
            text = f"the peer sent {kind.name} while this side was {self.state}"
            raise RemoteProtocolError(text, kind=ErrorKind.UNEXPECTED_MESSAGE)
        return after

    def _check_sequence(self, header: Header) -> None:
        if header.sequence != self._received_frames:
            raise RemoteProtocolError(f"frame {self._received_frames} was due, got number {header.sequence}")
        self._received_frames += 1
        self.peer_version = (header.major, header.minor)

    def _credit_granted(self, credit: Credit, error: type[LocalProtocolError | RemoteProtocolError]) -> None:
        """Checks a CREDIT, whichever side it comes from."""
        if credit.batches < 1 or self.credits + credit.batches > MAX_CREDITS:
            raise error(f"a credit of {credit.batches} on top of {self.credits} is not within 1 .. {MAX_CREDITS}")


def _known(header: Header) -> FrameType | None:
    """The frame's type; None if it is to be skipped."""
    try:
        return FrameType(header.type)
    except ValueError:
        pass
    if not header.skippable or header.major != MAJOR:
        raise RemoteProtocolError(
            f"frame type {header.type} is not known in version {MAJOR}.{MINOR} (the peer's is "
            f"{header.major}.{header.minor})",
            kind=ErrorKind.UNEXPECTED_MESSAGE,
        )
    if header.descriptor_bytes or header.payload_bytes > MAX_SKIPPED_BYTES:
        _too_long(f"type {header.type}", header, MAX_SKIPPED_BYTES)
    return None


def _check_lengths(kind: FrameType, header: Header) -> None:
    if kind is FrameType.BATCH:
        if not 0 < header.descriptor_bytes <= MAX_DESCRIPTOR_BYTES:
            raise RemoteProtocolError(
                f"a batch descriptor is 1 .. {MAX_DESCRIPTOR_BYTES} bytes long, got {header.descriptor_bytes}"
            )
        return
    if header.descriptor_bytes or not 0 < header.payload_bytes <= MAX_PAYLOAD_BYTES[kind]:
        _too_long(kind.name, header, MAX_PAYLOAD_BYTES[kind])


def _too_long(name: str, header: Header, limit_bytes: int) -> NoReturn:
    raise RemoteProtocolError(
        f"a frame of {name} has no descriptor and a payload of 1 .. {limit_bytes} bytes; "
        f"got {header.descriptor_bytes} and {header.payload_bytes} bytes"
    )
