"""Packing: every kind of source arrives whole and in its order, or shuffled exactly; and what failed is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, parquet

from fastio import ErrorKind, RequestError, StoreError, Writer
from fastio.order import Permutation
from fastio.packing import Packed, PackOptions, pack
from fastio.packing.base import Source
from fastio.packing.shuffle import shuffled
from fastio.writer import read_manifest


def rows_of(path: Path) -> list[dict[str, Any]]:
    manifest = read_manifest(path)
    assert manifest is not None
    rows: list[dict[str, Any]] = []
    for shard in manifest.shards:
        with pa.memory_map(str(path / shard.path)) as file:
            rows += pa.ipc.open_file(file).read_all().to_pylist()
    return rows


def silent(done: int, total: int | None, phase: str) -> None:
    pass


TABLE = pa.table({"x": list(range(100)), "s": [f"row {i}" for i in range(100)]})


def write_csv(table: Any, path: Path) -> None:
    csv.write_csv(table, path)


def write_jsonl(table: Any, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


def write_ipc(table: Any, path: Path, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=30)


TABLES = {"t.parquet": parquet.write_table, "t.csv": write_csv, "t.jsonl": write_jsonl}


@pytest.mark.parametrize("name", TABLES)
def test_one_table(tmp_path: Path, name: str) -> None:
    TABLES[name](TABLE, tmp_path / name)
    packed = pack(tmp_path / name, tmp_path / "d")
    assert rows_of(tmp_path / "d") == TABLE.to_pylist()
    assert packed.records == 100
    assert packed.source.startswith("1 ")


@pytest.mark.parametrize("name", TABLES)
def test_a_directory_of_tables_in_the_order_of_their_names(tmp_path: Path, name: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for part in ("b", "a"):
        TABLES[name](TABLE.slice(0 if part == "a" else 60, 60), source / f"{part}-{name}")
    assert pack(source, tmp_path / "d").records == 100
    assert rows_of(tmp_path / "d") == TABLE.to_pylist()


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_another_schema_are_named(tmp_path: Path, name: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    TABLES[name](TABLE, source / f"a-{name}")
    TABLES[name](TABLE.rename_columns(["y", "s"]), source / f"b-{name}")
    with pytest.raises(StoreError, match=rf"b-{name} has other fields than .*a-{name}.*: x: int64, y: int64") as caught:
        pack(source, tmp_path / "d")
    assert caught.value.kind is ErrorKind.SCHEMA_MISMATCH
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl"])
def test_a_table_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"a,b\n1\n" if name == "t.csv" else b"\x00{[garbage")
    with pytest.raises(StoreError, match=f"cannot read .*{name}"):
        pack(tmp_path / name, tmp_path / "d")


def test_tabs_separate_tsv(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("a\tb\n1\tx,y\n")
    pack(tmp_path / "t.tsv", tmp_path / "d")
    assert rows_of(tmp_path / "d") == [{"a": 1, "b": "x,y"}]


def test_dictionaries_of_parquet_are_decoded(tmp_path: Path) -> None:
    table = pa.table({"c": pa.array(["a", "b", "a"]).dictionary_encode()})
    parquet.write_table(table, tmp_path / "t.parquet")
    pack(tmp_path / "t.parquet", tmp_path / "d")
    assert rows_of(tmp_path / "d") == [{"c": "a"}, {"c": "b"}, {"c": "a"}]


def test_a_table_without_rows(tmp_path: Path) -> None:
    parquet.write_table(TABLE.slice(0, 0), tmp_path / "t.parquet")
    for seed in (None, 1):
        with pytest.raises(StoreError, match="holds no record"):
            pack(tmp_path / "t.parquet", tmp_path / "d", PackOptions(shuffle_seed=seed))
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("b/2.jpg", "b/10.jpg", "a/x/1.jpg", "a/.hidden", ".git/config"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * 3)
    return root


def test_a_directory_of_files_has_a_class_for_each_folder(tmp_path: Path, photos: Path) -> None:
    packed = pack(photos, tmp_path / "d")
    expected = [("a/x/1.jpg", 0), ("b/10.jpg", 1), ("b/2.jpg", 1)]
    assert rows_of(tmp_path / "d") == [
        {"file": name, "data": name.encode() * 3, "label": label} for name, label in expected
    ]
    manifest = read_manifest(tmp_path / "d")
    assert manifest is not None
    assert manifest.metadata == {"classes": '["a", "b"]'}
    assert packed == Packed(source="3 files in 2 classes", records=3, shards=1, bytes=manifest.shards[0].bytes)


def test_files_without_folders_have_no_label(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(b"one")
    pack(tmp_path / "in", tmp_path / "d")
    assert rows_of(tmp_path / "d") == [{"file": "1.png", "data": b"one"}]


def test_files_beside_folders_are_refused(tmp_path: Path, photos: Path) -> None:
    (photos / "README").write_text("hello")
    with pytest.raises(RequestError, match="files beside folders \\(README is one of 1\\)"):
        pack(photos, tmp_path / "d")


def test_files_go_to_lmdb_by_their_paths(tmp_path: Path, photos: Path) -> None:
    pack(photos, tmp_path / "d", PackOptions(format="lmdb"))
    with lmdb.open(str(tmp_path / "d" / "shard-00000.lmdb"), readonly=True, lock=False) as env, env.begin() as txn:
        found = {bytes(key).decode(): bytes(value) for key, value in txn.cursor()}
    assert found == {name: name.encode() * 3 for name in ("a/x/1.jpg", "b/10.jpg", "b/2.jpg")}


def test_a_shuffle_into_keyed_lmdb_is_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(RequestError, match="would undo the shuffle"):
        pack(photos, tmp_path / "d", PackOptions(format="lmdb", shuffle_seed=1))


def test_nothing_there_and_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist") as caught:
        pack(tmp_path / "nowhere", tmp_path / "d")
    assert caught.value.kind is ErrorKind.MISSING
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="holds no file") as caught:
        pack(tmp_path / "empty", tmp_path / "d")
    assert caught.value.kind is ErrorKind.EMPTY


@pytest.mark.parametrize("destination", ["photos", "photos/packed", "."])
def test_source_and_destination_must_lie_apart(tmp_path: Path, photos: Path, destination: str) -> None:
    with pytest.raises(RequestError, match="must not lie in one another"):
        pack(photos, tmp_path / destination, overwrite=True)


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    write_ipc(TABLE, tmp_path / "t.arrow")
    pack(tmp_path / "t.arrow", tmp_path / "once")
    pack(tmp_path / "once", tmp_path / "twice", PackOptions(shard_bytes=1_000))
    assert rows_of(tmp_path / "twice") == TABLE.to_pylist()
    assert len(list((tmp_path / "twice").glob("*.arrow"))) > 1


@pytest.mark.parametrize("seed", [None, 3])
def test_compressed_arrow_is_unpacked(tmp_path: Path, seed: int | None) -> None:
    write_ipc(TABLE, tmp_path / "t.arrow", compression="lz4")
    pack(tmp_path / "t.arrow", tmp_path / "d", PackOptions(shuffle_seed=seed))
    rows = rows_of(tmp_path / "d")
    assert sorted(rows, key=lambda row: row["x"]) == TABLE.to_pylist()
    assert (rows == TABLE.to_pylist()) is (seed is None)


def test_lmdb_to_arrow_and_back(tmp_path: Path) -> None:
    values = [bytes([i]) * (i * 100) for i in range(60)]
    with Writer(tmp_path / "a", {"key": bytes, "value": bytes}, format="lmdb", shard_bytes=40_000) as writer:
        for i, value in enumerate(values):
            writer.append({"key": b"%05d" % i, "value": value})
    packed = pack(tmp_path / "a", tmp_path / "b")
    assert "LMDB" in packed.source
    assert rows_of(tmp_path / "b") == [{"key": b"%05d" % i, "value": value} for i, value in enumerate(values)]
    pack(tmp_path / "b", tmp_path / "c", PackOptions(format="lmdb"))
    pack(tmp_path / "c", tmp_path / "d")
    assert rows_of(tmp_path / "d") == rows_of(tmp_path / "b")


def test_pairs_in_lmdb_shuffle_and_come_back_as_pairs(tmp_path: Path) -> None:
    with Writer(tmp_path / "a", {"image": bytes, "label": str}, format="lmdb") as writer:
        for i in range(30):
            writer.append({"image": bytes([i]) * 3_000, "label": f"word {i}"})
    pack(tmp_path / "a", tmp_path / "b", PackOptions(format="lmdb", shuffle_seed=2))
    pack(tmp_path / "b", tmp_path / "c")
    found = [(row["image"][0], row["label"].decode()) for row in rows_of(tmp_path / "c")]
    assert found != sorted(found)
    assert sorted(found) == [(i, f"word {i}") for i in range(30)]


def test_what_exists_stays_unless_told(tmp_path: Path) -> None:
    parquet.write_table(TABLE, tmp_path / "t.parquet")
    pack(tmp_path / "t.parquet", tmp_path / "d")
    with pytest.raises(StoreError, match="exists already"):
        pack(tmp_path / "t.parquet", tmp_path / "d")
    pack(tmp_path / "t.parquet", tmp_path / "d", PackOptions(shuffle_seed=1), overwrite=True)
    manifest = read_manifest(tmp_path / "d")
    assert manifest is not None
    assert manifest.shuffled == 1


def source_of(records: int, *, counted: bool, batch: int = 7) -> Source:
    schema = pa.schema([pa.field("i", pa.int64(), nullable=False), ("data", pa.binary())], metadata={"k": "v"})
    table = pa.table([np.arange(records), [bytes([i % 251]) * (i % 90) for i in range(records)]], schema=schema)

    def batches() -> Iterator[Any]:
        return iter(table.to_batches(max_chunksize=batch))

    known = {"records": records, "payload_bytes": table.nbytes} if counted else {"records": None, "payload_bytes": None}
    return Source(description="test", schema=table.schema, batches=batches, **known)


@settings(max_examples=25)
@given(
    records=st.integers(1, 600),
    seed=st.integers(0, 2**64 - 1),
    memory_bytes=st.integers(1, 20_000),
    counted=st.booleans(),
)
def test_a_shuffle_is_the_permutation_whatever_the_memory(
    tmp_path_factory: pytest.TempPathFactory, records: int, seed: int, memory_bytes: int, counted: bool
) -> None:
    """Against the obvious second implementation: the whole table in memory, placed by the permutation."""
    source = source_of(records, counted=counted)
    scratch = tmp_path_factory.mktemp("shuffle") / "scratch"
    batches = shuffled(source, seed, scratch, progress=silent, memory_bytes=memory_bytes)
    found = pa.Table.from_batches(batches, schema=source.schema)
    place = Permutation(records, seed, 0).ids(np.arange(records, dtype=np.int64))
    expected = pa.Table.from_batches(source.batches()).take(pa.array(np.argsort(place)))
    assert found.equals(expected)
    assert not scratch.exists()


def test_a_shuffle_holds_no_more_than_its_limit(tmp_path: Path) -> None:
    """The source says it is small, and is not: no batch that comes out exceeds the limit by much all the same."""
    source = source_of(20_000, counted=True)
    lying = Source(
        description="", schema=source.schema, records=source.records, payload_bytes=1, batches=source.batches
    )
    sizes = [batch.nbytes for batch in shuffled(lying, 1, tmp_path / "s", progress=silent, memory_bytes=100_000)]
    assert sum(sizes) > 1_000_000
    assert max(sizes) <= 110_000


@pytest.mark.parametrize("said", [5, 11])
def test_a_source_that_changes_while_it_is_shuffled(tmp_path: Path, said: int) -> None:
    source = source_of(10, counted=True)
    wrong = Source(description="t", schema=source.schema, records=said, payload_bytes=1, batches=source.batches)
    with pytest.raises(StoreError, match="did it change") as caught:
        list(shuffled(wrong, 1, tmp_path / "s", progress=silent))
    assert caught.value.kind is ErrorKind.CHANGED


def test_a_shuffled_dataset_says_its_seed_and_leaves_no_scratch(tmp_path: Path) -> None:
    parquet.write_table(TABLE, tmp_path / "t.parquet")
    options = PackOptions(shuffle_seed=9, memory_bytes=500, shard_bytes=1_000)
    pack(tmp_path / "t.parquet", tmp_path / "d", options)
    place = Permutation(100, 9, 0).ids(np.arange(100, dtype=np.int64))
    assert [row["x"] for row in rows_of(tmp_path / "d")] == np.argsort(place).tolist()
    names = {path.name for path in (tmp_path / "d").iterdir()}
    assert all(name == "fastio-manifest.json" or name.startswith("shard-") for name in names)


def test_progress_is_told(tmp_path: Path) -> None:
    parquet.write_table(TABLE, tmp_path / "t.parquet")
    told: list[tuple[int, int | None, str]] = []
    pack(tmp_path / "t.parquet", tmp_path / "d", PackOptions(shuffle_seed=1), progress=lambda *step: told.append(step))
    assert "scattering" in {phase for _, _, phase in told}
    assert told[-1] == (100, 100, "writing")
