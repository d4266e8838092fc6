"""The classical loop, as tutorials write it: PIL transforms in a DataLoader, weights copied to NumPy after each epoch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from rwclib import RunConfig, data, models


class Images(Dataset):
    """Arrays as PIL images through a torchvision transform."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: transforms.Compose) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index].squeeze())), int(self.labels[index])


def train(
    config: RunConfig, workers: int = 0, device: str = "cpu", after_epoch: Callable[[], None] = lambda: None
) -> list:
    """Train `config` and return, per epoch, both definitions of RWC of every layer and the test hits."""
    found, known = data.load(config.dataset).subset(config.n_train, config.n_test), data.get(config.dataset)
    plain = [transforms.Resize(config.image_size), transforms.ToTensor()]
    if config.normalize == "imagenet":
        plain.append(transforms.Normalize(data.IMAGENET_MEAN, data.IMAGENET_STD))
    augmented = [transforms.RandomCrop(config.image_size, config.crop_padding)] if config.crop_padding else []
    augmented += [transforms.RandomHorizontalFlip()] if config.flip else []
    train_set = Images(found.x_train, found.y_train, transforms.Compose([plain[0], *augmented, *plain[1:]]))
    test_set = Images(found.x_test, found.y_test, transforms.Compose(plain))
    kind = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": device != "cpu"}
    train, test = DataLoader(train_set, config.batch_size, shuffle=True, **kind), DataLoader(test_set, 500, **kind)
    model = models.build(
        config.model, num_classes=known.num_classes, in_channels=known.in_channels, width=config.width, seed=config.seed
    ).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )

    def weights() -> list[np.ndarray]:
        return [p.detach().cpu().numpy().copy() for p in model.parameters() if p.dim() > 1]

    before, history = weights(), []
    for _ in range(config.epochs):
        model.train()
        for x, y in train:
            loss = functional.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            hits = sum((model(x.to(device)).argmax(1) == y.to(device)).sum().item() for x, y in test)
        after = weights()
        changes = [(abs(new - old), abs(old)) for new, old in zip(after, before, strict=True)]
        history.append(([(c.sum() / o.sum(), (c / o).mean()) for c, o in changes], hits))
        before = after
        after_epoch()
    return history
