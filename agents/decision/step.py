"""One step of a decision agent with a carried memory, as it is exported."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from gymnasium.spaces import Box
from torch import Tensor

from unroll.agents.common.step import Port, Step, for_acting
from unroll.policies.actions import build_space
from unroll.policies.backbones import State
from unroll.policies.decision import DecisionPolicy


class DecisionStep(Step):
    """A copy of a policy as a step. Its inputs are those of ReturnToGo's observation that the policy uses.

    Args:
        whole: the Box of integers that the environment takes, as ``describe_whole`` describes it. It is given the
            nearest ones, as by WholeActions.
    """

    def __init__(self, policy: DecisionPolicy, whole: dict[str, Any] | None = None):
        config = policy.config
        n = config["action_space"].get("n")
        if n is not None:  # the action n means that no action came before
            action = Port("action", torch.int64, (), n + 1)
        else:
            action = Port("action", torch.float32, (len(config["action_space"]["low"]),))
        steps = policy.max_timestep + 1
        if policy.outlook is not None:
            steps = max(steps, int(policy.horizon))
        # Images are shown as the environment shows them, other parts of a Dict beside them as rows of numbers.
        observed = [Port("observation", torch.float32, (config["observation_dim"],))]
        self.parts: dict[str, str] = {}  # the names of the ports by those of the parts
        if policy.images is not None:
            observed = []
            for name, shape in policy.images.parts.items():
                self.parts[name] = f"observation.{name}" if name else "observation"
                image = len(shape) == 3
                observed.append(Port(self.parts[name], torch.uint8 if image else torch.float32, shape, 256))
        shown = [
            *observed,
            dataclasses.replace(action, name="previous_action"),
            Port("return_to_go", torch.float32),
            Port("timestep", torch.int64, (), steps),
        ]
        used = set(policy.embed) | set(self.parts.values())
        if policy.outlook is not None:
            used |= {"return_to_go", "timestep"}
        if policy.max_timestep:
            used.add("timestep")
        super().__init__([port for port in shown if port.name in used], policy.backbone)
        self.policy = copy.deepcopy(policy)
        self.action = action
        self.bounds: list[Tensor] = []  # of whole numbers
        if whole is not None:
            space = build_space(whole)
            assert isinstance(space, Box)
            self.bounds = [torch.from_numpy(space.low), torch.from_numpy(space.high)]
            self.action = dataclasses.replace(action, dtype=getattr(torch, whole["dtype"]))
        self.backbone = for_acting(policy.backbone)
        self.eval()

    def act(self, shown: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        seen: dict[str, Any] = dict(shown)
        if self.parts:
            seen["observation"] = {name: shown[port] for name, port in self.parts.items()}
        tokens = self.policy.tokens(seen)
        reset = shown["reset"]
        if self.policy.tokens_per_step == 1:
            features, state = self.backbone.step(tokens, state, reset)
        else:
            # One token after the other: a sequence with resets is cut where the data say, which no graph can follow.
            for i, token in enumerate(tokens.unbind(1)):
                features, state = self.backbone.step(token, state, torch.zeros_like(reset) if i else reset)
        prediction = self.policy.predict(features, shown)
        action = self.policy.action.choose(prediction, deterministic=True)
        if self.bounds:
            action = action.round().clamp(*self.bounds).to(self.action.dtype)
        return action, state
