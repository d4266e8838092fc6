"""Peak memory of a full-width VGG-19 run with snapshots, over that of its weights and optimizer state.

Beside it the same steps in a plain loop that keeps the start and every snapshot in memory, as one would write it.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time

import _table

TARGET = 3
RUN, CHILD = "training.run, with snapshots and checkpoints", "the same, retraining after a sign flip"
RUN_WITHOUT, PLAIN = "training.run, without snapshots", "plain loop, snapshots in memory"
NOTE = """{model}, width {width}, one epoch of {images} images, tested on {tested}; snapshots at start and end, and checkpoints.
peak: the most that the process holds in memory over what it holds before the network is made (file pages that it has mapped
apart, of the snapshots while they are read: the system takes these back at will), over the bytes of weights and
optimizer state (SGD: momentum; Adam: two moments). It includes gradients, the tracker's reference and activations.
glibc is told to give freed memory back (MALLOC_MMAP_THRESHOLD_), so that the peak is of what is held."""


def config(optimizer: str, quick: bool, batch: int = 128) -> object:
    """A run on the bundled images."""
    from rwclib import RunConfig

    return RunConfig(
        model="vgg19", dataset="fashion_mnist_sample", width=16 if quick else 64, epochs=1,
        n_train=64 if quick else 128, n_test=32 if quick else 500, batch_size=32 if quick else batch, lr=1e-3, optimizer=optimizer, init="kaiming_normal",
        snapshot_every=1,
    )  # fmt: skip


def resident() -> int:
    """Bytes that this process holds in memory now, file pages that it has mapped apart: the system takes those back at will."""
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))


def peak_of(function: object) -> int:
    """Largest growth of this process's memory while `function()` runs, looked at every millisecond."""
    before, seen, over = resident(), [0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(resident())
            time.sleep(1e-3)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        over.set()
        watcher.join()
    return max(seen) - before


def train_parent(parent: object, folder: str) -> None:
    """In a process of its own, whose memory does not count."""
    from rwclib import training

    training.run(parent, results=folder, keep_weights=True)


def run(optimizer: str, quick: bool, what: str, batch: int) -> float:
    """Peak bytes of `training.run`."""
    from dataclasses import replace

    from rwclib import training

    chosen = config(optimizer, quick, batch)
    if what == RUN_WITHOUT:
        chosen = replace(chosen, snapshot_every=0)
    with tempfile.TemporaryDirectory() as folder:
        training.run(replace(chosen, width=8, epochs=1, seed=1), results=folder)  # imports, first kernels
        if what == CHILD:
            parent = replace(chosen, epochs=0)
            _table.in_fresh_process(2, train_parent, parent, folder)
            chosen = replace(chosen, parent=parent.hash, perturbation="flip_sign")
        return peak_of(
            lambda: training.run(chosen, results=folder, checkpoint_seconds=1e9 if what == RUN_WITHOUT else 5)
        )


def plain(optimizer: str, quick: bool, what: str, batch: int) -> float:
    """Peak bytes of a loop that keeps `{name: weights.clone()}` of the start and of every epoch."""
    from dataclasses import replace

    import torch
    from torch.nn import functional

    from rwclib import data, models

    chosen = config(optimizer, quick, batch)
    images = data.load(chosen.dataset).subset(chosen.n_train, chosen.n_test)
    batches = data.Batches(images.x_train, images.y_train, image_size=32, normalize="none", device=torch.device("cpu"))

    def loop(chosen: object) -> None:
        model = models.build(chosen.model, num_classes=10, in_channels=1, width=chosen.width, init=chosen.init)
        optimizer = (
            torch.optim.SGD(model.parameters(), lr=chosen.lr, momentum=0.9)
            if chosen.optimizer == "sgd"
            else torch.optim.Adam(model.parameters(), lr=chosen.lr)
        )
        kept = [{name: value.detach().clone() for name, value in model.named_parameters()}]
        for _ in range(chosen.epochs):
            for x, y in batches.in_order(chosen.batch_size):
                functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
            kept.append({name: value.detach().clone() for name, value in model.named_parameters()})

    loop(replace(chosen, width=8, epochs=1))
    return peak_of(lambda: loop(chosen))


def state_bytes(optimizer: str, quick: bool) -> int:
    """Of the weights and the optimizer's state, float32."""
    from rwclib import models

    chosen = config(optimizer, quick)
    model = models.build(chosen.model, num_classes=10, in_channels=1, width=chosen.width)
    return sum(value.numel() for value in model.parameters()) * 4 * (2 if optimizer == "sgd" else 3)


CASES = [
    ("sgd", 128, RUN, run), ("sgd", 128, CHILD, run), ("sgd", 128, RUN_WITHOUT, run), ("sgd", 128, PLAIN, plain),
    ("sgd", 32, RUN, run), ("adam", 128, RUN, run),
]  # fmt: skip


def main() -> None:
    args = _table.options(__doc__)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(2**18)
    evidence, rows = _table.environment("2"), []
    for optimizer, batch, what, function in CASES:
        whole = state_bytes(optimizer, args.quick)
        peak = _table.in_fresh_process(2, function, optimizer, args.quick, what, batch)
        row = {
            "optimizer": optimizer,
            "batch": batch,
            "what": what,
            "mb": peak / 2**20,
            "peak_over_weights_and_optimizer": peak / whole,
        }
        rows.append(row | (_table.verdict(peak < TARGET * whole, f"< {TARGET}") if what in (RUN, CHILD) else {}))
    of = config("sgd", args.quick)
    note = NOTE.format(model=of.model, width=of.width, images=of.n_train, tested=of.n_test)
    _table.report(rows, evidence, note, args.json)


if __name__ == "__main__":
    main()
