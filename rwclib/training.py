"""run(config): train, evaluate, track, checkpoint and resume one run, and put it into the archive."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional

from rwclib import archive, data, models
from rwclib.config import RunConfig
from rwclib.errors import ArchiveError, ConfigError, DivergedError, OutOfTimeError
from rwclib.locks import Lock
from rwclib.metrics import METRICS
from rwclib.tracker import RWCTracker

EPOCH_COLUMNS = ("train_loss", "train_top1", "train_top5", "test_loss", "test_top1", "test_top5")
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
        raise ConfigError(f"device {device!r} cannot be used here; use auto, cpu or, with a GPU, cuda") from error
    return chosen


def generator(seed: int, purpose: str) -> torch.Generator:
    """The CPU generator of one purpose (`order`, `augmentation`) of the run with this seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def check(config: RunConfig) -> None:
    """`ConfigError` if the config names an unknown model or data set, or cannot be run; nothing is read or written."""
    models.get(config.model)
    if config.normalize == "imagenet" and data.get(config.dataset).in_channels != 3:
        raise ConfigError(
            f"normalize 'imagenet' needs colour images, and {config.dataset} is grey; use normalize 'none'"
        )


@dataclass
class _State:
    """Everything a run changes as it goes, and what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    tracker: RWCTracker
    order: torch.Generator
    augmentation: torch.Generator
    epoch: int = 0
    rows: list[list[float]] = field(default_factory=list)  # one per epoch, EPOCH_COLUMNS
    seconds: list[float] = field(default_factory=list)  # one per epoch
    started: str = ""
    resumed: int = 0
    data_digest: str = ""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def tensors(self) -> dict[str, Tensor]:
        found = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            found |= {
                f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in slots.items() if value is not None
            }
        found |= {f"tracker.{key}": value for key, value in self.tracker.state_dict().items()}
        found |= {"rng.order": self.order.get_state(), "rng.augmentation": self.augmentation.get_state()}
        found["rng.torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            found["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        found["rows"] = torch.tensor(self.rows, dtype=torch.float64)
        return {key: value.detach().cpu().contiguous() for key, value in found.items()}

    def save(self, path: Path, config: RunConfig) -> None:
        notes = {"config": config.canonical_json(), "epoch": self.epoch, "seconds": self.seconds,
                 "started": self.started, "resumed": self.resumed, "data_digest": self.data_digest}  # fmt: skip
        archive.write_atomically(path, save(self.tensors(), {"rwclib": json.dumps(notes)}))

    def load(self, path: Path, config: RunConfig) -> None:
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["rwclib"])
            if notes["config"] != config.canonical_json():
                raise ValueError("it belongs to another run")
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
            self.optimizer.state[parameter][slot] = value
        self.order.set_state(tensors["rng.order"])
        self.augmentation.set_state(tensors["rng.augmentation"])
        torch.set_rng_state(tensors["rng.torch"])
        if "rng.cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        self.rows, self.epoch = tensors["rows"].reshape(-1, len(EPOCH_COLUMNS)).tolist(), notes["epoch"]
        self.seconds, self.started, self.resumed = notes["seconds"], notes["started"], notes["resumed"] + 1


def run(
    config: RunConfig,
    *,
    results: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    compile: bool = False,
    threads: int | None = None,
    deadline: float | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
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
        compile: train through `torch.compile`; full batches only, the ragged last batch of an epoch runs eagerly.
        threads: CPU threads; default as torch has it. The last bits of the tables depend on it.
        deadline: `time.time()` by which to stop at the end of an epoch, with a checkpoint. A call that begins before it
            trains at least one epoch, however long that takes.
        checkpoint_seconds: least time between two checkpoints, taken at the end of epochs.
        progress: called after each epoch with `epoch`, `epochs`, `train_loss`, `test_top1`, `images_per_s`.

    Raises:
        ConfigError: unknown model, data set or device, or more images asked for than there are.
        DataError: the image set is missing or damaged.
        RunLockedError: another live process is working on this run.
        DivergedError: a loss or weight became infinite or NaN; the run is archived with status `diverged`.
        OutOfTimeError: the deadline came first; call again to go on.
        ArchiveError: the folder cannot be written.
    """
    check(config)
    results = Path(results or archive.default_results())
    place = archive.run_dir(results, config)
    if archive.is_finished(results, config):
        try:
            return _finished(archive.read(results, config), place)
        except ArchiveError:
            if not place.is_dir():
                raise
    chosen = resolve_device(device)
    images = data.load(config.dataset, data_dir).subset(config.n_train, config.n_test)
    with _ONE_RUN_AT_A_TIME, Lock(archive.lock_path(results, config)) as lock:
        if archive.is_finished(results, config):  # another process was faster, or the directory is damaged
            try:
                return _finished(archive.read(results, config), place)
            except ArchiveError as error:
                aside = archive.set_aside(place)
                print(f"{error}: kept as {aside.name}, training it again", file=sys.stderr, flush=True)
        # One BLAS thread in NumPy and SciPy, so that the metrics do not depend on the number of threads.
        with (
            threadpool_limits(1, user_api="blas"),
            torch.random.fork_rng(devices=[chosen] if chosen.type == "cuda" else []),
        ):
            before = torch.get_num_threads()
            torch.set_num_threads(threads or before)
            try:
                return _train(config, images, results, chosen, lock, compile, deadline, checkpoint_seconds, progress)
            finally:
                torch.set_num_threads(before)


