"""A dataset as a client sees it: how to connect to its daemon, and what the daemon says it is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from fastio.errors import RemoteProtocolError, UnavailableError
from fastio.spec import DEFAULT_WINDOW_BYTES, StreamSpec
from fastio.wire.messages import DatasetInfo, Describe
from fastio_client import embedded
from fastio_client.connection import Connection, connect
from fastio_client.options import LoaderOptions

__all__ = ["Source", "batch_bytes"]

_BATCHES_AHEAD = 4


class Source:
    """Connects to the daemon of ``options.url``, starting a private one for a path. Nothing is open until it is used.

    May be used after a fork, by parent and child.
    """

    def __init__(self, options: LoaderOptions) -> None:
        self._options = options
        self._address = options.address
        self._info: DatasetInfo | None = None
        self._max_window_bytes = 0
        # The process that borrowed a private daemon and has to return it.
        self._borrower_pid = 0

    def info(self) -> DatasetInfo:
        """What the dataset is; asked of the daemon once.

        Raises:
            FastioError: there is no such dataset, or no daemon answers.
        """
        if self._info is None:
            connection = self.connect()
            try:
                info = connection.ask(Describe(self._address.dataset))
            finally:
                connection.close()
            if not isinstance(info, DatasetInfo):
                raise RemoteProtocolError(f"{self.name}: DATASET_INFO was due, got {type(info).__name__}")
            self._max_window_bytes = connection.welcome.max_window_bytes
            self._info = info
        return self._info

    def connect(
        self,
        allocate: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size)),
        started: Callable[[socket.socket], None] = lambda sock: None,
    ) -> Connection:
        """A new connection. See :func:`fastio_client.connection.connect`."""
        if self._address.kind != "path":
            return connect(self._address, self._options.token, allocate, started=started)
        lease = self._borrow()
        try:
            return connect(lease.address, lease.token, allocate, started=started)
        except UnavailableError:
            if not lease.inherited:
                raise
            embedded.give_up(self._address, lease)
        lease = self._borrow()
        return connect(lease.address, lease.token, allocate, started=started)

    def window_bytes(self) -> int:
        """The look-ahead window to ask for."""
        if self._options.window_bytes is not None:
            return self._options.window_bytes
        wanted = _BATCHES_AHEAD * batch_bytes(self.info(), self._options)
        return min(max(DEFAULT_WINDOW_BYTES, wanted), max(self._max_window_bytes, 1))

    def stream_spec(self, *, epoch: int, start_records: int, worker: int = 0, workers: int = 1) -> StreamSpec:
        """The stream of this rank's batches of ``epoch`` from ``start_records`` on."""
        window_bytes = self.window_bytes()
        return self._options.stream_spec(
            epoch=epoch, start_records=start_records, window_bytes=window_bytes, worker=worker, workers=workers
        )

    @property
    def name(self) -> str:
        """Server and dataset, for messages."""
        if self._address.kind == "path":
            return self._address.path
        return f"{self._address.server}/{self._address.dataset}"

    def close(self) -> None:
        """Returns the private daemon, if there is one."""
        if self._borrower_pid == os.getpid():
            self._borrower_pid = 0
            embedded.return_(self._address)

    def __repr__(self) -> str:
        return f"<Source {self.name}>"

    def _borrow(self) -> embedded.Lease:
        first = self._borrower_pid != os.getpid()
        lease = embedded.borrow(self._address, first=first)
        self._borrower_pid = os.getpid()
        return lease


def batch_bytes(info: DatasetInfo, options: LoaderOptions) -> int:
    """About how long a batch's payload is."""
    sizes = zip(info.fields, info.payload_bytes_by_field, strict=False)
    wanted = [(field, size) for field, size in sizes if options.fields is None or field.name in options.fields]
    extra = 8 + sum(field.nullable + 8 * (field.kind == "ragged") for field, _ in wanted)
    mean = sum(size for _, size in wanted) / max(1, info.records)
    return max(1, round(options.batch_size * (mean + extra)))
