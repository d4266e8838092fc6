"""Cost of `RWCTracker.step()` in plain copies of the weights, beside what else people log, and in epochs of training.

On the full-width ResNet-18 (11 M parameters) and on one of width 192 (100 M). Evidence: prints the CPU model, load,
versions, threads and date; medians of 31 (100 M: 5) interleaved repetitions.
"""

from __future__ import annotations

import os
import tempfile

import _table

COPIES, HISTOGRAMS, START_STEPS, EPOCH_PERCENT, EPOCH_IMAGES = 4, 10, 1.6, 1, 2000
COPY, STEP = "copy of the weights", "RWCTracker.step(), 7 metrics"
START = "RWCTracker(start=True).step(), 12 columns"
HISTOGRAM = "TensorBoard add_histogram"
NAIVE, RELEASE = "per-tensor PyTorch with .item(), 2 metrics", "the papers' NumPy code, 1 metric"
NOTE = f"""copies: median time over that of the copy, `buffer.copy_(weight)` for each of the 21 weight tensors, with as
many threads; copies_fastest: the same of the fastest repetitions, to be read where the load reaches the number of cores,
which interrupts a longer call more often. Waiting threads sleep (OMP_WAIT_POLICY=PASSIVE). histograms_over_this: time of
`SummaryWriter.add_histogram` for each weight tensor, TensorBoard's defaults, over that of this row. gb_per_s: weights read
and written, 8 bytes a weight for the copy, 12 for step() (two snapshots read, one written).
over_step: time over that of step() without start=True. percent_of_epoch: of forward, backward and SGD step over {EPOCH_IMAGES:,} images, extrapolated from the few timed."""


def costs(width: int, repetitions: int, folder: str) -> tuple[int, dict[str, tuple[float, float]]]:
    """Weights, and median and least milliseconds of every way to follow them."""
    import numpy as np
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from rwclib import RWCTracker, models
    from rwclib.tracker import weight_tensors

    model = models.build("resnet18", num_classes=10, width=width)
    log = SummaryWriter(folder)
    weights = {name: weight.detach() for name, weight in weight_tensors(model).items()}
    noise = {name: 1e-3 * weight.std() * torch.randn_like(weight) for name, weight in weights.items()}
    buffers = {name: weight.clone() for name, weight in weights.items()}
    clones = {name: weight.clone() for name, weight in weights.items()}
    arrays = {name: weight.numpy().copy() for name, weight in weights.items()}
    tracker, since_start = RWCTracker(model), RWCTracker(model, start=True)

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

    def histogram() -> None:
        for name, weight in weights.items():
            log.add_histogram(name, weight)

    ways = {
        COPY: copy,
        STEP: tracker.step,
        START: since_start.step,
        HISTOGRAM: histogram,
        NAIVE: naive,
        RELEASE: release,
    }
    table = 1e3 * _table.interleaved(ways, repetitions, perturb)
    log.close()
    size = sum(weight.numel() for weight in weights.values())
    return size, {way: (table[way].median().item(), table[way].min().item()) for way in ways}


def image_milliseconds(width: int, batch_size: int, batches: int) -> float:
    """Mean milliseconds per image of forward, backward and SGD step, after one batch to warm up."""
    import torch
    from torch.nn import functional

    from rwclib import models

    torch.set_num_threads(1)
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


def measure(threads: int, width: int, repetitions: int) -> tuple[int, dict[str, tuple[float, float]]]:
    """`costs` with a number of threads."""
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        return costs(width, repetitions, folder)


def main() -> None:
    args = _table.options(__doc__)
    widths, batch_size, batches = ({8: 3, 16: 2}, 8, 1) if args.quick else ({64: 31, 192: 5}, 64, 2)
    cores = 1 if args.quick else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = sorted({1, cores})
    evidence, rows = _table.environment(" and ".join(map(str, counts))), []
    for width, repetitions in widths.items():
        for threads in counts:
            size, found = _table.in_fresh_process(threads, measure, threads, width, repetitions)
            median, fastest = found[COPY]
            for what, (typical, least) in found.items():
                row = {"parameters": f"{size / 1e6:.1f} M", "threads": threads, "what": what, "ms": typical}
                row |= {"copies": typical / median, "copies_fastest": least / fastest}
                row |= {"histograms_over_this": found[HISTOGRAM][0] / typical, "percent_of_epoch": None}
                if what in (COPY, STEP):
                    row["gb_per_s"] = size * (8 if what == COPY else 12) / typical / 1e6
                if what == STEP:
                    met = row["copies"] <= COPIES and row["histograms_over_this"] >= HISTOGRAMS
                    row |= _table.verdict(met, f"<= {COPIES} copies, >= {HISTOGRAMS} times cheaper than histograms")
                if what == START:
                    row["over_step"] = typical / found[STEP][0]
                    row |= _table.verdict(row["over_step"] <= START_STEPS, f"<= {START_STEPS} times step()")
                rows.append(row)
    step, timed = rows[1]["ms"], batches * batch_size
    epoch = EPOCH_IMAGES * _table.in_fresh_process(1, image_milliseconds, next(iter(widths)), batch_size, batches)
    percent = 100 * step / epoch
    common = {"parameters": rows[0]["parameters"], "threads": 1}
    rows.append(common | {"what": f"epoch of {EPOCH_IMAGES:,} images, extrapolated from {timed}", "ms": epoch})
    once = f"one RWCTracker.step() per epoch of {EPOCH_IMAGES:,} images"
    rows.append(common | {"what": once, "ms": step, "percent_of_epoch": percent})
    rows[-1] |= _table.verdict(percent <= EPOCH_PERCENT, f"<= {EPOCH_PERCENT} %")
    _table.report(rows, evidence, NOTE, args.json)


if __name__ == "__main__":
    main()
