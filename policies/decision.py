"""DecisionPolicy: (previous action, observation, maybe a return-to-go) → action, with any backbone as its memory."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.policies.actions import describe_space, make_action
from unroll.policies.backbones import Backbone, State, make_backbone, options_of
from unroll.policies.backbones.backbone import require
from unroll.policies.backbones.layers import Dropout, drop, norm, without_autocast
from unroll.policies.backbones.registry import misfit
from unroll.policies.images import PartsExtractor
from unroll.policies.normalizer import Normalizer
from unroll.policies.window import Window

Tokens: TypeAlias = Literal["fused", "interleaved"]
Condition: TypeAlias = Literal["best", "return", "none"]
Memory: TypeAlias = Literal["carried", "window"]

# The most steps of a sequence or an episode, and numbers of an observation.
MOST = 1 << 22


# The return-to-go of an agent that is asked for nothing: as much as it can get.
UNLIMITED = float(torch.finfo(torch.float32).max)


class Outlook(nn.Module):
    """What return can be had from here, and what to do for one.

    The largest likely return is an upper expectile of those in the data, given what the memory holds (Zhuang et al.
    2024, Reinformer, arXiv 2405.08740, equation 6). Here the return enters behind the memory, which so holds what was
    seen and done, and nothing of what was wished for.

    A return-to-go is told as what it brings on average in each step until the horizon, the length of the longest
    episode (the average reward-to-go of RvS, Emmons et al. 2022, arXiv 2112.10751). What is left of a good episode is
    less and less, so that a large return-to-go by itself means an early step. Averages are told as their distance from
    ``average_mean`` in units of ``return_scale``: all of a reward that each step brings alike says nothing.
    """

    tau = 0.99  # the expectile, as published

    def __init__(self, d_model: int):
        super().__init__()
        self.value = nn.Sequential(nn.Linear(d_model, d_model), nn.GELU(), nn.Linear(d_model, 1))
        self.change = nn.Sequential(nn.Linear(d_model + 1, d_model), nn.GELU(), nn.Linear(d_model, d_model))

    def largest(self, features: Tensor) -> Tensor:
        """Predict the largest likely average [...] from features [..., d_model]."""
        return self.value(features).squeeze(-1)

    def aim(self, features: Tensor, wanted: Tensor) -> Tensor:
        """Change features [..., d_model] to those of a step towards an average [...]."""
        return features + self.change(torch.cat([features, wanted[..., None].to(features.dtype)], -1))

    def error(self, features: Tensor, reached: Tensor) -> Tensor:
        """Compute the expectile loss of the prediction [...]: too little is ``tau / (1 - tau)`` times as bad."""
        missing = reached - self.largest(features)
        weight = torch.where(missing > 0, self.tau, 1 - self.tau)
        return weight * missing.square()


class DecisionPolicy(nn.Module):
    """A sequence model of actions, which may be told a return to reach (Chen et al. 2021, arXiv 2106.01345).

    One environment step is one group of tokens: (previous action, return-to-go, observation). This is the information
    of the paper's triples (return, observation, action), shifted so that a step is known completely before its action
    is predicted.

    Args:
        context: How many environment steps a training sequence has. An attention window is as long.
        tokens: ``interleaved`` gives the backbone up to three tokens per step and predicts the action from the last;
            ``fused`` gives it their sum, one token per step.
        condition: ``none`` knows no return, which is behaviour cloning. ``best`` acts for the largest return that the
            data make likely from where it is, or for a smaller one that is asked for (see Outlook). ``return`` shows
            the backbone the return-to-go, as the Decision Transformer does, and takes any that is asked for.
        previous_action: Whether a step shows the action before it.
        action_modes: How many Gaussians the distribution of a continuous action is a mixture of (see MixtureAction). 0
            means that there is no distribution: the squared error is learned.
        max_timestep: Embed the timestep up to this one, and later ones as this one. 0 means no timestep embedding.
        parts: Of observations with images, which are rows of ``observation_dim`` bytes: what stands in them (see
            PartsExtractor). None: they are rows of numbers.
        memory: While acting, ``carried`` keeps the backbone's state through the whole episode, O(1) per step.
            ``window`` encodes the last ``context`` steps anew for every action, which is the published protocol.

    Raises:
        BackboneError: The backbone, an option or a choice is unknown, or a size is not allowed.
    """

    return_scale: Tensor
    horizon: Tensor
    average_mean: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_space: gym.spaces.Box | gym.spaces.Discrete,
        backbone: str = "mingru",
        d_model: int = 64,
        n_layers: int = 2,
        backbone_options: dict[str, Any] | None = None,
        context: int = 20,
        tokens: Tokens = "fused",
        condition: Condition = "none",
        previous_action: bool = True,
        action_modes: int = 1,
        max_timestep: int = 0,
        dropout: float = 0.1,
        memory: Memory = "carried",
        parts: dict[str, Any] | None = None,
    ):
        super().__init__()
        for size, value in (("context", context), ("observation_dim", observation_dim)):
            require(1 <= value <= MOST, f"{size} must be from 1 to {MOST:,}, not {value}")
        for size, value in (("max_timestep", max_timestep), ("action_modes", action_modes)):
            require(0 <= value <= MOST, f"{size} must be from 0 to {MOST:,}, not {value}")
        require(0 <= dropout < 1, f"dropout must be at least 0 and less than 1, not {dropout}")
        _check_choice("tokens", Tokens, tokens)
        _check_choice("condition", Condition, condition)
        self.config: dict[str, Any] = dict(
            observation_dim=observation_dim,
            action_space=describe_space(action_space),
            backbone=backbone,
            d_model=d_model,
            n_layers=n_layers,
            backbone_options=backbone_options,
            context=context,
            tokens=tokens,
            condition=condition,
            previous_action=previous_action,
            action_modes=action_modes,
            max_timestep=max_timestep,
            dropout=dropout,
        )
        # A row of numbers is its own features.
        self.images: PartsExtractor | None = None
        n_features = observation_dim
        n_numbers = observation_dim
        if parts is not None:
            self.config["parts"] = {name: list(shape) for name, shape in parts.items()}
            self.images = PartsExtractor(parts)
            n_features = self.images.features_dim
            n_numbers = self.images.n_numbers
        self.fused = tokens == "fused"
        self.max_timestep = max_timestep
        self.normalizer = Normalizer(n_numbers)
        self.register_buffer("return_scale", torch.ones(()))
        if condition == "best":
            self.register_buffer("horizon", torch.ones(()))  # steps of the longest episode of the data
            self.register_buffer("average_mean", torch.zeros(()))  # of the averages that the outlook learns
        self.action = make_action(action_space, d_model, action_modes)

        # in the order of the tokens
        self.embed = nn.ModuleDict()
        if previous_action:
            self.embed["previous_action"] = self.action.embedding()
        if condition == "return":
            self.embed["return_to_go"] = nn.Linear(1, d_model)
        self.embed["observation"] = nn.Linear(n_features, d_model)
        self.tokens_per_step = 1 if self.fused else len(self.embed)
        self.embed_timestep = nn.Embedding(max_timestep + 1, d_model) if max_timestep else None
        self.embed_norm = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        self.outlook = Outlook(d_model) if condition == "best" else None

        options = fit_options(backbone, backbone_options or {}, context * self.tokens_per_step, dropout)
        self.backbone = make_backbone(backbone, d_model, n_layers, **options)
        self.memory = memory

    @property
    def memory(self) -> Memory:
        return self._memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        _check_choice("memory", Memory, memory)
        self._memory = memory
        acting: Backbone = self.backbone
        if memory == "window":
            acting = Window(self.backbone, self.config["context"] * self.tokens_per_step)
        # in a tuple, so that the module is not registered twice
        self._acting: tuple[Backbone] = (acting,)

    def forward(
        self, inputs: dict[str, Tensor], state: State | None = None, episode_start: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Predict actions [B, T, …] for whole sequences of ``SEQUENCE_KEYS`` [B, T, …], and return the next state.

        ``episode_start`` [B, T] None means that no step begins an episode.
        """
        features, state = self.features(inputs, state, episode_start)
        return self.predict(features, inputs), state

    def features(
        self, inputs: dict[str, Tensor], state: State | None = None, episode_start: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Compute what each step's action is predicted from, [B, T, d_model], and the next state."""
        tokens = self.tokens(inputs)
        # interleaved tokens: a sequence of tokens_per_step times as many steps for the backbone
        if self.tokens_per_step > 1:
            tokens = tokens.flatten(1, 2)
            if episode_start is not None:
                episode_start = self._first_token(episode_start).flatten(1)
        features, state = self.backbone(tokens, state, episode_start)
        # the action is predicted from a step's last token
        return features[:, self.tokens_per_step - 1 :: self.tokens_per_step], state

    def predict(self, features: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Predict actions [..., …] from features [..., d_model] and the return-to-go that is asked for [...].

        More than the outlook is as much as the outlook: what the data do not have is not asked of the network.
        """
        if self.outlook is None:
            return self.action.predict(features)
        wanted = torch.minimum(self.average(inputs), self.outlook.largest(features))
        return self.action.predict(self.outlook.aim(features, wanted))

    def average(self, inputs: dict[str, Tensor]) -> Tensor:
        """Compute from returns-to-go what they bring in each step until the horizon, as the outlook takes it, [...]."""
        left = (self.horizon - inputs["timestep"]).clamp_min(1)
        return (inputs["return_to_go"] / left - self.average_mean) / self.return_scale

    def step(
        self, inputs: dict[str, Tensor], state: State, episode_start: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Predict actions [B, …] for one step of ``SEQUENCE_KEYS`` [B, …], and return the next state.

        This is the same function as ``forward`` if the memory is carried. ``episode_start`` [B] None means that no row
        begins an episode.
        """
        tokens = self.tokens(inputs)
        acting = self._acting[0]
        if self.tokens_per_step == 1:
            features, state = acting.step(tokens, state, episode_start)
        else:
            reset = None if episode_start is None else self._first_token(episode_start)
            features, state = acting(tokens, state, reset)
            features = features[:, -1]
        return self.predict(features, inputs), state

    def initial_state(self, batch_size: int) -> State:
        """Return the state of ``step`` before the first step of an episode."""
        return self._acting[0].initial_state(batch_size)

    def tokens(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embed inputs [...] as tokens [..., d_model], or [..., tokens_per_step, d_model] where a step has several.

        They have the weights' type whatever the autocast, and so has everything that blocks add to them: in bfloat16
        an observation has three digits.
        """
        with without_autocast(self.embed_norm.weight.device):
            parts = [embed(self._encode(name, inputs[name])) for name, embed in self.embed.items()]
            if self.embed_timestep is not None:
                time = self.embed_timestep(inputs["timestep"].clamp_max(self.max_timestep))
                # a sum takes the timestep once, separate tokens take it each
                if self.fused:
                    parts.append(time)
                else:
                    parts = [part + time for part in parts]

        if self.tokens_per_step == 1:
            x = functools.reduce(torch.add, parts)
        else:
            x = torch.stack(parts, -2)
        return drop(self.dropout, norm(self.embed_norm, x))

    def _first_token(self, episode_start: Tensor) -> Tensor:
        """Mark the tokens that begin an episode, [..., tokens_per_step]: the first tokens of their first steps."""
        return F.pad(episode_start[..., None], (0, self.tokens_per_step - 1))

    def _encode(self, name: str, value: Any) -> Tensor:
        """Convert an input to what its embedding takes. Of an observation with images it may be a row or its parts."""
        if name == "observation" and self.images is not None:
            shown = value if isinstance(value, dict) else self.images.split(value)
            return self.images(shown, self.normalizer)
        if name == "observation":
            return self.normalizer(value)
        if name == "previous_action":
            return self.action.encode(value)
        return (value / self.return_scale)[..., None]


def _check_choice(name: str, choices: Any, value: Any) -> None:
    wrong = misfit(choices, value)
    require(not wrong, f"{name} is {wrong}")


def fit_options(backbone: str, options: dict[str, Any], length: int, dropout: float) -> dict[str, Any]:
    """Complete the options of a backbone that is trained on sequences of ``length`` tokens.

    A memory that reaches further would, when it is carried, hold what it never held in training.
    """
    defaults = {"window": length, "memory_span": max(2.0, length / 2), "dropout": dropout}
    known = options_of(backbone)
    fitting = {name: default for name, default in defaults.items() if name in known}
    return fitting | options
