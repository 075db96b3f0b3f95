"""One connection to a daemon: a blocking socket around the protocol's client end.

Two threads may use a connection: one receives, the other sends. A lock makes what they send come out whole and in
order; nobody holds it while waiting for bytes. Nothing waits for ever: a server that is silent for three of its
keep-alive times counts as lost, and :meth:`Connection.shut` wakes whoever is waiting.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastio.errors import ErrorKind, FastioError, RemoteProtocolError, UnavailableError, error_from_wire
from fastio.wire import ClientEnd, FrameType
from fastio.wire.messages import ErrorMessage, Goodbye, Hello, Ping, Pong, Welcome
from fastio_client.address import Address

__all__ = ["Connection"]

CONNECT_TIMEOUT_S = 10.0
# Until WELCOME tells the server's keep-alive time.
_FIRST_KEEPALIVE_S = 5.0
_SILENT_LIMIT = 3
_WAKE_BYTES = 256 << 10


class Connection:
    """A connection after HELLO and WELCOME. Made by :func:`connect`.

    Attributes:
        welcome: what the server said.
        end: the protocol's state, for looking.
    """

    def __init__(self, sock: socket.socket, address: Address, allocate: Callable[[int], memoryview]) -> None:
        self.welcome = Welcome("", _FIRST_KEEPALIVE_S, 0)
        self.end = ClientEnd(allocate)
        self._sock = sock
        self._server = address.peer
        self._lock = threading.Lock()
        self._pings = 0

    def greet(self, token: str | None) -> None:
        """HELLO and WELCOME.

        Raises:
            FastioError: the server refuses, or is none.
        """
        self.send(Hello(f"fastio-client pid {os.getpid()}", token))
        welcome = self.receive()
        if not isinstance(welcome, Welcome):
            raise RemoteProtocolError(f"{self._server}: WELCOME was due, got {welcome!r}")
        self.welcome = welcome
        self._set_receive_timeout(max(0.1, min(welcome.keepalive_s, 3600.0)))

    def ask(self, request: Any) -> Any:
        """Sends a request and returns its answer.

        Raises:
            FastioError: what the server answered, or that it is lost.
        """
        self.send(request)
        return self.receive()

    def send(self, *messages: Any) -> None:
        """Sends messages.

        Raises:
            UnavailableError: the connection broke.
        """
        with self._lock:
            self._transmit(b"".join([self.end.send(message) for message in messages]))

    def send_if_allowed(self, kind: FrameType, message: Any) -> bool:
        """Sends a message unless the state forbids it by now, as after the end of a stream or of the connection.

        A connection that broke is no error here: whoever receives notices.
        """
        with self._lock:
            if not self.end.may_send(kind):
                return False
            with suppress(UnavailableError):
                self._transmit(self.end.send(message))
            return True

    def receive(self) -> Any:
        """The next message or batch; keep-alives are dealt with.

        Raises:
            FastioError: an error the server reported (as the class by which one reacts), or the connection broke
                (UnavailableError) or the server lies (RemoteProtocolError).
        """
        while True:
            for event in self._next_events():
                if isinstance(event, Ping):
                    self.send_if_allowed(FrameType.PONG, Pong(event.nonce))
                elif isinstance(event, ErrorMessage):
                    raise named(error_from_wire(event.kind, event.message), self._server)
                elif not isinstance(event, Pong | Goodbye):
                    return event

    def shut(self) -> None:
        """Ends the connection; every thread that waits for it wakes up. The descriptor stays until :meth:`close`."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives the descriptor back. Nobody may be receiving."""
        self._sock.close()

    def __repr__(self) -> str:
        return f"<Connection to {self._server}: {self.end!r}>"

    # --- parts

    def _next_events(self) -> list[Any]:
        silent = 0
        while True:
            room = self.end.want()
            try:
                got = self._receive_into(room)
            except BlockingIOError:
                silent += 1
                self._no_sign_of_life(silent)
                continue
            except OSError as error:
                raise self._lost(error) from error
            with self._lock:
                if got:
                    return self.end.filled(got)
                self._ended()

    def _receive_into(self, room: memoryview) -> int:
        """Receives in one call, however many packets it takes: a handful of calls a batch.

        The kernel wakes a receiver for each packet, only for it to find that the rest is missing. Of a long payload all
        but the end is therefore received with wake-ups 256 KiB apart (a gain of 10-15 % over loopback); the end is
        not, since nothing might follow that would complete 256 KiB.
        """
        if self._sock.family == socket.AF_UNIX or len(room) < 4 * _WAKE_BYTES:
            return self._sock.recv_into(room, 0, socket.MSG_WAITALL)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _WAKE_BYTES)
        try:
            return self._sock.recv_into(room, len(room) - _WAKE_BYTES, socket.MSG_WAITALL)
        finally:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _ended(self) -> None:
        try:
            self.end.eof()
        except UnavailableError as error:
            raise named(error, self._server) from None
        raise UnavailableError(f"{self._server} closed the connection")

    def _no_sign_of_life(self, silent: int) -> None:
        if silent >= _SILENT_LIMIT:
            limit_s = _SILENT_LIMIT * (self.welcome.keepalive_s or _FIRST_KEEPALIVE_S)
            raise UnavailableError(f"{self._server} has been silent for {limit_s:g} s", kind=ErrorKind.TIMEOUT)
        self._pings += 1
        self.send_if_allowed(FrameType.PING, Ping(self._pings))

    def _transmit(self, frames: bytes) -> None:
        try:
            self._sock.sendall(frames)
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> UnavailableError:
        reason = "the send timed out" if isinstance(error, BlockingIOError) else error.strerror or str(error)
        return UnavailableError(f"the connection to {self._server} broke: {reason}")

    def _set_receive_timeout(self, seconds: float) -> None:
        whole, part = divmod(seconds, 1)
        timeout = struct.pack("@ll", int(whole), int(part * 1e6))
        # Not settimeout: that makes the socket non-blocking, and MSG_WAITALL waits for nothing then.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)


