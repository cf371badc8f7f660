"""What a checkpoint says, held against what it is loaded into: nothing of it is believed."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from unroll.agents.common.checkpoint import load_optimizer, read_checkpoint
from unroll.errors import CheckpointError, EnvError, FormatError, TrainingError, one_line
from unroll.policies.backbones.registry import misfit


def read_agent(path: str | Path, agent: str, *versions: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the state of a checkpoint of this class of agent and one of these versions of the format.

    Raises:
        CheckpointError: it is damaged or of another agent; a FormatError if it is of another version.
    """
    tensors, state = read_checkpoint(path)
    found = state.get("format")
    if state.get("agent") != agent or type(found) is not int or not isinstance(state.get("config"), dict):
        raise CheckpointError(f"{path}: not a checkpoint of a {agent}")
    if found not in versions:
        raise FormatError(
            f"{path}: a checkpoint of a {agent} in format {found}, of another version of unroll; this one reads format "
            f"{versions[-1]}"
        )
    return tensors, state


@contextlib.contextmanager
def of_checkpoint(path: str | Path) -> Iterator[None]:
    """Turn whatever cannot be made of the contents of ``path`` into a CheckpointError, one line that names it."""
    try:
        yield
    except (CheckpointError, EnvError):  # an environment that is not imported says how to do that
        raise
    except TrainingError as error:  # memory that does not suffice
        raise TrainingError(f"{path}: {error}") from None
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # The text may hold half characters of a damaged file, which no terminal takes.
        reason = one_line(str(error).encode(errors="replace").decode(), 400)
        raise CheckpointError(f"{path}: of another model or version ({reason})") from None


def restore(
    policy: nn.Module, optimizer: torch.optim.Optimizer, wanted: Mapping[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    """Put weights and moments back, where they are those of this policy.

    ``wanted`` are the policy's tensors, each once.
    """
    weights = {name.removeprefix("policy."): v for name, v in tensors.items() if name.startswith("policy.")}
    weights = of_now(policy, weights)
    check_tensors(weights, wanted, "weights")
    check_moments(tensors, optimizer)
    policy.load_state_dict(weights, strict=False)  # without the second names of shared weights
    load_optimizer(optimizer, tensors)


def of_now(model: nn.Module, tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Add to the tensors of a model, whose names begin with ``prefix``, what early ones lack.

    That is what its modules say in ``of_before``.
    """
    missing: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if hasattr(module, "of_before"):
            missing |= {f"{prefix}{name}.{key}": value for key, value in module.of_before().items()}
    return missing | tensors


def check_goes_on(path: str | Path, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Raise CheckpointError if an agent that has learned came without its optimizer, as the runs of the zoo do.

    Learning would go on with other numbers than the run would have had.
    """
    if steps and not optimizer.state:
        raise CheckpointError(f"{path}: holds no optimizer, so it can be played, and not go on learning")


def check_arguments(function: Callable[..., Any], arguments: Any, what: str) -> None:
    """Raise TypeError where ``arguments`` are not what the function's annotations say.

    None of its numbers may be negative.
    """
    _check_kinds(get_type_hints(function), arguments, what)


def check_fields(schema: type, values: Any, what: str) -> None:
    """Raise TypeError where ``values`` are not those of the fields of a dataclass, as ``check_arguments`` does."""
    _check_kinds(get_type_hints(schema), values, what)


def _check_kinds(kinds: Mapping[str, Any], values: Any, what: str) -> None:
    if not isinstance(values, dict):
        raise TypeError(f"{what} is no JSON object")
    for name, value in values.items():
        wrong = _misfit(kinds[name], value) if name in kinds else "unknown"
        if isinstance(value, int | float) and value < 0:
            wrong = f"at least 0, not {value!r}"
        if wrong:
            raise TypeError(f"{what}.{name} is {wrong}")


def _misfit(kind: Any, value: Any) -> str:
    """What a value of this kind is, and this one is not; empty where it fits."""
    if get_origin(kind) is types.UnionType:
        wrong = [_misfit(one, value) for one in get_args(kind)]
        return "" if "" in wrong else wrong[0]
    if kind is types.NoneType:
        return "" if value is None else "null"
    if get_origin(kind) is dict:
        return "" if isinstance(value, dict) else f"a JSON object, not {value!r}"

    # A bounded number of a config is a subclass of int or float; in JSON it is a plain one.
    for plain in (bool, int, float):
        if isinstance(kind, type) and issubclass(kind, plain):
            return misfit(plain, value)
    return misfit(kind, value)


def check_count(state: Mapping[str, Any], *names: str) -> None:
    """Raise TypeError unless these are whole numbers of at least 0."""
    for name in names:
        value = state[name]
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise TypeError(f"{name} is {value!r}, not a number of steps")


def check_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError unless ``found`` has the names, shapes and types of ``wanted``, and finite values."""
    differing = sorted(found.keys() ^ wanted.keys())
    if differing:
        listed = ", ".join(differing[:3]) + (" …" if len(differing) > 3 else "")
        raise ValueError(f"{what} {listed}: here or there alone")
    for name, tensor in found.items():
        other = wanted[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            raise ValueError(f"{what} {name} is {_in_words(tensor)}, not {_in_words(other)}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{what} {name} is not finite")


def _in_words(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def check_moments(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless what ``optimizer_tensors`` gave belongs to weights of these shapes, and is finite.

    A weight that has had no gradient yet has no moments.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    found = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
    keys = {name.split(".")[2] for name in found}
    if not keys <= {"step", "exp_avg", "exp_avg_sq"}:
        raise ValueError(f"no moments of Adam or LAMB: {', '.join(sorted(keys))}")

    wanted = {}
    steps = torch.zeros(())  # they are counted in a float32
    for number in {int(name.split(".")[1]) for name in found}:
        for key in keys:
            wanted[f"optimizer.{number}.{key}"] = steps if key == "step" else weights[number]
    check_tensors(found, wanted, "the optimizer's")


def check_size(tensors: Mapping[str, Tensor], parameters: int) -> None:
    """Raise ValueError, before a policy is built, where it is described with more numbers than the file holds."""
    held = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("policy."))
    if parameters > held:
        raise ValueError(f"its config describes {parameters:,} parameters, and it holds {held:,}")
