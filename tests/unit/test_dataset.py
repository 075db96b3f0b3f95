"""Datasets: what a path is, in which order its shards come, and what its records are called."""

from __future__ import annotations

import json
import os
import pickle
import random
import threading
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastio.dataset import Dataset, open_dataset
from fastio.errors import ErrorKind, RequestError, StoreError
from fastio.formats import find_shards, natural_key
from fastio.formats.base import IndexOptions
from fastio.formats.cache import LruCache
from fastio.testing.gather import gather


def _write(path: Path, values: Any, *, form: str = "stream", name: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = values if isinstance(values, pa.Table) else pa.table({name: values})
    make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with make(path, table.schema) as writer:
        writer.write_table(table)
    return path


def _environment(path: Path, *, subdir: bool = True, entries: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), subdir=subdir, map_size=1 << 20) as env, env.begin(write=True) as txn:
        for i in range(entries):
            txn.put(f"{path.name}-{i:03}".encode(), b"value")
    return path


def _opened(path: Path) -> Dataset:
    return open_dataset(path, options=IndexOptions(directory=path.parent / ".index"))


def _refused(path: Path, kind: ErrorKind) -> str:
    with pytest.raises(StoreError) as caught:
        _opened(path)
    assert caught.value.kind is kind
    return str(caught.value)


def test_shards_are_sorted_by_relative_path_with_numbers_as_numbers(tmp_path: Path) -> None:
    names = ["a/part-2", "a/part-10", "b-1.feather", "b-01.feather", "part-9.arrow", "part-10.arrow"]
    for number, name in enumerate(random.Random(1).sample(names, len(names))):
        _write(tmp_path / "d" / name, [names.index(name)], form="file" if number % 2 else "stream")
    with _opened(tmp_path / "d") as dataset:
        assert [shard.path.relative_to(tmp_path / "d").as_posix() for shard in dataset.shards] == [
            "a/part-2",
            "a/part-10",
            "b-01.feather",
            "b-1.feather",
            "part-9.arrow",
            "part-10.arrow",
        ]
        assert gather(dataset, "x", list(range(6))) == [0, 1, 3, 2, 4, 5]
        assert dataset.locate(5) == (tmp_path / "d/part-10.arrow", 0)


@given(st.lists(st.from_regex(r"[a-c0-2/]{1,6}", fullmatch=True), unique=True))
def test_the_natural_order_is_total(names: list[str]) -> None:
    ordered = sorted(names, key=natural_key)
    again = names[::-1]
    again.sort(key=natural_key)
    assert again == ordered
    assert len({natural_key(name) for name in names}) == len(names)


def test_record_ids_count_through_the_shards(tmp_path: Path) -> None:
    for number, records in enumerate([3, 1, 4]):
        _write(tmp_path / f"d/{number}", [number * 10 + i for i in range(records)])
    with _opened(tmp_path / "d") as dataset:
        assert dataset.shard_start_S1.tolist() == [0, 3, 4, 8]
        assert [dataset.locate(i) for i in (2, 3, 4)] == [
            (tmp_path / "d/0", 2),
            (tmp_path / "d/1", 0),
            (tmp_path / "d/2", 0),
        ]
        with pytest.raises(RequestError, match=r"\[0, 8\), got 8"):
            dataset.locate(8)
        assert gather(dataset, "x", [7, 3, 0]) == [23, 10, 0]
        assert len(dataset.files) == 3


def test_other_files_are_passed_over_and_counted(tmp_path: Path) -> None:
    _write(tmp_path / "d/1.arrow", [1])
    (tmp_path / "d/README.md").write_text("about")
    (tmp_path / "d/.hidden").write_text("hidden")
    (tmp_path / "d/.fastio").mkdir()
    (tmp_path / "d/.fastio/1.arrow.idx").write_text("an index")
    with _opened(tmp_path / "d") as dataset:
        assert "1 other files passed over" in dataset.layout


def test_a_file_whose_name_promises_arrow_is_not_passed_over(tmp_path: Path) -> None:
    _write(tmp_path / "d/1.arrow", [1])
    (tmp_path / "d/2.arrow").write_bytes(b"")
    assert "2.arrow" in _refused(tmp_path / "d", ErrorKind.NOT_A_DATASET)


