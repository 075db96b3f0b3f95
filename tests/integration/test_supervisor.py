"""The daemon as processes: started, killed in every way, drained; nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fastio.spec import StreamSpec
from fastio.wire.messages import Datasets, Goodbye, ListDatasets
from tests.integration.daemon_support import RECORDS, Daemon, fastio_serve, write_arrow
from tests.integration.server_support import Peer, wait_until

SPEC = StreamSpec(dataset="train", batch_size=100)


def test_a_killed_worker_is_restarted_and_logged(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--listen", "127.0.0.1:0", "--workers", 2).ready() as daemon:
        [url] = daemon.urls
        before = daemon.workers()
        assert len(before) == 2
        peer = Peer.welcomed(url)
        owner = daemon.wait_for("connection")[0]["pid"]
        os.kill(owner, signal.SIGKILL)
        assert peer.receive() is None, "the connection died with its worker"
        peer.close()
        [event] = daemon.wait_for("worker ended")
        assert (event["how"], event["worker_pid"], event["restart_in_s"]) == ("killed by SIGKILL", owner, 0.1)
        daemon.wait_for("worker ready", 3)
        assert len(daemon.workers()) == 2
        with Peer.welcomed(url) as peer:
            assert sorted(peer.ids(peer.open(SPEC))) == list(range(RECORDS))


def test_while_a_worker_is_down_the_other_serves(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--listen", "127.0.0.1:0", "--workers", 2).ready() as daemon:
        victim = daemon.workers()[0]
        victim.kill()
        for _ in range(5):
            with Peer.welcomed(daemon.urls[0]) as peer:
                assert len(peer.ids(peer.open(SPEC))) == RECORDS


def test_workers_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Daemon(tmp_path, "--unix", path, "--workers", 2).ready() as daemon:
        workers = daemon.workers()
        peer = Peer.welcomed(daemon.urls[0])
        peer.open(SPEC, credits=1)
        daemon.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=2)
        assert not alive
        with suppress(ConnectionResetError):
            while peer.receive() is not None:
                pass
        peer.close()
    daemon.address_file.unlink()
    # The socket file stayed behind; the next daemon sees that nobody answers on it.
    with Daemon(tmp_path, "--unix", path).ready() as again:
        Peer.welcomed(again.urls[0]).close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_drains(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "s"
    with Daemon(tmp_path, "--unix", path, "--listen", "127.0.0.1:0").ready() as daemon:
        tcp, unix = daemon.urls
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        workers = daemon.workers()
        idle, busy = Peer.welcomed(tcp), Peer.welcomed(unix)
        opened = busy.open(SPEC, credits=1)
        busy.receive()
        daemon.process.send_signal(number)
        idle.expect(Goodbye)
        assert idle.receive() is None
        idle.close()
        busy.expect(Goodbye)
        with pytest.raises(ConnectionRefusedError):
            Peer.connect(tcp)
        busy.credit(1000)
        assert len(busy.ids(opened)) == RECORDS - 100, "the open stream is finished"
        assert busy.receive() is None
        busy.close()
        assert daemon.exit_code() == 0
        assert not any(worker.is_running() for worker in workers)
        assert not path.exists()
        assert not daemon.address_file.exists()
        assert daemon.events("drained")


def test_draining_ends_after_its_time(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--listen", "127.0.0.1:0", "--drain-s", 0.2).ready() as daemon:
        peer = Peer.welcomed(daemon.urls[0])
        peer.open(SPEC, credits=0)
        daemon.process.terminate()
        peer.expect(Goodbye)
        assert peer.receive() is None
        assert daemon.exit_code() == 0
        peer.close()


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--unix", tmp_path / "s", "--drain-s", 1000).ready() as daemon:
        workers = daemon.workers()
        peer = Peer.welcomed(daemon.urls[0])
        peer.open(SPEC, credits=0)
        daemon.process.terminate()
        peer.expect(Goodbye)
        daemon.process.terminate()
        assert daemon.exit_code() == 128 + signal.SIGTERM
        assert not any(worker.is_running() for worker in workers)
        assert not (tmp_path / "s").exists()
        peer.close()


def test_a_stopped_worker_notices_when_it_goes_on(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--unix", tmp_path / "s", "--workers", 2).ready() as daemon:
        workers = daemon.workers()
        workers[0].suspend()
        daemon.process.kill()
        workers[0].resume()
        _, alive = psutil.wait_procs(workers, timeout=5)
        assert not alive


def test_a_worker_that_hangs_does_not_hold_the_end(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--unix", tmp_path / "s", "--workers", 2, "--drain-s", 0).ready() as daemon:
        workers = daemon.workers()
        workers[0].suspend()
        daemon.process.terminate()
        assert daemon.exit_code() == 0, "it was killed after its time"
        assert not any(worker.is_running() for worker in workers)
        assert daemon.events("killing workers that did not end")


def test_workers_share_the_connections(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--listen", "127.0.0.1:0", "--workers", 2).ready() as daemon:
        peers = [Peer.connect(daemon.urls[0]) for _ in range(12)]
        events = daemon.wait_for("connection", 12)
        by_worker = [sum(event["worker"] == worker for event in events) for worker in (0, 1)]
        assert min(by_worker) >= 2, by_worker
        for peer in peers:
            peer.close()


def test_systemd_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(60)
        manager.bind(str(tmp_path / "notify"))
        env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with Daemon(tmp_path, "--listen", "127.0.0.1:0", env=env) as daemon:
            first = manager.recv(1000).decode()
            assert first.startswith("READY=1\nSTATUS=serving train on fastio://127.0.0.1:")
            daemon.ready().process.terminate()
            assert manager.recv(1000) == b"STOPPING=1"
            assert daemon.exit_code() == 0


def test_what_was_started_is_said(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--listen", "127.0.0.1:0", "--unix", tmp_path / "s").ready() as daemon:
        [event] = daemon.events("ready")
        assert event["addresses"] == daemon.urls
        assert event["connect"] == [f"{url}/train" for url in daemon.urls]
        assert event["datasets"] == ["train"]
        [dataset] = daemon.events("dataset")
        assert dataset["records"] == RECORDS


def test_a_worker_that_cannot_come_back_is_tried_again(tmp_path: Path) -> None:
    data = write_arrow(tmp_path / "data.arrow")
    with Daemon(tmp_path, "--listen", "127.0.0.1:0", data=data).ready() as daemon:
        [worker] = daemon.workers()
        data.rename(tmp_path / "away")
        worker.kill()
        first, second = daemon.wait_for("worker ended", 2)[:2]
        assert "error" not in first
        assert "data.arrow" in second["error"]
        (tmp_path / "away").rename(data)
        daemon.wait_for("worker ready", 2)
        Peer.welcomed(daemon.urls[0]).close()


# --- what can't be started: one line, an exit code, and nothing left


def refused(*arguments: object) -> str:
    """What a daemon says that does not start."""
    done = fastio_serve(*arguments, "--log-level", "error")
    assert done.returncode not in (0, 130), done
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_address_in_use(tmp_path: Path) -> None:
    data = write_arrow(tmp_path / "data.arrow")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"{address}: the address is in use" in refused("--data", f"a={data}", "--listen", address)
    with Daemon(tmp_path, "--unix", tmp_path / "s").ready():
        assert "in use" in refused("--data", f"a={data}", "--unix", tmp_path / "s")


def test_beyond_loopback_without_tokens(tmp_path: Path) -> None:
    data = write_arrow(tmp_path / "data.arrow")
    said = refused("--data", f"a={data}", "--listen", "0.0.0.0:0")
    assert "--tokens FILE" in said
    assert "--insecure" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "a=/no/such/path"], "dataset 'a'"),
        (["--data", "a"], "wanted NAME=PATH, got 'a'"),
        ([], "no dataset to serve"),
        (["/no/such/file.toml"], "can't read the configuration"),
        (["--data", "a=/x", "--workers", "0"], "workers must be at least 1, got 0"),
        (["--data", "a=/x", "--tokens", "/no/such/tokens"], "token file /no/such/tokens"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: list[str], said: str) -> None:
    assert said in refused("--listen", "127.0.0.1:0", *arguments)


def test_a_file_of_configuration_is_enough(tmp_path: Path) -> None:
    write_arrow(tmp_path / "data.arrow")
    (tmp_path / "tokens").write_text("alice:s3cret\n")
    (tmp_path / "c.toml").write_text(
        'listen = ["127.0.0.1:0"]\nunix = "s"\ntokens = "tokens"\n[data]\nmore = "data.arrow"\n'
    )
    with Daemon(tmp_path, tmp_path / "c.toml").ready() as daemon:
        for url in daemon.urls:
            with Peer.welcomed(url, "s3cret") as peer:
                peer.send(ListDatasets())
                assert peer.expect(Datasets).names == ("more", "train")
        assert {event["user"] for event in daemon.wait_for("connection", 2)} == {"alice"}
        assert "s3cret" not in daemon.log_file.read_text()
        command_lines = [worker.cmdline() for worker in daemon.workers()]
        assert "s3cret" not in repr(command_lines)


def test_the_daemon_is_alone_on_its_terminal_signals(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--listen", "127.0.0.1:0").ready() as daemon:
        [worker] = daemon.workers()
        assert os.getpgid(worker.pid) != os.getpgid(daemon.process.pid), "Ctrl-C is for the supervisor alone"
        worker.send_signal(signal.SIGINT)
        Peer.welcomed(daemon.urls[0]).close()
        wait_until(worker.is_running, "the worker goes on")
