"""The formulas against what they are about: torch's optimizers on random gradients, sums of ratios, networks in training."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from rwclib import RunConfig, theory
from rwclib.errors import ConfigError

COPIES, SIZE = 192, 128
DECAY = {"lr": 0.05, "weight_decay": 0.04}
SGDM = {**DECAY, "momentum": 0.8}
WALKS = {
    "sgd": ("sgd", DECAY),
    "momentum": ("sgd", SGDM),
    "dampening": ("sgd", {**SGDM, "dampening": 0.5}),
    "nesterov": ("sgd", {**SGDM, "nesterov": True}),
    "adamw": ("adamw", {"lr": 0.01, "weight_decay": 0.5, "betas": (0.8, 0.95)}),
}


class Walk:
    """Copies of a layer whose gradient is noise, orthogonal to the weights and longer where these are shorter."""

    def __init__(self, kind: str, settings: dict) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(COPIES, SIZE, generator=self.generator))
        self.optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind]([self.w], **settings)
        self.theory = theory.equilibrium(kind, self.optimizer.param_groups[0])

    @torch.no_grad()
    def run(self, steps: int) -> Tensor:
        for _ in range(steps):
            length = self.w.norm(dim=1, keepdim=True)
            noise, along = torch.randn(self.w.shape, generator=self.generator), self.w / length
            self.w.grad = (noise - (noise * along).sum(1, keepdim=True) * along) / length
            self.optimizer.step()
        return self.w.detach().clone()


def rms(change: Tensor, start: Tensor) -> float:
    return float((change.square().sum() / start.square().sum()).sqrt())


@pytest.fixture(params=WALKS)
def walk(request) -> Walk:
    made = Walk(*WALKS[request.param])
    made.run(int(16 * made.theory.relaxation))
    return made


def test_steps_in_equilibrium(walk):
    before, measured = walk.run(1), {1: [], 3: [], 10: [], 100: []}
    for steps, values in measured.items():
        for _ in range(10):
            after = walk.run(steps)
            values.append(rms(after - before, before))
            before = after
    for steps, values in measured.items():
        assert np.mean(values) == pytest.approx(walk.theory.change(steps), rel=0.03), steps
    assert walk.theory.step == walk.theory.change(1)


@pytest.mark.parametrize("factor", [0.75, 1.4])
def test_at_any_time_by_the_growth_of_the_norms(walk, factor):
    walk.w.data *= factor
    start, gone = walk.run(15), 0
    for steps in (10, 60):
        end, gone = walk.run(steps - gone), steps
        growth = float(end.norm() / start.norm())
        assert (growth > 1) == (factor < 1), "norms move back"
        assert rms(end - start, start) == pytest.approx(walk.theory.change(steps, growth), rel=0.06), steps


def test_norms_relax(walk):
    power = 2 if isinstance(walk.optimizer, torch.optim.AdamW) else 4  # these powers relax as exponentials

    def size() -> float:
        return float(walk.w.detach().norm(dim=1).square().mean() ** (power / 2))

    settled = np.mean([walk.run(5).norm(dim=1).square().mean() ** (power / 2) for _ in range(20)])
    walk.w.data *= 2
    walk.run(15)
    first, _ = size(), walk.run(round(walk.theory.relaxation))
    assert (size() - settled) / (first - settled) == pytest.approx(np.exp(-1), rel=0.1)


def test_closed_forms_and_limits():
    lr, decay, momentum = 0.1, 1e-4, 0.9
    sgd, adamw = theory.sgd(lr, decay, momentum), theory.adamw(1e-3, 0.1, momentum)
    assert sgd.step == pytest.approx((2 * lr * decay / (1 + momentum)) ** 0.5, rel=1e-6)
    assert adamw.step == pytest.approx((2e-4 * (1 - momentum) / (1 + momentum)) ** 0.5, rel=1e-3)
    for known in (sgd, adamw):
        assert known.change(10**4) == pytest.approx((2 * (1 - np.exp(-(10**4) * known.kappa))) ** 0.5, rel=0.01)
        assert known.change(10**7) == pytest.approx(2**0.5)
    assert sgd.change(1) < sgd.change(1000, 0.96) < sgd.change(1000, [1.0, 1.1])[0] < sgd.change(1000, 1.1)
    assert np.isnan(sgd.change(10, 0.5))
    config = RunConfig(model="resnet18", dataset="cifar10", lr=lr, weight_decay=decay, momentum=momentum)
    assert theory.equilibrium(config.optimizer, config.to_dict()) == sgd
    assert theory.equilibrium("adam", {"lr": 1e-3, "weight_decay": 0.1, "decoupled_weight_decay": True}) == adamw


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("sgd", {"lr": 0.1, "weight_decay": 0.0}, "no equilibrium without weight decay"),
        ("sgd", {"lr": torch.tensor(0.0), "weight_decay": 0.1}, "no equilibrium without weight decay"),
        ("adam", {"lr": 0.1, "weight_decay": 0.0}, "no equilibrium without weight decay"),
        ("adam", {"lr": 0.1, "weight_decay": 0.1}, "Adam with an L2 penalty"),
        ("sgd", {"lr": 10, "weight_decay": 1}, "do not settle"),
        ("RMSprop", {"lr": 0.1, "weight_decay": 0.1}, "no equilibrium is known for optimizer RMSprop"),
    ],
)
def test_settings_without_an_equilibrium(kind, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        theory.equilibrium(kind, settings)


def ratios(generator: np.random.Generator, size: int, l2: float = 1, zeros: float = 0) -> np.ndarray:
    change, weights = generator.standard_normal((2, size))  # in float32 some are exactly 0
    change[: round(zeros * size)] = 0
    return np.abs(change * (l2 / np.sqrt(np.mean(change**2))) / weights)


@pytest.mark.parametrize(("size", "draws"), [(100, 2000), (1000, 2000), (10**4, 1000), (10**5, 200), (10**6, 30), (10**7, 5)])  # fmt: skip
def test_the_elementwise_mean_of_a_layer(size, draws):
    generator = np.random.default_rng(size)
    means = [ratios(generator, size).mean(dtype=np.float64) for _ in range(draws)]
    error = 0.5 / stats.landau.pdf(stats.landau.ppf(0.5)) / draws**0.5  # of a sample's median
    assert np.median(means) == pytest.approx(theory.elementwise_mean(size), abs=3 * error)
    if draws >= 1000:
        parts = [0.05, 0.25, 0.5, 0.75, 0.9]
        assert np.quantile(means, parts) == pytest.approx(theory.elementwise_mean(size, quantile=parts), rel=0.08)


@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.6])
def test_exact_zeros_and_the_median(zeros):
    generator = np.random.default_rng(0)
    layers = [ratios(generator, 4000, 0.2, zeros) for _ in range(2000)]
    means, medians, parts = np.mean(layers, axis=1), np.median(layers, axis=1), [0.1, 0.5, 0.9]
    assert np.quantile(means, parts) == pytest.approx(theory.elementwise_mean(4000, 0.2, zeros, parts), rel=0.06)
    assert np.quantile(medians, parts) == pytest.approx(theory.elementwise_median(4000, 0.2, zeros, parts), rel=0.02)


class Net(nn.Module):
    """Convolutions with every kind of follower, dropout, a residual branch that starts at 0, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.batch, self.group = (nn.Conv2d(c, 8, 3, padding=1, bias=False) for c in (3, 8))
        self.none = nn.Conv2d(
            8, 8, 3
        )  # without bias it would be invariant: nothing before the next norm but ReLU and mean
        self.bn, self.gn, self.ln = nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.branch, self.last = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.layer, self.biased, self.rms = nn.Linear(8, 8, bias=False), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.rn, self.head, self.unused = nn.RMSNorm(8), nn.Linear(8, 4), nn.Linear(8, 8)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.biased.bias)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.bn(self.batch(x * scale)).relu()
        x = x + self.last(self.branch(x))
        x = nn.functional.dropout(self.gn(self.group(x)).relu(), 0.2, self.training)
        x = self.none(x).relu().mean((2, 3))
        x = self.ln(self.biased(self.ln(self.layer(x)).relu())).relu()
        return self.head(self.rn(self.rms(x)))


