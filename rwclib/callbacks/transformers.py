"""RWCCallback for the Trainer of transformers: the tracker in its loop, its rows in the log, its state in checkpoints."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from rwclib.callbacks._common import check_every, whole
from rwclib.tracker import RWCTracker

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise ImportError("the Trainer's callback needs transformers and accelerate: install rwclib[callbacks]") from error


class RWCCallback(TrainerCallback):
    """Relative weight change of the model that a `transformers.Trainer` trains.

    A row's `step` is `state.global_step`, which counts optimizer steps. The Trainer hands no callback itself, so
    `attach(trainer)` is what lets the rows reach its log and all its reporters; given in `callbacks=[...]` alone, a callback
    writes them to `state.log_history` only. Every checkpoint gets `<prefix>.safetensors`, and a resumed training finds it in
    the checkpoint that `output_dir` (or `TrainingArguments.resume_from_checkpoint`) has.

    Args:
        every_n_steps: optimizer steps from row to row; None for a row at the end of every epoch.
        by: what is logged together, as in `RWCTracker.scalars`.
        prefix: what the logged names begin with; several callbacks of one trainer need different ones.
        resume_from: the checkpoint to resume from, where `train(resume_from_checkpoint=...)` names one elsewhere.
        tracker_options: for `RWCTracker`, for example `layers`.

    Attributes:
        tracker: the `RWCTracker`, made when training begins; None before.

    Raises:
        ConfigError: `every_n_steps` is no whole number from 1; and what `RWCTracker` raises, when training begins.

    Example:
        >>> callback = RWCCallback(every_n_steps=100).attach(trainer)
        >>> trainer.train()
        >>> callback.tracker.table()
    """

    def __init__(
        self, every_n_steps: int | None = None, by: Any = "block", prefix: str = "rwc",
        resume_from: str | os.PathLike[str] | None = None, **tracker_options: Any,
    ) -> None:  # fmt: skip
        check_every(every_n_steps)
        self.every_n_steps, self.by, self.prefix, self.tracker_options = every_n_steps, by, prefix, tracker_options
        self.resume_from = resume_from
        self.tracker: RWCTracker | None = None
        self.trainer: Trainer | None = None
        self._measured = 0

    def attach(self, trainer: Trainer) -> RWCCallback:
        """Add this callback to `trainer`, unless it is there, and log through it. Returns the callback."""
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self.trainer = trainer
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Make the tracker, and take up the checkpoint's state in a resumed training."""
        self.tracker = RWCTracker(model, **self.tracker_options)
        self._measured = state.global_step
        if state.global_step == 0:
            return
        file = self._file(self.resume_from or args.resume_from_checkpoint, args, state)
        if file.is_file():
            self.tracker.load_state_dict(load_file(file))
        else:
            warnings.warn(f"there is no {file}: rows of weight change begin at step {state.global_step}", stacklevel=2)

    def _file(self, folder: Any, args: TrainingArguments, state: TrainerState) -> Path:
        """Where the state is in the checkpoint `folder`; if that names none, in that of this step in `output_dir`."""
        if not isinstance(folder, str | os.PathLike) or not Path(folder).is_dir():
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        return Path(folder) / f"{self.prefix.replace('/', '-')}.safetensors"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A row, if due; an epoch's as soon as its last step is done, since a checkpoint may follow before its end."""
        every = self.every_n_steps
        if state.global_step % every == 0 if every else float(state.epoch).is_integer():
            self._measure(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The row of an epoch that ended early or whose length was not known."""
        if not self.every_n_steps and self._measured != state.global_step:
            self._measure(state, control)

    def _measure(self, state: TrainerState, control: TrainerControl) -> None:
        self._measured = state.global_step
        if not self.tracker.step(at=state.global_step):
            return
        scalars = self.tracker.scalars(self.prefix, by=self.by)
        if self.trainer is None:
            state.log_history.append({**scalars, "epoch": state.epoch, "step": state.global_step})
            return
        due = control.should_log  # of the loss, by the Trainer itself; its log() takes that for done
        self.trainer.log(scalars)
        control.should_log = due

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The tracker's tensors into the checkpoint just saved."""
        tensors, file = whole(self.tracker.state_dict()), self._file(None, args, state)
        if args.should_save and file.parent.is_dir():
            unfinished = file.with_name(file.name + ".tmp")
            save_file(tensors, unfinished)
            unfinished.replace(file)
