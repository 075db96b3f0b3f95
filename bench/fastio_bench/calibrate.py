"""The machine's own limits, each by the plainest loop that reaches it. What fastio does is compared with these."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from fastio import pagecache
from fastio.errors import StoreError

__all__ = ["Extent", "LoopbackPeer", "Rate", "memcpy_rate", "read_extents", "read_sequentially"]

# An extent to read: descriptor, offset, length.
Extent = tuple[int, int, int]

_PIECE_BYTES = 4 << 20
_MEMCPY_BYTES = 64 << 20
_MEMCPY_ROUNDS = 5
_SOCKET_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes moved, the wall-clock seconds that took, and the CPU seconds of this process."""

    moved_bytes: int
    seconds: float
    cpu_s: float

    @property
    def mb_per_s(self) -> float:
        return self.moved_bytes / self.seconds / 1e6


def memcpy_rate() -> Rate:
    """One core copying 64 MiB, memory touched before: the best of a few rounds."""
    source = np.ones(_MEMCPY_BYTES, dtype=np.uint8)
    target = np.zeros_like(source)
    rates = []
    for _ in range(_MEMCPY_ROUNDS):
        start_s, cpu_s = time.perf_counter(), time.process_time()
        np.copyto(target, source)
        rates.append(Rate(source.nbytes, time.perf_counter() - start_s, time.process_time() - cpu_s))
    return min(rates, key=lambda rate: rate.seconds)


def read_extents(extents: Sequence[Extent], *, threads: int) -> Rate:
    """Plain ``preadv`` of each extent by many threads, one read each at a time, into memory touched before."""
    longest = max(length for _, _, length in extents)
    work: SimpleQueue[Sequence[Extent] | None] = SimpleQueue()
    for start in range(0, len(extents), 8):
        work.put(extents[start : start + 8])
    for _ in range(threads):
        work.put(None)
    failures: list[OSError] = []

    def read() -> None:
        buffer = memoryview(bytearray(longest))
        try:
            while (piece := work.get()) is not None:
                for fd, offset, length in piece:
                    _read_fully(fd, offset, buffer[:length])
        except OSError as error:
            failures.append(error)

    pool = [threading.Thread(target=read) for _ in range(threads)]
    start_s, cpu_s = time.perf_counter(), time.process_time()
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    if failures:
        raise StoreError(f"the raw reads failed: {failures[0]}") from failures[0]
    moved = sum(length for _, _, length in extents)
    return Rate(moved, time.perf_counter() - start_s, time.process_time() - cpu_s)


def read_sequentially(fd: int, *, start: int, length_bytes: int) -> Rate:
    """Reads a range of a file front to back in pieces of 4 MiB, three of them ahead."""
    buffer = memoryview(bytearray(_PIECE_BYTES))
    begin_s, cpu_s = time.perf_counter(), time.process_time()
    end = start + length_bytes
    for offset in range(start, end, _PIECE_BYTES):
        pagecache.will_need(fd, offset, min(4 * _PIECE_BYTES, end - offset))
        _read_fully(fd, offset, buffer[: min(_PIECE_BYTES, end - offset)])
    return Rate(length_bytes, time.perf_counter() - begin_s, time.process_time() - cpu_s)


class LoopbackPeer:
    """A process at the other end of a loopback TCP connection that sends messages of one size, as fast as it can.

    The limit for a batch over TCP: ``sendall`` of memory there, ``recv_into`` of memory here, nothing else.
    """

    def __init__(self, message_bytes: int) -> None:
        self._message_bytes = message_bytes
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(_SOCKET_TIMEOUT_S)
            port = listener.getsockname()[1]
            self._process = subprocess.Popen([sys.executable, "-c", _PEER, str(port), str(message_bytes)])
            self._socket, _ = listener.accept()
        self._socket.settimeout(None)
        self._slots = [memoryview(mmap.mmap(-1, message_bytes)) for _ in range(2)]
        for slot in self._slots:
            slot[:] = bytes(message_bytes)

    def receive(self, messages: int) -> Rate:
        """Asks for and receives this many messages."""
        start_s, cpu_s = time.perf_counter(), time.process_time()
        self._socket.sendall(messages.to_bytes(8, "little"))
        for index in range(messages):
            slot = self._slots[index % 2]
            got = 0
            while got < self._message_bytes:
                count = self._socket.recv_into(slot[got:], self._message_bytes - got, socket.MSG_WAITALL)
                if count == 0:
                    raise StoreError("the loopback peer went away")
                got += count
        moved = messages * self._message_bytes
        return Rate(moved, time.perf_counter() - start_s, time.process_time() - cpu_s)

    def close(self) -> None:
        """Ends the peer."""
        self._socket.close()
        self._process.wait(_SOCKET_TIMEOUT_S)


_PEER = """
import socket, sys
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
message = memoryview(bytearray(b"x") * int(sys.argv[2]))
while request := peer.recv(8, socket.MSG_WAITALL):
    for _ in range(int.from_bytes(request, "little")):
        peer.sendall(message)
"""


def _read_fully(fd: int, offset: int, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        got = os.preadv(fd, [buffer[done:]], offset + done)
        if got == 0:
            raise OSError("the file ends before the extent does")
        done += got
