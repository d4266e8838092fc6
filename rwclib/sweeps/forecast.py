"""How long runs will take, judged by those in the archive, and the order in which to train them."""

from __future__ import annotations

import heapq
import os
import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from rwclib.errors import ArchiveError, ConfigError
from rwclib.runs import archive, checkpoint, data, models, steps, weights
from rwclib.runs.config import PRIORITIES, RunConfig
from rwclib.runs.recording import EVERY, IMAGES
from rwclib.runs.start import optimizer
from rwclib.sweeps.sweep import default_jobs, generations
from rwclib.sweeps.worker import finished

_BACKWARD = 2  # costs twice what the forward pass does
_STEPS = 3  # that are measured of a network whose speed is not known, after one that warms up


def forward_flops(model: str, dataset: str, width: int, image_size: int) -> int:
    """Floating-point operations of one image's forward pass; convolutions and matrix products, as PyTorch counts them."""
    known = data.get(dataset)
    return _forward_flops(model, known.num_classes, known.in_channels, width, image_size)


@cache
def _forward_flops(model: str, classes: int, channels: int, width: int, image_size: int) -> int:
    with torch.device("meta"):
        network = models.build(model, num_classes=classes, in_channels=channels, width=width).eval()
        images = torch.empty(1, channels, image_size, image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return counter.get_total_flops()


def epochs(config: RunConfig) -> int:
    """Epochs of a run; of one of so many iterations those begun, of the official set's size where it uses all images."""
    return config.epochs_over(config.n_train or data.get(config.dataset).n_train)


def work(config: RunConfig) -> float:
    """Floating-point operations of a run, training and evaluation; of the official sets' sizes where it uses all images."""
    known = data.get(config.dataset)
    n_train, n_test = config.n_train or known.n_train, config.n_test or known.n_test
    trained = config.batch_size * config.iterations or n_train * config.epochs
    images = (1 + _BACKWARD) * trained + n_test * epochs(config) + config.iterations // EVERY * min(IMAGES, n_test)
    return float(forward_flops(config.model, config.dataset, config.width, config.image_size)) * images


def order(configs: Iterable[RunConfig], priority: str = "seeds") -> list[RunConfig]:
    """The runs in the order of a name in `rwclib.runs.config.PRIORITIES`; otherwise they stay as they were. `ConfigError` for other names."""
    if priority not in PRIORITIES:
        raise ConfigError(f"unknown priority {priority!r}; known: {', '.join(PRIORITIES)}")
    seen: Counter = Counter()
    keys = {}
    for config in configs:
        pair = config.study, config.model, config.dataset, config.iterations
        keys[config] = seen[pair], {"seeds": 0.0, "shortest": 1.0, "longest": -1.0}[priority]
        seen[pair] += 1
    return sorted(keys, key=lambda config: (keys[config][0], keys[config][1] and keys[config][1] * work(config)))


def _kind(config: RunConfig, device: str) -> tuple:
    return device, config.model, config.precision, config.width, config.image_size


def rates(results: str | Path, networks: Container[str] = models.MODELS) -> dict[tuple, float]:
    """Median speed of the archive's finished runs, floating-point operations per second, by (device, model, precision, width, image size).

    Of the `networks` alone: to count the operations of one takes as long as a few of its batches.
    """
    speeds = defaultdict(list)
    for config, record in archive.records(Path(results)):
        known = record["provenance"]
        trained = record["status"] == "done" and known["train_and_test_seconds"]
        if trained and config.model in networks and config.model in models.MODELS:
            speeds[_kind(config, known["device"])].append(work(config) / known["train_and_test_seconds"])
    return {key: median(values) for key, values in speeds.items()}


def seconds(config: RunConfig, speeds: Mapping[tuple, float], device: str) -> float | None:
    """Expected seconds of a run on `device` (as provenance names it), at the median speed of the runs most like it there.

    Those of its model, precision, width and image size; else of its model; else all. None if nothing has been trained on such a device yet.
    """
    kind = _kind(config, device)
    for length in (len(kind), 2, 1):
        if alike := [speed for known, speed in speeds.items() if known[:length] == kind[:length]]:
            return work(config) / median(alike)
    return None


def measured_speed(config: RunConfig, device: torch.device) -> float:
    """Floating-point operations per second of a few training steps on random images, with engine `eager` and as many threads as PyTorch has."""
    known = data.get(config.dataset)
    steps.set_backend(device, config.precision)
    network = models.build(
        config.model, num_classes=known.num_classes, in_channels=known.in_channels, width=config.width
    ).to(device, memory_format=torch.channels_last)
    sums = torch.zeros(2, 3, dtype=torch.float64, device=device)
    step = steps.Steps(
        network, optimizer(config, network, "eager"), sums, batch_size=config.batch_size, precision=config.precision, engine="eager"
    )  # fmt: skip
    x = torch.rand(config.batch_size, known.in_channels, config.image_size, config.image_size, device=device)
    y, ends = torch.zeros(config.batch_size, dtype=torch.int64, device=device), []
    for _ in range(1 + _STEPS):
        step.train(x.contiguous(memory_format=torch.channels_last), y)
        sums.sum().item()  # waits for the GPU
        ends.append(time.perf_counter())
    operations = forward_flops(config.model, config.dataset, config.width, config.image_size) * (1 + _BACKWARD)
    return operations * config.batch_size * _STEPS / (ends[-1] - ends[0])


def plan(configs: Iterable[RunConfig], results: str | Path, device: str, jobs: int | None) -> dict:
    """The runs left and the hours that they will take here: in all, and of each network, whose speed is measured if the archive has none.

    To be called in a process of its own: it sets PyTorch's threads to one, as runs of a sweep have it.
    """
    torch.set_num_threads(1)
    left = unfinished(configs, results)
    chosen, at_once = steps.resolve_device(device), jobs or default_jobs(device)
    name, share = steps.device_name(chosen), at_once if chosen.type == "cuda" else 1  # runs at once share a GPU
    try:
        speeds = rates(results, {config.model for config in left})
    except ArchiveError:  # a damaged run of another sweep, which is not this one's to report
        speeds = {}
    for config in left:
        if _kind(config, name) not in speeds:
            speeds[_kind(config, name)] = measured_speed(config, chosen) / share
    times = dict(zip(left, seconds_left(left, results, name, speeds), strict=True))
    hours = defaultdict(list)
    for config, lasts in times.items():
        hours[f"{config.model}, width {config.width}, {config.precision}"].append(lasts / 3600)
    rows = [{"network": key, "runs": len(of), "hours_each": sum(of) / len(of)} for key, of in hours.items()]
    return {
        "runs": len(left),
        "jobs": at_once,
        "hours": span(times, _workers(chosen, at_once)) / 3600,
        "networks": rows,
    }


def unfinished(configs: Iterable[RunConfig], results: str | Path) -> list[RunConfig]:
    """What a sweep has to train: the runs that the archive lacks, and again the parents of these whose weights are not kept."""
    known = {config.hash: config for config in configs}
    left = [config for config in known.values() if not finished(Path(results), config)]
    for config in left:  # grows
        parent = known.get(config.parent)
        if parent and parent not in left and not weights.path(Path(results), parent.hash).exists():
            left.append(parent)
    return left


def seconds_left(
    configs: Iterable[RunConfig], results: str | Path, device: str, speeds: Mapping[tuple, float] | None = None
) -> list[float] | None:
    """Expected seconds of each unfinished run, less what its checkpoint holds, at the archive's or other speeds; None if none is known."""
    configs, times = list(configs), []
    if speeds is None:
        speeds = rates(results, {config.model for config in configs}) or rates(results)
    for config in configs:
        expected = seconds(config, speeds, device)
        if expected is None:
            return None
        done = checkpoint.epochs_done(archive.cache_dir(Path(results), config) / checkpoint.FILE)
        times.append(expected * (1 - done / max(1, epochs(config))))
    return times


def outlook(configs: Sequence[RunConfig], results: str | Path, device: str, jobs: int | None) -> str:
    """`, about 3 hours with 2 at once`: how long these runs will take here; empty if no speed is known."""
    chosen = steps.resolve_device(device)
    try:
        times, at_once = seconds_left(configs, results, steps.device_name(chosen)), jobs or default_jobs(device)
    except ArchiveError:  # a damaged run of another sweep, which is not this one's to report
        return ""
    if not times:
        return ""
    lasts = span(dict(zip(configs, times, strict=True)), _workers(chosen, at_once))
    return f", {about(lasts / 3600)} with {at_once} at once"


def _workers(device: torch.device, at_once: int) -> int:
    """How many runs go on at full speed: on the CPU no more than it has cores."""
    return min(at_once, os.cpu_count()) if device.type == "cpu" else at_once


def about(hours: float) -> str:
    """`about 40 s`, `about 90 min` or `about 3 hours`."""
    if hours < 1 / 30:
        return f"about {max(1, round(3600 * hours))} s"
    return f"about {round(60 * hours)} min" if hours < 2 else f"about {hours:.0f} hours"


def makespan(durations: Sequence[float], workers: int) -> float:
    """Seconds until the last run ends when each worker takes the next run of the list as it becomes free."""
    free = [0.0] * workers
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def span(times: Mapping[RunConfig, float], workers: int) -> float:
    """Seconds of a sweep of these runs: those with a parent among them begin when all that have none have ended."""
    return sum(makespan([times[config] for config in part], workers) for part in generations(times))