def test_links_are_followed_but_nothing_is_read_twice(tmp_path: Path) -> None:
    _write(tmp_path / "elsewhere/1.arrow", [1])
    (tmp_path / "d").mkdir()
    (tmp_path / "d/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d/loop").symlink_to(tmp_path / "d")
    with _opened(tmp_path / "d") as dataset:
        assert dataset.records == 1


def test_many_environments_are_one_dataset(tmp_path: Path) -> None:
    for number in (10, 2):
        _environment(tmp_path / f"d/env-{number}")
    with _opened(tmp_path / "d") as dataset:
        assert dataset.format == "lmdb"
        assert gather(dataset, "key", [0, 3]) == [b"env-2-000", b"env-10-000"]
    for number in (10, 2):
        _environment(tmp_path / f"f/{number}.lmdb", subdir=False)
    with _opened(tmp_path / "f") as dataset:
        assert gather(dataset, "key", [0, 5]) == [b"2.lmdb-000", b"10.lmdb-002"]


def test_one_environment_is_one_shard_however_it_is_named(tmp_path: Path) -> None:
    _environment(tmp_path / "env")
    _environment(tmp_path / "single", subdir=False)
    for path in (tmp_path / "env", tmp_path / "single"):
        with _opened(path) as dataset:
            assert (dataset.format, dataset.records, len(dataset.shards)) == ("lmdb", 3, 1)


def test_arrow_and_lmdb_do_not_mix(tmp_path: Path) -> None:
    _write(tmp_path / "d/1.arrow", [1])
    _environment(tmp_path / "d/env")
    message = _refused(tmp_path / "d", ErrorKind.UNSUPPORTED_LAYOUT)
    assert "1.arrow" in message
    assert "env" in message


def test_what_is_not_there_or_empty_or_foreign_is_named(tmp_path: Path) -> None:
    assert "does not exist" in _refused(tmp_path / "gone", ErrorKind.MISSING)
    (tmp_path / "empty").mkdir()
    assert "is empty" in _refused(tmp_path / "empty", ErrorKind.EMPTY)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes.txt").write_text("hello")
    message = _refused(tmp_path / "text", ErrorKind.NOT_A_DATASET)
    assert "notes.txt" in message
    assert "fastio reads Arrow" in message
    assert "text that begins 'hello'" in _refused(tmp_path / "text/notes.txt", ErrorKind.NOT_A_DATASET)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.arrow", [1])
    path.chmod(0)
    assert "Permission denied" in _refused(path, ErrorKind.UNREADABLE)


def test_a_failing_system_call_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "x.arrow", [1])

    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "Permission denied" in _refused(path, ErrorKind.UNREADABLE)


def test_a_thousand_foreign_files_are_enough(tmp_path: Path) -> None:
    for number in range(1005):
        (tmp_path / f"{number}.txt").touch()
    assert "none of the first 1000 files" in _refused(tmp_path, ErrorKind.NOT_A_DATASET)


def test_a_manifest_gives_the_order_and_the_counts(tmp_path: Path) -> None:
    _write(tmp_path / "b.arrow", [1, 2])
    _write(tmp_path / "a.arrow", [3])
    _write(tmp_path / "not-listed.arrow", [9])
    manifest: dict[str, Any] = {"shards": [{"path": "b.arrow", "records": 2}, {"path": "a.arrow", "records": 1}]}
    place = tmp_path / "fastio-manifest.json"
    place.write_text(json.dumps(manifest))
    with _opened(tmp_path) as dataset:
        assert gather(dataset, "x", [0, 1, 2]) == [1, 2, 3]
        assert "manifest" in dataset.layout
    manifest["shards"][1]["records"] = 5
    place.write_text(json.dumps(manifest))
    assert "manifest says 5" in _refused(tmp_path, ErrorKind.CHANGED)
    manifest["shards"][1]["path"] = "gone.arrow"
    place.write_text(json.dumps(manifest))
    assert "gone.arrow" in _refused(tmp_path, ErrorKind.MISSING)
    manifest["shards"][1]["path"] = "../outside.arrow"
    place.write_text(json.dumps(manifest))
    assert "outside" in _refused(tmp_path, ErrorKind.CORRUPT)
    place.write_text("{}")
    _refused(tmp_path, ErrorKind.CORRUPT)
    place.write_text('{"shards": []}')
    _refused(tmp_path, ErrorKind.EMPTY)


