"""Sending from threads: every byte once and in order, and no thread held by a peer that does not read."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastio.errors import StoreError
from fastio_server.sending import Outgoing, send_some


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(10)
    with near, far:
        yield near, far


def read_all(sock: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = sock.recv(min(1 << 16, count - len(parts)))
        assert part, "the peer closed"
        parts += part
    return bytes(parts)


@given(
    st.lists(st.tuples(st.binary(max_size=9), st.lists(st.binary(max_size=20), max_size=9)), max_size=6),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_advancing_in_any_steps_goes_through_every_byte(
    frames: list[tuple[bytes, list[bytes]]], steps: list[int]
) -> None:
    outgoing = Outgoing(frames)
    seen = b""
    while window := outgoing.window():
        offered = b"".join(map(bytes, window))
        taken = min(len(offered), steps[len(seen) % len(steps)])
        seen += offered[:taken]
        outgoing.advance(taken)
    assert seen == b"".join(head + b"".join(buffers) for head, buffers in frames)
    assert outgoing.sent_bytes == len(seen)


def test_thousands_of_buffers_of_any_type(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    arrays = [np.arange(size, dtype=np.int64) for size in (0, 1, 7, 100)] * 1000
    outgoing = Outgoing([(b"header", (array.data for array in arrays))])
    wanted = b"header" + b"".join(array.tobytes() for array in arrays)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read_all(far, len(wanted))))
    reader.start()
    assert send_some(near, outgoing, 10.0)
    reader.join(10)
    assert got == [wanted]


def test_a_peer_that_does_not_read_gets_the_thread_for_no_longer_than_the_patience(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    data = bytes(range(256)) * 40_000
    outgoing = Outgoing([(data, ())])
    began_s = time.monotonic()
    assert not send_some(near, outgoing, 0.05)
    assert time.monotonic() - began_s < 5
    assert 0 < outgoing.sent_bytes < len(data)
    assert not send_some(near, outgoing, 0), "0 never waits"
    got = read_all(far, outgoing.sent_bytes)
    while len(got) < len(data):
        before = outgoing.sent_bytes
        send_some(near, outgoing, 0)
        got += read_all(far, outgoing.sent_bytes - before)
    assert got == data


def test_a_trickling_peer_does_not_hold_the_thread_either(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.01):
            far.recv(4096)

    reader = threading.Thread(target=trickle)
    reader.start()
    try:
        assert not send_some(near, Outgoing([(bytes(50 << 20), ())]), 0.1)
    finally:
        stop.set()
        reader.join(10)


def test_a_peer_that_left_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.close()
    with pytest.raises(OSError, match=r"[Pp]ipe|reset"):
        send_some(near, Outgoing([(b"x" * 100, ())]), 0)


def test_one_scratch_buffer_may_serve_for_all(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    scratch = bytearray(100_000)

    def buffers() -> Iterator[memoryview]:
        for value in range(100):
            scratch[:] = bytes([value]) * len(scratch)
            yield memoryview(scratch)

    wanted = b"".join(bytes([value]) * len(scratch) for value in range(100))
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read_all(far, len(wanted))))
    reader.start()
    outgoing = Outgoing([(b"", buffers())])
    while not send_some(near, outgoing, 0.001):
        pass
    reader.join(10)
    assert got == [wanted]


def test_a_buffer_that_cannot_be_had(pair: tuple[socket.socket, socket.socket]) -> None:
    def buffers() -> Iterator[memoryview]:
        yield memoryview(b"abc")
        raise StoreError("the file is gone")

    with pytest.raises(StoreError, match="gone"):
        send_some(pair[0], Outgoing([(b"head", buffers())]), 1)
    assert read_all(pair[1], 7) == b"headabc"


def test_nothing_to_send_is_done_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    assert send_some(pair[0], Outgoing(()), 0)
    assert send_some(pair[0], Outgoing([(b"", [b"", memoryview(b"")]), (b"", ())]), 0)
    assert repr(Outgoing([(b"ab", ())])) == "Outgoing(0 bytes sent)"
