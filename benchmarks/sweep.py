"""Images per second of sweeps: two processes, one process, and the classical loop, for four networks.

Evidence: prints the CPU model, load, versions, threads and date; wall clock of each way once, start-up included.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import _classical
import _table

TWO, ONE = "rwc sweep, two processes", "rwc sweep, one process"
CLASSICAL, WORKERS = "classical loop", "classical loop, a DataLoader worker per core"
BARE_ONE, BARE_TWO = "bare loop, one process: two bare over one", "bare loop, two processes"
NOTE = """{dataset}: runs of 6,000 images (`runs`, `epochs` of the sweeps), tested on 1,000 after each epoch, as in study 1 (SGD,
batches of 128, resize 28 to 32, flip). Images: of training alone. A process of the sweep has one thread; its start-up
(PyTorch, data) counts. Classical: torchvision's PIL transforms in a DataLoader without workers or with one per core, one
process with two threads that has imported PyTorch before its clock starts, weights copied to NumPy and both definitions of
RWC computed there after each epoch; on the first of the sweep's runs (AlexNet of width 8: the first two), which is enough
for a loop that goes through its runs one after the other, and with workers for four epochs at most. Bare: forward,
backward and step on one resident batch, one thread a process, without start-up: what the machine can do at most."""


@dataclass(frozen=True)
class Case:
    """One network, the size of its sweep and the least ratios asked for, by way."""

    model: str
    width: int
    runs: int
    epochs: int
    classical_runs: int
    targets: dict[str, float]


CASES = [
    Case("alexnet", 8, 8, 4, 2, {ONE: 1.7, CLASSICAL: 1.5, BARE_ONE: None}),
    Case("lenet5", 64, 4, 12, 1, {CLASSICAL: 4.0, WORKERS: None, BARE_TWO: None}),
    Case("alexnet", 64, 2, 1, 1, {CLASSICAL: 1.2, WORKERS: None}),
    Case("resnet18", 16, 2, 1, 1, {CLASSICAL: 1.3, WORKERS: None}),
]


def configs(case: Case, quick: bool) -> list:
    """The runs on Fashion-MNIST, or on its bundled sample where it is not on this machine."""
    from rwclib import data
    from rwclib.studies import layerwise

    dataset = "fashion_mnist" if data.path("fashion_mnist").exists() else data.SAMPLE
    size = {"width": case.width, "n_train": 6000, "n_test": 1000, "epochs": case.epochs}
    if quick:
        size = {"width": 8, "n_train": 256, "n_test": 64, "epochs": 1}
    base = replace(layerwise.run_config("quick", "alexnet", dataset, 0), study="custom", model=case.model, lr=0.01)
    return [replace(base, seed=seed, **size) for seed in range(2 if quick else case.runs)]


def sweep(runs: list, jobs: int) -> float:
    """Seconds of a sweep into an empty folder."""
    from rwclib.sweeps.sweep import run_all

    with tempfile.TemporaryDirectory() as folder:
        return _table.seconds(lambda: _all_trained(run_all(runs, results=folder, device="cpu", jobs=jobs), len(runs)))


def _all_trained(report: object, count: int) -> None:
    assert len(report.trained) == count, report.summary()


def classical(runs: list, workers: int) -> float:
    """Seconds of the classical loop on the same configurations, one after the other."""
    import torch

    torch.set_num_threads(2)
    _classical.train(replace(runs[0], epochs=1, n_train=128))  # imports, first kernels
    return _table.seconds(lambda: [_classical.train(config, workers) for config in runs])


def bare(run: object, seconds: float, begin: float) -> float:
    """Images per second of training steps on one resident batch, from the time `begin` on, together with others."""
    import torch
    from torch.nn import functional

    from rwclib import models

    torch.set_num_threads(1)
    model = models.build(run.model, num_classes=10, in_channels=1, width=run.width).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=run.lr, momentum=run.momentum, weight_decay=run.weight_decay)
    x, y = (
        torch.rand(run.batch_size, 1, 32, 32).to(memory_format=torch.channels_last),
        torch.zeros(run.batch_size).long(),
    )
    steps, began = 0, None
    while began is None or time.perf_counter() - began < seconds:
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += began is not None
        if began is None:  # the first is a warm-up
            time.sleep(max(0.0, begin - time.time()))
            began = time.perf_counter()
    return steps * run.batch_size / (time.perf_counter() - began)


def machine(run: object, processes: int, seconds: float) -> float:
    """Images per second of that many bare loops at once."""
    begin = time.time() + seconds  # time to import PyTorch
    with ThreadPoolExecutor(processes) as pool:
        found = [pool.submit(_table.in_fresh_process, 1, bare, run, seconds, begin) for _ in range(processes)]
        return sum(future.result() for future in found)


def main() -> None:
    args = _table.options(__doc__)
    evidence, rows = _table.environment("1 a process; classical 2"), []
    for case in CASES[:2] if args.quick else CASES:
        runs = configs(case, args.quick)
        few = runs[: case.classical_runs]
        ways = {TWO: (runs, 1, sweep, 2), ONE: (runs, 1, sweep, 1), CLASSICAL: (few, 2, classical, 0)}
        ways[WORKERS] = [replace(run, epochs=min(4, run.epochs)) for run in few[:1]], 2, classical, os.cpu_count()
        speeds = {}
        for way in (TWO, *case.targets):
            seconds, compared = 0.1 if args.quick else 8, TWO
            if way in (BARE_ONE, BARE_TWO):
                speeds[way] = machine(runs[0], 1 if way == BARE_ONE else 2, seconds)
                if way == BARE_ONE:
                    speeds[BARE_TWO], compared = machine(runs[0], 2, seconds), BARE_TWO
            else:
                trained, threads, function, extra = ways[way]
                images = sum(config.n_train * config.epochs for config in trained)
                speeds[way] = images / _table.in_fresh_process(threads, function, trained, extra)
            times, target = speeds[compared] / speeds[way], case.targets.get(way)
            row = {
                "network": f"{case.model}, width {case.width}",
                "runs": case.runs,
                "epochs": case.epochs,
                "what": way,
            }
            row |= {"images_per_s": speeds[way], "two_processes_over_this": times}
            rows.append(row | (_table.verdict(times >= target, f">= {target}") if target else {}))
    _table.report(rows, f"{evidence} | {runs[0].dataset}", NOTE.format(dataset=runs[0].dataset), args.json)


if __name__ == "__main__":
    main()
