"""Sidecars: what is written reads back, whatever is wrong reads as missing, and places are chosen as documented."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from fastio.errors import ErrorKind, StoreError
from fastio.formats import sidecar as module
from fastio.formats.sidecar import FIRST_SECTION_OFFSET, SidecarWriter, load_sidecar, sidecar_path
from fastio.formats.spool import Spool

IDENTITY = {"size": 7, "txn": [1, 2]}


def write(path: Path | None, rows: int = 100) -> module.Sidecar:
    with SidecarWriter(path, IDENTITY, {"records": rows}) as writer:
        writer.append("keys", np.arange(rows, dtype=np.uint8))
        for start in range(0, max(rows, 1), 30):
            writer.append("offset", np.arange(start, min(rows, start + 30), dtype=np.int64) * 1000)
        writer.append("pairs", np.ones((rows, 2), dtype=np.int32))
    return writer.sidecar


@pytest.mark.parametrize("rows", [0, 1, 100, 200_000])
def test_arrays_and_meta_read_back(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "deep" / "x.idx"
    write(path, rows)
    back = load_sidecar(path, dict(IDENTITY))
    assert back is not None
    assert back.meta == {"records": rows}
    np.testing.assert_array_equal(back.array("offset"), np.arange(rows, dtype=np.int64) * 1000)
    assert back.array("pairs").shape == (rows, 2)
    assert not back.array("offset").flags.writeable
    assert "offset" in back
    assert "other" not in back
    assert os.listdir(path.parent) == ["x.idx"]


def test_sections_can_be_read_by_offset(tmp_path: Path) -> None:
    back = write(tmp_path / "x.idx")
    raw = (tmp_path / "x.idx").read_bytes()
    assert back.section_offset("keys") == FIRST_SECTION_OFFSET
    assert raw[FIRST_SECTION_OFFSET : FIRST_SECTION_OFFSET + 100] == bytes(range(100))
    assert np.frombuffer(raw, "<i8", 100, back.section_offset("offset"))[99] == 99_000
    ref = back.file_ref()
    assert (ref.path, ref.size_bytes) == (tmp_path / "x.idx", len(raw))


def test_a_sidecar_in_memory_can_be_opened_by_its_path() -> None:
    back = write(None)
    assert back.path.read_bytes()[FIRST_SECTION_OFFSET] == 0
    assert back.array("offset")[3] == 3000
    back.close()
    assert not back.path.exists()
    back.close()


def test_stale_or_missing_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.idx"
    assert load_sidecar(path, IDENTITY) is None
    write(path)
    assert load_sidecar(path, {**IDENTITY, "size": 8}) is None
    assert load_sidecar(path, {"size": 7, "txn": (1, 2)}) is not None
    assert load_sidecar(tmp_path, IDENTITY) is None


@pytest.mark.parametrize("keep", [0, 10, 40, 63, 64, 500, -1])
def test_truncated_is_none(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.idx"
    write(path)
    path.write_bytes(path.read_bytes()[:keep])
    assert load_sidecar(path, IDENTITY) is None


def test_damaged_header_or_contents_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.idx"
    write(path)
    raw = path.read_bytes()
    start = struct.unpack_from("<Q", raw, 16)[0]
    for place in [*range(40), *range(start, len(raw), 7)]:
        damaged = bytearray(raw)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        assert load_sidecar(path, IDENTITY) is None, place


def test_an_exception_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    path = tmp_path / "x.idx"
    write(path, 5)
    with pytest.raises(ZeroDivisionError), SidecarWriter(path, IDENTITY) as writer:  # noqa: PT012
        writer.append("offset", np.arange(3))
        raise ZeroDivisionError
    back = load_sidecar(path, IDENTITY)
    assert back is not None
    assert back.meta == {"records": 5}
    assert os.listdir(tmp_path) == ["x.idx"]


def test_of_two_writers_at_once_the_second_uses_what_the_first_stored(tmp_path: Path) -> None:
    path = tmp_path / "x.idx"
    with SidecarWriter(path, IDENTITY, {"by": 1}) as one, SidecarWriter(path, IDENTITY, {"by": 2}) as two:
        one.append("a", np.full(100_000, 1))
        two.append("a", np.full(100_000, 2))
    assert (one.sidecar.meta, two.sidecar.meta) == ({"by": 2}, {"by": 2})
    assert one.sidecar.array("a")[-1] == 2
    assert one.sidecar.file_ref() == two.sidecar.file_ref()
    assert os.listdir(tmp_path) == ["x.idx"]


def test_a_pinned_sidecar_stays_within_reach(tmp_path: Path) -> None:
    path = tmp_path / "x.idx"
    pinned, other = write(path, 10), load_sidecar(path, IDENTITY)
    assert other is not None
    assert pinned.pin()
    assert pinned.pin()
    with SidecarWriter(path, {"size": 8}) as writer:
        writer.append("a", np.arange(3))
    ref = pinned.file_ref()
    assert ref.path.read_bytes()[FIRST_SECTION_OFFSET : FIRST_SECTION_OFFSET + 10] == bytes(range(10))
    status = os.stat(ref.path)
    assert (ref.size_bytes, ref.mtime_ns) == (status.st_size, status.st_mtime_ns)
    pinned.close()
    assert not ref.path.exists()
    assert not other.pin()
    path.unlink()
    assert not other.pin()


def test_disk_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Spool, out: IO[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "copy_to", full)
    with pytest.raises(StoreError, match="no room for the index") as caught:
        write(tmp_path / "x.idx")
    assert caught.value.kind is ErrorKind.DISK_FULL
    assert os.listdir(tmp_path) == []


def test_an_impossible_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot store the index") as caught:
        write(tmp_path / "file" / "x.idx")
    assert caught.value.kind is ErrorKind.IO


def test_objects_are_refused() -> None:
    with SidecarWriter(None, IDENTITY) as writer, pytest.raises(TypeError, match="booleans or numbers"):
        writer.append("a", np.array([object()]))
    writer.sidecar.close()


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "set" / "data.mdb"
    data.parent.mkdir()
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert sidecar_path(data) == data.parent / ".fastio" / "data.mdb.idx"
    given = sidecar_path(data, tmp_path / "given")
    assert given.parent == tmp_path / "given"
    assert given != sidecar_path(tmp_path / "other" / "data.mdb", tmp_path / "given")
    assert len(sidecar_path(data.with_name("x" * 255)).name) < 255
    deny(monkeypatch)
    assert sidecar_path(data).parent == cache / "fastio"
    write(data.parent / ".fastio" / "data.mdb.idx")
    assert sidecar_path(data).parent == data.parent / ".fastio"
    write(cache / "fastio" / sidecar_path(data, tmp_path).name.removeprefix("data.mdb-"))
    assert sidecar_path(data).parent == cache / "fastio"


def deny(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., bool] = os.access

    def access(path: Any, mode: int, **more: Any) -> bool:
        return not mode & os.W_OK and original(path, mode, **more)

    monkeypatch.setattr("os.access", access)


def test_a_spool_spills_and_reads_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    chunk = np.arange(1 << 19, dtype=np.int64)
    for k in range(5):
        spool.append(chunk + k)
    np.testing.assert_array_equal(spool.array().reshape(5, -1), chunk + np.arange(5)[:, None])
    spool.append(chunk)
    assert len(spool.array()) == 6 << 19
    with (tmp_path / "out").open("wb") as out:
        spool.copy_to(out)
    assert (tmp_path / "out").stat().st_size == 6 << 22
    spool.close()
    with pytest.raises(TypeError, match="cannot append"):
        spool.append(np.ones(3))
