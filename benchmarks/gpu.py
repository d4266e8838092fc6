"""Training at the published size on one GPU: engines, precisions, runs at once, the classical loop, the bare loop, RWC.

Evidence: prints the GPU, versions and date. Without a GPU only `--quick` runs, on the CPU, to show that the script works.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from dataclasses import replace

import _classical
import _table
import torch
from torch.nn import functional

from rwclib import RunConfig, archive, data, metrics, models, planning, training
from rwclib.steps import Steps
from rwclib.studies import layerwise
from rwclib.sweep import run_all

NETWORKS = ("resnet18", "vgg19_bn", "alexnet", "lenet5")
CLASSICAL_TARGET, WORKERS_TARGET, CEILING_TARGET, EPOCH_TARGET, BANDWIDTH_TARGET, HOURS_TARGET = 10, 2, 0.9, 2.5, 0.6, 6
NOTE = """{dataset}, settings and augmentation of study 1, batches of 128, evaluation on 1,000 images after each epoch.
run: `training.run` with an engine, images of the recorded epochs after the first over their median seconds. bare: the same
engine on one resident batch, no data pipeline, no evaluation. jobs: `rwc sweep` of as many processes on one GPU, the best
engine of the network, start-up included. classical: PIL transforms in a DataLoader with 0 or all workers, fp32, eager.
gb_per_s: weights of ResNet-18 at width 192 read and written; RWC reads two snapshots and writes one.
hours: all of study 1's `paper` runs at the best measured speed of each network."""


def settings(model: str, quick: bool) -> RunConfig:
    """Study 1's settings for CIFAR-10, or for the bundled sample where it is not on this machine."""
    dataset = "cifar10" if data.path("cifar10").exists() else data.SAMPLE
    base = layerwise.run_config("paper", model if model in layerwise.MODELS else "resnet18", dataset, 0)
    size = {"width": 8, "n_train": 256, "n_test": 64, "epochs": 2} if quick else {"n_test": 1000, "epochs": 3}
    lr = {} if model in layerwise.MODELS else {"lr": 0.01}
    return replace(base, study="custom", model=model, **lr, **size)


def images(config: RunConfig) -> int:
    return config.n_train or data.get(config.dataset).n_train