def _finished(run: archive.Run, place: Path) -> Path:
    if run.record["status"] == "diverged":
        raise DivergedError(
            f"{place.name} diverged in epoch {run.record['diverged']['epoch']}; lower the learning rate"
        )
    return place


def _train(
    config: RunConfig,
    images: data.ImageSet,
    results: Path,
    device: torch.device,
    lock: Lock,
    compile: bool,
    deadline: float | None,
    checkpoint_seconds: float,
    progress: Progress | None,
) -> Path:
    known, cuda = data.get(config.dataset), device.type == "cuda"
    if cuda:
        torch.backends.cudnn.benchmark = True
    model = models.build(
        config.model, num_classes=known.num_classes, in_channels=known.in_channels, width=config.width, seed=config.seed
    ).to(device, memory_format=torch.channels_last)
    torch.manual_seed(config.seed)  # dropout; inside fork_rng
    state = _State(
        model, _optimizer(config, model), RWCTracker(model),
        generator(config.seed, "order"), generator(config.seed, "augmentation"), started=_now(), data_digest=images.digest(),
    )  # fmt: skip
    archive.remove_parts(results, config)
    checkpoint = archive.cache_dir(results, config) / "checkpoint.safetensors"
    if checkpoint.exists():
        try:
            state.load(checkpoint, config)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            aside = checkpoint.with_suffix(".damaged")
            os.replace(checkpoint, aside)
            raise ArchiveError(
                f"the checkpoint of {config.name} is damaged ({error}): moved to {aside.name}; call again to start the run anew"
            ) from error

    kind = {"image_size": config.image_size, "normalize": config.normalize, "device": device}
    train_set = data.Batches(images.x_train, images.y_train, crop_padding=config.crop_padding, **kind)
    test_set = data.Batches(images.x_test, images.y_test, **kind)
    fast = torch.compile(model) if compile else model
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")
    saved, first = time.monotonic(), state.epoch

    while state.epoch < config.epochs:
        expected = (
            state.seconds[-1] if state.epoch > first else 0.0
        )  # a call trains at least one epoch, or never gets on
        if deadline and time.time() + expected > deadline:
            lock.check()
            state.save(checkpoint, config)
            raise OutOfTimeError(
                f"{config.name} stopped after epoch {state.epoch} of {config.epochs}; call again to go on"
            )
        began = time.perf_counter()
        model.train()
        plan = train_set.plan(state.augmentation, state.order, flip=config.flip, shuffle=config.shuffle)
        train = _Totals(device)
        for x, y in train_set.epoch(plan, config.batch_size):
            with autocast:
                logits = (fast if len(y) == config.batch_size else model)(x)
                loss = functional.cross_entropy(logits, y)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            state.optimizer.step()
            train.add(loss, logits, y)
        row = [*train.means(), *evaluate(model, test_set, autocast)]
        state.tracker.step()
        state.epoch += 1
        state.rows.append(row)
        state.seconds.append(time.perf_counter() - began)
        diverged = not (math.isfinite(row[0]) and state.tracker.history()[-1][:, -1].isfinite().all())
        if diverged:
            break
        if progress:
            speed = len(train_set) / state.seconds[-1]
            progress({"epoch": state.epoch, "epochs": config.epochs, "train_loss": row[0], "test_top1": row[4],
                      "images_per_s": speed})  # fmt: skip
        if time.monotonic() - saved >= checkpoint_seconds and state.epoch < config.epochs:
            lock.check()
            state.save(checkpoint, config)
            saved = time.monotonic()
    else:
        diverged = False

    lock.check()
    record = {"status": "diverged" if diverged else "done", "provenance": _provenance(config, images, device, state)}
    if diverged:
        record["diverged"] = {"epoch": state.epoch, "train_loss": str(state.rows[-1][0])}
    place = archive.write(results, config, record, _layers(config, state), _epochs(state))
    shutil.rmtree(checkpoint.parent, ignore_errors=True)
    if diverged:
        raise DivergedError(
            f"{config.name} diverged in epoch {state.epoch} (training loss {state.rows[-1][0]}); lower the learning rate"
        )
    return place


