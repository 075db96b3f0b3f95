"""Where the buffers of every record batch of one Arrow file lie: the value that scanning yields and sidecars keep.

Dimensions: R record batches, K nodes per batch (one per field, nested ones included), b buffers over all batches, V
view-typed fields, D dictionary messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastio.errors import StoreError
from fastio.extents import Int64Array
from fastio.formats.base import FileRef

if TYPE_CHECKING:
    from fastio.formats.sidecar import Sidecar

__all__ = ["ArrowIndex", "index_identity", "index_of", "store_index"]

# Raised whenever the meaning of what is stored changes: sidecars of other versions are rebuilt.
_VERSION = 1
_ARRAYS = ("rows_R", "body_R2", "nodes_RK2", "buffer_start_R1", "buffers_b2", "variadic_RV", "dictionaries_D4")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrowIndex:
    """Everything that has to be known about an Arrow file before its values are read.

    Attributes:
        form: IPC ``"file"`` or ``"stream"``.
        version: the metadata version (3 is V4, 4 is V5).
        schema: the schema message, its prefix included.
        rows_R: records of each batch.
        body_R2: (offset in the file, bytes) of each batch's body.
        nodes_RK2: (length, null count) of each node.
        buffer_start_R1: where each batch's buffers begin in ``buffers_b2``.
        buffers_b2: (offset **in the file**, bytes) of each buffer; checked to lie inside its body.
        variadic_RV: how many data buffers each view-typed field of a batch has.
        dictionaries_D4: (offset of the message, bytes of prefix and metadata, prefix bytes, batches before it).
    """

    form: Literal["file", "stream"]
    version: int
    schema: bytes
    rows_R: Int64Array
    body_R2: Int64Array
    nodes_RK2: Int64Array
    buffer_start_R1: Int64Array
    buffers_b2: Int64Array
    variadic_RV: Int64Array
    dictionaries_D4: Int64Array

    @property
    def records(self) -> int:
        return int(self.rows_R.sum())


def index_identity(ref: FileRef) -> dict[str, Any]:
    """What a stored index is an index of."""
    return {"format": "arrow", "version": _VERSION, "size_bytes": ref.size_bytes, "mtime_ns": ref.mtime_ns}


def index_of(sidecar: Sidecar) -> ArrowIndex:
    """The index a sidecar holds, in memory of its own: the sidecar is not needed any longer."""
    arrays = {name: np.array(sidecar.array(name)).reshape(sidecar.meta["shapes"][name]) for name in _ARRAYS}
    schema = sidecar.array("schema").tobytes()
    return ArrowIndex(form=sidecar.meta["form"], version=sidecar.meta["metadata_version"], schema=schema, **arrays)


def store_index(path: Path, ref: FileRef, index: ArrowIndex) -> bool:
    """Keeps the index for the next time the file is opened. False where it can't be stored, which is no error."""
    from fastio.formats.sidecar import SidecarWriter

    arrays = {name: getattr(index, name) for name in _ARRAYS}
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    meta = {"form": index.form, "metadata_version": index.version, "shapes": shapes}
    try:
        with SidecarWriter(path, index_identity(ref), meta) as writer:
            writer.append("schema", np.frombuffer(index.schema, dtype=np.uint8))
            for name, array in arrays.items():
                writer.append(name, array.reshape(-1))
    except (StoreError, OSError):
        return False
    return True
