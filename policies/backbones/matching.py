"""Backbones of one size: the width at which a backbone has a given number of parameters, for a fair comparison."""

from __future__ import annotations

from typing import Any

import torch

from unroll.errors import BackboneError
from unroll.policies.backbones.backbone import require
from unroll.policies.backbones.registry import make_backbone, options_of

TOLERANCE = 0.02
MOST = 10**15  # beyond it a matrix has more elements than can be counted
GAP = 4096  # accepted widths are at most this far apart


def match_parameters(name: str, parameters: int, n_layers: int = 3, **options: Any) -> tuple[int, dict[str, Any]]:
    """(d_model, options) with which the backbone has ``parameters`` parameters, within 2 %.

    The width is the one whose number is nearest. What is left is made up for by ``mlp_ratio``, where the backbone has
    that option and it was neither given nor 0: the MLP gets the number of channels that comes nearest.

    Raises:
        BackboneError: no such size, with the nearest that there are; a wrong name or option.
    """
    require(1 <= parameters <= MOST, f"match_parameters must be from 1 to {MOST:,}, not {parameters:,}")
    low, high = 0, 1
    while high <= parameters and _at_least(name, high, n_layers, options)[1] < parameters:
        low, high = high, 2 * high
    while high - low > 1:  # the count at low is below, that at high is not
        middle = (low + high) // 2
        below = _at_least(name, middle, n_layers, options)[1] < parameters
        low, high = (middle, high) if below else (low, middle)
    around = {_at_least(name, width, n_layers, options) for width in (max(1, low), high)}
    reached = []
    for width, _ in sorted(around, key=lambda pair: abs(pair[1] - parameters)):
        matched = _fit_mlp(name, width, parameters, n_layers, options)
        n = count_parameters(name, width, n_layers, matched)
        if abs(n - parameters) <= TOLERANCE * parameters:
            return width, matched
        reached.append(f"{n:,} at d_model {width}")
    nearest = ", ".join(reached)
    raise BackboneError(f"{name}, n_layers {n_layers}: cannot have {parameters:,} parameters; the nearest: {nearest}")


def count_parameters(name: str, d_model: int, n_layers: int, options: dict[str, Any]) -> int:
    """The number of parameters; they are not allocated, unless a constructor computes with their values.

    Raises:
        BackboneError: a wrong name, option or width.
    """
    try:
        with torch.device("meta"):
            backbone = make_backbone(name, d_model, n_layers, **options)
    except (NotImplementedError, RuntimeError) as error:
        require("overflow" not in str(error), f"{name}, d_model {d_model}: more parameters than can be counted")
        backbone = make_backbone(name, d_model, n_layers, **options)
    except BackboneError:
        raise
    except (AssertionError, ValueError) as error:  # how a layer of PyTorch, or a class of one's own, refuses a width
        raise BackboneError(f"{name}, d_model {d_model}: {' '.join(str(error).split()) or 'refused'}") from error
    return sum(parameter.numel() for parameter in backbone.parameters())


def _at_least(name: str, width: int, n_layers: int, options: dict[str, Any]) -> tuple[int, int]:
    """The first width from ``width`` on that the backbone accepts, and its number of parameters."""
    for accepted in range(width, width + GAP):
        try:
            return accepted, count_parameters(name, accepted, n_layers, options)
        except BackboneError as error:
            refusal = error
    raise refusal


def _fit_mlp(name: str, width: int, parameters: int, n_layers: int, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with the ``mlp_ratio`` that comes nearest where it is ours to choose."""
    default = options_of(name).get("mlp_ratio")
    if not default or "mlp_ratio" in options:
        return options
    one, two = (count_parameters(name, width, n_layers, options | {"mlp_ratio": n / width}) for n in (1, 2))
    ratio = max(1, 1 + round((parameters - one) / max(1, two - one))) / width
    return options if ratio == default else options | {"mlp_ratio": ratio}
