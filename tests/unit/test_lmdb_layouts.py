"""Which layouts of keys are recognised, in which order their records come, and how that is overridden."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastio.errors import ErrorKind, RequestError
from fastio.formats.base import IndexOptions
from fastio.formats.lmdb import open_lmdb_shard
from fastio.formats.lmdb.arrange import RESERVED_KEYS, Arrangement, arrange
from fastio.formats.lmdb.entries import Entries
from fastio.formats.lmdb.tree import EntryChunk
from tests.unit import lmdb_environments as environments


def entries_of(keys: list[bytes]) -> Entries:
    """Entries with these keys, as if parsed; value i lies at 1000 i."""
    import numpy as np

    keys = sorted(keys)
    number_n = np.arange(len(keys), dtype=np.int64)
    chunk = EntryChunk(
        key_bytes=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_length_n=np.array([len(key) for key in keys], dtype=np.uint16),
        key_offset_n=number_n,
        value_offset_n=number_n * 1000,
        value_length_n=number_n.astype(np.uint32),
    )
    return Entries.collect([chunk], None)


def field_keys(entries: Entries, found: Arrangement) -> dict[str, list[bytes]]:
    return {name: [entries.key(i) for chunk in ids() for i in chunk.tolist()] for name, ids in found.fields}


def arranged(keys: list[bytes], layout: str = "auto") -> tuple[dict[str, list[bytes]], str]:
    entries = entries_of(keys)
    found = arrange(entries, ordered=True, layout=layout)
    order = field_keys(entries, found)
    assert {len(keys) for keys in order.values()} == {found.records}
    return order, found.sentence


@given(st.sets(st.integers(0, 10**9), max_size=80), st.booleans())
@settings(max_examples=60, deadline=None)
def test_unpadded_decimals_come_in_numeric_order(numbers: set[int], reserved: bool) -> None:
    keys = [b"%d" % number for number in numbers]
    order, _ = arranged(keys + list(RESERVED_KEYS) * reserved)
    assert order == {"value": [b"%d" % number for number in sorted(numbers)]}


@given(st.sets(st.integers(0, 2000), min_size=1, max_size=80), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_padded_decimals_come_in_numeric_order(numbers: set[int], width: int) -> None:
    order, sentence = arranged([b"%0*d" % (width, number) for number in numbers])
    assert [int(key) for key in order["value"]] == sorted(numbers)
    assert "decimal" in sentence


@given(st.sets(st.text("0123456789", min_size=1, max_size=4), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_any_digits_come_in_numeric_order_or_in_key_order(texts: set[str]) -> None:
    keys = [text.encode() for text in texts]
    order, sentence = arranged(keys)
    if sentence.startswith("every key is a decimal"):
        assert [int(key) for key in order["value"]] == sorted(map(int, keys))
    else:
        assert order["value"] == sorted(keys)
        assert "padded to different lengths" in sentence


@given(
    st.sets(st.sampled_from([b"image-", b"label-", b"mask_", b"wh-"]), min_size=2),
    st.sets(st.integers(0, 3000), min_size=1, max_size=50),
    st.sampled_from([1, 4, 9]),
)
@settings(max_examples=60, deadline=None)
def test_parts_of_records_are_paired(prefixes: set[bytes], numbers: set[int], width: int) -> None:
    keys = [prefix + b"%0*d" % (width, number) for prefix in prefixes for number in numbers]
    order, sentence = arranged([*keys, b"num-samples"], "pairs")
    ordered = sorted(numbers)
    expected = {
        prefix[:-1].decode(): [prefix + b"%0*d" % (width, number) for number in ordered] for prefix in sorted(prefixes)
    }
    assert list(order) == list(expected)
    assert order == expected
    assert sentence.endswith("left out, as bookkeeping: num-samples")


def test_scene_text_pairs_are_recognised_by_themselves() -> None:
    keys = [b"%s-%09d" % (name, k) for name in (b"image", b"label") for k in range(1, 300)]
    order, sentence = arranged(keys)
    assert list(order) == ["image", "label"]
    assert "image-N / label-N" in sentence


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([b"cat-001", b"dog-001"], "layout 'pairs' joins them"),
        ([b"image-1", b"image-2", b"label-1"], "not of equal size"),
        ([b"image-1", b"label-2"], "do not have the same numbers"),
        ([b"image-1", b"image_1"], "no names for fields"),
        ([b"\xff-1", b"image-1"], "no names for fields"),
        ([b"256-00001", b"256-00002"], "one family"),
        ([b"image1", b"image1-1", b"image2", b"label1"], "interrupted"),
        ([b"n%02d-%d" % (k, n) for k in range(40) for n in range(3)], "more than 16 names"),
        ([b"a", b"b"], "not names with numbers"),
        ([b"1", b"a1"], "not names with numbers"),
    ],
)
def test_other_keys_are_one_record_each(keys: list[bytes], reason: str) -> None:
    order, sentence = arranged(keys)
    assert order == {"value": sorted(keys)}
    assert reason in sentence


def test_classes_are_joined_only_when_asked_for() -> None:
    assert list(arranged([b"cat-001", b"dog-001"], "pairs")[0]) == ["cat", "dog"]


@pytest.mark.parametrize(("layout", "keys"), [("decimal", [b"a1"]), ("pairs", [b"1"]), ("pairs", [b"a-1"])])
def test_a_layout_that_does_not_fit_is_refused(layout: str, keys: list[bytes]) -> None:
    with pytest.raises(RequestError, match=f"layout '{layout}' was asked for, but") as caught:
        arranged(keys, layout)
    assert caught.value.kind is ErrorKind.BAD_OPTION


def test_plain_keeps_key_order() -> None:
    assert arranged([b"10", b"9", b"__len__"], "plain")[0] == {"value": [b"10", b"9"]}


def test_keys_that_are_not_ordered_as_bytes_are_left_alone() -> None:
    entries = entries_of([b"length", b"1"])
    assert field_keys(entries, arrange(entries, ordered=False, layout="plain")) == {"value": [b"1", b"length"]}


@pytest.mark.parametrize("engine", environments.ENGINES)
@pytest.mark.parametrize("bulk", [1, 3000])
def test_layouts_through_a_shard(tmp_path: Path, engine: int, bulk: int) -> None:
    """Small environments keep their index in memory, larger ones in a sidecar: the records are the same."""
    pad = b"x" * bulk
    decimal = environments.make(
        tmp_path / "decimal", {b"length": b"400", **{b"%d" % k: b"%d" % k + pad for k in range(400)}}, engine=engine
    )
    pairs = {b"image-%09d" % k: b"i%d" % k + pad for k in range(1, 300)}
    pairs |= {b"label-%09d" % k: b"l%d" % k for k in range(1, 300)}
    paired = environments.make(tmp_path / "pairs", {**pairs, b"num-samples": b"299"}, engine=engine)
    for state in ("built", "fresh") if bulk > 1 else ("none", "none"):
        shard = open_lmdb_shard(decimal, IndexOptions())
        assert shard.index_state == state
        assert environments.records(shard) == [(b"%d" % k, b"%d" % k + pad) for k in range(400)]
        shard.close()
        shard = open_lmdb_shard(paired, IndexOptions())
        assert list(shard.columns) == ["image", "label"]
        assert environments.records(shard) == [(b"i%d" % k + pad, b"l%d" % k) for k in range(1, 300)]
        shard.close()
    shard = open_lmdb_shard(decimal, IndexOptions(layout="plain"))
    assert [key for key, _ in environments.records(shard)] == sorted(b"%d" % k for k in range(400))
    shard.close()
