"""What lies at a path: the format, and its shards in order. Looks at names and first bytes, opens no shard."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastio.errors import ErrorKind, StoreError
from fastio.formats.huggingface import huggingface_shards
from fastio.formats.sniff import describe_head, open_for_reading

__all__ = ["FormatName", "Found", "find_shards", "natural_key"]

FormatName = Literal["arrow", "lmdb"]

_MANIFEST = "fastio-manifest.json"
_READS = "fastio reads Arrow IPC files and streams, Hugging Face datasets and LMDB environments"
_ARROW_SUFFIXES = frozenset({".arrow", ".arrows", ".feather", ".ipc"})
_LMDB_DATA, _LMDB_LOCKS = "data.mdb", ("lock.mdb", "-lock")
# Looking into a million foreign files takes minutes; after this many without a single shard the answer is clear.
_MAX_FOREIGN_FILES = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """What a path is.

    Attributes:
        format: of all shards.
        layout: what was recognised, and why.
        paths: the shards, in order.
        records: how many each must have, where a manifest says so.
    """

    format: FormatName
    layout: str
    paths: tuple[Path, ...]
    records: tuple[int, ...] | None = None


def natural_key(relative: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorts paths with numbers as numbers; names that differ only in leading zeros keep their byte order.

    >>> sorted(["b/10.arrow", "b/9.arrow", "a/1.arrow"], key=natural_key)
    ['a/1.arrow', 'b/9.arrow', 'b/10.arrow']
    """
    pieces = re.findall(r"[0-9]+|[^0-9/]+|/", relative)
    # A separator sorts before everything, so that directories stay together.
    key = ((0, 0, "") if p == "/" else (1, int(p), "") if p[0] in "0123456789" else (2, 0, p) for p in pieces)
    return tuple(key), relative


def find_shards(path: Path) -> Found:
    """What lies at ``path``.

    Raises:
        StoreError: nothing is there (MISSING), it can't be read (UNREADABLE), holds nothing (EMPTY) or nothing that
            fastio reads (NOT_A_DATASET), or holds several datasets (UNSUPPORTED_LAYOUT).
    """
    if not path.exists():
        raise StoreError(f"{path} does not exist", kind=ErrorKind.MISSING)
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        # Opening a pipe or a device would wait for whoever is at its other end.
        raise StoreError(f"{path} is neither a file nor a directory. {_READS}", kind=ErrorKind.NOT_A_DATASET)
    if (path / _MANIFEST).is_file():
        return _manifest(path)
    saved = huggingface_shards(path)
    if saved is not None:
        return Found("arrow", saved.layout, saved.paths)
    if _is_environment(path):
        return Found("lmdb", "LMDB environment (a directory with data.mdb)", (path,))
    return _directory(path)


def _file(path: Path) -> Found:
    form = _format_of(path)
    if form is not None:
        what = "single-file LMDB environment" if form == "lmdb" else "Arrow file, by its first bytes"
        return Found(form, what, (path,))
    fd = open_for_reading(path)
    try:
        head = os.pread(fd, 512, 0)
    finally:
        os.close(fd)
    raise StoreError(f"{path} is {describe_head(head)}. {_READS}", kind=ErrorKind.NOT_A_DATASET)


def _format_of(path: Path) -> FormatName | None:
    """What a single file is. A name that promises Arrow is believed, and checked when the file is opened."""
    from fastio.formats.arrow import is_arrow
    from fastio.formats.lmdb import is_lmdb

    if path.suffix in _ARROW_SUFFIXES or is_arrow(path):
        return "arrow"
    return "lmdb" if is_lmdb(path) else None


def _is_environment(path: Path) -> bool:
    from fastio.formats.lmdb import is_lmdb

    return (path / _LMDB_DATA).is_file() and is_lmdb(path)


