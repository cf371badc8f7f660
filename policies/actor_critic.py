"""RecurrentActorCriticPolicy: a Stable-Baselines3 actor-critic policy with any backbone as its memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.distributions import Distribution as Distributions

from unroll.policies.acting import beginnings, check_finite_inputs, check_memory
from unroll.policies.backbones import Mixer, State, make_backbone, options_of
from unroll.policies.backbones.backbone import require, stack_gates
from unroll.policies.backbones.layers import Linear, linear
from unroll.policies.backbones.registry import find_backbone
from unroll.policies.choices import as_counted_by_policy, first_choice
from unroll.policies.images import combined_extractor, image_extractor
from unroll.policies.masking import check_masks, mask_logits
from unroll.policies.value_scale import ValueScale

# Where the memory reads the features as they are, PPO learns more per step.
PLAIN: dict[str, Any] = {"plain": True, "mlp_ratio": 0.0}
# Gates of the input alone cannot tell the fourth last step from the fifth: a short convolution can.
# Nor can they have a velocity from positions: a few channels that may alternate can.
OWN: dict[str, dict[str, Any]] = {name: {"conv": 4, "signed": "some"} for name in ("mingru", "minlstm")}


def fill_options(backbone: str, options: dict[str, Any]) -> dict[str, Any]:
    """Add to the options of a backbone those that it has in a policy of PPO unless others are given."""
    if issubclass(find_backbone(backbone), Mixer):
        return PLAIN | OWN.get(backbone, {}) | options
    return dict(options)


class Encoder(nn.Module):
    """A linear map of the features of an observation, then a backbone. The policy calls both itself.

    The map starts as a multiple of the identity where there are channels enough: each number of an observation has a
    channel of its own, and a one-hot part stays one. The ``latent`` [..., d_latent], from which the policy acts, has
    what the backbone gave beside what it was given: what is seen now need not pass through the memory, and the two
    share no channel.
    """

    def __init__(self, features_dim: int, backbone: str, d_model: int, n_layers: int, options: dict[str, Any]):
        super().__init__()
        self.embed = Linear(features_dim, d_model)
        with torch.no_grad():
            if features_dim <= d_model:
                # Scaled as if every channel were in use: the layers behind it start at the width of d_model.
                nn.init.eye_(self.embed.weight)
                self.embed.weight.mul_((d_model / features_dim) ** 0.5)
            else:
                nn.init.orthogonal_(self.embed.weight)
            self.embed.bias.zero_()
        self.backbone = make_backbone(backbone, d_model, n_layers, **options)
        self.d_latent = 2 * d_model

    @staticmethod
    def latent(remembered: Tensor, embedded: Tensor) -> Tensor:
        """Join what the backbone gave and what it was given."""
        return torch.cat([remembered.to(embedded.dtype), embedded], -1)


class RecurrentActorCriticPolicy(ActorCriticPolicy):
    """A policy of observation → features → backbone → one MLP each for the actions' distribution and for the value.

    While acting it makes one ``step`` of the backbone, while learning one ``forward`` over whole sequences: the same
    function. All other arguments are those of Stable-Baselines3's ActorCriticPolicy.

    Args:
        backbone: The name for ``make_backbone``.
        d_model: The width of the backbone.
        n_layers: Its number of layers.
        backbone_options: Its options. Dropout must be 0: with it, the ratio of the new to the old policy would not be 1
            where the two are the same.
        reset_on_done: Begin each episode with an empty memory. False keeps the memory from one episode of an
            environment to the next, for tasks in which an agent learns from its own episodes (RL², Duan et al. 2016,
            arXiv 1611.02779). Returns end with the episode all the same.
        separate_critic: Give the critic an encoder and so a memory of its own. False lets it see the actor's, which
            its loss then trains too: less to compute, and on most tasks less learned in a step.

    The state is a tuple of one backbone's state, or of the actor's and the critic's.

    Raises:
        BackboneError: The backbone or an option is unknown.
        ValueError: ``share_features_extractor`` False, which gives the critic an extractor of its own, without a
            separate critic.
    """

    encoder_class: type[Encoder] = Encoder

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        backbone: str = "mingru",
        d_model: int = 64,
        n_layers: int = 1,
        backbone_options: dict[str, Any] | None = None,
        reset_on_done: bool = True,
        separate_critic: bool = True,
        **kwargs: Any,
    ):
        if not (separate_critic or kwargs.get("share_features_extractor", True)):
            raise ValueError("share_features_extractor False: only a separate critic has features of its own")
        options = fill_options(backbone, backbone_options or {})
        self.encoder_kwargs: dict[str, Any] = dict(
            backbone=backbone, d_model=d_model, n_layers=n_layers, options=options
        )
        self.reset_on_done = reset_on_done
        self.separate_critic = separate_critic
        # With several processes: the index of this one's first environment, and the number of all environments.
        self.rows: tuple[int, int] | None = None

        for name, value in (options_of(backbone) | options).items():
            require("dropout" not in name or not value, f"{name} must be 0 in PPO, not {value}")
        if kwargs.get("optimizer_class", torch.optim.Adam) is torch.optim.Adam and "optimizer_kwargs" not in kwargs:
            # eps is Stable-Baselines3's own
            kwargs["optimizer_kwargs"] = dict(eps=1e-5, fused=True)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build_mlp_extractor(self) -> None:
        """Build the MLPs, and the encoders before them: the optimizer, which is made next, must see their weights."""
        n_encoders = 2 if self.separate_critic else 1
        self.encoders = nn.ModuleList()
        for _ in range(n_encoders):
            self.encoders.append(self.encoder_class(self.features_dim, **self.encoder_kwargs))
        self.value_scale = ValueScale()
        d_latent = self._encoders()[0].d_latent
        self.mlp_extractor = MlpExtractor(d_latent, self.net_arch, self.activation_fn, self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {**self.encoder_kwargs, "reset_on_done": self.reset_on_done, "separate_critic": self.separate_critic}
        own["backbone_options"] = own.pop("options")
        own["share_features_extractor"] = self.share_features_extractor
        return super()._get_constructor_parameters() | own

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first step of an episode."""
        return tuple(encoder.backbone.initial_state(batch_size) for encoder in self._encoders())

    def forward(  # type: ignore[override]
        self,
        obs: PyTorchObs,
        state: State,
        episode_start: Tensor | None = None,
        deterministic: bool = False,
        action_masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """Make one step in B environments: actions [B, …], values [B, 1], log-probabilities [B] and the next state.

        ``episode_start`` [B] is bool, or 0 and 1 (None: no episode begins), ``action_masks`` is bool [B, mask_width].
        """
        actor, critic, state = self._step(obs, state, episode_start)

        # Several processes draw the actions that one process would draw: each draws for the environments of all, and
        # takes its own.
        own = slice(None)
        total = len(actor)
        if self.rows is not None:
            first, total = self.rows
            own = slice(first, first + len(actor))
        distribution = self._distribution(_among(actor, own, total), _among(action_masks, own, total))
        drawn = distribution.get_actions(deterministic=deterministic)

        values = self._value(critic)
        actions = drawn[own]
        log_prob = distribution.log_prob(drawn)[own]
        return actions.reshape(-1, *self.action_space.shape), values, log_prob, state  # type: ignore[misc]

    def sample(self, obs: Tensor, state: State, episode_start: Tensor | None = None) -> tuple[Tensor, Tensor, State]:
        """Draw actions [B, …] as ``forward`` does, and wait for no device: log-probabilities [B], and the next state.

        It is for one process and knows no masks. What is not finite is not told: actions are drawn all the same. A
        critic of its own is not asked (see ``sequence_values``), and its part of the state stays as it is.
        """
        encoder = self._encoders()[0]
        embedded = linear(encoder.embed, self._features(obs)[0])
        remembered, actor = encoder.backbone.step(embedded, state[0], as_reset(episode_start))
        latent = self.mlp_extractor.forward_actor(encoder.latent(remembered, embedded))
        state = (actor, *state[1:])

        if isinstance(self.action_dist, CategoricalDistribution):
            # An exponential race, as in torch.multinomial, which asks whether the probabilities are finite.
            log_probs = self.action_net(latent).log_softmax(-1)
            times = torch.empty_like(log_probs).exponential_()
            actions = (log_probs.exp() / times).argmax(-1)
            return actions, log_probs.gather(-1, actions[:, None]).squeeze(-1), state

        with unvalidated():
            distribution = self._get_action_dist_from_latent(latent)
            actions = distribution.get_actions()
            log_prob = distribution.log_prob(actions)
        return actions, log_prob, state

    def sequence_values(self, obs: Tensor, state: State, episode_start: Tensor) -> tuple[Tensor, State]:
        """Compute the values [B, T] of sequences [B, T, …], and the state after them.

        ``state`` is the part that the critic reads, the last one, and so is what is returned.
        """
        inputs, reset = self._sequence_inputs(obs, episode_start)
        encoder = self._encoders()[-1]
        embedded = encoder.embed(inputs[-1])
        remembered, after = encoder.backbone(embedded, state, reset)
        values = self._value(encoder.latent(remembered, embedded))
        return values.squeeze(-1), after

    def evaluate_sequences(
        self,
        obs: PyTorchObs,
        actions: Tensor,
        state: State,
        episode_start: Tensor,
        action_masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute values [B, T], log-probabilities [B, T] and entropies [B, T] of the actions that were taken.

        obs is [B, T, …], actions [B, T, action_dim] or [B, T] (Discrete), ``state`` the state before the first step,
        ``episode_start`` bool [B, T] and ``action_masks`` bool [B, T, mask_width]. Entropies are None for a
        distribution that has no formula for them.
        """
        shape = episode_start.shape
        inputs, reset = self._sequence_inputs(obs, episode_start)
        latents = []
        for encoder, features, before in zip(self._encoders(), inputs, state, strict=True):
            embedded = encoder.embed(features)
            remembered, _ = encoder.backbone(embedded, before, reset)
            latents.append(encoder.latent(remembered, embedded).flatten(0, 1))

        # steps are rows from here on; with one encoder, the actor and the critic see the same
        if action_masks is not None:
            action_masks = action_masks.flatten(0, 1)
        distribution = self._distribution(latents[0], action_masks)
        values = self._value(latents[-1]).view(shape)
        log_prob = distribution.log_prob(actions.flatten(0, 1)).view(shape)
        entropy = distribution.entropy()
        return values, log_prob, None if entropy is None else entropy.view(shape)

    def states_after(self, obs: PyTorchObs, state: State, episode_start: Tensor) -> State:
        """Return the state after sequences obs [B, T, …]."""
        inputs, reset = self._sequence_inputs(obs, episode_start)
        after = []
        for encoder, features, before in zip(self._encoders(), inputs, state, strict=True):
            _, next_state = encoder.backbone(encoder.embed(features), before, reset)
            after.append(next_state)
        return tuple(after)

    def gate_activations(self, obs: PyTorchObs, state: State) -> dict[str, Tensor]:
        """Return the gates of the backbones in one step, from 0 to 1: by name, [B, channels of all layers]."""
        gates = []
        for encoder, features, before in zip(self._encoders(), self._features(obs), state, strict=True):
            gates.append(encoder.backbone.gate_activations(encoder.embed(features), before))
        return stack_gates(gates)

    def get_distribution(  # type: ignore[override]
        self, obs: PyTorchObs, state: State, episode_start: Tensor | None = None, action_masks: Tensor | None = None
    ) -> tuple[Distribution, State]:
        """Return the distribution of the actions of B environments, and the next state."""
        actor, _, state = self._step(obs, state, episode_start)
        return self._distribution(actor, action_masks), state

    def predict_values(  # type: ignore[override]
        self, obs: PyTorchObs, state: State, episode_start: Tensor | None = None
    ) -> Tensor:
        """Return the values [B, 1] of the observations of B environments."""
        encoder = self._encoders()[-1]
        embedded = linear(encoder.embed, self._features(obs)[-1])
        remembered, _ = encoder.backbone.step(embedded, state[-1], as_reset(episode_start))
        return self._value(encoder.latent(remembered, embedded))

    def _value(self, latent: Tensor) -> Tensor:
        """Compute values [..., 1] from the critic's latents [..., d_latent]."""
        return self.value_scale(self.value_net(self.mlp_extractor.forward_critic(latent)))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: State | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, State]:
        """Choose actions for a batch of observations or for one, and return the state for the next call.

        ``state`` None begins anew; ``episode_start`` [B] empties the memory of these environments first.

        Raises:
            ValueError: The state is that of another number of environments, or none that this method has returned;
                ``episode_start`` is of another number of environments; an observation is not finite.
        """
        self.set_training_mode(False)
        if isinstance(observation, tuple):
            # This is what env.reset() returns; Stable-Baselines3 raises an error that explains it.
            super().predict(observation)
        obs, vectorized = self.obs_to_tensor(observation)
        n_envs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)

        # A new state needs no reset. Without one, or where no episode begins, backbones take the faster way.
        start = None
        begins = beginnings(episode_start, n_envs)
        if state is None:
            state = self.initial_state(n_envs)
        elif self.reset_on_done and begins.any():
            start = torch.as_tensor(begins, device=self.device)
        check_memory(state, n_envs)

        masks = None
        if action_masks is not None:
            masks = torch.from_numpy(check_masks(action_masks, self.action_space, n_envs)).to(self.device)

        with torch.no_grad():
            try:
                distribution, state = self.get_distribution(obs, state, start, masks)
            except ValueError:  # PyTorch's, in several lines, of a distribution with a number that is none
                check_finite_inputs(obs if isinstance(obs, dict) else {"observation": obs})
                raise
            chosen = distribution.get_actions(deterministic=deterministic)
        actions = chosen.cpu().numpy().reshape(-1, *self.action_space.shape)  # type: ignore[misc]
        actions = self.to_environment(actions)
        return (actions if vectorized else actions.squeeze(0)), state

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """Convert actions to what the environment takes: continuous ones within its bounds, choices from its start.

        Of a Box of integers that is the nearest one.
        """
        if not isinstance(self.action_space, spaces.Box):
            start = first_choice(self.action_space)
            return actions if start is None else actions + start
        if self.squash_output:
            bounded = self.unscale_action(actions)
        else:
            bounded = np.clip(actions, self.action_space.low, self.action_space.high)
        if self.action_space.dtype.kind in "iu":
            bounded = np.rint(bounded)
        return bounded.astype(self.action_space.dtype, copy=False)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor, *_: Any, **__: Any) -> Any:
        """Say what is here in the place of Stable-Baselines3's method, which knows no sequences.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "a policy with memory has evaluate_sequences(obs [B, T, …], actions, state, episode_start) instead of "
            "evaluate_actions"
        )

    def set_training_mode(self, mode: bool) -> None:
        # setting it visits every module, which is not worth doing at every step
        if self.training != mode:
            super().set_training_mode(mode)

    def _step(self, obs: PyTorchObs, state: State, episode_start: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """Make one step of the backbones: the actor's and the critic's latents [B, d_latent], and the next state."""
        reset = as_reset(episode_start)
        latents = []
        after = []
        for encoder, features, before in zip(self._encoders(), self._features(obs), state, strict=True):
            embedded = linear(encoder.embed, features)
            remembered, next_state = encoder.backbone.step(embedded, before, reset)
            latents.append(encoder.latent(remembered, embedded))
            after.append(next_state)
        return latents[0], latents[-1], tuple(after)

    def _sequence_inputs(self, obs: PyTorchObs, episode_start: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Extract the features [B, T, …] of sequences, for each encoder, and return the backbones' resets."""
        # Stable-Baselines3's extractors take a batch of single observations.
        flat = {k: v.flatten(0, 1) for k, v in obs.items()} if isinstance(obs, dict) else obs.flatten(0, 1)
        inputs = [features.unflatten(0, episode_start.shape) for features in self._features(flat)]

        # Fused kernels have a faster way if no episode begins. To know that, CUDA would have to be waited for.
        some = episode_start.is_cuda or bool(episode_start.any())
        return inputs, as_reset(episode_start) if some else None

    def _encoders(self) -> list[Encoder]:
        return cast(list[Encoder], list(self.encoders))

    def _features(self, obs: PyTorchObs) -> list[Tensor]:
        """Extract the features of observations, one tensor for each encoder."""
        features = self.extract_features(as_counted_by_policy(obs, self.observation_space))
        if isinstance(features, tuple):
            return list(features)
        return [features] * len(self.encoders)

    def _distribution(self, actor: Tensor, action_masks: Tensor | None) -> Distribution:
        latent = self.mlp_extractor.forward_actor(actor)
        if action_masks is None:
            return self._get_action_dist_from_latent(latent)
        logits = mask_logits(self.action_net(latent), action_masks, self.action_space)
        return self.action_dist.proba_distribution(action_logits=logits)


