"""The ``fastio`` command: what is typed, what is said, and with which exit code.

Sub-commands come from the entry points ``fastio.commands`` and are imported when they are run, so that ``inspect`` does
not load an event loop. Whatever goes wrong is said on stderr in one or two lines: exit code 1 for what fastio or the
disk refuses, 2 for a command line that makes no sense, 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import NoReturn

import click

from fastio.errors import FastioError

__all__ = ["cli", "inspect_command", "main", "pack_command"]

_INTERRUPTED = 130
_SEED = click.IntRange(0, (1 << 64) - 1)


class _Commands(click.Group):
    """The commands below and those of other packages, the latter imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        found = _entry_points().get(cmd_name)
        if found is None:
            return None
        try:
            command = found.load()
        except ImportError as error:
            return _broken(cmd_name, str(error))
        return command if isinstance(command, click.Command) else _broken(cmd_name, f"{found.value} is no command")


def _entry_points() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group="fastio.commands")}


def _broken(name: str, reason: str) -> click.Command:
    """Stands for a command that cannot be imported, so that the others and ``--help`` still work."""

    def refuse() -> NoReturn:
        raise click.ClickException(f"the command {name!r} cannot be loaded: {reason}")

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, callback=refuse, context_settings=settings, help=f"(cannot be loaded: {reason})")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fastio", message="fastio %(version)s")
def cli() -> None:
    """A data loader service: exactly shuffled records from LMDB and Arrow data, at the speed of the device."""


@cli.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--layout", default="auto", show_default=True, help="Read LMDB keys by this layout.")
def inspect_command(path: Path, as_json: bool, layout: str) -> None:
    """Say what PATH is recognised as, what is in it, and how it would be read."""
    from fastio.formats.base import IndexOptions
    from fastio.inspection import inspect_dataset, print_report, to_json
    from fastio.progress import Reporter

    with Reporter("indexing", unit="bytes") as reporter:
        report = inspect_dataset(path, IndexOptions(progress=reporter.update, layout=layout))
    if as_json:
        click.echo(to_json(report))
    else:
        print_report(report)


@cli.command("pack")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=click.Choice(["arrow", "lmdb"]), default="arrow", show_default=True)
@click.option("--shuffle", "seed", type=_SEED, metavar="SEED", help="One global shuffle by this seed.")
@click.option("--shard-bytes", type=click.IntRange(1), default=1 << 30, show_default=True, help="Size of a shard.")
@click.option("--overwrite", is_flag=True, help="Replace a dataset that fastio wrote, or what a killed run left.")
def pack_command(
    source: Path, destination: Path, format_: str, seed: int | None, shard_bytes: int, overwrite: bool
) -> None:
    """Write SOURCE as a dataset at DESTINATION.

    SOURCE is a directory of files (each folder a class), Parquet, CSV or JSON-lines files or a directory of them, or
    any dataset that fastio reads, compressed Arrow files among them.
    """
    from fastio.packing import PackOptions, pack
    from fastio.progress import Reporter

    options = PackOptions(format="lmdb" if format_ == "lmdb" else "arrow", shuffle_seed=seed, shard_bytes=shard_bytes)
    with Reporter("packing", unit="records") as reporter:
        packed = pack(source, destination, options, overwrite=overwrite, progress=reporter.update)
    click.echo(
        f"{destination}: {packed.records:,} records in {packed.shards:,} {format_} shard{'s' * (packed.shards != 1)}, "
        f"{packed.bytes:,} bytes, from {packed.source}"
    )


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line and exits with its code."""
    try:
        code = cli.main(args=argv, prog_name="fastio", standalone_mode=False)
        # Written here, so that a reader who left is noticed here and not while Python shuts down.
        sys.stdout.flush()
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "fastio"
        message = " ".join(error.format_message().split())
        _fail(f"{message}\nsee '{command} --help'", 2)
    except click.ClickException as error:
        _fail(error.format_message(), 1)
    except FastioError as error:
        _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left (`fastio inspect ... | head`): nothing is wrong, and nobody listens.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    """Says ``message`` on at most two lines, and exits."""
    first, *rest = (line.strip() for line in message.strip().splitlines())
    click.echo(f"fastio: {first}", err=True)
    if rest:
        click.echo(" ".join(rest), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
