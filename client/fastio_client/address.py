"""Where is a dataset? A URL as the user writes it, taken apart.

fastio://HOST:PORT/NAME            a daemon over TCP; an IPv6 host stands in brackets; the port may be left out
fastio+unix:///PATH.sock/NAME      a daemon over a Unix socket: all but the last component is the socket's path
anything without "://"             a path on this machine: a private daemon is started for this process
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from fastio.errors import RequestError

__all__ = ["DEFAULT_PORT", "Address", "parse_address"]

DEFAULT_PORT = 9470

_TCP = re.compile(r"(?:\[(?P<six>[^\]/]+)\]|(?P<host>[^:/\[\]@]+))(?::(?P<port>\d{1,5}))?/(?P<name>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Address:
    """A dataset's place.

    Attributes:
        kind: ``"tcp"``, ``"unix"``, or ``"path"`` for data on this machine that no daemon serves yet.
        dataset: the name under which the daemon knows it; for a path, its last component.
        host, port: of a TCP daemon.
        path: of a Unix socket (beginning with NUL: an abstract name), or of the data.
    """

    kind: Literal["tcp", "unix", "path"]
    dataset: str = ""
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def server(self) -> str:
        """The daemon, for messages."""
        if self.kind == "tcp":
            return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        return self.path.replace("\0", "@", 1)

    @property
    def peer(self) -> str:
        """The daemon, in the messages of a connection: a private one's name is random, and says nothing to a reader."""
        return "the private daemon" if self.path.startswith("\0fastio-") else self.server


def parse_address(url: str) -> Address:
    """Takes a URL or path apart. Names and socket paths may be percent-encoded.

    Raises:
        RequestError: the URL is none of the three forms.

    >>> parse_address("fastio://[::1]:9000/digits").server
    '[::1]:9000'
    >>> parse_address("fastio+unix:///run/fastio.sock/digits")
    Address(kind='unix', dataset='digits', host='', port=0, path='/run/fastio.sock')
    """
    if not url:
        raise RequestError("an empty path or URL names no dataset")
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Address("path", dataset=_name_of(url), path=url)
    if scheme == "fastio":
        return _tcp(url, rest)
    if scheme == "fastio+unix":
        return _unix(url, rest)
    raise RequestError(
        f"{url!r}: wanted fastio://HOST:PORT/NAME, fastio+unix:///PATH.sock/NAME or a plain path, got {scheme!r}"
    )


def _name_of(path: str) -> str:
    """A name that a daemon takes, recognisable in messages."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(os.path.abspath(path))) or "data"


def _tcp(url: str, rest: str) -> Address:
    found = _TCP.fullmatch(rest)
    if found is None or not found["name"]:
        raise RequestError(f"{url!r}: wanted fastio://HOST:PORT/NAME, such as fastio://127.0.0.1:{DEFAULT_PORT}/train")
    port = int(found["port"] or DEFAULT_PORT)
    if not 0 < port < 1 << 16:
        raise RequestError(f"{url!r}: the port must be between 1 and 65535, got {port}")
    return Address("tcp", dataset=unquote(found["name"]), host=found["six"] or found["host"], port=port)


def _unix(url: str, rest: str) -> Address:
    path, slash, name = rest.rpartition("/")
    if not rest.startswith("/") or not slash or not path or not name:
        raise RequestError(
            f"{url!r}: wanted fastio+unix:///PATH.sock/NAME, such as fastio+unix:///run/fastio.sock/train"
        )
    return Address("unix", dataset=unquote(name), path=unquote(path))
