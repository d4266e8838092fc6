"""run(config): train, evaluate, track, checkpoint and resume one run, and put it into the archive."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from rwclib import archive, data, models, perturbation, weights
from rwclib.checkpoint import EPOCH_COLUMNS, FILE, TEST_BATCH, State
from rwclib.config import RunConfig
from rwclib.errors import ArchiveError, ConfigError, DivergedError, OutOfTimeError, one_line
from rwclib.locks import Lock
from rwclib.measurement import measured
from rwclib.metrics import METRICS
from rwclib.recording import IMAGES, Recorder
from rwclib.steps import Steps, check_engine
from rwclib.tracker import RWCTracker

CHECKPOINT_SECONDS = 20.0
# Initial weights and dropout come from torch's global generator, seeded here: runs in threads of one process take turns.
_ONE_RUN_AT_A_TIME = threading.Lock()
Progress = Callable[[dict], None]


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; `ConfigError` for a device this machine lacks."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device {device!r} is not on this machine; known: auto, cpu, and with a GPU cuda, cuda:1, ..."
        ) from error
    return chosen


def device_name(device: torch.device) -> str:
    """The device as a run's provenance names it: the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def generator(seed: int, purpose: str) -> torch.Generator:
    """The CPU generator of one purpose (`order`, `augmentation`, `perturbation`) of the run with this seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


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

    A finished run returns at once and changes nothing. An interrupted one ends with the same tables, bit for bit on the
    same CPU build and number of threads, as if it had never stopped.

    Args:
        config: what to train.
        results: the archive's folder; default `data/results` of the repository.
        data_dir: folder of the image sets, as in `rwclib.data.folder`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        engine: how full batches are stepped, a name in `rwclib.config.ENGINES`.
        threads: CPU threads; default as torch has it. The last bits of the tables depend on it.
        deadline: `time.time()` after which to stop at the end of a batch, with a checkpoint. A call works off at least
            one batch.
        checkpoint_seconds: least time between two checkpoints, taken at the end of a batch.
        keep_weights: leave the final weights in the archive's cache (`rwclib.weights.read`), for runs with this `parent`. A
            finished run whose weights are gone is trained again for them; what is archived stays.
        progress: called after each epoch with `epoch`, `epochs`, `train_loss`, `test_top1`, `images_per_s`.

    Raises:
        ConfigError: unknown model, data set, device or engine, or more images asked for than there are.
        DataError: the image set is missing or damaged.
        RunLockedError: another live process is working on this run.
        DivergedError: a loss or weight became infinite or NaN; the run is archived with status `diverged`.
        OutOfTimeError: the deadline came first; call again to go on.
        ArchiveError: the folder cannot be written, or the parent's weights are missing or damaged.
    """
    check(config)
    results = Path(results or archive.default_results())
    place = archive.run_dir(results, config)

    def complete() -> bool:
        """Whether nothing is left to do for the run in the archive."""
        _raise_if_diverged(archive.read(results, config), place)
        return not keep_weights or weights.path(results, config.hash).exists()

    if archive.is_finished(results, config):
        try:
            if complete():
                archive.tidy(results, config)
                return place
        except ArchiveError:
            if not place.is_dir():
                raise
    end = None if deadline is None else time.monotonic() + deadline - time.time()  # the clock may be set back
    chosen = resolve_device(device)
    check_engine(engine, chosen)
    images = data.load(config.dataset, data_dir).subset(config.n_train, config.n_test)
    with _ONE_RUN_AT_A_TIME, Lock(archive.lock_path(results, config)) as lock:
        if archive.is_finished(results, config):  # another process was faster, or the directory is damaged
            try:
                if complete():
                    return place
            except ArchiveError as error:
                aside = archive.set_aside(place)
                print(f"{error}: kept as {aside.name}, training it again", file=sys.stderr, flush=True)
        # One BLAS thread in NumPy and SciPy, so that the metrics do not depend on the number of threads.
        with (
            threadpool_limits(1, user_api="blas"),
            torch.cuda.device(chosen) if chosen.type == "cuda" else contextlib.nullcontext(),  # graphs need it current
            torch.random.fork_rng(devices=[chosen] if chosen.type == "cuda" else []),
        ):
            before = torch.get_num_threads()
            torch.set_num_threads(threads or before)
            try:
                return _train(
                    config, images, results, chosen, lock, engine, end, checkpoint_seconds, keep_weights, progress
                )
            except (ArchiveError, OSError, SafetensorError):
                lock.check()  # the files of a run that was taken over may be gone
                if not archive.is_finished(results, config) or not complete():
                    raise
                shutil.rmtree(archive.cache_dir(results, config), ignore_errors=True)
                return place  # finished by one from which this process had taken it over
            finally:
                torch.set_num_threads(before)


