"""Hugging Face directories, written by the real library."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastio.dataset import Dataset, open_dataset
from fastio.errors import ErrorKind, StoreError
from fastio.formats.base import Column, DecodedColumn, IndexOptions
from fastio.testing.gather import gather

datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("ignore")  # what other libraries warn of is not tested here

N = 25


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def _rows() -> Any:
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
            "tokens": datasets.Sequence(datasets.Value("int32")),
            "words": datasets.Sequence(datasets.Value("string")),
            "grid": datasets.Array2D((2, 3), "float32"),
            "box": datasets.Sequence(datasets.Value("float32"), length=4),
            "meta": {"id": datasets.Value("int64"), "score": datasets.Value("float64")},
        }
    )
    rows = {
        "image": [{"bytes": _png(i), "path": None if i % 2 else f"{i}.png"} for i in range(N)],
        "label": [i % 2 for i in range(N)],
        "text": [f"text {i}" * (i % 4) for i in range(N)],
        "tokens": [list(range(i)) for i in range(N)],
        "words": [[str(i)] * (i % 3) for i in range(N)],
        "grid": [np.full((2, 3), i, np.float32).tolist() for i in range(N)],
        "box": [[float(i)] * 4 for i in range(N)],
        "meta": [{"id": i, "score": i / 2} for i in range(N)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def _png(i: int) -> bytes:
    image = pytest.importorskip("PIL.Image").new("L", (2, 2), i)
    sink = io.BytesIO()
    image.save(sink, format="PNG")
    return sink.getvalue()


def _opened(path: Path) -> Dataset:
    return open_dataset(path, options=IndexOptions(directory=path.parent / ".index"))


def _refused(path: Path, kind: ErrorKind) -> str:
    with pytest.raises(StoreError) as caught:
        _opened(path)
    assert caught.value.kind is kind
    return str(caught.value)


def test_saved_datasets_are_read_in_the_order_of_their_state(tmp_path: Path) -> None:
    rows = _rows()
    rows.save_to_disk(tmp_path / "d", num_shards=12)
    ids = [24, 0, 3, 11, 3]
    with _opened(tmp_path / "d") as dataset:
        assert "state.json" in dataset.layout
        assert "Arrow IPC stream" in dataset.layout
        assert len(dataset.shards) == 12
        assert dataset.records == N
        assert [field.name for field in dataset.fields][:3] == ["image.bytes", "image.path", "label"]
        assert gather(dataset, "image.bytes", ids) == [_png(i) for i in ids]
        assert gather(dataset, "image.path", ids) == [None if i % 2 else f"{i}.png" for i in ids]
        assert gather(dataset, "label", ids) == [i % 2 for i in ids]
        assert gather(dataset, "text", ids) == [rows[i]["text"] for i in ids]
        assert [one.tolist() for one in gather(dataset, "tokens", ids)] == [list(range(i)) for i in ids]
        assert [json.loads(one) for one in gather(dataset, "words", ids)] == [rows[i]["words"] for i in ids]
        assert [one.tolist() for one in gather(dataset, "box", ids)] == [[i] * 4 for i in ids]
        assert gather(dataset, "meta.score", ids) == [i / 2 for i in ids]


def test_arrays_of_a_known_shape_have_it(tmp_path: Path) -> None:
    _rows().save_to_disk(tmp_path / "d", num_shards=2)
    with _opened(tmp_path / "d") as dataset:
        grid = next(field for field in dataset.fields if field.name == "grid")
        assert (grid.kind, grid.dtype, grid.shape) == ("fixed", "<f4", (2, 3))
        assert isinstance(dataset.columns["grid"], Column)
        found = gather(dataset, "grid", [7, 20])
        np.testing.assert_array_equal(found, [np.full((2, 3), 7), np.full((2, 3), 20)])


def test_arrays_with_nulls_among_them_are_decoded(tmp_path: Path) -> None:
    features = datasets.Features({"grid": datasets.Array2D((1, 2), "int64")})
    rows = {"grid": [[[1, 2]], None, [[3, 4]]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    with _opened(tmp_path / "d") as dataset:
        assert isinstance(dataset.columns["grid"], DecodedColumn)
        found = [None if one is None else one.tolist() for one in gather(dataset, "grid", [2, 1, 0])]
        assert found == [[[3, 4]], None, [[1, 2]]]


def test_only_listed_files_belong_to_a_saved_dataset(tmp_path: Path) -> None:
    rows = _rows()
    rows.save_to_disk(tmp_path / "d")
    rows.save_to_disk(tmp_path / "other")
    (tmp_path / "d/cache-1234.arrow").write_bytes((tmp_path / "other/data-00000-of-00001.arrow").read_bytes())
    with _opened(tmp_path / "d") as dataset:
        assert dataset.records == N


def test_an_order_of_its_own_is_refused_with_the_remedy(tmp_path: Path) -> None:
    _rows().save_to_disk(tmp_path / "d")
    state = json.loads((tmp_path / "d/state.json").read_text())
    state["_indices_files"] = [{"filename": "indices-00000-of-00001.arrow"}]
    (tmp_path / "d/state.json").write_text(json.dumps(state))
    assert "flatten_indices" in _refused(tmp_path / "d", ErrorKind.UNSUPPORTED_LAYOUT)


def test_a_shuffled_dataset_is_read_in_its_shuffled_order(tmp_path: Path) -> None:
    rows = _rows().shuffle(seed=3)
    rows.save_to_disk(tmp_path / "d")
    with _opened(tmp_path / "d") as dataset:
        assert gather(dataset, "meta.id", list(range(N))) == [one["id"] for one in rows["meta"]]


def test_a_dict_of_several_splits_lists_them(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": _rows(), "test": _rows()}).save_to_disk(tmp_path / "d")
    message = _refused(tmp_path / "d", ErrorKind.UNSUPPORTED_LAYOUT)
    assert str(tmp_path / "d/train") in message
    assert str(tmp_path / "d/test") in message
    with _opened(tmp_path / "d/test") as dataset:
        assert dataset.records == N


def test_a_dict_of_one_split_is_that_split(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": _rows()}).save_to_disk(tmp_path / "d")
    with _opened(tmp_path / "d") as dataset:
        assert dataset.records == N
        assert "only split (train)" in dataset.layout


def test_a_cache_of_several_splits_is_refused_and_of_one_is_read(tmp_path: Path) -> None:
    _rows().save_to_disk(tmp_path / "saved")
    data = (tmp_path / "saved/data-00000-of-00001.arrow").read_bytes()
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("x-train.arrow", "cache-ab12.arrow"):
        (cache / name).write_bytes(data)
    (cache / "dataset_info.json").write_text(json.dumps({"splits": {"train": {}}}))
    with _opened(cache) as dataset:
        assert dataset.records == N
    (cache / "dataset_info.json").write_text(json.dumps({"splits": {"train": {}, "test": {}}}))
    assert "train, test" in _refused(cache, ErrorKind.UNSUPPORTED_LAYOUT)


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        ('{"_data_files": []}', ErrorKind.EMPTY, "no data files"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', ErrorKind.MISSING, "gone.arrow"),
        ('{"_data_files": 5}', ErrorKind.CORRUPT, "no list"),
        ("{", ErrorKind.CORRUPT, "not JSON"),
        ("[]", ErrorKind.CORRUPT, "no JSON object"),
    ],
)
def test_a_bad_state_is_named(tmp_path: Path, state: str, kind: ErrorKind, words: str) -> None:
    (tmp_path / "state.json").write_text(state)
    message = _refused(tmp_path, kind)
    assert words in message
    assert str(tmp_path / "state.json") in message


def test_shapes_are_known_where_the_library_was_never_imported(tmp_path: Path) -> None:
    """A daemon has pyarrow alone: extension types are then plain lists whose shape is in the field's metadata."""
    _rows().save_to_disk(tmp_path / "d")
    code = (
        "import sys\n"
        "from fastio.dataset import open_dataset\n"
        "from fastio.testing.gather import gather\n"
        f"dataset = open_dataset({str(tmp_path / 'd')!r})\n"
        "assert 'datasets' not in sys.modules and 'pandas' not in sys.modules\n"
        "print(dataset.fingerprint, gather(dataset, 'grid', [5])[0].tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    with _opened(tmp_path / "d") as dataset:
        assert done.stdout.split(" ", 1) == [dataset.fingerprint, "[[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]\n"]
