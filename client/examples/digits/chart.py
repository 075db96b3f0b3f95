"""The picture: loss, accuracy and throughput over time, with the moment of the kill."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    from __main__ import History


def draw(history: History, path: Path) -> None:
    """Writes the picture."""
    at_s = np.array(history.at_s)
    done = np.array(list(accumulate(history.records)))
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(9, 6), layout="constrained")
    above.plot(at_s, history.loss, color="tab:blue", linewidth=0.8)
    above.set(ylabel="training loss", yscale="log", title="Digits: one epoch from Arrow, the next from LMDB")
    accuracy = above.twinx()
    steps = len(at_s) // len(history.accuracy)
    accuracy.plot(at_s[steps - 1 :: steps], history.accuracy, color="tab:green", marker="o", markersize=3)
    accuracy.set_ylabel("test accuracy", color="tab:green")
    window = max(1, len(at_s) // 60)
    rate = (done[window:] - done[:-window]) / np.maximum(at_s[window:] - at_s[:-window], 1e-9)
    below.plot(at_s[window:], rate, color="tab:orange")
    below.set(xlabel="seconds", ylabel="records per second, trained on", ylim=(0, None))
    if history.killed_at_s is not None:
        for axes in (above, below):
            axes.axvline(history.killed_at_s, color="tab:red", linestyle="--", linewidth=1)
        below.annotate(
            "worker killed", (history.killed_at_s, 0), color="tab:red", xytext=(4, 6), textcoords="offset points"
        )
    figure.savefig(path, dpi=120)
    plt.close(figure)
