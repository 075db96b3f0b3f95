"""LMDB environments as shards: where every key and value lies, without reading the values.

meta          which snapshot, which of the two formats
pages, tree   branch and leaf pages, parsed in blocks          cursor: the slow way, through LMDB
entries       all entries in key order
arrange       which entries are records, in which order
index         the index, stored beside the data or kept in memory
sample        does it prove right
environment   read transactions, one handle per environment and process
shard         the whole
"""

from fastio.formats.lmdb.environment import hold_statistics
from fastio.formats.lmdb.shard import LmdbShard, is_lmdb, open_lmdb_shard

__all__ = ["LmdbShard", "hold_statistics", "is_lmdb", "open_lmdb_shard"]
