"""What theory predicts of relative weight change without any training, for layers that a normalisation follows.

Such a layer is scale-invariant: the loss does not depend on the length of its weights, so its gradient is orthogonal to
them, steps lengthen them, weight decay shortens them, and an equilibrium comes of it (arXiv 2006.08419, 2305.17212).
Notation in the docstrings: learning rate η, weight decay λ, momentum α (Adam: β1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import linalg, stats
from torch import Tensor, nn
from torch.utils import _pytree

from rwclib import _layers, _sharding
from rwclib.errors import ConfigError


@dataclass(frozen=True)
class Equilibrium:
    """How a scale-invariant layer moves under an optimizer, in expectation; ratios are L2 ratios.

    Weights w and momentum v obey (w, v) <- M (w, v) + gradient (b0, b1), where the gradient is orthogonal to w and, an assumption
    that real training violates, white: no step's remembers another's. So M and b alone give the inner products of w and v.

    Attributes:
        kappa: part of its direction that the layer forgets per step, once momentum is spent: ηλ/(1−α) for SGD (with dampening
            τ: η(1−τ)λ/(1−α)), ηλ for AdamW.
        relaxation: steps in which the norm's distance from its equilibrium falls by e: 1/(4κ) for SGD, whose steps shrink as the
            norm grows; 1/(2κ) for AdamW, whose steps do not (if that is well above 1/(1−β2), the memory of its gradients' sizes).
        system, noise: M, nested tuples (2, 2), and b.
    """

    kappa: float
    relaxation: float
    system: tuple[tuple[float, float], tuple[float, float]]
    noise: tuple[float, float]

    @property
    def step(self) -> float:
        """L2 ratio of one step: sqrt(2ηλ/(1+α)) for SGD; for AdamW sqrt(2ηλ(1−β1)/(1+β1(1−ηλ))), where arXiv 2305.17212 has 1+β1.

        Needs no white noise, only that the norm has settled: then 2 w·Δ = −|Δ|², and the gradient adds nothing to w·Δ.
        """
        return float(self.change(1))

    def cosine(self, steps: int, growth: ArrayLike = 1.0) -> np.ndarray:
        """Expected w_t·w_s / |w_s|² after so many steps: near e^{−nκ}, above it while momentum goes on with earlier steps.

        In equilibrium v·w follows from the stationary covariance; where norms only decay, from M's slowest eigenvector. Between
        and beyond them it is linear in the norms' rate of growth, ln ρ / (nκ): 0 in the one, −1 in the other.
        """
        system = np.array(self.system)
        shape = linalg.solve_discrete_lyapunov(system, np.outer(self.noise, self.noise))
        settled = (np.linalg.matrix_power(system, steps) @ shape)[0, 0] / shape[0, 0]
        decaying = max(abs(np.linalg.eigvals(system))) ** steps
        return settled + np.log(growth) / (steps * self.kappa) * (settled - decaying)

    def change(self, steps: int, growth: ArrayLike = 1.0) -> np.ndarray:
        """L2 ratio |w_t − w_s| / |w_s| over so many steps; in equilibrium, `growth` 1, near sqrt(2(1−e^{−nκ})).

        |w_t − w_s|² = |w_t|² + |w_s|² − 2 w_t·w_s, hence l2² = ρ² + 1 − 2 cosine, near ρ² − 1 + 2(1 − e^{−nκ}), at any time. For n
        below some 10/(1−α) momentum makes it less than that; it is counted. NaN where ρ is below the cosine, which is no walk of
        weights: the gradient is not orthogonal to them.

        Args:
            steps: n, at least 1.
            growth: ρ = |w_t| / |w_s| (ratio), a number or an array.
        """
        cosine, growth = self.cosine(steps, growth), np.asarray(growth)
        return np.sqrt(np.where(growth > cosine - 1e-9, growth**2 + 1 - 2 * cosine, np.nan))[()]


def sgd(
    lr: float, weight_decay: float, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False
) -> Equilibrium:
    """Equilibrium of `torch.optim.SGD`; dampening τ only scales the learning rate by 1−τ, Nesterov's form changes M and b.

    v <- α v + (1−τ)(g + λ w), then w <- w − η v, or w <- w − η (g + λ w + α v) with Nesterov. M below is for ηv in place of v.
    `ConfigError` without weight decay or learning rate, or with so much that weights do not settle.
    """
    decay = lr * weight_decay * (1 - dampening if momentum else 1)  # torch dampens with momentum alone
    reach, again = (1 + momentum, momentum**2) if nesterov else (1.0, momentum)
    system = ((1 - decay * reach, -again), (decay, momentum))
    return _equilibrium(decay, decay / (1 - momentum), 4, system, (-reach, 1.0))


def adamw(lr: float, weight_decay: float, beta1: float = 0.9) -> Equilibrium:
    """Equilibrium of `torch.optim.AdamW`: w <- (1−ηλ) w − η u, where u averages normalised gradients, u <- β1 u + (1−β1) g.

    That the gradient stays orthogonal to w when Adam divides it by its own sizes is an approximation (arXiv 2305.17212).
    `ConfigError` as for `sgd`.
    """
    decay = lr * weight_decay
    return _equilibrium(decay, decay, 2, ((1 - decay, -beta1), (0.0, beta1)), (-1.0, 1.0))


def _equilibrium(decay: float, kappa: float, power: int, system: tuple, noise: tuple) -> Equilibrium:
    if not decay:
        raise ConfigError("no equilibrium without weight decay and learning rate: norms grow, relative changes fall")
    if max(abs(np.linalg.eigvals(np.array(system)))) >= 1:
        raise ConfigError(f"no equilibrium: learning rate times weight decay is {decay:g}, and weights do not settle")
    return Equilibrium(kappa, 1 / (power * kappa), system, noise)


def equilibrium(optimizer: str, settings: Mapping[str, object]) -> Equilibrium:
    """Equilibrium by an optimizer's name, `sgd`, `adamw` or `adam`, and torch's names of its settings; or `ConfigError`: why not.

    Args:
        settings: `lr` and `weight_decay`, and where they differ from torch's defaults momentum, dampening, nesterov, betas: an
            optimizer's parameter group, or `RunConfig.to_dict()`. Others are ignored; learning rate: the present one.
    """
    known = {"momentum": 0, "dampening": 0, "nesterov": False, "betas": (0.9, 0.999), **settings}
    lr, decay = float(known["lr"]), float(known["weight_decay"])
    if optimizer == "sgd":
        return sgd(lr, decay, float(known["momentum"]), float(known["dampening"]), bool(known["nesterov"]))
    if optimizer == "adamw" or (optimizer == "adam" and (known.get("decoupled_weight_decay") or not lr * decay)):
        return adamw(lr, decay, float(known["betas"][0]))
    if optimizer == "adam":
        raise ConfigError("Adam with an L2 penalty settles where the gradients' sizes put it, which no setting tells")
    raise ConfigError(f"no equilibrium is known for optimizer {optimizer}; known: SGD, AdamW")


def elementwise_mean(size: ArrayLike, l2: ArrayLike = 1, zeros: ArrayLike = 0, quantile: ArrayLike = 0.5) -> np.ndarray:
    """A quantile over layers of the mean of |Δ|/|w| (ratio) of N weights; at 0.5 close to l2 (0.845 + (2/π) ln N).

    For Gaussian w and Δ, independent, |Δ|/|w| is half-Cauchy with scale l2 and has no mean. From its transform near 0,
    1 + (2/π) s (ln s + γ − 1), the sample mean tends to l2 ((2/π)(ln N + 1 − γ) + X), X Landau's stable law (α = 1, β = 1): median
    0.576, quartiles −0.42 and 2.55, tail (2/π)/x, at every N. Means over k layers read as one of k N weights. Of the
    changes a share z of zeros leaves N(1−z) weights of scale l2/sqrt(1−z): l2 sqrt(1−z) ((2/π)(ln N(1−z) + 1 − γ) + X).

    Args:
        size: N, weights of a layer (from a hundred on). Arguments are numbers or arrays that broadcast.
        l2: L2 ratio of the layer; from 0.5 up their dependence in equilibrium (w·Δ = −l2²/2) matters: 3% less at 0.5, 13% at 1.
        zeros: share of weights with a change of exactly 0, below 1.
        quantile: in (0, 1).
    """
    moving = 1 - np.asarray(zeros, dtype=float)
    location = 2 / np.pi * (np.log(np.asarray(size) * moving) + 1 - np.euler_gamma)
    return l2 * np.sqrt(moving) * (location + stats.landau.ppf(quantile))


def elementwise_median(
    size: ArrayLike, l2: ArrayLike = 1, zeros: ArrayLike = 0, quantile: ArrayLike = 0.5
) -> np.ndarray:
    """A quantile over layers of the median of |Δ|/|w| (ratio) over N weights: l2 at 0.5, give or take π/(2 sqrt N) l2.

    A share z of zeros leaves scale l2/sqrt(1−z), and of the others the part q = (0.5−z)/(1−z) below the median: tan(πq/2) times
    that; 0 from z = 0.5 on. The spread is the normal one of a sample quantile, sqrt(q(1−q)/N(1−z)) over the density. Arguments
    as for `elementwise_mean`; `size` at most 4,096 for `rwc_median`, which looks at so many.
    """
    moving = 1 - np.asarray(zeros, dtype=float)
    part = np.maximum(0.5 - np.asarray(zeros), 0) / moving
    middle = np.tan(np.pi / 2 * part)
    spread = np.pi / 2 * (1 + middle**2) * np.sqrt(part * (1 - part) / (np.asarray(size) * moving))
    return l2 / np.sqrt(moving) * (middle + spread * stats.norm.ppf(quantile))


def scale_invariant(
    model: nn.Module, inputs: object, layers: _layers.LayerFilter = None, tolerance: float = 0.05
) -> dict[str, bool]:
    """Which layers a normalisation follows, so that the length of their weights does not matter: found by trying.

    Each weight tensor is doubled, and for comparison disturbed by noise of its own length: invariant is a layer whose doubling
    moves the outputs by less than `tolerance` times what the noise does (not 0: norms add their eps). All in training mode, with
    the batch's statistics and the same random numbers, so dropout, in every pass; vectors, and what is all 0, with noise of
    0.5 added, so that their present sizes do not count. The model, its mode and the random state stay as they are.

    Args:
        model: in training mode with norms frozen in evaluation mode, those stay frozen; in evaluation mode none is.
        inputs: of `model(inputs)`, or a tuple of positional or a mapping of keyword arguments; without labels, several examples.
        layers: as in `rwclib.tracker.weight_tensors`; each costs two passes.
        tolerance: ratio.

    Returns:
        By layer name; False also where nothing depends on the layer.

    Raises:
        ConfigError: the model does not run on the inputs, gives no finite outputs, is sharded, or `layers` leaves none.
    """
    chosen = _layers.weight_tensors(model, layers)
    if any(map(_sharding.is_sharded, chosen.values())):
        raise ConfigError("scale invariance is found from whole weights, not those that fully_shard has spread")
    inner, generator = next(_layers.modules(model))[1], torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    values = {name: p.detach() for name, p in inner.named_parameters()}
    values |= {name: p + noise(p) / 2 for name, p in values.items() if p.dim() < 2 or not p.any()}
    names = {id(p): name for name, p in inner.named_parameters()}
    found = {}
    with _as_it_was(inner), torch.no_grad():
        plain = _outputs(inner, values, inputs)
        for layer, weight in chosen.items():
            name = names[id(weight)]
            other = noise(weight)
            other *= values[name].norm() / other.norm()
            doubled, disturbed = (
                (_outputs(inner, {**values, name: value}, inputs) - plain).norm().item()
                for value in (2 * values[name], values[name] + other)
            )
            seen = disturbed > 1e-5 * plain.norm().item()  # not rounding alone
            found[layer] = seen and doubled < tolerance * disturbed
    return found


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """In training mode; modes and random states are put back."""
    modes = {module: module.training for module in model.modules()}
    cuda = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with torch.random.fork_rng(devices=cuda):
        try:
            if not model.training:
                model.train()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def _outputs(model: nn.Module, values: Mapping[str, Tensor], inputs: object) -> Tensor:
    """All floating-point outputs as one vector, of these parameters and copies of the buffers."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    named = isinstance(inputs, Mapping)
    positional = () if named else inputs if isinstance(inputs, tuple) else (inputs,)
    torch.manual_seed(0)
    try:
        result = torch.func.functional_call(model, {**values, **buffers}, positional, inputs if named else {})
    except Exception as error:  # whatever a model raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"the model does not run on these inputs, give a batch without labels: {reason}") from error
    leaves = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not leaves or not all(leaf.isfinite().all() for leaf in leaves):
        raise ConfigError("the model gives no finite outputs on these inputs")
    return torch.cat([leaf.float().flatten() for leaf in leaves])


def expected(
    model: nn.Module, names: Sequence[str], optimizer: torch.optim.Optimizer, steps: int,
    inputs: object = None, invariant: Mapping[str, bool] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """What `RWCTracker.expected` gives, for the layers `names` of the model: in equilibrium, each by its own parameter group.

    The mean of |x| is the same part of its root mean square for w as for Δ where both are Gaussian, or any one shape, filter by
    filter too; so the L1 ratio `rwc` is the L2 ratio. Real steps undo each other in part: rows of many steps read lower, often by a
    third. Rows well above it: norms have not settled, or gradients agree. Under a schedule, call it again.

    Raises:
        ConfigError: neither `inputs` nor `invariant`, no optimizer, no number of steps, or as `scale_invariant` does.
    """
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):  # accelerate's, Lightning's
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"expected needs the optimizer, a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"steps must be a whole number of at least 1, not {steps!r}")
    if inputs is None and invariant is None:
        raise ConfigError("expected needs a batch of the model's inputs, to find which layers are scale-invariant")
    weights = {name: weight for name, weight in _layers.weights(model).items() if name in names}
    if invariant is None:
        invariant = scale_invariant(model, inputs, lambda name, _: name in weights) if weights else {}
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    kinds = {torch.optim.SGD: "sgd", torch.optim.Adam: "adam", torch.optim.AdamW: "adamw"}
    kind = next((short for known, short in kinds.items() if isinstance(optimizer, known)), type(optimizer).__name__)
    rows = []
    for name in names:
        change, weight = math.nan, weights.get(name)
        if weight is None:
            reason = "computed by a parametrisation, no parameter of its own"
        elif name not in invariant:
            reason = "not known whether it is scale-invariant"
        elif not invariant[name]:
            reason = "not scale-invariant: no normalisation undoes the length of its weights"
        elif not weight.requires_grad:
            reason = "frozen: it does not require gradients"
        elif id(weight) not in groups:
            reason = "not among the optimizer's parameters"
        else:
            try:
                change, reason = equilibrium(kind, groups[id(weight)]).change(steps), ""
            except ConfigError as error:
                reason = str(error)
        rows.append((name, change, change, reason))
    return pd.DataFrame(rows, columns=["layer", "rwc", "l2_ratio", "reason"])
