"""A dataset: one path, its shards concatenated, its fields as one schema.

Opening is in :func:`open_dataset`; which files belong to a path, and in which order, is decided by
:mod:`fastio.formats`. A dataset is bound to the process that opened it.
"""
