"""RecurrentActorCriticPolicy: a Stable-Baselines3 actor-critic policy with any backbone as its memory."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from unroll.policies.backbones import State, make_backbone, map_state
from unroll.policies.backbones.backbone import require, stack_gates
from unroll.policies.backbones.layers import Linear, linear
from unroll.policies.choices import as_counted_by_policy, first_choice
from unroll.policies.masking import check_masks, mask_logits


class Encoder(nn.Module):
    """Features of observations → what is made of all that the episode has shown so far, [B, (T,) d_model]."""

    def __init__(self, features_dim: int, backbone: str, d_model: int, n_layers: int, options: dict[str, Any]):
        super().__init__()
        self.embed = Linear(features_dim, d_model)
        self.backbone = make_backbone(backbone, d_model, n_layers, **options)

    def forward(self, features: Tensor, state: State | None, reset: Tensor | None) -> tuple[Tensor, State]:
        return self.backbone(self.embed(features), state, reset)

    def step(self, features: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        return self.backbone.step(linear(self.embed, features), state, reset)


class RecurrentActorCriticPolicy(ActorCriticPolicy):
    """observation → features extractor → backbone → one MLP each for the distribution of actions and for the value.

    While acting it makes one ``step`` of the backbone, while learning one ``forward`` over whole sequences: the same
    function. All other arguments are those of Stable-Baselines3's ActorCriticPolicy. With
    ``share_features_extractor=False`` the critic has a features extractor and a backbone of its own.

    Args:
        backbone, d_model, n_layers, backbone_options: for ``make_backbone``. There is no dropout: the ratio of the new
            to the old policy would not be 1 where they are the same.
        reset_on_done: begin an episode with an empty memory. False keeps it from one episode of an environment to the
            next, for tasks in which an agent learns from its own episodes (RL², Duan et al. 2016, arXiv 1611.02779);
            returns end with the episode all the same.

    The state is a tuple of one backbone's state, or of the actor's and the critic's.

    Raises:
        BackboneError: an unknown backbone or option.
    """

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
        **kwargs: Any,
    ):
        self.encoder_kwargs: dict[str, Any] = dict(
            backbone=backbone, d_model=d_model, n_layers=n_layers, options=dict(backbone_options or {})
        )
        self.reset_on_done = reset_on_done
        self.rows: tuple[int, int] | None = None  # of several processes: the first of ours, and the number of all
        for name, value in self.encoder_kwargs["options"].items():
            require("dropout" not in name or not value, f"{name} must be 0 in PPO, not {value}")
        if kwargs.get("optimizer_class", torch.optim.Adam) is torch.optim.Adam and "optimizer_kwargs" not in kwargs:
            kwargs["optimizer_kwargs"] = dict(eps=1e-5, fused=True)  # Stable-Baselines3's eps
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build_mlp_extractor(self) -> None:
        """Also builds the memory: here the optimizer, which is made next, sees it once."""
        n = 1 if self.share_features_extractor else 2
        self.encoders = nn.ModuleList(Encoder(self.features_dim, **self.encoder_kwargs) for _ in range(n))
        d_model = self.encoder_kwargs["d_model"]
        self.mlp_extractor = MlpExtractor(d_model, self.net_arch, self.activation_fn, self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = dict(self.encoder_kwargs)
        return super()._get_constructor_parameters() | {
            "backbone_options": own.pop("options"),
            **own,
            "reset_on_done": self.reset_on_done,
            "share_features_extractor": self.share_features_extractor,
        }

    def initial_state(self, batch_size: int) -> State:
        """The state before anything was seen."""
        return tuple(encoder.backbone.initial_state(batch_size) for encoder in self._encoders())

    def forward(  # type: ignore[override]
        self,
        obs: PyTorchObs,
        state: State,
        episode_start: Tensor | None = None,
        deterministic: bool = False,
        action_masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """One step of B environments: actions [B, …], values [B, 1], log-probabilities [B] and the next state.

        ``episode_start`` [B] bool, None: no episode begins; ``action_masks`` bool [B, mask_width]. Where ``rows`` is
        set, actions are drawn for the environments of all processes, and the own ones taken: they are those that one
        process would draw.
        """
        actor, critic, state = self._step(obs, state, episode_start)
        own, total = slice(None), len(actor)
        if self.rows is not None:
            first, total = self.rows
            own = slice(first, first + len(actor))
        distribution = self._distribution(_among(actor, own, total), _among(action_masks, own, total))
        actions = distribution.get_actions(deterministic=deterministic)
        values = self.value_net(self.mlp_extractor.forward_critic(critic))
        actions, log_prob = actions[own], distribution.log_prob(actions)[own]
        return actions.reshape(-1, *self.action_space.shape), values, log_prob, state  # type: ignore[misc]

    def evaluate_sequences(
        self,
        obs: PyTorchObs,
        actions: Tensor,
        state: State,
        episode_start: Tensor,
        action_masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values [B, T], log-probabilities [B, T] and entropies [B, T] (None: no formula) of what was done.

        obs [B, T, …], actions [B, T, action_dim] or [B, T] (Discrete), ``state`` that before the first step,
        ``episode_start`` bool [B, T], ``action_masks`` bool [B, T, mask_width].
        """
        shape = episode_start.shape
        actor, critic, _ = self._sequence(obs, state, episode_start)
        distribution = self._distribution(actor, None if action_masks is None else action_masks.flatten(0, 1))
        values = self.value_net(self.mlp_extractor.forward_critic(critic)).view(shape)
        log_prob, entropy = distribution.log_prob(actions.flatten(0, 1)), distribution.entropy()
        return values, log_prob.view(shape), None if entropy is None else entropy.view(shape)

    def states_after(self, obs: PyTorchObs, state: State, episode_start: Tensor) -> State:
        """The state after sequences obs [B, T, …]."""
        return self._sequence(obs, state, episode_start)[2]

    def gate_activations(self, obs: PyTorchObs, state: State) -> dict[str, Tensor]:
        """What the gates of the backbones are in one step, from 0 to 1: by name, [B, channels of all layers]."""
        parts = zip(self._encoders(), self._features(obs), state, strict=True)
        return stack_gates(
            [encoder.backbone.gate_activations(encoder.embed(x), before) for encoder, x, before in parts]
        )

    def get_distribution(  # type: ignore[override]
        self, obs: PyTorchObs, state: State, episode_start: Tensor | None = None, action_masks: Tensor | None = None
    ) -> tuple[Distribution, State]:
        """The distribution of the actions of B environments, and the next state."""
        actor, _, state = self._step(obs, state, episode_start)
        return self._distribution(actor, action_masks), state

    def predict_values(  # type: ignore[override]
        self, obs: PyTorchObs, state: State, episode_start: Tensor | None = None
    ) -> Tensor:
        """Values [B, 1] of the observations of B environments."""
        return self.value_net(self.mlp_extractor.forward_critic(self._step(obs, state, episode_start)[1]))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: State | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, State]:
        """Actions for a batch of observations or for one, and the state for the next call.

        ``state`` None begins anew; ``episode_start`` [B] empties the memory of these environments first.

        Raises:
            ValueError: the state is of another number of environments, or none that this method has returned;
                ``episode_start`` is of another number of environments.
        """
        self.set_training_mode(False)
        if isinstance(observation, tuple):  # the words of Stable-Baselines3 about what env.reset() gives
            super().predict(observation)
        obs, vectorized = self.obs_to_tensor(observation)
        n = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        start = None
        if state is None:
            state = self.initial_state(n)
        elif self.reset_on_done and episode_start is not None and np.any(episode_start):
            start = torch.as_tensor(np.atleast_1d(np.asarray(episode_start, bool)), device=self.device)
            if len(start) != n:
                raise ValueError(f"episode_start is of {len(start)} environments, the observation of {n}")
        _check_state(state, n)
        masks = None
        if action_masks is not None:
            masks = torch.from_numpy(check_masks(action_masks, self.action_space, n)).to(self.device)
        with torch.no_grad():
            distribution, state = self.get_distribution(obs, state, start, masks)
            chosen = distribution.get_actions(deterministic=deterministic)
        actions = chosen.cpu().numpy().reshape(-1, *self.action_space.shape)  # type: ignore[misc]
        actions = self.to_environment(actions)
        return (actions if vectorized else actions.squeeze(0)), state

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """What the environment is given: continuous actions within its bounds, choices counted from its start.

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
            bounded = np.rint(bounded).astype(self.action_space.dtype)
        return bounded

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
        if self.training != mode:  # it would visit every module at every step
            super().set_training_mode(mode)

    def _step(self, obs: PyTorchObs, state: State, reset: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """What actor and critic see, each [B, d_model], and the next state."""
        latents, states = zip(
            *(
                encoder.step(features, before, reset)
                for encoder, features, before in zip(self._encoders(), self._features(obs), state, strict=True)
            ),
            strict=True,
        )
        return latents[0], latents[-1], states

    def _sequence(self, obs: PyTorchObs, state: State, reset: Tensor) -> tuple[Tensor, Tensor, State]:
        """The same for sequences obs [B, T, …]: [B·T, d_model]."""
        flat = {k: v.flatten(0, 1) for k, v in obs.items()} if isinstance(obs, dict) else obs.flatten(0, 1)
        # a fused kernel has a faster way where no episode begins; CUDA would have to be waited for
        some = reset if reset.is_cuda or bool(reset.any()) else None
        latents, states = zip(
            *(
                encoder(features.unflatten(0, reset.shape), before, some)
                for encoder, features, before in zip(self._encoders(), self._features(flat), state, strict=True)
            ),
            strict=True,
        )
        return latents[0].flatten(0, 1), latents[-1].flatten(0, 1), states

    def _encoders(self) -> list[Encoder]:
        return cast(list[Encoder], list(self.encoders))

    def _features(self, obs: PyTorchObs) -> list[Tensor]:
        """One tensor for each encoder."""
        features = self.extract_features(as_counted_by_policy(obs, self.observation_space))
        return list(features) if isinstance(features, tuple) else [features]

    def _distribution(self, actor: Tensor, action_masks: Tensor | None) -> Distribution:
        latent = self.mlp_extractor.forward_actor(actor)
        if action_masks is None:
            return self._get_action_dist_from_latent(latent)
        logits = mask_logits(self.action_net(latent), action_masks, self.action_space)
        return self.action_dist.proba_distribution(action_logits=logits)


class RecurrentActorCriticCnnPolicy(RecurrentActorCriticPolicy):
    """The same for images, through the convolutions of Mnih et al. 2015."""

    def __init__(self, *args: Any, features_extractor_class: type = NatureCNN, **kwargs: Any):
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class RecurrentMultiInputActorCriticPolicy(RecurrentActorCriticPolicy):
    """The same for Dict observations, images among them."""

    def __init__(self, *args: Any, features_extractor_class: type = CombinedExtractor, **kwargs: Any):
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


def _among(rows: Any, own: slice, total: int) -> Any:
    """The rows at the place ``own`` among ``total``, of which the others are zeros (of masks: true)."""
    if rows is None or len(rows) == total:
        return rows
    every = rows.new_full((total, *rows.shape[1:]), rows.dtype == torch.bool)
    every[own] = rows
    return every


def _check_state(state: Any, n: int) -> None:
    """Raise ValueError unless this can be the state of ``n`` environments."""
    try:
        map_state(lambda part: _check_rows(part, n), state)
    except TypeError as error:
        raise ValueError(f"{error}: it is None at first, and then what predict has returned") from None


def _check_rows(part: Tensor, n: int) -> Tensor:
    if len(part) != n:
        raise ValueError(f"the state is of {len(part)} environments, the observation of {n}")
    return part
