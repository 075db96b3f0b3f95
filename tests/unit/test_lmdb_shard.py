"""Opening LMDB environments: both engines, both shapes, indexes kept and renewed, and every kind of bad file."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import pytest

from fastio.errors import ErrorKind, RequestError, StoreError
from fastio.formats.base import IndexOptions
from fastio.formats.lmdb import LmdbShard, hold_statistics, is_lmdb, open_lmdb_shard
from fastio.formats.lmdb import shard as module
from fastio.formats.lmdb.cursor import walk_by_cursor
from fastio.formats.lmdb.environment import hold_snapshot
from fastio.formats.lmdb.meta import LmdbFile, read_snapshots
from fastio.formats.lmdb.tree import walk
from tests.unit import lmdb_environments as environments

MIXED = {b"key%04d-" % k + b"k" * (k % 40): bytes([k % 256]) * (k * 41 % 6000) for k in range(700)}
SMALL = {b"a": b"1", b"b": b"", b"c": b"3" * 5000}


@pytest.fixture(params=environments.ENGINES)
def engine(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    assert hold_statistics()["environments"] == 0


def opened(path: Path, **options: Any) -> LmdbShard:
    return open_lmdb_shard(path, IndexOptions(**options))


def read_and_close(path: Path, **options: Any) -> tuple[str, list[tuple[bytes, ...]]]:
    shard = opened(path, **options)
    found = environments.records(shard)
    shard.close()
    return shard.index_state, found


def refused(path: Path, **options: Any) -> StoreError:
    with pytest.raises(StoreError) as caught:
        opened(path, **options)
    return caught.value


@pytest.mark.parametrize("subdir", [True, False])
def test_records_are_the_entries_in_key_order(tmp_path: Path, engine: int, subdir: bool) -> None:
    path = environments.make(tmp_path / "env.lmdb", MIXED, engine=engine, subdir=subdir)
    assert is_lmdb(path)
    expected = sorted(MIXED.items())
    assert read_and_close(path) == ("built", expected)
    assert read_and_close(path) == ("fresh", expected)
    assert read_and_close(environments.data_file(path))[1] == expected


def test_what_a_shard_says_about_itself(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    shard = opened(path)
    assert shard.path == path
    assert shard.records == len(MIXED)
    assert [ref.path.resolve() for ref in shard.files] == [path / "data.mdb", path / ".fastio" / "data.mdb.idx"]
    assert shard.files[0].may_grow
    assert shard.statistics() == {"records": 700, "txn_id": 1, "protected": True}
    assert repr(shard) == f"<LmdbShard {str(path)!r}, 700 records, index built>"
    assert shard.layout.startswith(f"LMDB {'1.0' if engine else '0.9'}: one record per key")
    schema = pa.ipc.read_schema(pa.BufferReader(shard.arrow_schema))
    assert schema == pa.schema([pa.field("key", pa.binary(), False), pa.field("value", pa.binary(), False)])
    key, value = shard.columns.values()
    assert value.table.payload_bytes == sum(map(len, MIXED.values()))
    assert key.table.payload_bytes == sum(map(len, MIXED))
    assert (key.field.kind, key.field.dtype, value.field.arrow_type) == ("ragged", "|u1", "binary")
    shard.close()
    shard.close()


def test_keys_of_one_length_need_no_index_of_their_own(tmp_path: Path, engine: int) -> None:
    entries = {b"%06x" % k: b"v" * 2500 for k in range(600)}
    path = environments.make(tmp_path / "env", entries, engine=engine)
    shard = opened(path)
    assert shard.columns["key"].table.width == 6
    assert environments.records(shard) == sorted(entries.items())
    shard.close()


def test_an_empty_environment_has_no_records(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", {}, engine=engine)
    assert read_and_close(path) == ("none", [])
    path = environments.make(tmp_path / "only", {b"length": b"0"}, engine=engine)
    assert read_and_close(path) == ("none", [])
    path = environments.change(tmp_path / "gone", [list(SMALL.items()), [(k, None) for k in SMALL]], engine=engine)
    assert read_and_close(path) == ("none", [])


def test_a_new_commit_is_seen_by_the_next_open_and_not_by_an_open_shard(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    before = opened(path)
    changed = {key: value + b"!" for key, value in MIXED.items()}
    other_process(path)
    assert environments.records(before) == sorted(MIXED.items())
    after = opened(path)
    assert (before.index_state, after.index_state) == ("built", "rebuilt")
    assert environments.records(after) == sorted(changed.items())
    assert environments.records(before) == sorted(MIXED.items())
    assert hold_statistics() | {"limit": 0} == {"environments": 1, "shards": 2, "limit": 0}
    before.close()
    assert hold_statistics()["environments"] == 1
    after.close()


def other_process(path: Path) -> None:
    """Another process changes every value, several times over, so that freed pages would be used again."""
    subprocess.run([sys.executable, "-c", _WRITER, str(path)], check=True, timeout=60)


_WRITER = """
import lmdb, sys
env = lmdb.open(sys.argv[1], map_size=1 << 28, sync=False)
with env.begin() as txn:
    entries = dict(txn.cursor())