def _optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


class _Totals:
    """Loss and top-1/top-5 hits summed on the device, read once at the end."""

    def __init__(self, device: torch.device) -> None:
        self.sums, self.count = torch.zeros(3, dtype=torch.float64, device=device), 0

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]
        self.sums += torch.stack([loss.double() * len(y), hits[:, 0].sum(), hits.sum()])
        self.count += len(y)

    def means(self) -> list[float]:
        """Mean loss, top-1 and top-5 accuracy in percent."""
        loss, top1, top5 = (self.sums / self.count).tolist()
        return [loss, 100 * top1, 100 * top5]


@torch.no_grad()
def evaluate(model: nn.Module, batches: data.Batches, autocast: torch.autocast) -> list[float]:
    """Mean loss, top-1 and top-5 accuracy (percent) of `model` in evaluation mode over unaugmented `batches`."""
    model.eval()
    totals = _Totals(batches.device)
    for x, y in batches.in_order(500):
        with autocast:
            logits = model(x)
            loss = functional.cross_entropy(logits, y)
        totals.add(loss, logits, y)
    return totals.means()


def _layers(config: RunConfig, state: _State) -> pd.DataFrame:
    table = state.tracker.table().rename(columns={"step": "epoch"})
    group = models.get(config.model).group
    table.insert(2, "group", table["layer"].map({layer: group(layer) for layer in state.tracker.layers}))
    return table.astype({"epoch": "int32", "depth": "int32", "size": "int64"} | dict.fromkeys(METRICS, "float64"))


def _epochs(state: _State) -> pd.DataFrame:
    table = pd.DataFrame(state.rows, columns=list(EPOCH_COLUMNS), dtype="float64")
    table.insert(0, "epoch", np.arange(1, len(state.rows) + 1, dtype=np.int32))
    return table


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _provenance(config: RunConfig, images: data.ImageSet, device: torch.device, state: _State) -> dict:
    from rwclib import __version__

    total = sum(state.seconds)
    return {
        "rwclib": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "data_source": images.source,
        "data_note": images.note,
        "data_digest": state.data_digest,
        "n_train": len(images.y_train),
        "n_test": len(images.y_test),
        "started": state.started,
        "finished": _now(),
        "resumed": state.resumed,
        "train_and_test_seconds": round(total, 3),
        "images_per_s": round(len(images.y_train) * len(state.seconds) / total, 1) if total else None,
        "epoch_seconds": [round(s, 3) for s in state.seconds],
    }
