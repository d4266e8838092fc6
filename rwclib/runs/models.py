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
from rwclib.runs.initial_weights import imagenet, initialise, transfer


@dataclass(frozen=True)
class Network:
    """A network of the studies: `build(num_classes, in_channels, width)` and `group(layer name)`."""

    build: Callable[[int, int, int], nn.Module]
    group: Callable[[str], str]
    imagenet: str = ""  # torchvision's name of it, where its ImageNet weights fit at width 64


MODELS: dict[str, Network] = {}


def network(groups: Callable[[str], str], imagenet: str = "") -> Callable:
    """Register the decorated builder in `MODELS` under its own name."""

    def register(build: Callable[[int, int, int], nn.Module]) -> Callable[[int, int, int], nn.Module]:
        MODELS[build.__name__] = Network(build, groups, imagenet)
        return build

    return register


def get(name: str) -> Network:
    """The network called `name`; `ConfigError` names the known ones."""
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}")
    return MODELS[name]


def build(
    name: str, *, num_classes: int, in_channels: int = 3, width: int = 64, seed: int = 0, init: str = "default"
) -> nn.Module:
    """The network with the initial weights that `torch.manual_seed(seed)` gives; the global generator is left as it was.

    Args:
        name: a name in `MODELS`.
        num_classes: outputs.
        in_channels: channels of the input images, (batch, in_channels, 32, 32) float.
        width: channels of the first stage; the others follow in the published proportions.
        seed: of the initial weights.
        init: as in `rwclib.runs.config.RunConfig`; weights that another run ended with are for `transfer` to bring in.

    Raises:
        ConfigError: unknown name, or ImageNet weights of a network or width that torchvision has none of.
        DataError: ImageNet weights cannot be downloaded.
    """
    chosen = get(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone
        model = chosen.build(num_classes, in_channels, width)
        if init.startswith("kaiming"):
            initialise(model, nn.init.kaiming_uniform_ if init == "kaiming_uniform" else nn.init.kaiming_normal_)
    if init == "pretrained":
        check_init(name, width, init)
        transfer(model, imagenet(chosen.imagenet))
    return model


def check_init(name: str, width: int, init: str) -> None:
    """`ConfigError` if there are no ImageNet weights for `init="pretrained"`; nothing is downloaded."""
    if init == "pretrained" and not (get(name).imagenet and width == 64):
        able = ", ".join(sorted(known for known, network in MODELS.items() if network.imagenet))
        raise ConfigError(
            f"torchvision has no ImageNet weights for {name} at width {width}, but for {able} at width 64; "
            "use init pretrained:DATASET"
        )


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


@network(groups=_resnet_group, imagenet="resnet18")
def resnet18(num_classes: int, in_channels: int, width: int) -> nn.Module:
    """ResNet-18 as in study 1: 21 weight tensors, 11.17 M parameters at width 64 and 10 classes, PyTorch's default
    initialisation (the release's). Groups `block1` to `block4` (4, 5, 5, 5 tensors with the shortcuts), `stem`, `head`.
    """
    from torchvision.models.resnet import BasicBlock

    return _ResNet(BasicBlock, [2, 2, 2, 2], num_classes, in_channels, width)


@network(groups=_resnet_group, imagenet="resnet34")
def resnet34(num_classes: int, in_channels: int, width: int) -> nn.Module:
    """ResNet-34, which study 2's released code builds under the name ResNet-50: 37 weight tensors, 21.28 M parameters at
    width 64 and 10 classes, otherwise as `resnet18`.
    """
    from torchvision.models.resnet import BasicBlock

    return _ResNet(BasicBlock, [3, 4, 6, 3], num_classes, in_channels, width)


@network(groups=_resnet_group, imagenet="resnet50")
def resnet50(num_classes: int, in_channels: int, width: int) -> nn.Module:
    """ResNet-50, which study 2's text names: bottleneck blocks, 54 weight tensors, 23.52 M parameters at width 64 and 10
    classes, otherwise as `resnet18`.
    """
    from torchvision.models.resnet import Bottleneck

    return _ResNet(Bottleneck, [3, 4, 6, 3], num_classes, in_channels, width)


PRIMITIVES = {  # of EfficientNet's layers, as study 2 splits them: what their names contain
    "DW": ("conv_dw.",),
    "PW": ("conv_pw.",),
    "PWL": ("conv_pwl.",),
    "SE": (".se.conv_reduce.", ".se.conv_expand."),
}


def _efficientnet_group(layer: str) -> str:
    primitives = [name for name, parts in PRIMITIVES.items() if any(part in layer for part in parts)]
    return primitives[0] if primitives else "stem" if layer.startswith("conv_stem") else "head"


@network(groups=_efficientnet_group)
def efficientnet_b4(num_classes: int, in_channels: int, width: int) -> nn.Module:
    """EfficientNet-B4 as in study 2, timm's `tf_efficientnet_b4` without drop path: 161 weight tensors, 17.57 M
    parameters at width 64 and 10 classes, timm's initialisation.

    Groups by primitive: `DW` depthwise (32 tensors), `PW` pointwise (32), `PWL` linear pointwise (30), `SE`
    squeeze-and-excitation (64), `stem`, `head`. Below width 64 channels are scaled by width / 64, and the depth is that of
    EfficientNet-B0 (16, 16, 15, 32 tensors).
    """
    from timm.models import efficientnet

    return efficientnet._gen_efficientnet(  # what `timm.create_model` calls, with the two multipliers given
        "tf_efficientnet_b4", channel_multiplier=1.4 * width / 64, depth_multiplier=1.8 if width >= 64 else 1.0,
        num_classes=num_classes, in_chans=in_channels, bn_eps=1e-3, pad_type="same", drop_path_rate=0.0,
    )  # fmt: skip


_VGG19 = [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M"]


def _vgg_groups(per_convolution: int) -> Callable[[str], str]:
    """`early`, `middle`, `late`: convolutions 1-4, 5-11, 12-16 (study 1's text names the 11th twice).

    `per_convolution`: modules that a convolution has in torchvision's `features`, ReLU and normalisation included.
    """
    sizes = [1 if item == "M" else per_convolution for item in _VGG19]
    positions = [sum(sizes[:i]) for i, item in enumerate(_VGG19) if item != "M"]

    def group(layer: str) -> str:
        if layer.startswith("classifier"):
            return "head"
        number = positions.index(int(layer.split(".")[1])) + 1
        return "early" if number <= 4 else "middle" if number <= 11 else "late"

    return group


@network(groups=_vgg_groups(3), imagenet="vgg19_bn")
def vgg19_bn(num_classes: int, in_channels: int, width: int) -> nn.Module:
    """VGG-19 with batch normalisation as in study 1: 17 weight tensors, 20.04 M parameters at width 64 and 10 classes.

    Torchvision's convolutions and one linear layer, without dropout; initialised as the release does: He normal (fan
    out) convolutions, N(0, 0.01) linear weights, zero biases. Groups `early` (4 tensors), `middle` (7), `late` (5), `head`.
    """
    return _vgg(num_classes, in_channels, width, batch_norm=True)


@network(groups=_vgg_groups(2), imagenet="vgg19")
def vgg19(num_classes: int, in_channels: int, width: int) -> nn.Module:
    """VGG-19 without batch normalisation as in study 3, otherwise as `vgg19_bn`: 20.03 M parameters."""
    return _vgg(num_classes, in_channels, width, batch_norm=False)


def _vgg(num_classes: int, in_channels: int, width: int, batch_norm: bool) -> nn.Module:
    from torchvision.models.vgg import make_layers

    features = make_layers([item if item == "M" else item * width // 64 for item in _VGG19], batch_norm=batch_norm)
    if in_channels != 3:
        features[0] = nn.Conv2d(in_channels, width, 3, padding=1)
    model = nn.Sequential()
    model.features, model.flatten = features, nn.Flatten()
    model.classifier = nn.Linear(8 * width, num_classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
    return model


def _alexnet_group(layer: str) -> str:
    if layer.startswith("classifier"):
        return "head"
    return {"0": "early", "3": "middle", "6": "middle"}.get(layer.split(".")[1], "late")


@network(groups=_alexnet_group)
def alexnet(num_classes: int, in_channels: int, width: int) -> nn.Module:
    """AlexNet for 32-pixel images as in study 1: 8 weight tensors, 10.66 M parameters at width 64 and 10 classes.

    Five 3x3 convolutions (the first with stride 2; pools after 1, 2 and 5), then linear layers 1024-4096-1024-classes
    with dropout 0.5 before the first two; PyTorch's default initialisation. Torchvision's AlexNet is made for 224 pixels
    and has no room for these sizes. Groups `early` (convolution 1), `middle` (2, 3), `late` (4, 5), `head`.
    """
    c1, c2, c3, c4, hidden = (width * factor for factor in (1, 3, 6, 4, 64))
    model = nn.Sequential()
    model.features = nn.Sequential(
        nn.Conv2d(in_channels, c1, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(c1, c2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(c2, c3, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(c3, c4, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(c4, c4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
    )  # fmt: skip
    model.flatten = nn.Flatten()
    model.classifier = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(4 * c4, hidden), nn.ReLU(inplace=True),
        nn.Dropout(0.5), nn.Linear(hidden, hidden // 4), nn.ReLU(inplace=True),
        nn.Linear(hidden // 4, num_classes),
    )  # fmt: skip
    return model


def _lenet_group(layer: str) -> str:
    return "conv" if layer.startswith("features") else "fc"


@network(groups=_lenet_group)
def lenet5(num_classes: int, in_channels: int, width: int) -> nn.Module:
    """LeNet-5 for 32-pixel images: 5 weight tensors, 61,706 parameters at width 64, one input channel and 10 classes.

    Two 5x5 convolutions of 6 and 16 channels, each with ReLU and 2x2 max-pooling, then linear layers 400-120-84-classes;
    PyTorch's default initialisation. At another width every size is scaled by width / 64. Groups `conv` (2), `fc` (3).
    """
    c1, c2, hidden1, hidden2 = (max(1, round(size * width / 64)) for size in (6, 16, 120, 84))
    model = nn.Sequential()
    model.features = nn.Sequential(
        nn.Conv2d(in_channels, c1, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(c1, c2, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2),
    )  # fmt: skip
    model.flatten = nn.Flatten()
    model.classifier = nn.Sequential(
        nn.Linear(25 * c2, hidden1), nn.ReLU(inplace=True), nn.Linear(hidden1, hidden2), nn.ReLU(inplace=True),
        nn.Linear(hidden2, num_classes),
    )  # fmt: skip
    return model


@network(groups=lambda layer: "conv" if layer.startswith("conv") else "fc")
def softness_cnn(num_classes: int, in_channels: int, width: int) -> nn.Module:
    """Study 4's network: 4 weight tensors, 311,982 parameters at width 64, three input channels and 10 classes.

    Two 5x5 convolutions of 16 and 36 filters, each with ReLU and 2x2 max-pooling, then linear layers 2304-128-classes. The
    paper gives the layers and the first one's 16 filters; the rest is as in the TensorFlow tutorial of its time that its
    words fit (Pedersen, TensorFlow-Tutorials 02): weights from a normal distribution of 0.05 cut at two standard
    deviations, biases 0.05. At another width every size is scaled by width / 64. Groups `conv` (2), `fc` (2).
    """
    c1, c2, hidden = (max(1, round(size * width / 64)) for size in (16, 36, 128))
    model = nn.Sequential()
    model.conv1, model.relu1, model.pool1 = nn.Conv2d(in_channels, c1, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)
    model.conv2, model.relu2, model.pool2 = nn.Conv2d(c1, c2, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)
    model.flatten = nn.Flatten()
    model.fc1, model.relu3, model.fc2 = nn.Linear(64 * c2, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
    for module in (model.conv1, model.conv2, model.fc1, model.fc2):
        nn.init.trunc_normal_(module.weight, std=0.05, a=-0.1, b=0.1)
        nn.init.constant_(module.bias, 0.05)
    return model
