"""fastio_client.state: what a checkpoint holds, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastio.errors import ErrorKind, RequestError
from fastio.order import Digest, EpochPlan, expected_digest, record_ids, step_ids, verify_digest
from fastio.spec import OrderSpec
from fastio_client.state import STATE_VERSION, LoaderState

ORDER = OrderSpec(kind="exact", seed=5)
STATE = LoaderState(fingerprint="f00d", order=ORDER, epoch=2, records_done=300, step=3)


@given(
    st.text(max_size=80),
    st.sampled_from(["exact", "sequential"]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**9),
    st.integers(0, 2**63 - 1),
    st.none() | st.lists(st.integers(0, 2**63 - 1), max_size=3),
)
def test_a_state_survives_json(
    fingerprint: str, kind: Any, seed: int, epoch: int, records_done: int, ids: list[int] | None
) -> None:
    state = LoaderState(
        fingerprint=fingerprint,
        order=OrderSpec(kind=kind, seed=seed),
        epoch=epoch,
        records_done=records_done,
        delivered=None if ids is None else Digest().add(np.array(ids, dtype=np.int64)),
    )
    text = json.dumps(state.to_dict())
    assert LoaderState.from_dict(json.loads(text)) == state
    assert len(text) < 500 + 12 * len(fingerprint)


def test_whole_numbers_of_other_types_are_taken() -> None:
    state = STATE.to_dict() | {"epoch": np.int64(2), "records_done": np.uint32(300)}
    assert LoaderState.from_dict(state) == STATE
    assert type(LoaderState.from_dict(state).epoch) is int


def test_unknown_keys_are_ignored() -> None:
    assert LoaderState.from_dict(STATE.to_dict() | {"note": "added by a later minor version"}) == STATE


def test_a_newer_version_is_refused() -> None:
    with refused(f"version {STATE_VERSION + 1}, this fastio reads up to version {STATE_VERSION}: upgrade"):
        LoaderState.from_dict(STATE.to_dict() | {"version": STATE_VERSION + 1})


@pytest.mark.parametrize("key", ["version", "fingerprint", "order", "epoch", "records_done", "step"])
def test_a_missing_key_is_named(key: str) -> None:
    state = STATE.to_dict()
    del state[key]
    with refused(f"it has no '{key}'"):
        LoaderState.from_dict(state)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 0, "'version' must be at least 1, got 0"),
        ("version", "1", "'version' must be a whole number, got '1'"),
        ("fingerprint", None, "'fingerprint' must be text, got None"),
        ("order", "exact", "'order' must be a dict of kind and seed, got 'exact'"),
        ("order", {"kind": "exact"}, "it has no 'seed'"),
        ("order", {"kind": "block", "seed": 1}, "order is not one this fastio knows"),
        ("order", {"kind": "exact", "seed": 2**64}, "order is not one this fastio knows: seed must be"),
        ("order", {"kind": ["exact"], "seed": 0}, "'kind' must be text"),
        ("epoch", -1, "'epoch' must be at least 0, got -1"),
        ("epoch", True, "'epoch' must be a whole number, got True"),
        ("records_done", 1.5, "'records_done' must be a whole number, got 1.5"),
        ("records_done", None, "'records_done' must be a whole number, got None"),
        ("step", [1], "'step' must be a whole number"),
        ("delivered", 7, "'delivered' must be text, got 7"),
        ("delivered", "7:zz", "damaged: a digest looks like"),
    ],
)
def test_damage_is_named(key: str, value: object, message: str) -> None:
    with refused(message):
        LoaderState.from_dict(STATE.to_dict() | {key: value})


@pytest.mark.parametrize("state", [None, [], "state", 3])
def test_what_is_no_dict_is_refused(state: Any) -> None:
    with refused("a loader's state is a dict"):
        LoaderState.from_dict(state)


def test_the_same_dataset_and_order_pass() -> None:
    STATE.check(fingerprint="f00d", order=ORDER, records=300)
    sequential = LoaderState(fingerprint="f00d", order=OrderSpec(kind="sequential", seed=1), epoch=0, records_done=0)
    sequential.check(fingerprint="f00d", order=OrderSpec(kind="sequential", seed=2), records=300)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ({"fingerprint": "beef"}, "another dataset: its fingerprint is 'f00d', the dataset's is 'beef'"),
        ({"order": OrderSpec(kind="exact", seed=6)}, "the state has seed=5, the loader has seed=6"),
        ({"order": OrderSpec(kind="sequential", seed=5)}, "order='exact', the loader has order='sequential'"),
        ({"records": 299}, "300 records are done, the dataset has 299"),
    ],
)
def test_what_differs_is_named(loader: dict[str, Any], message: str) -> None:
    with refused(message):
        known: dict[str, Any] = {"fingerprint": "f00d", "order": ORDER, "records": 1000}
        STATE.check(**(known | loader))


def test_digests_add_up_over_ranks_and_resumptions() -> None:
    """Two ranks, stopped after three steps, whose summed digest goes into the state; then three ranks."""
    first = EpochPlan(records=1000, start_records=0, batch_size=50, world_size=2)
    ranks = [deliver(first, rank, steps=3) for rank in range(2)]
    saved = LoaderState(
        fingerprint="f00d", order=ORDER, epoch=2, records_done=first.done_after(2), delivered=ranks[0].merge(ranks[1])
    )
    loaded = LoaderState.from_dict(json.loads(json.dumps(saved.to_dict())))
    second = EpochPlan(records=1000, start_records=loaded.records_done, batch_size=7, world_size=3)
    assert loaded.delivered is not None
    total = loaded.delivered
    for rank in range(3):
        total = total.merge(deliver(second, rank, steps=second.steps))
    assert verify_digest(total, 1000).complete
    assert total == expected_digest(1000)


def deliver(plan: EpochPlan, rank: int, *, steps: int) -> Digest:
    ids = step_ids(ORDER, plan, 2, rank=rank)
    between = record_ids(ORDER, plan.records, 2)
    digest = Digest()
    for step in range(steps):
        assert ids(step).tolist() == between(*plan.bounds(step, rank)).tolist()
        digest = digest.add(ids(step))
    return digest


@contextmanager
def refused(text: str) -> Iterator[None]:
    """The block raises a STATE_MISMATCH whose message holds ``text``."""
    with pytest.raises(RequestError) as caught:
        yield
    assert caught.value.kind == ErrorKind.STATE_MISMATCH
    assert text in str(caught.value)
