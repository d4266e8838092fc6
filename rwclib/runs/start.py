"""What a run starts with: its network, its optimizer, its generators."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from rwclib.analysis import perturbation
from rwclib.errors import ConfigError
from rwclib.runs import data, models, weights
from rwclib.runs.config import RunConfig


def generator(seed: int, purpose: str) -> torch.Generator:
    """The CPU generator of one purpose (`order`, `augmentation`, `perturbation`) of the run with this seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def begin(config: RunConfig, known: data.Dataset, parent: weights.Final | None) -> nn.Module:
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


def optimizer(config: RunConfig, model: nn.Module, engine: str) -> torch.optim.Optimizer:
    """SGD or Adam, as the config says."""
    if config.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, capturable=engine == "graph"
        )
    return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
