"""What a planned batch becomes: bytes known already, pieces for the read threads, and reads left until it is sent."""

from __future__ import annotations

import numpy as np

from fastio.extents import UInt8Array
from fastio.files import FileSet
from fastio.plan import BatchPlan, Reads, split_reads
from fastio.reader.fetch import MAX_GATHER_READS
from fastio.reader.late import can_be_late

__all__ = ["divide", "write_known"]

# A piece of 32 reads keeps 32 reads of the device in flight per thread; 8 threads then exceed the depth (128) at which
# the fastest device we measured stopped gaining. 4 MiB bounds how long one piece occupies a thread (4 ms at 1 GB/s).
_EXTENT_PIECE_READS = 32
_PIECE_BYTES = 4 << 20


def divide(plan: BatchPlan, late_files: FileSet | None) -> tuple[list[Reads], list[Reads]]:
    """What will be read when it is sent (nothing without ``late_files``), and the pieces to be read now."""
    late: list[Reads] = []
    pieces: list[Reads] = []
    for reads in plan.reads:
        if late_files is not None and can_be_late(reads, late_files):
            late.append(reads)
        else:
            pieces.extend(_pieces(reads))
    return late, pieces


def write_known(plan: BatchPlan, payload: UInt8Array) -> None:
    """Copies what the plan knows already into the batch's memory."""
    for start, array in plan.known:
        flat = array.reshape(-1).view(np.uint8)
        payload[start : start + len(flat)] = flat


def _pieces(reads: Reads) -> list[Reads]:
    max_reads = _EXTENT_PIECE_READS if reads.strategy == "extent" else MAX_GATHER_READS
    return split_reads(reads, max_reads=max_reads, max_bytes=_PIECE_BYTES)
