"""A run of study 1 trained epoch by epoch, for what looks in between its batches or steers it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rwclib.runs import data
from rwclib.runs.checkpoint import TEST_BATCH
from rwclib.runs.config import RunConfig
from rwclib.runs.start import begin, generator, optimizer
from rwclib.runs.steps import Steps


class Loop:
    """A run's network and its training on the CPU, step for step as `rwclib.training.run` does; `DataError` without the data set.

    Attributes: `config`, `network`, `optimizer`, `batches` (of an epoch).
    """

    def __init__(self, config: RunConfig) -> None:
        images = data.load(config.dataset).subset(config.n_train, config.n_test)
        self.config, self.network = config, begin(config, data.get(config.dataset), None)
        kind = {"image_size": config.image_size, "normalize": config.normalize, "device": torch.device("cpu")}
        self._train_set = data.Batches(images.x_train, images.y_train, crop_padding=config.crop_padding, **kind)
        self._test_set = data.Batches(images.x_test, images.y_test, **kind)
        self.optimizer = optimizer(config, self.network, "eager")
        self.batches = -(-len(self._train_set) // config.batch_size)
        self._sums = torch.zeros(2, 3, dtype=torch.float64)
        self._steps = Steps(
            self.network, self.optimizer, self._sums,
            batch_size=config.batch_size, precision=config.precision, engine="eager",
        )  # fmt: skip
        self._generators = generator(config.seed, "augmentation"), generator(config.seed, "order")

    def epoch(self) -> Iterator[None]:
        """Train an epoch, with a stop after every step."""
        self.network.train()
        plan = self._train_set.plan(*self._generators, flip=self.config.flip, shuffle=self.config.shuffle)
        for x, y in self._train_set.epoch(plan, self.config.batch_size):
            self._steps.train(x, y)
            yield

    def test_top1(self) -> float:
        """Percent of the test images that the network puts first."""
        self.network.eval()
        self._sums[1] = 0
        for x, y in self._test_set.in_order(TEST_BATCH):
            self._steps.evaluate(x, y)
        return 100 * float(self._sums[1, 1]) / len(self._test_set)
