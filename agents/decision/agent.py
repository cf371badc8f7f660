"""DecisionAgent: learns from recorded episodes to act so as to reach the return that it is asked for."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from unroll.agents.common.callbacks import ShowProgress, as_callback
from unroll.agents.common.checkpoint import latest_checkpoint, optimizer_tensors, write_checkpoint
from unroll.agents.common.distributed import check_shares, rank
from unroll.agents.common.guards import check_decision, check_finite, guard_memory
from unroll.agents.common.machine import made_here
from unroll.agents.common.optim import make_optimizer
from unroll.agents.common.restoring import decision_policy, of_checkpoint, read_agent, restore
from unroll.agents.decision.metrics import mean_metrics, pack_metrics, unpack_metrics
from unroll.agents.decision.task import check_same_spaces, describe_task, fit_statistics
from unroll.agents.decision.update import Compile, Precision, Update, check_device, own_rows
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.sampling import Sampler, make_sampler
from unroll.errors import TrainingError
from unroll.policies.backbones import State
from unroll.policies.decision import DecisionPolicy

# of what a policy sees while it acts; a previous action has the type that its environment gives it
INPUT_TYPES = dict(observation=torch.float32, previous_action=None, return_to_go=torch.float32, timestep=torch.int64)


class DecisionAgent:
    """Return-conditioned supervised learning (Chen et al. 2021, arXiv 2106.01345), with the surface of a
    Stable-Baselines3 algorithm.

    ``num_timesteps`` counts gradient updates. A batch is a function of (seed, update) alone and dropout is seeded by
    the same pair, so that a run that was interrupted and loaded continues to the same weights, bit for bit on as
    many threads.

    Args:
        episodes: the data; None for an agent that only acts.
        env: a vector of ReturnToGo environments, for callbacks that ask for ``get_env()``.
        context: steps of a training sequence, from 1 to whole episodes.
        optimizer: ``adamw``, or ``lamb`` with a minimum trust (see agents/lamb.py), with which SHA-RNN was published.
        top_fraction: learn from the best episodes alone, until they make up this share of the steps (%BC).
        warmup_steps: updates over which the learning rate rises linearly from 0.
        schedule: what the learning rate does then: stay ``constant``, or fall to 0 by a ``cosine``.
        precision, compile: how an update is computed (see agents/update.py).
        policy_kwargs: for DecisionPolicy: backbone, d_model, n_layers, tokens, condition, dropout …

    Raises:
        BackboneError, TrainingError: a size that is none, or more than the device has memory for.
    """

    sized_by = ("batch_size", "context", "d_model", "n_layers")

    @guard_memory
    def __init__(
        self,
        episodes: Episodes | None,
        env: VecEnv | None = None,
        context: int = 20,
        batch_size: int = 64,
        optimizer: Literal["adamw", "lamb"] = "adamw",
        learning_rate: float = 1e-3,
        schedule: Literal["constant", "cosine"] = "cosine",
        warmup_steps: int = 300,
        weight_decay: float = 1e-4,
        max_grad_norm: float = 0.25,
        top_fraction: float = 1.0,
        timestep_embedding: bool = False,
        precision: Precision = "float32",
        compile: Compile = "none",
        seed: int = 0,
        device: str = "auto",
        policy_kwargs: dict[str, Any] | None = None,
    ):
        self.config: dict[str, Any] = dict(
            context=context,
            batch_size=batch_size,
            optimizer=optimizer,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            top_fraction=top_fraction,
            timestep_embedding=timestep_embedding,
            precision=precision,
            compile=compile,
            seed=seed,
        )
        check_device(device)
        check_shares("batch_size", batch_size)
        self.env, self.seed, self.device = env, seed, get_device(device)
        self.num_timesteps, self._total_timesteps = 0, 0
        self.learning_rate, self.schedule, self.warmup_steps = learning_rate, schedule, warmup_steps
        self.batch_size, self._checks_updates = batch_size, self.device.type == "cpu"
        self.sampler: Sampler | None = None
        self.last_metrics: dict[str, float] = {}
        self._unlogged: list[dict[str, torch.Tensor]] = []  # of each update since the last line of the log
        self.task = {} if episodes is None else describe_task(episodes)
        self.policy_kwargs = kwargs = {"context": context} | dict(policy_kwargs or {})
        if episodes is not None:
            episodes = episodes.top(top_fraction)
            longest = int(episodes.lengths.max())
            kwargs |= {"observation_dim": episodes.observation_dim, "action_space": episodes.action_space}
            kwargs |= {"context": min(context, longest), "max_timestep": (longest - 1) * timestep_embedding}
            self.sampler = make_sampler(episodes, kwargs["context"], self.device)
        check_decision(kwargs, batch_size, episodes is not None, self.device)
        torch.manual_seed(seed % 2**63)
        self.policy = DecisionPolicy(**kwargs)
        if episodes is not None:
            fit_statistics(self.policy, episodes)
        self.policy.to(self.device)
        self.optimizer = make_optimizer(optimizer, self.policy.parameters(), learning_rate, weight_decay)
        self._update = Update(self.policy, self.optimizer, max_grad_norm, precision, compile)
        self.logger: Logger = Logger(folder=None, output_formats=[])

    def learn(
        self,
        total_timesteps: int,
        callback: BaseCallback | list[BaseCallback] | Any = None,
        log_interval: int = 100,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> DecisionAgent:
        """Make ``total_timesteps`` gradient updates; ``reset_num_timesteps`` False goes on from those already made.

        Callbacks hear of every update: ``on_rollout_start`` before it, ``on_step`` after it. A loss or gradient that is
        not finite is a TrainingError: on a CPU before the weights move; on CUDA, which would wait, when it is logged.
        """
        if self.sampler is None:
            raise ValueError("no episodes to learn from: give them to DecisionAgent(…) or DecisionAgent.load(…)")
        if reset_num_timesteps:
            self.num_timesteps = 0
            self._unlogged.clear()
        self._total_timesteps = self.num_timesteps + total_timesteps
        with contextlib.ExitStack() as stack:
            bar = [stack.enter_context(ShowProgress(self._total_timesteps))] if progress_bar else []
            listener = CallbackList([*bar, as_callback(callback)])
            listener.init_callback(self)  # type: ignore[arg-type]
            listener.on_training_start(locals(), globals())
            self._started, self._learning_time = time.monotonic(), 0.0
            metrics = self._unlogged
            while self.num_timesteps < self._total_timesteps:
                listener.on_rollout_start()
                begin = time.monotonic()
                metrics.append(self.update())
                last = self.num_timesteps == self._total_timesteps
                due = last or self.num_timesteps % log_interval == 0
                means = mean_metrics(metrics) if due else {}
                self._check_finite(means, f"at or before update {self.num_timesteps}")
                self._learning_time += time.monotonic() - begin
                if due:
                    self._log(means, len(metrics))
                    metrics.clear()
                listener.update_locals(locals())
                if not listener.on_step():
                    break
            listener.on_training_end()
        return self

    @guard_memory
    def update(self) -> dict[str, torch.Tensor]:
        """One gradient update on batch ``num_timesteps``; its loss and gradient norm, still on the device."""
        assert self.sampler is not None
        batch = self.sampler.sample(self.batch_size, self.seed, self.num_timesteps)
        batch = own_rows(batch)
        dropout_seed = (self.seed * 1_000_003 + self.num_timesteps + rank() * 2**40) % 2**63
        check = self._check_finite if self._checks_updates else None
        metrics = self._update(batch, dropout_seed, self._learning_rate(), check)
        self.num_timesteps += 1
        return metrics

    @torch.inference_mode()
    def predict(
        self,
        observation: dict[str, np.ndarray],
        state: State | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, State]:
        """Actions for observations of ReturnToGo environments, a batch or one, and the state for the next call.

        ``state`` None begins anew; ``episode_start`` [B] resets the memory of those environments.
        """
        if self.policy.training:  # setting it again would visit every module at every step
            self.policy.eval()
        inputs = {k: torch.as_tensor(observation[k], dtype=t, device=self.device) for k, t in INPUT_TYPES.items()}
        single = inputs["observation"].ndim == 1
        if single:
            inputs = {key: value[None] for key, value in inputs.items()}
        for key in ("return_to_go", "timestep"):
            inputs[key] = inputs[key].squeeze(-1)
        n = len(inputs["observation"])
        if state is None:
            state = self.policy.initial_state(n)
        start = None  # where no episode begins, which is nearly always, nothing is to be forgotten
        if episode_start is not None and np.any(episode_start):
            start = torch.as_tensor(np.atleast_1d(np.asarray(episode_start, bool)), device=self.device)
        prediction, state = self.policy.step(inputs, state, start)
        actions = self.policy.action.choose(prediction, deterministic).cpu().numpy()
        return (actions[0] if single else actions), state

    def save(self, path: str | Path) -> None:
        """A checkpoint folder (see agents/checkpoint.py) that acts and learns on by itself.

        Raises:
            TrainingError: a weight is not finite; nothing is written.
        """
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.policy.parameters()):
            raise TrainingError(f"a weight is not finite at update {self.num_timesteps}, so {path} was not written")
        tensors = {f"policy.{name}": value for name, value in self.policy.state_dict().items()}
        state = {
            "format": 1,
            "agent": "DecisionAgent",
            "num_timesteps": self.num_timesteps,
            "total_timesteps": self._total_timesteps,
            "config": self.config,
            "policy": self.policy.config,
            "memory": self.policy.memory,
            "task": self.task,
            **made_here(),
        }
        write_checkpoint(path, tensors | optimizer_tensors(self.optimizer) | pack_metrics(self._unlogged), state)

    @classmethod
    def load(
        cls, path: str | Path, env: VecEnv | None = None, device: str = "auto", episodes: Episodes | None = None
    ) -> DecisionAgent:
        """The agent of a checkpoint, or of a run folder's last one. Without ``episodes`` it acts but cannot learn.

        Raises:
            CheckpointError: there is none, it is damaged, or nothing of this version can be made of it.
        """
        path = latest_checkpoint(path)
        tensors, state = read_agent(path, "DecisionAgent", 1)
        with of_checkpoint(path):
            policy = decision_policy(cls, tensors, state)
            agent = cls(None, env=env, device=device, policy_kwargs=policy, **state["config"])
            restore(agent.policy, agent.optimizer, agent.policy.state_dict(), tensors)
            agent.num_timesteps, agent._total_timesteps = state["num_timesteps"], state["total_timesteps"]
            agent.policy.memory, agent.task = state["memory"], state["task"]
            agent._unlogged = unpack_metrics(tensors, agent.device)
        if episodes is not None:
            agent.set_episodes(episodes)
        return agent

    def set_episodes(self, episodes: Episodes) -> None:
        """Learn from these episodes from now on; the policy keeps its statistics.

        Raises:
            DatasetError: their observations or actions are not those of the policy.
        """
        check_same_spaces(episodes, self.policy.config)
        episodes = episodes.top(self.config["top_fraction"])
        self.sampler = make_sampler(episodes, self.policy.config["context"], self.device)

    def set_logger(self, logger: Logger) -> None:
        self.logger = logger

    def get_env(self) -> VecEnv | None:
        return self.env

    def get_vec_normalize_env(self) -> None:
        """None: the policy holds its own observation statistics (asked for by Stable-Baselines3's callbacks)."""

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.num_timesteps + 1) / max(1, self.warmup_steps))
        if self.schedule == "constant" or self.num_timesteps < self.warmup_steps:
            return self.learning_rate * warm
        done = (self.num_timesteps - self.warmup_steps) / max(1, self._total_timesteps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _check_finite(self, metrics: Mapping[str, Any], when: str = "") -> None:
        check_finite(metrics, when or f"at update {self.num_timesteps + 1}", self.optimizer.param_groups[0]["lr"])

    def _log(self, means: dict[str, float], updates: int) -> None:
        assert self.sampler is not None
        rate = updates / max(self._learning_time, sys.float_info.epsilon)
        tokens = self.batch_size * self.sampler.context * self.policy.tokens_per_step
        self.last_metrics = means | {
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "time/updates_per_s": rate,
            "time/time_elapsed": time.monotonic() - self._started,
            "perf/train_tokens_per_s": rate * tokens,
        }
        self._learning_time = 0.0
        for name, value in self.last_metrics.items():
            self.logger.record(name, value)
        self.logger.dump(self.num_timesteps)
