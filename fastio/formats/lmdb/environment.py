"""Who holds which LMDB environment open in this process?

LMDB must not open one environment twice in a process, so all shards share the handles in this registry; each has its
own read transaction, which keeps a writer from recycling the pages that the shard's extents point at. After a fork the
child starts with an empty registry and never touches what it inherited: ending an inherited transaction would clear
the parent's entry in the lock file and take away its protection. (Dropping the last reference is harmless: py-lmdb
looks at the process id before it frees.)
"""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Hold", "hold_snapshot", "hold_statistics"]

# An environment takes two descriptors and two maps. An eighth of the descriptors, so that a quarter goes here, and a
# bound for processes that may open any number, far below the 65,530 maps a process may have.
_MAX_HELD = 4096
_OWN_SHARE = 8
_MAP_ROOM_BYTES = 1 << 30


@dataclass(slots=True)
class _Environment:
    env: Any
    locked: bool
    users: int = 0


@dataclass(slots=True)
class _Registry:
    pid: int
    environments: dict[tuple[int, int], _Environment]


_lock = threading.Lock()
_registry = _Registry(os.getpid(), {})
os.register_at_fork(after_in_child=lambda: _after_fork())


class Hold:
    """A read transaction on one snapshot of an environment.

    Attributes:
        inode: which file this is about.
        txn_id: the snapshot's; None if LMDB could not open the environment.
        protects: the snapshot's pages stay as they are until :meth:`release`, whatever others write.
        note: why it does not protect, or could not be opened; else empty.
    """

    def __init__(self, key: tuple[int, int], shared: _Environment | None, txn: Any, note: str) -> None:
        self._key, self._shared, self._txn = key, shared, txn
        self._pid = os.getpid()
        self.inode = key[1]
        self.txn_id: int | None = None if txn is None else txn.id()
        self.protects = txn is not None and not note
        self.note = note

    def __repr__(self) -> str:
        return f"<Hold of snapshot {self.txn_id}, {'protecting' if self.protects else self.note}>"

    @property
    def transaction(self) -> Any:
        """The py-lmdb transaction, whose results are buffers; None if there is none."""
        return self._txn

    @property
    def environment(self) -> Any:
        """The py-lmdb environment; None if there is none."""
        return None if self._shared is None else self._shared.env

    @property
    def max_key_bytes(self) -> int:
        """The longest key that LMDB lets itself be asked for."""
        return 0 if self._shared is None else int(self._shared.env.max_key_size())

    def release(self) -> None:
        """Ends the transaction. Nothing happens the second time, or in a process that only inherited it."""
        txn, shared = self._txn, self._shared
        self._txn = self._shared = None
        self.protects = False
        if shared is None or self._pid != os.getpid():
            return
        if txn is not None:
            txn.abort()
        with _lock:
            shared.users -= 1
            if not shared.users:
                del _registry.environments[self._key]
                shared.env.close()


def hold_snapshot(data: Path, by_directory: bool) -> Hold:
    """Begins a read transaction on the newest snapshot of the environment whose data file is ``data``.

    Never raises for what LMDB refuses: the answer then has no transaction, and says why. The file's meta pages must
    have been checked before, since LMDB may end the process on a damaged file.
    """
    import lmdb

    status = os.stat(data)
    key = (status.st_dev, status.st_ino)
    with _lock:
        shared = _registry.environments.get(key)
        if shared is None:
            try:
                shared = _open(data.parent if by_directory else data, by_directory, status.st_size)
            except lmdb.Error as error:
                return Hold(key, None, None, f"LMDB cannot open it: {error}")
            _registry.environments[key] = shared
        shared.users += 1
        held = len(_registry.environments)
    try:
        txn = _begin(shared.env)
    except lmdb.Error as error:
        hold = Hold(key, shared, None, f"LMDB cannot read it: {error}")
        hold.release()
        return hold
    # On a read-only file system LMDB goes on without a lock file; it has no readers then, not even this one.
    locked = shared.locked and shared.env.info()["num_readers"] > 0
    note = "" if locked else "the file system allows no locks"
    if held > _limit():
        note = f"more than {_limit()} environments are open"
    return Hold(key, shared, txn, note)


def hold_statistics() -> dict[str, int]:
    """How many environments this process holds open, for how many shards, and how many it would hold."""
    with _lock:
        users = sum(shared.users for shared in _registry.environments.values())
        return {"environments": len(_registry.environments), "shards": users, "limit": _limit()}


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_HELD if soft == resource.RLIM_INFINITY else max(4, min(_MAX_HELD, soft // _OWN_SHARE))


def _open(place: Path, by_directory: bool, size_bytes: int) -> _Environment:
    import lmdb

    # Writers may make the file grow while it is open here, and a map cannot grow while a transaction uses it. Addresses
    # cost nothing.
    options: dict[str, Any] = {"map_size": 2 * size_bytes + _MAP_ROOM_BYTES, "readahead": False, "create": False}
    options |= {"subdir": by_directory, "readonly": True}
    try:
        env = lmdb.open(os.fspath(place), lock=True, **options)
    except lmdb.Error:
        # A read-only or remote place may refuse the lock file; the data may be readable all the same.
        return _Environment(lmdb.open(os.fspath(place), lock=False, **options), locked=False)
    return _Environment(env, locked=True)


def _begin(env: Any) -> Any:
    import lmdb

    try:
        return env.begin(buffers=True)
    except lmdb.ReadersFullError:
        env.reader_check()  # processes that were killed leave their entries in the table of readers
        return env.begin(buffers=True)


def _after_fork() -> None:
    global _lock, _registry
    _lock = threading.Lock()
    _registry = _Registry(os.getpid(), {})
