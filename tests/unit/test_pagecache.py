"""The page cache, asked and advised, over real files; and what memory it may take, over made-up cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastio import pagecache
from fastio.pagecache import PAGE_BYTES

SIZE = 64 * PAGE_BYTES + 100


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(SIZE))
    fd = os.open(path, os.O_RDONLY)
    if pagecache.resident_bytes(fd) is None:
        os.close(fd)
        pytest.skip("this kernel has no cachestat")
    yield path, fd
    os.close(fd)


def test_what_was_just_written_is_resident_in_whole_pages(file: tuple[Path, int]) -> None:
    _, fd = file
    assert pagecache.resident_bytes(fd) == 65 * PAGE_BYTES
    assert pagecache.resident_bytes(fd, 0, SIZE) == 65 * PAGE_BYTES
    assert pagecache.resident_bytes(fd, 3 * PAGE_BYTES, 2 * PAGE_BYTES) == 2 * PAGE_BYTES
    assert pagecache.resident_bytes(fd, 3 * PAGE_BYTES + 1, 1) == PAGE_BYTES
    assert pagecache.resident_fraction(fd, SIZE) == 1.0


def test_dropped_pages_are_gone_and_a_read_brings_back_only_its_own(file: tuple[Path, int]) -> None:
    path, fd = file
    pagecache.drop(path)
    assert pagecache.resident_bytes(fd) == 0
    assert pagecache.resident_fraction(fd, SIZE) == 0.0
    pagecache.expect_random(fd)
    os.pread(fd, 10, 7 * PAGE_BYTES)
    assert pagecache.resident_bytes(fd, 7 * PAGE_BYTES, PAGE_BYTES) == PAGE_BYTES
    assert pagecache.resident_bytes(fd) == PAGE_BYTES


def test_will_need_brings_a_long_range_in_whatever_the_kernel_takes_per_call(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(os.urandom(3 << 20))
    pagecache.drop(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        if pagecache.resident_bytes(fd) is None:
            pytest.skip("this kernel has no cachestat")
        pagecache.will_need(fd, 5, (3 << 20) - 5)
        assert pagecache.resident_fraction(fd, 3 << 20) == 1.0
        pagecache.will_need(fd, 0, 0)
    finally:
        os.close(fd)


def test_nothing_of_an_empty_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    fd = os.open(tmp_path / "empty", os.O_RDONLY)
    try:
        assert pagecache.resident_fraction(fd, 0) == 1.0
    finally:
        os.close(fd)


def test_a_kernel_that_will_not_say_makes_it_unknown() -> None:
    assert pagecache.resident_bytes(-1) is None
    assert pagecache.resident_fraction(-1, 10) is None


def test_this_machine_has_some_memory() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES
    assert 0 < pagecache.available_memory_bytes() <= total


def _pretend(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    monkeypatch.setattr(pagecache, "_read", lambda path: files.get(str(path), ""))


MEMINFO = {"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:  4000 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4000 << 10),
        # v2: the limit less what is used, where page cache is not counted as used
        (
            {
                "/proc/self/cgroup": "0::/a/b\n",
                "/sys/fs/cgroup/a/b/memory.max": "1000000\n",
                "/sys/fs/cgroup/a/b/memory.current": "700000\n",
                "/sys/fs/cgroup/a/b/memory.stat": "anon 5\nfile_mapped 9\nfile 200000\n",
            },
            500_000,
        ),
        # a limit of a group around ours binds as well
        (
            {
                "/proc/self/cgroup": "0::/a/b\n",
                "/sys/fs/cgroup/a/b/memory.max": "max\n",
                "/sys/fs/cgroup/a/b/memory.current": "7\n",
                "/sys/fs/cgroup/a/memory.max": "300\n",
                "/sys/fs/cgroup/a/memory.current": "100\n",
            },
            200,
        ),
        # v1 in a container: the path is the host's, the limit is at the root
        (
            {
                "/proc/self/cgroup": "9:cpu,memory:/docker/abc\n1:name=systemd:/x\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n",
                "/sys/fs/cgroup/memory/memory.usage_in_bytes": "4000\n",
                "/sys/fs/cgroup/memory/memory.stat": "cache 1\ntotal_cache 500\n",
            },
            1500,
        ),
        # used beyond the limit: nothing is left, not less
        (
            {
                "/proc/self/cgroup": "0::/\n",
                "/sys/fs/cgroup/memory.max": "100\n",
                "/sys/fs/cgroup/memory.current": "300\n",
            },
            0,
        ),
    ],
)
def test_memory_is_the_smallest_of_what_binds(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    _pretend(monkeypatch, MEMINFO | files)
    assert pagecache.available_memory_bytes() == expected


def test_without_proc_all_physical_memory_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, {})
    assert pagecache.available_memory_bytes() == os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES
