"""The protocol's rules, one by one, over a fake wire."""

from __future__ import annotations

import re
import struct
from typing import Any

import msgspec
import pytest

from fastio.errors import ErrorKind, LocalProtocolError, RemoteProtocolError, UnavailableError
from fastio.layout import batch_layout
from fastio.spec import FieldSpec, StreamSpec
from fastio.testing.connection_pair import ConnectionPair, feed
from fastio.wire import HEADER_BYTES, ClientEnd, FrameType, Header, ServerEnd, State, encode_header
from fastio.wire.codec import MESSAGES, check_fields, decode_message, encode_message, frame_type
from fastio.wire.frames import MAX_DESCRIPTOR_BYTES, MAX_PAYLOAD_BYTES, SKIPPABLE
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
from fastio.wire.transitions import CLIENT, SERVER

IMAGE = FieldSpec(name="image", kind="ragged", dtype="|u1")
LABEL = FieldSpec(name="label", kind="fixed", dtype="<i4", nullable=True)
FIELDS = (IMAGE, LABEL)
SPEC = StreamSpec(dataset="d", batch_size=2, window_bytes=1 << 20)


def new_client() -> ClientEnd:
    return ClientEnd(lambda size: memoryview(bytearray(size)))


def payload_of(descriptor: BatchDescriptor) -> bytes:
    return bytes(batch_layout(FIELDS, descriptor.records, descriptor.ragged_bytes).payload_bytes)


def streaming(spec: StreamSpec = SPEC, *, steps: int = 3, credits: int = 2) -> ConnectionPair:
    pair = ConnectionPair.asked(OpenStream(spec))
    pair.client_sends(Credit(credits))
    pair.to_server()
    pair.server_sends(Opened(steps, 100, FIELDS, "fp"))
    pair.to_client()
    return pair


def send_step(pair: ConnectionPair, step: int, records: int = 2) -> list[Any]:
    descriptor = BatchDescriptor(step, 0, records, (5,))
    pair.server_sends_batch(descriptor, payload_of(descriptor))
    return pair.to_client()


def client_receives(pair: ConnectionPair, kind: int, payload: bytes = b"\x90", **header: Any) -> list[Any]:
    """Feeds the client a frame that no ServerEnd would make."""
    values = {"type": kind, "sequence": pair.client._received_frames, "payload_bytes": len(payload)} | header
    return feed(pair.client, encode_header(Header(**values)) + payload)


def test_a_whole_conversation() -> None:
    pair = ConnectionPair()
    pair.client_sends(Hello("me", "secret"))
    assert pair.to_server() == [Hello("me", "secret")]
    pair.server_sends(Welcome("srv", 10.0, 1 << 30))
    assert pair.to_client() == [Welcome("srv", 10.0, 1 << 30)]
    pair.client_sends(ListDatasets())
    pair.to_server()
    pair.server_sends(Datasets(("a", "d")))
    assert pair.to_client() == [Datasets(("a", "d"))]
    pair.client_sends(Describe("d"))
    pair.to_server()
    info = DatasetInfo("d", 100, FIELDS, (1000, 400), "fp", "arrow", 1, b"schema")
    pair.server_sends(info)
    assert pair.to_client() == [info]
    pair.client_sends(OpenStream(SPEC, "fp"))
    pair.client_sends(Credit(1))
    assert pair.to_server() == [OpenStream(SPEC, "fp"), Credit(1)]
    pair.server_sends(Opened(1, 100, FIELDS, "fp"))
    assert pair.server.can_send_batch
    [opened, batch] = pair.to_client() + send_step(pair, 0)
    assert opened.fields == FIELDS
    assert (batch.descriptor.step, len(batch.payload)) == (0, batch.layout.payload_bytes)
    assert not pair.server.can_send_batch
    pair.server_sends(EndOfStream())
    assert pair.to_client() == [EndOfStream()]
    assert (pair.client.state, pair.server.state) == (State.IDLE, State.ENDED)
    pair.client_sends(OpenStream(SPEC))
    pair.to_server()
    assert (pair.client.state, pair.server.state) == (State.OPENING, State.OPENING)
    assert pair.client.peer_version == pair.server.peer_version == (1, 0)


def test_every_frame_type_has_a_message_and_a_limit() -> None:
    assert set(MESSAGES) == set(MAX_PAYLOAD_BYTES) == set(FrameType) - {FrameType.BATCH}


