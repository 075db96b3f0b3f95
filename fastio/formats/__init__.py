"""Formats: which shards a path consists of, and how each of them is opened.

    a file                                      one Arrow file or stream, or one single-file LMDB environment
    a directory with fastio-manifest.json       its shards, in the manifest's order
    a Hugging Face dataset                      the files that state.json lists, in that order
    a directory with data.mdb                   one LMDB environment
    any other directory                         every Arrow file, or every LMDB environment, at any depth, sorted by
                                                relative path with numbers as numbers ("part-2" before "part-10")

Arrow files are recognised by their first bytes, whatever they are called. Hidden files and directories are passed over.
"""

from __future__ import annotations

from fastio.formats.discovery import Found, find_shards, natural_key

__all__ = ["Found", "find_shards", "natural_key"]
