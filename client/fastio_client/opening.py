"""From what a loader is told to a stream that runs: the numbers that need the dataset's description."""

from __future__ import annotations

from fastio_client.memory import SlotPool
from fastio_client.options import LoaderOptions
from fastio_client.progress import Geometry, Place
from fastio_client.receiver import StreamPlan
from fastio_client.source import Source, batch_bytes
from fastio_client.state import LoaderState
from fastio_client.stream import Stream

__all__ = ["geometry_of", "new_pool", "open_stream", "state_of"]

# At least one batch is received while another is consumed; beyond 32, latency is hidden many times over and only the
# window's bytes count.
_DEPTH_LIMITS = (2, 32)
# Slots of batches that the consumer has let go of, kept for the next ones: as many as a large window holds.
_IDLE_BYTES = 1 << 28


def new_pool() -> SlotPool:
    """Memory for the batches of one process."""
    return SlotPool(idle_bytes=_IDLE_BYTES)


def open_stream(
    options: LoaderOptions, source: Source, pool: SlotPool, begin: Place, *, worker: int = 0, workers: int = 1
) -> Stream:
    """Begins to receive this rank's batches from ``begin`` to the end of its epoch, or one worker's share of them."""
    info = source.info()
    spec = source.stream_spec(epoch=begin.epoch, start_records=begin.records_done, worker=worker, workers=workers)
    least, most = _DEPTH_LIMITS
    plan = StreamPlan(
        spec=spec,
        fingerprint=info.fingerprint,
        steps=geometry_of(options, source).plan(begin.records_done).steps,
        step_offset=begin.step,
        records=info.records,
        arrow_schema=info.arrow_schema,
        depth=min(max(spec.window_bytes // batch_bytes(info, options), least), most),
        name=source.name,
        reconnect_timeout_s=options.reconnect_timeout_s,
    )
    return Stream(plan, source.connect, pool)


def geometry_of(options: LoaderOptions, source: Source) -> Geometry:
    """The steps of this rank over the dataset's records."""
    return Geometry(
        records=source.info().records,
        batch_size=options.batch_size,
        rank=options.rank or 0,
        world_size=options.world_size or 1,
        tail=options.tail,
        order=options.order_spec,
    )


def state_of(options: LoaderOptions, source: Source, place: Place) -> LoaderState:
    """What is saved of a consumer that has come to ``place``."""
    return LoaderState(
        fingerprint=source.info().fingerprint,
        order=options.order_spec,
        epoch=place.epoch,
        records_done=place.records_done,
        step=place.step,
        delivered=place.delivered,
    )