def test_tables_agree() -> None:
    """What one end may ever send, the other may receive in some state, and every state but the last is reached."""
    for one, other in ((CLIENT, SERVER), (SERVER, CLIENT)):
        sent = {kind for moves in one.values() for kind in moves.send}
        received = {kind for moves in other.values() for kind in moves.receive}
        assert sent == received
        reached = {after for moves in one.values() for after in (*moves.send.values(), *moves.receive.values())}
        assert reached | {State.NEW, State.FAULTED} == set(one)


@pytest.mark.parametrize("late", [Credit(1), CloseStream()])
def test_what_crosses_the_end_of_a_stream_is_tolerated(late: Any) -> None:
    pair = streaming(steps=1)
    send_step(pair, 0)
    pair.server_sends(EndOfStream())
    pair.client_sends(late)
    assert pair.to_server() == [late]
    pair.to_client()
    if isinstance(late, CloseStream):
        assert pair.client.state is State.CLOSING_ENDED
        pair.server_sends(StreamClosed())
        pair.to_client()
    assert pair.client.state is State.IDLE
    pair.client_sends(ListDatasets())
    pair.to_server()
    assert pair.server.state is State.LISTING


def test_close_drains_what_was_on_its_way() -> None:
    pair = streaming()
    descriptor = BatchDescriptor(0, 0, 2, (5,))
    pair.server_sends_batch(descriptor, payload_of(descriptor))
    pair.client_sends(CloseStream())
    pair.to_server()
    with pytest.raises(LocalProtocolError, match=r"BATCH may not be sent while closing; allowed: .*STREAM_CLOSED"):
        pair.server.send_batch(descriptor, 0)
    pair.server_sends(StreamClosed())
    assert [type(event).__name__ for event in pair.to_client()] == ["BatchReceived", "StreamClosed"]
    assert pair.client.state is State.IDLE


def test_close_in_the_middle_of_a_payload() -> None:
    pair = streaming()
    descriptor = BatchDescriptor(0, 0, 2, (5,))
    pair.server_sends_batch(descriptor, payload_of(descriptor))
    assert pair.to_client(HEADER_BYTES + 20) == []
    pair.client_sends(CloseStream())
    [batch] = pair.to_client()
    assert batch.descriptor == descriptor
    assert pair.client.state is State.CLOSING


def test_a_refused_open_leaves_both_ends_ready() -> None:
    pair = ConnectionPair.asked(OpenStream(SPEC))
    pair.client_sends(Credit(3))
    refusal = ErrorMessage("unknown_dataset", "no", retry=False, fatal=False)
    pair.server_sends(refusal)
    assert pair.to_client() == [refusal]
    assert pair.to_server() == [Credit(3)]
    assert (pair.client.state, pair.server.state, pair.server.credits) == (State.IDLE, State.ENDED, 0)


def test_credits_of_one_stream_do_not_leak_into_the_next() -> None:
    pair = streaming(steps=1, credits=7)
    send_step(pair, 0)
    pair.server_sends(EndOfStream())
    pair.to_client()
    pair.client_sends(OpenStream(SPEC))
    pair.to_server()
    assert pair.client.credits == pair.server.credits == 0


def test_a_batch_needs_a_credit_on_both_ends() -> None:
    pair = streaming(credits=1)
    send_step(pair, 0)
    with pytest.raises(LocalProtocolError, match="without a credit"):
        send_step(pair, 1)
    pair.server.credits = 1
    with pytest.raises(RemoteProtocolError, match="without a credit"):
        send_step(pair, 1)
    assert pair.client.state is State.FAULTED


