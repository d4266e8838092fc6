"""RWCCallback for Lightning: the tracker inside `Trainer.fit`, its rows in the logger, its state in the checkpoints."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor

from rwclib.callbacks._common import check_every, whole
from rwclib.tracker import RWCTracker


def _framework() -> ModuleType:
    """`lightning.pytorch` or `pytorch_lightning`: the one in use, else the one installed."""
    names = sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda name: name not in sys.modules)
    for name in names:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in ("lightning", *names):  # something that Lightning itself needs
                raise
    raise ImportError("the Lightning callback needs Lightning: install rwclib[callbacks]")


class RWCCallback(_framework().Callback):
    """Relative weight change of the model that a Lightning `Trainer` trains.

    A row's `step` is `trainer.global_step`, which counts optimizer steps. Every row goes to the loggers at that step, and by
    `log_dict` to whatever monitors a metric. Checkpoints hold the tracker's state; `fit(..., ckpt_path=...)` takes it up.

    Args:
        every_n_steps: optimizer steps from row to row; None for a row at the end of every epoch.
        by: what is logged together, as in `RWCTracker.scalars`.
        prefix: what the logged names begin with; several callbacks of one trainer need different ones.
        tracker_options: for `RWCTracker`, for example `layers`.

    Attributes:
        tracker: the `RWCTracker`, made when training starts; None before.

    Raises:
        ConfigError: `every_n_steps` is no whole number from 1; and what `RWCTracker` raises, when training starts.

    Example:
        >>> callback = RWCCallback(every_n_steps=100)
        >>> Trainer(callbacks=[callback]).fit(module, loader)
        >>> callback.tracker.table()
    """

    def __init__(
        self, every_n_steps: int | None = None, by: Any = "block", prefix: str = "rwc", **tracker_options: Any
    ):
        check_every(every_n_steps)
        self.every_n_steps, self.by, self.prefix, self.tracker_options = every_n_steps, by, prefix, tracker_options
        self.tracker: RWCTracker | None = None
        self._loaded: dict[str, Tensor] = {}
        self._seen = self._measured = 0  # optimizer steps: at the last batch, at the last row

    @property
    def state_key(self) -> str:
        """The state's name in a checkpoint."""
        return f"RWCCallback({self.prefix})"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget a state that `trainer.test` or the like has loaded."""
        self._loaded = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the tracker; `trainer.model` is the module with its wrapper, by which DDP and sharding are recognised."""
        self.tracker = RWCTracker(trainer.model, **self.tracker_options)
        if self._loaded:
            self.tracker.load_state_dict(self._loaded)
        self._loaded, self._seen, self._measured = {}, trainer.global_step, trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A row if the optimizer's steps have passed a multiple of `every_n_steps` since the batch before.

        An epoch's follows its last batch at once: resumed from a checkpoint saved there, training has no such epoch's end.
        """
        every, before, self._seen = self.every_n_steps, self._seen, trainer.global_step
        if self._seen // every > before // every if every else trainer.is_last_batch:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The row of an epoch that ended early."""
        if not self.every_n_steps and self._measured != trainer.global_step:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        self._measured = trainer.global_step
        if self.tracker.step(at=trainer.global_step):  # empty on the ranks of a DDP model other than 0
            scalars = self.tracker.scalars(self.prefix, by=self.by)
            pl_module.log_dict(scalars, logger=False, batch_size=1, rank_zero_only=True)
            for logger in trainer.loggers:  # log_dict would repeat a row's numbers in the steps after it
                logger.log_metrics(scalars, step=trainer.global_step)

    def state_dict(self) -> dict[str, Tensor]:
        """The tracker's tensors; before training starts, those that were loaded."""
        return whole(self.tracker.state_dict()) if self.tracker else self._loaded

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Keep the tensors until training starts."""
        self._loaded = state_dict
