"""Backbones of one size: the width at which a backbone has a given number of parameters, for a fair comparison."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch

from unroll.errors import BackboneError
from unroll.policies.backbones.backbone import require
from unroll.policies.backbones.registry import make_backbone, options_of

# The share by which a number of parameters is missed without a word, and that by which it may be missed at all: the
# widths of a small backbone without an MLP lie up to 12 % apart, and nothing makes up the rest.
CLOSE = 0.02
TOLERANCE = 0.1

# With more parameters a matrix would have more elements than can be counted.
MAX_PARAMETERS = 10**15

# The widths that a backbone accepts are at most this far apart.
GAP = 4096


def match_parameters(name: str, parameters: int, n_layers: int = 3, **options: Any) -> tuple[int, dict[str, Any]]:
    """Find (d_model, options) with which the backbone has ``parameters`` parameters.

    The width is the one whose number is nearest. ``mlp_ratio`` makes up for the rest, if the backbone has that option
    and it was neither given nor 0: the MLP gets the number of channels that comes nearest. A number is met within 2 %
    where these allow it, and within 10 elsewhere.

    Raises:
        BackboneError: There is no such size (the message has the nearest that there are), or a name or option is
            wrong.
    """
    require(isinstance(parameters, Real), f"match_parameters is a number, not {parameters!r}")
    require(
        1 <= parameters <= MAX_PARAMETERS,
        f"match_parameters must be from 1 to {MAX_PARAMETERS:,}, not {parameters:,}",
    )

    # Double the width until there are enough parameters, then halve the interval. The number at ``low`` is always too
    # small, that at ``high`` is not.
    low = 0
    high = 1
    while high <= parameters and _at_least(name, high, n_layers, options)[1] < parameters:
        low = high
        high = 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _at_least(name, middle, n_layers, options)[1] < parameters:
            low = middle
        else:
            high = middle

    # Of the two widths around the number, take the nearer one, unless only the other can be made to fit.
    around = {_at_least(name, width, n_layers, options) for width in (max(1, low), high)}
    reached = []
    for width, _ in sorted(around, key=lambda found: abs(found[1] - parameters)):
        matched = _fit_mlp(name, width, parameters, n_layers, options)
        reached.append((width, matched, count_parameters(name, width, n_layers, matched)))
    for share in (CLOSE, TOLERANCE):
        for width, matched, n in reached:
            if abs(n - parameters) <= share * parameters:
                return width, matched
    nearest = ", ".join(f"{n:,} at d_model {width}" for width, _, n in reached)
    raise BackboneError(f"{name}, n_layers {n_layers}: cannot have {parameters:,} parameters; the nearest: {nearest}")


def missed(wanted: int, found: int) -> str:
    """Say by how much a number of parameters was missed; nothing where it is close."""
    share = (found - wanted) / wanted
    if abs(share) <= CLOSE:
        return ""
    return f"{found:,} parameters, {abs(share):.1%} {'more' if share > 0 else 'fewer'} than {wanted:,}"


def count_parameters(name: str, d_model: int, n_layers: int, options: dict[str, Any]) -> int:
    """Count a backbone's parameters. They are not allocated, unless a constructor computes with their values.

    Raises:
        BackboneError: A name, an option or the width is wrong.
    """
    try:
        with torch.device("meta"):
            backbone = make_backbone(name, d_model, n_layers, **options)
    except (NotImplementedError, RuntimeError) as error:
        # the constructor needs values, which there are none of on the meta device
        require("overflow" not in str(error), f"{name}, d_model {d_model}: more parameters than can be counted")
        backbone = make_backbone(name, d_model, n_layers, **options)
    except BackboneError:
        raise
    except (AssertionError, ValueError) as error:
        # how a layer of PyTorch, or a class of the user's own, refuses a width
        reason = " ".join(str(error).split()) or "refused"
        raise BackboneError(f"{name}, d_model {d_model}: {reason}") from error
    return sum(parameter.numel() for parameter in backbone.parameters())


def _at_least(name: str, width: int, n_layers: int, options: dict[str, Any]) -> tuple[int, int]:
    """Return the first width from ``width`` on that the backbone accepts, and its number of parameters."""
    for accepted in range(width, width + GAP):
        try:
            return accepted, count_parameters(name, accepted, n_layers, options)
        except BackboneError as error:
            refusal = error
    raise refusal


def _fit_mlp(name: str, width: int, parameters: int, n_layers: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, with the ``mlp_ratio`` that comes nearest if it is ours to choose."""
    default = options_of(name).get("mlp_ratio")
    if not default or "mlp_ratio" in options:
        return options

    # Each channel of the MLP adds as many parameters as the second one does.
    with_one = count_parameters(name, width, n_layers, options | {"mlp_ratio": 1 / width})
    with_two = count_parameters(name, width, n_layers, options | {"mlp_ratio": 2 / width})
    channels = max(1, 1 + round((parameters - with_one) / max(1, with_two - with_one)))
    ratio = channels / width
    if ratio == default:
        return options
    return options | {"mlp_ratio": ratio}
