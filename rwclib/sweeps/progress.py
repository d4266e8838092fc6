"""A progress display for sweeps: runs and epochs done, speed, losses, time left; on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rwclib.runs import data
from rwclib.runs.config import RunConfig


class SweepProgress:
    """`with SweepProgress(configs) as tell: run_all(configs, progress=tell)`."""

    def __init__(self, configs: Sequence[RunConfig]) -> None:
        self._epochs = {c.name: c.epochs_over(c.n_train or data.get(c.dataset).n_train) for c in configs}
        self._done = dict.fromkeys(self._epochs, 0)
        self._latest: dict[str, dict] = {}
        self._ended: set[str] = set()
        self._console = Console(file=sys.stderr, force_jupyter=False)
        self._progress = Progress(
            TextColumn("{task.fields[runs]}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"), console=self._console, transient=False,
        )  # fmt: skip
        self._task = self._progress.add_task("sweep", total=sum(self._epochs.values()), runs="", now="")

    def __enter__(self) -> SweepProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def __call__(self, name: str, values: dict) -> None:
        if values:
            self._done[name], self._latest[name] = values["epoch"], values
            if not self._console.is_terminal:
                self._console.print(progress_line(name, values), soft_wrap=True)
        else:
            self._ended.add(name)
            self._done[name] = self._epochs[name]
            self._latest.pop(name, None)
        speed = sum(v["images_per_s"] for v in self._latest.values())
        losses = " ".join(f"{v['train_loss']:.3f}" for v in self._latest.values())
        self._progress.update(
            self._task, total=sum(self._epochs.values()), completed=sum(self._done.values()), runs=f"{len(self._ended)}/{len(self._epochs)} runs",
            now=f"{speed:,.0f} images/s, loss {losses}" if losses else "",
        )  # fmt: skip


def progress_line(name: str, values: dict) -> str:
    """One line on the epoch that `rwclib.runs.training.run` reports."""
    return (
        f"{name} epoch {values['epoch']}/{values['epochs']} loss {values['train_loss']:.4f} "
        f"test top-1 {values['test_top1']:.2f}% {values['images_per_s']:,.0f} images/s"
    )
