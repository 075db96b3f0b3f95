"""The order of an epoch: which record stands where, who takes it at which step, and whether each was delivered once.

Everything is a pure function of a few integers; nothing of size N is stored for the exact order.

- :class:`Permutation`, :func:`record_ids`, :func:`step_ids`: position or step -> record ids.
- :class:`EpochPlan`: step and rank -> positions; tails and resumption.
- :class:`Digest`, :func:`expected_digest`, :func:`positions_digest`, :func:`verify_digest`: proof of delivery.
"""

from fastio.order.digest import Digest, Verdict, expected_digest, verify_digest
from fastio.order.epoch import EpochPlan
from fastio.order.permutation import Permutation
from fastio.order.runs import positions_digest, record_ids, step_ids

__all__ = [
    "Digest",
    "EpochPlan",
    "Permutation",
    "Verdict",
    "expected_digest",
    "positions_digest",
    "record_ids",
    "step_ids",
    "verify_digest",
]
