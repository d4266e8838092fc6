"""One step of training and of evaluation: eager, through torch.compile, or replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from rwclib.errors import ConfigError
from rwclib.runs.config import ENGINES, RunConfig

_WARM_UP = 3  # steps before the capture, as PyTorch's notes on CUDA graphs ask for
_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # of x86 and of ARM, as PyTorch names them


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


def check_engine(engine: str, device: torch.device) -> str:
    """`engine` itself; `ConfigError` if it is unknown or the device cannot run it."""
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if engine == "graph" and device.type != "cuda":
        raise ConfigError(
            f"engine 'graph' needs a GPU, and this run is on {device.type}; use engine auto, eager or compile"
        )
    return engine


def set_backend(device: torch.device, precision: str) -> None:
    """What training sets for cuDNN; nothing on a CPU."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = precision != "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; a CPU without them emulates it and is slower than in fp32."""
    return device.type != "cpu" or any(torch.cpu.get_capabilities().get(name) for name in _BF16)


def best_engine(config: RunConfig, device: torch.device, n_train: int) -> str:
    """The engine that `auto` stands for, of a run on so many training images: graph on a GPU if a batch is full, else eager.

    Not compile: on a CPU it takes minutes and its gain was within the noise (benchmarks/engines.py prints both).
    """
    return "graph" if device.type == "cuda" and n_train >= config.batch_size else "eager"


class Steps:
    """Trains and evaluates `model` batch by batch; losses and hits are summed on the device, nothing is read back.

    Full batches go through the engine; the ragged last batch of an epoch runs eagerly, since a compiled or captured step
    has one shape.

    Args:
        model, optimizer: changed in place.
        sums: (2, 3) float64 on the model's device: loss times images, top-1 hits and top-5 hits, of training and of
            evaluation; added to in place.
        batch_size: of a full training batch.
        precision: `fp32`, or `bf16` autocast.
        engine: a name in `rwclib.runs.config.ENGINES`, not `auto`.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, sums: Tensor, *, batch_size: int, precision: str, engine: str
    ) -> None:  # fmt: skip
        check_engine(engine, sums.device)
        self.model, self.optimizer, self.sums = model, optimizer, sums
        self._batch_size, self._engine = batch_size, engine
        if engine == "compile":  # beyond this number of networks in one process PyTorch would run them eagerly
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        self._full = torch.compile(model) if engine == "compile" else model
        self._autocast = torch.autocast(sums.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
        self._graph: torch.cuda.CUDAGraph | None = None

    def train(self, x: Tensor, y: Tensor) -> None:
        """One optimizer step on images (batch, channels, size, size) float32 and labels (batch,) int64."""
        full = len(y) == self._batch_size
        if not full or self._engine != "graph":
            return self._step(self._full if full else self.model, x, y)
        if self._graph is None:
            self._x, self._y = torch.empty_like(x), torch.empty_like(y)
        self._x.copy_(x)
        self._y.copy_(y)
        if self._graph is None:
            self._capture()
        self._graph.replay()

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> None:
        """Add the loss and hits of one batch; the model should be in evaluation mode."""
        with self._autocast:
            logits = self.model(x)
            loss = functional.cross_entropy(logits, y)
        self._add(1, loss, logits, y)

    def _step(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        with self._autocast:
            logits = model(x)
            loss = functional.cross_entropy(logits, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self._add(0, loss, logits, y)

    @torch.no_grad()
    def _add(self, row: int, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]
        self.sums[row] += torch.stack([loss.double() * len(y), hits[:, 0].sum(), hits.sum()])

    def _capture(self) -> None:
        device = self.sums.device
        with self.undone():
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._step(self.model, self._x, self._y)
            torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(self.model, self._x, self._y)
        self._graph = graph

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Steps taken inside leave weights, buffers, optimizer, sums and random state as they were.

        Tensors keep their places in memory. The optimizer's slots that did not exist before stay, at zero, which is what
        SGD and Adam start from.
        """
        device = self.sums.device
        tensors = [*self.model.state_dict().values(), self.sums]
        before = [tensor.clone() for tensor in tensors]
        slots = {
            (parameter, key): value.clone()
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            with torch.enable_grad():
                yield
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)
            for parameter, state in self.optimizer.state.items():
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        old = slots.get((parameter, key))
                        value.zero_() if old is None else value.copy_(old)
