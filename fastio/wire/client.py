"""The trainer's end of a connection. See :mod:`fastio.wire.ends`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastio.errors import LocalProtocolError, RemoteProtocolError
from fastio.layout import BatchLayout, batch_layout
from fastio.spec import FieldSpec, StreamSpec
from fastio.wire.codec import decode_descriptor
from fastio.wire.ends import End
from fastio.wire.frames import FrameType, Header
from fastio.wire.messages import BatchDescriptor, Credit, EndOfStream, Opened, OpenStream
from fastio.wire.transitions import CLIENT, State

__all__ = ["BatchReceived", "ClientEnd"]


@dataclass(frozen=True, slots=True)
class BatchReceived:
    """A whole batch has arrived.

    Attributes:
        descriptor: what the server said about it.
        layout: where everything lies in the payload; its length is checked against the payload's.
        payload: what ``allocate`` returned for it, filled.
    """

    descriptor: BatchDescriptor
    layout: BatchLayout
    payload: memoryview


@dataclass(slots=True)
class _Stream:
    """What the open stream must bring."""

    spec: StreamSpec
    fingerprint: str | None
    fields: tuple[FieldSpec, ...] = ()
    item_bytes: tuple[int, ...] = ()
    steps: int = 0
    next_step: int = field(init=False)

    def __post_init__(self) -> None:
        first, worker, workers = self.spec.first_step, self.spec.worker, self.spec.workers
        self.next_step = first + (worker - first) % workers

    def opened(self, message: Opened) -> None:
        names = tuple(item.name for item in message.fields)
        if self.spec.fields is not None and names != self.spec.fields:
            raise RemoteProtocolError(f"fields {list(self.spec.fields)} were asked for, got {list(names)}")
        if self.fingerprint is not None and message.fingerprint != self.fingerprint:
            raise RemoteProtocolError(
                f"dataset {self.fingerprint} was asked for, the server opened {message.fingerprint}"
            )
        if message.steps < 0:
            raise RemoteProtocolError(f"a stream of {message.steps} steps")
        self.fields, self.steps = message.fields, message.steps
        self.item_bytes = tuple(np.dtype(item.dtype).itemsize for item in self.fields if item.kind == "ragged")

    def layout(self, batch: BatchDescriptor) -> BatchLayout:
        """The layout of a batch, once its step, epoch and sizes are what they must be."""
        if (batch.step, batch.epoch) != (self.next_step, self.spec.epoch) or batch.step >= self.steps:
            due = f"step {self.next_step} of {self.steps} of epoch {self.spec.epoch}"
            raise RemoteProtocolError(f"{due} was due, got step {batch.step} of epoch {batch.epoch}")
        if not 0 <= batch.records <= self.spec.batch_size:
            raise RemoteProtocolError(f"a batch of {batch.records} records, at most {self.spec.batch_size} were asked")
        sizes = batch.ragged_bytes
        if len(sizes) != len(self.item_bytes) or any(
            size < 0 or size % item for size, item in zip(sizes, self.item_bytes, strict=False)
        ):
            raise RemoteProtocolError(f"step {batch.step}: ragged_bytes do not fit the fields: {list(sizes)[:20]}")
        return batch_layout(self.fields, batch.records, sizes)


class ClientEnd(End):
    """The client's end: sends requests and credits, receives batches.

    Args:
        allocate: called with a payload's length (0 for a batch that holds nothing) when the batch's descriptor was
            read and found right; returns writable memory of that length. It becomes ``BatchReceived.payload``.
    """

    def __init__(self, allocate: Callable[[int], memoryview]) -> None:
        super().__init__(CLIENT)
        self._allocate = allocate
        self._stream: _Stream | None = None

    def _awaits(self, state: State) -> bool:
        return state not in (State.NEW, State.IDLE)

    def _check_outgoing(self, message: Any) -> None:
        if isinstance(message, Credit):
            self._credit_granted(message, LocalProtocolError)

    def _note_outgoing(self, message: Any) -> None:
        if isinstance(message, OpenStream):
            self._stream = _Stream(message.spec, message.fingerprint)
            self.credits = 0
        elif isinstance(message, Credit):
            self.credits += message.batches

    def _note_incoming(self, message: Any) -> None:
        if isinstance(message, Opened):
            self._open_stream().opened(message)
        elif isinstance(message, EndOfStream):
            stream = self._open_stream()
            if stream.next_step < stream.steps:
                raise RemoteProtocolError(
                    f"the stream ended before step {stream.next_step} of {stream.steps} had been sent"
                )
        elif isinstance(message, BatchReceived):
            self._open_stream().next_step += self._open_stream().spec.workers
            self.credits -= 1

    def _batch(self, header: Header) -> Generator[memoryview, int, None]:
        stream = self._open_stream()
        if self.credits == 0:
            raise RemoteProtocolError("the peer sent a batch without a credit")
        limit = stream.spec.window_bytes
        if header.payload_bytes > limit:
            raise RemoteProtocolError(f"a batch may be at most window_bytes={limit} long, got {header.payload_bytes}")
        encoded = bytearray(header.descriptor_bytes)
        yield from self._fill(memoryview(encoded))
        descriptor = decode_descriptor(encoded)
        layout = stream.layout(descriptor)
        if layout.payload_bytes != header.payload_bytes:
            text = f"step {descriptor.step}: a payload of {layout.payload_bytes} bytes was announced"
            raise RemoteProtocolError(f"{text}, the frame's is {header.payload_bytes}")
        payload = self._allocate(layout.payload_bytes)
        yield from self._fill(payload)
        self._deliver(FrameType.BATCH, BatchReceived(descriptor, layout, payload))

    def _open_stream(self) -> _Stream:
        assert self._stream is not None, f"no stream in {self!r}"
        return self._stream
