"""Both ends under arbitrary conversations, arbitrary cuts of the byte stream, and arbitrary bytes."""

from __future__ import annotations

from collections import deque
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastio.errors import LocalProtocolError, RemoteProtocolError
from fastio.layout import batch_layout
from fastio.spec import FieldSpec, StreamSpec
from fastio.testing.connection_pair import ConnectionPair, feed
from fastio.wire import HEADER_BYTES, BatchReceived, ClientEnd, FrameType, Header, ServerEnd, State, encode_header
from fastio.wire.codec import encode_message, frame_type
from fastio.wire.frames import MAX_PAYLOAD_BYTES
from fastio.wire.messages import (
    BatchDescriptor,
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

FIELDS = (FieldSpec(name="x", kind="ragged", dtype="<i2"), FieldSpec(name="y", kind="fixed", dtype="|u1", shape=(3,)))
CLIENT_SAYS = [ListDatasets(), Describe("d"), CloseStream(), Ping(1), Pong(1), Credit(1), Credit(3)]
SERVER_SAYS = [
    Datasets(("d",)),
    DatasetInfo("d", 9, FIELDS, (1, 2), "fp", "arrow", 1, b""),
    StreamClosed(),
    Ping(2),
    Pong(2),
    Goodbye("draining"),
    ErrorMessage("io", "broken", retry=False, fatal=False),
]


class Conversation(RuleBasedStateMachine):
    """Each side says whatever its table allows; bytes travel in pieces of any size.

    The model is two queues of what was said. Whatever one end could send, the other receives in that order; neither
    end ever finds fault, and the credits that a client counts are never fewer than the batches that may still come.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pair = ConnectionPair()
        self.said_up: deque[Any] = deque()
        self.said_down: deque[Any] = deque()
        self.next_step = 0
        self.steps = 0

    @initialize()
    def greet(self) -> None:
        self.up(Hello("client", "token"))
        self.deliver_up(1 << 20)
        self.down(Welcome("server", 1.0, 1 << 20))

    def up(self, message: Any) -> None:
        self.pair.client_sends(message)
        self.said_up.append(message)

    def down(self, message: Any) -> None:
        self.pair.server_sends(message)
        self.said_down.append(message)

    @rule(message=st.sampled_from(CLIENT_SAYS))
    def client_says(self, message: Any) -> None:
        state, sent = self.pair.client.state, len(self.pair.up)
        try:
            self.up(message)
        except LocalProtocolError:
            assert (self.pair.client.state, len(self.pair.up)) == (state, sent)

    @rule(message=st.sampled_from(SERVER_SAYS))
    def server_says(self, message: Any) -> None:
        state, sent = self.pair.server.state, len(self.pair.down)
        try:
            self.down(message)
        except LocalProtocolError:
            assert (self.pair.server.state, len(self.pair.down)) == (state, sent)

    @precondition(lambda self: self.pair.client.may_send(FrameType.OPEN))
    @rule(workers=st.integers(1, 3), first=st.integers(0, 5))
    def client_opens(self, workers: int, first: int) -> None:
        spec = StreamSpec(dataset="d", batch_size=4, workers=workers, first_step=first, window_bytes=1 << 10)
        self.up(OpenStream(spec))

    @precondition(lambda self: self.pair.server.may_send(FrameType.OPENED))
    @rule(more=st.integers(0, 6))
    def server_opens(self, more: int) -> None:
        spec = self.pair.server.spec
        assert spec is not None
        self.steps = spec.first_step + more
        self.next_step = next(step for step in range(spec.first_step, 100) if step % spec.workers == spec.worker)
        self.down(Opened(self.steps, 9, FIELDS, "fp"))

    @precondition(lambda self: self.pair.server.can_send_batch and self.next_step < self.steps)
    @rule(records=st.integers(0, 4), items=st.integers(0, 9), byte=st.binary(min_size=1, max_size=1))
    def server_sends_batch(self, records: int, items: int, byte: bytes) -> None:
        assert self.pair.server.spec is not None
        descriptor = BatchDescriptor(self.next_step, 0, records, (2 * items,))
        payload = byte * batch_layout(FIELDS, records, (2 * items,)).payload_bytes
        self.pair.server_sends_batch(descriptor, payload)
        self.said_down.append((descriptor, payload))
        self.next_step += self.pair.server.spec.workers

    @precondition(lambda self: self.pair.server.may_send(FrameType.END) and self.next_step >= self.steps)
    @rule()
    def server_ends(self) -> None:
        self.down(EndOfStream())

    @rule(limit=st.integers(1, 400))
    def deliver_up(self, limit: int) -> None:
        for event in self.pair.to_server(limit):
            assert event == self.said_up.popleft()

    @rule(limit=st.integers(1, 400))
    def deliver_down(self, limit: int) -> None:
        for event in self.pair.to_client(limit):
            if isinstance(event, BatchReceived):
                event = (event.descriptor, bytes(event.payload))
            assert event == self.said_down.popleft()

    @invariant()
    def nobody_finds_fault(self) -> None:
        assert State.FAULTED not in (self.pair.client.state, self.pair.server.state)

    @invariant()
    def the_client_can_take_what_the_server_may_send(self) -> None:
        if self.pair.server.can_send_batch:
            on_the_way = sum(isinstance(item, tuple) for item in self.said_down)
            assert self.pair.client.credits >= self.pair.server.credits + on_the_way

    def teardown(self) -> None:
        self.deliver_up(1 << 30)
        self.deliver_down(1 << 30)
        assert not self.said_up
        assert not self.said_down


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=40, stateful_step_count=40)


def watched(end: ClientEnd | ServerEnd) -> ClientEnd | ServerEnd:
    """The end, with the memory it asks for held to what the limits allow."""
    want = end.want

    def checked() -> memoryview:
        room = want()
        assert 0 < len(room) <= max(MAX_PAYLOAD_BYTES.values())
        return room

    end.want = checked  # type: ignore[method-assign]
    return end


def ends() -> st.SearchStrategy[ClientEnd | ServerEnd]:
    """Ends in every phase of a connection."""

    def make(which: int) -> ClientEnd | ServerEnd:
        if which < 2:
            pair = ConnectionPair()
        elif which < 4:
            pair = ConnectionPair.greeted()
        else:
            pair = ConnectionPair.asked(OpenStream(StreamSpec(dataset="d", batch_size=4, window_bytes=1 << 12)))
            pair.client_sends(Credit(2))
            pair.to_server()
            pair.server_sends(Opened(5, 9, FIELDS, "fp"))
            pair.to_client()
        return watched((pair.client, pair.server)[which % 2])

    return st.integers(0, 5).map(make)


def frames(sequence: int) -> st.SearchStrategy[bytes]:
    """Frames whose header is nearly right, around any payload."""
    lengths = st.one_of(st.integers(0, 200), st.integers(0, (1 << 64) - 1))
    header = st.builds(
        Header,
        type=st.integers(0, 20),
        sequence=st.just(sequence),
        payload_bytes=lengths,
        descriptor_bytes=st.one_of(st.just(0), st.integers(0, 60), st.integers(0, (1 << 32) - 1)),
        flags=st.integers(0, 3),
        minor=st.integers(0, 3),
    )
    return st.tuples(header, st.binary(max_size=300)).map(lambda item: encode_header(item[0]) + item[1])


def only_the_peer_is_to_blame(end: ClientEnd | ServerEnd, data: bytes) -> None:
    try:
        feed(end, data)
    except RemoteProtocolError:
        assert end.state is State.FAULTED
    except LocalProtocolError:
        assert end.state is State.CLOSED  # it was told FATAL, and more followed


@settings(max_examples=300)
@given(ends(), st.binary(max_size=400))
def test_arbitrary_bytes(end: ClientEnd | ServerEnd, data: bytes) -> None:
    only_the_peer_is_to_blame(end, data)


@settings(max_examples=400)
@given(ends(), st.data())
def test_arbitrary_frames(end: ClientEnd | ServerEnd, data: st.DataObject) -> None:
    only_the_peer_is_to_blame(end, data.draw(frames(end._received_frames)))


MESSAGES_OF_ALL = st.sampled_from([*CLIENT_SAYS, *SERVER_SAYS, Hello("c"), Welcome("s", 1.0, 1), EndOfStream()])


@settings(max_examples=400)
@given(ends(), MESSAGES_OF_ALL, st.data())
def test_damaged_messages(end: ClientEnd | ServerEnd, message: Any, data: st.DataObject) -> None:
    """A right frame of any kind with one byte changed."""
    kind = frame_type(message)
    payload = encode_message(kind, message)
    head = Header(type=kind, sequence=end._received_frames, payload_bytes=len(payload))
    frame = bytearray(encode_header(head) + payload)
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    only_the_peer_is_to_blame(end, bytes(frame) + bytes(HEADER_BYTES))


@given(st.integers(0, 4), st.lists(st.integers(1, 50), min_size=1))
def test_any_cut_of_the_stream_gives_the_same_messages(records: int, cuts: list[int]) -> None:
    pair = ConnectionPair.asked(OpenStream(StreamSpec(dataset="d", batch_size=4)))
    pair.client_sends(Credit(2))
    pair.to_server()
    pair.server_sends(Opened(2, 9, FIELDS, "fp"))
    for step in range(2):
        payload = bytes(index % 251 for index in range(batch_layout(FIELDS, records, (6,)).payload_bytes))
        pair.server_sends_batch(BatchDescriptor(step, 0, records, (6,)), payload)
    pair.server_sends(EndOfStream())
    events = []
    for cut in cuts:
        events += pair.to_client(cut)
    events += pair.to_client()
    assert [type(event).__name__ for event in events] == ["Opened", "BatchReceived", "BatchReceived", "EndOfStream"]
    assert bytes(events[1].payload) == bytes(events[2].payload) == payload