def test_a_payload_longer_than_the_window_is_refused_by_both_ends() -> None:
    pair = streaming(StreamSpec(dataset="d", batch_size=2, window_bytes=100))
    with pytest.raises(LocalProtocolError, match="window_bytes=100 long, this one is 101"):
        pair.server.send_batch(BatchDescriptor(0, 0, 1, (1,)), 101)
    with pytest.raises(RemoteProtocolError, match="window_bytes=100 long, got 101"):
        client_receives(pair, FrameType.BATCH, payload_bytes=101, descriptor_bytes=3)


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        (BatchDescriptor(1, 0, 2, (5,)), "step 0 of 3 of epoch 0 was due, got step 1 of epoch 0"),
        (BatchDescriptor(0, 1, 2, (5,)), "got step 0 of epoch 1"),
        (BatchDescriptor(0, 0, 3, (5,)), "a batch of 3 records, at most 2 were asked"),
        (BatchDescriptor(0, 0, -1, (5,)), "a batch of -1 records"),
        (BatchDescriptor(0, 0, 2, ()), "ragged_bytes do not fit"),
        (BatchDescriptor(0, 0, 2, (-1,)), "ragged_bytes do not fit"),
        (BatchDescriptor(0, 0, 2, (1000,)), "was announced"),
    ],
)
def test_a_batch_must_be_the_one_that_is_due(batch: BatchDescriptor, complaint: str) -> None:
    pair = streaming()
    pair.down += pair.server.send_batch(batch, 320)
    with pytest.raises(RemoteProtocolError, match=complaint):
        pair.to_client()


def test_no_memory_is_taken_for_a_batch_that_is_not_due() -> None:
    taken: list[int] = []

    def allocate(size: int) -> memoryview:
        taken.append(size)
        return memoryview(bytearray(size))

    pair = streaming()
    pair.client._allocate = allocate
    pair.down += pair.server.send_batch(BatchDescriptor(1, 0, 2, (5,)), 320)
    with pytest.raises(RemoteProtocolError):
        pair.to_client()
    assert taken == []


def test_steps_of_a_worker_and_of_a_reopened_stream() -> None:
    spec = StreamSpec(dataset="d", batch_size=2, first_step=4, worker=1, workers=3)
    pair = streaming(spec, steps=9)
    assert [event.descriptor.step for step in (4, 7) for event in send_step(pair, step)] == [4, 7]
    pair.server_sends(EndOfStream())
    assert pair.to_client() == [EndOfStream()]


def test_a_stream_may_not_end_early() -> None:
    pair = streaming()
    send_step(pair, 0)
    pair.server_sends(EndOfStream())
    with pytest.raises(RemoteProtocolError, match="ended before step 1 of 3"):
        pair.to_client()


def test_an_empty_batch_of_fixed_fields_has_no_payload() -> None:
    pair = ConnectionPair.asked(OpenStream(SPEC))
    pair.client_sends(Credit(1))
    pair.to_server()
    pair.server_sends(Opened(1, 100, (FieldSpec(name="x", kind="fixed", dtype="<f4"),), "fp"))
    pair.server_sends_batch(BatchDescriptor(0, 0, 0, ()), b"")
    [_, batch] = pair.to_client()
    assert len(batch.payload) == 0


def test_the_server_must_open_what_was_asked() -> None:
    pair = ConnectionPair.asked(OpenStream(StreamSpec(dataset="d", batch_size=2, fields=("label",)), "fp"))
    pair.server_sends(Opened(1, 100, FIELDS, "fp"))
    with pytest.raises(RemoteProtocolError, match=re.escape("['label'] were asked for, got ['image', 'label']")):
        pair.to_client()
    pair = ConnectionPair.asked(OpenStream(SPEC, "fp"))
    pair.server_sends(Opened(1, 100, FIELDS, "other"))
    with pytest.raises(RemoteProtocolError, match="fp was asked for, the server opened other"):
        pair.to_client()


def test_what_the_table_forbids_is_a_local_error_and_changes_nothing() -> None:
    client = new_client()
    with pytest.raises(LocalProtocolError, match="OPEN may not be sent while new; allowed: HELLO"):
        client.send(OpenStream(SPEC))
    assert client.state is State.NEW
    frame = client.send(Hello("me"))
    assert struct.unpack_from("<Q", frame, 16) == (0,)
    with pytest.raises(LocalProtocolError, match="a control message was wanted, got int"):
        client.send(3)  # type: ignore[arg-type]


def test_what_the_table_forbids_the_peer_is_a_remote_error_and_the_server_can_say_so() -> None:
    pair = ConnectionPair.greeted()
    server = pair.server
    head = encode_header(Header(type=FrameType.CREDIT, sequence=1, payload_bytes=1 << 9))
    with pytest.raises(RemoteProtocolError, match="sent CREDIT while this side was idle") as caught:
        feed(server, head)  # before its payload is read
    assert caught.value.kind is ErrorKind.UNEXPECTED_MESSAGE
    with pytest.raises(LocalProtocolError, match="faulted reads no more"):
        server.want()
    pair.server_sends(ErrorMessage("unexpected_message", "tut", retry=False, fatal=True))
    assert [event.message for event in pair.to_client()] == ["tut"]
    assert pair.client.state is pair.server.state is State.CLOSED


