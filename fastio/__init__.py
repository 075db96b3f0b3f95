"""fastio: exactly shuffled records from LMDB and Arrow data, at the speed of the device.

This package is the engine and the vocabulary that daemon and client share. Importing it loads numpy and the standard
library; everything below is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastio.errors import (
    ClosedError,
    ErrorKind,
    FastioError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    RequestError,
    StoreError,
    UnavailableError,
)
from fastio.spec import FieldSpec, OrderSpec, StreamSpec

if TYPE_CHECKING:
    from fastio.dataset import Dataset, open_dataset
    from fastio.formats.base import IndexOptions
    from fastio.writer import Writer

    __version__: str

__all__ = [
    "ClosedError",
    "Dataset",
    "ErrorKind",
    "FastioError",
    "FieldSpec",
    "IndexOptions",
    "LocalProtocolError",
    "OrderSpec",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestError",
    "StoreError",
    "StreamSpec",
    "UnavailableError",
    "Writer",
    "__version__",
    "open_dataset",
]

_HOME = {
    "Dataset": "fastio.dataset",
    "IndexOptions": "fastio.formats.base",
    "Writer": "fastio.writer",
    "open_dataset": "fastio.dataset",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fastio")
    if name not in _HOME:
        raise AttributeError(f"module 'fastio' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