@pytest.mark.parametrize("form", ["arrow", "lmdb"])
def test_what_the_writer_wrote_is_read(tmp_path: Path, form: Any) -> None:
    from fastio.writer import Writer

    with Writer(tmp_path / "d", pa.schema([("key", pa.binary()), ("value", pa.binary())]), format=form) as writer:
        writer.append_batch({"key": [b"a", b"b"], "value": [b"1", b"2"]})
    with _opened(tmp_path / "d") as dataset:
        assert (dataset.format, dataset.records) == (form, 2)
        assert gather(dataset, "value", [1, 0]) == [b"2", b"1"]


def test_shards_of_other_schemas_are_refused_naming_both(tmp_path: Path) -> None:
    one = pa.table({"a": pa.array([1], pa.int32()), "b": pa.array(["x"])})
    _write(tmp_path / "d/1", one)
    for other, words in [
        (pa.table({"a": pa.array([1], pa.int64()), "b": pa.array(["x"])}), "'a' of type int64"),
        (one.select(["a"]), "lacks"),
        (one.rename_columns(["a", "c"]), "'c' of type string"),
        (pa.table({"a": pa.array([1], pa.int32()), "b": pa.array([["x"]])}), "'b' of type list"),
    ]:
        _write(tmp_path / "d/2", other)
        message = _refused(tmp_path / "d", ErrorKind.SCHEMA_MISMATCH)
        assert words in message
        assert str(tmp_path / "d/1") in message
        assert str(tmp_path / "d/2") in message


def test_nullability_metadata_and_item_names_may_differ(tmp_path: Path) -> None:
    for name, field in (
        ("1", pa.field("x", pa.list_(pa.field("item", pa.int8())))),
        (
            "2",
            pa.field(
                "x", pa.list_(pa.field("element", pa.int8(), nullable=False)), nullable=False, metadata={"a": "b"}
            ),
        ),
    ):
        _write(tmp_path / "d" / name, pa.table([pa.array([[1]], field.type)], schema=pa.schema([field])))
    with _opened(tmp_path / "d") as dataset:
        assert dataset.records == 2


def test_nulls_in_one_shard_make_the_field_nullable(tmp_path: Path) -> None:
    struct = pa.struct([("a", pa.int8())])
    rows = [[{"a": 1}], [None, {"a": None}], [{"a": 4}, None]]
    for number, values in enumerate(rows):
        _write(tmp_path / f"d/{number}", pa.table({"s": pa.array(values, struct)}))
    with _opened(tmp_path / "d") as dataset:
        assert dataset.fields[0].nullable
        assert gather(dataset, "s.a", [0, 1, 2, 3, 4]) == [1, None, None, 4, None]


def test_unknown_fields_list_the_known_ones(tmp_path: Path) -> None:
    path = _write(tmp_path / "x", pa.table({"label": [1], "image": pa.array([{"bytes": b"", "path": ""}])}))
    with _opened(path) as dataset:
        assert dataset.select(None) == ("label", "image.bytes", "image.path")
        assert dataset.select(["image.path", "label"]) == ("image.path", "label")
        with pytest.raises(RequestError, match="did you mean 'label'") as caught:
            dataset.select(["lable"])
        assert caught.value.kind is ErrorKind.UNKNOWN_FIELD
        with pytest.raises(RequestError, match=r"a struct .* image\.bytes, image\.path"):
            dataset.select(["image"])


