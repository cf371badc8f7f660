"""DecisionAgent: learns from recorded episodes what to do, or what to do for the return that it is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from jsonargparse.typing import NonNegativeInt, PositiveInt
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from unroll.agents.common.callbacks import ShowProgress, as_callback
from unroll.agents.common.checkpoint import latest_checkpoint, optimizer_tensors, write_checkpoint
from unroll.agents.common.distributed import world
from unroll.agents.common.guards import check_device, check_finite, is_out_of_memory, memory_guard
from unroll.agents.common.machine import made_here, set_products
from unroll.agents.common.optim import make_optimizer, set_learning_rate
from unroll.agents.common.recorded import Metrics
from unroll.agents.common.restoring import of_checkpoint, read_agent, restore
from unroll.agents.common.settling import settle, settle_arguments
from unroll.agents.decision.config import Hyperparameters, top_fraction_of, weight_decay_of
from unroll.agents.decision.recorded import RecordedUpdate
from unroll.agents.decision.task import (
    OF_THE_DATA,
    as_learned,
    check_actions,
    check_budget_of,
    check_same_spaces,
    check_state,
    describe_task,
    fit_statistics,
    with_average_mean,
    with_mixture,
    with_share,
)
from unroll.configs.parser import suggest
from unroll.envs.datasets.doctor import check_fit
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.sampling import Batch, Sampler, make_sampler
from unroll.errors import HyperparameterError, TrainingError, one_line
from unroll.policies.acting import beginnings, check_finite_inputs, check_memory
from unroll.policies.actions import build_space
from unroll.policies.backbones import State
from unroll.policies.decision import DecisionPolicy

# The types of what a policy sees while it acts. A previous action is a row of float32 numbers, or a choice.
INPUT_TYPES = {
    "observation": torch.float32,
    "previous_action": torch.float32,
    "return_to_go": torch.float32,
    "timestep": torch.int64,
}

# Of a checkpoint. 1 had bounded means in its mixtures of actions, and is read where there is none. Up to 2 the default
# was to learn from a tenth of the data.
FORMAT = 3

# Arguments of the policy that an agent with episodes sets, and by what.
SET_BY_AGENT = {
    "context": "the agent's own argument context",
    "max_timestep": "the agent's own argument timestep_embedding",
    "observation_dim": "the episodes",
    "parts": "the episodes",
    "action_space": "the episodes",
}

UNLOGGED = "unlogged."  # begins the names, in a checkpoint, of metrics that have not been logged yet


class DecisionLoss(nn.Module):
    """The error of the predicted actions (Chen et al. 2021, arXiv 2106.01345, section 3), as a module.

    With an outlook, the error of the largest return is added to it (Zhuang et al. 2024, arXiv 2405.08740, equation 8).

    DistributedDataParallel and torch.compile take a module.
    """

    def __init__(self, policy: DecisionPolicy):
        super().__init__()
        self.policy = policy

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean over all steps that are not padding: ``mask`` [B, T] is true there.

        ``steps`` in the batch is the number to divide by where the batch is only a part of one.
        """
        policy = self.policy
        features, _ = policy.features(batch)
        if policy.outlook is None:
            prediction = policy.action.predict(features)
            error = policy.action.error(prediction, batch["action"])  # [B, T]
        else:
            # What was done, given what it led to; and the most that it could have led to.
            reached = policy.average(batch)
            prediction = policy.action.predict(policy.outlook.aim(features, reached))
            error = policy.action.error(prediction, batch["action"]) + policy.outlook.error(features, reached)
        mask = batch["mask"]
        steps = batch["steps"] if "steps" in batch else mask.sum()
        return (error * mask).sum() / steps


