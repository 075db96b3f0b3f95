"""One piece of a plan becomes bytes in the ring: the system calls, and nothing about policy.

*extent* reads go by ``preadv``, twice at most: a first pass with RWF_NOWAIT takes what is resident and, as a side
effect, starts the device on everything that is not; a second pass waits for those. So one thread keeps as many reads
in flight as its piece is long (4 threads reach the rate of 64 that read one by one: 1.0-1.2 GB/s of 110 KB records).

*mapped* reads start the device on what is missing (WILLNEED for each run of pages), then gather: fixed-width values
by one NumPy index over a map (2.7 GB/s of 1 KiB records), others by ``pwritev`` from the maps into the ring's memfd
(1.5 GB/s, as fast as pyarrow's take; the kernel does the touching, without the GIL, and reports a truncated file as
EFAULT where a touch by this process would be its death by SIGBUS).
"""

from __future__ import annotations

import ctypes
import errno
import os

import numpy as np
import numpy.typing as npt

from fastio import pagecache
from fastio.buffers import Ring
from fastio.errors import ErrorKind, StoreError
from fastio.extents import Int32Array, Int64Array, UInt8Array
from fastio.files import BadFileError, FileSet, OpenFile
from fastio.plan import Reads

__all__ = ["MAX_GATHER_READS", "FailedReadError", "fetch"]

# IOV_MAX: what one pwritev takes.
MAX_GATHER_READS = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.pwritev.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_libc.pwritev.restype = ctypes.c_ssize_t


class FailedReadError(Exception):
    """A read failed: which one of the piece, and why. The stream, which knows records, makes the message."""

    def __init__(self, read: int, error: StoreError) -> None:
        super().__init__(str(error))
        self.read = read
        self.error = error


def fetch(reads: Reads, *, files: FileSet, ring: Ring, base: int) -> int:
    """Reads one piece into the ring, at ``base`` plus each read's destination.

    Returns:
        How many of the reads had to wait for the device (extent) or were not known to be resident (mapped).

    Raises:
        FailedReadError: a read failed, or its file is gone or no longer what was indexed; its error names the file.
    """
    try:
        with files.borrow(distinct_files(reads.file_R)) as opened:
            if reads.strategy == "extent":
                return _fetch_extents(reads, opened, ring.memory, base)
            return _fetch_mapped(reads, opened, ring, base)
    except BadFileError as error:
        raise FailedReadError(first_read_of(reads, error), error) from error


def first_read_of(reads: Reads, bad: BadFileError) -> int:
    """The first read that needs the bad file."""
    return int((reads.file_R == bad.number).argmax())


def distinct_files(file_R: Int32Array) -> list[int]:
    """The files that these reads are in. Most pieces have one, and finding that out costs a tenth of ``np.unique``."""
    if (file_R == file_R[0]).all():
        return [int(file_R[0])]
    return [int(number) for number in np.unique(file_R)]


def _fetch_extents(reads: Reads, opened: dict[int, OpenFile], memory: memoryview, base: int) -> int:
    file_R = [opened[number] for number in reads.file_R.tolist()]
    rows = list(
        zip(file_R, reads.offset_R.tolist(), reads.length_R.tolist(), (reads.dest_R + base).tolist(), strict=True)
    )
    waiting = []
    for index, (file, offset, length, dest) in enumerate(rows):
        got = _read_resident(file, offset, memory[dest : dest + length])
        if got < length:
            waiting.append((index, got))
    for index, got in waiting:
        file, offset, length, dest = rows[index]
        try:
            _read_rest(file, offset + got, memory[dest + got : dest + length])
        except OSError as error:
            raise FailedReadError(index, _read_error(file, offset, length, error)) from error
    return len(waiting)


