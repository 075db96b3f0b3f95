"""The directory in which a dataset is being written, until it is one.

A dataset appears at its path by one rename, after every byte of it was made durable. Until then it lives in a hidden
directory inside ``<path>.partial``, so that nothing takes its shards for a dataset. A run that was killed leaves it
behind: the next run refuses it by name, or clears it away when told to overwrite. Whether a run is still at it is
told by a lock that dies with its process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastio.errors import ErrorKind, FastioError, StoreError
from fastio.writer.manifest import MANIFEST_NAME, Manifest

__all__ = ["PartialDirectory", "store_errors"]

_LOCK_NAME = ".writing"
_DATA_NAME = ".data"
# EFBIG is what a file-size limit of the process says: no room either, and the same remedy.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def store_errors(path: Path, wanted: str) -> Iterator[None]:
    """Turns the operating system's refusal to ``wanted`` (such as "write") at ``path`` into a StoreError."""
    try:
        yield
    except FastioError:
        raise
    except OSError as error:
        if error.errno in _NO_ROOM:
            message = f"no room to {wanted} {path}: {os.strerror(error.errno or 0)}; free some, or write elsewhere"
            raise StoreError(message, kind=ErrorKind.DISK_FULL) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StoreError(f"cannot {wanted} {path}: {reason}", kind=ErrorKind.IO) from error


class PartialDirectory:
    """``<target>.partial`` from :meth:`create` to :meth:`publish` or :meth:`discard`.

    Attributes:
        target: where the dataset will be.
        path: the directory that stands for it until then.
        data: where its shards go; it becomes the target.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".partial")
        self.data = self.path / _DATA_NAME
        self._overwrite = overwrite
        self._lock = -1

    def __repr__(self) -> str:
        return f"PartialDirectory({str(self.path)!r})"

    def create(self) -> None:
        """Makes the directory and takes its lock.

        Raises:
            StoreError: something is at the target already, or another run is or was at work there.
        """
        self._refuse_target()
        with store_errors(self.path, "create"):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._clear_leftover()
            try:
                self.path.mkdir()
            except FileExistsError:
                self._refuse_live()
            self._lock = self._locked()
            self.data.mkdir()

    def publish(self, manifest: Manifest) -> None:
        """Writes the manifest, makes everything durable, and renames the directory to its target."""
        with store_errors(self.path, "finish"):
            (self.data / MANIFEST_NAME).write_text(manifest.to_json())
            for found in [*self.data.rglob("*"), self.data]:
                _sync(found)
            self._rename()
            _sync(self.target.parent)
        self.discard()

    def discard(self) -> None:
        """Removes what was not published. Safe to call twice, and after a failed :meth:`publish`."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def _rename(self) -> None:
        """Two renames when something is replaced: killed between them, both versions exist whole, under other names."""
        if not self._holds_something():
            with suppress(FileNotFoundError):
                self.target.rmdir()
            os.rename(self.data, self.target)
            return
        replaced = self.target.with_name(self.target.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(self.target, replaced)
        os.rename(self.data, self.target)
        shutil.rmtree(replaced, ignore_errors=True)

    def _holds_something(self) -> bool:
        return self.target.is_dir() and any(self.target.iterdir())

    def _refuse_target(self) -> None:
        if not self.target.exists() or (self.target.is_dir() and not self._holds_something()):
            return
        # Overwriting removes a whole directory: never one that this writer did not make.
        ours = (self.target / MANIFEST_NAME).is_file()
        if self._overwrite and ours:
            return
        remedy = "fastio did not write it: remove it, or write elsewhere"
        if ours:
            remedy = "overwrite=True (--overwrite) replaces it"
        raise StoreError(f"{self.target} exists already; {remedy}", kind=ErrorKind.ALREADY_EXISTS)

    def _clear_leftover(self) -> None:
        if not (self.path / _LOCK_NAME).exists() and any(self.path.iterdir()):
            message = f"{self.path} is in the way and was not left by fastio; move it"
            raise StoreError(message, kind=ErrorKind.ALREADY_EXISTS)
        os.close(self._locked())  # refuses while another run is alive
        if not self._overwrite:
            message = (
                f"{self.path} was left by a run that did not finish; remove it (rm -r {shlex.quote(str(self.path))}) "
                "or use overwrite=True (--overwrite)"
            )
            raise StoreError(message, kind=ErrorKind.ALREADY_EXISTS)
        shutil.rmtree(self.path)

    def _locked(self) -> int:
        descriptor = os.open(self.path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            self._refuse_live()
        return descriptor

    def _refuse_live(self) -> None:
        message = f"another process is writing {self.target} right now; wait for it, or write elsewhere"
        raise StoreError(message, kind=ErrorKind.ALREADY_EXISTS)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
