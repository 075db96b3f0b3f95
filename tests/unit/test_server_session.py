"""The session: every rule of the daemon's side, by calling it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastio.errors import ErrorKind, RemoteProtocolError, StoreError
from fastio.spec import FieldSpec, StreamSpec
from fastio.testing.connection_pair import feed
from fastio.wire import Header, ServerEnd, encode_header
from fastio.wire.codec import encode_message, frame_type
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
from fastio_server.session import SILENT_LIMIT, Phase, Session, Terms

FIELDS = (FieldSpec(name="x", kind="fixed", dtype="<i8"),)
INFO = DatasetInfo("train", 100, FIELDS, (800,), "fp1", "arrow", 1, b"")
SPEC = StreamSpec(dataset="train", batch_size=10, window_bytes=1000)
OPENED = ReaderOpened(10, FIELDS)


def new_session(**changes: Any) -> Session:
    terms: dict[str, Any] = {
        "server": "fastio test",
        "catalogue": {"train": INFO, "extra": INFO},
        "keepalive_s": 10.0,
        "max_window_bytes": 1000,
    }
    return Session(Terms(**{**terms, **changes}))


def after(session: Session, events: Iterable[object]) -> Session:
    for event in events:
        session.handle(event)
    return session


def acts(session: Session, event: object) -> list[object]:
    """What the session does, without what it logs."""
    return [item for item in session.handle(event) if not isinstance(item, Note)]


def sent(session: Session, event: object) -> Any:
    [message] = [item.message for item in session.handle(event) if isinstance(item, Send)]
    return message


HELLO = Hello("test")
OPEN = OpenStream(SPEC, "fp1")


def test_hello_is_welcomed() -> None:
    session = new_session()
    assert acts(session, HELLO) == [Send(Welcome("fastio test", 10.0, 1000))]
    assert session.phase is Phase.IDLE


@pytest.mark.parametrize("token", [None, "guess"])
def test_a_wrong_token_is_refused_for_good(token: str | None) -> None:
    session = new_session(credentials=Credentials({"alice": "s3cret"}))
    error, hangup = acts(session, Hello("test", token))
    assert isinstance(error, Send)
    assert error.message.kind == ErrorKind.BAD_CREDENTIALS
    assert (error.message.fatal, error.message.retry) == (True, False)
    assert "s3cret" not in error.message.message
    assert hangup == Hangup()
    assert acts(session, ListDatasets()) == []


def test_the_right_token_is_let_in_under_its_name() -> None:
    session = new_session(credentials=Credentials({"alice": "s3cret"}))
    assert isinstance(sent(session, Hello("test", "s3cret")), Welcome)
    assert session.user == "alice"


def test_list_and_describe() -> None:
    session = after(new_session(), [HELLO])
    assert sent(session, ListDatasets()) == Datasets(("extra", "train"))
    assert sent(session, Describe("train")) == INFO
    error = sent(session, Describe("trian"))
    assert (error.kind, error.fatal) == (ErrorKind.UNKNOWN_DATASET, False)
    assert "extra, train" in error.message


@pytest.mark.parametrize(
    ("message", "kind", "said"),
    [
        (OpenStream(StreamSpec(dataset="no", batch_size=1, window_bytes=1)), "unknown_dataset", "extra, train"),
        (OpenStream(SPEC, "fp0"), "state_mismatch", "fp1, wanted fp0"),
        (OpenStream(StreamSpec(dataset="train", batch_size=1, window_bytes=1001)), "bad_option", "at most 1000"),
    ],
)
def test_streams_that_are_not_opened(message: OpenStream, kind: str, said: str) -> None:
    session = after(new_session(), [HELLO])
    error = sent(session, message)
    assert (error.kind, error.retry, error.fatal) == (kind, False, False)
    assert said in error.message
    assert acts(session, OPEN) == [OpenReader(SPEC)], "the connection is as good as before"


def test_a_stream_from_open_to_end_and_another() -> None:
    session = after(new_session(), [HELLO])
    for _ in range(2):
        assert acts(session, OPEN) == [OpenReader(SPEC)]
        assert acts(session, Credit(3)) == []
        assert acts(session, OPENED) == [Send(Opened(10, 100, FIELDS, "fp1"))]
        assert acts(session, ReaderFinished()) == [CloseReader(), Send(EndOfStream())]
        assert session.phase is Phase.IDLE


def test_close_is_answered_wherever_it_finds_the_stream() -> None:
    closed = [CloseReader(), Send(StreamClosed())]
    session = after(new_session(), [HELLO, OPEN, OPENED])
    assert acts(session, CloseStream()) == closed
    session = after(new_session(), [HELLO, OPEN])
    assert acts(session, CloseStream()) == [], "the reader is still being opened"
    assert acts(session, OPENED) == closed
    session = after(new_session(), [HELLO, OPEN, CloseStream()])
    assert acts(session, ReaderFailed(StoreError("gone"))) == closed
    session = after(new_session(), [HELLO, OPEN, OPENED, ReaderFinished()])
    assert acts(session, CloseStream()) == [Send(StreamClosed())], "it crossed our END"


@pytest.mark.parametrize("before", [[HELLO, OPEN], [HELLO, OPEN, OPENED]])
def test_a_reader_that_fails_ends_the_stream_not_the_connection(before: list[object]) -> None:
    session = after(new_session(), before)
    error = StoreError("shard 3 is truncated", kind=ErrorKind.TRUNCATED)
    wanted = [CloseReader(), Send(ErrorMessage("truncated", "shard 3 is truncated", False, False))]
    assert acts(session, ReaderFailed(error)) == wanted
    assert acts(session, OPEN) == [OpenReader(SPEC)]


def test_ping_and_silence() -> None:
    session = after(new_session(), [HELLO])
    assert sent(session, Ping(7)) == Pong(7)
    assert acts(session, Tick(9.9, 100)) == []
    assert isinstance(sent(session, Tick(10, 100)), Ping)
    assert acts(session, Tick(SILENT_LIMIT * 10, 100)) == [CloseReader(), Hangup(at_once=True)]
    assert session.phase is Phase.CLOSED


def test_who_never_says_hello_is_dropped_however_much_it_sends() -> None:
    session = new_session()
    assert acts(session, Tick(0, 29)) == []
    assert acts(session, Tick(0, 30)) == [CloseReader(), Hangup(at_once=True)]


def test_a_peer_that_breaks_the_protocol_is_told_and_dropped() -> None:
    session = after(new_session(), [HELLO, OPEN, OPENED])
    close, error, hangup = acts(session, PeerFault(RemoteProtocolError("garbage")))
    assert (close, hangup) == (CloseReader(), Hangup())
    assert isinstance(error, Send)
    assert (error.message.kind, error.message.fatal) == ("bad_frame", True)


def test_draining() -> None:
    goodbye = Send(Goodbye("bye"))
    assert acts(after(new_session(), [HELLO]), DrainBegins("bye")) == [goodbye, Hangup()]
    session = after(new_session(), [HELLO, OPEN, OPENED])
    assert acts(session, DrainBegins("bye")) == [goodbye]
    assert acts(session, ReaderFinished()) == [CloseReader(), Send(EndOfStream()), Hangup()]
    session = new_session()
    assert acts(session, DrainBegins("bye")) == []
    welcome, late, hangup = acts(session, HELLO)
    assert isinstance(welcome, Send)
    assert late == Send(Goodbye("draining"))
    assert hangup == Hangup()


EVENTS: list[object] = [
    HELLO,
    ListDatasets(),
    Describe("train"),
    Describe("no"),
    OPEN,
    OpenStream(SPEC, "other"),
    Credit(1),
    CloseStream(),
    Ping(1),
    Pong(1),
    "reader opens",
    "reader fails",
    "reader finishes",
    Tick(10, 10),
    Tick(0, 10),
    DrainBegins("bye"),
    PeerClosed(),
]


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_whatever_happens_what_is_sent_is_allowed_and_every_reader_is_closed(events: list[object]) -> None:
    """A peer that keeps the protocol, a reader that does anything: the protocol's own end accepts all we send."""
    world = World()
    for event in events:
        happening = world.what_happens(event)
        if happening is not None:
            for action in world.session.handle(happening):
                world.perform(action)
    if world.session.phase in (Phase.IDLE, Phase.CLOSED):
        assert not world.open


