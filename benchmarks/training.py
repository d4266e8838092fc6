"""Images per second of `rwclib.runs.training.run` beside a bare forward-backward-step loop on one resident random batch.

Evidence: prints the CPU model, load, versions, threads and date; medians of 5 epochs, each between two bare blocks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable

import _table
import numpy as np

TARGET = 0.95
BARE, RECORDED = "bare loop, one resident batch", "training.run, recorded epochs"
STRICT, CPU = "training.run, strict, with checkpoints", "training.run, strict, CPU seconds"
NOTE = """{dataset}, ResNet-18 of width {width}, batches of {batch_size}, {steps} steps in an epoch and in a bare block,
SGD with momentum 0.9, channels_last, in the row's precision. `run` shuffles, crops, flips, normalises, counts top-1 and top-5 hits and tracks
the weights; it always evaluates, here on 1 test image (n_test=1), which costs next to nothing; its first epoch is left
out. strict: wall clock from one `progress` call to the next, with the checkpoints between (checkpoint_seconds=5);
recorded: `epoch_seconds` of run.json; CPU seconds: strict by the CPU time of the process, for a machine that is busy.
A bare block runs inside each `progress` call, outside every clock. ratio: images/s of an epoch to those of the blocks
before and after it, median over epochs; lowest and highest epoch."""


def bare_block(width: int, in_channels: int, batch_size: int, steps: int, precision: str) -> Callable[[], None]:
    """A function that trains a network of its own for `steps` steps on one batch, settings as in `run`."""
    import torch
    from torch.nn import functional

    from rwclib import models

    model = models.build("resnet18", num_classes=10, in_channels=in_channels, width=width)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(batch_size, in_channels, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(10, (batch_size,))

    def block() -> None:
        for _ in range(steps):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return block


def measure(
    width: int, batch_size: int, steps: int, epochs: int, precision: str
) -> tuple[str, dict[str, list[np.ndarray]]]:
    """The data set, and by row of the table the seconds (epochs - 1,) of bare blocks and of epochs."""
    import torch

    from rwclib import RunConfig, archive, data, training

    torch.set_num_threads(1)
    dataset = "cifar10" if data.path("cifar10").exists() else data.SAMPLE
    config = RunConfig(
        model="resnet18", dataset=dataset, width=width, epochs=epochs, n_train=steps * batch_size, n_test=1, lr=0.01,
        batch_size=batch_size, crop_padding=4, flip=True, normalize="imagenet" if dataset == "cifar10" else "none",
        precision=precision,
    )  # fmt: skip
    block = bare_block(width, data.get(dataset).in_channels, batch_size, steps, precision)
    block()
    clocks = []  # (epochs, before and after the block, wall and CPU)

    def progress(_: dict) -> None:
        before = time.perf_counter(), time.process_time()
        block()
        clocks.append([before, (time.perf_counter(), time.process_time())])

    with tempfile.TemporaryDirectory() as results:
        place = training.run(config, results=results, device="cpu", checkpoint_seconds=5, progress=progress)
        recorded = archive.read_dir(place).record["provenance"]["epoch_seconds"]
    before, after = np.array(clocks).swapaxes(0, 1)
    blocks, strict = after - before, before[1:] - after[:-1]
    wall, cpu = ((blocks[1:] + blocks[:-1]) / 2).T
    return dataset, {
        BARE: [wall, wall],
        RECORDED: [wall, np.array(recorded[1:])],
        STRICT: [wall, strict[:, 0]],
        CPU: [cpu, strict[:, 1]],
    }


def main() -> None:
    args = _table.options(__doc__)
    size = {"width": 16, "batch_size": 128, "steps": 16, "epochs": 5}
    if args.quick:
        size = {"width": 8, "batch_size": 32, "steps": 2, "epochs": 3}
    evidence = _table.environment("1")
    rows = []
    for precision in ("fp32", "bf16"):
        dataset, times = _table.in_fresh_process(1, measure, *size.values(), precision)
        for what, (bare, seconds) in times.items():
            ratios = bare / seconds
            row = {"precision": precision, "what": what}
            row |= {"images_per_s": size["batch_size"] * size["steps"] / np.median(seconds)}
            row |= {"ratio": np.median(ratios), "lowest": ratios.min(), "highest": ratios.max()}
            rows.append(row | (_table.verdict(row["ratio"] >= TARGET, f">= {TARGET}") if what == STRICT else {}))
    _table.report(rows, evidence, NOTE.format(dataset=dataset, **size), args.json)


if __name__ == "__main__":
    main()
