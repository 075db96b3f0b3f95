"""fastio.order: limits, errors, caches, memory; what Hypothesis is not needed for."""

from __future__ import annotations

import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest

from fastio.errors import ErrorKind, RequestError
from fastio.extents import Int64Array
from fastio.order import (
    Digest,
    EpochPlan,
    Permutation,
    Verdict,
    expected_digest,
    positions_digest,
    record_ids,
    step_ids,
    verify_digest,
)
from fastio.order.permutation import CHUNK_POSITIONS, SHUFFLED_BELOW, _Network
from fastio.order.runs import RUN_POSITIONS, RUNS_KEPT
from fastio.spec import OrderSpec

EXACT = OrderSpec(kind="exact", seed=7)
SEQUENTIAL = OrderSpec(kind="sequential")

AWKWARD_RECORDS = [1, 2, 3, 5, 255, 4095, 4096, 4097, 5000, 8191, 65535, 65536, 65537, 2**17 + 1, 300_007]


@pytest.mark.parametrize("records", AWKWARD_RECORDS)
def test_a_permutation_is_a_bijection(records: int) -> None:
    ids_N = Permutation(records, seed=1, epoch=2).range_ids(0, records)
    assert ids_N.dtype == np.int64
    assert np.array_equal(np.sort(ids_N), np.arange(records))


@pytest.mark.parametrize("records", [100, 5000, 10**9, 2**32, 2**32 + 1, 2**63 - 1])
def test_ids_of_any_positions_agree_with_ids_of_ranges(records: int) -> None:
    permutation = Permutation(records, seed=3, epoch=0)
    start = max(records - 50, 0)
    positions_B = np.arange(start, records)
    shuffled_B = np.random.default_rng(0).permutation(positions_B)
    whole = permutation.range_ids(start, records)
    assert np.array_equal(permutation.ids(positions_B), whole)
    assert np.array_equal(permutation.ids(shuffled_B), whole[shuffled_B - start])
    assert len(np.unique(whole)) == len(whole)
    assert whole.min() >= 0
    assert whole.max() < records


def test_chunks_do_not_show() -> None:
    permutation = Permutation(10**7, seed=0, epoch=0)
    stop = 2 * CHUNK_POSITIONS + 17
    pieces = [permutation.range_ids(low, min(low + 999, stop)) for low in range(0, stop, 999)]
    assert np.array_equal(np.concatenate(pieces), permutation.range_ids(0, stop))
    assert np.array_equal(permutation.ids(np.arange(stop)), permutation.range_ids(0, stop))


def test_orders_of_neighbouring_seeds_and_epochs_are_unrelated() -> None:
    orders = {
        (seed, epoch): Permutation(10_000, seed, epoch).range_ids(0, 10_000) for seed in range(4) for epoch in range(4)
    }
    keys = list(orders)
    for at, one in enumerate(keys):
        for other in keys[at + 1 :]:
            assert (orders[one] == orders[other]).sum() < 10, (one, other)


def test_empty_positions_give_empty_ids() -> None:
    for records in (5, 10_000):
        permutation = Permutation(records, 0, 0)
        assert len(permutation.ids(np.empty(0, dtype=np.int64))) == 0
        assert len(permutation.range_ids(3, 3)) == 0


@pytest.mark.parametrize("records", [10, SHUFFLED_BELOW + 10])
@pytest.mark.parametrize("position", [-1, 0])
def test_positions_outside_are_refused_instead_of_walking_for_ever(records: int, position: int) -> None:
    outside = position if position < 0 else records
    with pytest.raises(RequestError, match=rf"positions must lie in \[0, {records}\)"):
        Permutation(records, 0, 0).ids(np.array([1, outside]))
    with pytest.raises(RequestError, match="positions must lie"):
        record_ids(EXACT, records, 0)(records - 1, records + 1)
    with pytest.raises(RequestError, match="positions must lie"):
        record_ids(SEQUENTIAL, records, 0)(-1, 1)