@pytest.mark.parametrize("batches", [0, -1, (1 << 20) - 1])
def test_credits_have_a_limit(batches: int) -> None:
    pair = streaming()
    with pytest.raises(LocalProtocolError, match="a credit of"):
        pair.client.send(Credit(batches))
    payload = encode_message(FrameType.CREDIT, Credit(batches))
    head = encode_header(Header(type=FrameType.CREDIT, sequence=3, payload_bytes=len(payload)))
    with pytest.raises(RemoteProtocolError, match="a credit of"):
        feed(pair.server, head + payload)


def test_other_majors_are_named_and_other_minors_interoperate() -> None:
    head = Header(type=FrameType.HELLO, sequence=0, payload_bytes=1, major=2, minor=3)
    with pytest.raises(RemoteProtocolError, match=re.escape("speaks version 2.3 of the protocol, this side 1.0")) as e:
        feed(ServerEnd(), encode_header(head))
    assert e.value.kind is ErrorKind.VERSION_MISMATCH
    server = ServerEnd()
    payload = msgspec.msgpack.encode(["me", None, "a field of the future"])
    head = Header(type=FrameType.HELLO, sequence=0, payload_bytes=len(payload), minor=9)
    assert feed(server, encode_header(head) + payload) == [Hello("me")]
    assert server.peer_version == (1, 9)


def test_unknown_frames_are_skipped_only_if_they_say_so() -> None:
    pair = ConnectionPair.greeted()
    assert client_receives(pair, 200, b"new", flags=SKIPPABLE | 128) == []
    with pytest.raises(RemoteProtocolError, match=r"frame type 200 is not known in version 1\.0"):
        client_receives(pair, 200, b"new")
    pair = ConnectionPair.greeted()
    with pytest.raises(RemoteProtocolError, match="a frame of type 200"):
        client_receives(pair, 200, flags=SKIPPABLE, payload_bytes=1 << 40)


def test_a_foreign_peer_is_told_apart() -> None:
    with pytest.raises(RemoteProtocolError, match=re.escape("begins with b'FSTI', got b'GET '")):
        feed(ServerEnd(), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


def test_a_lost_frame_is_noticed() -> None:
    pair = ConnectionPair.greeted()
    with pytest.raises(RemoteProtocolError, match="frame 1 was due, got number 2"):
        client_receives(pair, FrameType.PING, encode_message(FrameType.PING, Ping(1)), sequence=2)


@pytest.mark.parametrize("kind", sorted(set(FrameType) - {FrameType.BATCH}))
def test_lengths_are_refused_before_memory_is_taken(kind: FrameType) -> None:
    head = encode_header(Header(type=kind, sequence=0, payload_bytes=MAX_PAYLOAD_BYTES[kind] + 1))
    for table, make in ((SERVER, ServerEnd), (CLIENT, new_client)):
        for state in [state for state, moves in table.items() if kind in moves.receive]:
            end = make()
            end.state = state
            with pytest.raises(RemoteProtocolError, match=f"a frame of {kind.name} has no descriptor"):
                feed(end, head)


def test_a_descriptor_has_a_limit() -> None:
    for size in (0, MAX_DESCRIPTOR_BYTES + 1):
        with pytest.raises(RemoteProtocolError, match="a batch descriptor is 1"):
            client_receives(streaming(), FrameType.BATCH, descriptor_bytes=size, payload_bytes=64)
    pair = streaming()
    with pytest.raises(LocalProtocolError, match="fields of variable length are too many"):
        pair.server.send_batch(BatchDescriptor(0, 0, 1, (1 << 62,) * 200_000), 64)


def test_datasets_of_a_hundred_thousand_fields_fit() -> None:
    fields = tuple(FieldSpec(name=f"feature_{i}", kind="ragged", dtype="<f4") for i in range(100_000))
    info = DatasetInfo("d", 1, fields, (1 << 40,) * 100_000, "fp", "arrow", 1, b"")
    assert decode_message(FrameType.DATASET_INFO, encode_message(FrameType.DATASET_INFO, info)) == info


def test_long_errors_are_cut() -> None:
    text = "x" * (1 << 20)
    encoded = encode_message(FrameType.ERROR, ErrorMessage("bad_option", text, retry=False, fatal=False))
    assert decode_message(FrameType.ERROR, encoded).message.endswith("xxx ...")


def test_messages_that_are_too_long_are_a_local_error() -> None:
    with pytest.raises(LocalProtocolError, match="HELLO may be at most 65536 bytes, this one is 100"):
        ConnectionPair().client_sends(Hello("x" * 100_000))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (FrameType.END, EndOfStream()),
        (FrameType.ERROR, ErrorMessage("io", "no", True, False)),
        (FrameType.PONG, Pong(1)),
    ],
)
def test_frame_types(kind: FrameType, message: Any) -> None:
    assert frame_type(message) is kind


