"""A service over real sockets and a fake reader: who is served, who is not stalled, what is released."""

from __future__ import annotations

import socket
import struct

import pytest

from fastio.errors import ErrorKind, StoreError, UnavailableError
from fastio.wire.frames import FrameType, Header, encode_header
from fastio.wire.messages import (
    CloseStream,
    Credit,
    Datasets,
    EndOfStream,
    ErrorMessage,
    Goodbye,
    Hello,
    ListDatasets,
    OpenStream,
    Ping,
    Pong,
    StreamClosed,
    Welcome,
)
from fastio_server.credentials import Credentials
from fastio_server.service import Limits
from tests.integration.server_support import RECORDS, LocalService, Peer, local_service, spec, wait_until


def stop_reading(url: str) -> Peer:
    """A peer with a small receive buffer that has asked for everything and reads nothing."""
    host, _, port = url.removeprefix("fastio://").rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.connect((host, int(port)))
    peer = Peer(sock)
    peer.send(Hello("stopped"))
    peer.expect(Welcome)
    peer.send(OpenStream(spec()))
    peer.send(Credit(1000))
    return peer


def blocked(service: LocalService, streams: int) -> bool:
    """Whether that many streams have a batch on its way which the peer does not take."""
    return sum(stream.taken > len(stream.released) for stream in service.reader.streams) == streams


def test_a_whole_stream_and_another_on_the_same_connection() -> None:
    with local_service() as service, Peer.welcomed(service.url) as peer:
        for _ in range(2):
            opened = peer.open(spec())
            assert (opened.steps, opened.records) == (10, RECORDS)
            assert peer.ids(opened) == list(range(RECORDS))
        peer.send(ListDatasets())
        assert peer.expect(Datasets).names == ("fake",)
        assert list(service.reader.streams[0].released) == list(range(10))


def test_batches_wait_for_credit() -> None:
    with local_service() as service, Peer.welcomed(service.url) as peer:
        peer.open(spec(), credits=2)
        peer.receive()
        peer.receive()
        peer.send(Ping(1))
        assert peer.expect(Pong) == Pong(1), "nothing else came in between"
        peer.send(Credit(8))
        assert len(list(peer.batches())) == 8


def test_batches_are_sent_as_they_become_ready() -> None:
    with local_service() as service, Peer.welcomed(service.url) as peer:
        service.reader.ready_now = 0
        peer.open(spec())
        for step in range(10):
            service.stream.make_ready(step + 1)
            assert peer.receive().descriptor.step == step
        peer.expect(EndOfStream)


def test_close_in_the_middle_of_a_stream() -> None:
    with local_service() as service, Peer.welcomed(service.url) as peer:
        peer.open(spec(), credits=1)
        peer.receive()
        peer.send(CloseStream())
        peer.expect(StreamClosed)
        assert service.stream.closed.is_set()
        assert len(peer.ids(peer.open(spec()))) == RECORDS


def test_close_while_batches_are_on_their_way() -> None:
    with local_service() as service, Peer.welcomed(service.url) as peer:
        peer.open(spec())
        peer.send(CloseStream())
        message = peer.receive()
        while not isinstance(message, StreamClosed):
            message = peer.receive()
        assert len(peer.ids(peer.open(spec()))) == RECORDS
        assert service.reader.streams[0].closed.is_set()


def test_close_while_the_stream_is_being_opened() -> None:
    with local_service() as service, Peer.welcomed(service.url) as peer:
        service.reader.may_open.clear()
        peer.send(OpenStream(spec()))
        peer.send(CloseStream())
        peer.send(Ping(1))
        peer.expect(Pong)
        service.reader.may_open.set()
        peer.expect(StreamClosed)
        wait_until(lambda: service.streams.statistics()["open_streams"] == 0, "the late stream is closed")
        assert service.stream.closed.is_set()


def test_leaving_while_the_stream_is_being_opened() -> None:
    with local_service() as service:
        with Peer.welcomed(service.url) as peer:
            service.reader.may_open.clear()
            peer.send(OpenStream(spec()))
            peer.send(Ping(1))
            peer.expect(Pong)
        service.reader.may_open.set()
        wait_until(lambda: service.statistics()["connections"] == 0, "the connection is gone")
        assert service.streams.statistics()["open_streams"] == 0


