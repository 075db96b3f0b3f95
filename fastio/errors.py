"""The errors of fastio, sorted by what the caller does about them.

    FastioError
    ├── RequestError      (ValueError)  the call, option or configuration is wrong: fix it
    ├── ProtocolError                   the two ends of a connection disagree
    │   ├── LocalProtocolError          this side misused the protocol (a bug here)
    │   └── RemoteProtocolError         the peer sent what it must not
    ├── StoreError        (OSError)     data, an index or the disk is bad: look at the named file
    ├── UnavailableError                nothing is wrong for ever: try again later
    └── ClosedError                     the object was closed; open a new one

Every error carries a stable ``kind`` (append-only, also sent over the wire) and a message that says what was
wanted, what was found, which shard, record, field or limit it is about, and what to do. OS errors are turned
into these once, where the system call is made.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "ClosedError",
    "ErrorKind",
    "FastioError",
    "LocalProtocolError",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestError",
    "StoreError",
    "UnavailableError",
    "error_from_wire",
]


class ErrorKind(StrEnum):
    """What went wrong, precisely. Append-only: peers and log queries depend on the values."""

    # the request
    BAD_OPTION = "bad_option"
    UNKNOWN_FIELD = "unknown_field"
    UNKNOWN_DATASET = "unknown_dataset"
    BAD_RANK = "bad_rank"
    TOO_FEW_RECORDS = "too_few_records"
    RECORD_TOO_LARGE = "record_too_large"
    STATE_MISMATCH = "state_mismatch"
    BAD_CREDENTIALS = "bad_credentials"
    BAD_CONFIG = "bad_config"
    # the protocol
    BAD_FRAME = "bad_frame"
    VERSION_MISMATCH = "version_mismatch"
    UNEXPECTED_MESSAGE = "unexpected_message"
    # the store
    MISSING = "missing"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    NOT_A_DATASET = "not_a_dataset"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    SCHEMA_MISMATCH = "schema_mismatch"
    COMPRESSED = "compressed"
    UNSUPPORTED_LAYOUT = "unsupported_layout"
    CHANGED = "changed"
    DISK_FULL = "disk_full"
    ALREADY_EXISTS = "already_exists"
    IO = "io"
    # later
    ADDRESS_IN_USE = "address_in_use"
    UNREACHABLE = "unreachable"
    DRAINING = "draining"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    # the end
    CLOSED = "closed"
    INTERNAL = "internal"


class FastioError(Exception):
    """Base of every error that fastio raises on purpose.

    Attributes:
        kind: the stable name of what went wrong.
    """

    kind: ErrorKind

    def __init__(self, message: str, *, kind: ErrorKind) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def retry(self) -> bool:
        """Whether the same call may succeed later without being changed."""
        return isinstance(self, UnavailableError)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (DataLoader workers): the keyword-only `kind` must survive pickling.
        return (_rebuild, (type(self), str(self), self.kind))


class RequestError(FastioError, ValueError):
    """The call, option or configuration is wrong: fix it and call again."""

    def __init__(self, message: str, *, kind: ErrorKind = ErrorKind.BAD_OPTION) -> None:
        super().__init__(message, kind=kind)


class ProtocolError(FastioError):
    """The two ends of a connection disagree. Raised only as one of its two leaves."""

    def __init__(self, message: str, *, kind: ErrorKind = ErrorKind.BAD_FRAME) -> None:
        if type(self) is ProtocolError:
            raise TypeError("raise LocalProtocolError or RemoteProtocolError, not ProtocolError itself")
        super().__init__(message, kind=kind)


class LocalProtocolError(ProtocolError):
    """This side used the protocol against its rules: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that the protocol does not allow."""


class StoreError(FastioError, OSError):
    """Data, an index or the disk is bad: the message names the file and the remedy."""

    def __init__(self, message: str, *, kind: ErrorKind = ErrorKind.IO) -> None:
        super().__init__(message, kind=kind)


class UnavailableError(FastioError):
    """Nothing is wrong for ever: the same call may succeed later."""

    def __init__(self, message: str, *, kind: ErrorKind = ErrorKind.UNREACHABLE) -> None:
        super().__init__(message, kind=kind)


class ClosedError(FastioError):
    """The object was closed by its owner."""

    def __init__(self, message: str, *, kind: ErrorKind = ErrorKind.CLOSED) -> None:
        super().__init__(message, kind=kind)


# Which class a kind comes back as on the other side of a connection. Kinds not named here are the store's.
_REQUEST_KINDS = frozenset(
    {
        ErrorKind.BAD_OPTION,
        ErrorKind.UNKNOWN_FIELD,
        ErrorKind.UNKNOWN_DATASET,
        ErrorKind.BAD_RANK,
        ErrorKind.TOO_FEW_RECORDS,
        ErrorKind.RECORD_TOO_LARGE,
        ErrorKind.STATE_MISMATCH,
        ErrorKind.BAD_CREDENTIALS,
        ErrorKind.BAD_CONFIG,
    }
)
_PROTOCOL_KINDS = frozenset({ErrorKind.BAD_FRAME, ErrorKind.VERSION_MISMATCH, ErrorKind.UNEXPECTED_MESSAGE})
_LATER_KINDS = frozenset(
    {ErrorKind.UNREACHABLE, ErrorKind.DRAINING, ErrorKind.OVERLOADED, ErrorKind.TIMEOUT, ErrorKind.ADDRESS_IN_USE}
)


def error_from_wire(kind: str, message: str) -> FastioError:
    """The error that a peer reported, as the class by which a handler would react.

    A kind this version does not know (a newer peer) comes back as ``INTERNAL``, its name kept in the message.

    >>> error_from_wire("unknown_field", "no field 'x'")
    RequestError("no field 'x'")
    """
    try:
        known = ErrorKind(kind)
    except ValueError:
        return StoreError(f"{message} (the peer calls this {kind!r})", kind=ErrorKind.INTERNAL)
    if known in _REQUEST_KINDS:
        return RequestError(message, kind=known)
    if known in _PROTOCOL_KINDS:
        return RemoteProtocolError(message, kind=known)
    if known in _LATER_KINDS:
        return UnavailableError(message, kind=known)
    if known is ErrorKind.CLOSED:
        return ClosedError(message)
    return StoreError(message, kind=known)


def _rebuild(cls: type[FastioError], message: str, kind: ErrorKind) -> FastioError:
    return cls(message, kind=kind)