def _read_resident(file: OpenFile, offset: int, into: memoryview) -> int:
    """Reads what is in the page cache without waiting, and starts the device on the rest. Returns the bytes read."""
    got = 0
    if file.nowait:
        try:
            got = os.preadv(file.fd, [into], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0  # nothing is resident; the kernel has started to read the range
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return 0  # the read that waits will report it
            file.nowait = False
    if got < len(into):
        pagecache.will_need(file.fd, offset + got, len(into) - got)
    return got


def _read_rest(file: OpenFile, offset: int, into: memoryview) -> None:
    done = 0
    while done < len(into):
        got = os.preadv(file.fd, [into[done:]], offset + done)
        if got == 0:
            raise OSError(errno.ENODATA, "the file ends before the record does")
        done += got


def _read_error(file: OpenFile, offset: int, length: int, error: Exception) -> StoreError:
    kind = ErrorKind.TRUNCATED if isinstance(error, OSError) and error.errno == errno.ENODATA else ErrorKind.IO
    reason = error.strerror if isinstance(error, OSError) else error
    what = f"reading bytes {offset} to {offset + length} of {file.ref.path} failed: {reason}"
    return StoreError(f"{what}; check the disk and the file", kind=kind)


def _fetch_mapped(reads: Reads, opened: dict[int, OpenFile], ring: Ring, base: int) -> int:
    unsure = 0
    for number, file in opened.items():
        here_R = np.flatnonzero(reads.file_R == number)
        _check_inside(reads, here_R, file)
        missing_R = here_R[file.not_resident(reads.offset_R[here_R])]
        if len(missing_R):
            unsure += len(missing_R)
            _start_device(file, reads.offset_R[missing_R], reads.length_R[missing_R])
    if reads.fixed_width is None:
        _gather_ragged(reads, opened, ring, base)
    else:
        _gather_fixed(reads, reads.fixed_width, opened, ring, base)
    return unsure


def _check_inside(reads: Reads, here_R: Int64Array, file: OpenFile) -> None:
    """A damaged index must not make us copy what happens to be mapped beside the file."""
    begin_R = reads.offset_R[here_R]
    outside_R = (begin_R < 0) | (begin_R + reads.length_R[here_R] > file.ref.size_bytes)
    if outside_R.any():
        read = int(here_R[outside_R.argmax()])
        begin, end = int(reads.offset_R[read]), int(reads.offset_R[read] + reads.length_R[read])
        where = f"bytes {begin} to {end} of {file.ref.path}, which has {file.ref.size_bytes}"
        raise FailedReadError(read, StoreError(f"the index points at {where}; build it anew", kind=ErrorKind.CORRUPT))


def _start_device(file: OpenFile, offset_R: Int64Array, length_R: Int64Array) -> None:
    """WILLNEED for each run of neighbouring pages that the extents touch, in file order."""
    order = np.argsort(offset_R)
    first_R = offset_R[order] // pagecache.PAGE_BYTES
    last_R = np.maximum.accumulate((offset_R + length_R - 1)[order] // pagecache.PAGE_BYTES)
    begins = np.flatnonzero(np.concatenate([[True], first_R[1:] > last_R[:-1] + 1]))
    ends = np.concatenate([begins[1:], [len(order)]]) - 1
    starts = (first_R[begins] * pagecache.PAGE_BYTES).tolist()
    lengths = ((last_R[ends] - first_R[begins] + 1) * pagecache.PAGE_BYTES).tolist()
    for start, length in zip(starts, lengths, strict=True):
        pagecache.will_need(file.fd, start, length)


def _checked_view(reads: Reads, number: int, file: OpenFile) -> UInt8Array:
    """The map of a file, checked again after the prefetch: who touches a page beyond a truncation dies of SIGBUS."""
    try:
        view = file.view()
        file.check()
    except (OSError, ValueError) as error:  # ValueError: the file is shorter than what is to be mapped
        reason = error if isinstance(error, StoreError) else _gather_error(file, 0, file.ref.size_bytes, error)
        raise FailedReadError(int((reads.file_R == number).argmax()), reason) from error
    return view


def _gather_fixed(reads: Reads, width: int, opened: dict[int, OpenFile], ring: Ring, base: int) -> None:
    first = int(reads.dest_R[0])
    rows = int(reads.dest_R[-1] - first) // width + 1
    out = ring.array[base + first : base + first + rows * width].view(f"V{width}")
    row_R = (reads.dest_R - first) // width
    for number, file in opened.items():
        view = _checked_view(reads, number, file)
        # Every byte begins a possible record: a view of overlapping items turns any offset into an index.
        records: npt.NDArray[np.void] = np.ndarray(
            (len(view) - width + 1,), dtype=f"V{width}", buffer=view.data, strides=(1,)
        )
        if len(opened) == 1:
            out[row_R] = records[reads.offset_R]
        else:
            picked_R = reads.file_R == number
            out[row_R[picked_R]] = records[reads.offset_R[picked_R]]


def _gather_ragged(reads: Reads, opened: dict[int, OpenFile], ring: Ring, base: int) -> None:
    views = {number: _checked_view(reads, number, file) for number, file in opened.items()}
    address_R = np.empty(len(reads), dtype=np.int64)
    for number, view in views.items():
        picked_R = reads.file_R == number
        address_R[picked_R] = view.ctypes.data + reads.offset_R[picked_R]
    vectors = np.stack([address_R, reads.length_R], axis=1)
    dest = base + int(reads.dest_R[0])
    start = 0
    while start < len(vectors):
        count = min(len(vectors) - start, MAX_GATHER_READS)
        done = _libc.pwritev(ring.fd, vectors[start:].ctypes.data, count, dest)
        if done <= 0:
            error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            file = opened[int(reads.file_R[start])]
            span = int(reads.offset_R[start]), int(reads.length_R[start])
            raise FailedReadError(start, _gather_error(file, *span, error))
        dest += done
        start = _advance(vectors, start, done)


def _gather_error(file: OpenFile, offset: int, length: int, error: Exception) -> StoreError:
    """A page that can't be touched (EFAULT) is most often beyond the end of a file that was just truncated."""
    try:
        file.check()
    except StoreError as reason:
        return reason
    return _read_error(file, offset, length, error)


def _advance(vectors: Int64Array, start: int, done: int) -> int:
    """Where the next call begins after ``done`` bytes were written: whole vectors are passed, a part is cut off."""
    end_R = np.cumsum(vectors[start : start + MAX_GATHER_READS, 1])
    whole = int(np.searchsorted(end_R, done, side="right"))
    rest = done - (int(end_R[whole - 1]) if whole else 0)
    if rest:
        vectors[start + whole] += (rest, -rest)
    return start + whole
