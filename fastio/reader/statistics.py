"""What readers and streams tell about themselves: snapshots, with what their extremes mean."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ReaderStatistics", "StreamStatistics"]


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """What a stream has done so far.

    Attributes:
        batches, records, payload_bytes: taken by the consumer.
        reads: extents read or records gathered.
        waited_reads: those whose bytes were not known to be in the page cache. Near 0: served from memory; near
            ``reads``: served by the device.
        leased_bytes, window_bytes: the window's use now. Near full: the consumer is the slower side; near empty: the
            device (or planning) is.
        ready_batches: batches that could be taken now.
    """

    batches: int
    records: int
    payload_bytes: int
    reads: int
    waited_reads: int
    leased_bytes: int
    window_bytes: int
    ready_batches: int


@dataclass(frozen=True, slots=True)
class ReaderStatistics:
    """The reader now. ``waiting_pieces`` near 0: the read threads keep up; large: they are the bottleneck."""

    streams: int
    waiting_pieces: int
    waiting_plans: int