def run(config: RunConfig, device: str, engine: str) -> float:
    """Images per second of the epochs after the first."""
    with tempfile.TemporaryDirectory() as results:
        place = training.run(config, results=results, device=device, engine=engine)
        seconds = archive.read_dir(place).record["provenance"]["epoch_seconds"][1:]
    return images(config) / sorted(seconds)[len(seconds) // 2]


def bare(config: RunConfig, device: str, engine: str, steps: int) -> float:
    """Images per second of steps on one resident batch, the engine's warm-up left out."""
    known = data.get(config.dataset)
    model = models.build(
        config.model, num_classes=known.num_classes, in_channels=known.in_channels, width=config.width
    ).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    sums = torch.zeros(2, 3, dtype=torch.float64, device=device)
    stepper = Steps(model, optimizer, sums, batch_size=config.batch_size, precision=config.precision, engine=engine)
    x = torch.rand(config.batch_size, known.in_channels, 32, 32, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(known.num_classes, (config.batch_size,), device=device)

    def train(count: int) -> None:
        for _ in range(count):
            stepper.train(x, y)
        sums.sum().item()

    train(5)
    return steps * config.batch_size / _table.seconds(lambda: train(steps))


def layout(config: RunConfig, device: str, steps: int) -> dict[str, float]:
    """Images per second of eager bf16 steps in either memory layout."""
    found = {}
    for name, order in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        known = data.get(config.dataset)
        model = models.build(
            config.model, num_classes=known.num_classes, in_channels=known.in_channels, width=config.width
        ).to(device, memory_format=order)
        x = torch.rand(config.batch_size, known.in_channels, 32, 32, device=device).contiguous(memory_format=order)
        y = torch.randint(known.num_classes, (config.batch_size,), device=device)

        def train(count: int, model: torch.nn.Module = model, x: torch.Tensor = x, y: torch.Tensor = y) -> None:
            for _ in range(count):
                with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
                    loss = functional.cross_entropy(model(x), y)
                loss.backward()
            loss.item()

        train(5)
        found[name] = steps * config.batch_size / _table.seconds(lambda train=train: train(steps))
    return found


def at_once(config: RunConfig, device: str, engine: str, jobs: int) -> float:
    """Images per second of a sweep of as many runs as processes."""
    runs = [replace(config, seed=seed) for seed in range(jobs)]
    with tempfile.TemporaryDirectory() as results:
        seconds = _table.seconds(lambda: run_all(runs, results=results, device=device, engine=engine, jobs=jobs))
    return jobs * config.epochs * images(config) / seconds


def classical(config: RunConfig, device: str, workers: int, count: int) -> float:
    """Images per second of one epoch of the classical loop over `count` images."""
    few = replace(config, epochs=1, n_train=min(count, images(config)), precision="fp32")
    _classical.train(replace(few, n_train=128), 0, device)
    return few.n_train / _table.seconds(lambda: _classical.train(few, workers, device))


def bandwidth(device: str, width: int) -> dict[str, float]:
    """GB/s of a copy of all weights, of the metrics, and of the metrics' sums through torch.compile."""
    model = models.build("resnet18", num_classes=10, width=width)
    current = [p.detach().to(device) for p in model.parameters() if p.dim() > 1]
    previous, size = [w * 1.01 for w in current], sum(w.numel() for w in current)
    norms = metrics.measure(previous, previous)[:, -2:]
    ways = {
        "copy of the weights": (8, lambda: [p.copy_(w) for p, w in zip(previous, current, strict=True)]),
        "metrics of the tracker": (12, lambda: metrics.measure(current, previous, previous_norms=norms, update=True)),
    }
    found = {}
    for name, (bytes_each, way) in ways.items():
        times = []
        for _ in range(7):
            synchronize(device)
            times.append(_table.seconds(lambda way=way: (way(), synchronize(device))))
        found[name] = size * bytes_each / sorted(times)[3] / 1e9
    return found


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    args = _table.options(__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.quick:
        raise SystemExit("gpu.py needs a GPU; --quick runs its logic on the CPU at toy size")
    engines = ("eager", "compile", "graph") if device == "cuda" else ("eager",)
    networks, steps, rows, best = (NETWORKS[:1] if args.quick else NETWORKS), (3 if args.quick else 200), [], {}

    def row(network: str, what: str, **values: object) -> None:
        rows.append({"network": network, "what": what} | values)

    for network in networks:
        config, speeds = settings(network, args.quick), {}
        for precision, engine in itertools.product(("fp32", "bf16"), engines):
            if precision == "fp32" and engine != "eager":
                continue
            chosen = replace(config, precision=precision)
            speeds[engine, precision] = speed = run(chosen, device, engine)
            ceiling = bare(chosen, device, engine, steps)
            row(network, f"run, {engine}, {precision}", images_per_s=speed, of_bare=speed / ceiling)
            rows[-1] |= _table.verdict(speed >= CEILING_TARGET * ceiling, f">= {CEILING_TARGET} of bare")
        (engine, precision), speed = max(speeds.items(), key=lambda item: item[1])
        best[network] = speed
        for name, found in layout(config, device, steps).items():
            row(network, f"forward and backward, {name}", images_per_s=found)
        if network != "resnet18":
            continue
        seconds = images(config) / speed
        row(network, f"epoch of {images(config):,} images, {engine}, {precision}: {seconds:.2f} s", images_per_s=speed)
        rows[-1] |= _table.verdict(seconds <= EPOCH_TARGET, f"<= {EPOCH_TARGET} s")
        for jobs in (1, 2) if args.quick else (1, 2, 4):
            found = at_once(replace(config, precision=precision), device, engine, jobs)
            row(network, f"rwc sweep, jobs {jobs}, {engine}, {precision}", images_per_s=found)
        for workers, target in ((0, CLASSICAL_TARGET), (os.cpu_count(), WORKERS_TARGET)):
            found = classical(config, device, workers, 256 if args.quick else 20_000 if workers else 4_000)
            row(network, f"classical loop, {workers} workers", images_per_s=found, run_over_this=speed / found)
            rows[-1] |= _table.verdict(speed >= target * found, f">= {target}")
    copy, ours = bandwidth(device, 16 if args.quick else 192).values()
    row("resnet18", "copy of the weights", gb_per_s=copy)
    row("resnet18", "metrics of the tracker", gb_per_s=ours, of_copy=ours / copy)
    rows[-1] |= _table.verdict(ours >= BANDWIDTH_TARGET * copy, f">= {BANDWIDTH_TARGET} of the copy")
    if not args.quick:
        grid = layerwise.runs("paper")
        total = sum(
            planning.work(c)
            / planning.work(settings(c.model, False))
            * 3
            * images(settings(c.model, False))
            / best[c.model]
            for c in grid
        )
        row("all", f"study 1, paper profile, {len(grid)} runs: {total / 3600:.1f} hours")
        rows[-1] |= _table.verdict(total / 3600 <= HOURS_TARGET, f"<= {HOURS_TARGET} hours")
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU: toy size on the CPU"
    _table.report(rows, f"{name} | {_table.environment('-')}", NOTE.format(dataset=config.dataset), args.json)


if __name__ == "__main__":
    main()
