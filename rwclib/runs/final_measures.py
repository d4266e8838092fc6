"""What some runs measure besides the change of their layers, once training is over."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd

from rwclib.analysis import features
from rwclib.runs import data, weights
from rwclib.runs.checkpoint import TEST_BATCH, State
from rwclib.runs.config import RunConfig

FEATURE_IMAGES = 512  # whose penultimate features a run with snapshots stores


def measured(
    config: RunConfig, state: State, test_set: data.Batches, before: weights.Final | None
) -> dict[str, pd.DataFrame | np.ndarray]:
    """`snapshots`, `features` at start and end, and `penultimate` of a run with `snapshot_every`; recordings of one of iterations.

    `features` has, for the start and the end: test top-1 (percent), features that vary over the test images and all of
    them, mean off-diagonal correlation; and of a perturbed run `features.summary` with the parent's. `penultimate` are the
    features of the first test images themselves, float16, of runs that are not perturbed. All in float32, also of runs that
    train with autocast.
    """
    recorded = state.recorder.results() if state.recorder else {}
    if not state.snapshots:
        return recorded
    state.optimizer.zero_grad(set_to_none=True)
    state.optimizer.state.clear()  # training is over: its memory is for the parent's network
    model = state.model.eval()
    parent, rows, kept = model, [], []
    if config.perturbation != "none":
        parent = copy.deepcopy(model)
        before.load_into(parent)
    for when in ("end", "start"):
        if when == "start":
            state.snapshots.start().load_into(model)
        own, cross, hits = features.Moments(), features.Moments(), 0
        for (penultimate, of_parent), labels in features.stream([model, parent], test_set.in_order(TEST_BATCH)):
            own.add(penultimate, penultimate)
            if parent is not model:
                cross.add(penultimate, of_parent)
            elif when == "end" and sum(map(len, kept)) < FEATURE_IMAGES:
                kept.append(penultimate.half().cpu().numpy())
            hits += int((features.last_linear(model)(penultimate).argmax(1) == labels).sum())
        matrix = own.correlation()
        rows.append({
            "when": when, "test_top1": 100 * hits / len(test_set), "features": len(matrix),
            "varying": int(np.isfinite(np.diagonal(matrix)).sum()), "correlation": features.mean_off_diagonal(matrix),
            **(features.summary(cross) if parent is not model else dict.fromkeys(features.SUMMARY, np.nan)),
        })  # fmt: skip
    names = [name for name, _ in model.named_parameters()]
    tables = {"snapshots": state.snapshots.table(names), "features": pd.DataFrame(rows[::-1])}
    return recorded | tables | ({"penultimate": np.concatenate(kept)[:FEATURE_IMAGES]} if kept else {})
