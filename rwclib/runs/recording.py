"""What a run of so many iterations records on the way: its convolutions' filters, and its accuracy on a few test images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

LEVELS = (1, 2000, 10_000, 30_000, 50_000)  # study 4's lengths of training
GRID = sorted({*LEVELS, 3, 10, 30, 100, 300, 1000, 3000})  # and about two steps to every power of ten between
EVERY = 10  # iterations between two accuracies, as in the paper's figure 6
IMAGES = 250  # the first test images, on which they are taken


class Recorder:
    """Follows a model from iteration to iteration.

    Args:
        model: its convolutions' weights are recorded after the iterations of `GRID` and after the last.
        x, y: test images (`IMAGES`, channels, height, width) float32 and labels, on the model's device.
        last: number of iterations.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, last: int) -> None:
        self._model, self._x, self._y, self._last = model, x, y, last
        self._layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        self.iterations: list[int] = []
        self.filters: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        # On the device, so that nothing is read back before the end, and in one piece: thousands of small tensors that stay
        # keep the allocator from ever giving back what lies between them.
        self._hits, self._taken = torch.zeros(last // EVERY, dtype=torch.int64, device=y.device), 0

    @torch.no_grad()
    def after(self, iteration: int) -> None:
        """Record what is due after this iteration, counted from 1."""
        if iteration in GRID or iteration == self._last:
            self.iterations.append(iteration)
            for name in self._layers:
                self.filters[name].append(self._model.get_submodule(name).weight.detach().cpu().contiguous().clone())
        if iteration % EVERY == 0:
            was_training = self._model.training
            self._model.eval()
            self._hits[self._taken] = (self._model(self._x).argmax(1) == self._y).sum()
            self._taken += 1
            self._model.train(was_training)

    def tensors(self) -> dict[str, Tensor]:
        """Everything recorded, for a checkpoint."""
        counts = {"iterations": torch.tensor(self.iterations, dtype=torch.int64), "hits": self._hits[: self._taken]}
        return counts | {f"filters.{name}": torch.stack(kept) for name, kept in self.filters.items() if kept}

    def resume(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.iterations, self._taken = tensors["iterations"].tolist(), len(tensors["hits"])
        self._hits[: self._taken] = tensors["hits"]
        self.filters = {name: list(tensors.get(f"filters.{name}", ())) for name in self._layers}

    def results(self) -> dict[str, pd.DataFrame | np.ndarray]:
        """For the archive.

        `accuracy`: a table of iteration and test_top1 (percent, over the images). `filters_iterations` (n,) int64, and per
        convolution `filters_<layer>` (n, filters, channels, height, width) float32.
        """
        hits = self._hits[: self._taken].cpu().numpy()
        accuracy = {"iteration": EVERY * np.arange(1, len(hits) + 1), "test_top1": 100 * hits / len(self._y)}
        arrays = {f"filters_{name.replace('.', '_')}": torch.stack(kept).numpy() for name, kept in self.filters.items()}
        return {"accuracy": pd.DataFrame(accuracy), "filters_iterations": np.array(self.iterations), **arrays}
