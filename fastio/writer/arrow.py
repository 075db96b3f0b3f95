"""One shard as an Arrow IPC file: uncompressed, so that every record has an extent of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["ArrowShardWriter"]


class ArrowShardWriter:
    """Appends record batches to one new IPC file. Buffers lie at multiples of 8 bytes, as pyarrow writes them.

    Attributes:
        path: the data file.
        records, payload_bytes: what was written so far.
    """

    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow as pa

        self.path = path
        self.records = 0
        self.payload_bytes = 0
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, schema)

    def __repr__(self) -> str:
        return f"ArrowShardWriter({str(self.path)!r}, records={self.records})"

    def write(self, batch: Any) -> None:
        self._writer.write_batch(batch)
        self.records += batch.num_rows
        self.payload_bytes += batch.nbytes

    def close(self) -> None:
        """Writes the footer; without it the file is not an Arrow file."""
        try:
            self._writer.close()
        finally:
            self._sink.close()

    def abandon(self) -> None:
        """Lets go of the file as it is, to be deleted."""
        self._sink.close()
