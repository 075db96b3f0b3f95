"""The order written a second time: slow, obvious, one number at a time. Tests hold :mod:`fastio.order` against it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

__all__ = ["deal_epoch", "digest_model", "shuffle_model"]

_64 = 1 << 64


def shuffle_model(position: int, *, records: int, seed: int, epoch: int) -> int:
    """The record at ``position`` of the exact order, in Python integers."""
    if records < 4096:
        key = _words("shuffle", seed, epoch)[0]
        return sorted(range(records), key=lambda record: _splitmix(key + (record + 1) * 0x9E3779B97F4A7C15))[position]
    record = _feistel(position, records, seed, epoch)
    while record >= records:
        record = _feistel(record, records, seed, epoch)
    return record


def deal_epoch(
    records: int, *, start_records: int = 0, batch_size: int, world_size: int, even: bool = True
) -> list[list[list[int]]]:
    """The positions of every batch, as lists of lists of lists: of steps, of ranks, of positions.

    Hands out the positions as one deals cards, without any arithmetic on steps.
    """
    rest = list(range(start_records, records))
    whole = batch_size * world_size
    hands: list[list[int]] = []
    while len(rest) >= whole:
        hands.append(rest[:whole])
        rest = rest[whole:]
    if rest and even:
        pool = (hands.pop() if hands else []) + rest
        if len(pool) < whole:
            hands.append(pool)
        else:
            first = len(pool) - len(pool) // 2
            while first < world_size:  # one each comes before equal halves
                first += 1
            hands += [pool[:first], pool[first:]]
    return [_cut(hand, world_size) for hand in hands]


def digest_model(ids: Iterable[int]) -> tuple[int, int, int]:
    """(count, low, high) of the ids."""
    known = list(ids)
    low = sum(_splitmix(record + 0x9E3779B97F4A7C15) for record in known) % _64
    high = sum(_murmur(record + 0xD1B54A32D192ED03) for record in known) % _64
    return len(known), low, high


def _cut(hand: Sequence[int], ranks: int) -> list[list[int]]:
    """Contiguous runs, one for each rank, the longer ones first."""
    sizes = [0] * ranks
    for card in range(len(hand)):
        sizes[card % ranks] += 1
    cards = iter(hand)
    return [[next(cards) for _ in range(size)] for size in sizes]


def _feistel(value: int, records: int, seed: int, epoch: int) -> int:
    bits = (records - 1).bit_length()
    left_bits, right_bits = bits // 2, bits - bits // 2
    digit_bits = min(8, left_bits)
    unit = 1 << (bits - digit_bits)
    digit = (records + unit - 1) // unit
    word_bits, multiplier = (32, 0x85EBCA6B) if bits <= 32 else (64, 0xBF58476D1CE4E5B9)
    word = 1 << word_bits
    keys = zip(_words("exact added", seed, epoch), _words("exact multiplied", seed, epoch), strict=True)
    left, right = divmod(value, 1 << right_bits)
    for index, (added, multiplied) in enumerate(keys):
        mixed = (right if index % 2 == 0 else left) ^ (added % word)
        mixed = mixed * multiplier % word
        mixed ^= mixed >> (word_bits // 2)
        mixed = mixed * (multiplied % word | 1) % word
        if index % 2 == 0:
            size = digit << (left_bits - digit_bits)
            high = mixed >> digit_bits
            left = (left + (high * size >> (word_bits - digit_bits))) % size
        else:
            right ^= mixed >> (word_bits - right_bits)
    return (left << right_bits) + right


def _words(purpose: str, seed: int, epoch: int) -> list[int]:
    text = f"{purpose}/{seed}/{epoch}".encode()
    digest = hashlib.blake2b(text, digest_size=64, person=b"fastio order 1").digest()
    return [int.from_bytes(digest[8 * index : 8 * index + 8], "little") for index in range(8)]


def _splitmix(value: int) -> int:
    value %= _64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % _64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % _64
    return value ^ (value >> 31)


def _murmur(value: int) -> int:
    value %= _64
    value = (value ^ (value >> 33)) * 0xFF51AFD7ED558CCD % _64
    value = (value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53 % _64
    return value ^ (value >> 33)
