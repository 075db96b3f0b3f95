"""Where does what was learnt about a shard stay, so that the next open need not learn it again?

A *sidecar* is one file: a header, named arrays one after another (each on a 64-byte boundary, the first at
:data:`FIRST_SECTION_OFFSET`), and a JSON table of contents with the *identity* of the data it describes. It is read by
mapping it, and replaced only as a whole: written under a temporary name, fsynced, renamed. Several processes may build
the same sidecar at once: the first to finish stores it and the others use that one. A sidecar that is missing,
damaged, of another version or of another identity is simply not there: :func:`load_sidecar` answers None and the
caller builds it.
It knows nothing of formats, and nothing in it executes when it is read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from fastio.errors import ErrorKind, StoreError
from fastio.formats.base import FileRef
from fastio.formats.spool import Spool, naming_place

__all__ = ["FIRST_SECTION_OFFSET", "Sidecar", "SidecarWriter", "load_sidecar", "sidecar_path"]

# Where the first array appended begins in every sidecar. Writers that store offsets into the sidecar itself (keys
# served from it) append that array first and count from here.
FIRST_SECTION_OFFSET = 64

_MAGIC = b"FASTIDX\0"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQ")  # magic, version, crc32 of the contents, their offset and length, file length
_MAX_NAME_BYTES = 200  # a file name may have 255; the rest is for the suffixes
# Below this a sidecar is read rather than mapped: a process may have some 65,000 maps (vm.max_map_count), and a
# directory of many small shards would use them up.
_MAP_FROM_BYTES = 64 << 10


def sidecar_path(data: Path, directory: Path | None = None) -> Path:
    """Where the sidecar of ``data`` goes: ``directory`` if given, else ``.fastio/`` beside the data if that can be
    written (or already holds the sidecar), else the user's cache directory. Creates nothing.
    """
    resolved = data.resolve()
    digest = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:24]
    if directory is not None:
        return directory / f"{_short(data.name)}-{digest}.idx"
    folder = data.parent / ".fastio"
    place = folder if folder.is_dir() else data.parent
    beside = folder / f"{_short(data.name)}.idx"
    if os.access(place, os.W_OK | os.X_OK):
        return beside
    cached = _cache_directory() / f"{digest}.idx"
    return beside if beside.exists() and not cached.exists() else cached


def load_sidecar(path: Path, identity: dict[str, Any]) -> Sidecar | None:
    """The sidecar at ``path`` if it describes exactly ``identity``; None if it is missing, stale, damaged or of
    another version. Reads the header and the contents, not the arrays.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path, _plain(identity))
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        # Whatever is wrong with an index, building it anew puts it right.
        return None


class Sidecar:
    """A sidecar that was read: named read-only arrays, mapped from the file.

    Attributes:
        path: the file; for one that could not be stored, a name under /proc that this process can open.
        meta: what the writer left beside the arrays; plain JSON values.

    Arrays stay valid after :meth:`close` and after the file has been replaced, for as long as they are referenced.
    """

    def __init__(self, path: Path, contents: dict[str, Any], buffer: Any, ref: FileRef, owned_fd: int = -1) -> None:
        self.path = path
        self.meta: dict[str, Any] = contents["meta"]
        self._sections: dict[str, dict[str, Any]] = contents["sections"]
        self._buffer = buffer
        self._ref = ref
        self._owned_fd = owned_fd

    def __repr__(self) -> str:
        return f"Sidecar({str(self.path)!r}, sections={sorted(self._sections)})"

    def __contains__(self, name: str) -> bool:
        return name in self._sections

    def array(self, name: str) -> npt.NDArray[Any]:
        """The array appended as ``name``; read-only, backed by the file. KeyError if there is none."""
        section = self._sections[name]
        dtype, shape = np.dtype(section["dtype"]), tuple(section["shape"])
        flat = np.frombuffer(self._buffer, dtype=dtype, count=int(np.prod(shape)), offset=section["offset"])
        return flat.reshape(shape)

    def section_offset(self, name: str) -> int:
        """Where the array ``name`` begins in the file, in bytes."""
        return int(self._sections[name]["offset"])

    def file_ref(self) -> FileRef:
        """The file as it was when it was read."""
        return self._ref

    def pin(self) -> bool:
        """Keeps this very file within reach of :meth:`file_ref`, by a name under /proc, also when others replace it:
        for fields that are served from it. Takes a descriptor until :meth:`close`. False if it was replaced already.
        """
        if self._owned_fd >= 0:
            return True
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        status = os.fstat(fd)
        if (status.st_size, status.st_mtime_ns) != (self._ref.size_bytes, self._ref.mtime_ns):
            os.close(fd)
            return False
        self._owned_fd = fd
        self._ref = FileRef(Path(f"/proc/{os.getpid()}/fd/{fd}"), status.st_size, status.st_mtime_ns)
        return True

    def close(self) -> None:
        """Lets go of the file's descriptor, if it is pinned or lives in memory."""
        if self._owned_fd >= 0:
            os.close(self._owned_fd)
            self._owned_fd = -1


