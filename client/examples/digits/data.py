"""The digits: split, packed as Arrow and LMDB, and decoded from a batch of either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sklearn.datasets import load_digits

import fastio

PIXELS = 64
TRAIN_RECORDS = 1500
# As large as a decoded 192 x 192 colour image: what a real data set would hold.
LARGE_SIDE = 192


def digits() -> tuple[np.ndarray, np.ndarray]:
    """All images (N, 64) uint8 and labels (N,) uint8, in a fixed random order."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return images[order].astype(np.uint8), labels[order].astype(np.uint8)


def pack(folder: Path) -> dict[str, Path]:
    """Packs the training images: as Arrow, as LMDB, and enlarged to 110 KB each as LMDB for the comparison."""
    images, labels = digits()
    images, labels = images[:TRAIN_RECORDS], labels[:TRAIN_RECORDS]
    schema = pa.schema([("image", pa.list_(pa.uint8(), PIXELS)), ("label", pa.uint8())])
    stores = {name: folder / name for name in ("digits-arrow", "digits-lmdb", "large-lmdb")}
    with fastio.Writer(stores["digits-arrow"], schema) as writer:
        pixels = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), PIXELS)
        writer.append_batch(pa.record_batch([pixels, pa.array(labels)], schema=schema))
    with fastio.Writer(stores["digits-lmdb"], {"value": bytes}, format="lmdb") as writer:
        for image, label in zip(images, labels, strict=True):
            writer.append({"value": bytes([label]) + image.tobytes()})
    zoom = np.ones((LARGE_SIDE // 8, LARGE_SIDE // 8, 3), dtype=np.uint8)
    with fastio.Writer(stores["large-lmdb"], {"value": bytes}, format="lmdb") as writer:
        for image in images:
            writer.append({"value": (np.kron(image.reshape(8, 8)[:, :, None], zoom) * 15).tobytes()})
    return stores


def decode(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 1, 8, 8) in 0 .. 1 and labels (B,) of a batch from either store."""
    if "image" in batch:
        images, labels = batch["image"], batch["label"]
    else:
        rows = batch["value"].values.view(-1, 1 + PIXELS)
        images, labels = rows[:, 1:], rows[:, 0]
    return images.reshape(-1, 1, 8, 8).float() / 16, labels.long()


def test_set() -> tuple[torch.Tensor, torch.Tensor]:
    """The images that training never sees."""
    images, labels = digits()
    pixels = torch.from_numpy(images[TRAIN_RECORDS:]).reshape(-1, 1, 8, 8).float() / 16
    return pixels, torch.from_numpy(labels[TRAIN_RECORDS:]).long()
