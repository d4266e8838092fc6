"""Perturbations of trained weights, as pure functions of a state dict, and distances between state dicts.

Which tensors a perturbation touches is its `scope`, because that changes the result:

- `parameters`: what the optimizer trains, that is weights, biases, and the scale and shift of normalisation layers;
- `weights`: parameters of more than one dimension alone, what this package calls layers;
- `state`: parameters and running means. A network whose running means are not flipped with the weights that feed them
  normalises by the wrong means until they have adapted.

Running variances (which a sign does not change), counters and integers are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from rwclib.errors import ConfigError

SCOPES = ("parameters", "weights", "state")
State = Mapping[str, Tensor]


def names(model: nn.Module, scope: str = "parameters") -> list[str]:
    """Names of the model's tensors that a perturbation of this scope touches; `ConfigError` for an unknown scope."""
    if scope not in SCOPES:
        raise ConfigError(f"unknown scope {scope!r}; known: {', '.join(SCOPES)}")
    parameters = [name for name, value in model.named_parameters() if scope != "weights" or value.dim() > 1]
    means = [name for name, _ in model.named_buffers() if name.endswith("running_mean")]
    return parameters + means if scope == "state" else parameters


def _each(state: State, touched: Iterable[str], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    touched = set(touched)
    missing = touched - set(state)
    if missing:
        raise ConfigError(f"the state has no {', '.join(sorted(missing))}; give names of its tensors")
    return {name: change(value) if name in touched else value.clone() for name, value in state.items()}


def flip_sign(state: State, touched: Iterable[str]) -> dict[str, Tensor]:
    """A copy with w replaced by -w in the tensors named."""
    return _each(state, touched, torch.neg)


def distort(state: State, touched: Iterable[str], epsilon: float = 1e-6) -> dict[str, Tensor]:
    """A copy with w replaced by w + epsilon; weights above about 16 epsilon 10^6 do not change in fp32."""
    return _each(state, touched, lambda value: value + epsilon)


def add_noise(
    state: State, touched: Iterable[str], relative: float = 0.01, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """A copy with Gaussian noise added to each tensor named, of `relative` times its root mean square."""

    def noisy(value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return value + noise.to(value.device) * relative * value.square().mean().sqrt()

    return _each(state, touched, noisy)


def shuffle(state: State, touched: Iterable[str], generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """A copy with the elements of each tensor named in random order: a control that keeps all norms and distributions."""

    def shuffled(value: Tensor) -> Tensor:
        order = torch.randperm(value.numel(), generator=generator).to(value.device)
        return value.flatten()[order].reshape(value.shape)

    return _each(state, touched, shuffled)


def parse(text: str) -> tuple[str, float | None, str]:
    """Kind, strength and scope of a perturbation as settings write it: `kind[:strength][@scope]`.

    Kinds: `flip_sign`, `shuffle`, `distort:EPSILON`, `add_noise:RELATIVE`; `none`. The scope is `parameters` unless given.

    Raises:
        ConfigError: an unknown kind or scope, a strength that is no number or not the kind's to have, or another spelling
            than the one that runs are hashed with.
    """
    rest, _, scope = text.partition("@")
    kind, _, strength = rest.partition(":")
    scope, strong = scope or "parameters", kind in ("distort", "add_noise")
    if kind not in ("none", "flip_sign", "shuffle", "distort", "add_noise") or scope not in SCOPES:
        raise ConfigError(
            f"unknown perturbation {text!r}; write flip_sign, shuffle, distort:EPSILON or add_noise:RELATIVE, "
            f"and @{' or @'.join(SCOPES[1:])} behind it for other tensors than all parameters"
        )
    try:
        value = float(strength) if strong else None
    except ValueError:
        value = float("nan")
    if (strength and not strong) or (strong and not abs(value) < float("inf")):
        raise ConfigError(f"perturbation {text!r} must be distort:NUMBER, add_noise:NUMBER, or a kind without a number")
    number, behind = f":{value!r}" if strong else "", f"@{scope}" if scope != "parameters" else ""
    canonical = "none" if kind == "none" else f"{kind}{number}{behind}"
    if text != canonical:  # one spelling, one hash
        raise ConfigError(f"perturbation {text!r} must be written {canonical}")
    return kind, value, scope


def apply(text: str, model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Perturb a model in place, as `parse` reads `text`; noise and shuffling are drawn from `generator`."""
    kind, strength, scope = parse(text)
    if kind == "none":
        return
    state, touched = model.state_dict(), names(model, scope)
    if kind == "flip_sign":
        changed = flip_sign(state, touched)
    elif kind == "distort":
        changed = distort(state, touched, strength)
    elif kind == "add_noise":
        changed = add_noise(state, touched, strength, generator)
    else:
        changed = shuffle(state, touched, generator)
    model.load_state_dict(changed)