for _ in range(4):
    with env.begin(write=True) as txn:
        for key, value in entries.items():
            txn.put(key, value + b"!")
env.close()
"""


def test_a_shard_that_holds_nothing_shows_a_changed_file(
    tmp_path: Path, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    monkeypatch.setattr("fastio.formats.lmdb.environment._limit", lambda: 0)
    shard = opened(path)
    assert not shard.files[0].may_grow
    assert "not protected from writers, since more than 0 environments are open" in shard.layout
    assert hold_statistics()["environments"] == 0
    other_process(path)
    status = os.stat(path / "data.mdb")
    assert (status.st_size, status.st_mtime_ns) != (shard.files[0].size_bytes, shard.files[0].mtime_ns)
    shard.close()


def test_an_environment_open_elsewhere_in_this_process(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    with lmdb.open(str(path), readonly=True):
        shard = opened(path)
        assert "already open in this process" in shard.layout
        assert environments.records(shard) == sorted(MIXED.items())
        assert shard.statistics()["protected"] is False
        shard.close()


def test_without_locks_the_data_can_be_read_all_the_same(
    tmp_path: Path, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = environments.make(tmp_path / "env", SMALL, engine=engine)
    (path / "lock.mdb").unlink()
    (path / "lock.mdb").mkdir()
    shard = opened(path)
    assert "the file system allows no locks" in shard.layout
    assert environments.records(shard) == sorted(SMALL.items())
    shard.close()


def test_a_forked_child_leaves_the_parents_protection_alone(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    shard = opened(path)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            shard.close()
            again = opened(path)
            code = 0 if environments.records(again) == sorted(MIXED.items()) else 2
            again.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    other_process(path)
    assert environments.records(shard) == sorted(MIXED.items())
    shard.close()


def test_where_the_index_goes(tmp_path: Path, engine: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    assert read_and_close(path, directory=tmp_path / "indexes")[0] == "built"
    assert len(os.listdir(tmp_path / "indexes")) == 1
    assert not (path / ".fastio").exists()
    monkeypatch.setattr(module, "_can_write", lambda directory: False)
    state, found = read_and_close(path)
    assert (state, found) == ("memory", sorted(MIXED.items()))
    assert not (path / ".fastio").exists()


def test_no_room_for_the_index(tmp_path: Path, engine: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastio.formats.spool.Spool.copy_to", full)
    assert refused(path).kind is ErrorKind.DISK_FULL


def test_a_damaged_or_lying_index_is_built_anew(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    read_and_close(path)
    index = path / ".fastio" / "data.mdb.idx"
    index.write_bytes(index.read_bytes()[:-9])
    assert read_and_close(path) == ("rebuilt", sorted(MIXED.items()))
    shard = opened(path)
    sidecar = shard._index.sidecar
    assert sidecar is not None
    place = sidecar.section_offset("offset_0")
    shard.close()
    raw = bytearray(index.read_bytes())
    raw[place : place + 700 * 8] = bytes(range(5, 12)) * 800
    index.write_bytes(raw)
    assert read_and_close(path) == ("rebuilt", sorted(MIXED.items()))


def test_the_cursor_finds_what_the_parser_finds(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    file, hold = LmdbFile.open(path / "data.mdb"), hold_snapshot(path / "data.mdb", True)
    seen: list[tuple[int, int]] = []
    parsed, by_cursor = (
        list(walk(file, read_snapshots(file)[0])),
        list(walk_by_cursor(file, hold, lambda *p: seen.append(p))),
    )
    for name in ("key_bytes", "key_length_n", "key_offset_n", "value_length_n"):
        ours, theirs = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for chunks in (parsed, by_cursor))
        np.testing.assert_array_equal(ours, theirs)
    held = np.concatenate([chunk.value_length_n for chunk in parsed]) > 0
    ours, theirs = (np.concatenate([chunk.value_offset_n for chunk in chunks]) for chunks in (parsed, by_cursor))
    np.testing.assert_array_equal(ours[held], theirs[held])
    assert seen[-1] == (file.size_bytes, file.size_bytes)
    hold.release()
    file.close()


def test_the_cursor_is_believed_where_the_parser_is_wrong(
    tmp_path: Path, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)

    def shifted(*arguments: Any) -> Iterator[Any]:
        for chunk in walk(*arguments):
            chunk.value_offset_n[:] += 1
            yield chunk

    monkeypatch.setattr(module, "walk", shifted)
    assert read_and_close(path) == ("built", sorted(MIXED.items()))
    monkeypatch.setattr(module, "walk_by_cursor", lambda file, hold, progress: shifted(file, read_snapshots(file)[0]))
    assert refused(environments.make(tmp_path / "b", MIXED, engine=engine)).kind is ErrorKind.CORRUPT


def test_progress_reaches_its_end(tmp_path: Path, engine: int) -> None:
    seen: list[tuple[int, int]] = []
    read_and_close(environments.make(tmp_path / "env", MIXED, engine=engine), progress=lambda *p: seen.append(p))
    assert seen
    assert seen[-1][0] == seen[-1][1]


# ---------------------------------------------------------------------------------------------------- bad input


def test_missing_unreadable_and_foreign(tmp_path: Path) -> None:
    assert refused(tmp_path / "none").kind is ErrorKind.MISSING
    assert refused(tmp_path).kind is ErrorKind.MISSING
    (tmp_path / "env" / "data.mdb").mkdir(parents=True)
    assert refused(tmp_path / "env").kind is ErrorKind.UNREADABLE
    assert not is_lmdb(tmp_path / "env")
    for text, word in ((b"", "is empty"), (b"PAR1" * 4000, "is not an LMDB file")):
        (tmp_path / "data.mdb").write_bytes(text)
        error = refused(tmp_path)
        assert error.kind is ErrorKind.NOT_A_DATASET
        assert word in str(error)
        assert str(tmp_path / "data.mdb") in str(error)
    assert not is_lmdb(tmp_path / "data.mdb")
    with pytest.raises(RequestError, match="layout must be one of 'auto', 'plain', 'decimal', 'pairs', got 'x'"):
        opened(tmp_path, layout="x")


def test_other_machines_and_versions(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", SMALL, engine=engine)
    raw = (path / "data.mdb").read_bytes()
    header = 24 if engine else 16
    magic = raw[header : header + 4]
    cases = {
        "big-endian": raw[:header] + magic[::-1] + raw[header + 4 :],
        "32-bit": raw[:12] + magic + bytes(header - 12) + raw[header:],
        "not supported by this build": raw[: header + 4] + struct.pack("<I", 77) + raw[header + 8 :],
        "is truncated": raw[:5000],
    }
    for word, changed in cases.items():
        (path / "data.mdb").write_bytes(changed)
        assert is_lmdb(path)
        error = refused(path)
        assert word in str(error)
        assert error.kind in (ErrorKind.UNSUPPORTED_LAYOUT, ErrorKind.TRUNCATED)


def test_truncated_files(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    used = (read_last_page(path) + 1) * 4096
    raw = (path / "data.mdb").read_bytes()
    for keep in (70, 4096, 5000, 8192, used // 2, used - 4096, used - 1):
        (path / "data.mdb").write_bytes(raw[:keep])
        error = refused(path)
        assert error.kind is ErrorKind.TRUNCATED, (keep, str(error))
        assert "truncated" in str(error)


def read_last_page(path: Path) -> int:
    return environments.newest(path)[0].last_page


def test_one_damaged_meta_page_leaves_the_snapshot_before(tmp_path: Path, engine: int) -> None:
    path = environments.change(tmp_path / "env", [list(SMALL.items()), [(b"d", b"4")]], engine=engine)
    raw = bytearray((path / "data.mdb").read_bytes())
    raw[10:14] = raw[4096 * 0 + 10 : 14]
    raw[0 + (24 if engine else 16) - 6] = 0  # the flags of page 0, which holds the last commit
    (path / "data.mdb").write_bytes(raw)
    shard = opened(path)
    assert environments.records(shard) == sorted(SMALL.items())
    assert "meta page 0 is damaged" in shard.layout
    shard.close()
    raw[4096 + (24 if engine else 16) - 6] = 0
    (path / "data.mdb").write_bytes(raw)
    assert refused(path).kind is ErrorKind.CORRUPT


def test_a_damaged_pointer_names_file_and_page(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    root = environments.newest(path)[0].root
    assert root is not None
    raw = bytearray((path / "data.mdb").read_bytes())
    pointer = root * 4096 + (24 if engine else 16)
    node = root * 4096 + struct.unpack_from("<H", raw, pointer)[0] + (24 if engine else 0)
    for target in (root, 1, 10**6):
        struct.pack_into("<IH", raw, node, target, 0)
        (path / "data.mdb").write_bytes(raw)
        error = refused(path)
        assert error.kind is ErrorKind.CORRUPT
        assert f"{path / 'data.mdb'} is damaged at page" in str(error)


def test_sub_databases_are_named(tmp_path: Path, engine: int) -> None:
    with lmdb.open(str(tmp_path / "env"), max_dbs=3, lib_version=engine) as env:
        for name in (b"train", b"test"):
            database = env.open_db(name)
            with env.begin(write=True, db=database) as txn:
                txn.put(b"k", b"v")
    error = refused(tmp_path / "env")
    assert error.kind is ErrorKind.UNSUPPORTED_LAYOUT
    assert "sub-databases (test, train)" in str(error)
    assert "mdb_dump -s test" in str(error)


@pytest.mark.parametrize(("where", "flag", "word"), [(76, 0x04, "DUPSORT"), (28, 0x20, "encrypted")])
def test_flags_of_what_is_not_read(tmp_path: Path, engine: int, where: int, flag: int, word: str) -> None:
    """py-lmdb sets neither on the main database; other programs do."""
    if word == "encrypted" and not engine:
        pytest.skip("LMDB 0.9 knows no encryption")
    path = environments.make(tmp_path / "env", SMALL, engine=engine)
    raw = bytearray((path / "data.mdb").read_bytes())
    for page in (0, 1):
        # The flags of the main tree, and (their high byte) of the environment.
        raw[page * 4096 + (24 if engine else 16) + where + (word == "encrypted")] |= flag
    (path / "data.mdb").write_bytes(raw)
    error = refused(tmp_path / "env")
    assert error.kind is ErrorKind.UNSUPPORTED_LAYOUT
    assert word in str(error)


def test_a_dataset_moved_with_its_index_stays_fresh(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    read_and_close(path)
    shutil.move(path, tmp_path / "moved")
    assert read_and_close(tmp_path / "moved")[0] == "fresh"


def test_two_processes_may_index_at_once(tmp_path: Path, engine: int) -> None:
    """Whoever stores the index, both go on reading keys from it."""
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    code = (
        "import sys; from pathlib import Path; from fastio.formats.base import IndexOptions\n"
        "from fastio.formats.lmdb import open_lmdb_shard\n"
        "shard = open_lmdb_shard(Path(sys.argv[1]), IndexOptions()); print(shard.records, flush=True)\n"
        "sys.stdin.read(); refs = shard.files\n"
        "assert all((r.path.stat().st_size, r.path.stat().st_mtime_ns) == (r.size_bytes, r.mtime_ns) for r in refs)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    shard = opened(path)
    for process in running:
        out, _ = process.communicate("", timeout=60)
        assert (process.returncode, out) == (0, "700\n")
    assert environments.records(shard) == sorted(MIXED.items())
    shard.close()


def test_an_index_replaced_after_a_commit_leaves_an_open_shard_its_own(tmp_path: Path, engine: int) -> None:
    path = environments.make(tmp_path / "env", MIXED, engine=engine)
    before = opened(path)
    index = before.files[1]
    other_process(path)
    after = opened(path)
    assert after.index_state == "rebuilt"
    status = os.stat(index.path)
    assert (status.st_size, status.st_mtime_ns) == (index.size_bytes, index.mtime_ns)
    assert environments.records(before) == sorted(MIXED.items())
    before.close()
    after.close()
