"""How does an array grow whose length nobody knows yet, without filling the memory?"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fastio.errors import ErrorKind, StoreError

__all__ = ["Spool", "naming_place"]

# An array is kept in memory up to here, then spilled to an unnamed temporary file.
_SPILL_BYTES = 8 << 20
_COPY_BYTES = 8 << 20


class Spool:
    """An array that grows at its end: in memory while it is small, then in an unnamed temporary file.

    Args:
        directory: where the temporary file goes; None keeps everything in memory.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._pending: list[npt.NDArray[Any]] = []
        self._pending_bytes = 0
        self._file: IO[bytes] | None = None
        self._rows = 0
        self.dtype: np.dtype[Any] | None = None
        self.row_shape: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self._rows

    def append(self, chunk: npt.NDArray[Any]) -> None:
        """Adds the rows of ``chunk``. The chunk is kept, not copied: the caller must not change it afterwards."""
        if self.dtype is None:
            self.dtype, self.row_shape = chunk.dtype.newbyteorder("<"), chunk.shape[1:]
        if chunk.shape[1:] != self.row_shape or not np.can_cast(chunk.dtype, self.dtype, "safe"):
            raise TypeError(f"cannot append {chunk.dtype}{chunk.shape} to rows of {self.dtype}{self.row_shape}")
        self._pending.append(np.ascontiguousarray(chunk, dtype=self.dtype))
        self._pending_bytes += chunk.nbytes
        self._rows += len(chunk)
        if self._directory is not None and self._pending_bytes > _SPILL_BYTES:
            self._spill(self._directory)

    def array(self) -> npt.NDArray[Any]:
        """All rows so far, read-only: mapped if they were spilled, else concatenated in memory."""
        dtype, shape = self.dtype or np.dtype(np.uint8), (self._rows, *self.row_shape)
        if self._file is None:
            out = np.concatenate(self._pending) if self._pending else np.empty(shape, dtype=dtype)
            self._pending = [out]
        else:
            assert self._directory is not None
            self._spill(self._directory)
            mapped = mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ)
            out = np.frombuffer(mapped, dtype=dtype).reshape(shape)
        view = out.view()
        view.flags.writeable = False
        return view

    def copy_to(self, out: IO[bytes]) -> None:
        """Writes all rows to ``out``, a bounded piece at a time."""
        if self._file is not None:
            self._file.seek(0)
            while piece := self._file.read(_COPY_BYTES):
                out.write(piece)
        for chunk in self._pending:
            out.write(chunk.reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Frees the memory and the temporary file. Arrays handed out stay valid."""
        self._pending = []
        if self._file is not None:
            self._file.close()

    def _spill(self, directory: Path) -> None:
        if self._file is None:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by close()
        self._file.seek(0, os.SEEK_END)
        for chunk in self._pending:
            self._file.write(chunk.reshape(-1).view(np.uint8).data)
        self._file.flush()
        self._pending, self._pending_bytes = [], 0


@contextmanager
def naming_place(path: Path | None) -> Iterator[None]:
    """Turns the errors of storing an index at ``path`` (None: in memory) into a StoreError that says where."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        where = "in memory" if path is None else f"at {path}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"no room for the index {where}: free some space, or give another directory for indexes"
            raise StoreError(message, kind=ErrorKind.DISK_FULL) from error
        message = f"cannot store the index {where} ({error.strerror}): give another directory for indexes"
        raise StoreError(message, kind=ErrorKind.IO) from error
