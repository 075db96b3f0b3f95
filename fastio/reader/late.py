"""Bytes that are in the page cache anyway need not pass through the ring: they are read when they are sent.

Copying a resident batch into the ring and then sending it moves each byte through memory twice, because the ring is
larger than any cache. Reading it in pieces of 256 KiB right before each piece is sent leaves the second copy to the
core's own cache: 0.34 CPU seconds per GB instead of 0.47, and the rate of a plain send (1.45 GB/s against 1.47 raw and
1.2 through the ring, on two busy cores). Nothing is mapped, so nothing can be pinned in memory or die of SIGBUS.

What was resident when the batch was planned and is gone when it is sent is simply read again, by the sending thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fastio import pagecache
from fastio.errors import ErrorKind, StoreError
from fastio.files import BadFileError, FileSet, OpenFile
from fastio.plan import Reads
from fastio.reader.fetch import FailedReadError, distinct_files, first_read_of

__all__ = ["SCRATCH_BYTES", "can_be_late", "chunks"]

# Makes the error of a read that failed, which names the record, out of what failed and among which reads.
Explain = Callable[[FailedReadError, Reads], StoreError]

# Fits the second-level cache of a core, and is large enough that a call per chunk costs nothing.
SCRATCH_BYTES = 256 << 10


def can_be_late(reads: Reads, files: FileSet) -> bool:
    """Whether all of a field's reads may wait until they are sent: known to be resident, and without gaps between.

    False if a file is bad: whoever reads it now knows what to say.
    """
    if reads.strategy != "extent":
        return False
    span = int(reads.dest_R[-1] + reads.length_R[-1] - reads.dest_R[0])
    if span != int(reads.length_R.sum()):
        return False
    try:
        with files.borrow(distinct_files(reads.file_R)) as opened:
            return all(_resident(file, reads, number) for number, file in opened.items())
    except BadFileError:
        return False


def chunks(
    payload: memoryview, late: Sequence[Reads], files: FileSet, scratch: memoryview, explain: Explain
) -> Iterator[memoryview]:
    """The payload in order, with the ``late`` reads filled in. Each chunk is valid until the next is asked for.

    Args:
        payload: the batch in the ring; where late reads belong it holds nothing.
        late: reads without gaps, in the order of their places.
        files: where they are.
        scratch: memory for one chunk.
        explain: makes the error of a read that failed.

    Raises:
        StoreError: a read failed. What was yielded before is part of a batch that can't be completed.
    """
    done = 0
    for reads in late:
        start = int(reads.dest_R[0])
        yield payload[done:start]
        try:
            yield from _read_through(reads, files, scratch)
        except FailedReadError as failed:
            raise explain(failed, reads) from failed
        except BadFileError as bad:
            raise explain(FailedReadError(first_read_of(reads, bad), bad), reads) from bad
        done = int(reads.dest_R[-1] + reads.length_R[-1])
    if done < len(payload):
        yield payload[done:]


def _resident(file: OpenFile, reads: Reads, number: int) -> bool:
    """Whether every read of this file is resident: known by its block, or asked for (1.3 us a read) where the block
    also holds pages that no record is in, as LMDB's do. The first that is not ends the asking.
    """
    here_R = np.flatnonzero(reads.file_R == number)
    unsure_R = here_R[file.not_resident(reads.offset_R[here_R])]
    spans = zip(reads.offset_R[unsure_R].tolist(), reads.length_R[unsure_R].tolist(), strict=True)
    return all((pagecache.resident_bytes(file.fd, offset, length) or 0) >= length for offset, length in spans)


def _read_through(reads: Reads, files: FileSet, scratch: memoryview) -> Iterator[memoryview]:
    filled = 0
    with files.borrow(distinct_files(reads.file_R)) as opened:
        rows = zip(reads.file_R.tolist(), reads.offset_R.tolist(), reads.length_R.tolist(), strict=True)
        for index, (number, offset, length) in enumerate(rows):
            file = opened[number]
            end = offset + length
            while offset < end:
                try:
                    got = os.preadv(file.fd, [scratch[filled : filled + end - offset]], offset)
                except OSError as error:
                    failed = StoreError(f"reading {file.ref.path} failed: {error.strerror}; check the disk")
                    raise FailedReadError(index, failed) from error
                if got == 0:
                    ends = StoreError(f"{file.ref.path} ends before byte {end}", kind=ErrorKind.TRUNCATED)
                    raise FailedReadError(index, ends)
                offset += got
                filled += got
                if filled == len(scratch):
                    yield scratch
                    filled = 0
    if filled:
        yield scratch[:filled]
