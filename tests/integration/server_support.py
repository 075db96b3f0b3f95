"""What the daemon's tests share: a client of plain blocking sockets, a fake reader, a service in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace, TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import uvloop

from fastio.errors import StoreError
from fastio.layout import batch_layout, view_batch
from fastio.reader import Reader
from fastio.spec import FieldSpec, StreamSpec
from fastio.wire import BatchReceived, ClientEnd, State
from fastio.wire.messages import BatchDescriptor, Credit, DatasetInfo, EndOfStream, Hello, Opened, OpenStream, Welcome
from fastio_server.logs import configure_logs
from fastio_server.service import Limits, Service
from fastio_server.session import Terms
from fastio_server.streams import Streams

TIMEOUT_S = 20.0


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Returns when ``condition`` holds; fails after a while."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, f"not within {timeout_s} s: {what}"
        threading.Event().wait(0.005)


class Peer:
    """A client that does one thing at a time, with a timeout on each."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(TIMEOUT_S)
        self.end = ClientEnd(lambda size: memoryview(bytearray(size)))

    @classmethod
    def connect(cls, url: str, token: str | None = None) -> Peer:
        """Connects and says HELLO; the WELCOME is still to be received."""
        scheme, _, rest = url.partition("://")
        if scheme == "fastio+unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(TIMEOUT_S)
            sock.connect("\0" + rest[1:] if rest.startswith("@") else rest)
        else:
            host, _, port = rest.rpartition(":")
            sock = socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S)
        peer = cls(sock)
        peer.send(Hello("test", token))
        return peer

    @classmethod
    def welcomed(cls, url: str, token: str | None = None) -> Peer:
        peer = cls.connect(url, token)
        peer.expect(Welcome)
        return peer

    def send(self, message: Any) -> None:
        self.sock.sendall(self.end.send(message))

    def receive(self) -> Any:
        """The next message; None at the end of the connection."""
        while True:
            if self.end.state is State.CLOSED:
                assert self.sock.recv(1) == b"", "something came after the last word"
                return None
            count = self.sock.recv_into(self.end.want())
            if not count:
                return None
            for event in self.end.filled(count):
                return event

    def expect(self, kind: type) -> Any:
        message = self.receive()
        assert isinstance(message, kind), f"wanted {kind.__name__}, got {message!r}"
        return message

    def open(self, spec: StreamSpec, credits: int = 1 << 19) -> Opened:
        self.send(OpenStream(spec))
        if credits:
            self.credit(credits)
        opened = self.expect(Opened)
        assert isinstance(opened, Opened)
        return opened

    def credit(self, batches: int) -> None:
        self.send(Credit(batches))

    def batches(self) -> Iterator[BatchReceived]:
        """Every batch until the end of the stream."""
        while True:
            message = self.receive()
            if isinstance(message, EndOfStream):
                return
            assert isinstance(message, BatchReceived), message
            yield message

    def ids(self, opened: Opened) -> list[int]:
        """The record ids of all batches until the end of the stream, in order."""
        found: list[int] = []
        for batch in self.batches():
            ids_B, _ = view_batch(opened.fields, batch.layout, np.frombuffer(batch.payload, np.uint8))
            found += ids_B.tolist()
        return found

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


FIELDS = (FieldSpec(name="x", kind="fixed", dtype="|u1", shape=(1000,)),)
RECORDS = 10_000
INFO = DatasetInfo("fake", RECORDS, FIELDS, (RECORDS * 1000,), "fp", "fake", 1, b"")


class FakeBatch:
    """Record ids in sequence, and a value that says which step it belongs to."""

    def __init__(self, stream: FakeStream, step: int) -> None:
        spec = stream.spec
        ids_B = np.arange(step * spec.batch_size, min((step + 1) * spec.batch_size, RECORDS))
        layout = batch_layout(FIELDS, len(ids_B), ())
        payload = np.full(layout.payload_bytes, step % 251, dtype=np.uint8)
        payload[: 8 * len(ids_B)] = ids_B.view(np.uint8)
        self.descriptor = BatchDescriptor(step, spec.epoch, len(ids_B), ())
        self.payload_bytes = layout.payload_bytes
        self.buffers = self._pieces(payload)
        self._stream = stream

    def release(self) -> None:
        self._stream.released.append(self.descriptor.step)
        self.buffers.close()

    def _pieces(self, payload: npt.NDArray[np.uint8]) -> Generator[memoryview, None, None]:
        """As the reader does it: through one scratch buffer, in whichever thread asks."""
        scratch = np.empty(100_000, dtype=np.uint8)
        for start in range(0, len(payload), len(scratch)):
            if self._stream.broken_at == (self.descriptor.step, start):
                raise StoreError("went away while it was sent")
            piece = payload[start : start + len(scratch)]
            scratch[: len(piece)] = piece
            yield scratch[: len(piece)].data


