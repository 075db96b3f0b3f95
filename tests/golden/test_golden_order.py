"""Orders, digests and states as they are in other people's checkpoints. These files never change; if a test here fails,
the code is wrong, however good the new order may be: give it another name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fastio.order import Digest, Permutation, expected_digest, record_ids
from fastio.spec import OrderSpec
from fastio_client.state import LoaderState

HERE = Path(__file__).parent
ORDERS: dict[str, Any] = json.loads((HERE / "order.json").read_text())
STATES: list[dict[str, Any]] = json.loads((HERE / "state.json").read_text())


@pytest.mark.parametrize("case", ORDERS["orders"], ids=lambda case: f"{case['records']}-{case['seed']}-{case['epoch']}")
def test_order(case: dict[str, Any]) -> None:
    records, seed, epoch, start = case["records"], case["seed"], case["epoch"], case["start"]
    stop = start + len(case["ids"])
    assert Permutation(records, seed, epoch).range_ids(start, stop).tolist() == case["ids"]
    ids = record_ids(OrderSpec(kind="exact", seed=seed), records, epoch)
    first, expected = case["sha256_of_first"]
    assert hashlib.sha256(ids(0, first).astype("<i8").tobytes()).hexdigest() == expected


@pytest.mark.parametrize(("records", "text"), ORDERS["digests_of_all_records"].items())
def test_digest(records: str, text: str) -> None:
    assert expected_digest(int(records)) == Digest.from_text(text)
    assert expected_digest(int(records)).to_text() == text


@pytest.mark.parametrize("state", STATES, ids=["exact", "sequential"])
def test_state(state: dict[str, Any]) -> None:
    assert LoaderState.from_dict(state).to_dict() == state
    assert LoaderState.from_dict(STATES[0]).delivered == expected_digest(1536)
