"""Arrow IPC files and streams, opened as they are: every value located by the metadata around it, none of them read."""

from __future__ import annotations

from fastio.formats.arrow.shard import ArrowShard, is_arrow, open_arrow_shard

__all__ = ["ArrowShard", "is_arrow", "open_arrow_shard"]
