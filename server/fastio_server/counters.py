"""What a connection or a worker sent, and what it waited for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """Sums over streams. Of the three times, the largest names the bottleneck: one near 0 was never in the way.

    Attributes:
        streams, batches, sent_bytes: how much was sent.
        reader_wait_s: the peer had given leave and no batch was ready: storage or the reader is slow.
        credit_wait_s: the peer had given no leave: training is the slow part, as it should be.
        socket_s: handing bytes to the socket, waiting for room included: network or the peer's receiving.
    """

    streams: int = 0
    batches: int = 0
    sent_bytes: int = 0
    reader_wait_s: float = 0.0
    credit_wait_s: float = 0.0
    socket_s: float = 0.0

    def add(self, other: Counters) -> None:
        """Adds what another one counted."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def values(self) -> dict[str, int | float]:
        """By name, seconds rounded to milliseconds."""
        return {name: round(value, 3) for name, value in asdict(self).items()}