@pytest.mark.parametrize("broken", [StoreError("shard 3 is bad", kind=ErrorKind.CORRUPT), ZeroDivisionError("oops")])
def test_a_reader_that_fails(broken: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    kind = broken.kind if isinstance(broken, StoreError) else ErrorKind.INTERNAL
    with local_service() as service, Peer.welcomed(service.url) as peer:
        service.reader.error = broken
        peer.send(OpenStream(spec()))
        error = peer.expect(ErrorMessage)
        assert (error.kind, error.fatal) == (kind, False)
        service.reader.error = None
        service.reader.ready_now = 1
        peer.open(spec())
        peer.receive()
        service.stream.fail(broken)
        error = peer.expect(ErrorMessage)
        assert (error.kind, error.fatal) == (kind, False)
        assert str(broken) in error.message
        service.reader.ready_now = None
        assert len(peer.ids(peer.open(spec()))) == RECORDS


def test_a_batch_that_cannot_be_completed_ends_the_connection() -> None:
    with local_service() as service, Peer.welcomed(service.url) as peer:
        service.reader.ready_now = 1
        peer.open(spec())
        peer.receive()
        service.stream.broken_at = (1, 500_000)
        service.stream.make_ready(10)
        assert peer.receive() is None
        with pytest.raises(UnavailableError, match="in the middle of a frame"):
            peer.end.eof()
        wait_until(lambda: list(service.stream.released) == list(range(service.stream.taken)), "all are released")
        assert service.stream.closed.is_set()


def test_windows_are_bounded_together() -> None:
    with (
        local_service(memory_bytes=100) as service,
        Peer.welcomed(service.url) as first,
        Peer.welcomed(service.url) as second,
    ):
        service.reader.ready_now = 0
        first.open(spec(window_bytes=60))
        second.send(OpenStream(spec(window_bytes=60)))
        error = second.expect(ErrorMessage)
        assert (error.kind, error.retry, error.fatal) == (ErrorKind.OVERLOADED, True, False)
        assert "40 of 100 bytes" in error.message
        assert "60" in error.message
        first.send(CloseStream())
        first.expect(StreamClosed)
        second.open(spec(window_bytes=60))


def test_a_client_that_reads_nothing_stalls_nobody() -> None:
    # Two sender threads, three clients that stopped: without hand-backs to the loop nobody would be served.
    with local_service() as service:
        stopped = [stop_reading(service.url) for _ in range(3)]
        wait_until(lambda: blocked(service, 3), "three clients are stuck")
        with Peer.welcomed(service.url) as peer:
            for _ in range(3):
                assert len(peer.ids(peer.open(spec()))) == RECORDS
        for peer in stopped:
            peer.close()
        wait_until(lambda: service.statistics()["connections"] == 0, "the stuck connections are gone")
        assert service.statistics()["window_bytes"] == 0


def test_a_client_that_stopped_and_goes_on_gets_everything() -> None:
    with local_service() as service:
        peer = stop_reading(service.url)
        wait_until(lambda: blocked(service, 1), "the client is stuck")
        opened = peer.receive()
        assert peer.ids(opened) == list(range(RECORDS))
        peer.close()


def test_a_client_that_reads_no_answers_is_not_listened_to() -> None:
    with local_service() as service:
        peer = stop_reading(service.url)
        wait_until(lambda: blocked(service, 1), "the client is stuck")
        peer.sock.settimeout(0.5)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        pings = b"".join(peer.end.send(Ping(nonce)) for nonce in range(250_000))
        with pytest.raises(TimeoutError):
            peer.sock.sendall(pings)
        peer.close()


def test_a_silent_peer_is_asked_and_dropped() -> None:
    with local_service(keepalive_s=0.15) as service, Peer.welcomed(service.url) as peer:
        service.reader.ready_now = 0
        peer.open(spec())
        peer.expect(Ping)
        while (message := peer.receive()) is not None:
            assert isinstance(message, Ping)
        assert service.stream.closed.is_set()


def test_a_peer_that_answers_is_kept() -> None:
    with local_service(keepalive_s=0.1) as service, Peer.welcomed(service.url) as peer:
        for _ in range(8):
            peer.send(Pong(peer.expect(Ping).nonce))
        peer.send(ListDatasets())
        assert peer.expect(Datasets)


def test_a_stopped_client_is_dropped_in_the_middle_of_a_batch() -> None:
    with local_service(keepalive_s=0.15) as service:
        peer = stop_reading(service.url)
        wait_until(lambda: service.reader.streams and service.stream.closed.is_set(), "the silent peer is dropped")
        wait_until(lambda: service.statistics()["connections"] == 0, "its connection is gone")
        assert service.stream.taken == len(service.stream.released), "every batch was released"
        peer.close()


def test_who_says_no_hello_is_dropped() -> None:
    with local_service(keepalive_s=0.1) as service:
        host, _, port = service.url.removeprefix("fastio://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            assert sock.recv(1) == b""


def test_a_wrong_token() -> None:
    with local_service(credentials=Credentials({"a": "s3cret"})) as service:
        for token in (None, "guess"):
            with Peer.connect(service.url, token) as peer:
                error = peer.expect(ErrorMessage)
                assert (error.kind, error.fatal) == (ErrorKind.BAD_CREDENTIALS, True)
                assert peer.receive() is None
        Peer.welcomed(service.url, "s3cret").close()


def test_another_protocol_version_is_told_both_numbers() -> None:
    with local_service() as service, Peer.connect(service.url) as _:
        host, _, port = service.url.removeprefix("fastio://").rpartition(":")
        peer = Peer(socket.create_connection((host, int(port))))
        # A frame of version 9 with a long payload: the rest of it must not destroy the answer on its way.
        header = encode_header(Header(type=FrameType.HELLO, sequence=0, payload_bytes=60_000, major=9))
        peer.end.send(Hello("old"))
        peer.sock.sendall(header + bytes(60_000))
        error = peer.expect(ErrorMessage)
        assert (error.kind, error.fatal) == (ErrorKind.VERSION_MISMATCH, True)
        assert "9.0" in error.message
        assert "1.0" in error.message
        assert peer.receive() is None
        peer.close()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\nHost: example\r\n\r\n", bytes(64), b"\xff" * 5000], ids=["http", "zeros", "ones"]
)
def test_what_is_not_fastio_at_all(garbage: bytes) -> None:
    with local_service() as service:
        host, _, port = service.url.removeprefix("fastio://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(garbage)
            answer = b""
            while part := sock.recv(1000):
                answer += part
            assert b"bad_frame" in answer
        Peer.welcomed(service.url).close()


def test_a_reset_in_the_middle_of_a_stream_frees_it() -> None:
    with local_service() as service:
        peer = stop_reading(service.url)
        wait_until(lambda: blocked(service, 1), "the client is stuck")
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        wait_until(lambda: service.statistics()["connections"] == 0, "the connection is gone")
        assert service.statistics()["window_bytes"] == 0
        assert service.stream.closed.is_set()


def test_connections_beyond_the_limit_wait_their_turn() -> None:
    with local_service(limits=Limits(max_connections=2, sender_threads=1)) as service:
        first, second = Peer.welcomed(service.url), Peer.welcomed(service.url)
        third = Peer.connect(service.url)
        first.send(Ping(1))
        first.expect(Pong)
        assert service.statistics()["accepted"] == 2
        first.close()
        third.expect(Welcome)
        second.close()
        third.close()


def test_draining_lets_streams_finish_and_opens_nothing_new() -> None:
    with local_service() as service:
        idle, busy = Peer.welcomed(service.url), Peer.welcomed(service.url)
        service.reader.ready_now = 1
        opened = busy.open(spec())
        busy.receive()
        service.begin_drain(20)
        idle.expect(Goodbye)
        assert idle.receive() is None
        idle.close()
        busy.expect(Goodbye)
        service.stream.make_ready(10)
        assert len(busy.ids(opened)) == RECORDS - 1000
        assert busy.receive() is None
        busy.close()
        service.join()


def test_draining_cuts_what_does_not_finish() -> None:
    with local_service() as service:
        service.reader.ready_now = 1
        peer = Peer.welcomed(service.url)
        peer.open(spec())
        peer.receive()
        service.begin_drain(0.1)
        peer.expect(Goodbye)
        assert peer.receive() is None
        service.join()
        assert service.stream.closed.is_set()
        peer.close()


def test_statistics_say_what_was_sent() -> None:
    with local_service() as service:
        with Peer.welcomed(service.url) as peer:
            peer.ids(peer.open(spec()))
        wait_until(lambda: service.statistics()["connections"] == 0, "the connection is gone")
        found = service.statistics()
        assert (found["streams"], found["batches"]) == (1, 10)
        assert found["sent_bytes"] > RECORDS * 1000
        assert repr(service.service) == "Service(0 connections)"
