"""Which snapshot does an LMDB file hold? Reads the two meta pages, and nothing behind them.

Both formats that LMDB writes are known: 0.9 (data version 1, page headers of 16 bytes) and 1.0 (data version 3, 24
bytes). The page size and all else comes from the meta page. LMDB files are written in the byte order and word size of
the machine; only 64-bit little-endian ones are read here.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from fastio.errors import ErrorKind, StoreError

__all__ = ["LmdbFile", "Snapshot", "corrupt", "has_magic", "locate", "read_snapshots"]

_MAGIC = 0xBEEFC0DE
_META_PAGE_FLAG = 0x08
_NO_PAGE = (1 << 64) - 1
_DUPSORT = 0x04
_ENCRYPTED = 0x2000
_MAX_DEPTH = 32  # of the cursor stack of LMDB itself
# data version by the bytes before the magic number, which is the size of a page header
_VERSIONS = {16: 1, 24: 3}
_NAMES = {16: "0.9", 24: "1.0"}
_WORD_32_HEADER_BYTES = 12
# magic, version, address, map size | free: page size, flags, depth, 5 counts | main: the same | last page, txn id
_META = struct.Struct("<IIQQ IHHQQQQQ IHHQQQQQ QQ")


@dataclass(frozen=True, slots=True)
class LmdbFile:
    """An LMDB data file, opened for reading pages; the size is that when it was opened."""

    path: Path
    fd: int
    size_bytes: int
    mtime_ns: int
    inode: int

    @classmethod
    def open(cls, path: Path) -> LmdbFile:
        """Opens the file for random reads.

        Raises:
            StoreError: it is missing or cannot be read.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StoreError(f"no such file: {path}", kind=ErrorKind.MISSING) from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}", kind=ErrorKind.UNREADABLE) from error
        file = cls(path, fd, 0, 0, 0).as_now()
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return file

    def as_now(self) -> LmdbFile:
        """The same open file with its present size and time."""
        status = os.fstat(self.fd)
        return LmdbFile(self.path, self.fd, status.st_size, status.st_mtime_ns, status.st_ino)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file; fewer at its end.

        Raises:
            StoreError: UNREADABLE.
        """
        try:
            return os.pread(self.fd, length, offset)
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror}", kind=ErrorKind.UNREADABLE) from error

    def close(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One committed state of an environment, as its meta page tells it.

    Attributes:
        header_bytes: bytes of a page header, 16 or 24, by which the two formats differ.
        page_base: what node pointers within a page count from.
        txn_id: the transaction that committed it.
        root: the main tree's root page; None if it is empty.
        ordered: keys are ordered as bytes from the first to the last.
        damaged_meta: the number of the other meta page if that one cannot be used.
    """

    header_bytes: int
    page_bytes: int
    txn_id: int
    last_page: int
    root: int | None
    depth: int
    entries: int
    leaf_pages: int
    ordered: bool
    damaged_meta: int | None = None

    @property
    def version(self) -> str:
        return _NAMES[self.header_bytes]

    @property
    def page_base(self) -> int:
        return 0 if self.header_bytes == 16 else self.header_bytes

    @property
    def even_keys(self) -> bool:
        """Whether the value begins at the next even byte after its key (1.0) or right after it (0.9)."""
        return self.header_bytes == 24


def locate(path: Path) -> tuple[Path, bool]:
    """The data file of the environment ``path`` (a directory with a ``data.mdb``, or a single file), and whether LMDB
    opens it by its directory.
    """
    if path.is_dir():
        return path / "data.mdb", True
    return path, path.name == "data.mdb"


def has_magic(path: Path) -> bool:
    """Whether the file begins like an LMDB file of any word size and byte order."""
    try:
        with path.open("rb", buffering=0) as file:
            return _find_magic(file.read(64)) is not None
    except OSError:
        return False


def read_snapshots(file: LmdbFile) -> list[Snapshot]:
    """The usable snapshots, newest first: one or two; none if the data version is one that only LMDB may know.

    Raises:
        StoreError: not an LMDB file, truncated, of another byte order or word size, encrypted, DUPSORT, or damaged in
            both meta pages.
    """
    header_bytes = _header_bytes(file)
    if header_bytes is None:
        return []
    first = file.read(0, header_bytes + _META.size)
    if len(first) < header_bytes + _META.size:
        raise _truncated(file, "its first page is not complete")
    page_bytes = struct.unpack_from("<I", first, header_bytes + 24)[0]
    if not 256 <= page_bytes <= 1 << 16 or page_bytes & (page_bytes - 1):
        raise corrupt(file.path, 0, f"it claims pages of {page_bytes} bytes")
    if file.size_bytes < 2 * page_bytes:
        raise _truncated(file, f"it has {file.size_bytes} bytes, less than its two meta pages of {page_bytes}")
    second = file.read(page_bytes, header_bytes + _META.size)
    found = [_parse(file, page, raw, header_bytes, page_bytes) for page, raw in enumerate((first, second))]
    usable = sorted((s for s in found if isinstance(s, Snapshot)), key=lambda s: -s.txn_id)
    if not usable:
        raise corrupt(file.path, 0, f"{found[0]}, and page 1: {found[1]}")
    damaged = next((page for page, one in enumerate(found) if isinstance(one, str)), None)
    return usable if damaged is None else [replace(one, damaged_meta=damaged) for one in usable]


