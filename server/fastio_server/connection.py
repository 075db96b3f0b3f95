"""One connection: a line, the protocol's server end, and the session that decides.

Two coroutines share it. One reads: bytes go into the memory that the protocol asks for, its events to the session. The
other is the only writer: it sends control frames and batches, one thing at a time, so that nothing lands inside a
frame and no buffer is given back while a thread still sends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from fastio.errors import ErrorKind, FastioError, LocalProtocolError, RemoteProtocolError, StoreError
from fastio.reader import ReadStream, ReadyBatch
from fastio.spec import StreamSpec
from fastio.wire import ServerEnd
from fastio_server.counters import Counters
from fastio_server.events import (
    CloseReader,
    Hangup,
    Instruction,
    Note,
    OpenReader,
    PeerClosed,
    PeerFault,
    ReaderFailed,
    ReaderFinished,
    ReaderOpened,
    Send,
    Tick,
)
from fastio_server.line import Line
from fastio_server.logs import Log
from fastio_server.session import Phase, Session
from fastio_server.streams import Streams

__all__ = ["Connection"]

# A peer that has this many answers waiting, because it does not read them, is not listened to until it does.
_MOST_FRAMES_WAITING = 64

# A peer that is told to go has this long to take the last frames and close. Closing at once, with bytes of the peer
# unread, would reset the connection and destroy the very error message that says why.
_LINGER_S = 3.0

# Handing frames to a thread and back costs two waits for the GIL, up to a millisecond beside threads that compute, so
# small batches go together. An answer to the peer waits behind at most this much.
_BUNDLE_BYTES = 16 << 20


class Connection:
    """Serves one peer until either side is done. Made and used on the event loop; ``run`` once."""

    def __init__(self, line: Line, session: Session, streams: Streams, totals: Counters, log: Log) -> None:
        self._line = line
        self._session = session
        self._streams = streams
        self._totals = totals
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._end = ServerEnd()
        self._counters = Counters()
        self._stream: ReadStream | None = None
        self._opening: asyncio.Task[None] | None = None
        self._hanging_up = False
        # Set by whoever changes what the writer looks at; it looks at everything each time it wakes.
        self._wake = asyncio.Event()
        self._made_s = self._heard_s = time.monotonic()
        self._seen_batch_bytes = 0

    async def run(self) -> None:
        """Serves the peer; returns when the connection is closed and everything it held is released."""
        writer = asyncio.create_task(self._guarded(self._write()))
        await self._guarded(self._read())
        await writer
        if self._opening is not None:
            await self._opening
        self._line.close()
        self._totals.add(self._counters)

    def handle(self, event: object) -> None:
        """Tells the session, and does what it says."""
        try:
            for instruction in self._session.handle(event):
                self._perform(instruction)
        except LocalProtocolError:
            self._log.exception("internal error: the session broke the protocol")
            self.cut("internal error")
        self._wake.set()  # whatever happened, credits among it, may be something to write

    def tick(self) -> None:
        """Called every now and then: looks whether the peer is still there."""
        now_s = time.monotonic()
        if self._line.batch_bytes != self._seen_batch_bytes:
            # A big batch on a thin line keeps a live peer silent for long, but the socket goes on taking bytes.
            self._seen_batch_bytes, self._heard_s = self._line.batch_bytes, now_s
        self.handle(Tick(now_s - self._heard_s, now_s - self._made_s))

    def cut(self, reason: str) -> None:
        """Ends the connection now, whatever it is doing. ``run`` returns soon after."""
        if not self._line.is_cut:
            self.handle(PeerClosed(reason))
            self._perform(Hangup(at_once=True))
            self._wake.set()

    @property
    def streaming(self) -> bool:
        """Whether a stream is open or about to be."""
        return self._session.phase in (Phase.OPENING, Phase.STREAMING, Phase.CLOSING)

    def __repr__(self) -> str:
        return f"Connection({self._session!r}, {self._line!r})"

    def _perform(self, instruction: Instruction) -> None:
        match instruction:
            case Send(message):
                self._line.queue(bytes(self._end.send(message)))
            case OpenReader(spec):
                self._opening = asyncio.create_task(self._open(spec))
            case CloseReader():
                self._close_stream()
            case Hangup(at_once=True):
                self._line.cut()
            case Hangup():
                self._hanging_up = True
                self._loop.call_later(_LINGER_S, self.cut, "did not take the last frames")
            case Note(event, level, values):
                getattr(self._log, level)(event, **values)

    async def _guarded(self, half: Coroutine[Any, Any, None]) -> None:
        """Runs one half of the connection; if it fails the other ends as well."""
        try:
            await half
        except Exception:
            self._log.exception("internal error")
            self.cut("internal error")

    async def _open(self, spec: StreamSpec) -> None:
        try:
            stream = await self._streams.open(spec, self._wake_from_thread)
        except Exception as error:
            self.handle(ReaderFailed(self._as_fastio(error)))
            return
        self._counters.streams += 1
        self._stream = stream
        if self._session.phase is Phase.CLOSED:
            self._close_stream()  # the peer left meanwhile
        else:
            self.handle(ReaderOpened(stream.steps, stream.fields))

    def _wake_from_thread(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be woken
            self._loop.call_soon_threadsafe(self._wake.set)

    def _as_fastio(self, error: Exception) -> FastioError:
        if isinstance(error, FastioError):
            return error
        self._log.error("internal error", exc_info=error)
        return StoreError(f"internal error of the daemon: {error!r}", kind=ErrorKind.INTERNAL)

    # --- reading

    async def _read(self) -> None:
        aside = memoryview(bytearray(4096))
        while not self._line.is_cut:
            # Once the last word is said, what the peer still sends is only taken off the line.
            closed = self._session.phase is Phase.CLOSED
            got = await self._line.receive(aside if closed else self._end.want())
            if got == 0:
                self.cut("closed by the peer")
            elif not closed:
                self._heard_s = time.monotonic()
                self._take_in(got)
            await self._line.until_fewer_waiting(_MOST_FRAMES_WAITING)

    def _take_in(self, got: int) -> None:
        try:
            events = self._end.filled(got)
        except RemoteProtocolError as error:
            self.handle(PeerFault(error))
            return
        for event in events:
            self.handle(event)

    # --- writing

    async def _write(self) -> None:
        while not self._line.is_cut:
            self._wake.clear()
            try:
                if self._line.waiting_frames:
                    await self._line.flush()
                elif self._hanging_up:
                    self._line.finish()
                    return
                elif not await self._send_batches():
                    with self._timed():
                        await self._wake.wait()
            except OSError as error:
                self.cut(error.strerror or str(error))

    async def _send_batches(self) -> bool:
        """Sends what is ready and has leave to go; False when there is nothing to do."""
        stream = self._stream
        if stream is None or self._session.phase is not Phase.STREAMING:
            return False
        ready: list[ReadyBatch] = []
        try:
            error = _take(stream, self._end.credits, ready)
            if ready:
                await self._send(ready)
                return True
        finally:
            for batch in ready:
                batch.release()
        if error is not None:
            self.handle(ReaderFailed(self._as_fastio(error)))
        elif stream.finished:
            self.handle(ReaderFinished())
        else:
            return False
        return True

    async def _send(self, ready: Sequence[ReadyBatch]) -> None:
        frames = [(self._end.send_batch(batch.descriptor, batch.payload_bytes), batch.buffers) for batch in ready]
        try:
            await self._line.send_batches(frames)
        except FastioError as error:
            # Inside a frame nothing can be said but bytes of it. The client asks again; what was in memory when this
            # batch was planned and can't be read now is then read first, and its error is told.
            self._log.error("batch failed while it was sent", error=str(error))
            self.cut("a batch could not be completed")
        self._counters.batches += len(ready)
        self._counters.sent_bytes, self._counters.socket_s = self._line.sent_bytes, self._line.socket_s

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._log.debug("stream statistics", **self._counters.values(), reader=asdict(self._stream.statistics()))
            self._streams.close(self._stream)
            self._stream = None

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Counts a wait of an open stream as the reader's or the peer's."""
        stream, has_credit, began_s = self._stream, self._end.credits > 0, time.monotonic()
        yield
        if stream is not None and has_credit:
            self._counters.reader_wait_s += time.monotonic() - began_s
        elif stream is not None:
            self._counters.credit_wait_s += time.monotonic() - began_s


def _take(stream: ReadStream, credits: int, ready: list[ReadyBatch]) -> Exception | None:
    """Adds batches to ``ready``, as many as are worth one hand-over to a sender thread.

    An error is returned, and stays in the stream: who takes again once the batches before it are sent gets it again.
    """
    ready_bytes = 0
    while credits > len(ready) and ready_bytes < _BUNDLE_BYTES:
        try:
            batch = stream.take()
        except Exception as error:
            return error
        if batch is None:
            break
        ready.append(batch)
        ready_bytes += batch.payload_bytes
    return None
