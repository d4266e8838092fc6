"""check(model, optimizer): every planted fault is found and named, and sound training raises nothing."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rwclib
from rwclib import check
from rwclib.errors import ConfigError, RwcError
from rwclib.runs import data, models
from rwclib.runs.start import optimizer as studies_optimizer
from rwclib.runs.steps import Steps
from rwclib.studies import dynamics, layerwise, softness, weightscale

STUDIES = {
    "resnet18": layerwise.run_config("smoke", "resnet18", "fashion_mnist", 0),
    "vgg19_bn": layerwise.run_config("smoke", "vgg19_bn", "cifar10", 0),
    "alexnet": layerwise.run_config("smoke", "alexnet", "cifar10", 0),
    "efficientnet_b4": weightscale.run_config("smoke", "efficientnet_b4", "cifar10", 0),
    "lenet5": dynamics.run_config("smoke", "lenet5", "mnist", "kaiming_normal", "sgd", 0),
    "lenet5 with Adam": dynamics.run_config("smoke", "lenet5", "cifar10", "kaiming_uniform", "adam", 0),
    "vgg19": dynamics.run_config("smoke", "vgg19", "cifar10", "kaiming_normal", "sgd", 0),
    "softness_cnn": softness.run_config("smoke", 20, 0),
}
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.1),
}


class Net(nn.Module):
    """A body with a bias before a batch norm, an adapter and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.adapter, self.head, self.detached = nn.Linear(64, 64), nn.Linear(64, 8), False

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        adapted = self.adapter(x)
        return self.head(x + (adapted.detach() if self.detached else adapted))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


def sgd(model: nn.Module, lr: float = 0.1, **options: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def train(model: nn.Module, optimizer: object, steps: int = 3, batches: int = 1, set_to_none: bool = True) -> None:
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=set_to_none)
        for _ in range(batches):
            x = torch.randn(32, 16, dtype=next(model.parameters()).dtype)
            functional.cross_entropy(model(x), torch.randint(0, 8, (32,))).backward()
        optimizer.step()


