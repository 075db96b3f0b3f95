"""Which Arrow files a Hugging Face dataset directory consists of, and in which order.

``Dataset.save_to_disk`` writes ``state.json``, whose ``_data_files`` are the shards in order, beside
``dataset_info.json``; a ``DatasetDict`` has one such directory per split and ``dataset_dict.json``. The cache
directories of ``load_dataset`` have ``dataset_info.json`` alone, and files of all splits side by side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastio.errors import ErrorKind, StoreError

__all__ = ["HuggingFaceShards", "huggingface_shards"]

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
# Old and new names under which a state lists files that reorder the records.
_INDICES = ("_indices_files", "_indices_data_files")
_DERIVED = ("cache-", "indices-", "tmp")


@dataclass(frozen=True, slots=True)
class HuggingFaceShards:
    """The shards of a Hugging Face dataset, in order, and a sentence on how they were recognised."""

    paths: tuple[Path, ...]
    layout: str


def huggingface_shards(path: Path) -> HuggingFaceShards | None:
    """The shards of the Hugging Face dataset in this directory; None if it holds none.

    Raises:
        StoreError: it holds several splits, an order of its own, no data, or files that are no JSON.
    """
    if (path / _SPLITS).is_file():
        return _only_split(path)
    if (path / _STATE).is_file():
        state = _read(path / _STATE)
        return _saved(path, state) if "_data_files" in state else None
    return _cached(path) if (path / _INFO).is_file() else None


def _only_split(path: Path) -> HuggingFaceShards:
    splits = _read(path / _SPLITS).get("splits")
    if not isinstance(splits, list) or not splits:
        raise StoreError(f"{path / _SPLITS} lists no splits", kind=ErrorKind.EMPTY)
    if len(splits) > 1:
        names = ", ".join(str(path / str(split)) for split in splits)
        raise StoreError(
            f"{path} is a Hugging Face DatasetDict of {len(splits)} splits; open one of them: {names}",
            kind=ErrorKind.UNSUPPORTED_LAYOUT,
        )
    found = huggingface_shards(path / str(splits[0]))
    if found is None:
        raise StoreError(f"{path / _SPLITS} names the split {splits[0]!r}, which is not there", kind=ErrorKind.MISSING)
    return HuggingFaceShards(found.paths, f"the only split ({splits[0]}) of a Hugging Face DatasetDict: {found.layout}")


def _saved(path: Path, state: dict[str, Any]) -> HuggingFaceShards:
    indices = [key for key in _INDICES if state.get(key)]
    if indices:
        raise StoreError(
            f"{path / _STATE} names an order of its own ({indices[0]}), which fastio does not apply; in Python, "
            "`dataset.flatten_indices()` and `save_to_disk` make the order that of the files",
            kind=ErrorKind.UNSUPPORTED_LAYOUT,
        )
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (TypeError, KeyError):
        raise StoreError(f"{path / _STATE}: _data_files is no list of filenames", kind=ErrorKind.CORRUPT) from None
    if not names:
        raise StoreError(f"{path / _STATE} lists no data files: the dataset is empty", kind=ErrorKind.EMPTY)
    paths = tuple(path / name for name in names)
    absent = [one.name for one in paths if not one.is_file()]
    if absent:
        raise StoreError(f"{path / _STATE} lists {absent[0]}, which is not there", kind=ErrorKind.MISSING)
    return HuggingFaceShards(paths, "Hugging Face dataset, saved to disk (state.json lists its files)")


def _cached(path: Path) -> HuggingFaceShards | None:
    """The files of a ``load_dataset`` cache directory, if they all belong to one split."""
    splits = _read(path / _INFO).get("splits") or {}
    names = [str(name) for name in splits]
    if len(names) > 1:
        raise StoreError(
            f"{path} is a Hugging Face cache that holds the splits {', '.join(names)} side by side; "
            "save the one you want with `load_dataset(..., split=...).save_to_disk(...)` and open that",
            kind=ErrorKind.UNSUPPORTED_LAYOUT,
        )
    found = [one for one in path.glob("*.arrow") if not one.name.startswith(_DERIVED)]
    if not found:
        return None
    paths = tuple(sorted(found, key=lambda one: one.name))
    return HuggingFaceShards(paths, "Hugging Face cache directory (dataset_info.json), its files by name")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error.strerror}", kind=ErrorKind.UNREADABLE) from error
    except ValueError as error:
        raise StoreError(f"{path} is not JSON ({error})", kind=ErrorKind.CORRUPT) from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} holds no JSON object", kind=ErrorKind.CORRUPT)
    return found
