"""From a configuration to a running daemon: the one function behind ``fastio serve``."""

from __future__ import annotations

from pathlib import Path

from fastio_server.catalogue import open_catalogue
from fastio_server.config import ServerConfig
from fastio_server.credentials import Credentials, read_tokens
from fastio_server.listeners import bind_all, close_all
from fastio_server.logs import Log, configure_logs
from fastio_server.supervisor import Supervisor

__all__ = ["run_daemon"]


def run_daemon(config: ServerConfig, address_file: Path | None = None) -> int:
    """Serves until a signal says stop; returns the exit status.

    Everything that can be wrong is found out first, in the order of what it costs: tokens, addresses, datasets
    (indexes are built here, once, and workers read them), and only then a process is started.

    Args:
        config: what to serve, and where.
        address_file: gets one address a line once connections are accepted, and is removed at the end. With port 0
            this is how to learn the port.

    Raises:
        FastioError: the daemon can't start.
    """
    log = configure_logs(config.log_level, config.log_format)
    credentials = Credentials() if config.tokens is None else read_tokens(Path(config.tokens))
    listeners = bind_all(config)
    try:
        _open_once(config, log)
        for listener in listeners:
            listener.listen()
    except BaseException:
        close_all(listeners)
        raise
    return Supervisor(config, credentials, listeners, log, address_file).run()


def _open_once(config: ServerConfig, log: Log) -> None:
    def progress(name: str, done_bytes: int, total_bytes: int) -> None:
        log.info("indexing", dataset=name, percent=100 * done_bytes // max(total_bytes, 1), total_bytes=total_bytes)

    with open_catalogue(config.data, config.index_directory, progress) as catalogue:
        for name, dataset in catalogue.datasets.items():
            log.info(
                "dataset",
                dataset=name,
                path=str(dataset.path),
                format=dataset.format,
                records=dataset.records,
                shards=len(dataset.shards),
                index=dataset.index_state,
            )
