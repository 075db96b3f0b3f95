"""``fastio pack``: whatever a path holds, written as a dataset.

pack        source -> (shuffle) -> writer
sources     what a path is, and what every kind of source offers
files       directories of files, a folder for each class
tables      Parquet, CSV and JSON lines
datasets    Arrow and LMDB, as fastio reads them, compressed Arrow files too
shuffle     one global permutation, in bounded memory
"""

from __future__ import annotations

from fastio.packing.pack import Packed, PackOptions, pack

__all__ = ["PackOptions", "Packed", "pack"]
