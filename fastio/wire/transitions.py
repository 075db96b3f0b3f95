"""Which message may be sent and received when: two tables, held as data, one for each end.

The tables differ because messages cross on the way. A client that sent CLOSE may still receive the batches, the END or
the ERROR that were already travelling, and must wait for STREAM_CLOSED; a server that sent END or ERROR may still
receive the CREDIT or CLOSE that were already travelling, until the client's next request shows that it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fastio.wire.frames import FrameType

__all__ = ["CLIENT", "SERVER", "Moves", "State", "Table"]


class State(StrEnum):
    """Where one end of a connection is."""

    NEW = "new"
    GREETING = "greeting"
    IDLE = "idle"
    LISTING = "listing"
    DESCRIBING = "describing"
    OPENING = "opening"
    STREAMING = "streaming"
    # server: the stream is over, the client may not know yet
    ENDED = "ended"
    # CLOSE is on its way or being answered. Client: before OPENED; after it; after END or ERROR
    CLOSING_UNOPENED = "closing, unopened"
    CLOSING = "closing"
    CLOSING_ENDED = "closing, ended"
    # the peer sent what it must not
    FAULTED = "faulted"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Moves:
    """What an end may send and receive in one state, and the state each leads to."""

    send: Mapping[FrameType, State]
    receive: Mapping[FrameType, State]


Table = Mapping[State, Moves]

_F = FrameType
_S = State


def _client(state: State, *, send: dict[FrameType, State], receive: dict[FrameType, State]) -> Moves:
    """Moves of the client in ``state``, with those that are always allowed once it was let in."""
    ping: dict[FrameType, State] = {_F.PING: state, _F.PONG: state}
    return Moves(ping | send, {**ping, _F.GOODBYE: state, _F.FATAL: _S.CLOSED} | receive)


def _server(state: State, *, send: dict[FrameType, State], receive: dict[FrameType, State]) -> Moves:
    """Moves of the server in ``state``, with those that are always allowed once the client was let in."""
    ping: dict[FrameType, State] = {_F.PING: state, _F.PONG: state}
    return Moves({**ping, _F.GOODBYE: state, _F.FATAL: _S.CLOSED} | send, ping | receive)


_REQUESTS = {_F.LIST: _S.LISTING, _F.DESCRIBE: _S.DESCRIBING, _F.OPEN: _S.OPENING}

CLIENT: Final[Table] = {
    _S.NEW: Moves(send={_F.HELLO: _S.GREETING}, receive={_F.FATAL: _S.CLOSED}),
    _S.GREETING: Moves(send={}, receive={_F.WELCOME: _S.IDLE, _F.FATAL: _S.CLOSED}),
    _S.IDLE: _client(_S.IDLE, send=_REQUESTS, receive={}),
    _S.LISTING: _client(_S.LISTING, send={}, receive={_F.DATASETS: _S.IDLE, _F.ERROR: _S.IDLE}),
    _S.DESCRIBING: _client(_S.DESCRIBING, send={}, receive={_F.DATASET_INFO: _S.IDLE, _F.ERROR: _S.IDLE}),
    _S.OPENING: _client(
        _S.OPENING,
        send={_F.CREDIT: _S.OPENING, _F.CLOSE: _S.CLOSING_UNOPENED},
        receive={_F.OPENED: _S.STREAMING, _F.ERROR: _S.IDLE},
    ),
    _S.STREAMING: _client(
        _S.STREAMING,
        send={_F.CREDIT: _S.STREAMING, _F.CLOSE: _S.CLOSING},
        receive={_F.BATCH: _S.STREAMING, _F.END: _S.IDLE, _F.ERROR: _S.IDLE},
    ),
    _S.CLOSING_UNOPENED: _client(
        _S.CLOSING_UNOPENED,
        send={},
        receive={_F.OPENED: _S.CLOSING, _F.ERROR: _S.CLOSING_ENDED, _F.STREAM_CLOSED: _S.IDLE},
    ),
    _S.CLOSING: _client(
        _S.CLOSING,
        send={},
        receive={
            _F.BATCH: _S.CLOSING,
            _F.END: _S.CLOSING_ENDED,
            _F.ERROR: _S.CLOSING_ENDED,
            _F.STREAM_CLOSED: _S.IDLE,
        },
    ),
    _S.CLOSING_ENDED: _client(_S.CLOSING_ENDED, send={}, receive={_F.STREAM_CLOSED: _S.IDLE}),
    _S.FAULTED: Moves(send={}, receive={}),
    _S.CLOSED: Moves(send={}, receive={}),
}

SERVER: Final[Table] = {
    _S.NEW: Moves(send={_F.FATAL: _S.CLOSED}, receive={_F.HELLO: _S.GREETING}),
    _S.GREETING: Moves(send={_F.WELCOME: _S.IDLE, _F.FATAL: _S.CLOSED}, receive={}),
    _S.IDLE: _server(_S.IDLE, send={}, receive=_REQUESTS),
    _S.LISTING: _server(_S.LISTING, send={_F.DATASETS: _S.IDLE, _F.ERROR: _S.IDLE}, receive={}),
    _S.DESCRIBING: _server(_S.DESCRIBING, send={_F.DATASET_INFO: _S.IDLE, _F.ERROR: _S.IDLE}, receive={}),
    _S.OPENING: _server(
        _S.OPENING,
        send={_F.OPENED: _S.STREAMING, _F.ERROR: _S.ENDED},
        receive={_F.CREDIT: _S.OPENING, _F.CLOSE: _S.CLOSING},
    ),
    _S.STREAMING: _server(
        _S.STREAMING,
        send={_F.BATCH: _S.STREAMING, _F.END: _S.ENDED, _F.ERROR: _S.ENDED},
        receive={_F.CREDIT: _S.STREAMING, _F.CLOSE: _S.CLOSING},
    ),
    _S.ENDED: _server(_S.ENDED, send={}, receive={**_REQUESTS, _F.CREDIT: _S.ENDED, _F.CLOSE: _S.CLOSING}),
    _S.CLOSING: _server(_S.CLOSING, send={_F.STREAM_CLOSED: _S.IDLE}, receive={}),
    _S.FAULTED: Moves(send={_F.FATAL: _S.CLOSED}, receive={}),
    _S.CLOSED: Moves(send={}, receive={}),
}
