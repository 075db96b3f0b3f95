"""The tour: real data packed, served, trained from, a worker killed half-way, every epoch verified.

    python client/examples/digits [--epochs 12] [--output demo-output]

The data are the UCI handwritten digits that scikit-learn ships: 1,797 images of 8 x 8 pixels. They are packed twice, as
Arrow and as LMDB, served by the real daemon with two workers, and a small convolutional network is trained through
``RemoteDataset``, one epoch from Arrow, the next from LMDB. In the middle of an epoch the worker that serves the
training is killed with SIGKILL. The table at the end compares with a ``DataLoader`` over the same LMDB; the picture
shows loss and throughput over time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chart import draw
from compare import print_comparison
from daemon import Daemon
from data import TRAIN_RECORDS, decode, pack, test_set
from fastio_client.torch import RemoteDataset
from model import Net, accuracy, train_step

BATCH = 32
WANTED_ACCURACY = 0.95

console = Console()


def main() -> int:
    """Runs the tour; the exit code says whether everything held."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--epochs", type=int, default=12)
    arguments.add_argument("--output", type=Path, default=Path("demo-output"))
    options = arguments.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two cores: one computes, one serves
    with tempfile.TemporaryDirectory(prefix="fastio-demo-") as folder:
        console.rule("1. pack")
        stores = pack(Path(folder))
        for name, path in stores.items():
            console.print(f"{name:14} {sum(f.stat().st_size for f in path.rglob('*') if f.is_file()):>12,} bytes")
        console.rule("2. serve")
        with Daemon(stores, Path(folder) / "log", workers=2) as daemon:
            console.print(f"{daemon.address}  datasets {', '.join(stores)}  workers {daemon.workers()}")
            console.rule("3. train, and kill a worker half-way")
            history, exact = train(daemon, epochs=options.epochs)
            console.rule("4. compare")
            print_comparison(console, daemon, stores, {"digits-lmdb": 64, "large-lmdb": 64})
    picture = options.output / "digits.png"
    draw(history, picture)
    reached = history.accuracy[-1]
    console.rule("verdict")
    console.print(f"test accuracy {reached:.1%} (wanted: {WANTED_ACCURACY:.0%}); picture: {picture}")
    console.print(f"every epoch delivered each of {TRAIN_RECORDS} records exactly once: {'yes' if exact else 'NO'}")
    return 0 if exact and reached >= WANTED_ACCURACY else 1


class History:
    """What the picture shows: per step time, loss and records; per epoch the accuracy; when the worker was killed."""

    def __init__(self) -> None:
        self.at_s: list[float] = []
        self.loss: list[float] = []
        self.records: list[int] = []
        self.accuracy: list[float] = []
        self.killed_at_s: float | None = None


def train(daemon: Daemon, *, epochs: int) -> tuple[History, bool]:
    """Trains, kills, verifies; the history, and whether every epoch was exactly the dataset."""
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    sources = {
        "arrow": RemoteDataset(daemon.url("digits-arrow"), batch_size=BATCH, seed=1),
        "lmdb": RemoteDataset(daemon.url("digits-lmdb"), batch_size=BATCH, seed=2),
    }
    test_images, test_labels = test_set()
    history = History()
    exact = True
    begin_s = time.monotonic()
    for epoch in range(epochs):
        name = ("arrow", "lmdb")[epoch % 2]
        dataset = sources[name]
        dataset.set_epoch(epoch)
        seen: list[torch.Tensor] = []
        for step, batch in enumerate(with_bar(dataset, f"epoch {epoch:2} from {name:5}")):
            images, labels = decode(batch)
            loss = train_step(net, optimizer, images, labels)
            seen.append(batch["_id"].clone())
            history.at_s.append(time.monotonic() - begin_s)
            history.loss.append(loss)
            history.records.append(len(labels))
            if epoch == epochs // 2 and step == len(dataset) // 2:
                pid = daemon.kill_serving_worker()
                history.killed_at_s = history.at_s[-1]
                console.print(f"[red]killed worker {pid} with SIGKILL at step {step} of epoch {epoch}[/]")
        ids = torch.cat(seen).sort().values
        epoch_exact = torch.equal(ids, torch.arange(TRAIN_RECORDS))
        exact = exact and epoch_exact
        history.accuracy.append(accuracy(net, test_images, test_labels))
        verdict = "each record once" if epoch_exact else "[red]NOT each record once[/]"
        console.print(f"epoch {epoch:2} from {name:5}  accuracy {history.accuracy[-1]:.1%}  {verdict}")
    return history, exact


def with_bar(dataset: RemoteDataset, title: str) -> Iterator[dict[str, torch.Tensor]]:
    """The dataset, with a progress bar where someone watches."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(dataset, total=len(dataset), description=title)


if __name__ == "__main__":
    sys.exit(main())
