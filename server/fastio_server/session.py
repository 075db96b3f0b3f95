"""What a connection may do next: one pure state machine per connection, with one door.

:meth:`Session.handle` takes an event (a message of the peer, or something that happened on this side) and returns
instructions. It owns no socket, no reader and no clock, so every rule of the daemon's side of the protocol can be
tested by calling it. :mod:`fastio_server.connection` performs the instructions, in order.

Which messages the protocol allows when is the business of :class:`fastio.wire.ServerEnd`; this is about what they mean:
who is let in, which datasets there are, what a stream may ask for, when to say PING and when to give a peer up.

    phase      event                       next       instructions
    NEW        Hello, let in               IDLE       Send(Welcome)
    NEW        Hello, refused              CLOSED     Send(ErrorMessage fatal), Hangup
    IDLE       OpenStream, acceptable      OPENING    OpenReader
    IDLE       OpenStream, not so          IDLE       Send(ErrorMessage)
    OPENING    ReaderOpened                STREAMING  Send(Opened)
    OPENING    CloseStream                 CLOSING
    CLOSING    ReaderOpened, ReaderFailed  IDLE       CloseReader, Send(StreamClosed)
    STREAMING  ReaderFinished              IDLE       CloseReader, Send(EndOfStream)
    STREAMING  CloseStream                 IDLE       CloseReader, Send(StreamClosed)
    OPENING,   ReaderFailed                IDLE       CloseReader, Send(ErrorMessage)
    STREAMING
    any        PeerClosed, PeerFault       CLOSED     CloseReader, Hangup

Draining is beside the phases: an IDLE connection is told GOODBYE and hung up, one with a stream when that ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fastio.errors import ErrorKind, FastioError, RequestError, StoreError, UnavailableError
from fastio.spec import StreamSpec
from fastio.wire.messages import (
    CloseStream,
    Credit,
    DatasetInfo,
    Datasets,
    Describe,
    EndOfStream,
    ErrorMessage,
    Goodbye,
    Hello,
    ListDatasets,
    Opened,
    OpenStream,
    Ping,
    Pong,
    StreamClosed,
    Welcome,
)
from fastio_server.credentials import Credentials
from fastio_server.events import (
    CloseReader,
    DrainBegins,
    Hangup,
    Instruction,
    Note,
    OpenReader,
    PeerClosed,
    PeerFault,
    ReaderFailed,
    ReaderFinished,
    ReaderOpened,
    Send,
    Tick,
)

__all__ = ["SILENT_LIMIT", "Phase", "Session", "Terms"]

# A peer is given up after this many keep-alive times without a sign of life: two PINGs may get lost in a pause.
SILENT_LIMIT = 3


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What holds for every connection of a worker."""

    server: str
    catalogue: Mapping[str, DatasetInfo]
    credentials: Credentials = field(default_factory=Credentials)
    keepalive_s: float
    max_window_bytes: int


class Phase(StrEnum):
    """Where a connection is."""

    NEW = "new"
    IDLE = "idle"
    OPENING = "opening"
    STREAMING = "streaming"
    CLOSING = "closing"
    CLOSED = "closed"


