"""Open files of a dataset: descriptors and maps, opened when first needed, checked to be the files that were indexed.

A :class:`FileSet` belongs to one process. Descriptors are many (a dataset may have tens of thousands of shards), so
they are kept least-recently-used up to a limit; a borrowed one stays open until it is given back, whatever the limit.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastio import pagecache
from fastio.errors import ErrorKind, StoreError
from fastio.extents import Int64Array, UInt8Array
from fastio.formats.base import FileRef

# Residency is kept per block of 2 MiB for a second, or for as long as asking takes no more than 2 % of the time (2.5 ms
# per GiB when everything is resident, 1 ms per GiB of blocks otherwise).
_BLOCK_BYTES = 2 << 20
_RESIDENCY_VALID_S = 1.0
_RESIDENCY_SHARE = 0.02
# A block with fewer pages missing than this counts as resident: usually those of fields that nobody reads. Starting the
# device for each of its records would cost a third of the time of a batch; faulting in the odd page costs less.
_RESIDENT_SHARE = 0.95

__all__ = ["BadFileError", "FileSet", "FileSpan", "OpenFile", "default_descriptor_limit"]


def default_descriptor_limit() -> int:
    """Half of what this process may open: the other half is for connections, rings and everything else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(16, min(4096, soft // 2))


class BadFileError(StoreError):
    """A file is gone, unreadable, or not what was indexed. ``number`` says which of its set."""

    def __init__(self, message: str, *, kind: ErrorKind = ErrorKind.IO, number: int = -1) -> None:
        super().__init__(message, kind=kind)
        self.number = number


@dataclass(slots=True)
class OpenFile:
    """One open file. Use it only while it is borrowed.

    ``nowait`` says whether the file system takes RWF_NOWAIT; a reader that finds it does not, clears it.
    """

    ref: FileRef
    fd: int
    borrowers: int = 0
    nowait: bool = True
    _map: mmap.mmap | None = None
    _resident_blocks: npt.NDArray[np.bool_] | None = None
    _residency_expires_s: float = 0.0

    def view(self) -> UInt8Array:
        """The whole file, mapped read-only, for random access. Touching a page beyond a truncation kills the process
        with SIGBUS: call :meth:`check` right before, or let the kernel do the touching.
        """
        if self._map is None:
            self._map = mmap.mmap(self.fd, self.ref.size_bytes, prot=mmap.PROT_READ)
            self._map.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(self._map, dtype=np.uint8)

    def check(self) -> None:
        """Refuses a file that is no longer what was indexed.

        Raises:
            StoreError: it was truncated or rewritten.
        """
        status = os.fstat(self.fd)
        if status.st_size < self.ref.size_bytes:
            raise StoreError(
                f"{self.ref.path} is truncated: {status.st_size} bytes, indexed with {self.ref.size_bytes}; "
                "restore the file, or open the dataset again to index it as it is",
                kind=ErrorKind.TRUNCATED,
            )
        if self.ref.inode is not None and status.st_ino != self.ref.inode:
            raise StoreError(
                f"{self.ref.path} was replaced by another file after it was indexed; open the dataset again to index "
                "it as it is",
                kind=ErrorKind.CHANGED,
            )
        if not self.ref.may_grow and (status.st_size, status.st_mtime_ns) != (self.ref.size_bytes, self.ref.mtime_ns):
            raise StoreError(
                f"{self.ref.path} changed after it was indexed ({self.ref.size_bytes} bytes then, {status.st_size} "
                "now); open the dataset again to index it as it is",
                kind=ErrorKind.CHANGED,
            )

    def not_resident(self, offset_R: Int64Array) -> Int64Array:
        """Which of the reads at these offsets begin in a part of the file that is not known to be in the page cache,
        as of about a second ago: indices into ``offset_R``.
        """
        now_s = time.monotonic()
        if self._resident_blocks is None or now_s >= self._residency_expires_s:
            self._resident_blocks = self._ask_residency()
            cost_s = time.monotonic() - now_s
            self._residency_expires_s = now_s + max(_RESIDENCY_VALID_S, cost_s / _RESIDENCY_SHARE)
        return np.flatnonzero(~self._resident_blocks[offset_R // _BLOCK_BYTES])

    def _ask_residency(self) -> npt.NDArray[np.bool_]:
        size = self.ref.size_bytes
        blocks = -(-size // _BLOCK_BYTES)
        if (pagecache.resident_bytes(self.fd, 0, size) or 0) >= size:
            return np.ones(blocks, dtype=np.bool_)
        resident = np.zeros(blocks, dtype=np.bool_)
        for block, start in enumerate(range(0, size, _BLOCK_BYTES)):
            length = min(_BLOCK_BYTES, size - start)
            found = pagecache.resident_bytes(self.fd, start, length)
            if found is None:
                break
            resident[block] = found >= _RESIDENT_SHARE * length
        return resident

    def unmap(self) -> None:
        """Lets the map go; views that others still hold keep it alive until they are dropped."""
        self._map = None

    def close(self) -> None:
        self.unmap()
        os.close(self.fd)


@dataclass(slots=True)
class FileSpan:
    """Bytes of a borrowed file that stand for themselves in a payload, to be sent from the page cache.

    ``bytes(span)`` reads them, for who can't ``sendfile``.
    """

    file: OpenFile
    offset: int
    length_bytes: int
    explain: Callable[[StoreError], StoreError]

    def __len__(self) -> int:
        return self.length_bytes

    def __bytes__(self) -> bytes:
        into = bytearray(self.length_bytes)
        done = 0
        while done < self.length_bytes:
            try:
                got = os.preadv(self.file.fd, [memoryview(into)[done:]], self.offset + done)
            except OSError as error:
                raise self.failed(error) from error
            if got == 0:
                raise self.failed(None)
            done += got
        return bytes(into)

    def failed(self, error: OSError | None) -> StoreError:
        """The error of a read that failed with ``error``, or (None) found the end of the file."""
        path = self.file.ref.path
        if error is None:
            end = self.offset + self.length_bytes
            return self.explain(StoreError(f"{path} ends before byte {end}", kind=ErrorKind.TRUNCATED))
        return self.explain(StoreError(f"reading {path} failed: {error.strerror}; check the disk"))

    def skip(self, sent_bytes: int) -> None:
        """Notes that the first bytes were sent."""
        self.offset += sent_bytes
        self.length_bytes -= sent_bytes


class FileSet:
    """The files of one dataset, by their number. Safe from many threads.

    Args:
        files: the files, as the dataset lists them.
        descriptor_limit: how many descriptors are kept open when nobody uses them. A file may take two: Python's
            mmap keeps one of its own.
    """

    def __init__(self, files: Sequence[FileRef], *, descriptor_limit: int) -> None:
        self._files = files
        self._limit = descriptor_limit // 2
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"<FileSet {len(self._open)} of {len(self._files)} files open, limit {self._limit}>"

    @contextmanager
    def borrow(self, numbers: Iterable[int]) -> Iterator[dict[int, OpenFile]]:
        """Opens these files (distinct numbers), if they are not, checks each to be what was indexed, and keeps them
        open inside the ``with`` block.

        Raises:
            BadFileError: a file is gone, unreadable or not what was indexed.
        """
        borrowed: dict[int, OpenFile] = {}
        try:
            for number in numbers:
                try:
                    borrowed[number] = self._take(number)
                    borrowed[number].check()
                except StoreError as error:
                    self._forget(number, borrowed.get(number))
                    raise BadFileError(str(error), kind=error.kind, number=number) from error
            yield borrowed
        finally:
            self._give_back(borrowed)

    def unmap(self) -> None:
        """Lets go of all maps that nobody borrows, so that the kernel may reclaim (and others may drop) their pages."""
        with self._lock:
            for file in self._open.values():
                if not file.borrowers:
                    file.unmap()

    def close(self) -> None:
        """Closes every descriptor; a borrowed one as soon as it is given back, because its number must not become
        another file's while somebody still reads.
        """
        with self._lock:
            self._limit = 0
            self._close_surplus()

    def _take(self, number: int) -> OpenFile:
        with self._lock:
            file = self._open.get(number)
            if file is None:
                self._open[number] = file = _open(self._files[number])
            else:
                self._open.move_to_end(number)
            file.borrowers += 1
            return file

    def _give_back(self, borrowed: dict[int, OpenFile]) -> None:
        with self._lock:
            for number, file in borrowed.items():
                file.borrowers -= 1
                if not file.borrowers and self._open.get(number) is not file:
                    file.close()
            self._close_surplus()

    def _forget(self, number: int, file: OpenFile | None) -> None:
        """A bad file is closed when its last borrower gives it back; the next opens it anew, it may be restored."""
        with self._lock:
            if file is not None and self._open.get(number) is file:
                del self._open[number]

    def _close_surplus(self) -> None:
        surplus = len(self._open) - self._limit
        if surplus > 0:
            for number in [number for number, file in self._open.items() if not file.borrowers][:surplus]:
                self._open.pop(number).close()


def _open(ref: FileRef) -> OpenFile:
    try:
        # O_NONBLOCK means nothing for a file; a FIFO put in its place would block everybody.
        fd = os.open(ref.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise StoreError(f"{ref.path} was there when it was indexed and is gone", kind=ErrorKind.MISSING) from None
    except OSError as error:
        raise StoreError(f"{ref.path} can't be opened: {error.strerror}", kind=ErrorKind.UNREADABLE) from error
    try:
        pagecache.expect_random(fd)
    except OSError as error:
        os.close(fd)
        raise StoreError(f"{ref.path} is no regular file: {error.strerror}", kind=ErrorKind.CHANGED) from error
    return OpenFile(ref, fd)
