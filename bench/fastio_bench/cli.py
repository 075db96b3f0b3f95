"""The ``fastio bench`` command."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

__all__ = ["bench"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


@click.group()
def bench() -> None:
    """Measure how close fastio comes to this machine's own limits."""


@bench.command()
@click.option("--data", type=click.Path(path_type=Path), help="A dataset to read. Its pages are dropped and refilled.")
@click.option(
    "--make", "make_size", metavar="SIZE", help="Make an LMDB of ~110 KB records of this size (4G) and read it."
)
@click.option("--directory", type=click.Path(path_type=Path), default=Path(), help="Where --make puts it. [default: .]")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows here.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Records per batch. [default: about 28 MB]")
@click.option("--rounds", type=click.IntRange(min=1), default=4, show_default=True, help="Pairs of interleaved arms.")
@click.option("--threads", type=click.IntRange(min=1), default=32, show_default=True, help="Of the raw reads.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the order.")
@click.option("--readahead", is_flag=True, help="Leave py-lmdb's readahead on, its own default.")
def io(
    data: Path | None, make_size: str | None, directory: Path, json_path: Path | None, **options: int | bool
) -> None:
    """Cold and warm exact shuffle, through daemon and client, as ratios to the machine's limits."""
    from rich.console import Console

    from fastio.errors import RequestError
    from fastio_bench.data import make_lmdb
    from fastio_bench.io import IoOptions, run_io
    from fastio_bench.results import print_table, write_json

    if (data is None) == (make_size is None):
        raise click.UsageError("give either --data PATH or --make SIZE")
    console = Console(stderr=True)
    with ExitStack() as stack:
        status = stack.enter_context(console.status("starting"))
        if make_size is not None:
            size_bytes = _parse_size(make_size)
            if not directory.is_dir():
                raise RequestError(f"--directory {directory} is not a directory")
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".fastio-bench-", dir=directory))
            data = Path(folder) / "data"
            status.update(f"writing {make_size} of records")
            make_lmdb(data, size_bytes)
        assert data is not None
        results = run_io(IoOptions(path=data, **options), status.update)  # type: ignore[arg-type]
    if json_path is not None:
        write_json(results, json_path)
    print_table(results, Console(), f"fastio bench io: {data if make_size is None else f'{make_size} made'}")


def _parse_size(text: str) -> int:
    """A size such as 4G, 500M or 1.5GiB, in bytes.

    >>> _parse_size("4G"), _parse_size("1.5GiB"), _parse_size("100")
    (4000000000, 1610612736, 100)
    """
    number = text.strip().upper().removesuffix("B")
    unit = number.lstrip("0123456789.")
    try:
        return int(float(number.removesuffix(unit)) * _UNITS[unit.strip()])
    except (KeyError, ValueError):
        raise click.BadParameter(f"{text!r} is not a size; write 500M, 4G or 1.5GiB", param_hint="--make") from None
