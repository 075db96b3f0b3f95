"""A result: what was measured, in which unit, and what share of the limit it is."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastio.errors import StoreError

__all__ = ["Result", "paired", "print_table", "write_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row.

    Attributes:
        name: as in the table of targets, such as ``cold.exact.110k``.
        value: the median of what was measured, in ``unit``.
        limit: the median of the limit measured in the same run; None where there is none.
        ratio: the median of the paired ratios of value to limit (to ``target`` where there is no limit).
        target: what the ratio should reach (or stay below, for costs); None for a row that is only told.
        spread: the quartiles of the paired ratios; None where there was one pair.
        n: how many pairs.
        lower_is_better: the target is an upper bound.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    ratio: float | None = None
    target: float | None = None
    spread: tuple[float, float] | None = None
    n: int = 1
    lower_is_better: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        if self.target is None or self.ratio is None:
            return None
        if self.limit is None:
            return self.ratio <= 1 if self.lower_is_better else self.ratio >= 1
        return self.ratio <= self.target if self.lower_is_better else self.ratio >= self.target


def paired(
    name: str, values: Sequence[float], limits: Sequence[float], *, unit: str, target: float | None = None
) -> Result:
    """A row from pairs measured side by side: the median of the ratios, which is not the ratio of the medians.

    >>> paired("x", [1.0, 3.0], [2.0, 3.0], unit="MB/s").ratio
    0.75
    """
    ratios = [value / limit for value, limit in zip(values, limits, strict=True)]
    spread = None
    if len(ratios) > 1:
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
        spread = (quartiles[0], quartiles[2])
    return Result(
        name=name,
        value=statistics.median(values),
        unit=unit,
        limit=statistics.median(limits),
        ratio=statistics.median(ratios),
        target=target,
        spread=spread,
        n=len(ratios),
    )


def write_json(results: Sequence[Result], path: Path) -> None:
    """Writes the rows as one JSON list.

    Raises:
        StoreError: the file can't be written.
    """
    rows = [{key: value for key, value in asdict(row).items() if key != "lower_is_better"} for row in results]
    try:
        path.write_text(json.dumps(rows, indent=1) + "\n")
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror}") from error


def print_table(results: Sequence[Result], console: Console, title: str) -> None:
    """Prints the rows for a person."""
    table = Table(title=title, title_justify="left")
    table.add_column("name")
    for heading in ("value", "limit", "ratio", "quartiles", "target"):
        table.add_column(heading, justify="right")
    for row in results:
        sign = "<=" if row.lower_is_better else ">="
        mark = {True: " [green]✓[/]", False: " [red]✗[/]", None: ""}[row.reached]
        table.add_row(
            row.name,
            f"{row.value:,.4g} {row.unit}",
            "" if row.limit is None else f"{row.limit:,.4g}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.spread is None else f"{row.spread[0]:.2f} - {row.spread[1]:.2f}",
            "" if row.target is None else f"{sign} {row.target:g}{mark}",
        )
    console.print(table)