def connect(
    address: Address,
    token: str | None,
    allocate: Callable[[int], memoryview],
    *,
    started: Callable[[socket.socket], None] = lambda sock: None,
) -> Connection:
    """Connects and says HELLO.

    Args:
        address: of a daemon; not a path.
        token: the credential.
        allocate: memory for batches, see :class:`~fastio.wire.ClientEnd`.
        started: told of each socket before it connects, so that another thread can shut it.

    Raises:
        UnavailableError: nobody answers there.
        FastioError: what the server says against it.
    """
    sock = _dial(address, started)
    try:
        connection = Connection(sock, address, allocate)
        connection._set_receive_timeout(_FIRST_KEEPALIVE_S)
        connection.greet(token)
    except BaseException:
        sock.close()
        raise
    return connection


def named(error: FastioError, server: str) -> FastioError:
    """``error`` with the server's address in front of its message."""
    return type(error)(f"{server}: {error}", kind=error.kind)


def _dial(address: Address, started: Callable[[socket.socket], None]) -> socket.socket:
    if address.kind == "unix":
        places: list[tuple[socket.AddressFamily, Any]] = [(socket.AF_UNIX, address.path)]
    else:
        places = _resolve(address)
    failure = OSError(errno.EHOSTUNREACH, "the name has no address")
    for family, place in places:
        try:
            return _dial_one(family, place, started)
        except OSError as error:
            failure = error
    reason = "timed out" if isinstance(failure, TimeoutError) else failure.strerror or str(failure)
    raise UnavailableError(
        f"no daemon answers at {address.server} ({reason}); is `fastio serve` running there, and is the address right?"
    )


def _dial_one(family: socket.AddressFamily, place: Any, started: Callable[[socket.socket], None]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # No buffer sizes: Linux grows those of TCP beyond what may be asked for, and what is on its way in a Unix
        # socket counts against the sender's.
        started(sock)
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect(place)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _resolve(address: Address) -> list[tuple[socket.AddressFamily, Any]]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnavailableError(f"the host name in {address.server} is not known: {error.strerror}") from None
    return [(family, place) for family, _, _, _, place in found]
