"""Images per second of a sweep of eight AlexNet runs: two processes, one process, and the classical loop.

Evidence: prints the CPU model, load, versions, threads and date; wall clock of each way once, start-up included.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace

import _table

JOBS_TARGET, CLASSICAL_TARGET = 1.7, 1.5
TWO, ONE, CLASSICAL = "rwc sweep, two processes", "rwc sweep, one process", "classical loop, two threads"
NOTE = """{dataset}, {runs} runs of AlexNet of width {width}, {images:,} images and {epochs} epochs each, tested on {tests} images
after each epoch, as in study 1 (SGD, batches of 128, resize 28 to 32, flip). Images: of training alone. A process of the
sweep has one thread; its start-up (PyTorch, data) counts. Classical: torchvision's PIL transforms in a DataLoader without
workers, one process with two threads that has imported PyTorch before its clock starts, weights copied to NumPy and both
definitions of RWC computed there after each epoch."""


def configs(quick: bool) -> list:
    """Eight runs on Fashion-MNIST, or on its bundled sample where it is not on this machine."""
    from rwclib import data
    from rwclib.studies import layerwise

    dataset = "fashion_mnist" if data.path("fashion_mnist").exists() else data.SAMPLE
    size = {"width": 8, "n_train": 256, "n_test": 64, "epochs": 1} if quick else {
        "width": 8, "n_train": 6000, "n_test": 1000, "epochs": 5
    }  # fmt: skip
    return [
        replace(layerwise.run_config("quick", "alexnet", dataset, seed), study="custom", **size)
        for seed in range(2 if quick else 8)
    ]


def sweep(runs: list, jobs: int) -> float:
    """Seconds of a sweep into an empty folder."""
    from rwclib.sweep import run_all

    with tempfile.TemporaryDirectory() as folder:
        return _table.seconds(lambda: _all_trained(run_all(runs, results=folder, device="cpu", jobs=jobs), len(runs)))


def _all_trained(report: object, count: int) -> None:
    assert len(report.trained) == count, report.summary()


def classical(runs: list) -> float:
    """Seconds of training the same configurations one after the other as tutorials do."""
    import torch

    torch.set_num_threads(2)
    _classical_run(replace(runs[0], epochs=1, n_train=128))  # imports, first kernels
    return _table.seconds(lambda: [_classical_run(config) for config in runs])


def _classical_run(config: object) -> None:
    import numpy as np
    import torch
    from PIL import Image
    from torch.nn import functional
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from rwclib import data, models

    class Images(Dataset):
        def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: transforms.Compose) -> None:
            self.pixels, self.labels, self.transform = pixels, labels, transform

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.transform(Image.fromarray(self.pixels[index, :, :, 0])), int(self.labels[index])

    found = data.load(config.dataset).subset(config.n_train, config.n_test)
    resize, tensor = transforms.Resize(config.image_size), transforms.ToTensor()
    train_set = Images(
        found.x_train, found.y_train, transforms.Compose([resize, transforms.RandomHorizontalFlip(), tensor])
    )
    test_set = Images(found.x_test, found.y_test, transforms.Compose([resize, tensor]))
    train, test = DataLoader(train_set, config.batch_size, shuffle=True), DataLoader(test_set, 500)
    model = models.build(config.model, num_classes=10, in_channels=1, width=config.width, seed=config.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )

    def weights() -> list[np.ndarray]:
        return [p.detach().numpy().copy() for p in model.parameters() if p.dim() > 1]

    before, history = weights(), []
    for _ in range(config.epochs):
        model.train()
        for x, y in train:
            loss = functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            hits = sum((model(x).argmax(1) == y).sum().item() for x, y in test)
        after = weights()
        changes = [(abs(new - old), abs(old)) for new, old in zip(after, before, strict=True)]
        history.append(([(c.sum() / o.sum(), (c / o).mean()) for c, o in changes], hits))
        before = after


def main() -> None:
    args = _table.options(__doc__)
    runs = configs(args.quick)
    evidence = _table.environment("1 a process; classical 2")
    images = sum(config.n_train * config.epochs for config in runs)
    found = {
        TWO: _table.in_fresh_process(1, sweep, runs, 2),
        ONE: _table.in_fresh_process(1, sweep, runs, 1),
        CLASSICAL: _table.in_fresh_process(2, classical, runs),
    }
    rows = []
    for way, target in ((TWO, None), (ONE, JOBS_TARGET), (CLASSICAL, CLASSICAL_TARGET)):
        times = found[way] / found[TWO]
        rows.append({"what": way, "images_per_s": images / found[way], "two_processes_over_this": times})
        rows[-1] |= _table.verdict(times >= target, f">= {target}") if target else {}
    first = runs[0]
    evidence += f" | {first.dataset}"
    note = NOTE.format(
        dataset=first.dataset,
        runs=len(runs),
        width=first.width,
        images=first.n_train,
        epochs=first.epochs,
        tests=first.n_test,
    )
    _table.report(rows, evidence, note, args.json)


if __name__ == "__main__":
    main()
