"""What the daemon was told to do: one frozen, validated configuration from a TOML file and flags.

Flags override the file. Every mistake is a :class:`~fastio.errors.RequestError` that names where it was found (file
or flag), the key, what was found and what was wanted. Nothing here touches the network or opens a dataset.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec

from fastio.errors import ErrorKind, RequestError

__all__ = ["DEFAULT_LISTEN", "LogFormat", "LogLevel", "ServerConfig", "load_config"]

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]

# Loopback only: whoever wants to be reached from elsewhere says so, and brings tokens.
DEFAULT_LISTEN = "127.0.0.1:9470"

_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything the daemon is told, validated.

    Attributes:
        data: dataset name -> path; names are letters, digits, dots, underscores and dashes.
        listen: TCP addresses, each ``HOST:PORT`` (``[HOST]:PORT`` for IPv6); port 0 takes a free one.
        unix: path of a Unix socket to listen on as well.
        workers: processes that share the listening sockets. One sends about 2-3 GB/s.
        tokens: file of credentials, one ``name:token`` or bare token a line.
        insecure: allow listening beyond loopback without tokens.
        keepalive_s: a peer that was silent for this long is asked for a sign of life, and dropped after three times.
        drain_s: how long SIGTERM waits for open streams to finish.
        max_window_bytes: the largest look-ahead window one stream may ask for.
        max_memory_bytes: windows of all open streams together, over all workers; 0: half of the machine's memory.
        max_connections: per worker; further ones wait in the listening queue.
        reader_threads: threads per worker that read the disk; 0: as many as the reader finds best.
        sender_threads: threads per worker that send batches.
        index_directory: where dataset indexes are kept; None: beside the data, else the user's cache directory.
        log_level: the least severe events that are logged.
        log_format: "json", "console", or "auto" (console on a terminal).

    Raises:
        RequestError: a value is out of its range.
    """

    data: Mapping[str, str] = field(default_factory=dict)
    listen: tuple[str, ...] = ()
    unix: str | None = None
    workers: int = 1
    tokens: str | None = None
    insecure: bool = False
    keepalive_s: float = 15.0
    drain_s: float = 30.0
    max_window_bytes: int = 1 << 30
    max_memory_bytes: int = 0
    max_connections: int = 512
    reader_threads: int = 0
    # Eight sends may wait on slow peers at once before a quick one has to queue behind them, for 0.2 s at most.
    sender_threads: int = 8
    index_directory: str | None = None
    log_level: LogLevel = "info"
    log_format: LogFormat = "auto"

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not value >= least:
                raise _bad(f"{name} must be at least {least}, got {value}")
        for name, path in self.data.items():
            if not _NAME.fullmatch(name):
                raise _bad(f"dataset name {name!r}: wanted letters, digits, '.', '_' and '-' only")
            if not path:
                raise _bad(f"dataset {name!r} has an empty path")
        for text in self.listen:
            split_address(text)

    @property
    def memory_bytes(self) -> int:
        """What all windows of one worker may hold together."""
        return (self.max_memory_bytes or _physical_memory_bytes() // 2) // self.workers


_LEAST: dict[str, float] = {
    "workers": 1,
    "keepalive_s": 0.1,
    "drain_s": 0,
    "max_window_bytes": 1,
    "max_memory_bytes": 0,
    "max_connections": 1,
    "reader_threads": 0,
    "sender_threads": 1,
}


def split_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; an IPv6 host stands in brackets.

    >>> split_address("127.0.0.1:9470"), split_address("[::1]:0")
    (('127.0.0.1', 9470), ('::1', 0))
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise _bad(f"listen address {text!r}: an IPv6 host stands in brackets, as in [::1]:9470")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise _bad(f"listen address {text!r}: wanted HOST:PORT, such as {DEFAULT_LISTEN}")
    return host, int(port)


def load_config(path: Path | None, flags: Mapping[str, Any]) -> ServerConfig:
    """The configuration in the TOML file ``path`` (None: no file), overridden by ``flags``.

    Args:
        path: paths inside the file that are not absolute are taken from the file's own directory.
        flags: keys of :class:`ServerConfig` with values that were given; those left out or None keep the file's.

    Raises:
        RequestError: the file can't be read or parsed, a key is unknown, or a value is of the wrong type or range.
    """
    found = {} if path is None else _read_table(path)
    given = {key: value for key, value in flags.items() if value is not None}
    data = {**found.get("data", {}), **given.pop("data", {})}
    values: dict[str, Any] = {**found, **given, "data": data}
    if not values.get("listen") and not values.get("unix"):
        values["listen"] = (DEFAULT_LISTEN,)
    try:
        config = ServerConfig(**values)
    except RequestError as error:
        source = "command line" if path is None else f"{path}, with the flags given"
        raise _bad(f"{source}: {error}") from None
    if not config.data:
        raise _bad('no dataset to serve: give --data NAME=PATH, or a [data] table with name = "path" lines')
    return config


def _read_table(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _bad(f"{path}: can't read the configuration: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _bad(f"{path}: the configuration is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise _bad(f"{path}: not valid TOML: {error}") from None
    hints = get_type_hints(ServerConfig)
    values = {key: _typed(path, key, value, hints) for key, value in table.items()}
    return _from_directory(path.parent, values)


def _typed(path: Path, key: str, value: object, hints: Mapping[str, Any]) -> Any:
    known = [entry.name for entry in fields(ServerConfig)]
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        raise _bad(f"{path}: unknown key {key!r}; {hint}")
    wanted = dict[str, str] if key == "data" else hints[key]
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        wrong = str(error).removesuffix(" - at `$`")
        raise _bad(f"{path}: {key} = {value!r}: {wrong[:1].lower()}{wrong[1:]}") from None


def _from_directory(directory: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values with relative paths taken from ``directory``."""
    for key in ("unix", "tokens", "index_directory"):
        if values.get(key):
            values[key] = str(directory / values[key])
    if "data" in values:
        values["data"] = {name: str(directory / path) if path else "" for name, path in values["data"].items()}
    return values


def _physical_memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _bad(message: str) -> RequestError:
    return RequestError(message, kind=ErrorKind.BAD_CONFIG)