@pytest.mark.parametrize("training", [True, False])
def test_scale_invariance_is_found_and_nothing_is_touched(training):
    torch.manual_seed(0)
    model, x = Net().train(training), torch.randn(16, 3, 6, 6)
    model.gn.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = theory.scale_invariant(model, x)
    invariant = {"batch", "group", "branch", "layer", "rms"}
    assert found == {name: name.split(".")[0] in invariant for name in found}
    assert len(found) == 9
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in (model, model.bn, model.gn)] == [training, training, False]
    assert all(p.grad is None for p in model.parameters())
    assert theory.scale_invariant(model, {"x": x, "scale": 2.0}) == theory.scale_invariant(model, (x,)) == found
    assert theory.scale_invariant(nn.DataParallel(torch.compile(model, backend="eager")), x, "group*") == {"group.weight": True}  # fmt: skip


def test_frozen_norms_and_nets_without_norms_are_not_invariant():
    model, x = Net(), torch.randn(16, 3, 6, 6)
    model.bn.eval()
    assert not theory.scale_invariant(model, x)["batch.weight"]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
    assert not any(theory.scale_invariant(plain, x).values())


def test_inputs_that_do_not_fit():
    model = Net()
    with pytest.raises(ConfigError, match="the model does not run on these inputs.*channels"):
        theory.scale_invariant(model, torch.randn(16, 1, 6, 6))
    with pytest.raises(ConfigError, match="the model does not run on these inputs"):
        theory.scale_invariant(model, (torch.randn(16, 3, 6, 6), 1, torch.zeros(16)))
    with pytest.raises(ConfigError, match="no finite outputs"):
        theory.scale_invariant(model, torch.full((16, 3, 6, 6), torch.inf))
    assert model.training