def test_impossible_permutations_are_refused() -> None:
    with pytest.raises(RequestError, match=r"between 1 and 2\*\*63 - 1 records, got 0") as caught:
        Permutation(0, 0, 0)
    assert caught.value.kind == ErrorKind.TOO_FEW_RECORDS
    with pytest.raises(RequestError, match=f"got {2**63}"):
        Permutation(2**63, 0, 0)
    with pytest.raises(RequestError, match="got seed -1 and epoch 0"):
        Permutation(10, -1, 0)
    with pytest.raises(RequestError, match="got seed 0 and epoch -3"):
        Permutation(10, 0, -3)


def test_a_billion_records_cost_no_memory_and_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _count_positions(monkeypatch, "range_ids")
    tracemalloc.start()
    ids = record_ids(EXACT, 10**9, 0)
    first_B = ids(0, 256)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(first_B.tolist())) == 256
    assert first_B.max() > 10**8
    assert peak_bytes < 4 << 20
    assert asked == [RUN_POSITIONS]


def test_evaluations_per_position_stay_close_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []
    real = _Network._encrypt

    def counting(self: _Network, values_B: Int64Array, out_B: Int64Array, workspace: Any) -> None:
        evaluated.append(len(values_B))
        real(self, values_B, out_B, workspace)

    monkeypatch.setattr(_Network, "_encrypt", counting)
    for records, most in ((4097, 1.06), (2**16 + 1, 1.02), (2**23 + 1, 1.02), (10**9, 1.02)):
        evaluated.clear()
        length = min(records, 2**16)
        Permutation(records, 0, 0).range_ids(0, length)
        assert sum(evaluated) <= most * length


def test_the_cache_of_runs_is_bounded() -> None:
    ids = record_ids(EXACT, 10**8, 0)
    tracemalloc.start()
    for run in range(4 * RUNS_KEPT):
        ids(run * RUN_POSITIONS, run * RUN_POSITIONS + 10)
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < (RUNS_KEPT + 1) * RUN_POSITIONS * 8


@pytest.mark.parametrize("order", [EXACT, SEQUENTIAL])
@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, 0),
        (0, 1),
        (RUN_POSITIONS - 1, RUN_POSITIONS + 1),
        (RUN_POSITIONS, 2 * RUN_POSITIONS),
        (5, 3 * RUN_POSITIONS),
        (5, (RUNS_KEPT + 3) * RUN_POSITIONS + 7),
        (10**6 - 3, 10**6),
    ],
)
def test_record_ids_of_any_range(order: OrderSpec, start: int, stop: int) -> None:
    expected = Permutation(10**6, order.seed, 4).range_ids(start, stop) if order is EXACT else np.arange(start, stop)
    ids = record_ids(order, 10**6, 4)
    for _ in range(2):
        assert np.array_equal(ids(start, stop), expected)


@pytest.mark.parametrize("order", [EXACT, SEQUENTIAL])
def test_ids_are_read_only_because_they_are_shared(order: OrderSpec) -> None:
    plan = EpochPlan(10**5, 0, 10, 1)
    for ids_B in (record_ids(order, 10**5, 0)(0, 10), step_ids(order, plan, 0)(0)):
        with pytest.raises(ValueError, match="read-only"):
            ids_B[0] = 1


@pytest.mark.parametrize("order", [EXACT, SEQUENTIAL])
@pytest.mark.parametrize(("worker", "workers"), [(0, 1), (1, 3)])
def test_step_ids_are_the_record_ids_of_the_bounds(order: OrderSpec, worker: int, workers: int) -> None:
    plan = EpochPlan(10_007, 11, 5, 3)
    between = record_ids(order, plan.records, 2)
    for rank in range(3):
        at_step = step_ids(order, plan, 2, rank=rank, worker=worker, workers=workers)
        for step in [*range(worker, plan.steps, workers), plan.steps - 1, 0, 1]:
            assert np.array_equal(at_step(step), between(*plan.bounds(step, rank)))


def test_step_ids_of_an_unknown_step_are_refused() -> None:
    plan = EpochPlan(100, 0, 5, 2)
    for order in (EXACT, SEQUENTIAL):
        with pytest.raises(RequestError, match=r"step must be in \[0, steps=10\), got 10"):
            step_ids(order, plan, 0)(10)


