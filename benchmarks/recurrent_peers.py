"""The candidates of benchmarks.recurrent_ppo: sb3-contrib's RecurrentPPO, ours with its network, a clock in both."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor, nn

from unroll.agents import RecurrentPPO
from unroll.envs import make_vec_env
from unroll.policies.actor_critic import Encoder, RecurrentActorCriticPolicy
from unroll.policies.backbones import Backbone, State
from unroll.policies.backbones.lstm import initial_lstm_state, run_lstm, step_lstm

ENVIRONMENTS = 8

# Task → the environment's id and arguments. An untrained Hopper falls after some twenty steps; one that may lie on the
# ground has the long episodes of a trained one.
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "cartpole": ("CartPoleNoVel-v1", {}),
    "hopper": ("Hopper-v5", {}),
    "hopper-long": ("Hopper-v5", {"terminate_when_unhealthy": False}),
}
# Network → the arguments of sb3-contrib's policy, and those of ours. sb3-contrib's shared LSTM learns from the actor's
# loss alone.
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "two LSTMs": ({}, {}),
    "one LSTM": ({"shared_lstm": True, "enable_critic_lstm": False}, {"separate_critic": False}),
}


class PlainLSTM(Backbone):
    """An nn.LSTM from ``inputs`` to ``d_model`` channels, without norm, residual or MLP."""

    def __init__(self, inputs: int, d_model: int):
        super().__init__()
        self.d_model = d_model
        self.lstm = nn.LSTM(inputs, d_model, batch_first=True)

    def initial_state(self, batch_size: int) -> State:
        return initial_lstm_state(self.lstm, batch_size)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        return run_lstm(self.lstm, x, state, reset)

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        return step_lstm(self.lstm, x, state, reset)


class PlainEncoder(Encoder):
    """The encoder of sb3-contrib's network: an LSTM that reads the observation itself, and nothing beside it."""

    def __init__(self, features_dim: int, backbone: str, d_model: int, n_layers: int, options: dict[str, Any]):
        super().__init__(features_dim, backbone, d_model, n_layers, options)
        self.embed = nn.Identity()  # type: ignore[assignment]
        self.backbone = PlainLSTM(features_dim, d_model)
        self.d_latent = d_model

    @staticmethod
    def latent(remembered: Tensor, embedded: Tensor) -> Tensor:
        return remembered


class PlainLSTMPolicy(RecurrentActorCriticPolicy):
    """A policy of ours with the network of sb3-contrib's."""

    encoder_class = PlainEncoder


def contrib(task: str, network: str, hidden: int, **sizes: Any) -> OnPolicyAlgorithm:
    """Make sb3-contrib's RecurrentPPO.

    Raises:
        ImportError: it is not installed.
    """
    from sb3_contrib import RecurrentPPO as Theirs

    policy = NETWORKS[network][0] | dict(lstm_hidden_size=hidden)
    return Theirs("MlpLstmPolicy", environments(task), policy_kwargs=policy, **settings(sizes))


def contrib_defaults(task: str, hidden: int) -> OnPolicyAlgorithm:
    """Make sb3-contrib's RecurrentPPO with its defaults, but for the width of its LSTMs.

    Raises:
        ImportError: it is not installed.
    """
    from sb3_contrib import RecurrentPPO as Theirs

    policy = dict(lstm_hidden_size=hidden)
    return Theirs("MlpLstmPolicy", environments(task), policy_kwargs=policy, **settings({}))


def ours(task: str, network: str, hidden: int, **sizes: Any) -> RecurrentPPO:
    """Make our RecurrentPPO with the same network."""
    policy = NETWORKS[network][1] | dict(backbone="lstm", d_model=hidden)
    return RecurrentPPO(PlainLSTMPolicy, environments(task), policy_kwargs=policy, **settings(sizes))


def with_backbone(task: str, backbone: str, d_model: int, **sizes: Any) -> RecurrentPPO:
    """Make our RecurrentPPO with its defaults, but for backbone and width."""
    return RecurrentPPO(
        "MlpPolicy", environments(task), backbone=backbone, policy_kwargs=dict(d_model=d_model), **settings(sizes)
    )


def environments(task: str) -> Any:
    env_id, arguments = TASKS[task]
    return make_vec_env(env_id, n_envs=ENVIRONMENTS, **arguments)


def settings(sizes: dict[str, Any]) -> dict[str, Any]:
    """Add the settings of all runs to some sizes.

    The learning rate is so small that the policy stays as good as untrained, and episodes as long as at the start.
    """
    return dict(n_epochs=10, learning_rate=1e-6, seed=0, device="cpu") | sizes


def parameters(algorithm: OnPolicyAlgorithm) -> int:
    return sum(parameter.numel() for parameter in algorithm.policy.parameters())


class Iterations:
    """A clock around the iterations of ``learn``, each a rollout and ``train``. A call makes one iteration.

    Attributes:
        seconds: for each iteration the time in env.step, in the rest of the rollout, and in ``train``.
        episodes: for each iteration the number of episodes that began in its rollout.
    """

    def __init__(self, algorithm: OnPolicyAlgorithm):
        self.algorithm = algorithm
        self.seconds: list[tuple[float, float, float]] = []
        self.episodes: list[float] = []
        _, self.callback = algorithm._setup_learn(10**9)
        self._stepping = 0.0

        # The environment's own step is timed from inside of the rollout.
        self._env = algorithm.get_env()
        assert self._env is not None
        self._env.step = self._clocked(self._env.step)  # type: ignore[method-assign]

    def __call__(self) -> None:
        algorithm = self.algorithm
        buffer = algorithm.rollout_buffer
        self._stepping = 0.0

        began = time.perf_counter()
        algorithm.collect_rollouts(self._env, self.callback, buffer, algorithm.n_steps)  # type: ignore[arg-type]
        self.episodes.append(float(buffer.episode_starts.sum()))
        played = time.perf_counter()
        algorithm.train()
        trained = time.perf_counter()

        rollout = played - began
        self.seconds.append((self._stepping, rollout - self._stepping, trained - played))

    def _clocked(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return ``step`` with a clock that adds up its seconds."""

        def clocked(actions: Any) -> Any:
            began = time.perf_counter()
            result = step(actions)
            self._stepping += time.perf_counter() - began
            return result

        return clocked
