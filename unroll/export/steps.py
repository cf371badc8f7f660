"""One step of a policy as a function of flat tensors, its memory among them: what can leave PyTorch's Python."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from unroll.policies.actor_critic import Encoder, RecurrentActorCriticPolicy
from unroll.policies.backbones import Backbone, State, map_state
from unroll.policies.decision import DecisionPolicy
from unroll.policies.masking import mask_logits, mask_width


@dataclasses.dataclass(frozen=True)
class Port:
    """A tensor [B, *shape] that goes in or comes out; B is any number of environments. Integers are below ``high``."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    high: int = 1

    def zeros(self, batch: int) -> Tensor:
        return torch.zeros(batch, *self.shape, dtype=self.dtype)

    def random(self, batch: int, generator: torch.Generator) -> Tensor:
        """Normal numbers, integers below ``high``, or all true: no environment forbids every action."""
        size = (batch, *self.shape)
        if self.dtype == torch.bool:
            return torch.ones(size, dtype=torch.bool)
        if self.dtype.is_floating_point:
            return torch.randn(size, generator=generator, dtype=self.dtype)
        return torch.randint(self.high, size, generator=generator).to(self.dtype)


class Step(nn.Module, ABC):
    """``step(*inputs) → (action, *state)`` for tensors in the order of ``inputs``: what the environment shows,
    ``reset`` [B] (true at an episode's first step) and the state, zeros where there was nothing before."""

    action: Port

    def __init__(self, shown: list[Port], backbone: Backbone):
        super().__init__()
        with torch.no_grad():
            self.template: State = backbone.initial_state(1)
        self.state = [Port(f"state_{i}", part.dtype, part.shape[1:]) for i, part in enumerate(leaves(self.template))]
        self.shown = shown
        self.inputs = [*shown, Port("reset", torch.bool), *self.state]

    @property
    def outputs(self) -> list[Port]:
        return [self.action, *(dataclasses.replace(port, name=f"next_{port.name}") for port in self.state)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        shown = {port.name: value for port, value in zip(self.inputs, tensors, strict=True)}
        before = iter(tensors[len(tensors) - len(self.state) :])
        action, after = self.act(shown, map_state(lambda _: next(before), self.template))
        return action, *leaves(after)

    @abstractmethod
    def act(self, shown: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        """The action, in the units of the environment, and the next state."""


class DecisionStep(Step):
    """Of a decision agent with a carried memory, by a copy of it. Its inputs are those of ReturnToGo that it uses."""

    def __init__(self, policy: DecisionPolicy):
        config = policy.config
        n = config["action_space"].get("n")
        if n is not None:  # n itself is "none yet"
            action = Port("action", torch.int64, (), n + 1)
        else:
            action = Port("action", torch.float32, (len(config["action_space"]["low"]),))
        shown = [
            Port("observation", torch.float32, (config["observation_dim"],)),
            dataclasses.replace(action, name="previous_action"),
            Port("return_to_go", torch.float32),
            Port("timestep", torch.int64, (), policy.max_timestep + 1),
        ]
        used = {*policy.embed, *(["timestep"] if policy.max_timestep else [])}
        super().__init__([port for port in shown if port.name in used], policy.backbone)
        self.policy, self.action, self.backbone = copy.deepcopy(policy), action, for_acting(policy.backbone)
        self.eval()

    def act(self, shown: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        tokens, reset = self.policy.tokens(shown), shown["reset"]
        if self.policy.tokens_per_step == 1:
            features, state = self.backbone.step(tokens, state, reset)
        else:  # one after the other: a sequence with resets is cut where the data say
            for i, token in enumerate(tokens.unbind(1)):
                features, state = self.backbone.step(token, state, torch.zeros_like(reset) if i else reset)
        return self.policy.action.choose(self.policy.action.predict(features), deterministic=True), state


class ActorStep(Step):
    """Of RecurrentPPO's actor, by a copy of it: the likeliest action, for observations as the environment shows them.

    Args:
        space: of an observation of the environment, before VecNormalize and before images have channels first.
        normalizer: whose statistics are used as they are.
        masked: whether the environment has ``action_masks()``, bool [B, mask_width], which are an input then.
    """

    def __init__(
        self,
        policy: RecurrentActorCriticPolicy,
        space: spaces.Space,
        normalizer: VecNormalize | None = None,
        masked: bool = False,
    ):
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        names = {key: f"observation.{key}" if key else "observation" for key in parts}
        shown = [Port(names[key], torch_type(part), part.shape or (), high_of(part)) for key, part in parts.items()]
        if masked:
            shown.append(Port("action_masks", torch.bool, (mask_width(policy.action_space),)))
        encoder = policy.encoders[0]
        assert isinstance(encoder, Encoder)
        super().__init__(shown, encoder.backbone)
        self.action = Port("action", torch_type(policy.action_space), policy.action_space.shape or ())
        self.space, self.parts, self.names, self.masked = policy.observation_space, parts, names, masked
        self.action_space, self.squash = policy.action_space, policy.squash_output
        self.normalize_images = policy.normalize_images
        shared = policy.share_features_extractor
        self.extractor = copy.deepcopy(policy.features_extractor if shared else policy.pi_features_extractor)
        self.embed, self.backbone = copy.deepcopy(encoder.embed), for_acting(encoder.backbone)
        self.hidden, self.out = copy.deepcopy(policy.mlp_extractor.policy_net), copy.deepcopy(policy.action_net)
        self.statistics = statistics_of(normalizer, list(parts))
        self.clip = 0.0 if normalizer is None else float(normalizer.clip_obs)
        self.eval()

    def act(self, shown: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        observed = {key: self._observe(key, shown[name]) for key, name in self.names.items()}
        observation = observed if isinstance(self.space, spaces.Dict) else observed[""]
        features = self.extractor(preprocess_obs(observation, self.space, normalize_images=self.normalize_images))
        features, state = self.backbone.step(self.embed(features), state, shown["reset"])
        prediction = self.out(self.hidden(features))
        if self.masked:
            prediction = mask_logits(prediction, shown["action_masks"], self.action_space)
        action = self._likeliest(prediction)
        return action.to(self.action.dtype).reshape(-1, *self.action.shape), state

    def _observe(self, key: str, value: Tensor) -> Tensor:
        """As the policy sees it: the arithmetic of VecNormalize, in float64, and images with channels first."""
        if key in self.statistics:
            mean, deviation = self.statistics[key]
            value = ((value.double() - mean) / deviation).clamp(-self.clip, self.clip).float()
        inner = self.space[key] if isinstance(self.space, spaces.Dict) else self.space
        if inner.shape != self.parts[key].shape:
            value = value.permute(0, 3, 1, 2)
        return value

    def _likeliest(self, prediction: Tensor) -> Tensor:
        """The mode of Stable-Baselines3's distribution of these logits or means, as ``to_environment`` bounds it."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return prediction.argmax(1)
        if isinstance(space, spaces.MultiDiscrete):
            return torch.stack([part.argmax(1) for part in prediction.split(space.nvec.flatten().tolist(), 1)], 1)
        if isinstance(space, spaces.MultiBinary):
            return prediction > 0
        assert isinstance(space, spaces.Box)
        low, high = (torch.from_numpy(bound).flatten() for bound in (space.low, space.high))
        if self.squash:
            return low + 0.5 * (torch.tanh(prediction) + 1.0) * (high - low)
        return prediction.clamp(low, high)


def leaves(state: State) -> list[Tensor]:
    """The tensors of a state, in order."""
    return [state] if isinstance(state, Tensor) else [leaf for part in state for leaf in leaves(part)]


def for_acting(backbone: Backbone) -> Backbone:
    """A copy, with fewer weights where the backbone knows how."""
    collapsed: Any = getattr(backbone, "collapsed", None)
    return copy.deepcopy(backbone) if collapsed is None else collapsed()


def statistics_of(normalizer: VecNormalize | None, keys: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation, float64, of the observations that are normalised."""
    if normalizer is None or not normalizer.norm_obs:
        return {}
    running = normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {"": normalizer.obs_rms}
    return {
        key: (torch.from_numpy(running[key].mean), torch.from_numpy(np.sqrt(running[key].var + normalizer.epsilon)))
        for key in keys
        if key in running
    }


def high_of(space: spaces.Space) -> int:
    """Integers below this are in the space."""
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.min())
    return int(space.n) if isinstance(space, spaces.Discrete) else 256 if is_image_space(space) else 2


def torch_type(space: spaces.Space) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, space.dtype)).dtype