def test_step_ids_generate_little_for_one_rank_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _count_positions(monkeypatch, "ids")
    plan = EpochPlan(10**8, 0, 64, 512)
    at_step = step_ids(EXACT, plan, 0, rank=300)
    for step in range(1000):
        at_step(step)
    assert sum(asked) <= 2 * 1000 * 64


def _count_positions(monkeypatch: pytest.MonkeyPatch, method: str) -> list[int]:
    """The lengths of what is generated from now on by ``Permutation.<method>``."""
    asked: list[int] = []
    real = getattr(Permutation, method)

    def counting(self: Permutation, *arguments: Any) -> Int64Array:
        ids_B: Int64Array = real(self, *arguments)
        asked.append(len(ids_B))
        return ids_B

    monkeypatch.setattr(Permutation, method, counting)
    return asked


# --- EpochPlan


def test_every_batch_of_a_plan_by_hand() -> None:
    plan = EpochPlan(records=17, start_records=0, batch_size=3, world_size=2)
    batches = [[plan.bounds(step, rank) for rank in range(2)] for step in range(plan.steps)]
    # 12 records in full steps would leave 5: the last two steps share 11 as 6 and 5
    assert batches == [[(0, 3), (3, 6)], [(6, 9), (9, 12)], [(12, 15), (15, 17)]]
    assert [plan.done_after(step) for step in range(-1, 3)] == [0, 6, 12, 17]


def test_drop_leaves_the_incomplete_step_out() -> None:
    plan = EpochPlan(records=17, start_records=0, batch_size=3, world_size=2, tail="drop")
    assert plan.steps == 2
    assert plan.end_records == 12
    resumed = EpochPlan(records=17, start_records=12, batch_size=3, world_size=2, tail="drop")
    assert resumed.steps == 0
    assert resumed.end_records == 12
    assert EpochPlan(17, 12, 2, 2, "drop").steps == 1


def test_nothing_left_is_a_plan_of_no_steps() -> None:
    plan = EpochPlan(17, 17, 3, 2)
    assert (plan.steps, plan.done_after(-1), plan.end_records) == (0, 17, 17)


def test_fewer_records_than_ranks_left_on_a_resume() -> None:
    plan = EpochPlan(records=17, start_records=14, batch_size=3, world_size=5)
    assert plan.steps == 1
    assert [plan.bounds(0, rank) for rank in range(5)] == [(14, 15), (15, 16), (16, 17), (17, 17), (17, 17)]


def test_batches_of_one_leave_only_the_last_step_incomplete() -> None:
    plan = EpochPlan(records=9, start_records=0, batch_size=1, world_size=4)
    lengths = [[stop - start for start, stop in (plan.bounds(step, rank) for rank in range(4))] for step in range(3)]
    assert lengths == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_fewer_records_than_ranks_is_an_error_that_says_so() -> None:
    with pytest.raises(RequestError, match=r"fewer records \(3\) than there are ranks \(4\)") as caught:
        EpochPlan(records=3, start_records=0, batch_size=2, world_size=4)
    assert caught.value.kind == ErrorKind.TOO_FEW_RECORDS


def test_an_empty_dataset_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"fewer records \(0\)"):
        EpochPlan(records=0, start_records=0, batch_size=2, world_size=1)


