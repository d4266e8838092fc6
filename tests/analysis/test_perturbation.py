import pytest
import torch
from torch import nn

from rwclib import models, perturbation
from rwclib.errors import ConfigError


@pytest.fixture
def model():
    return models.build("resnet18", num_classes=10, in_channels=1, width=8)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("scope", perturbation.SCOPES)
def test_flipping_twice_is_the_identity(model, scope):
    state, names = model.state_dict(), perturbation.names(model, scope)
    once = perturbation.flip_sign(state, names)
    assert not equal(once, state)
    assert equal(perturbation.flip_sign(once, names), state)


def test_distorting_by_nothing_is_the_identity(model):
    state, names = model.state_dict(), perturbation.names(model)
    assert equal(perturbation.distort(state, names, 0.0), state)
    moved = perturbation.distort(state, names, 1e-3)
    assert all(torch.equal(moved[name], state[name] + 1e-3) for name in names)


def test_shuffling_keeps_each_tensors_values(model):
    state, names = model.state_dict(), perturbation.names(model, "weights")
    shuffled = perturbation.shuffle(state, names, torch.Generator().manual_seed(0))
    for name, value in state.items():
        assert torch.equal(shuffled[name], value) == (name not in names), name
        assert torch.equal(shuffled[name].flatten().sort().values, value.flatten().sort().values)


def test_noise_is_relative_to_each_tensor(model):
    state, names = model.state_dict(), perturbation.names(model, "weights")
    noisy = perturbation.add_noise(state, names, 0.1, torch.Generator().manual_seed(0))
    large = [name for name in names if state[name].numel() > 4000]
    assert len(large) > 3
    for name in large:
        assert (noisy[name] - state[name]).norm() / state[name].norm() == pytest.approx(0.1, rel=0.05)


def test_the_scopes_are_what_they_say(model):
    weights, parameters, state = (perturbation.names(model, s) for s in ("weights", "parameters", "state"))
    assert len(weights) == 21
    assert set(parameters) == {name for name, _ in model.named_parameters()}
    assert set(state) - set(parameters) == {name for name, _ in model.named_buffers() if "running_mean" in name}


def test_a_perturbation_leaves_its_input_and_other_tensors_alone(model):
    state = model.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    changed = perturbation.flip_sign(state, ["conv1.weight"])
    assert equal(state, before)
    assert [name for name in state if not torch.equal(changed[name], state[name])] == ["conv1.weight"]
    changed["fc.bias"].zero_()
    assert equal(state, before)


def test_two_flipped_linear_layers_are_the_same_function_only_without_a_relu_between():
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    layers = [nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)]
    for between, same in ((nn.Identity(), True), (nn.Tanh(), True), (nn.ReLU(), False)):
        model = nn.Sequential(layers[0], between, layers[1])
        before = model(x)
        perturbation.apply("flip_sign", model)
        assert torch.allclose(model(x), before, atol=1e-6) == same, between
        perturbation.apply("flip_sign", model)


def test_a_flipped_convolution_and_its_normalisation_are_the_same_function_but_for_the_shift_and_running_mean():
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=1.0))
    model(x)  # running statistics are now the batch's
    train, trained = model.train()(x), model.eval()(x)
    perturbation.apply("flip_sign", model)  # weight and scale; the shift is zero
    assert torch.allclose(model.train()(x), train, atol=1e-5)
    perturbation.apply("flip_sign", model)
    model.train()(x)
    perturbation.apply("flip_sign", model)
    assert not torch.allclose(model.eval()(x), trained, atol=1e-2)
    perturbation.apply("flip_sign", model)
    perturbation.apply("flip_sign@state", model)
    assert torch.allclose(model.eval()(x), trained, atol=1e-5)
    nn.init.ones_(model[1].bias)
    with_shift = model(x)
    perturbation.apply("flip_sign@state", model)
    assert not torch.allclose(model(x), with_shift, atol=1e-2)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("none", ("none", None, "parameters")),
        ("flip_sign", ("flip_sign", None, "parameters")),
        ("flip_sign@state", ("flip_sign", None, "state")),
        ("distort:1e-06", ("distort", 1e-6, "parameters")),
        ("add_noise:0.1@weights", ("add_noise", 0.1, "weights")),
    ],
)
def test_perturbations_as_settings_write_them(text, parts):
    assert perturbation.parse(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "turn",
        "flip_sign:2",
        "distort",
        "distort:much",
        "distort:nan",
        "shuffle@biases",
        "",
        "distort:1e-6",
        "none@state",
        "flip_sign@parameters",
    ],
)
def test_what_is_no_perturbation_is_refused_in_one_sentence(text):
    with pytest.raises(ConfigError, match="perturbation") as error:
        perturbation.parse(text)
    assert "\n" not in str(error.value)


def test_names_that_the_state_lacks_are_refused(model):
    with pytest.raises(ConfigError, match=r"no layer9\.weight"):
        perturbation.flip_sign(model.state_dict(), ["layer9.weight"])
