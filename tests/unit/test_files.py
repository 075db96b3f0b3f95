"""Open files of a dataset: how many stay open, who closes them when, and which files are refused."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastio import pagecache
from fastio.errors import ErrorKind, StoreError
from fastio.files import BadFileError, FileSet, default_descriptor_limit
from fastio.formats.base import FileRef
from tests.unit.reader_support import descriptors_under

MIB = 1 << 20


def reference(path: Path, *, may_grow: bool = False) -> FileRef:
    status = path.stat()
    return FileRef(path, status.st_size, status.st_mtime_ns, may_grow=may_grow, inode=status.st_ino)


def make(folder: Path, count: int, *, size: int = 10) -> list[FileRef]:
    refs = []
    for number in range(count):
        path = folder / f"{number:03}"
        path.write_bytes(bytes([number % 251]) * size)
        refs.append(reference(path))
    return refs


@pytest.fixture
def ten(tmp_path: Path) -> Iterator[FileSet]:
    files = FileSet(make(tmp_path, 10), descriptor_limit=8)
    yield files
    files.close()


def test_borrowed_files_are_open_and_the_right_ones(ten: FileSet) -> None:
    with ten.borrow([3, 7]) as opened:
        assert {number: os.pread(file.fd, 2, 0) for number, file in opened.items()} == {3: b"\x03\x03", 7: b"\x07\x07"}
        assert opened[7].view().tolist() == [7] * 10
    assert len(ten) == 10
    assert repr(ten) == "<FileSet 2 of 10 files open, limit 4>"


def test_what_nobody_borrows_is_kept_up_to_the_limit_latest_first(tmp_path: Path, ten: FileSet) -> None:
    for number in (0, 1, 2, 3, 0, 4):
        with ten.borrow([number]):
            pass
    assert sorted(Path(name).name for name in descriptors_under(tmp_path)) == ["000", "002", "003", "004"]


def test_a_mapped_file_counts_for_its_two_descriptors(tmp_path: Path, ten: FileSet) -> None:
    for number in range(10):
        with ten.borrow([number]) as opened:
            opened[number].view()
    assert 0 < len(descriptors_under(tmp_path)) <= 8


def test_borrowed_files_stay_open_beyond_the_limit(tmp_path: Path, ten: FileSet) -> None:
    with ten.borrow(range(10)) as opened:
        assert len(descriptors_under(tmp_path)) == 10
        with ten.borrow([5]) as again:
            assert again[5] is opened[5]
        assert os.pread(opened[0].fd, 1, 0) == b"\x00"
    assert len(descriptors_under(tmp_path)) == 4


def test_a_borrowed_file_is_closed_when_given_back_after_close(tmp_path: Path, ten: FileSet) -> None:
    with ten.borrow([2]) as opened:
        with ten.borrow([3]):
            pass
        ten.close()
        assert [Path(name).name for name in descriptors_under(tmp_path)] == ["002"]
        assert os.pread(opened[2].fd, 1, 0) == b"\x02"
    assert descriptors_under(tmp_path) == []


def test_an_error_inside_gives_back_what_was_borrowed(tmp_path: Path, ten: FileSet) -> None:
    with pytest.raises(ZeroDivisionError), ten.borrow([1, 2]):
        raise ZeroDivisionError
    ten.close()
    assert descriptors_under(tmp_path) == []


def test_unmapping_spares_what_is_borrowed_and_views_that_are_held(tmp_path: Path, ten: FileSet) -> None:
    with ten.borrow([1]) as opened:
        held = opened[1].view()
    with ten.borrow([2]) as opened:
        view = opened[2].view()
        ten.unmap()
        assert opened[2].view().ctypes.data == view.ctypes.data
    assert held.tolist() == [1] * 10
    del held
    with open("/proc/self/maps") as maps:
        mapped = {line.split()[-1] for line in maps if str(tmp_path) in line}
    assert {Path(name).name for name in mapped} == {"002"}


def bad(path: Path, damage: str) -> None:
    if damage == "deleted":
        path.unlink()
    elif damage == "truncated":
        os.truncate(path, 9)
    elif damage == "touched":
        os.utime(path, ns=(5, 5))
    elif damage == "grown":
        with path.open("ab") as file:
            file.write(b"more")
    elif damage == "replaced":
        other = path.with_name("other")
        other.write_bytes(b"y" * 99)
        other.rename(path)
    elif damage == "a directory":
        path.unlink()
        path.mkdir()
    elif damage == "a fifo":
        path.unlink()
        os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        ("deleted", ErrorKind.MISSING, "was there when it was indexed and is gone"),
        ("truncated", ErrorKind.TRUNCATED, "9 bytes, indexed with 10"),
        ("touched", ErrorKind.CHANGED, "open the dataset again"),
        ("grown", ErrorKind.CHANGED, "10 bytes then, 14 now"),
        ("replaced", ErrorKind.CHANGED, "replaced by another file"),
        ("a directory", ErrorKind.CHANGED, "001"),
        ("a fifo", None, "001"),
    ],
)
def test_a_file_that_is_not_what_was_indexed_is_refused_by_name(
    tmp_path: Path, ten: FileSet, damage: str, kind: ErrorKind | None, words: str
) -> None:
    bad(tmp_path / "001", damage)
    with pytest.raises(BadFileError, match=words) as caught, ten.borrow([0, 1, 2]):
        pytest.fail("it was lent")
    assert isinstance(caught.value, StoreError)
    assert caught.value.number == 1
    assert str(tmp_path / "001") in str(caught.value)
    assert kind is None or caught.value.kind is kind
    assert [Path(name).name for name in descriptors_under(tmp_path)] == ["000"], "the bad one is not kept open"


def test_a_file_that_is_open_is_checked_each_time_it_is_borrowed(tmp_path: Path, ten: FileSet) -> None:
    with ten.borrow([1]) as opened:
        bad(tmp_path / "001", "truncated")
        with pytest.raises(BadFileError, match="truncated"), ten.borrow([1]):
            pytest.fail("it was lent")
        os.pread(opened[1].fd, 1, 0)  # who had it before still has it
    assert descriptors_under(tmp_path) == []


def test_a_file_that_is_restored_is_read_again(tmp_path: Path, ten: FileSet) -> None:
    path = tmp_path / "001"
    content, times = path.read_bytes(), path.stat()
    os.truncate(path, 3)
    with pytest.raises(BadFileError, match="truncated"), ten.borrow([1]):
        pytest.fail("it was lent")
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with ten.borrow([1]) as opened:
        assert os.pread(opened[1].fd, 10, 0) == content


def test_a_file_that_may_grow_may_grow_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    path.write_bytes(b"x" * 10)
    files = FileSet([reference(path, may_grow=True)], descriptor_limit=8)
    bad(path, "grown")
    bad(path, "touched")
    with files.borrow([0]) as opened:
        assert opened[0].view().tolist() == list(b"x" * 10), "what was indexed, and no more"
    bad(path, "replaced")
    with files.borrow([0]):
        pass  # it is open, and what is open is what was indexed
    files.close()
    files = FileSet(files._files, descriptor_limit=8)
    with pytest.raises(BadFileError, match="replaced"), files.borrow([0]):
        pytest.fail("another environment was taken for the one that was indexed")
    files.close()


def test_an_unreadable_file_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = make(tmp_path, 1)
    files = FileSet(refs, descriptor_limit=8)

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BadFileError, match="can't be opened: Permission denied") as caught, files.borrow([0]):
        pytest.fail("it was lent")
    assert caught.value.kind is ErrorKind.UNREADABLE
    files.close()


def test_what_is_resident_is_known_by_blocks_of_2_mib(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(5 * MIB))
    files = FileSet([reference(path)], descriptor_limit=8)
    offsets = np.array([0, 2 * MIB - 1, 2 * MIB, 5 * MIB - 1], dtype=np.int64)
    with files.borrow([0]) as opened:
        file = opened[0]
        if pagecache.resident_bytes(file.fd) is None:
            pytest.skip("this kernel has no cachestat")
        assert file.not_resident(offsets).tolist() == []
        pagecache.drop(path)
        assert file.not_resident(offsets).tolist() == [], "asked about a moment ago"
        file._residency_expires_s = 0.0
        assert file.not_resident(offsets).tolist() == [0, 1, 2, 3]
        os.pread(file.fd, 2 * MIB, 2 * MIB)
        file._residency_expires_s = 0.0
        assert file.not_resident(offsets).tolist() == [0, 1, 3]
    files.close()


def test_where_the_kernel_will_not_say_nothing_counts_as_resident(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FileSet(make(tmp_path, 1), descriptor_limit=8)
    monkeypatch.setattr(pagecache, "resident_bytes", lambda *_: None)
    with files.borrow([0]) as opened:
        assert opened[0].not_resident(np.array([0, 9], dtype=np.int64)).tolist() == [0, 1]
    files.close()


def test_what_others_appended_does_not_count_as_resident_bytes_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    path.write_bytes(bytes(2 * MIB))
    ref = reference(path, may_grow=True)
    with path.open("ab") as file:
        file.write(bytes(4 * MIB))
    pagecache.drop(path)
    files = FileSet([replace(ref)], descriptor_limit=8)
    with files.borrow([0]) as opened:
        if pagecache.resident_bytes(opened[0].fd) is None:
            pytest.skip("this kernel has no cachestat")
        os.pread(opened[0].fd, 4 * MIB, 2 * MIB)
        assert opened[0].not_resident(np.array([0], dtype=np.int64)).tolist() == [0]
    files.close()


def test_many_threads_borrow_few_descriptors_at_once(tmp_path: Path) -> None:
    files = FileSet(make(tmp_path, 40), descriptor_limit=6)
    start = threading.Barrier(4)
    wrong: list[int] = []

    def borrow(seed: int) -> None:
        rng = np.random.default_rng(seed)
        start.wait(10)
        for _ in range(200):
            numbers = rng.choice(40, 3, replace=False).tolist()
            with files.borrow(numbers) as opened:
                wrong.extend(n for n, file in opened.items() if os.pread(file.fd, 1, 0)[0] != n)
                wrong.extend(n for n, file in opened.items() if file.view()[9] != n)

    threads = [threading.Thread(target=borrow, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert wrong == []
    assert len(descriptors_under(tmp_path)) <= 6
    files.close()
    assert descriptors_under(tmp_path) == []


@pytest.mark.parametrize(("soft", "expected"), [(20, 16), (1024, 512), (10**6, 4096), (resource.RLIM_INFINITY, 4096)])
def test_half_of_what_a_process_may_open_is_left_to_others(
    monkeypatch: pytest.MonkeyPatch, soft: int, expected: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert default_descriptor_limit() == expected
