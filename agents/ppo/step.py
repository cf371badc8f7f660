"""One step of RecurrentPPO's actor, as it is exported."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from unroll.agents.common.step import Port, Step, for_acting
from unroll.policies.actor_critic import Encoder, RecurrentActorCriticPolicy
from unroll.policies.backbones import State
from unroll.policies.choices import as_counted_by_policy, first_choice
from unroll.policies.masking import mask_logits, mask_width


class ActorStep(Step):
    """A copy of an actor as a step: the likeliest action, for observations as the environment shows them.

    Args:
        space: of an observation of the environment, before VecNormalize and before images have channels first.
        normalizer: its statistics are used as they are.
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
        shown = []
        for key, part in parts.items():
            port = Port(names[key], torch_type(part), part.shape or (), high_of(part))
            low = first_choice(part)
            shown.append(port if low is None else dataclasses.replace(port, low=low))
        if masked:
            shown.append(Port("action_masks", torch.bool, (mask_width(policy.action_space),)))
        encoder = policy.encoders[0]
        assert isinstance(encoder, Encoder)
        super().__init__(shown, encoder.backbone)

        # The spaces, by which observations are prepared and actions are bounded.
        self.space = policy.observation_space
        self.parts = parts
        self.names = names
        self.masked = masked
        self.action_space = policy.action_space
        self.action = Port("action", torch_type(policy.action_space), policy.action_space.shape or ())
        start = first_choice(policy.action_space)
        self.start = None if start is None else torch.as_tensor(start)
        self.squash = policy.squash_output
        self.normalize_images = policy.normalize_images
        self.statistics = statistics_of(normalizer, list(parts))
        self.clip = 0.0 if normalizer is None else float(normalizer.clip_obs)

        # The actor's layers.
        shared = policy.share_features_extractor
        self.extractor = copy.deepcopy(policy.features_extractor if shared else policy.pi_features_extractor)
        self.embed = copy.deepcopy(encoder.embed)
        self.backbone = for_acting(encoder.backbone)
        self.latent = encoder.latent
        self.hidden = copy.deepcopy(policy.mlp_extractor.policy_net)
        self.out = copy.deepcopy(policy.action_net)
        self.eval()

    def act(self, shown: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        observed = {key: self._observe(key, shown[name]) for key, name in self.names.items()}
        observation = observed if isinstance(self.space, spaces.Dict) else observed[""]
        observation = as_counted_by_policy(observation, self.space)
        features = self.extractor(preprocess_obs(observation, self.space, normalize_images=self.normalize_images))
        embedded = self.embed(features)
        remembered, state = self.backbone.step(embedded, state, shown["reset"])
        prediction = self.out(self.hidden(self.latent(remembered, embedded)))
        if self.masked:
            prediction = mask_logits(prediction, shown["action_masks"], self.action_space)
        action = self._likeliest(prediction)
        if self.start is not None:
            action = action + self.start
        elif action.is_floating_point() and not self.action.dtype.is_floating_point:
            action = action.round()  # a Box of integers
        return action.to(self.action.dtype).reshape(-1, *self.action.shape), state

    def _observe(self, key: str, value: Tensor) -> Tensor:
        """The observation as the policy sees it: normalised by VecNormalize's arithmetic, channels first."""
        if key in self.statistics:
            mean, deviation = self.statistics[key]  # float64, as in VecNormalize
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
            parts = prediction.split(space.nvec.flatten().tolist(), 1)
            return torch.stack([part.argmax(1) for part in parts], 1)
        if isinstance(space, spaces.MultiBinary):
            return prediction > 0
        assert isinstance(space, spaces.Box)
        low = torch.from_numpy(space.low).flatten()
        high = torch.from_numpy(space.high).flatten()
        if self.squash:
            return low + 0.5 * (torch.tanh(prediction) + 1.0) * (high - low)
        return prediction.clamp(low, high)


def statistics_of(normalizer: VecNormalize | None, keys: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation, float64, of the observations that are normalised."""
    if normalizer is None or not normalizer.norm_obs:
        return {}
    running = normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {"": normalizer.obs_rms}
    found = {}
    for key in keys:
        if key in running:
            deviation = np.sqrt(running[key].var + normalizer.epsilon)
            found[key] = (torch.from_numpy(running[key].mean), torch.from_numpy(deviation))
    return found


def high_of(space: spaces.Space) -> int:
    """A bound: integers below it, counted from the space's start, are in the space."""
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.min())
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    return 256 if is_image_space(space) else 2


def torch_type(space: spaces.Space) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, space.dtype)).dtype
