"""A connected socket with one writer: control frames, batches, waiting for room, and being cut.

It knows frames as bytes and nothing of what they mean. Control frames are small and sent from the event loop as far as
the socket takes them; batches go through a few sender threads (:mod:`fastio_server.sending`).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor
from contextlib import suppress

from fastio_server.sending import PATIENCE_S, Frame, Outgoing, send_some

__all__ = ["Line"]


class Line:
    """One end of a connection. ``send_*`` and ``flush`` are called by one coroutine, one at a time.

    Nothing here is ever cancelled: a thread inside ``sendmsg`` would go on reading memory that its owner takes back.
    To end early the line is cut, which ends every wait on it.
    """

    def __init__(self, sock: socket.socket, senders: Executor) -> None:
        self._sock = sock
        self._senders = senders
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes] = deque()
        self._sending = Outgoing(())
        self._sent_bytes = 0
        self._batch_bytes = 0
        self._flushed = asyncio.Event()
        self._writable: asyncio.Future[None] | None = None
        self.is_cut = False
        self.socket_s = 0.0

    @property
    def waiting_frames(self) -> int:
        """Control frames that are queued."""
        return len(self._waiting)

    @property
    def sent_bytes(self) -> int:
        """Bytes of finished frames."""
        return self._sent_bytes

    @property
    def batch_bytes(self) -> int:
        """Bytes of batches that the socket has taken so far, of the one on its way too."""
        return self._batch_bytes + self._sending.sent_bytes

    async def receive(self, view: memoryview) -> int:
        """Fills some of ``view``; 0 at the end of what the peer sends, or when the connection broke."""
        try:
            return await self._loop.sock_recv_into(self._sock, view)
        except OSError:
            return 0

    def queue(self, frame: bytes) -> None:
        """Puts a control frame behind those that wait."""
        self._waiting.append(frame)

    async def until_fewer_waiting(self, limit_frames: int) -> None:
        """Returns when at most this many frames are queued, or the line is cut."""
        while len(self._waiting) > limit_frames and not self.is_cut:
            self._flushed.clear()
            await self._flushed.wait()

    async def flush(self) -> None:
        """Sends the queued control frames.

        Raises:
            OSError: the connection broke.
        """
        frames = b"".join(self._waiting)
        self._waiting.clear()
        self._flushed.set()
        await self._transmit(Outgoing([(frames, ())]), None)

    async def send_batches(self, frames: Iterable[Frame]) -> None:
        """Sends frames of any length. On return, also by an error or a cut, nobody reads their buffers any more.

        Raises:
            OSError: the connection broke.
            FastioError: a buffer could not be had.
        """
        self._sending = outgoing = Outgoing(frames)
        try:
            await self._transmit(outgoing, self._senders)
        finally:
            self._batch_bytes += outgoing.sent_bytes
            self._sending = Outgoing(())

    def finish(self) -> None:
        """Says that nothing more will be sent: the peer sees the end after the last frame."""
        self._shut(socket.SHUT_WR)

    def cut(self) -> None:
        """Ends the connection and everything that waits for it, now."""
        self.is_cut = True
        self._shut(socket.SHUT_RDWR)
        self._flushed.set()
        if self._writable is not None:
            _resolve(self._writable)

    def close(self) -> None:
        """Gives the socket back; nobody may be sending or receiving."""
        self._sock.close()

    def __repr__(self) -> str:
        state = "cut" if self.is_cut else f"{len(self._waiting)} frames waiting"
        return f"Line({self.sent_bytes} bytes sent, {state})"

    async def _transmit(self, outgoing: Outgoing, threads: Executor | None) -> None:
        began_s = time.monotonic()
        try:
            while not self.is_cut:
                if threads is None:
                    done = send_some(self._sock, outgoing, 0)
                else:
                    done = await self._loop.run_in_executor(threads, send_some, self._sock, outgoing, PATIENCE_S)
                if done:
                    break
                await self._until_writable()
        finally:
            self._sent_bytes += outgoing.sent_bytes
            self.socket_s += time.monotonic() - began_s

    async def _until_writable(self) -> None:
        if self.is_cut:
            return
        self._writable = self._loop.create_future()
        self._loop.add_writer(self._sock, _resolve, self._writable)
        try:
            await self._writable
        finally:
            self._loop.remove_writer(self._sock)
            self._writable = None

    def _shut(self, how: int) -> None:
        with suppress(OSError):  # the peer may have been quicker
            self._sock.shutdown(how)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
