"""Everything an unfinished run changes as it goes, and its safetensors file: enough to go on in the middle of an epoch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rwclib.runs import weights
from rwclib.runs.config import RunConfig
from rwclib.runs.recording import Recorder
from rwclib.tracker import RWCTracker

FILE = "checkpoint.safetensors"
TEST_BATCH = 100  # images of evaluation; on a CPU the activations of more outweigh the weights
EPOCH_COLUMNS = ("train_loss", "train_top1", "train_top5", "test_loss", "test_top1", "test_top5")


@dataclass
class State:
    """A run between two batches.

    Attributes:
        order, augmentation: generators of the epochs' random choices.
        sums: of the epoch that is being worked on, as in `rwclib.runs.steps.Steps`.
        epoch: finished epochs.
        batch: batches of the next epoch done already, training first, then evaluation.
        rows: one per finished epoch, `EPOCH_COLUMNS`.
        seconds: one per finished epoch; `spent`, on the next one so far.
        snapshots: what they were reduced to so far; their files are their own.
        recorder: what a run of so many iterations has recorded so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    tracker: RWCTracker
    order: torch.Generator
    augmentation: torch.Generator
    sums: Tensor
    epoch: int = 0
    batch: int = 0
    rows: list[list[float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    spent: float = 0.0
    started: str = ""
    resumed: int = 0
    data_digest: str = ""
    snapshots: weights.Snapshots | None = None
    recorder: Recorder | None = None

    def __post_init__(self) -> None:
        self.mark()

    def mark(self) -> None:
        """Remember the generators before an epoch is drawn from them: a resumed run draws it again."""
        self._drawn_from = self.order.get_state(), self.augmentation.get_state()

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in slots.items() if value is not None
            }
        tensors |= {f"tracker.{key}": value for key, value in self.tracker.state_dict().items()}
        tensors["rng.order"], tensors["rng.augmentation"] = self._drawn_from
        tensors["rng.torch"] = torch.get_rng_state()
        if self.sums.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.sums.device)
        tensors |= {"sums": self.sums, "rows": torch.tensor(self.rows, dtype=torch.float64)}
        if self.snapshots:
            tensors["snapshots"] = torch.stack(self.snapshots.sums)
        if self.recorder:
            tensors |= {f"recorded.{key}": value.cpu() for key, value in self.recorder.tensors().items()}
        return tensors

    def save(self, path: Path, config: RunConfig) -> None:
        """Write the checkpoint beside its place and rename it."""
        notes = {"config": config.canonical_json(), "epoch": self.epoch, "batch": self.batch, "seconds": self.seconds,
                 "spent": self.spent, "started": self.started, "resumed": self.resumed, "data_digest": self.data_digest,
                 "test_batch": TEST_BATCH, "snapshots": self.snapshots.epochs if self.snapshots else []}  # fmt: skip
        weights.write(path, self._tensors(), {"rwclib": json.dumps(notes)})
        if self.snapshots:
            self.snapshots.drop()

    def load(self, path: Path, config: RunConfig) -> None:
        """Go on from the checkpoint; `ValueError`, `RuntimeError` or `SafetensorError` if it does not fit."""
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["rwclib"])
            if notes["config"] != config.canonical_json():
                raise ValueError("it belongs to another run")
            if notes.get("test_batch") != TEST_BATCH:
                raise ValueError("another version wrote it")
            if notes["data_digest"] != self.data_digest:
                raise ValueError("the image set has changed since it was written")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.tracker.load_state_dict(part("tracker."))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for key, value in part("optimizer.").items():
            index, slot = key.split(".")
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:  # keep the parameter's memory format
                value = torch.empty_like(parameter).copy_(value)
            elif self.optimizer.param_groups[0].get("capturable"):  # Adam's count of steps, in a CUDA graph
                value = value.to(parameter.device)
            self.optimizer.state[parameter][slot] = value
        self.order.set_state(tensors["rng.order"])
        self.augmentation.set_state(tensors["rng.augmentation"])
        self.mark()
        torch.set_rng_state(tensors["rng.torch"])
        if "rng.cuda" in tensors and self.sums.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.sums.device)
        if self.snapshots:
            self.snapshots.resume(notes["snapshots"], tensors["snapshots"])
        if self.recorder:
            self.recorder.resume(part("recorded."))
        self.sums.copy_(tensors["sums"])
        self.rows = tensors["rows"].reshape(-1, len(EPOCH_COLUMNS)).tolist()
        self.epoch, self.batch, self.seconds, self.spent = (notes[k] for k in ("epoch", "batch", "seconds", "spent"))
        self.started, self.resumed = notes["started"], notes["resumed"] + 1


def epochs_done(path: Path) -> int:
    """Finished epochs of the run whose checkpoint this is; 0 if there is none or it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["rwclib"])["epoch"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return 0
