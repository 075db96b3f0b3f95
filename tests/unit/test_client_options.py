"""What a loader may be told: URLs, numbers, the environment; all of it without a connection."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from fastio.errors import ErrorKind, RequestError
from fastio.spec import FieldSpec
from fastio.wire.messages import DatasetInfo
from fastio_client import Loader
from fastio_client.address import Address, parse_address
from fastio_client.backoff import delays_s
from fastio_client.options import LoaderOptions
from fastio_client.source import batch_bytes

URL = "fastio://localhost:9470/train"


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "PMI_RANK", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "address", "server"),
    [
        ("fastio://host:1/a", Address("tcp", "a", host="host", port=1), "host:1"),
        ("fastio://host/a.b-c", Address("tcp", "a.b-c", host="host", port=9470), "host:9470"),
        ("fastio://[fe80::1]:80/a", Address("tcp", "a", host="fe80::1", port=80), "[fe80::1]:80"),
        ("fastio+unix:///run/x.sock/a", Address("unix", "a", path="/run/x.sock"), "/run/x.sock"),
        ("fastio+unix:///a%20b/x.sock/a", Address("unix", "a", path="/a b/x.sock"), "/a b/x.sock"),
        ("fastio+unix:///%00name/a", Address("unix", "a", path="/\0name"), "/@name"),
        ("data/train.lmdb", Address("path", "train.lmdb", path="data/train.lmdb"), "data/train.lmdb"),
        ("/data/a b/", Address("path", "a_b", path="/data/a b/"), "/data/a b/"),
    ],
)
def test_urls(url: str, address: Address, server: str) -> None:
    assert parse_address(url) == address
    assert address.server == server


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "names no dataset"),
        ("http://host/a", "a plain path, got 'http'"),
        ("fastio://host:9470", "wanted fastio://HOST:PORT/NAME"),
        ("fastio://host:9470/", "wanted fastio://HOST:PORT/NAME"),
        ("fastio://:9470/a", "wanted fastio://HOST:PORT/NAME"),
        ("fastio://host:x/a", "wanted fastio://HOST:PORT/NAME"),
        ("fastio://host:0/a", "between 1 and 65535, got 0"),
        ("fastio://host:99999/a", "between 1 and 65535, got 99999"),
        ("fastio+unix://run/x.sock/a", "wanted fastio.unix:///PATH.sock/NAME"),
        ("fastio+unix:///x.sock/", "wanted fastio.unix:///PATH.sock/NAME"),
        ("fastio+unix:///x.sock", "wanted fastio.unix:///PATH.sock/NAME"),
    ],
)
def test_urls_that_are_none(url: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        Loader(url, batch_size=1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1, "order": "block"}, "order must be one of 'exact', 'sequential', got 'block'"),
        ({"batch_size": 1, "seed": -1}, "seed must be between 0"),
        ({"batch_size": 1, "tail": "wrap"}, "tail must be one of"),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, r"rank must be in \[0, world_size=2\), got 2"),
        ({"batch_size": 1, "rank": 2}, "give both or neither"),
        ({"batch_size": 1, "fields": []}, "at least one field"),
        ({"batch_size": 1, "fields": ["a", "a"]}, "distinct"),
        ({"batch_size": 1, "fields": "image"}, "a list of names, got the text 'image'"),
        ({"batch_size": 1, "window_bytes": 0}, "window_bytes must be at least 1, got 0"),
        ({"batch_size": 1, "reconnect_timeout_s": -1}, "reconnect_timeout_s must be at least 0, got -1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        Loader(URL, **options)


def test_the_rank_is_settled_when_the_loader_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    options = LoaderOptions(URL, batch_size=1)
    monkeypatch.setenv("RANK", "1")
    assert (options.rank, options.world_size) == (3, 4)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(RequestError, match="RANK=1 is set but WORLD_SIZE is not") as caught:
        LoaderOptions(URL, batch_size=1)
    assert caught.value.kind is ErrorKind.BAD_RANK


def test_a_path_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert LoaderOptions("x", batch_size=1).url == str(tmp_path / "x")
    path: Any = Path("y")
    assert LoaderOptions(path, batch_size=1).url == str(tmp_path / "y")


def test_a_loader_is_repr_and_hashable_by_identity() -> None:
    one, two = (Loader(URL, batch_size=1, token="secret") for _ in range(2))
    assert len({one, two}) == 2
    assert "secret" not in repr(one)


def test_waits_grow_are_spread_and_end_at_five_seconds() -> None:
    for seed in range(20):
        waits = list(islice(delays_s(random.Random(seed)), 12))
        assert waits[0] == 0
        for number, wait in enumerate(waits[1:]):
            longest = min(0.05 * 2**number, 5)
            assert longest / 2 <= wait <= longest
    assert len({next(islice(delays_s(random.Random(seed)), 5, 6)) for seed in range(20)}) == 20


def test_how_long_a_batch_is() -> None:
    image = FieldSpec(name="image", kind="ragged", dtype="|u1", nullable=True)
    label = FieldSpec(name="label", kind="fixed", dtype="<i4")
    info = DatasetInfo("d", 100, (image, label), (100_000, 400), "fp", "arrow", 1, b"")
    assert batch_bytes(info, LoaderOptions(URL, batch_size=10)) == 10 * (1000 + 4 + 8 + 8 + 1)
    assert batch_bytes(info, LoaderOptions(URL, batch_size=10, fields=["label"])) == 10 * (4 + 8)