class Session:
    """One connection's state. ``handle`` is the only way in; everything else is for looking."""

    def __init__(self, terms: Terms) -> None:
        self.phase = Phase.NEW
        self.draining = False
        self.user: str | None = None
        self.spec: StreamSpec | None = None
        self._terms = terms
        self._pings = 0
        self._asked_s = 0.0  # how long the peer had been silent at the last PING

    def handle(self, event: object) -> list[Instruction]:
        """What to do about ``event``. Events that a closed connection still hears are answered with nothing."""
        if self.phase is Phase.CLOSED:
            return []
        return _HANDLERS[type(event)](self, event)

    def __repr__(self) -> str:
        return f"Session({self.phase}{', draining' if self.draining else ''})"

    # --- the peer's messages

    def _hello(self, hello: Hello) -> list[Instruction]:
        user = self._terms.credentials.name_of(hello.token)
        if user is None:
            given = "a token that is not known here" if hello.token else "no token"
            error = RequestError(
                f"{self._terms.server} wants a token, got {given}; give one that is in the daemon's token file",
                kind=ErrorKind.BAD_CREDENTIALS,
            )
            return [Note("refused", "warning", {"client": hello.client, "reason": given}), *self._fatal(error)]
        self.phase, self.user = Phase.IDLE, user
        terms = self._terms
        welcome = Welcome(terms.server, terms.keepalive_s, terms.max_window_bytes)
        note = Note("connection", values={"client": hello.client, "user": user})
        goodbye = [Send(Goodbye("draining"))] if self.draining else []
        return [Send(welcome), note, *goodbye, *self._farewell()]

    def _list(self, _: ListDatasets) -> list[Instruction]:
        return [Send(Datasets(tuple(sorted(self._terms.catalogue))))]

    def _describe(self, message: Describe) -> list[Instruction]:
        try:
            return [Send(self._info(message.dataset))]
        except RequestError as error:
            return [Send(_error_message(error))]

    def _open(self, message: OpenStream) -> list[Instruction]:
        try:
            self._check(message)
        except FastioError as error:
            return [Send(_error_message(error)), Note("refused", "warning", {"error": str(error)})]
        self.phase, self.spec = Phase.OPENING, message.spec
        return [OpenReader(message.spec)]

    def _close(self, _: CloseStream) -> list[Instruction]:
        if self.phase is Phase.STREAMING:
            return self._end_stream(StreamClosed(), "closed by the client")
        if self.phase is Phase.OPENING:
            self.phase = Phase.CLOSING
            return []
        # It crossed our END or ERROR on the way: the client still waits for an answer.
        return [Send(StreamClosed())] if self.phase is Phase.IDLE else []

    def _ping(self, message: Ping) -> list[Instruction]:
        return [Send(Pong(message.nonce))]

    def _nothing(self, _: object) -> list[Instruction]:
        return []

    # --- what happens on this side

    def _reader_opened(self, event: ReaderOpened) -> list[Instruction]:
        if self.phase is Phase.CLOSING:
            return self._end_stream(StreamClosed(), "closed by the client")
        spec = self._open_spec()
        info = self._terms.catalogue[spec.dataset]
        self.phase = Phase.STREAMING
        opened = Opened(event.steps, info.records, event.fields, info.fingerprint)
        return [Send(opened), Note("stream", values={**_place(spec), "steps": event.steps})]

    def _reader_failed(self, event: ReaderFailed) -> list[Instruction]:
        if self.phase is Phase.CLOSING:
            return self._end_stream(StreamClosed(), "closed by the client")
        # A wrong request is its sender's affair; bad data or a bad disk is the operator's.
        level = "error" if isinstance(event.error, StoreError) else "warning"
        failed = Note("stream failed", level, {**_place(self._open_spec()), "error": str(event.error)})
        return [failed, *self._end_stream(_error_message(event.error), "failed")]

    def _reader_finished(self, _: ReaderFinished) -> list[Instruction]:
        return self._end_stream(EndOfStream(), "complete")

    def _peer_closed(self, event: PeerClosed) -> list[Instruction]:
        self.phase = Phase.CLOSED
        return [CloseReader(), Note("disconnection", values={"reason": event.reason}), Hangup(at_once=True)]

    def _peer_fault(self, event: PeerFault) -> list[Instruction]:
        note = Note("protocol error", "warning", {"error": str(event.error)})
        return [note, CloseReader(), *self._fatal(event.error)]

    def _tick(self, event: Tick) -> list[Instruction]:
        limit_s = SILENT_LIMIT * self._terms.keepalive_s
        if self.phase is Phase.NEW:
            # Bytes that never become a HELLO are no sign of life.
            return self._peer_closed(PeerClosed(f"no HELLO within {limit_s:g} s")) if event.age_s >= limit_s else []
        if event.silent_s >= limit_s:
            return self._peer_closed(PeerClosed(f"silent for {limit_s:g} s"))
        if event.silent_s < self._terms.keepalive_s:
            self._asked_s = 0.0
        elif event.silent_s - self._asked_s >= self._terms.keepalive_s:
            self._asked_s = event.silent_s
            self._pings += 1
            return [Send(Ping(self._pings))]
        return []

    def _drain(self, event: DrainBegins) -> list[Instruction]:
        self.draining = True
        if self.phase is Phase.NEW:
            return []  # it is told after its HELLO, or runs into the deadline
        return [Send(Goodbye(event.reason)), *self._farewell()]

    # --- parts

    def _check(self, message: OpenStream) -> None:
        """Whether a stream may be opened here and now."""
        spec = message.spec
        if self.draining:
            raise UnavailableError(f"{self._terms.server} is draining; connect again", kind=ErrorKind.DRAINING)
        info = self._info(spec.dataset)
        if message.fingerprint is not None and message.fingerprint != info.fingerprint:
            raise RequestError(
                f"dataset {spec.dataset!r} is not the one this loader began with: its fingerprint is "
                f"{info.fingerprint}, wanted {message.fingerprint}; was the data replaced?",
                kind=ErrorKind.STATE_MISMATCH,
            )
        if spec.window_bytes > self._terms.max_window_bytes:
            raise RequestError(
                f"window_bytes must be at most {self._terms.max_window_bytes} on this server, got {spec.window_bytes}"
            )

    def _info(self, name: str) -> DatasetInfo:
        if name not in self._terms.catalogue:
            names = ", ".join(sorted(self._terms.catalogue))
            raise RequestError(f"no dataset {name!r} here; there are: {names}", kind=ErrorKind.UNKNOWN_DATASET)
        return self._terms.catalogue[name]

    def _open_spec(self) -> StreamSpec:
        assert self.spec is not None, f"no stream in {self!r}"
        return self.spec

    def _end_stream(self, last: object, how: str) -> list[Instruction]:
        note = Note("stream end", values={**_place(self._open_spec()), "how": how})
        self.phase, self.spec = Phase.IDLE, None
        return [CloseReader(), Send(last), note, *self._farewell()]

    def _farewell(self) -> list[Instruction]:
        """What ends a connection that has nothing more to do on a draining server."""
        if not self.draining or self.phase is not Phase.IDLE:
            return []
        self.phase = Phase.CLOSED
        return [Note("disconnection", values={"reason": "draining"}), Hangup()]

    def _fatal(self, error: FastioError) -> list[Instruction]:
        self.phase = Phase.CLOSED
        return [Send(_error_message(error, fatal=True)), Hangup()]


def _error_message(error: FastioError, *, fatal: bool = False) -> ErrorMessage:
    return ErrorMessage(error.kind.value, str(error), error.retry, fatal)


def _place(spec: StreamSpec) -> dict[str, Any]:
    """Which stream this is, for the log."""
    return {
        "dataset": spec.dataset,
        "rank": spec.rank,
        "world_size": spec.world_size,
        "worker_of_rank": spec.worker,
        "epoch": spec.epoch,
        "start_records": spec.start_records,
        "first_step": spec.first_step,
    }


_HANDLERS: dict[type, Callable[[Session, Any], list[Instruction]]] = {
    Hello: Session._hello,
    ListDatasets: Session._list,
    Describe: Session._describe,
    OpenStream: Session._open,
    CloseStream: Session._close,
    Credit: Session._nothing,  # counted by the protocol end
    Ping: Session._ping,
    Pong: Session._nothing,  # any byte was a sign of life
    ReaderOpened: Session._reader_opened,
    ReaderFailed: Session._reader_failed,
    ReaderFinished: Session._reader_finished,
    PeerClosed: Session._peer_closed,
    PeerFault: Session._peer_fault,
    Tick: Session._tick,
    DrainBegins: Session._drain,
}
