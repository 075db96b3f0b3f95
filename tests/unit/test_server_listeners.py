"""Listening: who may be listened to, what is in the way, and what is left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from fastio.errors import ErrorKind, RequestError, UnavailableError
from fastio_server.config import ServerConfig
from fastio_server.listeners import bind_all, bind_unix, close_all
from fastio_server.notify import notify


def test_a_free_port_is_told() -> None:
    [listener] = bind_all(ServerConfig(listen=("127.0.0.1:0",)))
    port = listener.sock.getsockname()[1]
    assert listener.url == f"fastio://127.0.0.1:{port}"
    assert port
    listener.listen()
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    listener.close()


def test_an_address_in_use_is_said_and_nothing_stays_bound(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = ServerConfig(listen=("127.0.0.1:0", f"127.0.0.1:{port}"), unix=str(tmp_path / "s"))
        with pytest.raises(UnavailableError, match=rf"127.0.0.1:{port}: the address is in use") as caught:
            bind_all(config)
    assert caught.value.kind is ErrorKind.ADDRESS_IN_USE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_beyond_loopback_needs_tokens_or_a_word(address: str) -> None:
    with pytest.raises(RequestError, match=r"other machines.*--tokens FILE.*--insecure"):
        bind_all(ServerConfig(listen=(address,)))
    if address.startswith("0"):
        close_all(bind_all(ServerConfig(listen=(address,), insecure=True)))
        close_all(bind_all(ServerConfig(listen=(address,), tokens="/any")))


def test_a_host_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no\.such\.host\.invalid"):
        bind_all(ServerConfig(listen=("no.such.host.invalid:1",)))
    with pytest.raises(RequestError, match=r"can't listen on .*missing"):
        bind_unix(str(tmp_path / "missing" / "s"))
    with pytest.raises(RequestError, match="too long"):
        bind_unix(str(tmp_path / ("x" * 200)))


def test_a_stale_socket_is_replaced_and_ours_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    listener = bind_unix(path)
    assert listener.url == f"fastio+unix://{path}"
    listener.close()
    assert not os.path.exists(path)


def test_a_socket_that_answers_is_in_use(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    first = bind_unix(path)
    with pytest.raises(UnavailableError, match="in use"):
        bind_unix(path)
    assert os.path.exists(path)
    first.close()


def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(RequestError, match="not a socket"):
        bind_unix(str(tmp_path / "s"))
    assert (tmp_path / "s").read_text() == "precious"


def test_a_socket_that_another_daemon_put_there_is_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    first = bind_unix(path)
    os.unlink(path)
    second = bind_unix(path)
    first.close()
    assert os.path.exists(path)
    second.close()


def test_an_abstract_name_leaves_nothing() -> None:
    listener = bind_unix(f"\0fastio-test-{os.getpid()}")
    assert listener.url == f"fastio+unix://@fastio-test-{os.getpid()}"
    listener.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"@fastio-notify-{os.getpid()}" if abstract else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind(name.replace("@", "\0", 1))
        assert notify("READY=1", {"NOTIFY_SOCKET": name})
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "/nobody/there"}])
def test_without_a_service_manager_nothing_happens(environ: Mapping[str, str]) -> None:
    assert not notify("READY=1", environ)
