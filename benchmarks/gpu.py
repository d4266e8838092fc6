"""Training at the published size on one GPU: engines, layouts, runs at once, the classical loop, the bare loop, RWC.

Evidence: prints the GPU, versions and date; every row as soon as it is measured. Without a GPU only `--quick` runs, on the
CPU, to show that the script works.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import _classical
import _table
import numpy as np
import torch
from torch.nn import functional

from rwclib import RunConfig, archive, data, metrics, models, training
from rwclib.runs.steps import Steps
from rwclib.studies import layerwise
from rwclib.sweeps import forecast as planning
from rwclib.sweeps.sweep import run_all

NETWORKS = ("resnet18", "alexnet", "lenet5", "vgg19_bn")
CLASSICAL_TARGET, WORKERS_TARGET, CEILING_TARGET, EPOCH_TARGET, BANDWIDTH_TARGET, HOURS_TARGET = 10, 2, 0.9, 2.5, 0.6, 6
LIMIT = 230  # seconds after which nothing new is begun
NOTE = """{dataset}, settings and augmentation of study 1, batches of 128, all test images after each epoch. run:
`training.run` with an engine, images over the median of the recorded epochs after the first, evaluation included. bare: the
same engine on one resident batch, no data pipeline, no evaluation, no tracking; of_bare counts the images evaluated too, at
a third of a training image. jobs: as many runs at once, each a process, bf16, the network's best engine; sum of their speeds
in epochs after the first. classical: PIL transforms in a DataLoader with 0 or all workers, fp32, eager; its second epoch.
gb_per_s: weights of ResNet-18 at width 192 read and written: 8 bytes a weight for the copy, 12 for RWC (two snapshots read,
one written). hours: all of study 1's `paper` runs at the best speed of each network, from their floating-point operations."""


def random_images(folder: Path) -> None:
    """A set of CIFAR-10's size and shape: speed does not depend on what is in the pictures."""
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 50_000), ("test", 10_000)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = rng.integers(0, 10, count, dtype=np.uint8)
    np.savez(
        folder / "cifar10.npz",
        source="random numbers",
        note="random pixels of CIFAR-10's size, for speed alone",
        **arrays,
    )


def settings(model: str, quick: bool) -> RunConfig:
    """Study 1's settings for CIFAR-10, of LeNet-5 with learning rate 0.01."""
    known = model in layerwise.NETWORKS
    base = layerwise.run_config("paper", model if known else "alexnet", "cifar10", 0)
    size = {"width": 8, "batch_size": 16, "n_train": 64, "n_test": 16, "epochs": 2} if quick else {"epochs": 4}
    return replace(base, study="custom", model=model, **({} if known else {"lr": 0.01}), **size)


def images(config: RunConfig) -> int:
    return config.n_train or data.get(config.dataset).n_train


def speed(place: Path, config: RunConfig) -> float:
    """Images per second of a finished run's epochs after the first."""
    return images(config) / median(archive.read_dir(place).record["provenance"]["epoch_seconds"][1:])


def run(config: RunConfig, device: str, engine: str) -> float:
    """Images per second of `training.run`."""
    with tempfile.TemporaryDirectory() as results:
        return speed(training.run(config, results=results, device=device, engine=engine), config)


def at_once(config: RunConfig, device: str, engine: str, jobs: int) -> float:
    """Images per second of as many runs at once, added up; epochs enough for the runs to overlap."""
    runs = [replace(config, seed=seed, epochs=config.epochs * 3) for seed in range(jobs)]
    with tempfile.TemporaryDirectory() as results:
        report = run_all(runs, results=results, device=device, engine=engine, jobs=jobs)
        assert len(report.trained) == jobs, report.failed
        return sum(speed(archive.run_dir(Path(results), config), config) for config in runs)


def resident(config: RunConfig, device: str, order: torch.memory_format = torch.channels_last) -> tuple:
    """A network, and one batch of random images and labels."""
    known = data.get(config.dataset)
    model = models.build(
        config.model, num_classes=known.num_classes, in_channels=known.in_channels, width=config.width
    ).to(device, memory_format=order)
    x = torch.rand(config.batch_size, known.in_channels, 32, 32, device=device).contiguous(memory_format=order)
    return model, x, torch.randint(known.num_classes, (config.batch_size,), device=device)


