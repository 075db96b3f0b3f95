"""RemoteDataset in one process, against the fake server; DataLoader's processes are in tests/integration."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fastio.errors import RequestError
from fastio.spec import FieldSpec
from fastio.testing.fake_server import FakeDataset, FakeServer
from fastio_client import Loader, Ragged
from fastio_client.batch import Batch, BatchSource
from fastio_client.torch import RaggedTensor, RemoteDataset, _tensors

DATA = FakeDataset(records=50)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer({"d": DATA}) as made:
        yield made


def test_batches_are_tensors_that_share_memory(server: FakeServer) -> None:
    dataset = RemoteDataset(server.url("d"), batch_size=20)
    with Loader(server.url("d"), batch_size=20) as loader:
        for tensors, batch in zip(dataset, loader, strict=True):
            assert list(tensors) == ["number", "word", "_id", "_mask"]
            assert tensors["_id"].tolist() == batch.ids.tolist()
            assert tensors["_mask"]["number"].tolist() == batch.masks["number"].tolist()
            word = tensors["word"]
            assert isinstance(word, RaggedTensor)
            assert word.values.dtype == torch.uint8
            words = [word.values[a:b].numpy().tobytes() for a, b in zip(word.offsets, word.offsets[1:], strict=False)]
            assert words == [DATA.word(record) for record in batch.ids]
            assert [item.tolist() for item in word.to_nested()] == [list(item) for item in words]
    dataset.close()


def test_every_dtype_becomes_a_tensor() -> None:
    numbers = ["?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8", "<c8", "<c16"]
    columns: dict[str, Any] = {dtype: np.ones((3, 2), dtype=dtype) for dtype in numbers}
    columns["<M8[us]"] = np.array([0, 1, 2], dtype="<M8[us]")
    columns["|S4"] = np.array([b"abcd", b"ef", b""])
    columns["ragged"] = Ragged(np.arange(5, dtype="<f4"), np.array([0, 2, 5, 5]))
    source = BatchSource((FieldSpec(name="x", kind="fixed", dtype="<i4"),), 3)
    batch = Batch(columns, ids=np.arange(3), step=0, epoch=0, masks={}, source=source, payload_bytes=1)
    tensors = _tensors(batch)
    for dtype in numbers:
        assert tensors[dtype].numpy().dtype == np.dtype(dtype)
        columns[dtype][0] = 0
        assert not tensors[dtype][0].any()
    assert tensors["<M8[us]"].tolist() == [0, 1, 2]
    assert tensors["|S4"].tolist()[1] == [*b"ef", 0, 0]
    assert tensors["ragged"].values.tolist() == [0, 1, 2, 3, 4]
    assert "_mask" not in tensors


def test_names_of_its_own_are_refused_in_a_dataset() -> None:
    source = BatchSource((FieldSpec(name="_id", kind="fixed", dtype="<i4"),), 3)
    batch = Batch({"_id": np.ones(1)}, ids=np.arange(1), step=0, epoch=0, masks={}, source=source, payload_bytes=1)
    with pytest.raises(RequestError, match="has a field '_id', which is fastio's own"):
        _tensors(batch)


def test_epochs_states_and_length_without_workers(server: FakeServer) -> None:
    dataset = RemoteDataset(server.url("d"), batch_size=15)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None)
    assert len(dataset) == len(loader) == 4
    first = [batch["_id"].tolist() for batch in loader]
    second = [batch["_id"].tolist() for batch in loader]
    assert first != second
    dataset.set_epoch(0)
    iterator = iter(loader)
    assert next(iterator)["_id"].tolist() == first[0]
    state = json.loads(json.dumps(dataset.state_dict()))
    assert dataset.state_dict(steps=1)["records_done"] == state["records_done"] == 15
    resumed = RemoteDataset(server.url("d"), batch_size=15)
    resumed.load_state_dict(state)
    assert len(resumed) == 3
    assert [batch["_id"].tolist() for batch in resumed] == first[1:]
    assert resumed.statistics().batches == 3
    dataset.close()
    resumed.close()


def test_what_a_pickle_carries(server: FakeServer) -> None:
    dataset = RemoteDataset(server.url("d"), batch_size=15, seed=4, token="t")
    dataset.set_epoch(3)
    plain = pickle.loads(pickle.dumps(dataset))
    assert (plain.url, plain.seed, plain.token) == (dataset.url, 4, "t")
    assert plain._shared.tolist() == dataset._shared.tolist()
    dataset.set_epoch(5)
    assert plain._shared.tolist()[1] == 3  # a value of its own
    shared = pickle.loads(bytes(ForkingPickler.dumps(dataset)))
    dataset.set_epoch(6)
    assert shared._shared.tolist()[1] == 6  # the same memory
    assert "t'" not in repr(dataset)


def test_workers_agree_on_epochs_however_far_each_had_got(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    dataset = RemoteDataset(server.url("d"), batch_size=5)
    shared = dataset._shared
    with Loader(server.url("d"), batch_size=5) as loader:
        epochs = [[batch.ids.tolist() for batch in loader] for _ in range(4)]
    workers = [pickle.loads(pickle.dumps(dataset))._worker for _ in range(3)]

    def iterate(limits: list[int]) -> list[list[list[int]]]:
        iterators = [worker.iterate(shared, number, 3) for number, worker in enumerate(workers)]
        return [
            [next(iterator)["_id"].tolist() for _ in range(limit)]
            for iterator, limit in zip(iterators, limits, strict=True)
        ]

    assert iterate([4, 3, 3]) == [epochs[0][number::3] for number in range(3)]
    assert iterate([4, 1, 0]) == [epochs[1][0::3], epochs[1][1::3][:1], []]  # abandoned
    assert iterate([1, 1, 1]) == [[epochs[2][number]] for number in range(3)]
    dataset.set_epoch(1)
    assert iterate([4, 3, 3]) == [epochs[1][number::3] for number in range(3)]
    assert not caplog.records
    workers[:] = [pickle.loads(pickle.dumps(dataset))._worker for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        assert iterate([1, 0, 0])[0] == [epochs[1][0]]
    assert "epoch 1 of" in caplog.text
    assert "call set_epoch before each epoch" in caplog.text


def test_workers_resume_at_a_loaded_state(server: FakeServer) -> None:
    dataset = RemoteDataset(server.url("d"), batch_size=5)
    with Loader(server.url("d"), batch_size=5) as loader:
        epoch = [batch.ids.tolist() for batch in loader]
    dataset.load_state_dict(dataset.state_dict(steps=4))
    for number in range(2):
        worker = pickle.loads(pickle.dumps(dataset))._worker
        found = [batch["_id"].tolist() for batch in worker.iterate(dataset._shared, number, 2)]
        assert found == epoch[4:][number::2]
    dataset.load_state_dict(dataset.state_dict(steps=6))  # all of it
    dataset.set_epoch(0)
    assert list(worker.iterate(dataset._shared, 1, 2)) == []
    dataset.close()
