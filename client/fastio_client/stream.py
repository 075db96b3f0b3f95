"""One stream of batches as its consumer sees it: a queue that a thread fills."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time

from fastio.errors import ClosedError, ErrorKind, StoreError
from fastio_client.batch import Batch
from fastio_client.flow import Flow
from fastio_client.memory import SlotPool
from fastio_client.receiver import Connector, Receiver, StreamPlan

__all__ = ["Stream"]

_log = logging.getLogger("fastio_client")

# A consumer that has waited this long is told what for, again and again: a hang that explains itself.
_EXPLAIN_EVERY_S = 30.0
# close() waits this long for the thread; one that looks up a host name can't be woken, and ends by itself.
_JOIN_TIMEOUT_S = 2.0


class Stream:
    """Batches of one :class:`StreamPlan`, in order. ``take`` is for one consumer; ``shut`` may be called by anyone."""

    def __init__(self, plan: StreamPlan, connect: Connector, pool: SlotPool) -> None:
        self._name = plan.name
        self._pid = os.getpid()
        # Bounded by credits: no more than plan.depth batches are ever on the way.
        self._queue: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        self._flow = Flow(plan.depth)
        self._receiver = Receiver(plan, connect, pool, self._flow, self._queue.put)
        # The thread knows the receiver and the queue, not this object.
        self._thread = threading.Thread(target=self._receiver.run, name=f"fastio {plan.name}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Batches received and not yet taken."""
        return self._flow.queued

    @property
    def depth(self) -> int:
        """How many batches may be received ahead."""
        return self._flow.depth

    @property
    def reconnects(self) -> int:
        """Connections that broke and were made anew."""
        return self._receiver.reconnects

    def take(self) -> Batch | None:
        """The next batch; None after the last. Waits, and can be interrupted by a signal.

        Raises:
            FastioError: the server reported an error, or could not be reached for too long.
            ClosedError: the stream was closed, or belongs to the process this one was forked from.
        """
        if self._receiver.stopped or self._pid != os.getpid():
            raise ClosedError(f"this iteration over {self._name} was ended by close, a newer one, or a fork")
        item = self._get()
        if isinstance(item, Batch):
            self._flow.taken()
            return item
        self._queue.put(item)  # whoever asks again gets the same answer
        if item is None:
            return None
        raise item

    def shut(self) -> None:
        """Ends the stream without waiting for its thread. May run in a finalizer."""
        self._receiver.stop()

    def close(self) -> None:
        """Ends the stream; batches that were taken stay valid."""
        self.shut()
        if self._pid == os.getpid() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"<Stream at {self._receiver.place()}, {self._flow}>"

    def _get(self) -> Batch | BaseException | None:
        began_s = time.monotonic()
        while True:
            try:
                return self._queue.get(timeout=_EXPLAIN_EVERY_S)
            except queue.Empty:
                waited_s = time.monotonic() - began_s
                _log.warning("waiting for %s since %.0f s; %s", self._receiver.place(), waited_s, self._flow)
                if not self._thread.is_alive() and self._queue.empty():
                    message = f"the thread that receives {self._receiver.place()} died"
                    raise StoreError(message, kind=ErrorKind.INTERNAL) from None
