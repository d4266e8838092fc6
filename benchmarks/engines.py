"""Engines and precisions of one training process beside the classical loop, and what compiling costs and gains: the rule of `auto`.

Evidence: prints the processor and its bf16 instructions, load, versions and date; the ways take turns, epoch by epoch.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from statistics import median

import _classical
import _table
import torch

from rwclib import RunConfig, data, training
from rwclib.runs import steps
from rwclib.studies import layerwise

CLASSICAL = "classical loop, fp32"
NOTE = """{dataset}, settings and augmentation of study 1 (learning rate 0.01), batches of 128, tested on a fifth as many images
after each epoch; each way a process with one thread, and the others wait while one trains an epoch. images_per_s, over_classical,
over_eager (of the same precision): by CPU seconds, so that other work on the machine counts less, median of the epochs after the
first. compiling: by how many seconds of wall clock the first epoch is longer, `cold` with an empty cache of PyTorch's, `warm` in a
second process with the same cache. pays_after: training images from which on compiling with a cold cache is no loss. (auto): what
`--engine auto` takes."""


@dataclass(frozen=True)
class Case:
    """One network, the batches of its epochs and the least ratio of `auto` in bf16 to the classical loop."""

    model: str
    width: int
    batches: int
    target: float


CASES = [Case("resnet18", 16, 12, 3.0), Case("alexnet", 64, 8, 2.0), Case("resnet18", 64, 2, 2.5)]


def settings(case: Case, quick: bool) -> RunConfig:
    """Five epochs on CIFAR-10, or on the bundled sample where it is not on this machine."""
    dataset = "cifar10" if data.path("cifar10").exists() else data.SAMPLE
    size = {"width": case.width, "n_train": 128 * case.batches, "n_test": 128 * case.batches // 5, "epochs": 5}
    if quick:
        size = {"width": 8, "batch_size": 16, "n_train": 32, "n_test": 8, "epochs": 2}
    base = layerwise.run_config("paper", case.model, dataset, 0)
    return replace(base, study="custom", lr=0.01, **size)


def train(config: RunConfig, engine: str | None, cache: str, link: Connection) -> None:
    """Train with an engine (None: the classical loop), each epoch when told to, and send its CPU and wall-clock seconds."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.set_num_threads(1)

    def turn(*_: object) -> None:
        nonlocal began
        link.send((time.process_time() - began[0], time.perf_counter() - began[1]))
        link.recv()
        began = time.process_time(), time.perf_counter()

    link.recv()
    began = time.process_time(), time.perf_counter()
    if engine is None:
        return _classical.train(config, after_epoch=turn)
    with tempfile.TemporaryDirectory() as results:
        training.run(config, results=results, device="cpu", engine=engine, checkpoint_seconds=3600, progress=turn)


def in_turns(runs: dict[str, tuple[RunConfig, str | None]], cache: str) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall-clock seconds of every epoch of every run, each in a process of its own."""
    context, links, times = multiprocessing.get_context("spawn"), {}, {what: [] for what in runs}
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    for what, (config, engine) in runs.items():
        links[what], end = context.Pipe()
        context.Process(target=train, args=(config, engine, cache, end), daemon=True).start()
    for _ in range(config.epochs):
        for what, link in links.items():
            link.send(None)
            times[what].append(link.recv())
    for link in links.values():
        link.send(None)
    for process in multiprocessing.active_children():
        process.join()
    return times


def measure(case: Case, quick: bool) -> list[dict]:
    """The rows of one network."""
    config = settings(case, quick)
    bf16 = replace(config, precision="bf16")
    runs = {
        CLASSICAL: (config, None),
        "eager, fp32": (replace(config, precision="fp32"), "eager"),
        "eager, bf16": (bf16, "eager"),
    }
    auto, compiled = steps.best_engine(bf16, torch.device("cpu"), config.n_train), "compile, bf16"
    if not quick:
        runs[compiled] = bf16, "compile"
    with tempfile.TemporaryDirectory() as cache:
        times = in_turns(runs, cache)
        again = in_turns({compiled: (replace(bf16, epochs=2), "compile")}, cache) if compiled in runs else {}
    cpu = {what: [epoch[0] for epoch in epochs[1:]] for what, epochs in times.items()}
    rows = []
    for what, epochs in cpu.items():
        ratio = median(theirs / ours for theirs, ours in zip(cpu[CLASSICAL], epochs, strict=True))
        row = {
            "network": f"{case.model}, width {config.width}",
            "what": what,
            "images_per_s": config.n_train / median(epochs),
        }
        row |= {"over_classical": ratio}
        if what == compiled:
            eager = cpu["eager, bf16"]
            row["over_eager"] = median(theirs / ours for theirs, ours in zip(eager, epochs, strict=True))
            lasts = median(wall for _, wall in times[what][1:])
            row |= {
                "compiling_cold_s": times[what][0][1] - lasts,
                "compiling_warm_s": again[what][0][1] - again[what][1][1],
            }
            gain = (1 - 1 / row["over_eager"]) * median(eager) / config.n_train  # seconds an image
            row["pays_after"] = f"{row['compiling_cold_s'] / gain / 1e6:.1f} million images" if gain > 0 else "never"
        if what == f"{auto}, bf16":
            row["what"] += " (auto)"
            row |= _table.verdict(ratio >= case.target, f">= {case.target} times the classical loop")
        rows.append(row)
    return rows


def main() -> None:
    args = _table.options(__doc__)
    known = torch.cpu.get_capabilities()
    features = ", ".join(name for name in ("avx512_bf16", "amx_bf16") if known.get(name)) or "no bf16 instructions"
    evidence, rows = f"{_table.environment('1 a process')} | {features}", []
    for case in CASES[:1] if args.quick else CASES:
        rows += measure(case, args.quick)
        _table.store(rows, evidence, args.json)
    dataset = "cifar10" if data.path("cifar10").exists() else data.SAMPLE
    _table.report(rows, evidence, NOTE.format(dataset=dataset), args.json)


if __name__ == "__main__":
    main()
