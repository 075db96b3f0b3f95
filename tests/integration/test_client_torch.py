"""RemoteDataset in DataLoader's own processes: under fork and spawn the order is the rank's, whatever the workers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from fastio_client import Loader
from fastio_client.torch import RaggedTensor, RemoteDataset
from tests.integration.daemon_support import Daemon

RECORDS = 210


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("daemon")
    table = pa.table(
        {
            "x": np.arange(RECORDS, dtype=np.float32),
            "word": [str(i) * (i % 5) for i in range(RECORDS)],
            "n": pa.array([i if i % 3 else None for i in range(RECORDS)], pa.int64()),
        }
    )
    path = directory / "some.arrow"
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=50)
    with Daemon(directory, "--listen", "127.0.0.1:0", data=path) as daemon:
        daemon.ready()
        yield f"{daemon.urls[0]}/train"


def epochs_of(url: str, count: int, **options: Any) -> list[list[list[int]]]:
    with Loader(url, **options) as loader:
        return [[batch.ids.tolist() for batch in loader] for _ in range(count)]


def ids(batches: Any) -> list[list[int]]:
    return [batch["_id"].tolist() for batch in batches]


def data_loader(dataset: RemoteDataset, **options: Any) -> DataLoader[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # more workers than cores
        return DataLoader(dataset, batch_size=None, timeout=60, **options)


def drained(loader: DataLoader[Any]) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
        warnings.simplefilter("ignore", UserWarning)
        return ids(loader)


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_restore_the_order_of_the_rank(url: str, context: str, persistent: bool) -> None:
    expected = epochs_of(url, 3, batch_size=16, rank=1, world_size=2)
    dataset = RemoteDataset(url, batch_size=16, rank=1, world_size=2)
    loader = data_loader(dataset, num_workers=2, multiprocessing_context=context, persistent_workers=persistent)
    assert len(loader) == len(expected[0])
    assert drained(loader) == expected[0]
    if persistent:
        assert drained(loader) == expected[1]  # without set_epoch
        dataset.set_epoch(0)
        assert drained(loader) == expected[0]
    dataset.set_epoch(2)
    assert drained(loader) == expected[2]
    dataset.close()


def test_more_workers_than_steps(url: str) -> None:
    expected = epochs_of(url, 1, batch_size=150)
    dataset = RemoteDataset(url, batch_size=150)
    assert drained(data_loader(dataset, num_workers=3, multiprocessing_context="fork")) == expected[0]
    dataset.close()


def test_values_cross_the_border_whole(url: str) -> None:
    dataset = RemoteDataset(url, batch_size=50)
    loader = data_loader(dataset, num_workers=1, multiprocessing_context="spawn")
    for batch in loader:
        records = batch["_id"].tolist()
        assert batch["x"].tolist() == records
        assert isinstance(batch["word"], RaggedTensor)
        assert batch["word"].values.numpy().tobytes() == "".join(str(i) * (i % 5) for i in records).encode()
        assert batch["_mask"]["n"].tolist() == [i % 3 != 0 for i in records]
        assert batch["n"].dtype == torch.int64
    dataset.close()


def test_a_state_goes_on_in_workers_and_without(url: str) -> None:
    [epoch] = epochs_of(url, 1, batch_size=16)
    dataset = RemoteDataset(url, batch_size=16)
    loader = data_loader(dataset, num_workers=2, multiprocessing_context="fork")
    seen = []
    for batch in loader:
        seen.append(batch["_id"].tolist())
        if len(seen) == 5:
            break
    state = dataset.state_dict(steps=5)
    for workers in (0, 2):
        resumed = RemoteDataset(url, batch_size=16)
        resumed.load_state_dict(state)
        options: dict[str, Any] = {"multiprocessing_context": "fork"} if workers else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            found = ids(DataLoader(resumed, batch_size=None, num_workers=workers, **options))
        assert seen + found == epoch
        resumed.close()
    dataset.close()


def test_a_path_in_workers(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(40)})
    with pa.ipc.new_file(str(tmp_path / "d.arrow"), table.schema) as file:
        file.write_table(table)
    expected = epochs_of(str(tmp_path / "d.arrow"), 1, batch_size=8)
    dataset = RemoteDataset(str(tmp_path / "d.arrow"), batch_size=8)
    for context in ("fork", "spawn"):
        loader = data_loader(dataset, num_workers=1, multiprocessing_context=context)
        assert drained(loader) == expected[0]
    dataset.close()


def test_an_error_of_a_worker_is_one_of_ours(url: str) -> None:
    dataset = RemoteDataset(url, batch_size=8, fields=["nope"])
    from fastio.errors import RequestError

    with pytest.raises(RequestError, match="nope"):
        drained(data_loader(dataset, num_workers=1, multiprocessing_context="fork"))
    dataset.close()
