"""What a process keeps of files it reads again and again: maps and decoded batches, least recently used out first.

Everything here is bounded, safe from any thread, and starts empty in a forked child: a lock that another thread of the
parent held at the fork would never be released in the child.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import numpy as np

from fastio.errors import ErrorKind, StoreError
from fastio.extents import Int64Array, UInt8Array
from fastio.formats.base import FileRef
from fastio.formats.taken import grouped

__all__ = ["LruCache", "MappedFiles", "default_map_limit"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Decoded record batches, over all fields: enough for a few dozen of Hugging Face's usual 1,000 rows of short lists.
DECODED_LIMIT_BYTES = 64 << 20


def default_map_limit() -> int:
    """A quarter of the descriptors this process may open: Python's mmap keeps one per map."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1024 if soft == resource.RLIM_INFINITY else max(16, min(1024, soft // 4))


class LruCache(Generic[K, V]):
    """Values by key, as many as cost no more than ``limit`` together (the latest one stays, whatever it costs)."""

    def __init__(self, limit: int, cost: Callable[[V], int] = lambda _: 1) -> None:
        self._limit = limit
        self._cost = cost
        self._reset()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of ``key``, made if it isn't there. Two threads may both make it; one of the two is kept."""
        if os.getpid() != self._pid:
            self._reset()
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
                return found
        made = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = made
                self._spent += self._cost(made)
            while self._spent > self._limit and len(self._values) > 1:
                self._spent -= self._cost(self._values.popitem(last=False)[1])
        return made

    def clear(self) -> None:
        self._reset()

    def __len__(self) -> int:
        return len(self._values)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._values: OrderedDict[K, V] = OrderedDict()
        self._spent = 0
        self._pid = os.getpid()


class MappedFiles:
    """Files by number, mapped when first needed. A view that is still held keeps its map alive after it left the cache.

    Touching a page of a map beyond a truncation kills the process: maps are used for the small fixed part of a file
    (offsets, bitmaps), and each file is compared with what was indexed when it is mapped.

    Args:
        limit: how many maps (and descriptors) are held at once.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._files: list[FileRef] = []
        self._lock = threading.Lock()
        self._maps: LruCache[int, UInt8Array] = LruCache(limit if limit is not None else default_map_limit())
        self.decoded: LruCache[tuple[int, str, int], Any] = LruCache(DECODED_LIMIT_BYTES, lambda array: array.nbytes)

    def add(self, ref: FileRef) -> int:
        """Makes a file known; the number it is asked for by."""
        with self._lock:
            self._files.append(ref)
            return len(self._files) - 1

    def ref(self, number: int) -> FileRef:
        return self._files[number]

    def view(self, number: int) -> UInt8Array:
        """The whole file as bytes, read-only.

        Raises:
            StoreError: it is gone, unreadable or no longer what was indexed.
        """
        return self._maps.get(number, lambda: _map(self._files[number]))

    def gather(self, map_B: Int64Array, at_B: Int64Array, width: int) -> UInt8Array:
        """``width`` bytes at each of B places: shape (B, width). Loops over the distinct files, not over places."""
        if len(map_B) and (map_B == map_B[0]).all():
            return _pick(self.view(int(map_B[0])), at_B, width)
        out = np.empty((len(at_B), width), dtype=np.uint8)
        for number, picked in grouped(map_B):
            out[picked] = _pick(self.view(number), at_B[picked], width)
        return out

    def close(self) -> None:
        """Lets go of all maps."""
        self._maps.clear()
        self.decoded.clear()

    def statistics(self) -> dict[str, int]:
        return {"files": len(self._files), "maps": len(self._maps), "decoded_batches": len(self.decoded)}

    def __repr__(self) -> str:
        return f"<MappedFiles {len(self._maps)} of {len(self._files)} mapped>"


def _pick(view: UInt8Array, at_B: Int64Array, width: int) -> UInt8Array:
    # Overlapping items, one at every byte: NumPy then copies whole items, wherever they are aligned.
    items = np.ndarray((len(view) - width + 1,), dtype=f"V{width}", buffer=view, strides=(1,))
    return items[at_B].view(np.uint8).reshape(-1, width)


def _map(ref: FileRef) -> UInt8Array:
    try:
        fd = os.open(ref.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StoreError(f"{ref.path} was there when it was indexed and is gone", kind=ErrorKind.MISSING) from None
    except OSError as error:
        raise StoreError(f"{ref.path} can't be opened: {error.strerror}", kind=ErrorKind.UNREADABLE) from error
    try:
        status = os.fstat(fd)
        if (status.st_size, status.st_mtime_ns) != (ref.size_bytes, ref.mtime_ns):
            raise StoreError(
                f"{ref.path} changed after it was indexed ({ref.size_bytes} bytes then, {status.st_size} now); "
                "open the dataset again to index it as it is",
                kind=ErrorKind.CHANGED,
            )
        mapped = mmap.mmap(fd, ref.size_bytes, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype=np.uint8)
