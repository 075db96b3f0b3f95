"""The loader: batches of one rank, epoch after epoch, as NumPy arrays."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import TracebackType
from typing import Any, Self

from fastio.errors import ClosedError, RequestError
from fastio.order import Digest, Verdict
from fastio_client.batch import Batch
from fastio_client.opening import geometry_of, new_pool, open_stream, state_of
from fastio_client.options import LoaderOptions
from fastio_client.progress import Geometry, Place, Progress
from fastio_client.source import Source
from fastio_client.state import LoaderState
from fastio_client.statistics import Counters, LoaderStatistics
from fastio_client.stream import Stream

__all__ = ["Loader"]


class Loader(LoaderOptions):
    """Batches of one rank of a dataset, in an exactly reproducible order. For the arguments see :class:`LoaderOptions`.

    Iterating yields the :class:`~fastio_client.batch.Batch` objects of one epoch. The next ``iter`` yields

    - the next epoch, if the last iteration came to its end;
    - the same epoch from where that iteration began, if it was abandoned;
    - the epoch that ``set_epoch`` named, or the rest of the epoch of a loaded state.

    ``len(loader)`` is the number of steps, the same on every rank, of the iteration that is running or will be next;
    after ``load_state_dict`` that is what remains of the epoch.

    Nothing is connected until the loader is used. A broken connection is made anew and goes on at the exact record. One
    thread uses a loader at a time, and one iterator of it is alive at a time. In a forked child a loader opens
    connections of its own; pickled, it carries its arguments and nothing else.

    >>> with Loader("fastio://127.0.0.1:9470/train", batch_size=256) as loader:  # doctest: +SKIP
    ...     for batch in loader:
    ...         train(batch["image"], batch["label"])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._source = Source(self)
        self._progress = Progress()
        self._counters = Counters()
        self._closed = False
        self._stream: Stream | None = None
        self._begin_in_this_process()

    def __iter__(self) -> Iterator[Batch]:
        self._check_open()
        self._end_stream()
        geometry = self._geometry()
        steps = geometry.plan(self._progress.upcoming().records_done).steps
        begin = self._progress.begin_iteration()
        if steps:
            self._stream = open_stream(self, self._source, self._pool, begin)
        return _Epoch(self, self._stream)

    def __len__(self) -> int:
        self._check_open()
        running = self._stream is not None
        place = self._progress.begin if running else self._progress.upcoming()
        return self._geometry().plan(place.records_done).steps

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is ``epoch``; ends one that is running. If a state of this epoch was loaded, the iteration
        goes on from there, so that the usual loop over epochs can be resumed in the middle of one.

        Raises:
            RequestError: the epoch is negative.
        """
        self._check_open()
        self.stream_spec(epoch=epoch, start_records=0, window_bytes=1)
        self._end_stream()
        self._progress.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is: a plain dict that ``json`` takes, a few hundred bytes, the same on every rank.

        It counts the batches that were taken from the iterator, never those received ahead.
        """
        self._check_open()
        return state_of(self, self._source, self._progress.place(self._geometry())).to_dict()

    def state_after(self, steps: int) -> dict[str, Any]:
        """What ``state_dict`` would be once ``steps`` batches had been taken from where the last iteration began, or
        the next one begins if none is running. For batches that were made by other processes with these arguments.

        Raises:
            RequestError: ``steps`` is negative.
        """
        self._check_open()
        if steps < 0:
            raise RequestError(f"steps must be at least 0, got {steps}")
        return state_of(self, self._source, self._progress.place_after(steps, self._geometry())).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state with exactly the records not yet delivered; ends an iteration that is running.

        Batch size, world size and rank may be others than when it was saved.

        Raises:
            RequestError: the state belongs to another dataset, order or seed, or is damaged.
        """
        self._check_open()
        loaded = LoaderState.from_dict(state)
        info = self._source.info()
        loaded.check(fingerprint=info.fingerprint, order=self.order_spec, records=info.records)
        self._end_stream()
        delivered = loaded.delivered if loaded.records_done else Digest()
        place = Place(loaded.epoch, loaded.records_done, loaded.step, delivered, loaded=True)
        self._progress.load(place, self._geometry())

    def verify_epoch(self) -> Verdict:
        """Whether the records taken in the current (or the last) iteration are exactly those that were due, each once.

        The verdict is true or false in a condition, and says how many are missing or doubled. It is about this rank,
        and about the steps taken so far. In a world of one it covers what earlier runs took of the epoch as well, if
        the state was saved by a world of one; a finished epoch is compared with the dataset's N records, whatever the
        order was. To prove a whole epoch of many ranks, merge the ranks' :attr:`digest` and give the sum to
        ``fastio.order.verify_digest``.
        """
        self._check_open()
        return self._progress.verify(self._geometry())

    def statistics(self) -> LoaderStatistics:
        """What the loader has done so far, whether it is starving, and what it holds."""
        counters, stream = self._counters, self._stream
        return LoaderStatistics(
            batches=counters.batches,
            records=counters.records,
            payload_bytes=counters.payload_bytes,
            elapsed_s=counters.elapsed_s(),
            waited_s=counters.waited_s,
            reconnects=counters.reconnects + (stream.reconnects if stream else 0),
            queued_batches=stream.queued if stream else 0,
            depth_batches=stream.depth if stream else 0,
            memory=self._pool.statistics(),
        )

    @property
    def digest(self) -> Digest:
        """Count and order-free digest of the record ids that this rank took in the current or last iteration; on rank 0
        with those that a loaded state accounts for."""
        # Ranks' digests add up, so only one of them may go on from what was delivered before.
        begin = self._progress.begin.delivered
        return self._progress.ids if self.rank or begin is None else begin.merge(self._progress.ids)

    @property
    def epoch(self) -> int:
        """The epoch of the current or, if none is running, of the next iteration."""
        return (self._progress.begin if self._stream is not None else self._progress.upcoming()).epoch

    @property
    def upcoming(self) -> Place:
        """Where the next iteration would begin."""
        return self._progress.upcoming()

    def close(self) -> None:
        """Ends the connection. Batches that were taken stay valid. Closing twice is fine."""
        self._end_stream()
        self._closed = True
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), {item.name: getattr(self, item.name) for item in fields(LoaderOptions)})

    def __repr__(self) -> str:
        now = "closed" if self._closed else self._progress if self._stream is None else self._stream
        return f"<Loader {self.url} rank {self.rank} of {self.world_size}, {now}>"

    # --- parts

    def _geometry(self) -> Geometry:
        return geometry_of(self, self._source)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the loader of {self.url} is closed")
        if self._pid != os.getpid():
            self._begin_in_this_process()

    def _begin_in_this_process(self) -> None:
        # After a fork, threads are gone and locks may be held for ever: everything that has some is made anew.
        self._pid = os.getpid()
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._pool = new_pool()

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._counters.reconnects += stream.reconnects
            stream.close()


class _Epoch(Iterator[Batch]):
    """One iteration. When it is dropped, as by ``break``, its stream ends with it."""

    def __init__(self, loader: Loader, stream: Stream | None) -> None:
        self._loader = loader
        self._stream = stream
        self._done = False
        if stream is None:
            self._finish()
        else:
            weakref.finalize(self, stream.shut)

    def __next__(self) -> Batch:
        loader, stream = self._loader, self._stream
        if self._done or stream is None:
            raise StopIteration
        if stream is not loader._stream:
            raise ClosedError(f"this iteration over {loader.url} was ended by close, set_epoch, or a newer one")
        counters, began_s = loader._counters, time.monotonic()
        counters.began_s = counters.began_s or began_s
        batch = stream.take()
        counters.waited_s += time.monotonic() - began_s
        if batch is None:
            self._finish()
            raise StopIteration
        counters.batches += 1
        counters.records += batch.records
        counters.payload_bytes += batch.payload_bytes
        loader._progress.took(batch.ids)
        return batch

    def _finish(self) -> None:
        self._done = True
        self._loader._progress.finish()
        self._loader._end_stream()


def _rebuild(cls: type[LoaderOptions], options: dict[str, Any]) -> LoaderOptions:
    return cls(**options)