class World:
    """The protocol's end and a reader around a session."""

    def __init__(self) -> None:
        self.session, self.end = new_session(), ServerEnd()
        self.opening = self.open = False
        self.received = 0

    def what_happens(self, event: object) -> object | None:
        """The event, if it can happen now."""
        if event == "reader opens":
            self.opening, happens = False, self.opening
            # A connection that is closed by then closes the late reader without asking.
            self.open = self.open or (happens and self.session.phase is not Phase.CLOSED)
            return OPENED if happens else None
        if event == "reader fails":
            self.opening, happens = False, self.opening or self.session.phase is Phase.STREAMING
            return ReaderFailed(StoreError("bad")) if happens else None
        if event == "reader finishes":
            return ReaderFinished() if self.session.phase is Phase.STREAMING else None
        if isinstance(event, Tick | DrainBegins | PeerClosed):
            return event
        return event if self._receive(event) else None

    def perform(self, action: object) -> None:
        if isinstance(action, Send):
            self.end.send(action.message)
        elif isinstance(action, OpenReader):
            assert not self.open
            self.opening = True
        elif isinstance(action, CloseReader):
            self.open = False
        elif isinstance(action, Hangup):
            assert self.session.phase is Phase.CLOSED

    def _receive(self, message: object) -> bool:
        """Lets the protocol's end receive ``message``; False if no client may send it now."""
        kind = frame_type(message)
        if kind not in self.end._table[self.end.state].receive:
            return False
        payload = encode_message(kind, message)
        feed(self.end, encode_header(Header(type=kind, sequence=self.received, payload_bytes=len(payload))) + payload)
        self.received += 1
        return True