def _manifest(path: Path) -> Found:
    place = path / _MANIFEST
    try:
        manifest = json.loads(place.read_text(encoding="utf-8"))
        entries = [(str(shard["path"]), int(shard["records"])) for shard in manifest["shards"]]
    except OSError as error:
        raise StoreError(f"{place} can't be read: {error.strerror}", kind=ErrorKind.UNREADABLE) from error
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{place} is no manifest of shards ({error!r})", kind=ErrorKind.CORRUPT) from error
    if not entries:
        raise StoreError(f"{place} lists no shards: the dataset is empty", kind=ErrorKind.EMPTY)
    paths = tuple(_inside(path, name) for name, _ in entries)
    form = _manifest_format(manifest, paths[0])
    return Found(form, f"fastio dataset ({_MANIFEST} lists its shards)", paths, tuple(count for _, count in entries))


def _inside(path: Path, name: str) -> Path:
    shard = path / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise StoreError(f"{path / _MANIFEST} names {name!r}, outside of its directory", kind=ErrorKind.CORRUPT)
    if not shard.is_file() and not shard.is_dir():
        raise StoreError(f"{path / _MANIFEST} lists {name}, which is not there", kind=ErrorKind.MISSING)
    return shard.parent if shard.name == _LMDB_DATA else shard


def _manifest_format(manifest: Any, first: Path) -> FormatName:
    named = manifest.get("format")
    if named in ("arrow", "lmdb"):
        return "arrow" if named == "arrow" else "lmdb"
    found = "lmdb" if first.is_dir() else _format_of(first)
    if found is None:
        raise StoreError(f"{first} is nothing that fastio reads. {_READS}", kind=ErrorKind.NOT_A_DATASET)
    return "arrow" if found == "arrow" else "lmdb"


@dataclass(slots=True)
class _Listing:
    """What a walk over a directory met."""

    arrow: list[Path] = field(default_factory=list)
    lmdb: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)

    def add(self, path: Path, form: FormatName | None) -> None:
        (self.foreign if form is None else self.arrow if form == "arrow" else self.lmdb).append(path)


def _directory(path: Path) -> Found:
    listing = _Listing()
    for entry in _walk(path, path, set()):
        listing.add(entry, "lmdb" if entry.is_dir() else _format_of(entry))
        if len(listing.foreign) >= _MAX_FOREIGN_FILES and not listing.arrow and not listing.lmdb:
            break
    if listing.arrow and listing.lmdb:
        raise StoreError(
            f"{path} holds both Arrow files ({listing.arrow[0].name}, ...) and LMDB environments "
            f"({listing.lmdb[0].name}, ...); open one of the two, or keep them in directories of their own",
            kind=ErrorKind.UNSUPPORTED_LAYOUT,
        )
    shards = listing.arrow or listing.lmdb
    if not shards:
        raise _nothing(path, listing.foreign)
    ordered = tuple(sorted(shards, key=lambda shard: natural_key(str(shard.relative_to(path)))))
    what = f"{len(ordered)} {'Arrow files' if listing.arrow else 'LMDB environments'}"
    passed = f"; {len(listing.foreign)} other files passed over" if listing.foreign else ""
    return Found("arrow" if listing.arrow else "lmdb", f"directory of {what}, by relative path{passed}", ordered)


def _nothing(path: Path, foreign: list[Path]) -> StoreError:
    if not foreign:
        return StoreError(f"{path} is empty: no files were found in it. {_READS}", kind=ErrorKind.EMPTY)
    some = ", ".join(sorted(str(one.relative_to(path)) for one in foreign[:3]))
    count = f"the first {len(foreign)}" if len(foreign) >= _MAX_FOREIGN_FILES else str(len(foreign))
    text = f"{path} is not a dataset: none of {count} files in it ({some}, ...) is one. {_READS}"
    return StoreError(text + "; `fastio pack` converts images, Parquet, CSV and JSONL", kind=ErrorKind.NOT_A_DATASET)


def _walk(root: Path, path: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Files, and directories that are LMDB environments, at any depth. Links are followed, but nothing twice."""
    try:
        status = path.stat()
        entries = sorted(os.scandir(path), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        raise StoreError(f"{path} can't be listed: {error.strerror}", kind=ErrorKind.UNREADABLE) from error
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        here = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if _is_environment(here):
                yield here
            else:
                yield from _walk(root, here, seen)
        elif entry.is_file() and not entry.name.endswith(_LMDB_LOCKS):
            yield here