def test_an_epoch_without_any_step_is_an_error_that_says_so() -> None:
    with pytest.raises(
        RequestError, match=r"10 records.*fewer than 16 \(batch_size 8 x world_size 2\).*no step"
    ) as caught:
        EpochPlan(records=10, start_records=0, batch_size=8, world_size=2, tail="drop")
    assert caught.value.kind == ErrorKind.TOO_FEW_RECORDS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((10, 0, 0, 1, "even"), "batch_size must be at least 1, got 0"),
        ((10, 0, 1, 0, "even"), "world_size must be at least 1, got 0"),
        ((10, 11, 1, 1, "even"), r"start_records must lie in \[0, 10\], the records of the dataset, got 11"),
        ((10, -1, 1, 1, "even"), "got -1"),
        ((10, 0, 1, 1, "odd"), "tail must be one of 'even', 'drop', got 'odd'"),
    ],
)
def test_bad_plans(values: tuple[int, int, int, int, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        EpochPlan(*values)  # type: ignore[arg-type]


def test_bad_steps_and_ranks() -> None:
    plan = EpochPlan(10, 0, 2, 2)
    with pytest.raises(RequestError, match=r"rank must be in \[0, world_size=2\), got 2"):
        plan.bounds(0, 2)
    with pytest.raises(RequestError, match=r"rank must be in"):
        plan.bounds(0, -1)
    for step in (-1, 3):
        with pytest.raises(RequestError, match=r"step must be in \[0, steps=3\)"):
            plan.bounds(step, 0)
    for step in (-2, 3):
        with pytest.raises(RequestError, match=r"step must be in \[-1, steps=3\)"):
            plan.done_after(step)


def test_a_plan_of_a_huge_epoch_is_arithmetic() -> None:
    plan = EpochPlan(10**15, 0, 100, 1000)
    assert plan.steps == 10**10
    assert plan.bounds(10**10 - 1, 999) == (10**15 - 100, 10**15)
    assert sys.getsizeof(plan) < 200


# --- digests


def test_expected_digest_is_the_digest_of_all_ids() -> None:
    assert expected_digest(0) == Digest()
    for records in (1, 1000, 70_000):
        assert expected_digest(records) == Digest().add(np.arange(records)[::-1])
    assert expected_digest(1000) is expected_digest(1000)


@pytest.mark.parametrize("order", [EXACT, SEQUENTIAL])
def test_digest_of_positions(order: OrderSpec) -> None:
    records = 100_000
    ids_N = record_ids(order, records, 1)(0, records)
    head = positions_digest(order, records, 1, 0, 40_001)
    assert head == Digest().add(ids_N[:40_001])
    assert head.merge(positions_digest(order, records, 1, 40_001, records)) == expected_digest(records)
    assert positions_digest(order, records, 1, 5, 5) == Digest()


def test_digest_survives_text() -> None:
    digest = Digest().add(np.array([5, 2**62, 0]))
    assert Digest.from_text(digest.to_text()) == digest
    assert len(expected_digest(70_000).to_text()) < 60


@pytest.mark.parametrize("text", ["", "3", "3:", "x:" + "0" * 32, "3:" + "0" * 31, "3:" + "g" * 32, "-3:" + "0" * 32])
def test_damaged_digest_text_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="a digest looks like"):
        Digest.from_text(text)


@pytest.mark.parametrize(
    ("ids", "missing", "doubled", "record", "text"),
    [
        (range(100), 0, 0, None, "complete: 100 records, each exactly once"),
        ([*range(41), *range(42, 100)], 1, 0, 41, r"1 missing \(record 41\), 99 of 100 records"),
        ([*range(100), 17], 0, 1, 17, r"1 doubled \(record 17\), 101 of 100 records"),
        (range(97), 3, 0, None, "3 missing, 97 of 100 records; more may hide"),
        ([*range(100), 4, 4], 0, 2, None, "2 doubled, 102 of 100 records; more may hide"),
        ([*range(99), 5], 1, 1, None, "100 records, but some came twice and as many are missing"),
        ([*range(98), 5], 1, 0, None, "1 missing, 99 of 100 records; more may hide"),
        ([], 100, 0, None, "100 missing, 0 of 100 records"),
    ],
)
def test_verdicts(ids: list[int], missing: int, doubled: int, record: int | None, text: str) -> None:
    verdict = verify_digest(Digest().add(np.array(ids, dtype=np.int64)), 100)
    assert bool(verdict) is verdict.complete is (missing == doubled == 0)
    assert (verdict.missing, verdict.doubled, verdict.record) == (missing, doubled, record)
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(str(verdict))


def test_a_verdict_on_a_part_of_an_epoch() -> None:
    ids_N = record_ids(EXACT, 1000, 0)(0, 1000)
    rest = Verdict(expected=positions_digest(EXACT, 1000, 0, 600, 1000), found=Digest().add(ids_N[600:]))
    assert rest.complete
