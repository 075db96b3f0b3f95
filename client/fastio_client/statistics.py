"""How is the loader doing? Numbers, and what they mean."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastio_client.memory import MemoryStatistics

__all__ = ["Counters", "LoaderStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderStatistics:
    """What a loader has done since it was made.

    Attributes:
        batches, records, payload_bytes: taken by the consumer.
        elapsed_s: from the first request for a batch until now.
        waited_s: how long the consumer waited for batches.
        reconnects: connections that broke and were made anew.
        queued_batches: received and not yet taken.
        depth_batches: how many may be received ahead.
        memory: of the slots that batches lie in.
    """

    batches: int
    records: int
    payload_bytes: int
    elapsed_s: float
    waited_s: float
    reconnects: int
    queued_batches: int
    depth_batches: int
    memory: MemoryStatistics

    @property
    def waiting_share(self) -> float:
        """Near 0: the consumer always finds a batch; training is the slower side. Near 1: it starves."""
        return self.waited_s / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def queue_share(self) -> float:
        """Near 0: every batch is taken as it comes; server or network are the slower side. Near 1: batches wait."""
        return self.queued_batches / self.depth_batches if self.depth_batches else 0.0


@dataclass(slots=True)
class Counters:
    """What is counted along the way. ``reconnects`` is written by the receiving thread, the rest by the consumer."""

    batches: int = 0
    records: int = 0
    payload_bytes: int = 0
    waited_s: float = 0.0
    reconnects: int = 0
    began_s: float | None = field(default=None)

    def elapsed_s(self) -> float:
        """Seconds since the first batch was asked for."""
        return 0.0 if self.began_s is None else time.monotonic() - self.began_s
