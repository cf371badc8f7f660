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
from unroll.agents.common.guards import decision_parameters
from unroll.agents.decision.task import check_task
from unroll.errors import CheckpointError, TrainingError
from unroll.policies.actions import build_space
from unroll.policies.backbones.registry import misfit
from unroll.policies.decision import DecisionPolicy


def read_agent(path: str | Path, agent: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint of this class of agent and version of the format.

    Raises:
        CheckpointError: it is damaged, or of another one.
    """
    tensors, state = read_checkpoint(path)
    same = state.get("agent") == agent and type(state.get("format")) is int and state["format"] == version
    if not same or not isinstance(state.get("config"), dict):
        raise CheckpointError(f"{path}: not a checkpoint of a {agent} of this version")
    return tensors, state


@contextlib.contextmanager
def of_checkpoint(path: str | Path) -> Iterator[None]:
    """Whatever cannot be made of the contents of ``path`` is a CheckpointError, one line that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except TrainingError as error:  # memory that does not suffice
        raise TrainingError(f"{path}: {error}") from None
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).encode(errors="replace").decode().split())[:400]
        raise CheckpointError(f"{path}: of another model or version ({reason})") from None


def decision_policy(agent: type, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> dict[str, Any]:
    """The policy's arguments in a checkpoint of a DecisionAgent, all of whose state is found to be usable. Raises any
    of the exceptions of ``of_checkpoint``."""
    check_arguments(agent.__init__, state["config"], "config")  # type: ignore[misc]
    check_arguments(DecisionPolicy.__init__, state["policy"], "policy")
    check_count(state, "num_timesteps", "total_timesteps")
    check_task(state["task"])
    policy = state["policy"] | {"action_space": build_space(state["policy"]["action_space"])}
    check_size(tensors, decision_parameters(**policy))
    return policy


def restore(
    policy: nn.Module, optimizer: torch.optim.Optimizer, wanted: Mapping[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    """Weights and moments back, where they are those of this policy: ``wanted`` are its tensors, each once."""
    weights = {name.removeprefix("policy."): v for name, v in tensors.items() if name.startswith("policy.")}
    check_tensors(weights, wanted, "weights")
    check_moments(tensors, optimizer)
    policy.load_state_dict(weights, strict=False)  # without the second names of shared weights
    load_optimizer(optimizer, tensors)


def check_arguments(function: Callable[..., Any], arguments: Any, what: str) -> None:
    """Raise TypeError where ``arguments`` are not what the function's annotations say; its numbers are never
    negative."""
    if not isinstance(arguments, dict):
        raise TypeError(f"{what} is no JSON object")
    kinds = get_type_hints(function)
    for name, value in arguments.items():
        wrong = _misfit(kinds[name], value) if name in kinds else "unknown"
        if isinstance(value, int | float) and value < 0:
            wrong = f"at least 0, not {value!r}"
        if wrong:
            raise TypeError(f"{what}.{name} is {wrong}")


def _misfit(kind: Any, value: Any) -> str:
    if get_origin(kind) is types.UnionType:
        wrong = [_misfit(one, value) for one in get_args(kind)]
        return "" if "" in wrong else wrong[0]
    if kind is types.NoneType:
        return "" if value is None else "null"
    if get_origin(kind) is dict:
        return "" if isinstance(value, dict) else f"a JSON object, not {value!r}"
    return misfit(kind, value)


def check_count(state: Mapping[str, Any], *names: str) -> None:
    """Raise TypeError unless these are whole numbers of at least 0."""
    for name in names:
        value = state[name]
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise TypeError(f"{name} is {value!r}, not a number of steps")


def check_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError unless ``found`` has the names, shapes and types of ``wanted``, and finite values."""
    if differing := sorted(found.keys() ^ wanted.keys()):
        listed = ", ".join(differing[:3])
        raise ValueError(f"{what} {listed}{' …' if len(differing) > 3 else ''}: here or there alone")
    for name, tensor in found.items():
        other = wanted[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            have, want = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (tensor, other))
            raise ValueError(f"{what} {name} is {have}, not {want}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{what} {name} is not finite")


def check_moments(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless what ``optimizer_tensors`` gave belongs to weights of these shapes, and is finite. A
    weight that has had no gradient yet has no moments."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    found = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
    keys = {name.split(".")[2] for name in found}
    if not keys <= {"step", "exp_avg", "exp_avg_sq"}:
        raise ValueError(f"no moments of Adam or LAMB: {', '.join(sorted(keys))}")
    numbers = {int(name.split(".")[1]) for name in found}
    one = torch.zeros(())  # steps are counted in a float32
    wanted = {f"optimizer.{i}.{key}": one if key == "step" else weights[i] for i in numbers for key in keys}
    check_tensors(found, wanted, "the optimizer's")


def check_size(tensors: Mapping[str, Tensor], parameters: int) -> None:
    """Raise ValueError where a policy is described that has more numbers than the file holds, before it is built."""
    held = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("policy."))
    if parameters > held:
        raise ValueError(f"its config describes {parameters:,} parameters, and it holds {held:,}")
