"""fastio as a PyTorch dataset: batches of tensors that share the memory they were received into.

>>> from torch.utils.data import DataLoader
>>> from fastio_client.torch import RemoteDataset
>>> dataset = RemoteDataset("fastio://storage:9470/imagenet", batch_size=256)
>>> loader = DataLoader(dataset, batch_size=None, num_workers=0)

``batch_size=None`` tells the DataLoader that the dataset makes the batches. Without workers nothing is copied between
the socket and the tensors, and a thread receives ahead: workers are only worth their copy for transforms in Python.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from fastio.errors import RequestError
from fastio_client.batch import Batch
from fastio_client.loader import Loader
from fastio_client.memory import SlotPool
from fastio_client.opening import geometry_of, new_pool, open_stream
from fastio_client.options import LoaderOptions
from fastio_client.progress import Place
from fastio_client.ragged import Ragged
from fastio_client.source import Source
from fastio_client.statistics import LoaderStatistics

__all__ = ["RaggedTensor", "RemoteDataset"]

_log = logging.getLogger("fastio_client")

# What the shared tensor holds.
_GENERATION, _EPOCH, _RECORDS_DONE, _STEP, _BEGUN = range(5)


class RaggedTensor(NamedTuple):
    """Records of varying length: record i is ``values[offsets[i]:offsets[i + 1]]``. Text is UTF-8 bytes (uint8)."""

    values: torch.Tensor
    offsets: torch.Tensor

    def to_nested(self) -> torch.Tensor:
        """The records as a nested tensor of jagged layout, which shares the values."""
        return torch.nested.nested_tensor_from_jagged(self.values, self.offsets)


class RemoteDataset(LoaderOptions, IterableDataset[dict[str, Any]]):
    """An ``IterableDataset`` of batches; for the arguments see :class:`~fastio_client.options.LoaderOptions`.

    Each batch is a dict of the fields in order: a tensor of shape (B, ...) for a fixed field, a :class:`RaggedTensor`
    for a variable one; times are int64 in their field's unit. ``"_id"`` holds the record ids (int64, shape (B,)), and
    ``"_mask"``, if there are nullable fields, a dict of their masks (bool, shape (B,), False where a value is null).

    With ``num_workers=k`` the steps of the rank are dealt to the workers, and the DataLoader's own round-robin restores
    the order: the batches are the same for every k, under fork and spawn.

    Epochs: iterating anew is the next epoch, without workers or with ``persistent_workers=True``. Workers that are
    started for each epoch know nothing of the last one: call ``set_epoch`` before each (a second iteration without it
    repeats the epoch, and says so in the log).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        # Shared with workers, also with persistent ones, which only look at it when an iteration begins.
        self._shared = torch.zeros(5, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._loader = Loader(**_options(self))
        self._worker = _Worker(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        if info is None:
            return map(_tensors, iter(self._loader))
        return self._worker.iterate(self._shared, info.id, info.num_workers)

    def __len__(self) -> int:
        return len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is ``epoch``, also in persistent workers; keeps the place of a loaded state in it."""
        self._loader.set_epoch(epoch)
        self._publish()

    def state_dict(self, *, steps: int | None = None) -> dict[str, Any]:
        """Where the consumer is, as JSON-able values; see :meth:`Loader.state_dict`.

        Args:
            steps: with workers, the batches taken from the DataLoader since the last ``set_epoch`` or
                ``load_state_dict``: they do not come by here. None without workers.
        """
        if steps is None:
            return self._loader.state_dict()
        return self._loader.state_after(steps)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state, in workers too; see :meth:`Loader.load_state_dict`."""
        self._loader.load_state_dict(state)
        self._publish()

    def statistics(self) -> LoaderStatistics:
        """Of this process; with workers, theirs are their own."""
        return self._loader.statistics()

    def close(self) -> None:
        """Ends this process's connections."""
        self._loader.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # The tensor pickles as its values, and as shared memory where a worker process is being started.
        return _rebuild, (type(self), _options(self), self._shared)

    def __repr__(self) -> str:
        return f"<RemoteDataset {self.url} rank {self.rank} of {self.world_size}>"

    def _publish(self) -> None:
        place = self._loader.upcoming
        generation = int(self._shared[_GENERATION]) + 1
        self._shared[_GENERATION:_BEGUN] = torch.tensor([generation, place.epoch, place.records_done, place.step])


class _Worker:
    """What a DataLoader worker keeps from one iteration to the next. Nothing is opened before the first."""

    def __init__(self, options: LoaderOptions) -> None:
        self._options = options
        self._source = Source(options)
        self._pool: SlotPool | None = None
        self._generation = -1
        self._place = Place()

    def iterate(self, shared: torch.Tensor, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        """This worker's batches of the next epoch.

        What the next epoch is must not depend on how far each worker had got when an iteration was abandoned, or they
        would deliver different ones: it is always the one after the last that was begun.
        """
        generation, epoch, records_done, step, begun = shared.tolist()
        if generation != self._generation:
            self._place = Place(epoch, records_done, step, loaded=True)
            if worker == 0 and begun == generation + 1:
                _log.warning(
                    "epoch %d of %s is delivered again: call set_epoch before each epoch, or use "
                    "persistent_workers=True",
                    epoch,
                    self._source.name,
                )
        else:
            self._place = Place(self._place.epoch + 1)
        self._generation = generation
        if worker == 0:
            shared[_BEGUN] = generation + 1
        return self._batches(worker, workers)

    def _batches(self, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        self._pool = self._pool or new_pool()
        if not geometry_of(self._options, self._source).plan(self._place.records_done).steps:
            return iter(())
        return _StreamBatches(self._options, self._source, self._pool, self._place, worker, workers)


class _StreamBatches(Iterator[dict[str, Any]]):
    """Batches of one worker in one epoch; the stream ends when this is dropped."""

    def __init__(
        self, options: LoaderOptions, source: Source, pool: SlotPool, place: Place, worker: int, workers: int
    ) -> None:
        self._stream = open_stream(options, source, pool, place, worker=worker, workers=workers)
        weakref.finalize(self, self._stream.shut)

    def __next__(self) -> dict[str, Any]:
        batch = self._stream.take()
        if batch is None:
            self._stream.close()
            raise StopIteration
        return _tensors(batch)


def _tensors(batch: Batch) -> dict[str, Any]:
    for name in ("_id", "_mask"):
        if name in batch:
            raise RequestError(f"the dataset has a field {name!r}, which is fastio's own; name the fields to deliver")
    tensors: dict[str, Any] = {}
    for name, column in batch.items():
        if isinstance(column, Ragged):
            tensors[name] = RaggedTensor(_tensor(column.values), _tensor(column.offsets_B1))
        else:
            tensors[name] = _tensor(column)
    tensors["_id"] = _tensor(batch.ids)
    if batch.masks:
        tensors["_mask"] = {name: _tensor(mask_B) for name, mask_B in batch.masks.items()}
    return tensors


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """A tensor that shares the array's memory and keeps it alive."""
    if array.dtype.kind in "mM":
        array = array.view(np.int64)
    elif array.dtype.kind in "SV":
        array = array[..., None].view(np.uint8)
    return torch.from_numpy(array)


def _options(options: LoaderOptions) -> dict[str, Any]:
    return {item.name: getattr(options, item.name) for item in fields(LoaderOptions)}


def _rebuild(cls: type[RemoteDataset], options: dict[str, Any], shared: torch.Tensor) -> RemoteDataset:
    dataset = cls(**options)
    dataset._shared = shared.share_memory_()  # type: ignore[no-untyped-call]
    return dataset
