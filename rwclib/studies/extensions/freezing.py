"""Does relative weight change tell what to freeze? ResNet-18 of study 1, its layers frozen in four orders for equal spared work.

The share of the backward pass that is spared rises evenly from epoch to epoch, from none to twice the share asked for, so that
over the run it is that share. Before each epoch the next layers of the arm's order are frozen, until the epochs so far
and the next have spared what they should. The head always trains.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.flop_counter import FlopCounterMode

from rwclib import _layers
from rwclib._resetting import reset_layers
from rwclib.freezing import Freezer, freeze
from rwclib.runs import data, models
from rwclib.runs.config import RunConfig
from rwclib.studies import layerwise
from rwclib.studies.extensions.loop import Loop
from rwclib.studies.stored import stored
from rwclib.tracker import RWCTracker

MODEL, SEEDS = "resnet18", (0, 42, 123)
SCHEDULES = ("constant", "cosine")  # of the learning rate
ALL = "all train"
ARMS = {  # orders of freezing, by a column of the tracker's table, smallest first; random: none
    "bottom up": "depth",  # FreezeOut's (arXiv 1706.04983)
    "random": "",
    "lowest RWC": "rwc",  # Eq. 1, of the last epoch
    "least distance": "l2_start",
}
SHARES = (0.2, 0.4)  # of the backward pass's floating-point operations, over the run
LAST = 3  # epochs whose mean test accuracy counts


def run_config(profile: str, dataset: str, seed: int) -> RunConfig:
    """Study 1's run at a profile, in bf16."""
    return replace(layerwise.run_config(profile, MODEL, dataset, seed), precision="bf16")


@functools.cache
def backward_flops(config: RunConfig, frozen: frozenset[str]) -> int:
    """Floating-point operations of two images' backward pass with these layers frozen, as PyTorch counts them."""
    known = data.get(config.dataset)
    with torch.device("meta"):
        network = models.build(
            config.model, num_classes=known.num_classes, in_channels=known.in_channels, width=config.width
        )
        images = torch.empty(2, known.in_channels, config.image_size, config.image_size)
    freeze(network, frozen)
    loss = network(images).sum()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return counter.get_total_flops()


def _rule(config: RunConfig, arm: str, share: float, progress: dict) -> Callable[[pd.DataFrame], list[str]]:
    """What a `Freezer` freezes before the epoch after `progress["epoch"]` epochs, `progress["spared"]` epochs' worth being spared."""
    plan = np.linspace(0, 2 * share, config.epochs)
    permuted = np.random.default_rng(config.seed)

    def spared(frozen: set[str]) -> float:
        return 1 - backward_flops(config, frozenset(frozen)) / backward_flops(config, frozenset())

    def rule(table: pd.DataFrame) -> list[str]:
        last = table[(table["step"] == table["step"].max()) & (table["layer"] != "fc.weight")]
        if arm == "random":
            names = list(permuted.permutation(last["layer"]))
        else:
            names = list(last.sort_values(ARMS[arm])["layer"]) if arm != ALL else []
        frozen, chosen = set(progress["frozen"]), []
        due = plan[: progress["epoch"] + 1].sum() - progress["spared"]
        while names and spared(frozen) < due:
            chosen.append(names.pop(0))
            frozen.add(chosen[-1])
        progress["share"] = spared(frozen)
        return chosen

    return rule


@functools.lru_cache(1)
def _trained(profile: str, dataset: str, schedule: str, arm: str, share: float, seed: int) -> tuple[list, Loop, dict]:
    """Rows of `freezing`, the loop at its end, and the weights of the start."""
    config = run_config(profile, dataset, seed)
    loop = Loop(config)
    first = {name: weight.detach().clone() for name, weight in _layers.weights(loop.network).items()}
    tracker, rows, seconds = RWCTracker(loop.network, start=True), [], 0.0
    progress = {"epoch": 0, "spared": 0.0, "share": 0.0, "frozen": {}}
    freezer = Freezer(tracker, _rule(config, arm, share, progress))
    progress["frozen"] = freezer.frozen
    rates = CosineAnnealingLR(loop.optimizer, config.epochs) if schedule == "cosine" else None
    for epoch in range(1, config.epochs + 1):
        began = time.process_time()
        for _ in loop.epoch():
            pass
        seconds += time.process_time() - began
        top1, layers = loop.test_top1(), len(freezer.frozen)
        rows.append((epoch, top1, seconds, progress["share"], layers))
        progress |= {"epoch": epoch, "spared": progress["spared"] + progress["share"]}
        tracker.step()
        if rates:
            rates.step()
        if epoch < config.epochs:
            freezer.step()
    return rows, loop, first


@stored
def freezing(profile: str, dataset: str, schedule: str, arm: str, share: float, seed: int) -> pd.DataFrame:
    """One run, an epoch a row: epoch, top1 (test, percent), seconds (of CPU, training alone, summed), spared (share), frozen (layers).

    `arm`: a name in `ARMS`, or `ALL` with share 0. `DataError` without the data set.
    """
    rows, *_ = _trained(profile, dataset, schedule, arm, share, seed)
    return pd.DataFrame(rows, columns=["epoch", "top1", "seconds", "spared", "frozen"])


@stored
def resets(profile: str, dataset: str, schedule: str, seed: int) -> pd.DataFrame:
    """`rwclib.reset_layers` at the end of a run in which all layers trained: value and change are test top-1 (percent, points)."""
    _, loop, first = _trained(profile, dataset, schedule, ALL, 0.0, seed)
    return reset_layers(loop.network, first, lambda network: loop.test_top1())
