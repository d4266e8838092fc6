"""run(config): train, evaluate, track, checkpoint and resume one run, and put it into the archive."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import SoftFileLease
from safetensors import SafetensorError
from threadpoolctl import threadpool_limits

from rwclib.analysis import perturbation
from rwclib.errors import ArchiveError, ConfigError, DivergedError, OutOfTimeError, one_line
from rwclib.runs import archive, data, locks, models, weights
from rwclib.runs.checkpoint import FILE, TEST_BATCH, State
from rwclib.runs.config import RunConfig
from rwclib.runs.final_measures import measured
from rwclib.runs.record import epochs_table, layers_table, means, now, provenance
from rwclib.runs.recording import IMAGES, Recorder
from rwclib.runs.start import begin, generator, optimizer
from rwclib.runs.steps import Steps, best_engine, check_engine, resolve_device, set_backend
from rwclib.tracker import RWCTracker

CHECKPOINT_SECONDS = 20.0
# Initial weights and dropout come from torch's global generator, seeded here: runs in threads of one process take turns.
_ONE_RUN_AT_A_TIME = threading.Lock()
Progress = Callable[[dict], None]


def check(config: RunConfig) -> None:
    """`ConfigError` if the config names something unknown or cannot be run; nothing is read or written."""
    models.get(config.model)
    if config.perturbation == "none":  # else the weights are the parent's
        models.check_init(config.model, config.width, config.init)
    perturbation.parse(config.perturbation)
    if config.normalize == "imagenet" and data.get(config.dataset).in_channels != 3:
        raise ConfigError(
            f"normalize 'imagenet' needs colour images, and {config.dataset} is grey; use normalize 'none'"
        )


def run(
    config: RunConfig,
    *,
    results: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    engine: str = "eager",
    threads: int | None = None,
    deadline: float | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep_weights: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train the run to its end, from its last checkpoint if there is one, and return its directory in the archive.

    A finished run stays as it is. An interrupted one ends with the same tables, bit for bit on one CPU build and number of threads.

    Args:
        results, data_dir: folders of the archive and of the image sets; defaults as in `archive.default_results`, `data.folder`.
        device, engine: `auto`, `cpu`, `cuda`, `cuda:1`, ...; a name in `rwclib.runs.config.ENGINES`.
        threads: CPU threads, on which the last bits of the tables depend; default as torch has it.
        deadline: `time.time()` after which to stop at the end of a batch, at least the first, with a checkpoint.
        checkpoint_seconds: least time between two checkpoints, taken at the end of a batch.
        keep_weights: leave the final weights in the archive's cache, for runs with this `parent`; a finished run is trained again for them.
        progress: called after each epoch with `epoch`, `epochs`, `train_loss`, `test_top1`, `images_per_s`.

    Raises:
        ConfigError: unknown model, data set, device or engine, or more images asked for than there are.
        DataError: a missing or damaged image set.
        RunLockedError: another live process is working on this run.
        DivergedError: a loss or weight became infinite or NaN; the run is archived with status `diverged`.
        OutOfTimeError: the deadline came first; call again to go on.
        ArchiveError: a folder that cannot be written, or missing or damaged weights of the parent.
    """
    check(config)
    results = Path(results or archive.default_results())
    place = archive.run_dir(results, config)
    if archive.is_finished(results, config):
        try:
            if _is_complete(results, config, keep_weights):
                archive.remove_leftovers(results, config)
                return place
        except ArchiveError:
            if not place.is_dir():
                raise
    end = None if deadline is None else time.monotonic() + deadline - time.time()  # the clock may be set back
    check_engine(engine, chosen := resolve_device(device))
    images = data.load(config.dataset, data_dir).subset(config.n_train, config.n_test)
    with _ONE_RUN_AT_A_TIME, locks.hold(archive.lock_path(results, config)) as lease, _surroundings(chosen, threads):
        if not _was_finished_meanwhile(results, config, keep_weights):
            try:
                training = _Training(config, images, results, chosen, engine, lease, end, checkpoint_seconds, progress)
                training.train()
                training.finish(keep_weights)
            except (ArchiveError, OSError, SafetensorError):
                locks.check(lease)  # the files of a run that was taken over may be gone
                if not archive.is_finished(results, config) or not _is_complete(results, config, keep_weights):
                    raise  # else finished by one from which this process had taken it over
                shutil.rmtree(archive.cache_dir(results, config), ignore_errors=True)
    return place


