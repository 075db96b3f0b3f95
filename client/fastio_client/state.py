"""Where in the order has the consumer got to, as a value that fits into any checkpoint?

The state is what the *consumer* has taken, never what was prefetched. It is a plain JSON object of a few hundred
bytes, and it is the same on every rank: positions are counted over all ranks, so a state may be saved by one rank and
loaded by any number of them, with another batch size, world size or worker count. Nothing is pickled.

A rank's own digest is therefore not part of it. What *may* be in it is ``delivered``, the digest of all
``records_done`` records over all ranks: a world of one has it for nothing, a larger one only if the ranks add theirs
up (one all-reduce of three integers). After loading, rank 0 goes on from ``delivered`` and the others from nothing,
so that the ranks' digests still add up to the epoch's. Without it, the proof covers what was delivered since the load:
the records at positions [records_done, N), for which ``fastio.order.positions_digest`` gives the expected digest. It
would prove nothing to derive ``delivered`` from the order: that is what should have been delivered, not what was.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastio.errors import ErrorKind, RequestError
from fastio.order import Digest
from fastio.spec import OrderSpec

__all__ = ["STATE_VERSION", "LoaderState"]

# Raised only when a state of the older version would be misread. New optional keys do not raise it.
STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderState:
    """A place in an epoch of one dataset under one order.

    Attributes:
        fingerprint: of the dataset.
        order: the permutation; with ``epoch`` it fixes which record stands at each position.
        epoch: which epoch.
        records_done: positions of the epoch that the consumers have taken, over all ranks.
        step: steps of the epoch taken so far, over all runs. For people and progress bars: resuming needs only
            ``records_done``.
        delivered: the digest of those records over all ranks, where it is known.
    """

    fingerprint: str
    order: OrderSpec
    epoch: int
    records_done: int
    step: int = 0
    delivered: Digest | None = None

    def to_dict(self) -> dict[str, Any]:
        """The state as a dict that ``json.dumps`` takes, a few hundred bytes long."""
        return {
            "version": STATE_VERSION,
            "fingerprint": self.fingerprint,
            "order": {"kind": self.order.kind, "seed": self.order.seed},
            "epoch": self.epoch,
            "records_done": self.records_done,
            "step": self.step,
            "delivered": None if self.delivered is None else self.delivered.to_text(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LoaderState:
        """The state that :meth:`to_dict` made. Keys it does not know are ignored; integers may have become other
        whole numbers (NumPy's, one-element tensors) on their way through a checkpoint.

        Raises:
            RequestError: (kind ``STATE_MISMATCH``) the state is of a newer version, or damaged; the message names the
                key and the value.
        """
        if not isinstance(state, Mapping):
            raise _mismatch(f"a loader's state is a dict, got {type(state).__name__}")
        version = _whole(state, "version", least=1)
        if version > STATE_VERSION:
            raise _mismatch(
                f"the state is of version {version}, this fastio reads up to version {STATE_VERSION}: "
                "upgrade fastio to load it"
            )
        return cls(
            fingerprint=_text(state, "fingerprint"),
            order=_order(state),
            epoch=_whole(state, "epoch"),
            records_done=_whole(state, "records_done"),
            step=_whole(state, "step"),
            delivered=_delivered(state),
        )

    def check(self, *, fingerprint: str, order: OrderSpec, records: int) -> None:
        """Refuses to go on from this state with another dataset or another order: the records not yet delivered would
        be other ones, without any sign of it.

        Args:
            fingerprint: of the dataset that the loader has open.
            order: of the loader.
            records: of the dataset.

        Raises:
            RequestError: (kind ``STATE_MISMATCH``) what differs, with both values.
        """
        if self.fingerprint != fingerprint:
            raise _mismatch(
                f"the state belongs to another dataset: its fingerprint is {self.fingerprint!r}, the dataset's is "
                f"{fingerprint!r}; open the dataset it was saved with, or start anew without the state"
            )
        if self.order.kind != order.kind:
            raise _mismatch(f"the state has order={self.order.kind!r}, the loader has order={order.kind!r}")
        if order.kind != "sequential" and self.order.seed != order.seed:
            raise _mismatch(f"the state has seed={self.order.seed}, the loader has seed={order.seed}")
        if self.records_done > records:
            raise _mismatch(f"the state says that {self.records_done} records are done, the dataset has {records}")


def _order(state: Mapping[str, Any]) -> OrderSpec:
    order = _value(state, "order")
    if not isinstance(order, Mapping):
        raise _damaged("order", "a dict of kind and seed", order)
    kind: Any = _text(order, "kind")
    try:
        return OrderSpec(kind=kind, seed=_whole(order, "seed"))
    except RequestError as error:
        raise _mismatch(f"the state's order is not one this fastio knows: {error}") from error


def _delivered(state: Mapping[str, Any]) -> Digest | None:
    if state.get("delivered") is None:
        return None
    text = _text(state, "delivered")
    try:
        return Digest.from_text(text)
    except RequestError as error:
        raise _mismatch(f"the state is damaged: {error}") from error


def _whole(state: Mapping[str, Any], key: str, *, least: int = 0) -> int:
    value = _value(state, key)
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise _damaged(key, "a whole number", value) from None
    if number < least:
        raise _damaged(key, f"at least {least}", value)
    return number


def _text(state: Mapping[str, Any], key: str) -> str:
    value = _value(state, key)
    if not isinstance(value, str):
        raise _damaged(key, "text", value)
    return value


def _value(state: Mapping[str, Any], key: str) -> Any:
    if key not in state:
        raise _mismatch(f"the state is damaged or not a loader's: it has no {key!r}, only {sorted(map(str, state))}")
    return state[key]


def _damaged(key: str, wanted: str, found: object) -> RequestError:
    return _mismatch(f"the state is damaged: {key!r} must be {wanted}, got {found!r}")


def _mismatch(message: str) -> RequestError:
    return RequestError(message, kind=ErrorKind.STATE_MISMATCH)