def corrupt(path: Path, page: int, what: str) -> StoreError:
    """The error for a page that says what cannot be."""
    return StoreError(f"{path} is damaged at page {page}: {what}; restore it from a copy", kind=ErrorKind.CORRUPT)


def _truncated(file: LmdbFile, what: str) -> StoreError:
    return StoreError(f"{file.path} is truncated: {what}; restore it from a copy", kind=ErrorKind.TRUNCATED)


def _find_magic(head: bytes) -> tuple[int, str] | None:
    for offset in (16, 24, _WORD_32_HEADER_BYTES):
        for order in "<>":
            if len(head) >= offset + 4 and struct.unpack_from(order + "I", head, offset)[0] == _MAGIC:
                return offset, order
    return None


def _header_bytes(file: LmdbFile) -> int | None:
    """The size of page headers, or None if the file is LMDB's but of a version not known here."""
    head = file.read(0, 64)
    found = _find_magic(head)
    if found is None:
        message = f"{file.path} is not an LMDB file: no LMDB header in its first 64 bytes"
        if file.size_bytes == 0:
            message = f"{file.path} is empty: not an LMDB file"
        raise StoreError(message, kind=ErrorKind.NOT_A_DATASET)
    offset, order = found
    if order == ">" or offset not in _VERSIONS:
        wrote = "a big-endian" if order == ">" else "a 32-bit"
        message = f"{file.path} was written on {wrote} machine, whose LMDB files do not fit this one"
        remedy = "copy it there with mdb_dump and here with mdb_load"
        raise StoreError(f"{message}; {remedy}", kind=ErrorKind.UNSUPPORTED_LAYOUT)
    if len(head) < 64:
        raise _truncated(file, f"it has {len(head)} bytes")
    version = struct.unpack_from("<I", head, offset + 4)[0]
    return offset if version == _VERSIONS[offset] else None


def _parse(file: LmdbFile, page: int, raw: bytes, header_bytes: int, page_bytes: int) -> Snapshot | str:
    """The snapshot of one meta page, or what is wrong with the page. Refuses layouts that are not read at all."""
    flags = struct.unpack_from("<H", raw, header_bytes - 6)[0]
    magic, version, _, _, *numbers = _META.unpack_from(raw, header_bytes)
    psize, env_flags, *_ = numbers[:8]
    _, main_flags, depth, _, leaf_pages, _, entries, root = numbers[8:16]
    last_page, txn_id = numbers[16:]
    if (magic, version, psize) != (_MAGIC, _VERSIONS[header_bytes], page_bytes) or not flags & _META_PAGE_FLAG:
        return "it is not the meta page it should be"
    if env_flags & _ENCRYPTED and header_bytes == 24:
        message = f"{file.path} is encrypted, which is not supported; store a copy that is not"
        raise StoreError(message, kind=ErrorKind.UNSUPPORTED_LAYOUT)
    empty = root == _NO_PAGE
    if last_page >= 1 << 48 or (empty and entries) or (not empty and not (2 <= root <= last_page and entries)):
        return f"it claims {entries} entries under root page {root} of {last_page + 1} pages"
    if depth > _MAX_DEPTH or (depth == 0) != empty or entries > file.size_bytes or leaf_pages > last_page:
        return f"it claims {entries} entries and {leaf_pages} leaf pages in a tree of depth {depth}"
    if main_flags & _DUPSORT:
        message = f"{file.path} keeps several values per key (DUPSORT), which have no record numbers; copy it to an"
        raise StoreError(f"{message} environment with one value per key", kind=ErrorKind.UNSUPPORTED_LAYOUT)
    return Snapshot(
        header_bytes=header_bytes,
        page_bytes=page_bytes,
        txn_id=txn_id,
        last_page=last_page,
        root=None if empty else root,
        depth=depth,
        entries=entries,
        leaf_pages=leaf_pages,
        ordered=main_flags & 0x7FFF == 0,
    )
