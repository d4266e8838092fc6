"""The studies' networks, built on torchvision's blocks, and the papers' grouping of their layers.

To add a network: write a function with the signature of `resnet18` and decorate it with `@network(groups=...)`, where
`groups` maps a weight tensor's name to its layer group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from rwclib.errors import ConfigError


@dataclass(frozen=True)
class Network:
    """A network of the studies: `build(num_classes, in_channels, width)` and `group(layer name)`."""

    build: Callable[[int, int, int], nn.Module]
    group: Callable[[str], str]


MODELS: dict[str, Network] = {}


def network(groups: Callable[[str], str]) -> Callable:
    """Register the decorated builder in `MODELS` under its own name."""

    def register(build: Callable[[int, int, int], nn.Module]) -> Callable[[int, int, int], nn.Module]:
        MODELS[build.__name__] = Network(build, groups)
        return build

    return register


def get(name: str) -> Network:
    """The network called `name`; `ConfigError` names the known ones."""
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}")
    return MODELS[name]


def build(name: str, *, num_classes: int, in_channels: int = 3, width: int = 64, seed: int = 0) -> nn.Module:
    """The network with the initial weights that `torch.manual_seed(seed)` gives; the global generator is left as it was.

    Args:
        name: a name in `MODELS`.
        num_classes: outputs.
        in_channels: channels of the input images, (batch, in_channels, 32, 32) float.
        width: channels of the first stage; the others follow in the published proportions.
        seed: of the initial weights.

    Raises:
        ConfigError: unknown name.
    """
    chosen = get(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone
        return chosen.build(num_classes, in_channels, width)


def _resnet_group(layer: str) -> str:
    stage = layer.split(".")[0]
    return {"conv1": "stem", "fc": "head"}.get(stage, stage.replace("layer", "block"))


class _ResNet(nn.Sequential):
    """A ResNet for 32-pixel images: 3x3 stride-1 stem, no max-pooling, torchvision's blocks and its names."""

    def __init__(
        self, block: type[nn.Module], depths: list[int], num_classes: int, in_channels: int, width: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        channels = width
        for stage, depth in enumerate(depths):
            planes = width * 2**stage
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                downsample = None
                if stride != 1 or channels != planes * block.expansion:
                    downsample = nn.Sequential(
                        nn.Conv2d(channels, planes * block.expansion, 1, stride, bias=False),
                        nn.BatchNorm2d(planes * block.expansion),
                    )
                blocks.append(block(channels, planes, stride, downsample))
                channels = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)


@network(groups=_resnet_group)
def resnet18(num_classes: int, in_channels: int, width: int) -> nn.Module:
    """ResNet-18 as in study 1: 21 weight tensors, 11.17 M parameters at width 64 and 10 classes, PyTorch's default
    initialisation (the release's). Groups `block1` to `block4` (4, 5, 5, 5 tensors with the shortcuts), `stem`, `head`.
    """
    from torchvision.models.resnet import BasicBlock

    return _ResNet(BasicBlock, [2, 2, 2, 2], num_classes, in_channels, width)