def _was_finished_meanwhile(results: Path, config: RunConfig, keep_weights: bool) -> bool:
    """Whether another process was faster; a damaged directory is set aside."""
    try:
        return archive.is_finished(results, config) and _is_complete(results, config, keep_weights)
    except ArchiveError as error:
        aside = archive.set_aside(archive.run_dir(results, config))
        print(f"{error}: kept as {aside.name}, training it again", file=sys.stderr, flush=True)
        return False


def _is_complete(results: Path, config: RunConfig, keep_weights: bool) -> bool:
    """Whether nothing is left to do for the run in the archive; `DivergedError` if it diverged."""
    record = archive.read(results, config).record
    if record["status"] == "diverged":
        raise DivergedError(f"{config.name} diverged in epoch {record['diverged']['epoch']}; lower the learning rate")
    return not keep_weights or weights.path(results, config.hash).exists()


@contextlib.contextmanager
def _surroundings(device: torch.device, threads: int | None) -> Iterator[None]:
    """What a run sets in its process, for as long as it takes."""
    before, cuda = torch.get_num_threads(), device.type == "cuda"
    with (
        threadpool_limits(1, user_api="blas"),  # so that the metrics do not depend on the number of threads
        torch.cuda.device(device) if cuda else contextlib.nullcontext(),  # graphs need it current
        torch.random.fork_rng(devices=[device] if cuda else []),
    ):
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class _Training:
    """One run in progress, made from its last checkpoint if there is one."""

    def __init__(
        self,
        config: RunConfig,
        images: data.ImageSet,
        results: Path,
        device: torch.device,
        engine: str,
        lease: SoftFileLease,
        end: float | None,
        checkpoint_seconds: float,
        progress: Progress | None,
    ) -> None:
        if engine == "auto":
            engine = best_engine(config, device, len(images.y_train))
        self.config, self.images, self.results, self.device, self.engine = config, images, results, device, engine
        self.lease, self.end, self.checkpoint_seconds, self.progress = lease, end, checkpoint_seconds, progress
        set_backend(device, config.precision)
        self.parent = weights.read(results, config.parent) if config.parent else None
        model = begin(config, data.get(config.dataset), self.parent).to(device, memory_format=torch.channels_last)
        torch.manual_seed(config.seed)  # dropout; inside fork_rng
        self.state = State(
            model, optimizer(config, model, engine), RWCTracker(model),
            generator(config.seed, "order"), generator(config.seed, "augmentation"),
            torch.zeros(2, 3, dtype=torch.float64, device=device), started=now(), data_digest=images.digest(),
        )  # fmt: skip
        kind = {"image_size": config.image_size, "normalize": config.normalize, "device": device}
        self.train_set = data.Batches(images.x_train, images.y_train, crop_padding=config.crop_padding, **kind)
        self.test_set = data.Batches(images.x_test, images.y_test, **kind)
        if config.snapshot_every:
            self.state.snapshots = weights.Snapshots(archive.cache_dir(results, config), self.parent)
        if config.iterations:
            self.state.recorder = Recorder(model, *next(self.test_set.in_order(IMAGES)), config.iterations)
        self._resume()
        self.steps = Steps(
            model, self.state.optimizer, self.state.sums,
            batch_size=config.batch_size, precision=config.precision, engine=engine,
        )  # fmt: skip
        self.epochs = config.epochs_over(len(self.train_set))
        self.diverged, self.saved, self.began = False, time.monotonic(), time.perf_counter()

    def _resume(self) -> None:
        """Go on from the checkpoint, or take the snapshot of the start."""
        archive.remove_parts(self.results, self.config)
        self.checkpoint = archive.cache_dir(self.results, self.config) / FILE
        if self.checkpoint.exists():
            try:
                self.state.load(self.checkpoint, self.config)
            except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
                aside = self.checkpoint.with_suffix(".damaged")
                os.replace(self.checkpoint, aside)
                raise ArchiveError(
                    f"the checkpoint of {self.config.name} is damaged ({one_line(error)}): moved to {aside.name}; "
                    "call again to start the run anew"
                ) from error
        if self.state.snapshots and not self.state.snapshots.epochs:
            self.state.snapshots.take(self.state.model, 0)

    def train(self) -> None:
        """Every epoch that is left, until the last one or the first that diverges."""
        while self.state.epoch < self.epochs and not self.diverged:
            self._train_epoch()

    def _train_epoch(self) -> None:
        config, state = self.config, self.state
        self.began = time.perf_counter()
        state.mark()
        plan = self.train_set.plan(state.augmentation, state.order, flip=config.flip, shuffle=config.shuffle)
        batches = -(-len(self.train_set) // config.batch_size)
        done = state.epoch * batches
        if config.iterations:
            batches = min(batches, config.iterations - done)  # those of evaluation follow
        state.model.train()
        left = self.train_set.epoch(plan, config.batch_size, start=state.batch)
        for x, y in itertools.islice(left, max(0, batches - state.batch)):
            self.steps.train(x, y)
            if state.recorder:
                state.recorder.after(done + state.batch + 1)
            self._between_batches()
        state.model.eval()
        for x, y in self.test_set.in_order(TEST_BATCH, start=state.batch - batches):
            self.steps.evaluate(x, y)
            self._between_batches()
        self._end_epoch(min(len(self.train_set), batches * config.batch_size))

    def _between_batches(self) -> None:
        """Save a checkpoint when it is time to, and stop when there is no more time."""
        state = self.state
        state.batch += 1
        late = self.end is not None and time.monotonic() > self.end
        if late or time.monotonic() - self.saved >= self.checkpoint_seconds:
            now = time.perf_counter()
            state.spent, self.began = state.spent + now - self.began, now
            locks.check(self.lease)
            state.save(self.checkpoint, self.config)
            self.saved = time.monotonic()
        if late:
            raise OutOfTimeError(
                f"{self.config.name} stopped in epoch {state.epoch + 1} of {self.epochs}; call again to go on"
            )

    def _end_epoch(self, trained: int) -> None:
        """Measure, record and report an epoch over so many training images."""
        state = self.state
        row = means(state.sums, trained, len(self.test_set))
        state.tracker.step()
        state.rows.append(row)
        state.seconds.append(state.spent + time.perf_counter() - self.began)
        state.epoch, state.batch, state.spent = state.epoch + 1, 0, 0.0
        state.sums.zero_()
        finite = math.isfinite(row[0]) and state.tracker.history()["l2_norm"][-1].isfinite().all()
        self.diverged = not finite
        if state.snapshots and (state.epoch % self.config.snapshot_every == 0 or state.epoch == self.epochs):
            state.snapshots.take(state.model, state.epoch)
        if self.progress and finite:
            speed = trained / state.seconds[-1]
            self.progress({"epoch": state.epoch, "epochs": self.epochs, "train_loss": row[0], "test_top1": row[4],
                           "images_per_s": speed})  # fmt: skip

    def finish(self, keep_weights: bool) -> None:
        """Put the run into the archive and delete its checkpoint; `DivergedError` if it diverged."""
        config, state, results = self.config, self.state, self.results
        locks.check(self.lease)
        record = {
            "status": "diverged" if self.diverged else "done",
            "provenance": provenance(config, self.images, self.device, self.engine, state),
        }
        if self.diverged:
            record["diverged"] = {"epoch": state.epoch, "train_loss": str(state.rows[-1][0])}
        if self.parent:
            record["parent_weights_sha256"] = self.parent.sha256
        if keep_weights and not self.diverged:
            record["weights_sha256"] = weights.keep(results, config, state.model)
        if not archive.is_finished(results, config):
            extra = {} if self.diverged else measured(config, state, self.test_set, self.parent)
            archive.write(results, config, record, layers_table(config, state), epochs_table(state), extra)
        if locks.is_held(self.lease):
            shutil.rmtree(self.checkpoint.parent, ignore_errors=True)
        if self.diverged:
            raise DivergedError(
                f"{config.name} diverged in epoch {state.epoch} (training loss {state.rows[-1][0]}); lower the learning rate"
            )
