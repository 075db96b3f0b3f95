"""Writing datasets: ``Writer(path, schema)`` takes records and leaves either a whole dataset or nothing.

writer      what the caller holds: batches, rolls shards, finishes or clears away
schema      what the caller may call a schema, and how values become Arrow columns
arrow       one shard as an Arrow IPC file
lmdb        one shard as an LMDB environment
partial     the directory that is not a dataset yet, and the manifest that makes it one
"""

from __future__ import annotations

from fastio.writer.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest
from fastio.writer.writer import Writer

__all__ = ["MANIFEST_NAME", "Manifest", "ShardEntry", "Writer", "read_manifest"]