class SidecarWriter:
    """Writes a sidecar: append chunks to named arrays, in any order; leave the ``with`` block to commit.

    Memory is bounded by a few MiB per array; larger ones wait in unnamed temporary files beside the target. Leaving
    by an exception leaves nothing behind. Not for use from several threads.

    Args:
        path: the file to replace; None for a sidecar in memory, for data whose index cannot be stored anywhere.
        identity: what the data looked like when it was read; plain JSON values, compared as a whole when loading.
        meta: anything small to be read back; may be filled in until the commit.

    Attributes:
        sidecar: after the commit, the sidecar as :func:`load_sidecar` would return it; another process's, if that
            one stored the same identity first.

    Raises:
        StoreError: DISK_FULL if there is no room, IO if the place cannot be written.
    """

    sidecar: Sidecar

    def __init__(self, path: Path | None, identity: dict[str, Any], meta: dict[str, Any] | None = None) -> None:
        self.path = path
        self.meta = {} if meta is None else meta
        self._identity = identity
        self._spools: dict[str, Spool] = {}

    def append(self, name: str, chunk: npt.NDArray[Any]) -> None:
        """Adds the rows of ``chunk`` (booleans or numbers) to the array ``name``. The chunk may be kept until the
        commit: do not change it.
        """
        if chunk.dtype.kind not in "biuf":
            raise TypeError(f"array {name!r} must hold booleans or numbers, got {chunk.dtype}")
        directory = None if self.path is None else self.path.parent
        with naming_place(self.path):
            self._spools.setdefault(name, Spool(directory)).append(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with naming_place(self.path):
                    self.sidecar = self._commit_in_memory() if self.path is None else self._commit(self.path)
        finally:
            for spool in self._spools.values():
                spool.close()

    def _commit(self, path: Path) -> Sidecar:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(path.parent):
            # Replacing a sidecar that is as good would pull it away from under those who have just opened it.
            return load_sidecar(path, self._identity) or self._replace(path)

    def _replace(self, path: Path) -> Sidecar:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("x+b") as file:
                self._write(file)
                os.fsync(file.fileno())
                os.replace(temporary, path)
                file.seek(0)
                return _read(file, path, _plain(self._identity)) or _unreachable()
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _commit_in_memory(self) -> Sidecar:
        handle = os.memfd_create("fastio-index")
        try:
            with open(handle, "w+b", closefd=False) as file:
                self._write(file)
                file.seek(0)
                path = Path(f"/proc/{os.getpid()}/fd/{handle}")
                return _read(file, path, _plain(self._identity), owned_fd=handle) or _unreachable()
        except BaseException:
            os.close(handle)
            raise

    def _write(self, file: IO[bytes]) -> None:
        sections: dict[str, dict[str, Any]] = {}
        file.write(bytes(FIRST_SECTION_OFFSET))
        for name, spool in self._spools.items():
            offset = file.tell()
            spool.copy_to(file)
            file.write(bytes(-file.tell() % 64))
            dtype = spool.dtype or np.dtype(np.uint8)
            sections[name] = {"offset": offset, "dtype": dtype.str, "shape": [len(spool), *spool.row_shape]}
        contents = {"identity": self._identity, "meta": self.meta, "sections": sections}
        text = json.dumps(contents).encode()
        start = file.tell()
        file.write(text)
        end = file.tell()
        file.seek(0)
        file.write(_HEADER.pack(_MAGIC, _VERSION, zlib.crc32(text), start, len(text), end))
        file.flush()


def _read(file: IO[bytes], path: Path, identity: dict[str, Any], owned_fd: int = -1) -> Sidecar | None:
    status = os.fstat(file.fileno())
    magic, version, crc, start, length, end = _HEADER.unpack(file.read(_HEADER.size))
    if (magic, version, end) != (_MAGIC, _VERSION, status.st_size) or start + length != end:
        return None
    file.seek(start)
    text = file.read(length)
    if zlib.crc32(text) != crc:
        return None
    contents = json.loads(text)
    if contents["identity"] != identity or not all(_inside(s, start) for s in contents["sections"].values()):
        return None
    buffer: Any
    if end < _MAP_FROM_BYTES:
        file.seek(0)
        buffer = file.read(end)
    else:
        buffer = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    return Sidecar(path, contents, buffer, FileRef(path, status.st_size, status.st_mtime_ns), owned_fd)


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Lets one process at a time store sidecars in a directory. Where a file system has no such locks, all may."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _inside(section: dict[str, Any], end: int) -> bool:
    dtype, shape = np.dtype(section["dtype"]), section["shape"]
    fits = section["offset"] >= FIRST_SECTION_OFFSET and min(shape) >= 0
    return fits and dtype.kind in "biuf" and section["offset"] + dtype.itemsize * int(np.prod(shape)) <= end


def _plain(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity as it comes back from JSON (tuples become lists), so that the two can be compared."""
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def _short(name: str) -> str:
    raw = os.fsencode(name)
    return name if len(raw) <= _MAX_NAME_BYTES else hashlib.sha256(raw).hexdigest()[:32]


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fastio"


def _unreachable() -> Sidecar:
    raise StoreError("a sidecar just written does not read back; please report this", kind=ErrorKind.INTERNAL)
