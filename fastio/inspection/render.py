"""A report as a person reads it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastio.inspection.report import FieldReport, Report

__all__ = ["bytes_text", "print_report"]

_SHOWN_SHARDS = 8
# Where nobody's terminal says how wide it is.
_PIPED_COLUMNS = 120
_INDEX_WORDS = {
    "none": "not needed",
    "fresh": "read from its sidecar",
    "built": "built now, and stored",
    "rebuilt": "was stale: built again, and stored",
    "memory": "built now, but could not be stored",
}
_BAR_CELLS = 32


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints ``report`` to ``console`` (stdout)."""
    console = console or Console(width=None if sys.stdout.isatty() else _PIPED_COLUMNS)
    console.print(f"[bold]{escape(report.path)}[/]", soft_wrap=True)
    console.print(_summary(report))
    console.print(_fields(report))
    _print_reading(report, console)
    console.print(_sizes(report))
    if len(report.shards) > 1:
        console.print(_shards(report))
    console.print(_records(report))


def bytes_text(count: float) -> str:
    """A byte count for a person.

    >>> bytes_text(1536), bytes_text(10)
    ('1.5 KiB', '10 B')
    """
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1024
        if count < 1024 or unit == "TiB":
            break
    return f"{count:.1f} {unit}"


def _summary(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    shuffled = f"one global shuffle, seed {report.shuffled}" if report.shuffled is not None else "not known to be"
    rows = {
        "format": f"{report.format}: {report.layout}",
        "records": f"{report.records:,}",
        "values": bytes_text(report.payload_bytes),
        "files": f"{bytes_text(report.file_bytes)} in {len(report.shards):,} shard{'s' * (len(report.shards) != 1)}",
        "index": _INDEX_WORDS.get(report.index, report.index),
        "shuffled": shuffled,
        "fingerprint": report.fingerprint,
    }
    for name, value in rows.items():
        table.add_row(f"[dim]{name}[/]", escape(value))
    return table


def _fields(report: Report) -> Table:
    table = Table("field", "stored as", "delivered as", "bytes (min / mean / max)", "read by", title_justify="left")
    for field in report.fields:
        table.add_row(
            escape(field.name),
            escape(field.arrow_type),
            escape(_delivered(field)),
            _extremes(field),
            field.strategy,
        )
    return table


def _delivered(field: FieldReport) -> str:
    shape = f"(B, {', '.join(map(str, field.shape))})" if field.shape else "(B,)"
    text = f"{field.dtype} {shape}" if field.delivered == "fixed" else f"ragged {field.dtype}"
    return text + (", mask" if field.nullable else "")


def _extremes(field: FieldReport) -> str:
    if field.mean_bytes is None or field.min_bytes is None or field.max_bytes is None:
        return "-"
    if field.min_bytes == field.max_bytes:
        return bytes_text(field.mean_bytes)
    return " / ".join(map(bytes_text, (field.min_bytes, field.mean_bytes, field.max_bytes)))


def _print_reading(report: Report, console: Console) -> None:
    console.print(
        f"An exact-order epoch reads [bold]{report.amplification:.2f}[/] bytes for each byte delivered when cold "
        f"(page cache taken as {bytes_text(report.memory_bytes)})."
    )
    for field in report.fields:
        slow = "[yellow]slow way[/], " if field.strategy == "decoded" else ""
        console.print(f"  {escape(field.name)}: {slow}{field.strategy}: {escape(field.reason)}", highlight=False)


def _sizes(report: Report) -> Table:
    title = f"bytes of a record ({report.sampled_records:,} of {report.records:,} looked up)"
    table = Table(title, "records", "", box=None, pad_edge=False)
    most = max((entry.records for entry in report.sizes), default=1)
    for entry in report.sizes:
        bar = "#" * max(entry.records > 0, round(_BAR_CELLS * entry.records / most))
        table.add_row(f"{bytes_text(entry.from_bytes)} .. {bytes_text(entry.to_bytes)}", f"{entry.records:,}", bar)
    return table


def _shards(report: Report) -> Table:
    table = Table("shard", "records", "size", "index", box=None, pad_edge=False)
    for shard in report.shards[:_SHOWN_SHARDS]:
        table.add_row(escape(shard.path), f"{shard.records:,}", bytes_text(shard.bytes), shard.index)
    more = len(report.shards) - _SHOWN_SHARDS
    if more > 0:
        table.add_row(f"... and {more:,} more", "", "", "")
    return table


def _records(report: Report) -> Table:
    table = Table("record", "field", "value", box=None, pad_edge=False)
    for number, record in enumerate(report.first_records):
        for name, text in record.items():
            table.add_row(str(number), escape(name), escape(text))
    return table
