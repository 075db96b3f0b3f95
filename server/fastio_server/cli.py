"""``fastio serve``: flags and file to one configuration, then the daemon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click

from fastio_server.config import DEFAULT_LISTEN, LogFormat, LogLevel, load_config

__all__ = ["serve"]


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--data", "data", multiple=True, metavar="NAME=PATH", help="Serve PATH under NAME. May be repeated.")
@click.option("--listen", multiple=True, metavar="HOST:PORT", help=f"A TCP address. [default: {DEFAULT_LISTEN}]")
@click.option("--unix", metavar="PATH", help="Listen on a Unix socket as well.")
@click.option("--workers", type=int, help="Processes that share the addresses. [default: 1]")
@click.option("--tokens", metavar="FILE", help="Credentials: a line is name:token or a bare token.")
@click.option("--insecure", is_flag=True, default=None, help="Listen beyond loopback without tokens.")
@click.option("--keepalive-s", type=float, help="Silence after which a peer is asked for a sign of life. [default: 15]")
@click.option("--drain-s", type=float, help="How long SIGTERM waits for open streams. [default: 30]")
@click.option("--max-window-bytes", type=int, help="Largest look-ahead window of one stream. [default: 1 GiB]")
@click.option("--max-memory-bytes", type=int, help="Windows of all streams together. [default: half of the memory]")
@click.option("--max-connections", type=int, help="Connections per worker. [default: 512]")
@click.option("--reader-threads", type=int, help="Threads per worker that read the disk.")
@click.option("--sender-threads", type=int, help="Threads per worker that send batches. [default: 8]")
@click.option("--index-directory", metavar="DIR", help="Where dataset indexes are kept. [default: beside the data]")
@click.option("--log-level", type=click.Choice(get_args(LogLevel)), help="[default: info]")
@click.option("--log-format", type=click.Choice(get_args(LogFormat)), help="[default: auto, text on a terminal]")
@click.option(
    "--address-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the addresses here, one a line, once connections are accepted.",
)
def serve(config: Path | None, address_file: Path | None, data: tuple[str, ...], **flags: Any) -> None:
    """Serve datasets to training processes.

    CONFIG is a TOML file; its keys are these options with underscores (and a [data] table). Flags override it.

    \b
        fastio serve --data train=/data/train.lmdb
        fastio serve fastio.toml --workers 4
    """
    # Here: `fastio --help` lists this command without loading an event loop and a reader.
    from fastio_server.daemon import run_daemon

    flags["data"] = dict(map(_name_and_path, data))
    flags["listen"] = flags["listen"] or None
    sys.exit(run_daemon(load_config(config, flags), address_file))


def _name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals:
        raise click.BadParameter(f"wanted NAME=PATH, got {text!r}", param_hint="--data")
    return name, path
