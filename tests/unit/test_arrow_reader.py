"""Arrow files through the reader: what is delivered in batches is what the obvious look-up finds."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastio.dataset import Dataset, open_dataset
from fastio.formats.base import IndexOptions
from fastio.layout import FieldArrays, batch_layout, view_batch
from fastio.plan import Strategy
from fastio.reader import Reader
from fastio.spec import FieldSpec, OrderSpec, StreamSpec
from fastio.testing.gather import gather
from tests.unit.reader_support import read_all, use_strategy

N = 200


def _table() -> Any:
    rng = np.random.default_rng(3)

    def some(values: list[Any]) -> list[Any]:
        return [None if gone else value for value, gone in zip(values, rng.random(len(values)) < 0.2, strict=True)]

    def texts() -> list[str]:
        return ["é" * int(n) for n in rng.integers(0, 20, N)]

    lists = [rng.integers(0, 9, int(n)).tolist() for n in rng.integers(0, 5, N)]
    return pa.table(
        {
            "flag": pa.array(some([bool(b) for b in rng.integers(0, 2, N)])),
            "int": pa.array(range(N), pa.int16()),
            "float": pa.array(some(rng.random(N).tolist()), pa.float32()),
            "time": pa.array(some(list(range(N))), pa.timestamp("us")),
            "decimal": pa.array([Decimal(i) for i in range(N)], pa.decimal128(9)),
            "point": pa.array([[i, i + 1] for i in range(N)], pa.list_(pa.int32(), 2)),
            "text": pa.array(some(texts())),
            "large": pa.array(texts(), pa.large_string()),
            "view": pa.array(some(texts()), pa.string_view()),
            "list": pa.array(some(lists), pa.list_(pa.int16())),
            "image": pa.array(some([{"bytes": bytes(i % 7), "path": None if i % 3 else "p"} for i in range(N)])),
            "word": pa.array(some(texts())).dictionary_encode(),
            "deep": pa.array([[["x"] * (i % 3)] for i in range(N)]),
        }
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    table = _table()
    for number, (start, stop) in enumerate([(0, 90), (90, 90), (90, N)]):
        part = table.slice(start, stop - start)
        with pa.ipc.new_stream(tmp_path / f"{number}.arrow", part.schema) as writer:
            writer.write_table(part, max_chunksize=31)
    with open_dataset(tmp_path, options=IndexOptions(directory=tmp_path / ".index")) as opened:
        yield opened


@pytest.mark.parametrize("strategy", ["extent", "mapped"])
def test_batches_hold_what_the_obvious_look_up_finds(
    dataset: Dataset, strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_strategy(monkeypatch, strategy)
    reader = Reader(threads=2)
    try:
        received = read_all(reader, dataset, StreamSpec(dataset="d", batch_size=33, order=OrderSpec(seed=5)))
    finally:
        reader.close()
    seen: list[int] = []
    for batch in received:
        described = batch.descriptor
        layout = batch_layout(dataset.fields, described.records, described.ragged_bytes)
        ids_B, fields = view_batch(dataset.fields, layout, batch.payload)
        seen.extend(ids_B.tolist())
        for field, arrays in zip(dataset.fields, fields, strict=True):
            for place, value in enumerate(gather(dataset, field.name, ids_B.tolist())):
                _assert_record(field, arrays, place, value)
    assert sorted(seen) == list(range(N))


def _assert_record(field: FieldSpec, arrays: FieldArrays, place: int, wanted: Any) -> None:
    assert (arrays.mask_B is None) == (not field.nullable)
    if arrays.mask_B is not None:
        assert bool(arrays.mask_B[place]) == (wanted is not None)
    if arrays.offsets_B1 is None:
        found = arrays.values[place]
    else:
        found = arrays.values[arrays.offsets_B1[place] : arrays.offsets_B1[place + 1]]
    if wanted is None:
        assert not np.asarray(found).tobytes().strip(b"\0"), f"garbage in a null of {field.name}"
    elif isinstance(wanted, str | bytes):
        assert found.tobytes() == (wanted.encode() if isinstance(wanted, str) else wanted)
    else:
        np.testing.assert_array_equal(found, wanted)
