"""fastio's client: batches of exactly shuffled records, as arrays, from a daemon or from a path.

>>> from fastio_client import Loader
>>> Loader("fastio://storage:9470/imagenet", batch_size=256)  # connects when it is first used
<Loader fastio://storage:9470/imagenet rank 0 of 1, ready at step 0 of epoch 0>

With PyTorch use :class:`fastio_client.torch.RemoteDataset`. Importing this package loads NumPy and the standard
library; everything below is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastio_client.batch import Batch
    from fastio_client.loader import Loader
    from fastio_client.ragged import Ragged
    from fastio_client.statistics import LoaderStatistics

__all__ = ["Batch", "Loader", "LoaderStatistics", "Ragged"]

_HOME = {
    "Batch": "fastio_client.batch",
    "Loader": "fastio_client.loader",
    "LoaderStatistics": "fastio_client.statistics",
    "Ragged": "fastio_client.ragged",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastio_client' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
