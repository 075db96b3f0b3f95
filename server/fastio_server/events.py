"""What a session hears about its own side, and what it tells the connection to do: small frozen values.

Events of the peer are the messages of :mod:`fastio.wire` themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastio.errors import FastioError
from fastio.spec import FieldSpec, StreamSpec

__all__ = [
    "CloseReader",
    "DrainBegins",
    "Hangup",
    "Instruction",
    "Note",
    "OpenReader",
    "PeerClosed",
    "PeerFault",
    "ReaderFailed",
    "ReaderFinished",
    "ReaderOpened",
    "Send",
    "Tick",
]

# --- events


@dataclass(frozen=True, slots=True)
class ReaderOpened:
    """The stream asked for by OpenReader is open; its rank takes ``steps`` steps."""

    steps: int
    fields: tuple[FieldSpec, ...]


@dataclass(frozen=True, slots=True)
class ReaderFailed:
    """The stream could not be opened, or broke while it was read."""

    error: FastioError


@dataclass(frozen=True, slots=True)
class ReaderFinished:
    """Every batch of the stream was taken and handed to the socket."""


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """The peer closed the connection, or it broke."""

    reason: str = "closed by the peer"


@dataclass(frozen=True, slots=True)
class PeerFault:
    """The peer sent what it must not."""

    error: FastioError


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: seconds since the peer gave a sign of life, and since the connection was made."""

    silent_s: float
    age_s: float


@dataclass(frozen=True, slots=True)
class DrainBegins:
    """The daemon is going away."""

    reason: str


# --- instructions


@dataclass(frozen=True, slots=True)
class Send:
    """Send this control message after everything already on its way."""

    message: Any


@dataclass(frozen=True, slots=True)
class OpenReader:
    """Open the stream; answer with ReaderOpened or ReaderFailed."""

    spec: StreamSpec


@dataclass(frozen=True, slots=True)
class CloseReader:
    """Send no further batch of the open stream, if any, and release what it holds."""


@dataclass(frozen=True, slots=True)
class Hangup:
    """Close the connection: after what is on its way, or at once if the peer is not there to take it."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Log this."""

    event: str
    level: str = "info"
    values: Mapping[str, Any] = field(default_factory=dict)


Instruction = Send | OpenReader | CloseReader | Hangup | Note
