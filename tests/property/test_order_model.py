"""fastio.order against its slow model: permutation, plan, resumption, digest."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastio.order import Digest, EpochPlan, Permutation, record_ids, step_ids
from fastio.spec import OrderSpec, Tail
from fastio.testing.order_models import deal_epoch, digest_model, shuffle_model

# Cheap cases: four times as many as usual.
MORE = settings(max_examples=4 * settings().max_examples)

SEEDS = st.integers(0, 2**64 - 1)
EPOCHS = st.integers(0, 2**40)
RECORDS = st.one_of(st.integers(1, 3), st.integers(4, 6000), st.integers(6000, 2**34), st.integers(2**34, 2**63 - 1))


@st.composite
def positions_of(draw: st.DrawFn) -> tuple[int, list[int]]:
    records = draw(RECORDS)
    return records, draw(st.lists(st.integers(0, records - 1), max_size=8))


@given(positions_of(), SEEDS, EPOCHS)
@MORE
def test_permutation_is_the_model(case: tuple[int, list[int]], seed: int, epoch: int) -> None:
    records, positions = case
    ids_B = Permutation(records, seed, epoch).ids(np.array(positions, dtype=np.int64))
    assert ids_B.tolist() == [shuffle_model(at, records=records, seed=seed, epoch=epoch) for at in positions]


@given(st.integers(1, 20_000), SEEDS, EPOCHS)
def test_permutation_is_a_bijection(records: int, seed: int, epoch: int) -> None:
    ids_N = Permutation(records, seed, epoch).range_ids(0, records)
    assert np.bincount(ids_N, minlength=records).tolist() == [1] * records


@st.composite
def plans(draw: st.DrawFn, *, start: bool = True) -> EpochPlan:
    tail: Tail = draw(st.sampled_from(["even", "drop"]))
    world_size = draw(st.integers(1, 9))
    batch_size = draw(st.integers(1, 12))
    fewest = world_size * (batch_size if tail == "drop" else 1)
    records = draw(st.integers(fewest, fewest + 200))
    start_records = draw(st.integers(0, records)) if start else 0
    return EpochPlan(records, start_records, batch_size, world_size, tail)


def dealt(plan: EpochPlan) -> list[list[list[int]]]:
    return [[list(range(*plan.bounds(step, rank))) for rank in range(plan.world_size)] for step in range(plan.steps)]


@given(plans())
@MORE
def test_plan_is_the_model(plan: EpochPlan) -> None:
    sizes: dict[str, Any] = {"batch_size": plan.batch_size, "world_size": plan.world_size}
    assert dealt(plan) == deal_epoch(plan.records, start_records=plan.start_records, even=plan.tail == "even", **sizes)


@given(plans())
@MORE
def test_plan_keeps_its_promises(plan: EpochPlan) -> None:
    batches = dealt(plan)
    flat = [position for step in batches for batch in step for position in batch]
    assert flat == list(range(plan.start_records, plan.end_records))
    left = plan.records - plan.start_records
    if plan.tail == "even":
        assert plan.end_records == plan.records
    else:
        assert plan.records - plan.end_records == left % (plan.world_size * plan.batch_size)
    lengths = [[len(batch) for batch in step] for step in batches]
    assert all(length <= plan.batch_size for step in lengths for length in step)
    assert all(max(step) - min(step) <= 1 for step in lengths)
    if plan.batch_size >= 2 and left >= plan.world_size:
        assert all(min(step) >= 1 for step in lengths)
    assert all(min(step) >= 1 for step in lengths[:-1])
    done = plan.start_records
    assert plan.done_after(-1) == done
    for step, length in enumerate(lengths):
        done += sum(length)
        assert plan.done_after(step) == done


@given(plans())
@MORE
def test_restarts_from_every_step_give_the_same_rest(plan: EpochPlan) -> None:
    batches = dealt(plan)
    for step in range(-1, plan.steps):
        done = plan.done_after(step)
        resumed = EpochPlan(plan.records, done, plan.batch_size, plan.world_size, plan.tail) if done else plan
        assert resumed.steps == plan.steps - step - 1
        assert dealt(resumed) == batches[step + 1 :]


@given(st.data())
@MORE
def test_each_record_once_over_any_chain_of_resumptions(data: st.DataObject) -> None:
    """Stops after random steps and goes on with another world and batch size, until the epoch is over."""
    plan = data.draw(plans(start=False))
    order = OrderSpec(kind="exact", seed=data.draw(SEEDS))
    epoch = data.draw(st.integers(0, 3))
    delivered: list[int] = []
    while plan.steps:
        stop = data.draw(st.integers(1, plan.steps))
        ranks = [step_ids(order, plan, epoch, rank=rank) for rank in range(plan.world_size)]
        for step in range(stop):
            for ids in ranks:
                delivered += ids(step).tolist()
        world_size, batch_size = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
        plan = EpochPlan(plan.records, plan.done_after(stop - 1), batch_size, world_size, plan.tail)
        assert len(delivered) == plan.start_records
    expected = record_ids(order, plan.records, epoch)(0, plan.start_records)
    assert delivered == expected.tolist()
    assert len(set(delivered)) == len(delivered)
    if plan.tail == "even":
        assert len(delivered) == plan.records


@given(st.lists(st.lists(st.integers(0, 2**63 - 1), max_size=20), max_size=5), st.randoms())
@MORE
def test_digest_is_the_model_and_forgets_the_order(parts: list[list[int]], random: Any) -> None:
    merged = Digest()
    for part in parts:
        merged = merged.merge(Digest().add(np.array(part, dtype=np.int64)))
    everything = [record for part in parts for record in part]
    random.shuffle(everything)
    assert merged == Digest(*digest_model(everything))
    assert Digest.from_text(merged.to_text()) == merged