def _raise_if_diverged(run: archive.Run, place: Path) -> None:
    if run.record["status"] == "diverged":
        raise DivergedError(
            f"{place.name} diverged in epoch {run.record['diverged']['epoch']}; lower the learning rate"
        )


def _train(
    config: RunConfig,
    images: data.ImageSet,
    results: Path,
    device: torch.device,
    lock: Lock,
    engine: str,
    end: float | None,
    checkpoint_seconds: float,
    keep_weights: bool,
    progress: Progress | None,
) -> Path:
    known, cuda = data.get(config.dataset), device.type == "cuda"
    if cuda:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = config.precision != "fp32"
    parent = weights.borrow(results, config) if config.parent else None
    model = _begin(config, known, parent).to(device, memory_format=torch.channels_last)
    torch.manual_seed(config.seed)  # dropout; inside fork_rng
    state = State(
        model, _optimizer(config, model, engine), RWCTracker(model),
        generator(config.seed, "order"), generator(config.seed, "augmentation"),
        torch.zeros(2, 3, dtype=torch.float64, device=device), started=_now(), data_digest=images.digest(),
    )  # fmt: skip
    if config.snapshot_every:
        state.snapshots = weights.Snapshots(archive.cache_dir(results, config), parent)
    kind = {"image_size": config.image_size, "normalize": config.normalize, "device": device}
    train_set = data.Batches(images.x_train, images.y_train, crop_padding=config.crop_padding, **kind)
    test_set = data.Batches(images.x_test, images.y_test, **kind)
    if config.iterations:
        state.recorder = Recorder(model, *next(test_set.in_order(IMAGES)), config.iterations)
    archive.remove_parts(results, config)
    checkpoint = archive.cache_dir(results, config) / FILE
    if checkpoint.exists():
        try:
            state.load(checkpoint, config)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            aside = checkpoint.with_suffix(".damaged")
            os.replace(checkpoint, aside)
            raise ArchiveError(
                f"the checkpoint of {config.name} is damaged ({one_line(error)}): moved to {aside.name}; call again to start the run anew"
            ) from error

    if state.snapshots and not state.snapshots.epochs:
        state.snapshots.take(model, 0)
    steps = Steps(
        model, state.optimizer, state.sums, batch_size=config.batch_size, precision=config.precision, engine=engine
    )
    per_epoch = -(-len(train_set) // config.batch_size)
    epochs = config.epochs_over(len(train_set))
    saved, began = time.monotonic(), time.perf_counter()

    def between_batches() -> None:
        nonlocal saved, began
        state.batch += 1
        late = end is not None and time.monotonic() > end
        if late or time.monotonic() - saved >= checkpoint_seconds:
            now = time.perf_counter()
            state.spent, began = state.spent + now - began, now
            lock.check()
            state.save(checkpoint, config)
            saved = time.monotonic()
        if late:
            raise OutOfTimeError(f"{config.name} stopped in epoch {state.epoch + 1} of {epochs}; call again to go on")

    diverged = False
    while state.epoch < epochs and not diverged:
        began = time.perf_counter()
        state.mark()
        plan = train_set.plan(state.augmentation, state.order, flip=config.flip, shuffle=config.shuffle)
        done = state.epoch * per_epoch
        batches = (
            min(per_epoch, config.iterations - done) if config.iterations else per_epoch
        )  # those of evaluation follow
        model.train()
        here = train_set.epoch(plan, config.batch_size, start=state.batch)
        for x, y in itertools.islice(here, max(0, batches - state.batch)):
            steps.train(x, y)
            if state.recorder:
                state.recorder.after(done + state.batch + 1)
            between_batches()
        model.eval()
        for x, y in test_set.in_order(TEST_BATCH, start=state.batch - batches):
            steps.evaluate(x, y)
            between_batches()
        trained = min(len(train_set), batches * config.batch_size)
        row = _means(state.sums, trained, len(test_set))
        state.tracker.step()
        state.rows.append(row)
        state.seconds.append(state.spent + time.perf_counter() - began)
        state.epoch, state.batch, state.spent = state.epoch + 1, 0, 0.0
        state.sums.zero_()
        diverged = not (math.isfinite(row[0]) and state.tracker.history()[-1][:, -1].isfinite().all())
        if state.snapshots and (state.epoch % config.snapshot_every == 0 or state.epoch == epochs):
            state.snapshots.take(model, state.epoch)
        if progress and not diverged:
            speed = trained / state.seconds[-1]
            progress({"epoch": state.epoch, "epochs": epochs, "train_loss": row[0], "test_top1": row[4],
                      "images_per_s": speed})  # fmt: skip

    lock.check()
    record = {
        "status": "diverged" if diverged else "done",
        "provenance": _provenance(config, images, device, engine, state),
    }
    if diverged:
        record["diverged"] = {"epoch": state.epoch, "train_loss": str(state.rows[-1][0])}
    if parent:
        record["parent_weights_sha256"] = parent.sha256
    if keep_weights and not diverged:
        record["weights_sha256"] = weights.keep(results, config, model)
    place = archive.run_dir(results, config)
    if not archive.is_finished(results, config):
        extra = {} if diverged else measured(config, state, test_set, parent)
        archive.write(results, config, record, _layers(config, state), _epochs(state), extra)
    if lock.held():
        shutil.rmtree(checkpoint.parent, ignore_errors=True)
    if diverged:
        raise DivergedError(
            f"{config.name} diverged in epoch {state.epoch} (training loss {state.rows[-1][0]}); lower the learning rate"
        )
    return place


def _begin(config: RunConfig, known: data.Dataset, parent: weights.Final | None) -> nn.Module:
    """The network as the run begins: initial weights, or its parent's, transferred or perturbed."""
    perturbed = config.perturbation != "none"
    model = models.build(
        config.model, num_classes=known.num_classes, in_channels=known.in_channels, width=config.width,
        seed=config.seed, init="default" if perturbed else config.init,
    )  # fmt: skip
    try:
        if perturbed:
            parent.load_into(model)
            perturbation.apply(config.perturbation, model, generator(config.seed, "perturbation"))
        elif parent and parent.dataset != config.init.removeprefix("pretrained:"):
            raise ConfigError(f"it was trained on {parent.dataset}")
        elif parent:
            models.transfer(model, parent.state())
    except ConfigError as error:
        raise ConfigError(f"the parent run {config.parent} does not fit {config.name}: {error}") from error
    return model


def _optimizer(config: RunConfig, model: nn.Module, engine: str) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, capturable=engine == "graph"
        )
    return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _means(sums: Tensor, *images: int) -> list[float]:
    """Mean loss, top-1 and top-5 accuracy (percent), of training and then of evaluation."""
    found = []
    for row, count in zip(sums.tolist(), images, strict=True):
        found += [row[0] / count, 100 * (row[1] / count), 100 * (row[2] / count)]
    return found


def _layers(config: RunConfig, state: State) -> pd.DataFrame:
    table = state.tracker.table().rename(columns={"step": "epoch"})
    group = models.get(config.model).group
    table.insert(2, "group", table["layer"].map({layer: group(layer) for layer in state.tracker.layers}))
    return table.astype({"epoch": "int32", "depth": "int32", "size": "int64"} | dict.fromkeys(METRICS, "float64"))


def _epochs(state: State) -> pd.DataFrame:
    table = pd.DataFrame(state.rows, columns=list(EPOCH_COLUMNS), dtype="float64")
    table.insert(0, "epoch", np.arange(1, len(state.rows) + 1, dtype=np.int32))
    return table


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _provenance(config: RunConfig, images: data.ImageSet, device: torch.device, engine: str, state: State) -> dict:
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
        "finished": max(state.started, _now()),  # the clock may have been set back
        "resumed": state.resumed,
        "train_and_test_seconds": round(total, 3),
        "images_per_s": round(trained / total, 1) if total else None,
        "epoch_seconds": [round(s, 3) for s in state.seconds],
    }
