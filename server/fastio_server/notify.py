"""Tells systemd how the service is doing, when systemd asked for it (``NOTIFY_SOCKET``)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

__all__ = ["notify"]


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Sends ``state`` (such as ``READY=1``) to the service manager; False where there is none or it does not listen.

    The address is a path, or an abstract name where it begins with ``@`` (see sd_notify(3)).
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            return False  # a manager that went away is no reason to stop serving
    return True