class FakeStream:
    """Batches become ready when the test (or ``ready_now``) says so."""

    fields = FIELDS

    def __init__(self, spec: StreamSpec, wake: Callable[[], None], ready_now: int | None) -> None:
        self.spec = spec
        self.steps = -(-RECORDS // spec.batch_size)
        self.wake = wake
        self.ready = self.steps if ready_now is None else ready_now
        self.taken = spec.first_step
        self.released: deque[int] = deque()
        self.error: Exception | None = None
        self.broken_at: tuple[int, int] | None = None
        self.closed = threading.Event()

    def take(self) -> FakeBatch | None:
        if self.error is not None:
            raise self.error
        if self.taken >= min(self.ready, self.steps):
            return None
        self.taken += 1
        return FakeBatch(self, self.taken - 1)

    @property
    def finished(self) -> bool:
        return self.taken >= self.steps

    def close(self) -> None:
        assert not self.closed.is_set(), "closed twice"
        self.closed.set()

    def statistics(self) -> FakeStatistics:
        return FakeStatistics(self.taken)

    def make_ready(self, count: int) -> None:
        """From the test's thread, as a reader thread would."""
        self.ready = count
        self.wake()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.wake()


@dataclass
class FakeStatistics:
    batches: int


class FakeReader:
    """Opens fake streams; ``streams`` holds all of them."""

    def __init__(self) -> None:
        self.streams: list[FakeStream] = []
        self.ready_now: int | None = None
        self.error: Exception | None = None
        self.may_open = threading.Event()
        self.may_open.set()

    def open_stream(
        self, dataset: object, spec: StreamSpec, wake: Callable[[], None], *, late_reads: bool
    ) -> FakeStream:
        assert late_reads, "the buffers are gone through once, in a sender thread"
        assert self.may_open.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        self.streams.append(FakeStream(spec, wake, self.ready_now))
        return self.streams[-1]

    def unmap_idle(self) -> None:
        pass


class LocalService:
    """A service over a fake reader, on a uvloop in a thread of this process."""

    def __init__(self, *, memory_bytes: int = 1 << 30, limits: Limits | None = None, **terms: Any) -> None:
        self.reader = FakeReader()
        self.terms = Terms(
            **{
                "server": "test",
                "catalogue": {"fake": INFO},
                "keepalive_s": 30.0,
                "max_window_bytes": 1 << 30,
                **terms,
            }
        )
        self._memory_bytes = memory_bytes
        self._limits = limits or Limits(max_connections=64, sender_threads=2)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self._listener = listener
        self.url = "fastio://{}:{}".format(*listener.getsockname())
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run)
        self._drain_s = 0.0
        self._draining = False

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        datasets: Any = {"fake": SimpleNamespace()}
        self.streams = Streams(cast(Reader, self.reader), datasets, self._memory_bytes)
        log = configure_logs("error", "json")
        self.service = Service([self._listener], self.terms, self.streams, self._limits, log)
        self.service.start()
        self._started.set_result(None)
        await self._stop.wait()
        await self.service.drain("test", self._drain_s)
        self.streams.shutdown()

    def start(self) -> None:
        self._thread.start()
        self._started.result(TIMEOUT_S)

    def begin_drain(self, drain_s: float) -> None:
        if not self._draining:
            self._draining, self._drain_s = True, drain_s
            self.loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the service did not end"

    def statistics(self) -> dict[str, Any]:
        return dict(self.service.statistics())

    @property
    def stream(self) -> FakeStream:
        return self.reader.streams[-1]


@contextmanager
def local_service(**options: Any) -> Iterator[LocalService]:
    """A running service; every stream is closed and every connection gone at the end."""
    service = LocalService(**options)
    service.start()
    try:
        yield service
    finally:
        service.begin_drain(0)
        service.join()
    assert all(stream.closed.is_set() for stream in service.reader.streams)
    assert service.statistics()["window_bytes"] == 0


def spec(**changes: Any) -> StreamSpec:
    """A stream of ten batches of a thousand records, 1 MB each."""
    return StreamSpec(**{"dataset": "fake", "batch_size": 1000, **changes})


__all__ = [
    "FIELDS",
    "INFO",
    "RECORDS",
    "TIMEOUT_S",
    "FakeReader",
    "FakeStream",
    "LocalService",
    "Peer",
    "local_service",
    "spec",
    "wait_until",
]
