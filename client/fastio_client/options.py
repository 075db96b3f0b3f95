"""What a loader is told: one frozen, validated value, from which every loader of this package is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

from fastio.errors import RequestError
from fastio.spec import OrderKind, OrderSpec, StreamSpec, Tail
from fastio_client.address import Address, parse_address
from fastio_client.ranks import rank_and_world

__all__ = ["LoaderOptions"]


@dataclass(frozen=True, eq=False, repr=False)
class LoaderOptions:
    """What a loader is told.

    Args:
        url: ``fastio://HOST:PORT/NAME``, ``fastio+unix:///PATH.sock/NAME`` (the socket's path is all but the last
            component), or a path on this machine, for which a private daemon is started and shared by the loaders of
            this process.
        batch_size: records per batch, of this rank.
        fields: the fields wanted, in this order; None for all.
        order: ``"exact"``, a uniform permutation of all records, another each epoch; or ``"sequential"``.
        seed: of the permutation, 0 .. 2**64 - 1.
        rank, world_size: this process's place among the ranks; None: as the launcher's environment says (torchrun, Open
            MPI, PMI, Slurm), else 0 of 1.
        tail: ``"even"``, every record once, the last two steps of an epoch balanced; or ``"drop"``, no incomplete step.
        window_bytes: how much the server reads ahead, and about how much is received ahead, in bytes. None: four
            batches of the mean size, at least 64 MiB, at most what the server allows.
        token: the daemon's credential, if it wants one.
        reconnect_timeout_s: for how long a broken connection is tried anew before the loader gives up.

    Raises:
        RequestError: a value is out of its range; the environment contradicts itself; the URL is none.
    """

    url: str
    _: KW_ONLY
    batch_size: int
    fields: Sequence[str] | None = None
    order: OrderKind = "exact"
    seed: int = 0
    rank: int | None = None
    world_size: int | None = None
    tail: Tail = "even"
    window_bytes: int | None = None
    token: str | None = field(default=None)
    reconnect_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if isinstance(self.fields, str):
            raise RequestError(f"fields must be a list of names, got the text {self.fields!r}")
        if self.reconnect_timeout_s < 0:
            raise RequestError(f"reconnect_timeout_s must be at least 0, got {self.reconnect_timeout_s}")
        # Settled once: copies of this value in worker processes must not look at another environment.
        rank, world_size = rank_and_world(self.rank, self.world_size, os.environ)
        url = os.fspath(self.url)
        settled = {
            "url": os.path.abspath(url) if parse_address(url).kind == "path" else url,
            "fields": None if self.fields is None else tuple(self.fields),
            "rank": rank,
            "world_size": world_size,
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        self.stream_spec(epoch=0, start_records=0, window_bytes=self.window_bytes or 1)
        if self.window_bytes is not None and self.window_bytes < 1:
            raise RequestError(f"window_bytes must be at least 1, got {self.window_bytes}")

    @property
    def address(self) -> Address:
        """Where the dataset is."""
        return parse_address(self.url)

    @property
    def order_spec(self) -> OrderSpec:
        """The permutation."""
        return OrderSpec(kind=self.order, seed=self.seed)

    def stream_spec(
        self, *, epoch: int, start_records: int, window_bytes: int, worker: int = 0, workers: int = 1
    ) -> StreamSpec:
        """The stream of this rank's batches of ``epoch`` from ``start_records`` on; see :class:`StreamSpec`."""
        return StreamSpec(
            dataset=self.address.dataset,
            batch_size=self.batch_size,
            fields=None if self.fields is None else tuple(self.fields),
            order=self.order_spec,
            epoch=epoch,
            start_records=start_records,
            rank=self.rank or 0,
            world_size=self.world_size or 1,
            worker=worker,
            workers=workers,
            tail=self.tail,
            window_bytes=window_bytes,
        )
