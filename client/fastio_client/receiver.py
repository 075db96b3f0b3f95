"""Receives a stream of batches in a thread, and begins anew where a connection broke.

Frames are read straight into leased memory, and finished batches handed over. What was received stays valid when the
connection breaks: the next one opens the same stream at the first step that has not been handed over, so the consumer
notices a delay and nothing else.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from fastio.errors import RemoteProtocolError, UnavailableError
from fastio.spec import StreamSpec
from fastio.wire import BatchReceived
from fastio.wire.messages import EndOfStream, Opened, OpenStream
from fastio_client.backoff import delays_s
from fastio_client.batch import Batch, BatchSource, make_batch
from fastio_client.connection import Connection
from fastio_client.flow import Flow
from fastio_client.memory import SlotPool

__all__ = ["Connector", "Receiver", "StreamPlan"]

_log = logging.getLogger("fastio_client")

Connector = Callable[[Callable[[int], memoryview], Callable[[socket.socket], None]], Connection]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """What a stream must deliver.

    Attributes:
        spec: the stream.
        fingerprint: of the dataset; another one ends the stream.
        steps: that the rank takes, over all its workers.
        step_offset: of the epoch's steps before the stream's first.
        records: N.
        arrow_schema: of the dataset.
        depth: batches received ahead.
        name: server and dataset, for messages.
        reconnect_timeout_s: how long a broken connection is tried anew.
    """

    spec: StreamSpec
    fingerprint: str
    steps: int
    step_offset: int
    records: int
    arrow_schema: bytes
    depth: int
    name: str
    reconnect_timeout_s: float


class _Stopped(Exception):
    """The consumer wants no more."""


class Receiver:
    """The receiving side of a stream. ``run`` is the thread's; ``stop`` may be called by anyone.

    Args:
        plan: what to receive.
        connect: makes a connection.
        pool: memory for batches.
        flow: how many may come.
        deliver: takes each batch, at the end None, or the error that ended it all.

    Attributes:
        reconnects: connections that broke and were made anew.
        next_step: the first step that was not handed over.
    """

    def __init__(
        self,
        plan: StreamPlan,
        connect: Connector,
        pool: SlotPool,
        flow: Flow,
        deliver: Callable[[Batch | BaseException | None], None],
    ) -> None:
        self.reconnects = 0
        self.next_step = plan.spec.first_step
        self._plan = plan
        self._connect = connect
        self._pool = pool
        self._flow = flow
        self._deliver = deliver
        self._source: BatchSource | None = None
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None
        self._pid = os.getpid()

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopped.is_set()

    def run(self) -> None:
        """Receives until the end of the stream, an error, or ``stop``."""
        try:
            self._receive_with_retries()
            self._deliver(None)
        except _Stopped:
            pass
        except BaseException as error:
            if not self.stopped:
                self._deliver(error)

    def stop(self) -> None:
        """Makes ``run`` return soon, wherever it waits. May run in a finalizer: waits for no lock of ours."""
        self._stopped.set()
        sock = self._socket
        if sock is None:
            return
        if self._pid == os.getpid():
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        else:
            # After a fork the connection is the parent's: shutdown would end it there as well.
            sock.close()

    def place(self) -> str:
        """Where the stream is, for messages."""
        plan = self._plan
        step = plan.step_offset + self.next_step
        return f"step {step} of epoch {plan.spec.epoch} of {plan.name} (rank {plan.spec.rank})"

    def __repr__(self) -> str:
        return f"<Receiver at {self.place()}>"

    def _receive_with_retries(self) -> None:
        waits = self._waits()
        while True:
            before = self.next_step
            try:
                self._receive_all()
                return
            except UnavailableError as error:
                if self.stopped:
                    raise _Stopped from None
                if self.next_step > before:
                    waits = self._waits()  # it worked for a while: patience begins anew
                self._wait(waits, error)
                self.reconnects += 1

    def _waits(self) -> Iterator[float]:
        """Waits before the next attempts, for as long as the patience lasts."""
        deadline_s = time.monotonic() + self._plan.reconnect_timeout_s
        for delay_s in delays_s(random.Random()):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return
            yield min(delay_s, left_s)

    def _wait(self, waits: Iterator[float], error: UnavailableError) -> None:
        delay_s = next(waits, None)
        if delay_s is None:
            raise UnavailableError(
                f"gave up on {self._plan.name} after {self._plan.reconnect_timeout_s:g} s without success, at "
                f"{self.place()}; the last attempt: {error}",
                kind=error.kind,
            ) from error
        _log.warning("%s; trying again in %.2f s at %s", error, delay_s, self.place())
        if self._stopped.wait(delay_s):
            raise _Stopped

    def _receive_all(self) -> None:
        """Receives everything from the next step to the end over one connection."""
        connection = self._connect(self._allocate, self._started)
        try:
            self._open(connection)
            while True:
                event = connection.receive()
                if isinstance(event, EndOfStream):
                    return
                if not isinstance(event, BatchReceived):
                    raise RemoteProtocolError(f"{self._plan.name}: a batch was due, got {event!r}")
                self._arrived(event)
        finally:
            self._flow.detach()
            self._socket = None
            connection.close()

    def _started(self, sock: socket.socket) -> None:
        self._socket = sock
        if self.stopped:
            raise _Stopped

    def _allocate(self, length_bytes: int) -> memoryview:
        return memoryview(self._pool.lease(length_bytes))  # type: ignore[arg-type]

    def _open(self, connection: Connection) -> None:
        plan = self._plan
        spec = replace(plan.spec, first_step=self.next_step)
        self._flow.open(connection, OpenStream(spec, plan.fingerprint))
        opened = connection.receive()
        if not isinstance(opened, Opened):
            raise RemoteProtocolError(f"{plan.name}: OPENED was due, got {opened!r}")
        if (opened.steps, opened.records) != (plan.steps, plan.records):
            raise RemoteProtocolError(
                f"{plan.name}: {plan.steps} steps of {plan.records} records were due, the server has {opened.steps} of "
                f"{opened.records}; install the same version of fastio on both"
            )
        if self._source is None:
            self._source = BatchSource(opened.fields, opened.records, plan.arrow_schema)
        elif self._source.fields != opened.fields:
            raise RemoteProtocolError(f"{plan.name}: the fields changed while the connection was broken")

    def _arrived(self, event: BatchReceived) -> None:
        assert self._source is not None
        step = event.descriptor.step
        batch = make_batch(
            self._source,
            event.layout,
            event.payload,
            step=self._plan.step_offset + step,
            epoch=event.descriptor.epoch,
        )
        self._flow.arrived()
        self._deliver(batch)
        self.next_step = step + 1
