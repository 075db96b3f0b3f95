"""Loaders of plain paths: the private daemon is started, shared, replaced when it dies, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from fastio.errors import ErrorKind, FastioError, RequestError, StoreError
from fastio_client import Loader, Ragged, embedded

RECORDS = 300


def write(path: Path, records: int = RECORDS) -> Path:
    table = pa.table(
        {
            "number": pa.array([None if i % 7 == 0 else i for i in range(records)], pa.int32()),
            "word": [str(i) * (i % 5) for i in range(records)],
            "at": pa.array(range(records), pa.timestamp("us", "UTC")),
        }
    )
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=64)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    yield write(tmp_path / "data.arrow")
    assert embedded._daemons == {}, "a test left its private daemon running"


def daemon_of(path: Path) -> psutil.Process:
    process = embedded._daemons[str(path)].process
    assert process is not None
    return psutil.Process(process.pid)


def all_ids(loader: Loader) -> list[int]:
    return [int(record) for batch in loader for record in batch.ids]


def test_a_path_is_a_dataset(data: Path) -> None:
    with Loader(str(data), batch_size=32) as loader:
        ids = []
        for batch in loader:
            word = batch["word"]
            assert isinstance(word, Ragged)
            assert word.to_list() == [str(record) * (record % 5) for record in batch.ids]
            assert batch.masks["number"].tolist() == [record % 7 != 0 for record in batch.ids]
            arrow = batch.to_arrow()
            assert [str(field.type) for field in arrow.schema] == ["int32", "string", "timestamp[us, tz=UTC]"]
            assert arrow["word"].to_pylist() == word.to_list()
            ids += batch.ids.tolist()
        assert sorted(ids) == list(range(RECORDS))
        assert loader.verify_epoch()


def test_loaders_share_a_daemon_which_ends_with_the_last(data: Path) -> None:
    one, two = Loader(str(data), batch_size=32), Loader(str(data), batch_size=7)
    assert len(one) == 10
    daemon = daemon_of(data)
    assert len(two) == 43
    assert daemon_of(data) == daemon
    one.close()
    assert len(all_ids(two)) == RECORDS
    two.close()
    assert not daemon.is_running()


def test_a_daemon_that_dies_is_replaced_in_the_middle_of_an_epoch(data: Path) -> None:
    with Loader(str(data), batch_size=8, window_bytes=1 << 16) as loader:
        iterator = iter(loader)
        ids = next(iterator).ids.tolist()
        daemon_of(data).kill()
        for batch in iterator:
            ids += batch.ids.tolist()
        assert sorted(ids) == list(range(RECORDS))
        assert loader.verify_epoch()
        loader.set_epoch(1)
        assert len(all_ids(loader)) == RECORDS


@pytest.mark.parametrize(
    ("name", "wanted", "kind"),
    [
        ("missing.arrow", StoreError, ErrorKind.MISSING),
        ("empty", StoreError, ErrorKind.EMPTY),
        ("text.arrow", StoreError, ErrorKind.NOT_A_DATASET),
    ],
)
def test_why_a_path_is_not_served(tmp_path: Path, name: str, wanted: type[FastioError], kind: ErrorKind) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.arrow").write_text("not arrow at all")
    with Loader(str(tmp_path / name), batch_size=1) as loader:
        with pytest.raises(wanted, match=name) as caught:
            len(loader)
        assert caught.value.kind is kind
    assert embedded._daemons == {}


def test_a_batch_larger_than_the_window(data: Path) -> None:
    with Loader(str(data), batch_size=200, window_bytes=1000) as loader:
        with pytest.raises(RequestError, match="raise window_bytes") as caught:
            next(iter(loader))
        assert caught.value.kind is ErrorKind.RECORD_TOO_LARGE


def test_without_the_server_package(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        Loader(str(data), batch_size=1) as loader,
        pytest.raises(StoreError, match="ended before it was ready, with status 1"),
    ):
        len(loader)


def test_a_forked_child_uses_its_parents_daemon_and_cannot_end_it(data: Path) -> None:
    with Loader(str(data), batch_size=32) as loader:
        len(loader)
        daemon = daemon_of(data)

        def use() -> None:
            assert len(all_ids(loader)) == RECORDS
            assert embedded._daemons[str(data)].process is None
            loader.close()
            embedded._stop_all()

        assert in_child(use) == 0
        assert daemon.is_running()
        assert len(all_ids(loader)) == RECORDS


def test_a_forked_child_whose_parents_daemon_is_gone_starts_its_own(data: Path) -> None:
    with Loader(str(data), batch_size=32) as loader:
        len(loader)
        daemon = daemon_of(data)

        def use() -> None:
            daemon.kill()
            loader_of_child = Loader(str(data), batch_size=32)
            assert len(all_ids(loader_of_child)) == RECORDS
            assert daemon_of(data) != daemon
            loader_of_child.close()
            loader.close()

        assert in_child(use) == 0


def in_child(work: Any) -> int:
    """The exit status of a forked child that did ``work``."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: there are threads
        child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


PARENT = """
import sys, time
from fastio_client import Loader, embedded
loader = Loader(sys.argv[1], batch_size=8, window_bytes=1 << 16)
iterator = iter(loader)
next(iterator)
daemon = next(iter(embedded._daemons.values()))
print(daemon.process.pid, daemon.lease.address.server, flush=True)
{then}
"""


def parent(data: Path, then: str) -> tuple[subprocess.Popen[str], psutil.Process, str]:
    """A process with a loader in the middle of an epoch, its daemon, and the name of the daemon's socket."""
    script = textwrap.dedent(PARENT).format(then=then)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, str(data)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid, socket_name = process.stdout.readline().split()
    return process, psutil.Process(int(pid)), socket_name


@pytest.mark.parametrize("how", ["kill", "exit", "interrupt"])
def test_nothing_is_left_behind(data: Path, how: str) -> None:
    process, daemon, socket_name = parent(data, "" if how == "exit" else "time.sleep(60)")
    if how != "exit":
        assert socket_name in abstract_sockets()
        process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
    assert process.wait(20) == {"kill": -signal.SIGKILL, "exit": 0, "interrupt": -signal.SIGINT}[how]
    daemon.wait(20)
    assert process.stdout is not None
    process.stdout.close()
    assert socket_name not in abstract_sockets()
    assert sorted(path.name for path in data.parent.iterdir() if not path.name.startswith(".")) == ["data.arrow"]


def abstract_sockets() -> set[str]:
    return {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "@fastio-" in line}


def test_a_batch_outlives_its_daemon(data: Path) -> None:
    with Loader(str(data), batch_size=100, order="sequential") as loader:
        batch = next(iter(loader))
    word = batch["word"]
    assert isinstance(word, Ragged)
    assert word.to_list()[42] == "42" * 2
    assert np.array_equal(batch.ids, np.arange(100))


def test_close_is_quick(data: Path) -> None:
    loader = Loader(str(data), batch_size=8)
    next(iter(loader))
    began_s = time.monotonic()
    loader.close()
    assert time.monotonic() - began_s < 2
