"""One batch as arrays: views of the memory it was received into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastio.errors import RemoteProtocolError
from fastio.extents import Int64Array
from fastio.layout import BatchLayout, view_batch
from fastio.spec import FieldSpec
from fastio_client.ragged import Ragged

__all__ = ["Batch", "BatchSource", "make_batch"]

Column = npt.NDArray[Any] | Ragged
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BatchSource:
    """What all batches of a stream have in common.

    Attributes:
        fields: those that are delivered, in order.
        records: N, of the dataset.
        arrow_schema: the dataset's serialised Arrow schema.
    """

    fields: tuple[FieldSpec, ...]
    records: int
    arrow_schema: bytes = b""


class Batch(Mapping[str, Column]):
    """A mapping of field name to array: shape (B, ...) for a fixed field, :class:`Ragged` for a variable one.

    Every array is a view of one piece of memory, which is the batch's for as long as any view of it lives (an array,
    a tensor made by ``torch.from_numpy``, an Arrow buffer, a memoryview): batches may be kept, and written to.

    ``len(batch)`` is the number of fields, as for every mapping; ``batch.records`` is B. B is the batch size except in
    the last two steps of an epoch; a rank can get an empty batch where fewer records than ranks are left.

    Attributes:
        ids: the record ids, int64, shape (B,).
        records: B.
        payload_bytes: length of the memory that all arrays are views of.
        step: of the epoch, counted from its beginning, over all runs.
        epoch: which epoch.
        masks: for each nullable field, B booleans, False where the value is null. Values of null records are zeros or
            nothing.
    """

    __slots__ = ("_columns", "_source", "epoch", "ids", "masks", "payload_bytes", "records", "step")

    def __init__(
        self,
        columns: Mapping[str, Column],
        *,
        ids: Int64Array,
        step: int,
        epoch: int,
        masks: Mapping[str, Mask],
        source: BatchSource,
        payload_bytes: int,
    ) -> None:
        self._columns = columns
        self._source = source
        self.ids = ids
        self.records = len(ids)
        self.payload_bytes = payload_bytes
        self.step = step
        self.epoch = epoch
        self.masks = masks

    def __getitem__(self, name: str) -> Column:
        try:
            return self._columns[name]
        except KeyError:
            raise KeyError(f"no field {name!r} in this batch; there are: {', '.join(self._columns)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        """What each field is, in order."""
        return self._source.fields

    def to_arrow(self) -> Any:
        """A ``pyarrow.RecordBatch`` of the dataset's types; values are shared where Arrow's layout allows it.

        Members of structs stay the columns ``struct.member``; what was delivered as JSON stays JSON.
        """
        from fastio_client.arrow import record_batch

        return record_batch(self, self._source.arrow_schema)

    def __repr__(self) -> str:
        return f"<Batch step {self.step} of epoch {self.epoch}, {self.records} records: {', '.join(self._columns)}>"


def make_batch(source: BatchSource, layout: BatchLayout, payload: memoryview, *, step: int, epoch: int) -> Batch:
    """Views a received payload as a batch. Nothing is copied.

    Raises:
        RemoteProtocolError: an id, an offset or a mask cannot be.
    """
    ids, arrays = view_batch(source.fields, layout, np.frombuffer(payload, dtype=np.uint8))
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= source.records):
        raise RemoteProtocolError(f"step {step}: record ids {ids.min()} .. {ids.max()} of {source.records} records")
    columns: dict[str, Column] = {}
    masks: dict[str, Mask] = {}
    for field, found in zip(source.fields, arrays, strict=True):
        if found.offsets_B1 is None:
            columns[field.name] = found.values
        else:
            listed = not field.text and "list" in field.arrow_type
            columns[field.name] = Ragged(found.values, found.offsets_B1, text=field.text, listed=listed)
        if found.mask_B is not None:
            if found.mask_B.view(np.uint8).max(initial=0) > 1:
                raise RemoteProtocolError(f"step {step}: the mask of field {field.name!r} holds more than 0 and 1")
            masks[field.name] = found.mask_B
    return Batch(columns, ids=ids, step=step, epoch=epoch, masks=masks, source=source, payload_bytes=len(payload))