def test_a_fatal_flag_must_match_its_frame() -> None:
    payload = encode_message(FrameType.ERROR, ErrorMessage("io", "no", retry=True, fatal=False))
    with pytest.raises(RemoteProtocolError, match="an error with fatal=False came in a FATAL frame"):
        client_receives(ConnectionPair.greeted(), FrameType.FATAL, payload)


def test_a_spec_that_arrives_is_valid() -> None:
    bad = msgspec.to_builtins(SPEC) | {"rank": 7}
    with pytest.raises(RemoteProtocolError, match=r"the payload of OPEN does not decode: rank must be in .*got 7"):
        decode_message(FrameType.OPEN, msgspec.msgpack.encode([bad, None]))


@pytest.mark.parametrize(
    "dtype", ["O", "|O8", "<f4,O", "", "(3,)i4", "datetime64", "<U4", "f4\n", "S0", "<M8[fs2]", "f9"]
)
def test_only_plain_data_types_are_taken_from_a_peer(dtype: str) -> None:
    with pytest.raises(RemoteProtocolError, match="not one of ours"):
        check_fields([FieldSpec(name="x", kind="fixed", dtype=dtype)])


@pytest.mark.parametrize("dtype", ["|u1", "<f4", "<f2", "|b1", "?", "<M8[us]", "<m8[25s]", "|S7", "|V16", "<c8", "<i8"])
def test_plain_data_types_are_taken(dtype: str) -> None:
    check_fields([FieldSpec(name="x", kind="fixed", dtype=dtype, shape=(2, 3))])


def test_impossible_fields_are_refused() -> None:
    def field(**values: Any) -> FieldSpec:
        return FieldSpec(**({"name": "x", "kind": "fixed", "dtype": "<f8"} | values))

    for fields, complaint in (
        ([field(), field()], "twice"),
        ([field(shape=(-1,))], "impossible shape"),
        ([field(shape=(1,) * 33)], "impossible shape"),
        ([field(shape=(1 << 30, 1 << 30))], "impossible shape"),
        ([field(kind="ragged", shape=(2,))], "ragged and has a shape"),
    ):
        with pytest.raises(RemoteProtocolError, match=complaint):
            check_fields(fields)


def test_keepalive_and_goodbye_are_allowed_at_any_time() -> None:
    pair = streaming()
    pair.client_sends(Ping(1))
    pair.server_sends(Ping(2))
    pair.server_sends(Goodbye("draining"))
    assert pair.to_server() == [Ping(1)]
    assert pair.to_client() == [Ping(2), Goodbye("draining")]
    assert pair.client.state is pair.server.state is State.STREAMING


def test_the_end_of_bytes() -> None:
    for idle in (ConnectionPair.greeted().client, streaming().server):
        idle.eof()
        assert idle.state is State.CLOSED
    with pytest.raises(UnavailableError, match="the connection ended while streaming"):
        streaming().client.eof()
    pair = ConnectionPair.greeted()
    pair.server_sends(Ping(1))
    pair.to_client(7)
    with pytest.raises(UnavailableError, match="in the middle of a frame"):
        pair.client.eof()


def test_filled_is_told_what_was_filled() -> None:
    end = ServerEnd()
    assert len(end.want()) == HEADER_BYTES
    for count in (0, HEADER_BYTES + 1):
        with pytest.raises(LocalProtocolError, match=r"filled must be told 1 .. 32 bytes, got"):
            end.filled(count)
    assert repr(end) == "ServerEnd(new, credits=0)"
