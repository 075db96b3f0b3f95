"""What a written dataset says about itself: ``fastio-manifest.json`` beside its shards.

Nothing needs it to read the data; it tells whether the data is whole, and how it was shuffled.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["MANIFEST_NAME", "MANIFEST_VERSION", "Manifest", "ShardEntry", "checksum", "read_manifest"]

MANIFEST_NAME = "fastio-manifest.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard: its data file relative to the dataset, and what must be found there."""

    path: str
    records: int
    bytes: int
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A whole dataset.

    Attributes:
        format: ``"arrow"`` or ``"lmdb"``.
        records: over all shards.
        fields: name -> Arrow type, in Arrow's words, as they were given to the writer.
        metadata: what the schema carried, such as the names of classes.
        shuffled: the seed by which the records were shuffled when they were written, or None.
        shards: in the order of their records.
    """

    format: str
    records: int
    fields: dict[str, str]
    metadata: dict[str, str]
    shuffled: int | None
    shards: tuple[ShardEntry, ...]
    version: int = field(default=MANIFEST_VERSION)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a dataset, or None where there is none, or one of another version."""
    try:
        found = json.loads((directory / MANIFEST_NAME).read_text())
        shards = tuple(ShardEntry(**shard) for shard in found.pop("shards"))
        manifest = Manifest(**found, shards=shards)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return manifest if manifest.version == MANIFEST_VERSION else None


def checksum(path: Path) -> str:
    """``blake2b:`` and 32 hex digits (BLAKE2b with a digest of 16 bytes) of a file's content."""
    with path.open("rb") as file:
        return "blake2b:" + hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