class DecisionAgent:
    """Supervised learning of what to do: imitation, or conditioned on a return (Chen et al. 2021, arXiv 2106.01345).

    It has the surface of a Stable-Baselines3 algorithm; ``num_timesteps`` counts gradient updates. A batch is a
    function of (seed, update) alone and dropout is seeded by the same pair. So a run that was interrupted and loaded
    ends with the same weights as one that was not, bit for bit on the same number of threads.

    Args:
        episodes: the data; None for an agent that only acts.
        env: a vector of ReturnToGo environments, for callbacks that ask for ``get_env()``.
        backbone: one of ``BACKBONES``, or ``module:Class`` of an imported module; None: minGRU. Its size and its
            options are in ``policy_kwargs``.
        device: ``auto``, ``cpu`` or ``cuda``.
        policy_kwargs: for DecisionPolicy: d_model, n_layers, backbone_options, tokens, condition, dropout, memory.
        hyperparameters: the fields of ``Hyperparameters`` (agents/decision/config.py): context, batch_size,
            learning_rate and so on.

    Raises:
        BackboneError, HyperparameterError, TrainingError: a size that makes no sense, or more than the device has
            memory for.
        DatasetError: the episodes cannot be learned from.
    """

    sized_by = ("batch_size", "context", "d_model", "n_layers")

    def __init__(
        self,
        episodes: Episodes | None,
        env: VecEnv | None = None,
        *,
        backbone: str | None = None,
        device: str = "auto",
        policy_kwargs: dict[str, Any] | None = None,
        **hyperparameters: Any,
    ):
        check_names(hyperparameters)
        self.hyperparameters = Hyperparameters(**hyperparameters)
        self.seed = self.hyperparameters.seed
        self.batch_size = self.hyperparameters.batch_size
        check_device(device)
        world.check_divides("batch_size", self.batch_size)

        self.env = env
        self.device = get_device(device)
        set_products(self.hyperparameters.precision, self.device)
        self.logger: Logger = Logger(folder=None, output_formats=[])
        self.num_timesteps = 0
        self.last_metrics: dict[str, float] = {}
        self._total_timesteps = 0
        self._unlogged: list[Metrics] = []  # of each update since the last line of the log
        self._checks_updates = self.device.type == "cpu"  # CUDA would have to be waited for

        policy_kwargs = dict(policy_kwargs or {})
        if backbone is not None and policy_kwargs.setdefault("backbone", backbone) != backbone:
            raise HyperparameterError(f"backbone is {backbone}, and {policy_kwargs['backbone']} in policy_kwargs")
        given = {name: policy_kwargs[name] for name in SET_BY_AGENT if name in policy_kwargs}
        policy_kwargs = {"context": self.hyperparameters.context} | policy_kwargs
        self.policy_kwargs = settle_arguments(DecisionPolicy.__init__, policy_kwargs)
        with memory_guard(self):
            self._build(episodes, given)

    def _build(self, episodes: Episodes | None, given: Mapping[str, Any]) -> None:
        """Make the sampler, the policy and the optimizer. ``given`` says what else was told of the policy's sizes."""
        parameters = self.hyperparameters
        kwargs = self.policy_kwargs
        self.task: dict[str, Any] = {}
        self.sampler: Sampler | None = None

        if episodes is not None:
            check_fit(episodes)
            self.task = describe_task(episodes)
            episodes = episodes.top(self.top_fraction(episodes))
            self.task["return_least"] = float(episodes.returns.min())
            longest = int(episodes.lengths.max())
            kwargs["observation_dim"] = episodes.observation_dim
            kwargs["parts"] = episodes.parts
            kwargs["action_space"] = episodes.action_space
            kwargs["context"] = min(parameters.context, longest)
            kwargs["max_timestep"] = longest - 1 if parameters.timestep_embedding else 0
            check_policy_kwargs(given, kwargs)
            self.sampler = make_sampler(episodes, kwargs["context"], self.device)

        # What no machine has is refused before anything of that size is made.
        check_budget_of(kwargs, self.batch_size, episodes is not None, self.device)
        torch.manual_seed(self.seed % 2**63)
        self.policy = DecisionPolicy(**kwargs)
        self._input_shapes = {  # of one environment
            "observation": (self.policy.config["observation_dim"],),
            "previous_action": kwargs["action_space"].shape,
            "return_to_go": (1,),
            "timestep": (1,),
        }
        self._input_types = dict(INPUT_TYPES)
        if self.policy.images is not None:
            self._input_types["observation"] = torch.uint8
        if isinstance(kwargs["action_space"], Discrete):
            self._input_types["previous_action"] = torch.int64
        if self.env is not None:
            check_actions("env", self.env.action_space, self.policy.config)
        if episodes is not None:
            fit_statistics(self.policy, episodes)
        self.policy.to(self.device)
        discrete = isinstance(kwargs["action_space"], Discrete)
        decay = weight_decay_of(parameters.weight_decay, parameters.optimizer, discrete)
        self.optimizer = make_optimizer(parameters.optimizer, self.policy.parameters(), parameters.learning_rate, decay)
        self.loss = self._make_loss()
        self._recorded = self._make_recorded()

    def _make_recorded(self) -> RecordedUpdate | None:
        """What makes updates on CUDA; None where ``update`` does, and where the compiler records graphs itself."""
        if self.device.type != "cuda" or world.size > 1 or not self.hyperparameters.cuda_graph:
            return None
        return RecordedUpdate(self) if self.hyperparameters.compile != "reduce-overhead" else None

    def _make_loss(self) -> Callable[[dict[str, Tensor]], Tensor]:
        """The loss: eager, compiled, or with its gradients averaged over several processes."""
        mode = self.hyperparameters.compile
        self._compiles_next = mode != "none"  # the first call compiles, and may fail to
        if mode == "none":
            return world.parallel(DecisionLoss(self.policy))
        if world.size > 1:
            raise TrainingError(f"compile {mode} is for one process; use none with {world.size}")
        return torch.compile(DecisionLoss(self.policy), mode=mode, dynamic=False)

    def learn(
        self,
        total_timesteps: int,
        callback: BaseCallback | list[BaseCallback] | Any = None,
        log_interval: int | None = 100,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> DecisionAgent:
        """Make ``total_timesteps`` gradient updates; ``reset_num_timesteps`` False goes on from those already made.

        ``log_interval`` counts updates. None: only the end is logged, and what callbacks log by ``dump_logs``.

        Callbacks hear of every update: ``on_rollout_start`` before it, ``on_step`` after it.

        Raises:
            HyperparameterError: ``total_timesteps`` is no whole number of at least 0, or ``log_interval`` none of at
                least 1.
            TrainingError: a loss or gradient is not finite. On a CPU that is seen before the weights move; on CUDA,
                which would have to be waited for, when it is logged.
        """
        if self.sampler is None:
            raise ValueError("no episodes to learn from: give them to DecisionAgent(…) or DecisionAgent.load(…)")
        total_timesteps = settle("total_timesteps", NonNegativeInt, total_timesteps)
        log_interval = settle("log_interval", PositiveInt | None, log_interval)
        if reset_num_timesteps:
            self.num_timesteps = 0
            self._unlogged.clear()
        self._total_timesteps = self.num_timesteps + total_timesteps

        with contextlib.ExitStack() as stack:
            bar = [stack.enter_context(ShowProgress(self._total_timesteps))] if progress_bar else []
            listener = CallbackList([*bar, as_callback(callback)])
            listener.init_callback(self)  # type: ignore[arg-type]
            listener.on_training_start(locals(), globals())
            self._started = time.monotonic()
            self._learning_time = 0.0
            update = self._recorded or self.update
            if self._recorded is not None:
                self._recorded.recorder.renew()

            while self.num_timesteps < self._total_timesteps:
                listener.on_rollout_start()
                begin = time.monotonic()
                self._unlogged.append(update())

                self._learning_time += time.monotonic() - begin

                # Reading the metrics waits for the device, so it is done where a line of the log is due.
                last = self.num_timesteps == self._total_timesteps
                if last or (log_interval is not None and self.num_timesteps % log_interval == 0):
                    self.dump_logs()

                listener.update_locals(locals())
                if not listener.on_step():
                    break
            listener.on_training_end()
        return self

    def dump_logs(self) -> None:
        """Log the means of all updates since the last line of the log. Stable-Baselines3's callbacks call it too.

        Raises:
            TrainingError: one of the numbers is not finite.
        """
        if not self._unlogged:
            return
        begin = time.monotonic()
        means = mean_metrics(self._unlogged)
        self._check_finite(means, f"at or before update {self.num_timesteps}")
        self._learning_time += time.monotonic() - begin
        self._log(means, len(self._unlogged))
        self._unlogged.clear()

    def begin_update(self) -> Batch:
        """Draw batch ``num_timesteps``, and set all else that differs from one update to the next."""
        assert self.sampler is not None
        with memory_guard(self):
            drawn = self.sampler.draw(self.batch_size, self.seed, self.num_timesteps)
            # Dropout is seeded by (seed, update), so that a run that goes on draws what an undisturbed one would.
            torch.manual_seed((self.seed * 1_000_003 + self.num_timesteps + world.rank * 2**40) % 2**63)
            self.policy.train()
            set_learning_rate(self.optimizer, self._learning_rate())
        return drawn

    def update(self, drawn: Batch | None = None) -> Metrics:
        """Make one gradient update on batch ``num_timesteps``, which ``begin_update`` may have drawn already.

        Returns its loss and gradient norm. They are still on the device: nothing here waits for it.

        Raises:
            TrainingError: memory does not suffice, a number is not finite, or the loss cannot be compiled here.
        """
        assert self.sampler is not None
        parameters = self.hyperparameters
        device = self.device.type
        if drawn is None:
            drawn = self.begin_update()

        with memory_guard(self):
            # Each of several processes learns from its own rows.
            batch = own_rows(self.sampler.cut(drawn))

            # The gradient. The old one goes before the loss: a CUDA graph's next replay writes where it is.
            self.optimizer.zero_grad()
            if device == "cuda" and parameters.compile == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()
            try:
                with torch.autocast(device, torch.bfloat16, enabled=parameters.precision == "bfloat16"):
                    loss = self.loss(batch)
                loss.backward()
            except Exception as error:
                self._explain_compiler(error)
                raise
            self._compiles_next = False

            # A clone leaves the graph's memory, which the next replay overwrites.
            metrics = {"train/loss": loss.detach().clone()}
            metrics["train/grad_norm"] = nn.utils.clip_grad_norm_(self.policy.parameters(), parameters.max_grad_norm)

            # While the weights are still good, unless that would mean to wait for the device.
            if self._checks_updates:
                self._check_finite(metrics)
            self.optimizer.step()

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
        """Choose actions for observations of ReturnToGo environments, a batch or one; the state is for the next call.

        ``state`` None begins anew; ``episode_start`` [B] resets the memory of those environments.

        Raises:
            ValueError: the state or ``episode_start`` is that of another number of environments; the observation is
                none of such an environment, as one of another number of choices, or not finite.
        """
        if self.policy.training:  # setting it again would visit every module at every step
            self.policy.eval()
        inputs, single = self._inputs(observation)
        n_envs = len(inputs["observation"])

        if state is None:
            state = self.policy.initial_state(n_envs)
            self._check_none_yet(inputs)
        check_memory(state, n_envs)
        start = None  # in nearly every step no episode begins, and nothing is to be forgotten
        begins = beginnings(episode_start, n_envs)
        if begins.any():
            start = torch.as_tensor(begins, device=self.device)

        prediction, state = self.policy.step(inputs, state, start)
        if not math.isfinite(prediction.sum()):  # one number to wait for, where all is well
            check_finite_inputs(inputs)
        actions = self.policy.action.choose(prediction, deterministic).cpu().numpy()
        return (actions[0] if single else actions), state

    def _inputs(self, observation: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], bool]:
        """Return an observation as the policy takes it, a batch, and whether it is that of one environment."""
        if not isinstance(observation, dict) or not INPUT_TYPES.keys() <= observation.keys():
            raise ValueError(
                f"the observation is no dict of {', '.join(INPUT_TYPES)}; make_vec_env(…, target_return=…) makes "
                "environments that show one"
            )
        inputs = {key: torch.as_tensor(observation[key]) for key in INPUT_TYPES}
        single = inputs["observation"].ndim == 1
        if single:
            inputs = {key: value[None] for key, value in inputs.items()}
        # One row for each environment: a single one would be broadcast.
        n_envs = len(inputs["observation"])
        for key, shape in self._input_shapes.items():
            if inputs[key].shape != (n_envs, *shape):
                raise ValueError(f"{key} is {tuple(inputs[key].shape)}, where {(n_envs, *shape)} belongs")
        n = self._choices_seen
        if n is not None:
            check_choices(inputs["previous_action"], n)
        check_range("timestep", inputs["timestep"].long(), 0, math.inf, "where 0 or more belongs")
        inputs = {key: value.to(self.device, self._input_types[key]) for key, value in inputs.items()}
        for key in ("return_to_go", "timestep"):
            inputs[key] = inputs[key].squeeze(-1)
        return inputs, single

    @property
    def _choices_seen(self) -> int | None:
        """How many choices there are, where the policy sees the one before; None where actions are continuous."""
        space = self.policy_kwargs["action_space"]
        seen = isinstance(space, Discrete) and "previous_action" in self.policy.embed
        return int(space.n) if seen else None

    def _check_none_yet(self, inputs: dict[str, Tensor]) -> None:
        """Raise ValueError where an episode begins after a choice: what it shows is "none yet" of fewer choices."""
        n = self._choices_seen
        if n is None:
            return
        begins = inputs["timestep"] == 0
        shown = torch.where(begins, inputs["previous_action"], n)
        what = (
            f"where an environment of the {n} choices that the agent has learned shows {n} at timestep 0, for none yet"
        )
        check_range("previous_action", shown, n, n, what)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint folder (see agents/common/checkpoint.py) that acts and learns on by itself.

        Raises:
            TrainingError: a weight is not finite; nothing is written.
        """
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.policy.parameters()):
            raise TrainingError(f"a weight is not finite at update {self.num_timesteps}, so {path} was not written")
        tensors = {f"policy.{name}": value for name, value in self.policy.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer)
        tensors |= pack_metrics(self._unlogged)
        state = {
            "format": FORMAT,
            "agent": "DecisionAgent",
            "num_timesteps": self.num_timesteps,
            "total_timesteps": self._total_timesteps,
            "config": dataclasses.asdict(self.hyperparameters),
            "policy": self.policy.config,
            "memory": self.policy.memory,
            "task": self.task,
            **made_here(self.device),
        }
        write_checkpoint(path, tensors, state)

    @classmethod
    def load(
        cls, path: str | Path, env: VecEnv | None = None, device: str = "auto", episodes: Episodes | None = None
    ) -> DecisionAgent:
        """Load the agent of a checkpoint, or of a run folder's last one. Without ``episodes`` it cannot learn.

        Raises:
            CheckpointError: there is none, it is damaged, or it is of another version.
            DatasetError: the episodes' observations or actions are not those of the policy.
        """
        path = latest_checkpoint(path)
        tensors, state = read_agent(path, "DecisionAgent", 1, 2, FORMAT)
        with of_checkpoint(path):
            state = with_share(with_mixture(state))
            tensors = with_average_mean(tensors, state)
            policy_kwargs = check_state(tensors, state)
            agent = cls(None, env=env, device=device, policy_kwargs=policy_kwargs, **state["config"])
            restore(agent.policy, agent.optimizer, agent.policy.state_dict(), tensors)
            agent.num_timesteps = state["num_timesteps"]
            agent._total_timesteps = state["total_timesteps"]
            agent.policy.memory = state["memory"]
            agent.task = state["task"]
            agent._unlogged = unpack_metrics(tensors, agent.device)
        if episodes is not None:
            agent.set_episodes(episodes)
        return agent

    def set_episodes(self, episodes: Episodes) -> None:
        """Learn from these episodes from now on; the policy keeps its statistics, and the agent its environment.

        Raises:
            DatasetError: they cannot be learned from, or their observations or actions are not those of the policy.
        """
        check_fit(episodes)
        episodes = episodes.counted_as(build_space(self.policy.config["action_space"]))
        episodes = as_learned(episodes, self.policy.config)
        check_same_spaces(episodes, self.policy.config)
        described = describe_task(episodes)
        episodes = episodes.top(self.top_fraction(episodes))
        if self.task:
            self.task |= {name: described[name] for name in OF_THE_DATA}
            self.task["return_least"] = float(episodes.returns.min())
        self.sampler = make_sampler(episodes, self.policy.config["context"], self.device)
        self._recorded = self._make_recorded()

    def top_fraction(self, episodes: Episodes) -> float:
        """Return the share of the steps, those of the best episodes, that it learns from."""
        condition = self.policy_kwargs.get("condition", "none")
        return top_fraction_of(self.hyperparameters.top_fraction, condition, episodes)

    def set_logger(self, logger: Logger) -> None:
        self.logger = logger

    def get_env(self) -> VecEnv | None:
        return self.env

    def get_vec_normalize_env(self) -> None:
        """None: the policy holds its own observation statistics (asked for by Stable-Baselines3's callbacks)."""

    def _learning_rate(self) -> float:
        """A linear warm-up to the learning rate, which then stays or falls to 0 by a cosine."""
        parameters = self.hyperparameters
        done = self.num_timesteps
        if done < parameters.warmup_steps:
            return parameters.learning_rate * ((done + 1) / parameters.warmup_steps)
        if parameters.schedule == "constant":
            return parameters.learning_rate
        share = (done - parameters.warmup_steps) / max(1, self._total_timesteps - parameters.warmup_steps)
        return parameters.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

    def _check_finite(self, metrics: Mapping[str, Any], when: str = "") -> None:
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        check_finite(metrics, when or f"at update {self.num_timesteps + 1}", learning_rate)

    def _explain_compiler(self, error: Exception) -> None:
        """Raise TrainingError if the error comes from compiling: on a CPU there may be no C++ compiler."""
        if self._compiles_next and not is_out_of_memory(error):
            mode = self.hyperparameters.compile
            reason = one_line(error, 200)
            raise TrainingError(f"compile {mode} does not work here, use none ({reason})") from error

    def _log(self, means: dict[str, float], updates: int) -> None:
        assert self.sampler is not None
        rate = updates / max(self._learning_time, sys.float_info.epsilon)
        tokens = self.batch_size * self.sampler.context * self.policy.tokens_per_step
        self.last_metrics = means | {
            "train/learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "time/updates_per_s": rate,
            "time/time_elapsed": time.monotonic() - self._started,
            "perf/train_tokens_per_s": rate * tokens,
        }
        self._learning_time = 0.0
        for name, value in self.last_metrics.items():
            self.logger.record(name, value)
        self.logger.dump(self.num_timesteps)


def check_policy_kwargs(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise HyperparameterError where what the agent sets by the episodes or a hyperparameter was given otherwise."""
    for name, value in given.items():
        if value != own[name]:
            source = SET_BY_AGENT[name]
            raise HyperparameterError(f"policy_kwargs: {name} is not taken here, it is set by {source}")


def check_choices(previous: Tensor, n: int) -> None:
    """Raise ValueError where these are no choices of n, or n for none yet."""
    what = f"where an agent of {n} choices is shown 0 to {n - 1}, and {n} for none yet"
    if previous.is_floating_point() or previous.dtype == torch.bool:
        raise ValueError(f"previous_action is of {previous.dtype}, {what}")
    check_range("previous_action", previous.long(), 0, n, what)


def check_range(name: str, shown: Tensor, low: float, high: float, what: str) -> None:
    """Raise ValueError where a number [B, …] that a policy is shown is not within these bounds."""
    rows = ((shown < low) | (shown > high)).flatten().nonzero().flatten().tolist()
    if rows:
        raise ValueError(f"{name} of environment {rows[0]} is {shown.flatten()[rows[0]].item()}, {what}")


def own_rows(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows that this process learns from; the mean loss over processes is the loss of the whole batch."""
    if world.size == 1:
        return batch
    rows = world.share(len(batch["mask"]))
    own = {key: value[rows] for key, value in batch.items()}
    own["steps"] = batch["mask"].sum() / world.size
    return own


def check_names(hyperparameters: Mapping[str, Any]) -> None:
    """Raise HyperparameterError for a name that is no hyperparameter, and say where it belongs or what was meant."""
    known = [field.name for field in dataclasses.fields(Hyperparameters)]
    for name in hyperparameters:
        if name in known:
            continue
        if name in SET_BY_AGENT:
            raise HyperparameterError(f"{name} is not taken here, it is set by {SET_BY_AGENT[name]}")
        if name in inspect.signature(DecisionPolicy).parameters:
            raise HyperparameterError(f"{name} is an argument of the policy: policy_kwargs=dict({name}=…)")
        raise HyperparameterError(f"{name} is no argument of DecisionAgent{suggest(name, known)}")


def mean_metrics(metrics: list[Metrics]) -> dict[str, float]:
    """The mean of each metric over updates and processes, read from the device at once."""
    names = list(metrics[0])
    means = [torch.stack([update[name] for update in metrics]).mean() for name in names]
    values = world.mean(torch.stack(means)).tolist()
    return dict(zip(names, values, strict=True))


def pack_metrics(metrics: list[Metrics]) -> dict[str, Tensor]:
    """The metrics as tensors [updates] for a checkpoint; none where all has been logged."""
    names = metrics[0] if metrics else ()
    return {UNLOGGED + name: torch.stack([update[name] for update in metrics]) for name in names}


def unpack_metrics(tensors: dict[str, Tensor], device: torch.device) -> list[Metrics]:
    """Find what ``pack_metrics`` gave among the tensors of a checkpoint.

    Raises:
        ValueError: ``pack_metrics`` cannot have given this.
    """
    columns = {}
    for name, column in tensors.items():
        if not name.startswith(UNLOGGED):
            continue
        if column.ndim != 1 or not bool(torch.isfinite(column).all()):
            raise ValueError("metrics that were not logged are one finite number for each update")
        columns[name.removeprefix(UNLOGGED)] = column.to(device)
    updates = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in updates]
