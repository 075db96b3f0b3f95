"""The writer: what was appended is there, in order, whole; and what failed is not there at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastio
from fastio import ErrorKind, RequestError, StoreError, Writer
from fastio.errors import ClosedError
from fastio.writer import MANIFEST_NAME
from fastio.writer.arrow import ArrowShardWriter
from fastio.writer.lmdb import LmdbShardWriter
from fastio.writer.manifest import checksum
from fastio.writer.schema import as_schema


def manifest(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / MANIFEST_NAME).read_text())
    return found


def arrow_rows(path: Path) -> list[dict[str, Any]]:
    """The obvious reader: every shard that the manifest names, in its order."""
    rows: list[dict[str, Any]] = []
    for shard in manifest(path)["shards"]:
        with pa.memory_map(str(path / shard["path"])) as file:
            rows += pa.ipc.open_file(file).read_all().to_pylist()
    return rows


def lmdb_items(path: Path) -> list[tuple[bytes, bytes]]:
    items: list[tuple[bytes, bytes]] = []
    for shard in manifest(path)["shards"]:
        with lmdb.open(str((path / shard["path"]).parent), readonly=True, lock=False) as env, env.begin() as txn:
            items += [(bytes(key), bytes(value)) for key, value in txn.cursor()]
    return items


def nothing_left(home: Path) -> bool:
    return not list(home.iterdir())


RECORDS = [{"name": f"r{i}", "data": bytes([i % 256]) * (i % 50), "x": i, "y": [i, i + 1]} for i in range(500)]
SCHEMA = {"name": str, "data": bytes, "x": "int32", "y": ("float32", 2)}


@pytest.mark.parametrize("shard_bytes", [1, 5_000, 1 << 30])
def test_records_come_back_in_order_from_every_shard(tmp_path: Path, shard_bytes: int) -> None:
    with Writer(tmp_path / "d", SCHEMA, shard_bytes=shard_bytes, batch_bytes=2_000) as writer:
        for record in RECORDS:
            writer.append(record)
        assert writer.records == len(RECORDS)
    assert arrow_rows(tmp_path / "d") == RECORDS
    assert {entry.name for entry in tmp_path.iterdir()} == {"d"}


def test_the_manifest_counts_and_checks(tmp_path: Path) -> None:
    schema = pa.schema([("x", pa.int64())], metadata={"classes": '["a"]'})
    with Writer(tmp_path / "d", schema, shard_bytes=4_000, shuffle_seed=7) as writer:
        writer.append_batch({"x": np.arange(2_000)})
    found = manifest(tmp_path / "d")
    assert found["version"] == 1
    assert (found["format"], found["records"], found["shuffled"]) == ("arrow", 2_000, 7)
    assert (found["fields"], found["metadata"]) == ({"x": "int64"}, {"classes": '["a"]'})
    assert len(found["shards"]) == 4
    assert sum(shard["records"] for shard in found["shards"]) == 2_000
    for shard in found["shards"]:
        path = tmp_path / "d" / shard["path"]
        assert (path.stat().st_size, checksum(path)) == (shard["bytes"], shard["checksum"])


def test_rows_and_batches_of_every_kind_keep_their_order(tmp_path: Path) -> None:
    with Writer(tmp_path / "d", {"x": "int64", "s": str}) as writer:
        writer.append({"x": 0, "s": ""})
        writer.append_batch(pa.record_batch({"x": [1], "s": ["b"]}))
        writer.append_batch(pa.table({"s": ["c", "d"], "x": pa.array([2, 3], pa.int8())}))
        writer.append({"s": "e", "x": 4})
        writer.append_batch({"x": np.array([5]), "s": ["f"]})
    assert [row["x"] for row in arrow_rows(tmp_path / "d")] == list(range(6))
    assert "".join(row["s"] for row in arrow_rows(tmp_path / "d")) == "bcdef"


def test_records_of_nothing_but_empty_values_are_kept(tmp_path: Path) -> None:
    with Writer(tmp_path / "d", {"data": bytes}) as writer:
        writer.append({"data": b""})
    assert arrow_rows(tmp_path / "d") == [{"data": b""}]


def test_arrays_of_a_fixed_shape(tmp_path: Path) -> None:
    images = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4)
    with Writer(tmp_path / "d", {"image": (np.uint8, (3, 4))}) as writer:
        for image in images[:3]:
            writer.append({"image": image})
        writer.append_batch({"image": images[3:]})
    assert np.array([row["image"] for row in arrow_rows(tmp_path / "d")]).tolist() == images.tolist()


def test_dictionaries_are_stored_decoded(tmp_path: Path) -> None:
    table = pa.table({"c": pa.array(["a", "b", "a"]).dictionary_encode()})
    with Writer(tmp_path / "d", table.schema) as writer:
        writer.append_batch(table)
    assert manifest(tmp_path / "d")["fields"] == {"c": "string"}
    assert [row["c"] for row in arrow_rows(tmp_path / "d")] == ["a", "b", "a"]


def test_bodies_are_not_compressed_and_batches_bounded(tmp_path: Path) -> None:
    with Writer(tmp_path / "d", {"data": bytes}, batch_bytes=1 << 16) as writer:
        writer.append_batch({"data": [b"\0" * 1_000] * 1_000})
    (shard,) = manifest(tmp_path / "d")["shards"]
    assert shard["bytes"] > 1_000_000
    with pa.memory_map(str(tmp_path / "d" / shard["path"])) as file:
        reader = pa.ipc.open_file(file)
        sizes = [reader.get_batch(i).nbytes for i in range(reader.num_record_batches)]
    assert max(sizes) <= 2 << 16


def test_lmdb_single_field(tmp_path: Path) -> None:
    with Writer(tmp_path / "d", {"data": bytes}, format="lmdb", shard_bytes=20_000, batch_bytes=4_000) as writer:
        for i in range(100):
            writer.append({"data": b"%03d" % i * 100})
    items = lmdb_items(tmp_path / "d")
    assert [value for _, value in items] == [b"%03d" % i * 100 for i in range(100)]
    assert len(manifest(tmp_path / "d")["shards"]) > 1
    assert items[0][0] == b"000000000000"
    assert not list((tmp_path / "d").rglob("lock.mdb"))


def test_lmdb_keys_as_given(tmp_path: Path) -> None:
    with Writer(tmp_path / "d", {"value": bytes, "key": str}, format="lmdb") as writer:
        writer.append({"key": "b", "value": b"2"})
        writer.append({"key": "a", "value": b"1"})
    assert lmdb_items(tmp_path / "d") == [(b"a", b"1"), (b"b", b"2")]


def test_lmdb_pairs(tmp_path: Path) -> None:
    with Writer(tmp_path / "d", {"image": bytes, "label": str}, format="lmdb") as writer:
        for i in range(2):
            writer.append({"image": b"img%d" % i, "label": f"é{i}"})
    assert dict(lmdb_items(tmp_path / "d")) == {
        b"image-000000001": b"img0",
        b"image-000000002": b"img1",
        b"label-000000001": "é0".encode(),
        b"label-000000002": "é1".encode(),
        b"num-samples": b"2",
    }


def test_an_lmdb_map_that_was_too_small_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LmdbShardWriter, "__init__", _tiny_map(LmdbShardWriter.__init__))
    with Writer(tmp_path / "d", {"data": bytes}, format="lmdb") as writer:
        for i in range(64):
            writer.append({"data": bytes([i]) * 10_000})
    assert [value[0] for _, value in lmdb_items(tmp_path / "d")] == list(range(64))


def _tiny_map(init: Any) -> Any:
    def shrunk(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self._map_bytes = 64 << 10
        self._env.set_mapsize(self._map_bytes)

    return shrunk


@pytest.mark.parametrize(
    ("schema", "words"), [({"a": bytes, "b": bytes, "c": bytes}, "format 'arrow'"), ({"a": int}, "a: int64")]
)
def test_lmdb_refuses_fields_it_has_no_place_for(tmp_path: Path, schema: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Writer(tmp_path / "d", schema, format="lmdb")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (b"k" * 600, b"", "511 bytes, got 600"),
        (b"", b"", "got 0"),
        (b"length", b"", "reserved"),
        (b"k", None, "holds a null"),
    ],
)
def test_lmdb_refuses_what_it_cannot_hold(tmp_path: Path, key: bytes, value: bytes | None, words: str) -> None:
    schema = {"key": bytes, "value": bytes}
    with pytest.raises(RequestError, match=words), Writer(tmp_path / "d", schema, format="lmdb") as writer:
        writer.append({"key": key, "value": value})
    assert nothing_left(tmp_path)


def test_lmdb_refuses_a_key_twice(tmp_path: Path) -> None:
    schema = {"key": bytes, "value": bytes}
    with pytest.raises(RequestError, match="distinct"), Writer(tmp_path / "d", schema, format="lmdb") as writer:
        writer.append_batch({"key": [b"k", b"k"], "value": [b"1", b"2"]})
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"x": 1}, r"without \['y'\]"),
        ({"x": 1, "y": [1, 2], "z": 3}, r"unknown \['z'\]"),
        ({"x": "one", "y": [1, 2]}, "field 'x'"),
        ({"x": 1, "y": [1, 2, 3]}, "field 'y'"),
        ({"x": 1, "y": np.zeros(3)}, r"shape \(2,\), got \(3,\)"),
    ],
)
def test_a_record_that_does_not_fit(tmp_path: Path, record: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words), Writer(tmp_path / "d", {"x": int, "y": ("f4", 2)}) as writer:
        writer.append(record)
    assert nothing_left(tmp_path)


def test_a_record_that_does_not_fit_is_named(tmp_path: Path) -> None:
    def write() -> None:
        with Writer(tmp_path / "d", {"x": "int8"}) as writer:
            writer.append_batch({"x": [1, 2]})
            for x in (3, 300, 4):
                writer.append({"x": x})

    with pytest.raises(RequestError, match=r"record 3, field 'x': a value does not fit int8: .*300"):
        write()


def test_a_batch_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not fit the schema"), Writer(tmp_path / "d", {"x": "int8"}) as writer:
        writer.append_batch(pa.table({"x": [1_000]}))
    with pytest.raises(RequestError, match="as many values"), Writer(tmp_path / "d", {"x": int, "y": int}) as writer:
        writer.append_batch({"x": [1], "y": [1, 2]})
    with (
        pytest.raises(RequestError, match="without nulls"),
        Writer(tmp_path / "d", pa.schema([pa.field("x", pa.int8(), nullable=False)])) as writer,
    ):
        writer.append({"x": None})
    assert nothing_left(tmp_path)


TWICE = pa.schema([("x", "int8"), ("x", "int8")])


@pytest.mark.parametrize("schema", [{}, {"x": "int65"}, {"x": object}, ["x"], TWICE])
def test_a_schema_that_is_none(tmp_path: Path, schema: Any) -> None:
    with pytest.raises(RequestError):
        Writer(tmp_path / "d", schema)


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="shard_bytes must be at least 1, got 0"):
        Writer(tmp_path / "d", {"x": int}, shard_bytes=0)
    with pytest.raises(RequestError, match="'arrow' or 'lmdb', got 'hdf5'"):
        Writer(tmp_path / "d", {"x": int}, format="hdf5")  # type: ignore[arg-type]


def test_schema_names() -> None:
    schema = as_schema({"a": bytes, "b": np.float32, "c": pa.large_string(), "d": ("u1", (2, 3))})
    assert [str(kind) for kind in schema.types[:3]] == ["binary", "float", "large_string"]
    assert schema.types[3] == pa.list_(pa.list_(pa.uint8(), 3), 2)


def test_nothing_is_written_before_the_block_and_after_it(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "d", {"x": int})
    assert nothing_left(tmp_path)
    with pytest.raises(ClosedError):
        writer.append({"x": 1})
    with writer:
        writer.append({"x": 1})
    with pytest.raises(ClosedError):
        writer.append({"x": 1})


def test_an_exception_inside_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Writer(tmp_path / "d", {"x": int}, shard_bytes=100) as writer:
            writer.append_batch({"x": range(100)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert nothing_left(tmp_path)


def test_no_records_are_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no record"), Writer(tmp_path / "d", {"x": int}):
        pass
    assert nothing_left(tmp_path)


def write_one(path: Path, value: int, **options: Any) -> None:
    with Writer(path, {"x": int}, **options) as writer:
        writer.append({"x": value})


def test_existing_data_stays_unless_told(tmp_path: Path) -> None:
    write_one(tmp_path / "d", 1)
    with pytest.raises(StoreError, match="exists already; overwrite=True") as caught:
        write_one(tmp_path / "d", 2)
    assert caught.value.kind is ErrorKind.ALREADY_EXISTS
    assert arrow_rows(tmp_path / "d") == [{"x": 1}]
    write_one(tmp_path / "d", 3, overwrite=True)
    assert arrow_rows(tmp_path / "d") == [{"x": 3}]
    assert {entry.name for entry in tmp_path.iterdir()} == {"d"}


def test_a_failed_overwrite_keeps_the_old(tmp_path: Path) -> None:
    write_one(tmp_path / "d", 1)
    with pytest.raises(RequestError):
        write_one(tmp_path / "d", "two", overwrite=True)  # type: ignore[arg-type]
    assert arrow_rows(tmp_path / "d") == [{"x": 1}]


def test_a_directory_of_someone_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match="fastio did not write it"):
        write_one(tmp_path / "d", 1, overwrite=True)
    assert (tmp_path / "d" / "thesis.tex").read_text() == "precious"


def test_an_empty_directory_is_room(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write_one(tmp_path / "d", 1)
    assert arrow_rows(tmp_path / "d") == [{"x": 1}]


KILLED = """
import os, signal, sys
from fastio import Writer
with Writer(sys.argv[1], {"x": int}, shard_bytes=100) as writer:
    writer.append_batch({"x": range(1000)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_refused_and_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "d"
    subprocess.run([sys.executable, "-c", KILLED, str(target)], timeout=60, check=False)
    assert list(tmp_path.rglob("*.arrow")), "whole shards were written before the end came"
    for path in (tmp_path, tmp_path / "d.partial"):
        with pytest.raises(StoreError) as caught:
            fastio.open_dataset(path)
        assert caught.value.kind is ErrorKind.EMPTY
    assert {entry.name for entry in tmp_path.iterdir()} == {"d.partial"}
    with pytest.raises(StoreError, match=r"did not finish; remove it \(rm -r .*d\.partial\) or use overwrite=True"):
        write_one(target, 1)
    write_one(target, 1, overwrite=True)
    assert arrow_rows(target) == [{"x": 1}]
    assert {entry.name for entry in tmp_path.iterdir()} == {"d"}


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "d", {"x": int}) as writer:
        writer.append({"x": 1})
        for overwrite in (False, True):
            with pytest.raises(StoreError, match="another process is writing"):
                write_one(tmp_path / "d", 2, overwrite=overwrite)
    assert arrow_rows(tmp_path / "d") == [{"x": 1}]


@pytest.mark.parametrize("format", ["arrow", "lmdb"])
def test_no_room_on_the_disk(tmp_path: Path, format: str) -> None:
    """A file-size limit of the process stands for the full disk: the same refusal, from the same system calls."""
    script = (
        "import resource, sys; from fastio import StoreError, Writer\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n"
        f"    with Writer(sys.argv[1], {{'data': bytes}}, format={format!r}, batch_bytes=1 << 16) as writer:\n"
        "        for _ in range(100): writer.append({'data': bytes(1 << 16)})\n"
        "except StoreError as error: sys.stdout.write(error.kind + ' ' + str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "d")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith("disk_full no room to write"), done.stdout + done.stderr
    assert nothing_left(tmp_path)


def test_a_full_disk_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, batch: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ArrowShardWriter, "write", refuse)
    with pytest.raises(StoreError, match="No space left") as caught:
        write_one(tmp_path / "d", 1)
    assert caught.value.kind is ErrorKind.DISK_FULL
    assert nothing_left(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create"):
        write_one(tmp_path / "file" / "d", 1)


@settings(max_examples=30)
@given(
    rows=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=300) | st.none()), min_size=1),
    shard_bytes=st.integers(1, 2_000),
    batch_bytes=st.integers(1, 2_000),
    by_batch=st.integers(0, 3),
)
def test_any_records_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, bytes | None]],
    shard_bytes: int,
    batch_bytes: int,
    by_batch: int,
) -> None:
    """Against a list, however the records are handed over and cut."""
    path = tmp_path_factory.mktemp("any") / "d"
    records = [{"x": x, "data": data} for x, data in rows]
    with Writer(path, {"x": "int64", "data": bytes}, shard_bytes=shard_bytes, batch_bytes=batch_bytes) as writer:
        for record in records[:by_batch]:
            writer.append(record)
        if records[by_batch:]:
            writer.append_batch({name: [record[name] for record in records[by_batch:]] for name in ("x", "data")})
    assert arrow_rows(path) == records
    assert all(shard["records"] == 1 or shard["bytes"] < 20 * 2_000 for shard in manifest(path)["shards"])
