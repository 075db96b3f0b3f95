"""The nouns of the protocol: one typed, strict struct per message.

Control messages travel as msgpack of these structs; a batch travels as a :class:`BatchDescriptor` followed by its
payload (:mod:`fastio.layout`). Specs are the dataclasses of :mod:`fastio.spec`, so a spec that arrives is as valid as
one made here. Structs are encoded as arrays: a newer minor version may append fields, which an older one ignores.
"""

from __future__ import annotations

import msgspec

from fastio.spec import FieldSpec, StreamSpec

__all__ = [
    "BatchDescriptor",
    "CloseStream",
    "Credit",
    "DatasetInfo",
    "Datasets",
    "Describe",
    "EndOfStream",
    "ErrorMessage",
    "Goodbye",
    "Hello",
    "ListDatasets",
    "OpenStream",
    "Opened",
    "Ping",
    "Pong",
    "StreamClosed",
    "Welcome",
]


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Client: the first frame. The frame header holds the version."""

    client: str
    token: str | None = None


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """Server: the answer to HELLO."""

    server: str
    keepalive_s: float
    max_window_bytes: int


class ListDatasets(msgspec.Struct, frozen=True, array_like=True):
    """Client: which datasets are there?"""


class Datasets(msgspec.Struct, frozen=True, array_like=True):
    """Server: the names, sorted."""

    names: tuple[str, ...]


class Describe(msgspec.Struct, frozen=True, array_like=True):
    """Client: what is this dataset?"""

    dataset: str


class DatasetInfo(msgspec.Struct, frozen=True, array_like=True):
    """Server: a dataset as clients need to know it.

    ``payload_bytes_by_field`` has one number per field: all bytes of that field (an upper bound or an estimate).
    """

    dataset: str
    records: int
    fields: tuple[FieldSpec, ...]
    payload_bytes_by_field: tuple[int, ...]
    fingerprint: str
    format: str
    shards: int
    arrow_schema: bytes


class OpenStream(msgspec.Struct, frozen=True, array_like=True):
    """Client: send me these batches. ``fingerprint``, if given, must be the dataset's."""

    spec: StreamSpec
    fingerprint: str | None = None


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """Server: the stream is open. ``steps`` is how many steps the spec's rank takes from ``start_records`` on, over
    all of its workers."""

    steps: int
    records: int
    fields: tuple[FieldSpec, ...]
    fingerprint: str


class Credit(msgspec.Struct, frozen=True, array_like=True):
    """Client: leave to send this many more batches."""

    batches: int


class BatchDescriptor(msgspec.Struct, frozen=True, array_like=True):
    """Server: what the payload that follows holds.

    Attributes:
        step: counted from the stream's ``start_records``.
        epoch: of the stream.
        records: B of this batch.
        ragged_bytes: per ragged field, the byte count of its values; with ``records`` it fixes the whole layout.
    """

    step: int
    epoch: int
    records: int
    ragged_bytes: tuple[int, ...]


class EndOfStream(msgspec.Struct, frozen=True, array_like=True):
    """Server: all steps have been sent; the connection may open another stream."""


class CloseStream(msgspec.Struct, frozen=True, array_like=True):
    """Client: stop sending; no more batches are wanted."""


class StreamClosed(msgspec.Struct, frozen=True, array_like=True):
    """Server: the answer to CLOSE; no batch of that stream follows, and another may be opened."""


class Ping(msgspec.Struct, frozen=True, array_like=True):
    """Either side: are you there?"""

    nonce: int


class Pong(msgspec.Struct, frozen=True, array_like=True):
    """Either side: yes; the nonce of the PING."""

    nonce: int


class Goodbye(msgspec.Struct, frozen=True, array_like=True):
    """Server: draining; the open stream is finished, but nothing new is opened here."""

    reason: str


class ErrorMessage(msgspec.Struct, frozen=True, array_like=True):
    """Server: the last request failed. ``kind`` is an :class:`~fastio.errors.ErrorKind`; ``fatal`` ends the connection,
    otherwise the connection is as if no stream were open."""

    kind: str
    message: str
    retry: bool
    fatal: bool
