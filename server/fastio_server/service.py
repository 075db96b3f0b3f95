"""A worker's connections: accepted, watched for signs of life, drained."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from fastio_server.connection import Connection
from fastio_server.counters import Counters
from fastio_server.events import DrainBegins
from fastio_server.line import Line
from fastio_server.logs import Log
from fastio_server.session import Session, Terms
from fastio_server.streams import Streams

__all__ = ["Limits", "Service"]

# Workers race for connections on shared listening sockets. One that has some already steps back for this long per
# connection, so that the ranks of a job spread over the workers instead of piling up on whoever wakes first.
_STEP_BACK_S = 0.0005
_LONGEST_STEP_BACK_S = 0.02

# A Unix socket has no autotuning: this holds a few large records, so that a sender sleeps less often.
_UNIX_SEND_BUFFER_BYTES = 4 << 20

# After the drain time connections are cut; what still hangs in a disk read after this is left to the end of process.
_CUT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What bounds a service."""

    max_connections: int
    sender_threads: int


class Service:
    """Accepts and serves connections until drained. Lives on the event loop."""

    def __init__(
        self, listeners: Sequence[socket.socket], terms: Terms, streams: Streams, limits: Limits, log: Log
    ) -> None:
        self._listeners = list(listeners)
        self._terms = terms
        self._streams = streams
        self._limits = limits
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._senders = ThreadPoolExecutor(limits.sender_threads, thread_name_prefix="fastio-send")
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._totals = Counters()
        self._accepted = 0
        self._draining = False
        self._empty = asyncio.Event()
        self._ticking: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to accept."""
        self._listen()
        self._tick()

    async def drain(self, reason: str, patience_s: float) -> None:
        """Accepts no more, tells every peer, lets open streams finish for ``patience_s`` seconds, then cuts them."""
        self._draining = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        streaming = sum(connection.streaming for connection in self._connections)
        self._log.info("draining", reason=reason, connections=len(self._connections), streams=streaming)
        for connection in list(self._connections):
            connection.handle(DrainBegins(reason))
        if not await self._until_empty(patience_s):
            for connection in list(self._connections):
                connection.cut(f"not done after {patience_s:g} s of draining")
            await self._until_empty(_CUT_S)
        if self._ticking is not None:
            self._ticking.cancel()
        self._senders.shutdown(wait=False)
        self._log.info("drained", **self.statistics())

    def statistics(self) -> dict[str, int | float]:
        """Connections now and ever, and what ended connections sent and waited for."""
        counts = {"connections": len(self._connections), "accepted": self._accepted}
        return {**counts, **self._streams.statistics(), **self._totals.values()}

    def __repr__(self) -> str:
        return f"Service({len(self._connections)} connections{', draining' if self._draining else ''})"

    def _listen(self) -> None:
        if not self._draining and len(self._connections) < self._limits.max_connections:
            for listener in self._listeners:
                self._loop.add_reader(listener, self._somebody_knocks)

    def _somebody_knocks(self) -> None:
        step_back_s = min(_STEP_BACK_S * len(self._connections), _LONGEST_STEP_BACK_S)
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        if step_back_s:
            self._loop.call_later(step_back_s, self._accept)
        else:
            self._accept()

    def _accept(self) -> None:
        if self._draining:
            return
        for listener in self._listeners:
            with suppress(OSError):  # another worker was quicker, or the peer has left already
                sock, _ = listener.accept()
                self._welcome(sock)
        self._listen()

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_SEND_BUFFER_BYTES)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._accepted += 1
        log = self._log.bind(connection=self._accepted, peer=_name_of_peer(sock))
        line = Line(sock, self._senders)
        connection = Connection(line, Session(self._terms), self._streams, self._totals, log)
        task = self._loop.create_task(connection.run())
        self._connections[connection] = task
        task.add_done_callback(lambda done: self._gone(connection, done))

    def _gone(self, connection: Connection, task: asyncio.Task[None]) -> None:
        del self._connections[connection]
        if not task.cancelled() and task.exception() is not None:
            self._log.error("internal error", error=repr(task.exception()))
        if not self._connections:
            self._empty.set()
        self._listen()

    def _tick(self) -> None:
        for connection in list(self._connections):
            connection.tick()
        self._streams.tidy()
        self._ticking = self._loop.call_later(self._terms.keepalive_s / 4, self._tick)

    async def _until_empty(self, patience_s: float) -> bool:
        until_s = time.monotonic() + patience_s
        while self._connections:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), max(0.0, until_s - time.monotonic()))
            except TimeoutError:
                return False
        return True


def _name_of_peer(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return f"pid {struct.unpack('3i', credentials)[0]}"
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "gone"
    return f"{host}:{port}"
