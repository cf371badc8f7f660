"""What a backbone of the user's own gives back, looked at where it is made: a slip is one line there.

The rest of the contract is checked by ``unroll.testing.check_backbone``.
"""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any, cast

import torch
from torch import Tensor

from unroll.errors import BackboneError, one_line
from unroll.policies.backbones.backbone import Backbone, Block, Memory, ResidualStack, State

ROWS = 2
STEPS = 3


def check_shapes(name: str, backbone: Backbone, d_model: int) -> None:
    """Run a step and a short sequence of zeros, and look at outputs and states; random numbers stay as they are.

    Raises:
        BackboneError: Something has another shape than the contract says, or an exception was raised.
    """
    memory = own_part(backbone)
    like: Tensor = next(itertools.chain(memory.parameters(), memory.buffers()), torch.empty(0))
    if like.is_meta or torch.get_default_device().type == "meta":
        return  # its parameters are only counted

    try:
        # What a backbone keeps of its first call must not be of a CPU, nor what a batch norm counts of zeros.
        memory = copy.deepcopy(memory).eval()
    except Exception:
        return  # nothing asks it to be copied
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            dtype = like.dtype if like.is_floating_point() else None
            problem = misshapen(memory, torch.zeros(ROWS, STEPS, d_model, device=like.device, dtype=dtype))
        except Exception as error:
            # Kernels for a GPU alone refuse what lies on the CPU, where a backbone is made.
            if re.search("cuda|gpu|triton", str(error), re.IGNORECASE):
                return
            raise _error(name, f"raised {type(error).__name__}: {one_line(error)}") from error
    if problem:
        raise _error(name, problem)


def own_part(backbone: Backbone) -> Memory:
    """Return what the user has written: a mixer of the residual stack, or all of the backbone."""
    if isinstance(backbone, ResidualStack):
        return cast(Block, backbone.blocks[0]).mixer
    return backbone


def misshapen(memory: Memory, x: Tensor) -> str:
    """Say which output or state for x [B, T, D] has another shape than the contract says; ``""``: none."""
    initial = memory.initial_state(len(x))
    problem = _wrong_state("the initial state", initial, len(x))
    if problem:
        return problem

    never = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    problem = _wrong_answer("forward", memory(x, None, never), x, initial)
    return problem or _wrong_answer("step", memory.step(x[:, 0], initial, never[:, 0]), x[:, 0], initial)


def layout(state: State) -> str:
    """Describe the nesting of a state and the shapes and types of its tensors."""
    if isinstance(state, Tensor):
        return f"{str(state.dtype).removeprefix('torch.')}{list(state.shape)}"
    return f"({', '.join(layout(part) for part in state)})"


def _wrong_answer(method: str, answer: Any, x: Tensor, initial: State) -> str:
    if not (isinstance(answer, tuple) and len(answer) == 2):
        kind = f"{len(answer)} values" if isinstance(answer, tuple) else _kind(answer)
        return f"{method} returns {kind} and not two, the outputs and the state"
    y, state = answer
    if not isinstance(y, Tensor):
        return f"the output of {method} is {_kind(y)} and not a tensor"
    if y.shape != x.shape:
        return f"the output of {method} for x of shape {tuple(x.shape)} has the shape {tuple(y.shape)}"

    what = f"the state after {method}"
    problem = _wrong_state(what, state, len(x))
    if not problem and layout(state) != layout(initial):
        problem = f"{what} is {layout(state)}, but the initial state is {layout(initial)}"
    return problem


def _wrong_state(what: str, state: State, batch: int, verb: str = "is") -> str:
    if isinstance(state, tuple):
        return next(filter(None, (_wrong_state(what, part, batch, "holds") for part in state)), "")
    if not isinstance(state, Tensor):
        return f"{what} {verb} {_kind(state)}; a tensor or a nested tuple of tensors is needed"
    if state.ndim == 0 or state.shape[0] != batch:
        return f"{what} of {batch} rows has a tensor of shape {tuple(state.shape)}; the batch comes first"
    return ""


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _error(name: str, problem: str) -> BackboneError:
    return BackboneError(f"backbone {name}: {problem} (unroll.testing.check_backbone checks all of its contract)")
