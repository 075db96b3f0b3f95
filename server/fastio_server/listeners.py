"""Listening sockets: bound before anything else starts, so that 'address in use' is one line and nothing to undo.

Also decides which addresses may be listened on without credentials, and what to do about a Unix socket file that a
killed daemon left behind.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from fastio.errors import ErrorKind, RequestError, UnavailableError
from fastio_server.config import ServerConfig, split_address

__all__ = ["Listener", "bind_all", "bind_unix", "close_all"]

# Ranks of a large job connect within the same second; the kernel caps this at net.core.somaxconn.
_BACKLOG = 1024


class Listener:
    """A bound socket that will listen. ``url`` is how to reach it: append ``/NAME`` for a dataset."""

    def __init__(self, sock: socket.socket, url: str, unix_path: str | None = None) -> None:
        self.sock = sock
        self.url = url
        self._unix_path = unix_path
        self._inode = None if unix_path is None else _inode(unix_path)

    def listen(self) -> None:
        """From now on peers can connect; they wait in the queue until somebody accepts."""
        try:
            self.sock.listen(_BACKLOG)
        except OSError as error:  # two sockets may be bound to one address, but only one of them listens
            raise _not_bound(self.url, error) from None

    def close(self) -> None:
        """Closes the socket and removes its file, unless another daemon has put its own there."""
        self.sock.close()
        if self._unix_path is not None and self._inode == _inode(self._unix_path):
            Path(self._unix_path).unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"Listener({self.url})"


def bind_all(config: ServerConfig) -> list[Listener]:
    """Binds every address of ``config``, or none. TCP addresses do not listen yet; Unix sockets do, see bind_unix.

    Raises:
        RequestError: an address is beyond loopback and there are no tokens, or can't be resolved or bound at all.
        UnavailableError: an address is in use.
    """
    resolved = [(text, _resolve(text)) for text in config.listen]
    for text, (_, address) in resolved:
        if not (config.tokens or config.insecure or ipaddress.ip_address(address[0].split("%")[0]).is_loopback):
            raise RequestError(
                f"{text} can be reached from other machines and there are no credentials: give --tokens FILE, listen "
                "on 127.0.0.1, or say --insecure",
                kind=ErrorKind.BAD_CONFIG,
            )
    bound: list[Listener] = []
    try:
        for text, (family, address) in resolved:
            bound.append(_bind_tcp(text, family, address))
        if config.unix is not None:
            bound.append(bind_unix(config.unix))
    except BaseException:
        close_all(bound)
        raise
    return bound


def close_all(listeners: Sequence[Listener]) -> None:
    """Closes every listener and removes the files of Unix sockets."""
    for listener in listeners:
        listener.close()


def bind_unix(path: str) -> Listener:
    """Listens on a Unix socket; a path beginning with NUL is an abstract name, which leaves no file.

    A socket file on which nobody answers is what a killed daemon left behind, and is replaced.
    """
    shown = path.replace("\0", "@", 1)
    if not path.startswith("\0"):
        _clear_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        # At once: a socket file on which nobody listens looks stale, and another daemon would replace it.
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise _not_bound(shown, error) from None
    if path.startswith("\0"):
        return Listener(sock, f"fastio+unix://{shown}")
    return Listener(sock, f"fastio+unix://{os.path.abspath(path)}", path)


def _resolve(text: str) -> tuple[int, tuple[str, int]]:
    host, port = split_address(text)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise RequestError(f"listen address {text}: {error.strerror}", kind=ErrorKind.BAD_CONFIG) from None
    # IPv4 first: 'localhost' is then 127.0.0.1, which clients of either family end up trying.
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, (str(address[0]), int(address[1]))


def _bind_tcp(text: str, family: int, address: tuple[str, int]) -> Listener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A restarted daemon need not wait for old connections to leave TIME_WAIT; two live ones still conflict.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise _not_bound(text, error) from None
    host, port = sock.getsockname()[:2]
    return Listener(sock, f"fastio://[{host}]:{port}" if ":" in host else f"fastio://{host}:{port}")


def _clear_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # not there, or bind will say what is wrong with it
    if not stat.S_ISSOCK(mode):
        raise RequestError(f"--unix {path}: something that is not a socket is in the way", kind=ErrorKind.BAD_CONFIG)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError as error:
            raise _not_bound(path, error) from None
        else:
            raise _in_use(path)


def _not_bound(address: str, error: OSError) -> RequestError | UnavailableError:
    if error.errno in (errno.EADDRINUSE, errno.EAGAIN):
        return _in_use(address)
    reason = error.strerror or str(error)
    return RequestError(f"can't listen on {address}: {reason}", kind=ErrorKind.BAD_CONFIG)


def _in_use(address: str) -> UnavailableError:
    return UnavailableError(
        f"can't listen on {address}: the address is in use; is another daemon running?", kind=ErrorKind.ADDRESS_IN_USE
    )


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