def bare(config: RunConfig, device: str, engine: str, steps: int) -> float:
    """Images per second of steps on one resident batch, the engine's warm-up left out."""
    model, x, y = resident(config, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    sums = torch.zeros(2, 3, dtype=torch.float64, device=device)
    stepper = Steps(model, optimizer, sums, batch_size=config.batch_size, precision=config.precision, engine=engine)

    def train(count: int) -> None:
        for _ in range(count):
            stepper.train(x, y)
        sums.sum().item()

    train(5)
    return steps * config.batch_size / _table.seconds(lambda: train(steps))


def layout(config: RunConfig, device: str, order: torch.memory_format, steps: int) -> float:
    """Images per second of eager forward and backward passes in a memory layout, bf16 on a GPU."""
    model, x, y = resident(config, device, order)

    def train(count: int) -> None:
        for _ in range(count):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                loss = functional.cross_entropy(model(x), y)
            loss.backward()
        loss.item()

    train(5)
    return steps * config.batch_size / _table.seconds(lambda: train(steps))


def classical(config: RunConfig, device: str, workers: int, batches: int) -> float:
    """Images per second of the classical loop's second epoch, workers started and shapes known by then."""
    ends: list[float] = []
    few = replace(config, epochs=2, n_train=batches * config.batch_size, n_test=config.batch_size, precision="fp32")
    _classical.train(few, workers, device, lambda: ends.append(time.perf_counter()))
    return few.n_train / (ends[1] - ends[0])


def bandwidth(device: str, width: int, compiled: bool | None) -> float:
    """GB/s of a copy of all weights (`compiled` None), or of the tracker's metrics, its sums through torch.compile or not."""
    model = models.build("resnet18", num_classes=10, width=width)
    current = [p.detach().to(device) for p in model.parameters() if p.dim() > 1]
    previous, size, times = [w * 1.01 for w in current], sum(w.numel() for w in current), []
    sums, known = metrics._sums_on_device, metrics.measure(previous, previous)
    norms = known["l1_norm"], known["l2_norm"]
    if compiled:
        metrics._sums_on_device = torch.compile(sums, dynamic=True)

    def once() -> None:
        if compiled is None:
            for p, w in zip(previous, current, strict=True):
                p.copy_(w)
        else:
            metrics.measure(current, previous, previous_norms=norms, update=True)
        if device == "cuda":
            torch.cuda.synchronize()

    try:
        times = [_table.seconds(once) for _ in range(9)]
    finally:
        metrics._sums_on_device = sums
    return size * (8 if compiled is None else 12) / median(times[2:]) / 1e9


def main() -> None:
    args = _table.options(__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.quick:
        raise SystemExit("gpu.py needs a GPU; --quick runs its logic on the CPU at toy size")
    ways, steps = [("graph", "bf16"), ("eager", "bf16"), ("compile", "bf16"), ("eager", "fp32")], 200
    if device == "cpu":  # where bf16 is emulated
        ways, steps = ways[-1:], 3
    rows: list[dict] = []
    best: dict[str, tuple[float, str]] = {}
    evidence = f"{torch.cuda.get_device_name() if device == 'cuda' else 'no GPU: toy size on the CPU'} | {_table.environment('-')}"
    began = time.monotonic()

    def measured(network: str, what: str, column: str, way: Callable[..., float], *words: object) -> float:
        """A new row, printed at once and kept even if what follows fails; NaN if this failed or the time is up."""
        row, value = {"network": network, "what": what, column: None}, float("nan")
        try:
            if time.monotonic() - began > LIMIT:
                raise TimeoutError("no time left")
            row[column] = value = way(*words)
        except Exception as error:  # an engine that does not work here must not cost the other rows
            row["what"] += f": {type(error).__name__}: {' '.join(str(error).split())[:100]}"
        rows.append(row)
        print(f"{time.monotonic() - began:5.0f} s", row, flush=True)
        _table.store(rows, evidence, args.json)
        return value

    def judged(met: bool, target: str, **more: object) -> None:
        rows[-1] |= more | _table.verdict(met, target)

    with tempfile.TemporaryDirectory() as folder:
        if not data.path("cifar10").exists():
            random_images(Path(folder))
            os.environ["RWC_DATA_DIR"] = folder
        for network in NETWORKS[:1] if args.quick else NETWORKS:
            config = settings(network, args.quick)
            for engine, precision in ways:
                chosen = replace(config, precision=precision)
                ceiling = measured(
                    network, f"bare, {engine}, {precision}", "images_per_s", bare, chosen, device, engine, steps
                )
                found = measured(network, f"run, {engine}, {precision}", "images_per_s", run, chosen, device, engine)
                share = found * planning.work(config) / (3 * images(config) * config.epochs) / ceiling
                share /= planning.forward_flops(network, config.dataset, config.width, 32)
                judged(share >= CEILING_TARGET, f">= {CEILING_TARGET} of bare", of_bare=share)
                if precision == ways[0][1] and found > best.get(network, (0.0, ""))[0]:
                    best[network] = found, engine
            fastest, engine = best.get(network, (float("nan"), "eager"))
            config = replace(config, precision=ways[0][1])
            if network == "resnet18":
                measured(
                    network,
                    f"epoch, {engine}, {config.precision}",
                    "seconds",
                    lambda c=config, f=fastest: images(c) / f,
                )
                judged(images(config) / fastest <= EPOCH_TARGET, f"<= {EPOCH_TARGET} s")
                copy = measured(
                    network, "copy of the weights", "gb_per_s", bandwidth, device, 16 if args.quick else 192, None
                )
                for compiled in (False, True) if device == "cuda" else (False,):
                    what = f"metrics of the tracker{', sums compiled' * compiled}"
                    ours = measured(network, what, "gb_per_s", bandwidth, device, 16 if args.quick else 192, compiled)
                    judged(ours >= BANDWIDTH_TARGET * copy, f">= {BANDWIDTH_TARGET} of the copy", of_copy=ours / copy)
                for name, order in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
                    measured(
                        network, f"forward and backward, {name}", "images_per_s", layout, config, device, order, steps
                    )
                for jobs in (2,) if args.quick else (2, 4):
                    found = measured(
                        network, f"jobs {jobs}, {engine}", "images_per_s", at_once, config, device, engine, jobs
                    )
                    best[network] = max(best.get(network, (0.0, engine)), (found if found == found else 0.0, engine))
            if network == "vgg19_bn":
                continue
            for workers, target in ((0, CLASSICAL_TARGET), (os.cpu_count(), WORKERS_TARGET)):
                batches = 2 if args.quick else 160 if workers else 32
                found = measured(
                    network,
                    f"classical loop, {workers} workers",
                    "images_per_s",
                    classical,
                    config,
                    device,
                    workers,
                    batches,
                )
                if network == "resnet18":
                    judged(fastest >= target * found, f">= {target}", run_over_this=fastest / found)
                else:
                    rows[-1]["run_over_this"] = fastest / found
        if not args.quick:
            grid, hours = layerwise.runs("paper"), 0.0
            for model in layerwise.NETWORKS:
                one = settings(model, False)
                per_run = planning.work(one) / (one.epochs * images(one))  # operations for each training image
                hours += (
                    sum(planning.work(c) for c in grid if c.model == model)
                    / per_run
                    / best.get(model, (float("nan"), ""))[0]  # NaN: no time was left for it
                    / 3600
                )
            measured("all", f"study 1, paper profile, {len(grid)} runs", "hours", lambda: hours)
            judged(hours <= HOURS_TARGET, f"<= {HOURS_TARGET} hours")
    _table.report(rows, evidence, NOTE.format(dataset="CIFAR-10, or random pixels of its size"), args.json)


if __name__ == "__main__":
    main()