def test_the_fingerprint_is_of_the_data_not_of_the_place(tmp_path: Path) -> None:
    def fingerprint(where: str, name: str, values: Any) -> str:
        _write(tmp_path / where / name, values)
        with _opened(tmp_path / where) as dataset:
            return dataset.fingerprint

    first = fingerprint("a", "1", [1, 2])
    assert len(first) == 32
    assert fingerprint("b", "1", [1, 2]) == first
    assert fingerprint("c", "2", [1, 2]) != first
    assert fingerprint("d", "1", [1, 2, 3]) != first
    assert fingerprint("e", "1", pa.array([1, 2], pa.uint64())) != first
    os.utime(tmp_path / "a/1", (1, 1))
    with _opened(tmp_path / "a") as dataset:
        assert dataset.fingerprint == first
    with _opened(tmp_path / "a/1") as dataset:
        single = dataset.fingerprint
    (tmp_path / "a/1").rename(tmp_path / "renamed")
    with _opened(tmp_path / "renamed") as dataset:
        assert dataset.fingerprint == single


def test_many_shards_hold_no_descriptor_each(tmp_path: Path) -> None:
    for number in range(300):
        _write(tmp_path / f"d/{number}.arrow", [str(number)])
    before = len(os.listdir("/proc/self/fd"))
    with _opened(tmp_path / "d") as dataset:
        assert len(os.listdir("/proc/self/fd")) == before
        ids = np.random.default_rng(0).permutation(300).tolist()
        assert gather(dataset, "x", ids) == [str(i) for i in ids]
    assert len(os.listdir("/proc/self/fd")) == before


def _child(dataset: Dataset, pipe: Any) -> None:
    pipe.send((gather(dataset, "x", [1, 0]), gather(dataset, "d", [1, 0])))
    pipe.close()


def test_columns_work_in_a_forked_child_while_other_threads_look_up(tmp_path: Path) -> None:
    words = pa.array(["a", "bb"])
    dataset = _opened(_write(tmp_path / "x", pa.table({"x": words, "d": words.dictionary_encode()})))
    stop = threading.Event()

    def look_up() -> None:
        while not stop.is_set():
            gather(dataset, "d", [0])

    threads = [threading.Thread(target=look_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        context = get_context("fork")
        for _ in range(5):
            ours, theirs = context.Pipe()
            child = context.Process(target=_child, args=(dataset, theirs))
            child.start()
            assert ours.poll(30)
            assert ours.recv() == (["bb", "a"], ["bb", "a"])
            child.join(30)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        dataset.close()


def test_errors_cross_process_borders(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        _opened(tmp_path / "gone")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.kind, str(again)) == (StoreError, ErrorKind.MISSING, str(caught.value))


def test_a_cache_forgets_what_was_least_recently_used() -> None:
    made: list[str] = []
    cache: LruCache[str, str] = LruCache(4, cost=len)

    def get(value: str) -> None:
        def make() -> str:
            made.append(value)
            return value

        cache.get(value, make)

    for value in ("aa", "bb", "aa", "cc", "aa", "bb", "toolong"):
        get(value)
    assert made == ["aa", "bb", "cc", "bb", "toolong"]
    assert len(cache) == 1


def test_finding_opens_no_shard(tmp_path: Path) -> None:
    _write(tmp_path / "d/1.arrow", [1]).write_bytes(b"ARROW1\0\0, and nothing else")
    found = find_shards(tmp_path / "d")
    assert (found.format, found.paths) == ("arrow", (tmp_path / "d/1.arrow",))


def test_a_pipe_is_no_dataset_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.arrow")
    assert "neither a file nor a directory" in _refused(tmp_path / "pipe.arrow", ErrorKind.NOT_A_DATASET)
    assert "is empty" in _refused(tmp_path, ErrorKind.EMPTY)


def test_opening_reads_metadata_and_opening_again_only_sidecars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"x": [bytes(20_000)] * 80})
    for number in range(4):
        with pa.ipc.new_stream(tmp_path / f"{number}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=10)
    read: list[int] = []
    pread = os.pread

    def counted(fd: int, count: int, offset: int) -> bytes:
        data = pread(fd, count, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    with open_dataset(tmp_path) as dataset:
        assert dataset.index_state == "built"
        assert sum(read) < 0.02 * sum(ref.size_bytes for ref in dataset.files)
    read.clear()
    with open_dataset(tmp_path) as dataset:
        assert dataset.index_state == "fresh"
        assert dataset.records == 320
        assert not read
