"""Cost of `RWCTracker.step()` on the full-width ResNet-18, in plain copies of its weights and in epochs of training.

Evidence: prints the CPU model, load, versions, threads and date; medians of 31 interleaved repetitions.
"""

from __future__ import annotations

import os

import _table

COPIES, EPOCH_PERCENT, EPOCH_IMAGES = 6, 1, 2000
COPY, STEP = "copy of the weights", "RWCTracker.step(), 7 metrics"
NAIVE, RELEASE = "per-tensor PyTorch with .item(), 2 metrics", "the papers' NumPy code, 1 metric"
NOTE = f"""copies: median time over that of the copy, `buffer.copy_(weight)` for each of the 21 weight tensors, with as
many threads; copies_fastest: the same of the fastest repetitions, to be read where the load reaches the number of cores,
which interrupts a longer call more often. Waiting threads sleep (OMP_WAIT_POLICY=PASSIVE).
percent_of_epoch: of forward, backward and SGD step over {EPOCH_IMAGES:,} images, extrapolated from the few timed."""


def costs(width: int, repetitions: int) -> dict[str, tuple[float, float]]:
    """Median and least milliseconds of every way to follow the weights."""
    import numpy as np
    import torch

    from rwclib import RWCTracker, models
    from rwclib.tracker import weight_tensors

    model = models.build("resnet18", num_classes=10, width=width)
    weights = {name: weight.detach() for name, weight in weight_tensors(model).items()}
    noise = {name: 1e-3 * weight.std() * torch.randn_like(weight) for name, weight in weights.items()}
    buffers = {name: weight.clone() for name, weight in weights.items()}
    clones = {name: weight.clone() for name, weight in weights.items()}
    arrays = {name: weight.numpy().copy() for name, weight in weights.items()}
    tracker = RWCTracker(model)

    def perturb() -> None:
        for name, weight in weights.items():
            weight += noise[name]

    def copy() -> None:
        for name, weight in weights.items():
            buffers[name].copy_(weight)

    def naive() -> None:
        for name, weight in weights.items():
            change, before = (weight - clones[name]).abs(), clones[name].abs()
            (change.sum() / before.sum()).item(), (change / before).mean().item()
            clones[name] = weight.clone()

    def release() -> None:
        for name, weight in weights.items():
            current = weight.cpu().numpy().copy()
            np.mean(np.abs((current - arrays[name]) / arrays[name]))
            arrays[name] = current

    ways = {COPY: copy, STEP: tracker.step, NAIVE: naive, RELEASE: release}
    table = 1e3 * _table.interleaved(ways, repetitions, perturb)
    return {way: (table[way].median().item(), table[way].min().item()) for way in ways}


def image_milliseconds(width: int, batch_size: int, batches: int) -> float:
    """Mean milliseconds per image of forward, backward and SGD step, after one batch to warm up."""
    import torch
    from torch.nn import functional

    from rwclib import models

    model = models.build("resnet18", num_classes=10, width=width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(10, (batch_size,))

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    train()
    return 1e3 * sum(_table.seconds(train) for _ in range(batches)) / (batches * batch_size)


def measure(threads: int, width: int, repetitions: int, *training: int) -> tuple[dict[str, tuple[float, float]], float]:
    """`costs` of a thread count and, of one thread, `image_milliseconds`."""
    import torch

    torch.set_num_threads(threads)
    return costs(width, repetitions), image_milliseconds(width, *training) if threads == 1 else 0.0


def main() -> None:
    args = _table.options(__doc__)
    width, repetitions, batch_size, batches = (8, 3, 8, 1) if args.quick else (64, 31, 64, 2)
    cores = 1 if args.quick else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = sorted({1, cores})
    evidence, rows = _table.environment(" and ".join(map(str, counts))), []
    for threads in counts:
        found, image = _table.in_fresh_process(threads, measure, threads, width, repetitions, batch_size, batches)
        if threads == 1:
            epoch = EPOCH_IMAGES * image
        median, fastest = found[COPY]
        for what, (typical, least) in found.items():
            row = {"threads": threads, "what": what, "ms": typical, "copies": typical / median}
            row |= {"copies_fastest": least / fastest, "percent_of_epoch": None}
            if what == STEP:
                row |= _table.verdict(row["copies"] <= COPIES, f"<= {COPIES} copies")
            rows.append(row)
    step, timed = rows[1]["ms"], batches * batch_size
    percent = 100 * step / epoch
    rows.append({"threads": 1, "what": f"epoch of {EPOCH_IMAGES:,} images, extrapolated from {timed}", "ms": epoch})
    rows.append(
        {
            "threads": 1,
            "what": "one RWCTracker.step() per epoch of 2,000 images",
            "ms": step,
            "percent_of_epoch": percent,
        }
    )
    rows[-1] |= _table.verdict(percent <= EPOCH_PERCENT, f"<= {EPOCH_PERCENT} %")
    _table.report(rows, evidence, NOTE, args.json)


if __name__ == "__main__":
    main()