class RecurrentActorCriticCnnPolicy(RecurrentActorCriticPolicy):
    """A RecurrentActorCriticPolicy for images: by the convolutions of Mnih et al. 2015, or as grids of codes."""

    def __init__(self, observation_space: spaces.Space, *args: Any, **kwargs: Any):
        chosen = image_extractor(observation_space, kwargs.get("normalize_images", True))
        kwargs.setdefault("features_extractor_class", chosen)
        super().__init__(observation_space, *args, **kwargs)


class RecurrentMultiInputActorCriticPolicy(RecurrentActorCriticPolicy):
    """A RecurrentActorCriticPolicy for Dict observations, which may hold images and grids."""

    def __init__(self, observation_space: spaces.Dict, *args: Any, **kwargs: Any):
        chosen = combined_extractor(observation_space, kwargs.get("normalize_images", True))
        kwargs.setdefault("features_extractor_class", chosen)
        super().__init__(observation_space, *args, **kwargs)


def as_reset(episode_start: Tensor | None) -> Tensor | None:
    """Return where the memory is emptied as backbones take it. sb3-contrib's code has 0 and 1 in float32."""
    return None if episode_start is None else episode_start.bool()


@contextlib.contextmanager
def unvalidated() -> Iterator[None]:
    """Have PyTorch's distributions not look at their numbers, for which a GPU would have to be waited for."""
    before = Distributions._validate_args
    Distributions.set_default_validate_args(False)
    try:
        yield
    finally:
        Distributions.set_default_validate_args(before)


def _among(rows: Any, own: slice, total: int) -> Any:
    """Put rows at the place ``own`` among ``total`` rows. The others are zeros, or true in a mask."""
    if rows is None or len(rows) == total:
        return rows
    every = rows.new_full((total, *rows.shape[1:]), rows.dtype == torch.bool)
    every[own] = rows
    return every
