"""What of a run's state goes into the archive: its two tables and its provenance."""

from __future__ import annotations

import platform
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rwclib.metrics import METRICS
from rwclib.runs import data, models
from rwclib.runs.checkpoint import EPOCH_COLUMNS, State
from rwclib.runs.config import RunConfig
from rwclib.runs.steps import device_name


def means(sums: Tensor, *images: int) -> list[float]:
    """Mean loss, top-1 and top-5 accuracy (percent), of training and then of evaluation."""
    means = []
    for row, count in zip(sums.tolist(), images, strict=True):
        means += [row[0] / count, 100 * (row[1] / count), 100 * (row[2] / count)]
    return means


def layers_table(config: RunConfig, state: State) -> pd.DataFrame:
    """`layers.parquet`: one row per (epoch, layer)."""
    table = state.tracker.table().rename(columns={"step": "epoch"})
    group = models.get(config.model).group
    table.insert(2, "group", table["layer"].map({layer: group(layer) for layer in state.tracker.layers}))
    return table.astype({"epoch": "int32", "depth": "int32", "size": "int64"} | dict.fromkeys(METRICS, "float64"))


def epochs_table(state: State) -> pd.DataFrame:
    """`epochs.parquet`: one row per epoch."""
    table = pd.DataFrame(state.rows, columns=list(EPOCH_COLUMNS), dtype="float64")
    table.insert(0, "epoch", np.arange(1, len(state.rows) + 1, dtype=np.int32))
    return table


def now() -> str:
    """The time as provenance has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(config: RunConfig, images: data.ImageSet, device: torch.device, engine: str, state: State) -> dict:
    """Where and on what the run was trained, for `run.json`."""
    from rwclib import __version__

    total = sum(state.seconds)
    trained = config.batch_size * config.iterations or len(images.y_train) * len(state.seconds)
    return {
        "rwclib": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "engine": engine,
        "threads": torch.get_num_threads(),
        "data_source": images.source,
        "data_note": images.note,
        "data_digest": state.data_digest,
        "n_train": len(images.y_train),
        "n_test": len(images.y_test),
        "started": state.started,
        "finished": max(state.started, now()),  # the clock may have been set back
        "resumed": state.resumed,
        "train_and_test_seconds": round(total, 3),
        "images_per_s": round(trained / total, 1) if total else None,
        "epoch_seconds": [round(s, 3) for s in state.seconds],
    }
