"""Control payloads: which message each frame type carries, as msgpack, typed and strict.

What decodes is as valid as what was made here: specs check themselves, and fields are checked so that no data type a
peer names can be anything but plain numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec
import numpy as np

from fastio.errors import LocalProtocolError, RemoteProtocolError
from fastio.spec import FieldSpec
from fastio.wire import messages as m
from fastio.wire.frames import MAX_DESCRIPTOR_BYTES, MAX_PAYLOAD_BYTES, FrameType

__all__ = [
    "MESSAGES",
    "check_fields",
    "decode_descriptor",
    "decode_message",
    "encode_descriptor",
    "encode_message",
    "frame_type",
]

MESSAGES: Final[Mapping[FrameType, type[msgspec.Struct]]] = MappingProxyType(
    {
        FrameType.HELLO: m.Hello,
        FrameType.WELCOME: m.Welcome,
        FrameType.LIST: m.ListDatasets,
        FrameType.DATASETS: m.Datasets,
        FrameType.DESCRIBE: m.Describe,
        FrameType.DATASET_INFO: m.DatasetInfo,
        FrameType.OPEN: m.OpenStream,
        FrameType.OPENED: m.Opened,
        FrameType.CREDIT: m.Credit,
        FrameType.END: m.EndOfStream,
        FrameType.CLOSE: m.CloseStream,
        FrameType.STREAM_CLOSED: m.StreamClosed,
        FrameType.PING: m.Ping,
        FrameType.PONG: m.Pong,
        FrameType.GOODBYE: m.Goodbye,
        FrameType.ERROR: m.ErrorMessage,
        FrameType.FATAL: m.ErrorMessage,
    }
)

_ENCODER = msgspec.msgpack.Encoder()
_DECODERS = {kind: msgspec.msgpack.Decoder(message) for kind, message in MESSAGES.items()}
_DESCRIPTOR_DECODER = msgspec.msgpack.Decoder(m.BatchDescriptor)
_TYPES = {message: kind for kind, message in MESSAGES.items() if message is not m.ErrorMessage}

# An error may quote a long list; what is said at the end of a message of many pages helps nobody.
_ERROR_TEXT_CHARACTERS = 8 << 10

# Booleans, numbers, times and raw bytes: nothing that holds a Python object, no structures.
_DTYPE = re.compile(r"[<>|]?(?:\?|[biufcSV]\d{1,9}|[mM]8(?:\[\d*\w{1,2}\])?)", re.ASCII)
_MAX_RECORD_BYTES = 1 << 40
_MAX_DIMENSIONS = 32


def frame_type(message: object) -> FrameType:
    """The frame type that carries ``message``.

    Raises:
        LocalProtocolError: it is not a control message.
    """
    if isinstance(message, m.ErrorMessage):
        return FrameType.FATAL if message.fatal else FrameType.ERROR
    kind = _TYPES.get(type(message))  # type: ignore[arg-type]
    if kind is None:
        raise LocalProtocolError(f"a control message was wanted, got {type(message).__name__}")
    return kind


def encode_message(kind: FrameType, message: Any) -> bytes:
    """The payload of a control frame.

    Raises:
        LocalProtocolError: the message is longer than its kind may be.
    """
    if isinstance(message, m.ErrorMessage) and len(message.message) > _ERROR_TEXT_CHARACTERS:
        text = message.message[: _ERROR_TEXT_CHARACTERS - 4] + " ..."
        message = msgspec.structs.replace(message, message=text)
    payload = _ENCODER.encode(message)
    limit = MAX_PAYLOAD_BYTES[kind]
    if len(payload) > limit:
        raise LocalProtocolError(f"{kind.name} may be at most {limit} bytes, this one is {len(payload)}")
    return payload


def decode_message(kind: FrameType, payload: bytes | bytearray | memoryview) -> Any:
    """The message of a control frame.

    Raises:
        RemoteProtocolError: the payload is not such a message, or names what no field can be.
    """
    try:
        message = _DECODERS[kind].decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"the payload of {kind.name} does not decode: {error}") from None
    if isinstance(message, m.ErrorMessage) and message.fatal is not (kind is FrameType.FATAL):
        raise RemoteProtocolError(f"an error with fatal={message.fatal} came in a {kind.name} frame")
    if isinstance(message, m.Opened | m.DatasetInfo):
        check_fields(message.fields)
    return message


def encode_descriptor(descriptor: m.BatchDescriptor) -> bytes:
    """The descriptor of a BATCH frame.

    Raises:
        LocalProtocolError: it is too long.
    """
    encoded = _ENCODER.encode(descriptor)
    if len(encoded) > MAX_DESCRIPTOR_BYTES:
        raise LocalProtocolError(
            f"a batch descriptor may be at most {MAX_DESCRIPTOR_BYTES} bytes, this one is {len(encoded)}: "
            f"{len(descriptor.ragged_bytes)} fields of variable length are too many"
        )
    return encoded


def decode_descriptor(data: bytes | bytearray | memoryview) -> m.BatchDescriptor:
    """The descriptor of a BATCH frame.

    Raises:
        RemoteProtocolError: it does not decode.
    """
    try:
        return _DESCRIPTOR_DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"a batch descriptor does not decode: {error}") from None


def check_fields(fields: Sequence[FieldSpec]) -> None:
    """Whether arrays can be made of what a peer says its fields are.

    Raises:
        RemoteProtocolError: a name comes twice, or a field has a data type or shape that cannot be.
    """
    if len({field.name for field in fields}) != len(fields):
        raise RemoteProtocolError("the peer names a field twice")
    for field in fields:
        _check_dtype(field)
        if len(field.shape) > _MAX_DIMENSIONS or any(size < 0 for size in field.shape):
            raise RemoteProtocolError(f"field {field.name!r} has the impossible shape {list(field.shape)[:40]}")
        bytes_of_one = np.dtype(field.dtype).itemsize
        for size in field.shape:
            bytes_of_one *= size
            if bytes_of_one > _MAX_RECORD_BYTES:
                raise RemoteProtocolError(f"field {field.name!r} has the impossible shape {list(field.shape)}")
        if field.kind == "ragged" and field.shape:
            raise RemoteProtocolError(f"field {field.name!r} is ragged and has a shape, {list(field.shape)}")


def _check_dtype(field: FieldSpec) -> None:
    try:
        if _DTYPE.fullmatch(field.dtype) and np.dtype(field.dtype).itemsize > 0:
            return
    except (TypeError, ValueError):
        pass
    raise RemoteProtocolError(f"field {field.name!r} has the data type {field.dtype[:40]!r}, which is not one of ours")
