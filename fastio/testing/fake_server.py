"""A daemon in a thread, for testing clients: real protocol, real order, made-up records, and faults on demand.

The records of a :class:`FakeDataset` follow from their ids, so that a test can check what it gets. What goes wrong is
told by a list of :class:`Fault`, one per connection in the order in which they are made; later connections are sound.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from fastio.errors import FastioError, RequestError
from fastio.extents import Int64Array
from fastio.layout import batch_layout
from fastio.order import EpochPlan, record_ids
from fastio.spec import FieldSpec, StreamSpec
from fastio.wire import ServerEnd, State
from fastio.wire.messages import (
    BatchDescriptor,
    CloseStream,
    DatasetInfo,
    Datasets,
    Describe,
    EndOfStream,
    ErrorMessage,
    Hello,
    ListDatasets,
    Opened,
    OpenStream,
    Ping,
    Pong,
    StreamClosed,
    Welcome,
)

__all__ = ["FakeDataset", "FakeServer", "Fault"]

NUMBER = FieldSpec(name="number", kind="fixed", dtype="<i8", nullable=True, arrow_type="int64")
WORD = FieldSpec(name="word", kind="ragged", dtype="|u1", text=True, arrow_type="string")


@dataclass(frozen=True, kw_only=True)
class FakeDataset:
    """Records made of their ids: ``number`` is the id (null where it is a multiple of 7), ``word`` the id in decimal,
    repeated ``id % 5`` times, or exactly ``word_bytes`` bytes.
    """

    records: int = 100
    word_bytes: int | None = None
    fingerprint: str = "fake"

    def info(self, name: str) -> DatasetInfo:
        """What a client is told."""
        word_bytes = 8 * self.records if self.word_bytes is None else self.word_bytes * self.records
        sizes = (8 * self.records, word_bytes)
        return DatasetInfo(name, self.records, (NUMBER, WORD), sizes, self.fingerprint, "fake", 1, b"")

    def fields(self, names: Sequence[str] | None) -> tuple[FieldSpec, ...]:
        """The fields asked for."""
        known = {field.name: field for field in (NUMBER, WORD)}
        if unknown := [name for name in names or () if name not in known]:
            raise RequestError(f"no field {unknown[0]!r}; there are: {', '.join(known)}")
        return tuple(known[name] for name in names or known)

    def word(self, record: int) -> bytes:
        """The field ``word`` of one record."""
        text = str(record).encode()
        return text * (record % 5) if self.word_bytes is None else text.ljust(self.word_bytes, b".")

    def batch(self, fields: Sequence[FieldSpec], ids_B: Int64Array) -> tuple[tuple[int, ...], bytearray]:
        """Ragged sizes and payload of a batch."""
        words = [self.word(int(record)) for record in ids_B]
        ragged_bytes = tuple(sum(map(len, words)) for field in fields if field.kind == "ragged")
        layout = batch_layout(fields, len(ids_B), ragged_bytes)
        payload = bytearray(layout.payload_bytes)
        room = np.frombuffer(payload, dtype=np.uint8)
        _put(room, 0, ids_B)
        for field, part in zip(fields, layout.fields, strict=True):
            if field.name == "number":
                present_B = ids_B % 7 != 0
                _put(room, part.mask_start or 0, present_B)
                _put(room, part.values_start, ids_B * present_B)
            else:
                _put(room, part.offsets_start or 0, np.cumsum([0, *map(len, words)], dtype=np.int64))
                _put(room, part.values_start, np.frombuffer(b"".join(words), dtype=np.uint8))
        return ragged_bytes, payload


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with one connection.

    Attributes:
        cut_after_bytes: the connection breaks after so many bytes were sent.
        silent_after_bytes: nothing is sent after so many bytes, not even answers to PING.
        refuse: the answer to HELLO.
        fail_open: the answer to OPEN.
        fail_at_step: (step, error): sent instead of this step's batch.
        first_bytes: sent instead of everything.
        shift_ids: added to the record ids of every batch: a server that lies.
    """

    cut_after_bytes: int | None = None
    silent_after_bytes: int | None = None
    refuse: ErrorMessage | None = None
    fail_open: ErrorMessage | None = None
    fail_at_step: tuple[int, ErrorMessage] | None = None
    first_bytes: bytes | None = None
    shift_ids: int = 0


