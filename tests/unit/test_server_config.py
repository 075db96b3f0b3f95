"""The daemon's configuration: file, flags, and what is said about mistakes in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastio.errors import ErrorKind, RequestError
from fastio_server.config import DEFAULT_LISTEN, ServerConfig, load_config, split_address
from fastio_server.credentials import Credentials, read_tokens

FULL = """
listen = ["127.0.0.1:0", "[::1]:9470"]
unix = "run/fastio.sock"
workers = 3
tokens = "/etc/fastio/tokens"
keepalive_s = 5
drain_s = 1.5
max_window_bytes = 1_000_000
log_format = "json"

[data]
train = "train.lmdb"
test = "/data/test"
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_with_everything(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "fastio.toml", FULL), {})
    assert config.data == {"train": str(tmp_path / "train.lmdb"), "test": "/data/test"}
    assert config.listen == ("127.0.0.1:0", "[::1]:9470")
    assert config.unix == str(tmp_path / "run/fastio.sock")
    assert config.tokens == "/etc/fastio/tokens"
    assert (config.workers, config.keepalive_s, config.drain_s) == (3, 5.0, 1.5)
    assert config.max_window_bytes == 1_000_000


def test_flags_override_the_file_and_data_is_merged_by_name(tmp_path: Path) -> None:
    flags = {"workers": 1, "listen": ("127.0.0.1:1",), "unix": None, "data": {"train": "/other", "more": "/more"}}
    config = load_config(write(tmp_path / "c.toml", FULL), flags)
    assert (config.workers, config.listen) == (1, ("127.0.0.1:1",))
    assert config.unix == str(tmp_path / "run/fastio.sock"), "None means: not given"
    assert config.data == {"train": "/other", "test": "/data/test", "more": "/more"}


def test_loopback_is_the_default_unless_a_unix_socket_is_asked_for() -> None:
    assert load_config(None, {"data": {"a": "/a"}}).listen == (DEFAULT_LISTEN,)
    assert load_config(None, {"data": {"a": "/a"}, "unix": "/tmp/s"}).listen == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workrs = 2", ["c.toml", "unknown key 'workrs'", "did you mean 'workers'?"]),
        ("zzz = 2", ["unknown key 'zzz'", "known keys: data, listen"]),
        ("workers = 'two'", ["c.toml", "workers = 'two'", "expected `int`, got `str`"]),
        ("listen = '127.0.0.1:1'", ["listen = '127.0.0.1:1'", "expected `array`, got `str`"]),
        ("log_level = 'loud'", ["log_level", "loud"]),
        ("workers = 0", ["c.toml", "workers must be at least 1, got 0"]),
        ("keepalive_s = nan", ["keepalive_s must be at least"]),
        ("data = 3", ["data = 3", "expected `object`, got `int`"]),
        ("workers = \nunix = 1", ["c.toml", "not valid TOML", "line 1"]),
        ("listen = ['9470']", ["'9470'", "wanted HOST:PORT"]),
        ("listen = ['::1:9470']", ["brackets"]),
        ("[data]\n'a/b' = '/x'", ["'a/b'", "wanted letters"]),
        ("[data]\na = ''", ["'a'", "empty path"]),
        ("workers = 1", ["no dataset to serve", "--data NAME=PATH"]),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        load_config(write(tmp_path / "c.toml", text), {})
    assert caught.value.kind is ErrorKind.BAD_CONFIG
    for part in said:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file"):
        load_config(tmp_path / "absent.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="not UTF-8"):
        load_config(tmp_path / "binary.toml", {})


def test_a_configuration_survives_the_way_to_a_worker() -> None:
    config = load_config(None, {"data": {"a": "/a"}, "unix": "/tmp/s", "workers": 2})
    assert msgspec.json.decode(msgspec.json.encode(config), type=ServerConfig) == config


def test_memory_is_shared_between_workers() -> None:
    assert ServerConfig(workers=4, max_memory_bytes=400).memory_bytes == 100
    assert ServerConfig().memory_bytes > 1 << 20


@pytest.mark.parametrize(("text", "wanted"), [("a:1", ("a", 1)), ("[fe80::1%lo]:2", ("fe80::1%lo", 2))])
def test_addresses(text: str, wanted: tuple[str, int]) -> None:
    assert split_address(text) == wanted


@pytest.mark.parametrize("text", ["", ":", "a", "a:", ":1", "a:b", "a:65536", "a:-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(RequestError, match="listen address"):
        split_address(text)


def test_tokens(tmp_path: Path) -> None:
    credentials = read_tokens(write(tmp_path / "t", "# who\n\n alice:s3cret:x \nbare-token\n"))
    assert credentials.name_of("s3cret:x") == "alice"
    assert credentials.name_of("bare-token") == "line 4"
    assert [credentials.name_of(wrong) for wrong in ("", None, "alice", "s3cret", "ünïcode")] == [None] * 5
    assert "s3cret" not in repr(credentials)


@pytest.mark.parametrize(
    ("text", "said"),
    [("# none\n", "holds no token"), ("a:\n", "line 1"), (":x\n", "line 1"), ("a:1\na:2\n", "was given before")],
)
def test_mistakes_in_a_token_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_tokens(write(tmp_path / "t", text))


def test_a_token_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="can't be read: No such file"):
        read_tokens(tmp_path / "t")


def test_no_tokens_let_everyone_in() -> None:
    everyone: dict[str, Any] = {}
    assert Credentials(everyone).name_of("anything") == "anyone"
