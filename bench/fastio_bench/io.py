"""``fastio bench io``: cold and warm exact shuffle through daemon and client, against the limits of the same run.

Arms are interleaved (raw, fastio, fastio, raw, ...) and each takes positions of the order that no other arm took: a
disk behind a host's cache serves the second read of the same bytes many times faster than the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastio.errors import RequestError
from fastio_bench.arms import Pass, lmdb_get, through_daemon
from fastio_bench.calibrate import LoopbackPeer, Rate, memcpy_rate, read_extents, read_sequentially
from fastio_bench.daemon import Daemon
from fastio_bench.data import BenchData, size_name
from fastio_bench.results import Result, paired

__all__ = ["IoOptions", "run_io"]

_DATASET = "bench"
_LMDB_GET_RECORDS = 400
_SEQUENTIAL_BYTES = 256 << 20
_MIN_STEPS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class IoOptions:
    """What ``bench io`` runs.

    Attributes:
        path: the dataset.
        batch_size: records per batch; None: about 28 MB a batch, at least 1 record and at most 4096.
        rounds: pairs of arms, cold and warm each.
        threads: of the raw reads that are the cold limit.
        seed: of the order.
        readahead: the py-lmdb arm leaves its readahead on (its own default) or off.
    """

    path: Path
    batch_size: int | None = None
    rounds: int = 4
    threads: int = 32
    seed: int = 0
    readahead: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.threads < 1:
            raise RequestError(f"rounds and threads must be at least 1, got {self.rounds} and {self.threads}")


Say = Callable[[str], None]


def run_io(options: IoOptions, say: Say) -> list[Result]:
    """Runs the benchmark.

    Args:
        options: what to run.
        say: told what is being measured.

    Raises:
        FastioError: the data can't be read, dropped, warmed or verified, or a record arrived with other bytes.
    """
    data = BenchData(options.path, seed=options.seed)
    try:
        batch_size = options.batch_size or min(4096, max(1, round(28e6 / data.mean_bytes)))
        steps = data.records // batch_size
        if steps < _MIN_STEPS:
            raise RequestError(
                f"{options.path} has {data.records} records, which is {steps} batches of {batch_size}; a benchmark "
                f"needs {_MIN_STEPS} at least: give more data or a smaller --batch-size"
            )
        size = size_name(data.mean_bytes)
        say("memory and device")
        results = _limits(data)
        with Daemon(_DATASET, options.path) as daemon:
            results += _cold(options, data, daemon, batch_size, size, say)
            results += _warm(options, data, daemon, batch_size, size, say)
        return results
    finally:
        data.close()


def _limits(data: BenchData) -> list[Result]:
    path, size_bytes = data.largest_file()
    data.make_cold()
    with path.open("rb", buffering=0) as file:
        length = min(size_bytes, _SEQUENTIAL_BYTES)
        sequential = read_sequentially(file.fileno(), start=(size_bytes - length) // 2, length_bytes=length)
    return [
        Result(name="limit.memcpy", value=memcpy_rate().mb_per_s, unit="MB/s"),
        Result(name="limit.device.sequential", value=sequential.mb_per_s, unit="MB/s"),
    ]


def _cold(options: IoOptions, data: BenchData, daemon: Daemon, batch_size: int, size: str, say: Say) -> list[Result]:
    # Half of the data is read by arms, in equal parts; the rest lies between them, because a stream that is broken off
    # has read ahead what the next arm must find cold.
    share = data.records // (2 * options.rounds + 1)
    batches = max(1, int(share * 0.6) // batch_size)
    raw: list[Rate] = []
    ours: list[Pass] = []
    for index, arm in enumerate(_interleaved(options.rounds)):
        say(f"cold: {arm} ({index + 1} of {2 * options.rounds})")
        start = index * share // batch_size * batch_size
        data.make_cold()
        if arm == "raw":
            raw.append(read_extents(data.extents(start, start + batches * batch_size), threads=options.threads))
        else:
            ours.append(through_daemon(daemon, data, start=start, batches=batches, batch_size=batch_size))
    rates, limits = [run.mb_per_s for run in ours], [rate.mb_per_s for rate in raw]
    results = [
        paired(f"cold.exact.{size}", rates, limits, unit="MB/s", target=0.95 if data.mean_bytes >= 16384 else 0.90),
        _told(f"cold.first_batch.{size}", [run.first_batch_s for run in ours], "s"),
        _told(f"cold.daemon.cpu.{size}", [run.daemon_cpu_s_per_gib for run in ours], "s/GiB"),
    ]
    data.make_cold()
    say("cold: py-lmdb get")
    gets = lmdb_get(
        data, start=2 * options.rounds * share, records=min(share, _LMDB_GET_RECORDS), readahead=options.readahead
    )
    if gets is not None:
        results.append(paired(f"cold.lmdb_get.{size}", [gets.mb_per_s], limits[-1:], unit="MB/s"))
    return results


def _warm(options: IoOptions, data: BenchData, daemon: Daemon, batch_size: int, size: str, say: Say) -> list[Result]:
    say("warm: filling the page cache")
    data.make_warm()
    batches = data.records // batch_size - 1
    peer = LoopbackPeer(round(batch_size * data.mean_bytes))
    raw: list[Rate] = []
    ours: list[Pass] = []
    try:
        peer.receive(2)
        through_daemon(daemon, data, start=0, batches=min(8, batches), batch_size=batch_size)
        for index, arm in enumerate(_interleaved(options.rounds)):
            say(f"warm: {arm} ({index + 1} of {2 * options.rounds})")
            if arm == "raw":
                raw.append(peer.receive(batches))
            else:
                ours.append(through_daemon(daemon, data, start=0, batches=batches, batch_size=batch_size))
    finally:
        peer.close()
    data.make_warm()  # verifies that nothing had been evicted meanwhile
    rates, limits = [run.mb_per_s for run in ours], [rate.mb_per_s for rate in raw]
    client_cpu = [run.client_cpu_s_per_gib for run in ours]
    results = [
        paired(f"warm.tcp.{size}", rates, limits, unit="MB/s", target=0.85),
        _cost("client.cpu.tcp", client_cpu, unit="s/GiB", target=0.30),
        _told(f"warm.daemon.cpu.{size}", [run.daemon_cpu_s_per_gib for run in ours], "s/GiB"),
        _told(f"warm.wait.p50.{size}", [run.wait_s(50) for run in ours], "s"),
        _told(f"warm.wait.p99.{size}", [run.wait_s(99) for run in ours], "s"),
    ]
    say("warm: py-lmdb get")
    gets = lmdb_get(data, start=0, records=min(data.records, 20 * _LMDB_GET_RECORDS), readahead=options.readahead)
    if gets is not None:
        results.append(paired(f"warm.lmdb_get.{size}", [gets.mb_per_s], limits[-1:], unit="MB/s"))
    return results


def _interleaved(rounds: int) -> list[Literal["raw", "fastio"]]:
    """A B B A A B B A ...: a drift of the machine favours neither."""
    pair: tuple[Literal["raw"], Literal["fastio"]] = ("raw", "fastio")
    return [arm for index in range(rounds) for arm in (pair if index % 2 == 0 else pair[::-1])]


def _cost(name: str, values: list[float], *, unit: str, target: float) -> Result:
    value = _median(values)
    ratio = value / target
    return Result(name=name, value=value, unit=unit, ratio=ratio, target=target, n=len(values), lower_is_better=True)


def _told(name: str, values: list[float], unit: str) -> Result:
    return Result(name=name, value=_median(values), unit=unit, n=len(values))


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
