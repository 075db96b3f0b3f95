"""What a stream is: frozen specs, each validated once, when it is made.

A spec that exists is valid; no other code checks its numbers again. Specs are plain dataclasses of plain values, so
they cross the wire, a pickle or a TOML file unchanged. Defaults live here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from fastio.errors import ErrorKind, RequestError

__all__ = [
    "DEFAULT_WINDOW_BYTES",
    "FieldSpec",
    "OrderKind",
    "OrderSpec",
    "StreamSpec",
    "Tail",
]

OrderKind = Literal["exact", "sequential"]
Tail = Literal["even", "drop"]

# 64 MiB of look-ahead is about 600 records of 110 KB: four times the 128 outstanding reads at which the fastest
# virtual NVMe we measured stopped gaining, and small enough to give every rank of an 8-GPU host its own.
DEFAULT_WINDOW_BYTES = 64 << 20

_MAX_SEED = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """One field of a dataset, as it is delivered.

    A ``fixed`` field arrives as one ndarray of shape (B, *shape); a ``ragged`` one as values of ``dtype`` and B + 1
    int64 offsets that count elements of ``dtype``.

    Attributes:
        name: the field's name; members of a struct are named ``struct.member``.
        kind: ``"fixed"`` or ``"ragged"``.
        dtype: the NumPy type string of one element, such as ``"<f4"`` or ``"|u1"``.
        shape: the trailing shape of a fixed record; () for a scalar and for every ragged field.
        text: the bytes of a ragged field are UTF-8.
        nullable: a mask of B booleans (True: a value is there) travels with the values. Null slots hold zeros or
            nothing, never garbage.
        arrow_type: the Arrow type the field was stored as, in Arrow's words.
    """

    name: str
    kind: Literal["fixed", "ragged"]
    dtype: str
    shape: tuple[int, ...] = ()
    text: bool = False
    nullable: bool = False
    arrow_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSpec:
    """Which permutation of the records an epoch is; with an epoch number it is all there is to know.

    Attributes:
        kind: ``"exact"`` (a uniform permutation) or ``"sequential"`` (record id = position).
        seed: 0 .. 2**64 - 1; ignored by ``"sequential"``.

    Raises:
        RequestError: the kind is unknown or the seed out of range.
    """

    kind: OrderKind = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("order", self.kind, get_args(OrderKind))
        if not 0 <= self.seed <= _MAX_SEED:
            raise RequestError(f"seed must be between 0 and 2**64 - 1, got {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """One rank's batches of one epoch: everything a server needs to produce them, and nothing it must remember.

    Attributes:
        dataset: the name under which the server knows the dataset.
        batch_size: records per batch and rank, at least 1.
        fields: the fields to deliver, in this order; None for all.
        order: the permutation.
        epoch: which epoch, at least 0.
        start_records: records of this epoch already delivered, over all ranks, before this stream begins. Steps are
            counted from here, so that a stream resumed under another world or batch size covers exactly the rest.
        first_step: the first step to send; smaller ones were received before a connection broke.
        rank, world_size: this stream's place among the ranks.
        worker, workers: within the rank, this stream sends steps ``s`` with ``s % workers == worker``.
        tail: ``"even"`` (every record once, the last two steps balanced) or ``"drop"`` (no incomplete step).
        window_bytes: how much the server reads ahead for this stream, in bytes.

    Raises:
        RequestError: a value is out of its range; the message holds both numbers.
    """

    dataset: str
    batch_size: int
    fields: tuple[str, ...] | None = None
    order: OrderSpec = field(default_factory=OrderSpec)
    epoch: int = 0
    start_records: int = 0
    first_step: int = 0
    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1
    tail: Tail = "even"
    window_bytes: int = DEFAULT_WINDOW_BYTES

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        _at_least("epoch", self.epoch, 0)
        _at_least("start_records", self.start_records, 0)
        _at_least("first_step", self.first_step, 0)
        _at_least("window_bytes", self.window_bytes, 1)
        _place("rank", self.rank, "world_size", self.world_size)
        _place("worker", self.worker, "workers", self.workers)
        _one_of("tail", self.tail, get_args(Tail))
        if self.fields is not None and not self.fields:
            raise RequestError("fields must name at least one field, got none; leave it out to get all of them")
        if self.fields is not None and len(set(self.fields)) != len(self.fields):
            raise RequestError(f"fields must be distinct, got {list(self.fields)}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise RequestError(f"{name} must be at least {least}, got {value}")


def _place(name: str, value: int, total_name: str, total: int) -> None:
    if total < 1:
        raise RequestError(f"{total_name} must be at least 1, got {total}", kind=ErrorKind.BAD_RANK)
    if not 0 <= value < total:
        raise RequestError(f"{name} must be in [0, {total_name}={total}), got {value}", kind=ErrorKind.BAD_RANK)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RequestError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
