"""Spans of files among the buffers of a frame: sent from the page cache, or read where that is not possible."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastio.errors import ErrorKind, StoreError
from fastio.files import FileSpan, OpenFile
from fastio.formats.base import FileRef
from fastio_server.sending import Frame, Outgoing, send_some

SIZE = 300_000


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    if request.param == "unix":
        near, far = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
    near.setblocking(False)
    far.settimeout(10)
    with near, far:
        yield near, far


@pytest.fixture
def file(tmp_path: Path) -> Iterator[OpenFile]:
    path = tmp_path / "data"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8).tobytes())
    status = path.stat()
    opened = OpenFile(FileRef(path, status.st_size, status.st_mtime_ns), os.open(path, os.O_RDONLY))
    yield opened
    opened.close()


def span(file: OpenFile, offset: int, length: int) -> FileSpan:
    return FileSpan(file, offset, length, lambda error: StoreError(f"record 7: {error}", kind=error.kind))


def sent(near: socket.socket, far: socket.socket, outgoing: Outgoing, count: int) -> bytes:
    parts = bytearray()

    def receive() -> None:
        while len(parts) < count:
            part = far.recv(1 << 16)
            assert part, "the peer closed"
            parts.extend(part)

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        while not send_some(near, outgoing, 1.0):
            pass
    finally:
        thread.join(10)
    return bytes(parts)


def test_memory_and_spans_arrive_in_order(pair: tuple[socket.socket, socket.socket], file: OpenFile) -> None:
    data = file.ref.path.read_bytes()
    frames: list[Frame] = [
        (b"head", [b"ids", span(file, 10, 200_000), span(file, 5, 3), memoryview(b"tail")]),
        (b"next", [span(file, 250_000, 50_000)]),
    ]
    wanted = b"headids" + data[10:200_010] + data[5:8] + b"tail" + b"next" + data[250_000:]
    outgoing = Outgoing(frames)
    assert sent(*pair, outgoing, len(wanted)) == wanted
    assert outgoing.sent_bytes == len(wanted)


def test_where_sendfile_is_refused_the_bytes_are_read(
    pair: tuple[socket.socket, socket.socket], file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "sendfile", refuse)
    outgoing = Outgoing([(b"", [span(file, 1, SIZE - 1)])])
    assert sent(*pair, outgoing, SIZE - 1) == file.ref.path.read_bytes()[1:]


def test_an_error_of_the_device_names_the_record(
    pair: tuple[socket.socket, socket.socket], file: OpenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "sendfile", fail)
    with pytest.raises(StoreError, match=r"record 7: reading .*data failed: Input/output error") as caught:
        send_some(pair[0], Outgoing([(b"", [span(file, 0, 10)])]), 1.0)
    assert caught.value.kind is ErrorKind.IO


def test_an_early_end_of_the_file_names_the_record(pair: tuple[socket.socket, socket.socket], file: OpenFile) -> None:
    os.truncate(file.ref.path, 100)
    with pytest.raises(StoreError, match=r"record 7: .*data ends before byte 150") as caught:
        send_some(pair[0], Outgoing([(b"", [span(file, 50, 100)])]), 1.0)
    assert caught.value.kind is ErrorKind.TRUNCATED


def test_a_broken_connection_is_the_connections_error(
    pair: tuple[socket.socket, socket.socket], file: OpenFile
) -> None:
    near, far = pair
    far.close()
    frames: list[Frame] = [(b"", [span(file, 0, SIZE)]) for _ in range(100)]
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_some(near, Outgoing(frames), 1.0)
