"""Frames as they are on the wire, pinned: peers of the same major version depend on every byte.

A frame that changes is a new version of the protocol. New frames are added to the file; old ones never change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastio.spec import FieldSpec, OrderSpec, StreamSpec
from fastio.testing.connection_pair import ConnectionPair, feed
from fastio.wire import State
from fastio.wire.messages import (
    BatchDescriptor,
    CloseStream,
    Credit,
    DatasetInfo,
    Datasets,
    Describe,
    EndOfStream,
    ErrorMessage,
    Goodbye,
    Hello,
    ListDatasets,
    Opened,
    OpenStream,
    Ping,
    Pong,
    StreamClosed,
    Welcome,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "frames-1.json"

FIELDS = (
    FieldSpec(name="image", kind="ragged", dtype="|u1", arrow_type="binary"),
    FieldSpec(name="box", kind="fixed", dtype="<f4", shape=(2, 2), nullable=True, arrow_type="fixed_size_list"),
)
SPEC = StreamSpec(
    dataset="digits",
    batch_size=32,
    fields=("image", "box"),
    order=OrderSpec(kind="exact", seed=(1 << 64) - 1),
    epoch=3,
    start_records=64,
    first_step=2,
    rank=1,
    world_size=4,
    worker=1,
    workers=2,
    tail="drop",
    window_bytes=1 << 26,
)
UP: list[tuple[State, Any]] = [
    (State.NEW, Hello("trainer", "secret")),
    (State.IDLE, ListDatasets()),
    (State.IDLE, Describe("digits")),
    (State.IDLE, OpenStream(SPEC, "fp")),
    (State.STREAMING, Credit(4)),
    (State.STREAMING, Ping(7)),
    (State.STREAMING, Pong(8)),
    (State.STREAMING, CloseStream()),
]
DOWN: list[tuple[State, Any]] = [
    (State.GREETING, Welcome("daemon", 10.0, 1 << 30)),
    (State.LISTING, Datasets(("a", "digits"))),
    (State.DESCRIBING, DatasetInfo("digits", 1797, FIELDS, (115008, 28752), "fp", "arrow", 2, b"\x01\x02")),
    (State.OPENING, Opened(57, 1797, FIELDS, "fp")),
    (State.STREAMING, BatchDescriptor(3, 3, 32, (2048,))),
    (State.STREAMING, EndOfStream()),
    (State.CLOSING, StreamClosed()),
    (State.IDLE, Goodbye("draining")),
    (State.OPENING, ErrorMessage("unknown_dataset", "no dataset 'x' here", False, False)),
    (State.GREETING, ErrorMessage("bad_credentials", "a token is wanted", False, True)),
]


def frame_of(state: State, message: Any) -> bytes:
    """The first frame that an end in ``state`` would send."""
    pair = ConnectionPair()
    end = pair.client if (state, message) in UP else pair.server
    end.state = state
    if isinstance(message, BatchDescriptor):
        pair.server.credits = 1
        return pair.server.send_batch(message, 4096)
    return end.send(message)


def name_of(message: Any) -> str:
    return "Fatal" if getattr(message, "fatal", False) else type(message).__name__


def label(item: Any) -> str:
    return "" if isinstance(item, State) else name_of(item)


@pytest.mark.parametrize(("state", "message"), UP + DOWN, ids=label)
def test_frames_are_what_they_were(state: State, message: Any) -> None:
    assert frame_of(state, message).hex(" ", -4) == json.loads(GOLDEN.read_text())[name_of(message)]


@pytest.mark.parametrize(("state", "message"), UP, ids=label)
def test_pinned_requests_are_understood(state: State, message: Any) -> None:
    end = ConnectionPair().server
    end.state = state
    assert feed(end, bytes.fromhex(json.loads(GOLDEN.read_text())[name_of(message)])) == [message]


def test_every_pinned_frame_is_checked() -> None:
    assert set(json.loads(GOLDEN.read_text())) == {name_of(message) for _, message in UP + DOWN}
