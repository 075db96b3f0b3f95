"""Is the exact order as random as a true shuffle? Each statistic beside NumPy's own permutation of the same N.

Seeds are fixed, so nothing here flakes: a failure means that the order has changed, and for the worse. Limits are five
standard deviations of the statistic under a true shuffle, and the reference has to keep them too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fastio.extents import Int64Array
from fastio.order import Permutation

SEEDS = 16
SIZES = [4096, 5000, 65_537, 200_003]

Order = Callable[[int, int], Int64Array]


def feistel(records: int, seed: int) -> Int64Array:
    return Permutation(records, seed, epoch=0).range_ids(0, records)


def reference(records: int, seed: int) -> Int64Array:
    return np.random.Generator(np.random.PCG64(seed)).permutation(records)


def two_rounds(records: int, seed: int) -> Int64Array:
    """What the statistics must be able to find."""
    permutation = Permutation(records, seed, epoch=0)
    permutation._network = replace(permutation._network, keys=permutation._network.keys[:2])
    return permutation.range_ids(0, records)


def z_of_independence(rows_N: Int64Array, columns_N: Int64Array, cells: int) -> float:
    """Chi-square of a ``cells`` x ``cells`` table of two even margins, in standard deviations."""
    table = np.bincount(rows_N * cells + columns_N, minlength=cells * cells)
    expected = len(rows_N) / cells**2
    freedom = (cells - 1) ** 2
    return float((((table - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def adjacency(ids_N: Int64Array) -> float:
    """Neighbours that stay neighbours: 2 on average, nearly Poisson."""
    return float((np.count_nonzero(np.abs(np.diff(ids_N)) == 1) - 2) / np.sqrt(2))


def displacement(ids_N: Int64Array) -> float:
    """Mean distance from the sequential place: N/3, with a standard deviation of about sqrt(2N/45)."""
    records = len(ids_N)
    mean = np.abs(ids_N - np.arange(records)).mean()
    return float((mean - records / 3) / np.sqrt(2 * records / 45))


def position_table(ids_N: Int64Array) -> float:
    """Where in the order the records of each 64th of the dataset come, 64 x 64."""
    records = len(ids_N)
    return z_of_independence(np.arange(records) * 64 // records, ids_N * 64 // records, 64)


def pair_table(ids_N: Int64Array) -> float:
    """Consecutive records, by the 16th of the dataset they are in."""
    cells_N = ids_N * 16 // len(ids_N)
    return z_of_independence(cells_N[:-1], cells_N[1:], 16)


def low_bits(ids_N: Int64Array) -> float:
    """How the low 8 bits of consecutive records differ: any way equally often (0 a little less: ids are distinct)."""
    differ = np.bincount((ids_N[:-1] ^ ids_N[1:]) & 255, minlength=256)[1:]
    expected = differ.mean()
    return float((((differ - expected) ** 2 / expected).sum() - 254) / np.sqrt(2 * 254))


def fixed_points(ids_N: Int64Array) -> float:
    """Records at their sequential place: 1 on average, Poisson."""
    return float((ids_N == np.arange(len(ids_N))).sum()) - 1


STATISTICS = [adjacency, displacement, position_table, pair_table, low_bits, fixed_points]


@pytest.mark.parametrize("records", SIZES)
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("order", [feistel, reference])
def test_statistics_of_a_shuffle(order: Order, statistic: Callable[[Int64Array], float], records: int) -> None:
    scores = [statistic(order(records, seed)) for seed in range(SEEDS)]
    assert abs(np.mean(scores)) < 5 / np.sqrt(SEEDS)
    assert max(map(abs, scores)) < 5.5  # a little more for the skewed ones


@pytest.mark.parametrize("records", SIZES)
def test_two_rounds_are_found_out(records: int) -> None:
    for statistic in (adjacency, position_table, low_bits):
        assert np.mean([statistic(two_rounds(records, seed)) for seed in range(SEEDS)]) > 2 * 5 / np.sqrt(SEEDS)


def test_every_order_of_four_records_comes_up_equally_often() -> None:
    epochs = 4800
    orders = [tuple(Permutation(4, 0, epoch).range_ids(0, 4).tolist()) for epoch in range(epochs)]
    counts = np.unique(np.array(orders), axis=0, return_counts=True)[1]
    assert len(counts) == 24
    expected = epochs / 24
    assert (((counts - expected) ** 2 / expected).sum() - 23) / np.sqrt(2 * 23) < 5


@pytest.mark.parametrize("records", [200, 4097])
def test_a_record_comes_anywhere_over_the_epochs(records: int) -> None:
    """One record's place over many epochs, and that of its neighbour beside it: uniform and independent."""
    epochs = 3000
    places = np.array([Permutation(records, 5, epoch).ids(np.array([17, 18])) for epoch in range(epochs)])
    cells = places * 8 // records
    for column in cells.T:
        counts = np.bincount(column, minlength=8)
        assert (((counts - epochs / 8) ** 2 / (epochs / 8)).sum() - 7) / np.sqrt(14) < 5
    assert abs(z_of_independence(cells[:, 0], cells[:, 1], 8)) < 5


def test_records_of_a_block_meet_in_a_batch_as_often_as_chance_has_it() -> None:
    """Pairs of the same block of 64 in the same batch of 64, against (B - 1)/(N - 1) for each pair."""
    records, size = 65_536, 64
    pairs = records * (size - 1) / 2 * (size - 1) / (records - 1)
    for order in (feistel, reference):
        met = []
        for seed in range(SEEDS):
            blocks = np.sort(order(records, seed).reshape(-1, size) // size, axis=1)
            in_block = np.array([np.unique(batch, return_counts=True)[1] for batch in blocks], dtype=object)
            met.append(sum(int((count * (count - 1) // 2).sum()) for count in in_block))
        assert abs(np.mean(met) - pairs) < 5 * np.sqrt(pairs / SEEDS)
