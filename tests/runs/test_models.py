"""The studies' networks: sizes, names, groups, shapes and reproducible initial weights."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from rwclib import models
from rwclib.errors import ConfigError
from rwclib.tracker import weight_tensors


def small(**settings: int) -> nn.Module:
    return models.build("resnet18", **{"num_classes": 10, "width": 8, **settings})


@pytest.fixture(scope="module")
def full() -> nn.Module:
    return models.build("resnet18", num_classes=10)


def test_resnet18_has_11_173_962_parameters_at_full_width(full):
    assert sum(p.numel() for p in full.parameters()) == 11_173_962


def test_resnet18_has_21_weight_tensors_in_the_papers_groups(full):
    groups = [models.get("resnet18").group(name) for name in weight_tensors(full)]
    assert Counter(groups) == {"stem": 1, "block1": 4, "block2": 5, "block3": 5, "block4": 5, "head": 1}
    assert list(dict.fromkeys(groups)) == ["stem", "block1", "block2", "block3", "block4", "head"]
    assert len(groups) == 21


def test_resnet18_has_the_parameter_names_and_block_shapes_of_torchvision(full):
    from torchvision.models import resnet18

    ours, theirs = full.state_dict(), resnet18(num_classes=10).state_dict()
    assert list(ours) == list(theirs)
    assert {k for k in ours if ours[k].shape != theirs[k].shape} == {"conv1.weight"}  # 3x3 here, 7x7 there


def test_resnet18_starts_with_a_3x3_convolution_of_stride_1_and_has_no_max_pooling(full):
    assert full.conv1.kernel_size == (3, 3)
    assert full.conv1.stride == (1, 1)
    assert full.conv1.padding == (1, 1)
    assert not any(isinstance(module, nn.MaxPool2d) for module in full.modules())


def test_stages_work_at_32_16_8_and_4_pixels():
    model = small().eval()
    x, seen = torch.randn(1, 3, 32, 32), {}
    for name, module in model.named_children():
        x = module(x)
        seen[name] = tuple(x.shape[1:])
    stages = {name: seen[name] for name in ("conv1", "layer1", "layer2", "layer3", "layer4")}
    assert stages == {
        "conv1": (8, 32, 32), "layer1": (8, 32, 32), "layer2": (16, 16, 16), "layer3": (32, 8, 8), "layer4": (64, 4, 4)
    }  # fmt: skip


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("width", [8, 16, 64])
def test_resnet18_gives_one_logit_per_class(width, num_classes, in_channels):
    model = models.build("resnet18", num_classes=num_classes, in_channels=in_channels, width=width).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, in_channels, 32, 32))
    assert logits.shape == (2, num_classes)
    assert logits.isfinite().all()


def test_same_seed_gives_the_same_weights():
    one, other = small(seed=7).state_dict(), small(seed=7).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_different_seeds_differ_in_every_layer():
    one, other = weight_tensors(small(seed=7)), weight_tensors(small(seed=8))
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_initial_weights_do_not_depend_on_the_global_generator():
    first = small(seed=3)
    torch.rand(5)
    assert torch.equal(first.conv1.weight, small(seed=3).conv1.weight)


def test_building_leaves_the_global_generator_untouched():
    before = torch.get_rng_state()
    small(seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_building_leaves_the_cuda_generator_untouched():
    before = torch.cuda.get_rng_state()
    small(seed=1)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize(("seed", "layers"), [(0, []), (42, []), (1000, ["layer4.1.conv2.weight"])])
def test_initial_weights_that_are_exactly_zero_are_those_of_the_published_release(seed, layers):
    model = models.build("resnet18", num_classes=10, seed=seed)
    assert [name for name, weight in weight_tensors(model).items() if (weight == 0).any()] == layers


@pytest.mark.parametrize(
    ("name", "parameters", "groups"),
    [
        ("vgg19_bn", 20_040_522, {"early": 4, "middle": 7, "late": 5, "head": 1}),
        ("alexnet", 10_655_562, {"early": 1, "middle": 2, "late": 2, "head": 3}),
    ],
)
def test_vgg_and_alexnet_have_the_published_layers(name, parameters, groups):
    model = models.build(name, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    found = [models.get(name).group(layer) for layer in weight_tensors(model)]
    assert Counter(found) == groups
    assert list(dict.fromkeys(found)) == list(groups)
    assert sum(isinstance(m, nn.Dropout) and m.p == 0.5 for m in model.modules()) == (2 if name == "alexnet" else 0)


def test_lenet5_has_61_706_parameters_in_two_convolutions_and_three_linear_layers():
    model = models.build("lenet5", num_classes=10, in_channels=1)
    assert sum(p.numel() for p in model.parameters()) == 61_706
    shapes = {name: tuple(weight.shape) for name, weight in weight_tensors(model).items()}
    assert list(shapes.values()) == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
    assert [models.get("lenet5").group(name) for name in shapes] == ["conv", "conv", "fc", "fc", "fc"]


def test_vgg_has_the_convolutions_of_torchvision_and_one_linear_layer():
    from torchvision.models import vgg19_bn

    ours, theirs = models.build("vgg19_bn", num_classes=10), vgg19_bn(weights=None, init_weights=False)
    assert [str(module) for module in ours.features] == [str(module) for module in theirs.features]
    assert weight_tensors(ours)["classifier.weight"].shape == (10, 512)
    assert [tuple(w.shape) for w in weight_tensors(models.build("alexnet", num_classes=10)).values()][5:] == [
        (4096, 1024), (1024, 4096), (10, 1024)
    ]  # fmt: skip


def test_alexnet_pools_after_convolutions_1_2_and_5():
    x, sides = torch.randn(1, 3, 32, 32), []
    for module in models.build("alexnet", num_classes=10, width=8).features:
        x = module(x)
        if not isinstance(module, nn.ReLU):
            sides.append(x.shape[-1])
    assert sides == [16, 8, 8, 4, 4, 4, 4, 2]


def test_vgg_is_initialised_as_in_the_release():
    weights = weight_tensors(models.build("vgg19_bn", num_classes=100, seed=5))
    assert weights["classifier.weight"].std().item() == pytest.approx(0.01, rel=0.02)
    for name, weight in list(weights.items())[1:-1]:
        assert weight.std().item() == pytest.approx((2 / (weight.shape[0] * 9)) ** 0.5, rel=0.02), name


@pytest.mark.parametrize("name", ["vgg19_bn", "alexnet", "lenet5"])
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("width", [8, 32])
def test_the_other_networks_give_one_logit_per_class(name, in_channels, width):
    model = models.build(name, num_classes=100, in_channels=in_channels, width=width).eval()
    with torch.no_grad():
        assert model(torch.randn(2, in_channels, 32, 32)).shape == (2, 100)


def test_vgg_initial_weights_are_exactly_zero_for_the_seeds_of_the_release():
    zero = []
    for seed in (0, 42, 123, 1000, 1234):
        weights = weight_tensors(models.build("vgg19_bn", num_classes=10, seed=seed)).values()
        zero += [seed] if any((weight == 0).any() for weight in weights) else []
    assert zero == [123, 1000, 1234]


def test_an_unknown_model_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match="'resnet19'") as error:
        models.build("resnet19", num_classes=10)
    assert all(known in str(error.value) for known in models.MODELS)
    assert "resnet18" in models.MODELS


@pytest.fixture
def registry():
    kept = dict(models.MODELS)
    yield models.MODELS
    models.MODELS.clear()
    models.MODELS.update(kept)


@pytest.mark.usefixtures("registry")
def test_a_registered_network_can_be_built_and_grouped_by_name():
    @models.network(groups=lambda layer: "only")
    def perceptron(num_classes: int, in_channels: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 32 * 32, num_classes))

    assert models.build("perceptron", num_classes=7, in_channels=1)(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    assert models.get("perceptron").group("1.weight") == "only"
