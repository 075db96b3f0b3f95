"""Which record stands at a position of an epoch's exact shuffle?

A :class:`Permutation` is a bijection of [0, N) that is computed, not stored: an unbalanced Feistel network on the two
halves of a position's bits, with cycle walking for the positions that leave [0, N). It knows nothing of ranks, batches
or files. What it returns for given (records, seed, epoch) is frozen for ever: other people's checkpoints depend on it.

Sources: J. Black and P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002 (cycle walking, Feistel on small
domains); R. Mitchell, D. Stokes, E. Frank and G. Holmes, "Bandwidth-optimal random shuffling for GPUs", ACM TOPC 2022,
arXiv 2106.06161 (a Feistel bijection as a shuffle).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastio.errors import ErrorKind, RequestError
from fastio.extents import Int64Array

__all__ = ["CHUNK_POSITIONS", "SHUFFLED_BELOW", "Permutation"]

_Lanes = npt.NDArray[Any]

# Below this many records the permutation is a stored shuffle (at most 32 KiB): on halves of fewer than 6 bits, eight
# rounds of a Feistel network are measurably not uniform.
SHUFFLED_BELOW = 4096

# How many positions are computed at a time. The three 32-bit lanes of a chunk take 768 KiB, inside a 2 MiB L2.
CHUNK_POSITIONS = 1 << 16

_MAX_RECORDS = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class _LaneKind:
    """The machine word in which the round function is computed, and its constants."""

    dtype: type[np.uint32] | type[np.uint64]
    bits: int
    multiplier: int

    @property
    def mask(self) -> int:
        return (1 << self.bits) - 1


# Halves of up to 16 bits (N <= 2**32) mix in 32-bit words, twice as fast as in 64-bit words. Each multiplier is the
# first of a well-tested finaliser: MurmurHash3's for 32 bits, SplitMix64's for 64.
_NARROW = _LaneKind(np.uint32, 32, 0x85EBCA6B)
_WIDE = _LaneKind(np.uint64, 64, 0xBF58476D1CE4E5B9)


class Permutation:
    """A uniform-looking bijection of [0, N), as a pure function of (records, seed, epoch).

    Memory is O(1) in N (below 4,096 records: N int64). Safe to use from several threads. Equal arguments give equal
    results on every machine and under every version of NumPy.

    Args:
        records: N, 1 .. 2**63 - 1.
        seed: any non-negative integer.
        epoch: any non-negative integer. Keys come from a hash of both, so that seed s + 1 never repeats the epochs of
            seed s shifted by one.

    Raises:
        RequestError: an argument is out of range.
    """

    def __init__(self, records: int, seed: int, epoch: int) -> None:
        if not 1 <= records <= _MAX_RECORDS:
            kind = ErrorKind.TOO_FEW_RECORDS if records < 1 else ErrorKind.BAD_OPTION
            raise RequestError(f"an order needs between 1 and 2**63 - 1 records, got {records}", kind=kind)
        if seed < 0 or epoch < 0:
            raise RequestError(f"seed and epoch must be at least 0, got seed {seed} and epoch {epoch}")
        self.records = records
        self.seed = seed
        self.epoch = epoch
        self._table_N = _shuffled(records, seed, epoch) if records < SHUFFLED_BELOW else None
        self._network = _Network.keyed(records, seed, epoch)

    def __repr__(self) -> str:
        return f"Permutation(records={self.records}, seed={self.seed}, epoch={self.epoch})"

    def ids(self, positions_B: Int64Array) -> Int64Array:
        """The record at each position, as a new int64 array of the same length.

        Raises:
            RequestError: a position is not in [0, N).

        >>> Permutation(5, seed=0, epoch=0).ids(np.arange(5))
        array([1, 3, 4, 2, 0])
        """
        positions_B = np.asarray(positions_B, dtype=np.int64)
        if len(positions_B):
            # A position outside [0, N) may lie on a cycle that never enters it: walking would not end.
            _check_range(int(positions_B.min()), int(positions_B.max()) + 1, self.records)
        if self._table_N is not None:
            return self._table_N[positions_B]
        out_B = np.empty(len(positions_B), dtype=np.int64)
        workspace = self._network.workspace(len(out_B))
        for start in range(0, len(out_B), CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            self._network.walk(positions_B[chunk], out_B[chunk], workspace)
        return out_B

    def range_ids(self, start: int, stop: int) -> Int64Array:
        """The records at positions [start, stop), as a new array: ``ids`` of a range, without building the range.

        Raises:
            RequestError: the range is not inside [0, N].
        """
        _check_range(start, stop, self.records)
        if self._table_N is not None:
            return self._table_N[start:stop].copy()
        out_B = np.empty(stop - start, dtype=np.int64)
        workspace = self._network.workspace(len(out_B))
        for low in range(start, stop, CHUNK_POSITIONS):
            high = min(low + CHUNK_POSITIONS, stop)
            self._network.walk(np.arange(low, high, dtype=np.int64), out_B[low - start : high - start], workspace)
        return out_B


@dataclass(frozen=True, slots=True)
class _Network:
    """The keyed Feistel network on ``left_bits + right_bits`` bits, the least that hold N - 1.

    The halves are never swapped: even rounds change the left one by the right one, odd rounds the right one by the
    left one, so that halves of different width need no special case.
    """

    records: int
    left_bits: int
    right_bits: int
    lanes: _LaneKind
    keys: tuple[tuple[Any, Any], ...]

    @classmethod
    def keyed(cls, records: int, seed: int, epoch: int) -> _Network:
        bits = (records - 1).bit_length()
        lanes = _NARROW if bits <= 32 else _WIDE
        added = [lanes.dtype(word & lanes.mask) for word in _key_words("exact added", seed, epoch)]
        multiplied = [lanes.dtype(word & lanes.mask | 1) for word in _key_words("exact multiplied", seed, epoch)]
        keys = tuple(zip(added, multiplied, strict=True))
        return cls(records, bits // 2, bits - bits // 2, lanes, keys)

    def workspace(self, positions: int) -> _Lanes:
        """Four lanes of memory for ``walk``. Made anew for each call of the user, so that threads share nothing."""
        return np.empty((4, min(positions, CHUNK_POSITIONS)), dtype=self.lanes.dtype)

    def walk(self, positions_B: Int64Array, out_B: Int64Array, workspace: _Lanes) -> None:
        """Fills ``out_B``: each position is encrypted until it lies in [0, N) again, fewer than two times on average
        because N is more than half of the network's domain."""
        self._encrypt(positions_B, out_B, workspace)
        outside = np.flatnonzero(out_B >= self.records)
        while len(outside):
            again = out_B[outside]
            self._encrypt(again, again, workspace)
            out_B[outside] = again
            outside = outside[again >= self.records]

    def _encrypt(self, values_B: Int64Array, out_B: Int64Array, workspace: _Lanes) -> None:
        word = self.lanes.dtype
        left, right, *scratch = workspace[:, : len(values_B)]
        right[:] = values_B
        np.right_shift(right, word(self.right_bits), out=left)
        right &= word((1 << self.right_bits) - 1)
        for index, key in enumerate(self.keys):
            if index % 2 == 0:
                self._mix_into(left, right, self.left_bits, key, *scratch)
            else:
                self._mix_into(right, left, self.right_bits, key, *scratch)
        left <<= word(self.right_bits)
        left |= right
        out_B[:] = left

    def _mix_into(
        self, target: _Lanes, source: _Lanes, bits: int, key: tuple[Any, Any], mixed: _Lanes, folded: _Lanes
    ) -> None:
        """``target ^= F(source)``, where F is two multiplications, one of them by a key, around a fold of the high bits
        onto the low ones; of the product the top ``bits`` bits are used, on which all others bear."""
        word = self.lanes.dtype
        np.bitwise_xor(source, key[0], out=mixed)
        np.multiply(mixed, word(self.lanes.multiplier), out=mixed)
        np.right_shift(mixed, word(self.lanes.bits // 2), out=folded)
        np.bitwise_xor(mixed, folded, out=mixed)
        np.multiply(mixed, key[1], out=mixed)
        np.right_shift(mixed, word(self.lanes.bits - bits), out=mixed)
        np.bitwise_xor(target, mixed, out=target)


def _shuffled(records: int, seed: int, epoch: int) -> Int64Array:
    """All N ids in random order: sorted by the numbers that a SplitMix64 generator deals to them.

    The generator's output is a bijection of its counter, so no two ids get the same number and the order does not
    depend on how the sort breaks ties; nor on the streams of ``numpy.random``, which may change between versions.
    """
    key = _key_words("shuffle", seed, epoch)[0]
    dealt_N = np.arange(1, records + 1, dtype=np.uint64)
    dealt_N *= np.uint64(0x9E3779B97F4A7C15)
    dealt_N += np.uint64(key)
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        dealt_N ^= dealt_N >> np.uint64(shift)
        dealt_N *= np.uint64(multiplier)
    dealt_N ^= dealt_N >> np.uint64(31)
    return np.argsort(dealt_N).astype(np.int64)


def _key_words(purpose: str, seed: int, epoch: int) -> tuple[int, ...]:
    """Eight 64-bit keys that belong to (purpose, seed, epoch) and to nothing else."""
    digest = hashlib.blake2b(f"{purpose}/{seed}/{epoch}".encode(), person=b"fastio order 1").digest()
    return tuple(int.from_bytes(digest[at : at + 8], "little") for at in range(0, 64, 8))


def _check_range(start: int, stop: int, records: int) -> None:
    if not 0 <= start <= stop <= records:
        raise RequestError(f"positions must lie in [0, {records}), got [{start}, {stop})")