class FakeServer:
    """Serves ``datasets`` on a loopback port until it is closed; a context manager.

    Attributes:
        address: ``HOST:PORT``.
        requests: every message that clients sent, with the number of its connection.
        connections: made so far.
    """

    def __init__(
        self, datasets: dict[str, FakeDataset], *, faults: Sequence[Fault] = (), token: str | None = None,
        keepalive_s: float = 10.0, max_window_bytes: int = 1 << 30,
    ) -> None:  # fmt: skip
        self.requests: list[tuple[int, Any]] = []
        self.connections = 0
        self.datasets = datasets
        self.token = token
        self.welcome = Welcome("fake", keepalive_s, max_window_bytes)
        self._faults = list(faults)
        self._sockets: set[socket.socket] = set()
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._threads = [threading.Thread(target=self._accept, name="fake server", daemon=True)]
        self._threads[0].start()

    def url(self, dataset: str) -> str:
        """Where a client finds ``dataset``."""
        return f"fastio://{self.address}/{dataset}"

    def cut_all(self) -> None:
        """Breaks every connection, now."""
        for sock in list(self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Breaks every connection and listens no more."""
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._closed:
                sock, _ = self._listener.accept()
                self._sockets.add(sock)
                fault = self._faults[self.connections] if self.connections < len(self._faults) else Fault()
                self.connections += 1
                served = _Served(self, sock, fault, self.connections - 1)
                thread = threading.Thread(target=served.run, name="fake connection", daemon=True)
                self._threads.append(thread)
                thread.start()


class _Served:
    """One connection of a :class:`FakeServer`."""

    def __init__(self, server: FakeServer, sock: socket.socket, fault: Fault, number: int) -> None:
        self._server = server
        self._sock = sock
        self._fault = fault
        self._number = number
        self._end = ServerEnd()
        self._sent_bytes = 0
        self._batches: Iterator[tuple[BatchDescriptor, bytearray]] = iter(())

    def run(self) -> None:
        try:
            if self._fault.first_bytes is not None:
                self._sock.sendall(self._fault.first_bytes)
            with suppress(OSError, FastioError):
                while self._end.state is not State.CLOSED:
                    self._step()
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        finally:
            self._server._sockets.discard(self._sock)
            self._sock.close()

    def _step(self) -> None:
        """Sends a batch if it may, and hears the client."""
        if self._end.can_send_batch:
            self._send_batch()
            if not select.select([self._sock], [], [], 0)[0]:
                return
        got = self._sock.recv_into(self._end.want())
        if not got:
            raise ConnectionResetError
        for message in self._end.filled(got):
            self._server.requests.append((self._number, message))
            self._answer(message)

    def _answer(self, message: Any) -> None:
        server = self._server
        match message:
            case Hello(token=token):
                wrong = ErrorMessage("bad_credentials", "a token is wanted", retry=False, fatal=True)
                refuse = self._fault.refuse or (wrong if server.token not in (None, token) else None)
                self._say(refuse or server.welcome)
            case ListDatasets():
                self._say(Datasets(tuple(sorted(server.datasets))))
            case Describe(dataset=name) if name in server.datasets:
                self._say(server.datasets[name].info(name))
            case Describe(dataset=name):
                names = ", ".join(sorted(server.datasets))
                self._say(ErrorMessage("unknown_dataset", f"no dataset {name!r}; there are: {names}", False, False))
            case OpenStream(spec=spec, fingerprint=fingerprint):
                self._open(spec, fingerprint)
            case CloseStream():
                self._say(StreamClosed())
            case Ping(nonce=nonce):
                self._say(Pong(nonce))

    def _open(self, spec: StreamSpec, fingerprint: str | None) -> None:
        dataset = self._server.datasets[spec.dataset]
        try:
            fields = dataset.fields(spec.fields)
            plan = EpochPlan(dataset.records, spec.start_records, spec.batch_size, spec.world_size, spec.tail)
            if fingerprint not in (None, dataset.fingerprint):
                raise RequestError(f"the dataset is {dataset.fingerprint}, wanted {fingerprint}")
        except RequestError as error:
            self._say(ErrorMessage(error.kind, str(error), retry=False, fatal=False))
            return
        if self._fault.fail_open is not None:
            self._say(self._fault.fail_open)
            return
        self._say(Opened(plan.steps, dataset.records, fields, dataset.fingerprint))
        self._batches = self._made(dataset, fields, spec, plan)
        if spec.first_step + (spec.worker - spec.first_step) % spec.workers >= plan.steps:
            self._say(EndOfStream())

    def _made(
        self, dataset: FakeDataset, fields: tuple[FieldSpec, ...], spec: StreamSpec, plan: EpochPlan
    ) -> Iterator[tuple[BatchDescriptor, bytearray]]:
        ids = record_ids(spec.order, dataset.records, spec.epoch)
        for step in range(spec.first_step, plan.steps):
            if step % spec.workers == spec.worker:
                ids_B = ids(*plan.bounds(step, spec.rank)) + self._fault.shift_ids
                ragged_bytes, payload = dataset.batch(fields, ids_B)
                yield BatchDescriptor(step, spec.epoch, len(ids_B), ragged_bytes), payload

    def _send_batch(self) -> None:
        found = next(self._batches, None)
        if found is None:
            self._say(EndOfStream())
            return
        descriptor, payload = found
        at, error = self._fault.fail_at_step or (None, None)
        if descriptor.step == at:
            self._say(error)
            return
        self._transmit(self._end.send_batch(descriptor, len(payload)))
        self._transmit(payload)

    def _say(self, message: Any) -> None:
        self._transmit(self._end.send(message))

    def _transmit(self, data: bytes | bytearray) -> None:
        before, self._sent_bytes = self._sent_bytes, self._sent_bytes + len(data)
        if self._fault.silent_after_bytes is not None and self._sent_bytes > self._fault.silent_after_bytes:
            return
        cut = self._fault.cut_after_bytes
        if cut is not None and self._sent_bytes > cut:
            self._sock.sendall(data[: max(0, cut - before)])
            raise ConnectionResetError
        self._sock.sendall(data)


def _put(room: np.ndarray[Any, Any], start: int, array: np.ndarray[Any, Any]) -> None:
    room[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
