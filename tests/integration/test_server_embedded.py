"""The embedded daemon: a line in, a line out, and gone with its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastio.spec import StreamSpec
from fastio.wire.messages import ErrorMessage
from tests.integration.daemon_support import RECORDS, write_arrow
from tests.integration.server_support import TIMEOUT_S, Peer, wait_until

COMMAND = [sys.executable, "-m", "fastio_server.embedded"]
SPEC = StreamSpec(dataset="data", batch_size=100)


@contextmanager
def embedded(task: Any) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A running embedded daemon, and its answer."""
    process = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(task if isinstance(task, str) else json.dumps(task) + "\n")
            process.stdin.flush()
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def address() -> str:
    return f"fastio-test-{os.getpid()}-{os.urandom(4).hex()}"


@pytest.mark.parametrize("abstract", [True, False])
def test_it_serves_who_has_the_token(tmp_path: Path, abstract: bool) -> None:
    data = write_arrow(tmp_path / "d.arrow")
    name = address() if abstract else str(tmp_path / "s")
    url = f"fastio+unix://{'@' if abstract else ''}{name}"
    with embedded({"data": {"data": str(data)}, "token": "s3cret", "address": name}) as (process, answer):
        assert answer == {"ready": True}
        with Peer.welcomed(url, "s3cret") as peer:
            assert sorted(peer.ids(peer.open(SPEC))) == list(range(RECORDS))
        with Peer.connect(url, "guess") as peer:
            assert peer.expect(ErrorMessage).kind == "bad_credentials"
        process.send_signal(signal.SIGINT)
        Peer.welcomed(url, "s3cret").close()


def test_it_ends_with_its_parent_even_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    data = write_arrow(tmp_path / "d.arrow")
    name = address()
    with embedded({"data": {"data": str(data)}, "token": "t", "address": name}) as (process, _):
        peer = Peer.welcomed(f"fastio+unix://@{name}", "t")
        peer.open(SPEC, credits=1)
        peer.receive()
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(TIMEOUT_S) == 0
        assert peer.receive() is None
        peer.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    data = write_arrow(tmp_path / "d.arrow")
    task = json.dumps({"data": {"data": str(data)}, "token": "t", "address": address()}).encode() + b"\n"
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen({COMMAND!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        f"child.stdin.write({task!r}); child.stdin.flush(); child.stdout.readline()\n"
        "print(child.pid, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    wait_until(lambda: not is_running(child), "the embedded daemon ends")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("task", "kind", "said"),
    [
        ({"data": {"d": "/no/such"}, "token": "t", "address": "x"}, "missing", "/no/such"),
        ({"data": {"d": "/x"}, "token": "t", "address": "x", "colour": 1}, "bad_option", "colour"),
        ("not json\n", "bad_option", "bad task"),
    ],
)
def test_what_is_wrong_is_the_answer(task: Any, kind: str, said: str) -> None:
    with embedded(task) as (process, answer):
        assert answer["error"]["kind"] == kind
        assert said in answer["error"]["message"]
        assert process.wait(TIMEOUT_S) == 1


def test_a_parent_that_says_nothing() -> None:
    done = subprocess.run(COMMAND, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
