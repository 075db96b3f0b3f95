"""How far a long command is: a bar where someone watches, a line now and then where a log is kept.

Everything goes to stderr, so that what a command prints can be piped. Quick work says nothing at all.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Reporter"]

# Work that ends within this is not worth a word.
_PATIENCE_S = 0.5
# A bar is redrawn this often at most; a log gets a line this often.
_BAR_INTERVAL_S = 0.1
_LINE_INTERVAL_S = 10.0


class Reporter:
    """Shows progress between ``with`` and its end.

    Args:
        title: what is being done, as a participle: "indexing".
        unit: what :meth:`update` counts.
    """

    def __init__(self, title: str, *, unit: Literal["bytes", "records"]) -> None:
        self._title = title
        self._unit = unit
        self._interactive = sys.stderr.isatty()
        self._due_s = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __repr__(self) -> str:
        return f"Reporter({self._title!r})"

    def __enter__(self) -> Self:
        self._due_s = time.monotonic() + (_PATIENCE_S if self._interactive else _LINE_INTERVAL_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int | None, phase: str = "") -> None:
        """Says that ``done`` of ``total`` (None: unknown) is done. Cheap, and may be called often."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        title = f"{self._title}: {phase}" if phase else self._title
        if self._interactive:
            self._due_s = now_s + _BAR_INTERVAL_S
            self._draw(title, done, total)
        else:
            self._due_s = now_s + _LINE_INTERVAL_S
            of_total = f" of {total:,}" if total else ""
            sys.stderr.write(f"fastio: {title}: {done:,}{of_total} {self._unit}\n")
            sys.stderr.flush()

    def _draw(self, title: str, done: int, total: int | None) -> None:
        from rich import progress as rich
        from rich.console import Console

        if self._bar is None or self._task is None:
            count = rich.DownloadColumn() if self._unit == "bytes" else rich.MofNCompleteColumn()
            columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), count, rich.TimeRemainingColumn())
            self._bar = rich.Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(title, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, description=title)
