"""Weights of another run, of either agent, as the start of a policy of RecurrentPPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unroll.agents.common.checkpoint import latest_checkpoint, read_checkpoint
from unroll.agents.common.restoring import of_checkpoint
from unroll.agents.ppo.agent import RecurrentPPO
from unroll.agents.ppo.checkpoint import policy_tensors, restore_statistics, statistics_tensors
from unroll.errors import CheckpointError
from unroll.policies.backbones.minrnn import MinRNN, turns
from unroll.policies.value_scale import ValueScale

BACKBONE = "backbone."  # begins the names of the decision agent's backbone


def take_weights(agent: RecurrentPPO, run: str | Path) -> str:
    """Begin with the weights of a run folder, a checkpoint or a run of the zoo, where name and shape agree.

    Of a run of PPO that is the policy, with VecNormalize's statistics where both agents have them. Of a decision agent
    it is the backbone, for the actor and for the critic: the agents embed what they see in different ways.

    Returns:
        A line that says what was taken.

    Raises:
        CheckpointError: the run is damaged, has another backbone, or nothing of it fits.
    """
    checkpoint = latest_checkpoint(run)
    tensors, state = read_checkpoint(checkpoint)
    with of_checkpoint(checkpoint):
        of_ppo, backbone = described(state)
    own = agent.policy.encoder_kwargs["backbone"]
    if backbone != own:
        raise CheckpointError(f"{checkpoint}: its backbone is {backbone}, and the one that is to learn is {own}")

    found = {name.removeprefix("policy."): tensor for name, tensor in tensors.items() if name.startswith("policy.")}
    if of_ppo:  # early ones lack it
        found = {f"value_scale.{name}": value for name, value in ValueScale.of_before().items()} | found
    wanted = policy_tensors(agent.policy)
    if not of_ppo:
        wanted = {name: tensor for name, tensor in wanted.items() if f".{BACKBONE}" in name}
    taken = {}
    for name in wanted:
        # The backbone of every encoder has the names that the decision agent's only one has.
        source = found.get(name if of_ppo else BACKBONE + name.partition(f".{BACKBONE}")[2])
        if source is not None and source.shape == wanted[name].shape:
            taken[name] = source
    _take_turns(agent, taken, signed_in(state), checkpoint)
    part = "policy" if of_ppo else "backbones"
    if not taken:
        raise CheckpointError(
            f"{checkpoint}: nothing of it has the shape of what is in the {part} here; another width?"
        )
    for name, source in taken.items():
        if not bool(torch.isfinite(source).all()):
            raise CheckpointError(f"{checkpoint}: weights {name} are not finite")
    with torch.no_grad():
        for name, source in taken.items():
            wanted[name].copy_(source)

    said = f"{len(taken)} of {len(wanted)} tensors of the {part} begin as those of {run}"
    if of_ppo:
        said += _take_statistics(agent, tensors)
    return said


def described(state: dict[str, Any]) -> tuple[bool, str]:
    """Return whether a checkpoint is one of PPO and not of a decision agent, and the name of its backbone."""
    if state["agent"] == "RecurrentPPO":
        return True, str(state["config"]["backbone"]["name"])
    if state["agent"] == "DecisionAgent":
        return False, str(state["policy"]["backbone"])
    raise ValueError(f"of {state['agent']}, which has no backbone to take")


def signed_in(state: dict[str, Any]) -> Any:
    """Return the option ``signed`` of a checkpoint's backbone; false where it has none."""
    if state["agent"] == "RecurrentPPO":
        return state["config"]["backbone"].get("options", {}).get("signed", False)
    return (state["policy"].get("backbone_options") or {}).get("signed", False)


def _take_turns(agent: RecurrentPPO, taken: dict[str, Tensor], signed: Any, checkpoint: Path) -> None:
    """Take with the weights of gates what signs they have, which early runs and decision agents may not hold.

    Raises:
        CheckpointError: they are signed, and those of the agent are not.
    """
    for name, module in agent.policy.named_modules():
        if not isinstance(module, MinRNN):
            continue
        if f"{name}.project.weight" not in taken:
            taken.pop(f"{name}.turn", None)
        elif module.turn is not None:
            given = turns(module.d_inner, signed)
            taken.setdefault(f"{name}.turn", torch.ones_like(module.turn) if given is None else given)
        elif turns(module.d_inner, signed) is not None:
            word = str(signed).lower()
            raise CheckpointError(
                f"{checkpoint}: its gates are signed ({word}), and those that are to learn are not: "
                f"--backbone.options '{{signed: {word}}}'"
            )


def _take_statistics(agent: RecurrentPPO, tensors: dict[str, Tensor]) -> str:
    """Take VecNormalize's statistics, and say so, or why not."""
    own = statistics_tensors(agent)
    found = {name: tensor for name, tensor in tensors.items() if name.startswith("normalizer.")}
    if not (own or found):
        return ""
    if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in found.items()}:
        return "; its statistics of observations and rewards are others, and are not taken"
    restore_statistics(agent, found)
    return ", and its statistics of observations and rewards are taken"