def found(result: object) -> dict[str, str]:
    return dict(zip(result.bad["tensor"], result.bad["finding"], strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_networks_train_as_they_are_set_up(name, precision):
    config = STUDIES[name]
    shape = data.get(config.dataset)
    model = models.build(
        config.model, num_classes=shape.num_classes, in_channels=shape.in_channels, width=config.width, init=config.init
    ).to(memory_format=torch.channels_last)
    optimizer, sums = studies_optimizer(config, model, "eager"), torch.zeros(2, 3, dtype=torch.float64)
    steps = Steps(model, optimizer, sums, batch_size=32, precision=precision, engine="eager")
    images = data.load("fashion_mnist_sample").subset(32, 1)
    batches = data.Batches(images.x_train, images.y_train, image_size=32, normalize="none", device=torch.device("cpu"))
    x, y = next(batches.in_order(32))
    with check(model, optimizer) as result:
        for _ in range(3):
            steps.train(x.expand(-1, shape.in_channels, -1, -1), y)
    result.raise_if_bad()
    assert result.steps == 3
    assert (result.table["gradient_steps"] == 3).all()


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sound_training_raises_nothing(model, name, batches):
    with check(model, optimizer := OPTIMIZERS[name](model.parameters())) as result:
        train(model, optimizer, batches=batches)
    result.raise_if_bad()
    assert "of 8 trainable tensors moved in 3 optimizer steps; frozen: none." in str(result)
    assert list(result.table["tensor"]) == [n for n, _ in model.named_parameters()]
    assert list(result.table.columns) == ["tensor", "size", "dtype", "trainable", "moved", "gradient_steps", "finding"]


def test_a_bias_before_a_batch_norm_need_not_move(model):
    with check(model, optimizer := sgd(model, lr=1e-5)) as result:
        train(model, optimizer)
    assert result.table.set_index("tensor")["moved"]["body.0.bias"] < 0.1
    result.raise_if_bad()


def test_rows_without_gradient_need_not_move():
    model = nn.Sequential(nn.Embedding(10_000, 8), nn.Linear(8, 2))
    with check(model, optimizer := torch.optim.Adam(model.parameters())) as result:
        for _ in range(2):
            model(torch.arange(20)).square().sum().backward()
            optimizer.step()
    result.raise_if_bad()


def test_frozen_tensors_are_faults_only_where_they_must_train_or_all_are_frozen(model):
    model.adapter.requires_grad_(False)
    results = []
    for wanted in (None, "adapter.*"):
        with check(model, optimizer := sgd(model), must_train=wanted) as result:
            train(model, optimizer)
        results.append(found(result))
    assert results == [{}, {"adapter.weight": "frozen", "adapter.bias": "frozen"}]
    with check(model.requires_grad_(False), optimizer) as result:
        optimizer.zero_grad()
        optimizer.step()
    assert set(result.bad["finding"]) == {"frozen"}


def test_weight_decay_on_frozen_weights(model):
    optimizer = sgd(model, weight_decay=0.01)
    train(model, optimizer)
    model.body.requires_grad_(False)
    with check(model, optimizer) as result:
        train(model, optimizer, set_to_none=False)
    moved = {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"}
    assert found(result) == dict.fromkeys(moved, "frozen but moved")


@pytest.mark.parametrize(
    ("dtype", "kind", "lr"),
    [
        (torch.bfloat16, torch.optim.AdamW, 1e-6),
        (torch.float16, torch.optim.SGD, 1e-5),
        (torch.float32, torch.optim.Adam, 1e-10),
    ],
)
def test_updates_lost_to_rounding(model, dtype, kind, lr):
    with check(model.to(dtype), optimizer := kind(model.parameters(), lr=lr)) as result:
        train(model, optimizer)
    assert {"body.0.weight", "body.1.weight", "adapter.weight", "head.weight"} <= set(found(result))
    assert set(found(result).values()) == {"updates lost"}
    with pytest.raises(
        RwcError, match=r"^after 3 optimizer steps \d of 8 tensors .*head.weight.* too small for the dtype"
    ):
        result.raise_if_bad()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_detached_branch_even_where_weight_decay_moves_it(model, set_to_none):
    optimizer = sgd(model, weight_decay=0.1)
    train(model, optimizer)
    model.detached = True
    with check(model, optimizer) as result:
        train(model, optimizer, set_to_none=set_to_none)
    assert found(result) == {"adapter.weight": "no gradient", "adapter.bias": "no gradient"}
    assert "is its branch detached?):\n" in str(result)


def test_a_parameter_missing_from_the_optimizer(model):
    optimizer = torch.optim.Adam([*model.body.parameters(), *model.adapter.parameters(), model.head.weight])
    with check(model, optimizer) as result:
        train(model, optimizer)
    assert found(result) == {"head.bias": "not in the optimizer"}


@pytest.mark.parametrize("skipped", [False, True])
def test_an_optimizer_that_never_steps(model, skipped):
    optimizer, scaler = torch.optim.Adam(model.parameters(), fused=skipped), torch.amp.GradScaler("cpu")
    with check(model, optimizer) as result:
        scaler.scale(model(torch.randn(32, 16)).sum() * (torch.inf if skipped else 1)).backward()
        if skipped:
            scaler.step(optimizer)  # which asks a fused optimizer to skip
    assert result.steps == 0
    assert set(found(result).values()) == {"no step"}
    with pytest.raises(
        RwcError, match="^after 0 optimizer steps 8 of 8 .*body.0.weight.* and 3 more: the optimizer took"
    ):
        result.raise_if_bad()


def test_weights_that_become_nan_and_shared_ones_that_do_not(model):
    model.head.bias = model.adapter.bias = nn.Parameter(torch.zeros(8))
    model.adapter = nn.Linear(64, 64)
    model.head.weight = nn.Parameter(torch.full_like(model.head.weight, torch.nan))
    with check(model, optimizer := sgd(model)) as result:
        train(model, optimizer, steps=1)
    assert set(found(result).values()) == {"not finite"}


def test_closures_wrapped_optimizers_and_wrapped_models(model):
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    x, wrapped = torch.randn(32, 16), nn.DataParallel(nn.Sequential(nn.Module()))
    wrapped.module[0].module = torch.compile(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        (loss := model(x).square().sum()).backward()
        return loss

    with check(wrapped, optimizer) as result:
        optimizer.step(closure)
    result.raise_if_bad()
    assert result.table["tensor"][0] == "0.module.body.0.weight"
    outer = sgd(model)
    outer.optimizer = sgd(model)
    with check(model, outer) as result:
        train(model, outer.optimizer)
    assert result.steps == 3


def test_an_error_passes_through_and_leaves_no_hook(model):
    optimizer = sgd(model)
    with pytest.raises(KeyError), check(model, optimizer) as result:
        raise KeyError
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(RwcError, match="^the check has no result: "):
        print(result)


def test_wrong_arguments_are_one_sentence(model):
    for message, arguments in {
        "needs the model itself, a torch.nn.Module, not method": (model.parameters, sgd(model)),
        "needs the optimizer, a torch.optim.Optimizer, not SimpleNamespace": (model, SimpleNamespace(optimizer=1)),
        "the model has no parameters$": (nn.ReLU(), sgd(model)),
        "the model has no parameters that match 'lora.*'": (model, sgd(model), "lora.*"),
        "the model has lazy parameters": (nn.LazyLinear(3), sgd(model)),
    }.items():
        with pytest.raises(ConfigError, match=message), check(*arguments):
            pass


def test_the_name_is_the_function_after_its_module_is_imported():
    assert importlib.import_module("rwclib.training_check").check is rwclib.check is check
