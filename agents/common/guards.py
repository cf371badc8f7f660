"""Learning that cannot go on says why, in one line: a number that is not finite, memory that does not suffice."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch

from unroll.envs.datasets.store import machine_memory
from unroll.errors import TrainingError
from unroll.policies.backbones import count_parameters

P = ParamSpec("P")
R = TypeVar("R")


def check_finite(metrics: Mapping[str, Any], when: str, learning_rate: float) -> None:
    """Raise TrainingError for the first of the numbers that is NaN or infinite. Of one on CUDA the value is waited
    for."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(not_finite(f"{name} became {float(value)}", when, learning_rate))


def not_finite(what: str, when: str, learning_rate: float) -> str:
    return f"{what} {when}, learning rate {learning_rate:.3g}: lower the learning rate or max_grad_norm"


class Sized(Protocol):
    """An agent with the names of its attributes and ``policy_kwargs`` that decide how much memory learning takes; the
    first is the one to halve."""

    @property
    def sized_by(self) -> tuple[str, ...]: ...


S = TypeVar("S", bound=Sized)


def guard_memory(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """The method of an agent, in which memory that does not suffice is a TrainingError that names the agent's sizes.

    It is never tried again with less: what is learned would depend on it. Linux may as well end a process that takes
    too much of the machine's memory, by signal 9, and then nothing is said.
    """

    @functools.wraps(method)
    def guarded(agent: S, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(agent, *args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            where = "the GPU" if "CUDA" in str(error) or "HIP" in str(error) else "the CPU"
            known = vars(agent).get("policy_kwargs", {}) | vars(agent)
            sizes = [f"{name} {known[name]}" for name in agent.sized_by if known.get(name) is not None]
            what = f"out of memory on {where} with {' × '.join(sizes)}"
            raise TrainingError(f"{what}: halve {agent.sized_by[0]}, or else another of these") from error

    return guarded


def is_out_of_memory(error: BaseException) -> bool:
    """Of NumPy or Python, or of PyTorch, which has an exception of its own for a GPU's memory alone."""
    if isinstance(error, TrainingError):
        return False
    said = ("DefaultCPUAllocator", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in said)


NUMBER = 4  # bytes of a float32
COPIES = 4  # of every weight: itself, its gradient and Adam's two moments


def check_decision(policy_kwargs: dict[str, Any], batch_size: int, learns: bool, device: torch.device) -> None:
    """``check_budget`` for a DecisionAgent."""
    context, d_model = policy_kwargs["context"], policy_kwargs.get("d_model", 128)
    batch = NUMBER * batch_size * context * (int(policy_kwargs["observation_dim"]) + d_model)
    needs = {f"a batch of batch_size {batch_size} × context {context}": batch if learns else 0}
    check_budget(decision_parameters(**policy_kwargs), needs, device)


def decision_parameters(
    observation_dim: int,
    action_space: Any,
    backbone: str = "mingru",
    d_model: int = 128,
    n_layers: int = 3,
    backbone_options: dict[str, Any] | None = None,
    max_timestep: int = 0,
    **_: Any,
) -> int:
    """The numbers that a DecisionPolicy of these arguments learns, but for some vectors.

    Raises:
        BackboneError: there is no such backbone.
    """
    actions = getattr(action_space, "n", None) or math.prod(action_space.shape)
    around = d_model * (int(observation_dim) + int(actions) + int(max_timestep))
    return around + count_parameters(backbone, d_model, n_layers, backbone_options or {})


def actor_critic_parameters(policy_kwargs: dict[str, Any], observation_space: Any) -> int:
    """The same for a RecurrentActorCriticPolicy, without its features extractor."""
    backbone, d_model = policy_kwargs.get("backbone", "mingru"), policy_kwargs.get("d_model", 64)
    n_layers, options = policy_kwargs.get("n_layers", 1), policy_kwargs.get("backbone_options") or {}
    copies = 1 if policy_kwargs.get("share_features_extractor", True) else 2
    widths = policy_kwargs.get("net_arch")
    layers = [d_model, *widths] if isinstance(widths, list) and all(isinstance(w, int) for w in widths) else []
    heads = 2 * sum(a * b for a, b in itertools.pairwise(layers))
    shape: tuple[int, ...] = getattr(observation_space, "shape", None) or ()
    width = shape[0] if len(shape) == 1 else 1  # an image's features are its extractor's
    return heads + copies * (width * d_model + count_parameters(backbone, d_model, n_layers, options))


def check_budget(parameters: int, other: dict[str, int], device: torch.device) -> None:
    """Raise TrainingError where weights, gradients and moments of ``parameters`` numbers, and the ``other`` bytes, by
    what decides about them, are more than the device can ever hold."""
    needs = {f"d_model, n_layers and options, {parameters:,} parameters": parameters * NUMBER * COPIES} | other
    room = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else machine_memory()
    if sum(needs.values()) > room:
        most = max(needs, key=needs.__getitem__)
        larger = f"{_gib(needs[most])} GiB for {most}, and {device} has {_gib(room)} GiB in all"
        raise TrainingError(f"too large: {larger}; make that smaller")


def _gib(count: int) -> str:
    return f"{count / 2**30:,.0f}" if count >= 10 * 2**30 else f"{count / 2**30:.1f}"
