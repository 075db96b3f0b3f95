"""Private daemons: a path on this machine is served to this process by a daemon of its own.

One daemon per dataset and process, shared by all loaders of the process, the same code as the standalone one. It ends
when the last loader closes, or when this process does, however that dies: its stdin is a pipe that only this process
holds. Forked children connect to their parent's daemon; where that is gone, and in spawned children, they start their
own.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, replace

from fastio.errors import ErrorKind, StoreError, error_from_wire
from fastio_client.address import Address

__all__ = ["Lease", "borrow", "give_up", "return_"]

# Closing its stdin ends a daemon within milliseconds, whatever it is doing.
_EXIT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Lease:
    """Where a private daemon listens, and what lets a connection in.

    Attributes:
        address: an abstract Unix socket, which has no file.
        token: made for this daemon alone; the socket can be reached by every user of the machine.
        inherited: the daemon belongs to the process this one was forked from.
    """

    address: Address
    token: str
    inherited: bool = False


@dataclass(slots=True)
class _Daemon:
    """A running daemon. ``process`` is None for one that belongs to the parent of this process."""

    lease: Lease
    process: subprocess.Popen[bytes] | None
    users: int = 0

    def alive(self) -> bool:
        return self.process is None or self.process.poll() is None

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


_daemons: dict[str, _Daemon] = {}
_lock = threading.Lock()


def borrow(data: Address, *, first: bool) -> Lease:
    """The daemon that serves ``data``, started if there is none or it has died.

    Args:
        data: of kind ``"path"``.
        first: this user has none yet, and will return it once.

    Raises:
        FastioError: the daemon's reason for not serving the path.
    """
    with _lock:
        daemon = _daemons.get(data.path)
        if daemon is None or not daemon.alive():
            users = 0 if daemon is None else daemon.users
            if daemon is not None:
                daemon.stop()
            daemon = _daemons[data.path] = _start(data)
            daemon.users = users
        daemon.users += first
        return daemon.lease


def return_(data: Address) -> None:
    """One user less; after the last the daemon is stopped."""
    with _lock:
        daemon = _daemons.get(data.path)
        if daemon is not None:
            daemon.users -= 1
            if daemon.users <= 0:
                del _daemons[data.path]
                daemon.stop()


def give_up(data: Address, lease: Lease) -> None:
    """Forgets an inherited daemon that does not answer any more, so that the next :func:`borrow` starts one."""
    with _lock:
        daemon = _daemons.get(data.path)
        if daemon is not None and daemon.lease is lease:
            users = daemon.users
            daemon = _daemons[data.path] = _start(data)
            daemon.users = users


def _start(data: Address) -> _Daemon:
    lease = Lease(replace(data, kind="unix", path=f"\0fastio-{secrets.token_hex(16)}"), secrets.token_hex(32))
    task = {"data": {data.dataset: data.path}, "token": lease.token, "address": lease.address.path[1:]}
    process = subprocess.Popen(
        [sys.executable, "-m", "fastio_server.embedded"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    daemon = _Daemon(lease, process)
    try:
        _await_ready(process, task)
    except BaseException:
        daemon.stop()
        raise
    return daemon


def _await_ready(process: subprocess.Popen[bytes], task: object) -> None:
    """Returns when the daemon serves; building an index for the first time may take minutes."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # what it has to say comes below
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.flush()
    line = process.stdout.readline()
    try:
        said = json.loads(line)
    except ValueError:
        said = {}
    if "error" in said:
        raise error_from_wire(said["error"]["kind"], said["error"]["message"])
    if not said.get("ready"):
        raise StoreError(
            f"the private daemon (python -m fastio_server.embedded) ended before it was ready, with status "
            f"{process.wait(_EXIT_TIMEOUT_S)}; its last words are above",
            kind=ErrorKind.INTERNAL,
        )


def _stop_all() -> None:
    with _lock:
        while _daemons:
            _daemons.popitem()[1].stop()


def _after_fork_in_child() -> None:
    """The daemons are the parent's: this process may connect to them, but must not keep them alive or end them."""
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    for daemon in _daemons.values():
        process, daemon.process = daemon.process, None
        daemon.lease = replace(daemon.lease, inherited=True)
        daemon.users = 0
        if process is not None:
            process.returncode = 0  # not ours to wait for
            _detach(process)


def _detach(process: subprocess.Popen[bytes]) -> None:
    """Lets go of the pipes. Their file objects are not closed: another thread may have been inside one at the fork, and
    would keep its lock for ever. The null device takes the place of what they refer to.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            os.dup2(null, pipe.fileno(), inheritable=False)
    os.close(null)


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
