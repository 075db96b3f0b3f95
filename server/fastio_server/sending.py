"""Sends frames from threads: bulk bytes leave through ``sendmsg`` and ``sendfile``, without the GIL or the event loop.

A frame is larger than a socket's buffer, and part of it may lie in files, to be sent from the page cache. Here a
thread sends what the socket takes and waits for room, but only for so long: a peer that reads slowly or not at all must
not keep one of a few threads. The unfinished frame then goes back to the event loop, which waits for the socket at no
cost and hands the frame to a thread again.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterable, Iterator

from fastio.files import FileSpan

__all__ = ["PATIENCE_S", "Frame", "Outgoing", "send_some"]

# How long one call may spend waiting for room in the socket, in all. A peer on loopback or a data-centre network makes
# room within a millisecond, again and again; returning to the loop each time would cost a quarter of the throughput.
PATIENCE_S = 0.2

# What sendfile says where the file system can't feed a socket: its bytes are read and sent instead.
_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
# What it says of the file; everything else is the socket's.
_FILE_ERRORS = frozenset({errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENODATA})

Buffer = bytes | memoryview | FileSpan
Frame = tuple[bytes, Iterable[Buffer]]


class Outgoing:
    """Frames on their way. One thread at a time uses it; ``sent_bytes`` may be read by others at any time.

    Args:
        frames: each is a head, which goes out together with the first buffer so that no frame begins with a tiny
            packet, and buffers, gone through once. A buffer is used only until the next is asked for. Asking may block
            and raise, so frames that have any are for sender threads.
    """

    __slots__ = ("_buffers", "_frames", "_views", "sent_bytes")

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames = iter(frames)
        self._buffers: Iterator[Buffer] = iter(())
        self._views: list[memoryview | FileSpan] = []
        self.sent_bytes = 0

    def window(self) -> list[memoryview | FileSpan]:
        """What to offer to the socket next, at most one head and one buffer; empty when all was sent."""
        while not self._views:
            self._pull()
            if not self._views:
                frame = next(self._frames, None)
                if frame is None:
                    break
                head, buffers = frame
                self._views = [memoryview(head)] if head else []
                self._buffers = iter(buffers)
                self._pull()
        return self._views

    def advance(self, sent_bytes: int) -> None:
        """Notes that the socket took this many bytes of the window."""
        self.sent_bytes += sent_bytes
        while self._views and sent_bytes >= len(self._views[0]):
            sent_bytes -= len(self._views.pop(0))
        if sent_bytes:
            first = self._views[0]
            if isinstance(first, FileSpan):
                first.skip(sent_bytes)
            else:
                self._views[0] = first[sent_bytes:]

    def __repr__(self) -> str:
        return f"Outgoing({self.sent_bytes} bytes sent)"

    def _pull(self) -> None:
        """Adds the next buffer of this frame that holds anything."""
        view = next((view for view in map(_as_bytes, self._buffers) if len(view)), None)
        if view is not None:
            self._views.append(view)


def send_some(sock: socket.socket, outgoing: Outgoing, patience_s: float) -> bool:
    """Sends what the socket takes within ``patience_s`` seconds of waiting; True when all of ``outgoing`` is sent.

    Args:
        sock: non-blocking.
        outgoing: advanced in place.
        patience_s: waiting time in all, not per wait: a peer that takes a few bytes each time would otherwise hold
            the thread for as long as it likes. 0 never waits.

    Raises:
        OSError: the connection broke.
        FastioError: a buffer could not be had; its frame can't be completed.
    """
    waited_s = 0.0
    poll = None
    while window := outgoing.window():
        try:
            sent = _offer(sock, window)
        except BlockingIOError:
            if waited_s >= patience_s:
                return False
            if poll is None:
                poll = select.poll()
                poll.register(sock, select.POLLOUT)
            began = time.monotonic()
            poll.poll(max(1.0, (patience_s - waited_s) * 1e3))
            waited_s += time.monotonic() - began
        else:
            outgoing.advance(sent)
    return True


def _offer(sock: socket.socket, window: list[memoryview | FileSpan]) -> int:
    """One call's worth: memory up to the first span, or the span; how many bytes the socket took."""
    first = window[0]
    if isinstance(first, FileSpan):
        return _send_span(sock, first)
    views = [view for view in window if isinstance(view, memoryview)]
    more = 0 if len(views) == len(window) else socket.MSG_MORE
    return sock.sendmsg(views, (), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT | more)


def _send_span(sock: socket.socket, span: FileSpan) -> int:
    try:
        sent = os.sendfile(sock.fileno(), span.file.fd, span.offset, len(span))
    except OSError as error:
        if error.errno in _NO_SENDFILE:
            return sock.send(bytes(span), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        if error.errno in _FILE_ERRORS:
            raise span.failed(error) from error
        raise
    if sent == 0:
        raise span.failed(None)
    return sent


def _as_bytes(buffer: Buffer) -> memoryview | FileSpan:
    if isinstance(buffer, FileSpan):
        return buffer
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
