"""How the daemon logs: structured events on stderr, as JSON lines or readable text."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from fastio_server.config import LogFormat, LogLevel

__all__ = ["Log", "configure_logs"]

Log = Any  # structlog's bound loggers take any event fields; their own type says no more


def configure_logs(level: LogLevel, form: LogFormat, **always: object) -> Log:
    """Sets logging up for this process and returns its logger; every event carries ``always``.

    Called once per process, from its entry point: importing this module changes nothing.
    """
    if form == "auto":
        form = "console" if sys.stderr.isatty() else "json"
    render: Any = structlog.processors.JSONRenderer()
    if form == "console":
        render = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # One write per line: lines of several processes on one stderr do not mix.
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger().bind(**always)
