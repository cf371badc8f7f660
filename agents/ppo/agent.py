"""RecurrentPPO: proximal policy optimisation whose policy remembers, in Stable-Baselines3's terms."""

from __future__ import annotations

import dataclasses
import inspect
import io
import math
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any, TypeVar

import torch
from gymnasium import spaces
from jsonargparse.typing import PositiveFloat, PositiveInt
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, configure_logger, explained_variance
from torch import Tensor

from unroll.agents.common.checkpoint import latest_checkpoint
from unroll.agents.common.distributed import world
from unroll.agents.common.guards import check_device, check_finite, memory_guard
from unroll.agents.common.machine import set_products
from unroll.agents.common.recorded import Metrics
from unroll.agents.common.settling import plain, settle, settle_arguments
from unroll.agents.ppo.config import PPOConfig, PretrainConfig
from unroll.agents.ppo.foreign import check_zip
from unroll.agents.ppo.gradients import Parts, clip_gradients, parameters_of
from unroll.agents.ppo.loss import PPOLoss, warn_of_ratio
from unroll.agents.ppo.memory_metrics import memory_metrics
from unroll.agents.ppo.pretraining import pretrain
from unroll.agents.ppo.recorded import RecordedMinibatches, can_be_recorded
from unroll.agents.ppo.rollouts import RecurrentOnPolicyAlgorithm
from unroll.agents.ppo.sb3_contrib import name_the_same, policy_kwargs_of
from unroll.agents.ppo.sequences import Sequences, make_sequences
from unroll.configs.parser import suggest
from unroll.envs.datasets.episodes import Episodes
from unroll.errors import CheckpointError, HyperparameterError
from unroll.policies.actor_critic import RecurrentActorCriticPolicy
from unroll.policies.backbones import map_state
from unroll.zoo import is_zoo

Self = TypeVar("Self", bound="RecurrentPPO")
MINIBATCHES = 4  # of a rollout, unless a batch_size says otherwise
SEQUENCES = 8  # at least, of the rollout of a single environment; minibatches of one are no fair sample
SHORTEST = 16  # steps that such a sequence has
# Arguments of the agent and of its policy that are bounded as the fields of the config that have their names.
AS_IN_CONFIG = (
    "gamma",
    "gae_lambda",
    "ent_coef",
    "vf_coef",
    "target_kl",
    "normalize_advantage",
    "advantage_floor",
    "recompute_states",
    "cuda_graph",
)
OF_POLICY = ("reset_on_done", "separate_critic")
# Arguments that a loaded agent cannot change: they made its weights, or are arguments of ``load``.
FIXED = {"self", "policy", "env", "device", "policy_kwargs", "backbone", "use_sde", "_init_setup_model"}


class RecurrentPPO(RecurrentOnPolicyAlgorithm):
    """PPO (Schulman et al. 2017, arXiv 1707.06347) over whole sequences, with any backbone as the policy's memory.

    A rollout is cut into sequences of ``sequence_length`` steps. A minibatch is some of them, which the backbone runs
    in parallel over time from the state that was stored before each. Episodes may begin anywhere in a sequence: the
    memory is emptied inside of the recurrence. Nothing is padded. Where an episode is truncated, the value of its last
    observation, under the memory that has seen the episode, stands for the rewards that were cut off.

    Environments with a method ``action_masks()`` are never given an action that it forbids, as by sb3-contrib's
    MaskablePPO. Everything else is as in Stable-Baselines3's PPO. That includes ``save`` and ``load``: their zip file
    holds pickled objects, and to load one can run code that is in it. Run folders (agents/ppo/checkpoint.py) hold none.

    Args:
        batch_size: steps of a minibatch, a multiple of ``sequence_length``; None: a quarter of the rollout.
        sequence_length: steps through which gradients flow, a divisor of ``n_steps``; None: ``n_steps``, or
            ``batch_size`` where that is a divisor of it. Of a single environment without a ``batch_size`` None is the
            largest divisor of at most an eighth of ``n_steps``, so that minibatches can be drawn.
        normalize_advantage: make the advantages of the rollout of mean 0 and deviation 1. Stable-Baselines3's PPO does
            so in each minibatch; here a minibatch is few sequences, which are no fair sample.
        advantage_floor: a share of the largest deviation that the advantages of a rollout have had so far. Where theirs
            is below that, their normalisation makes them no larger. Where the agent always does the same, what is left
            of them is the error of the value network, which at full size drowns the entropy's gradient, and nothing
            else is ever tried. DreamerV3 (Hafner et al. 2023, arXiv 2301.04104) has such a floor for its returns.
        backbone: one of ``BACKBONES``, or ``module:Class`` of an imported module; None: minGRU. Its size and its
            options are in ``policy_kwargs`` (see RecurrentActorCriticPolicy).
        recompute_states: make the states before the sequences anew for every epoch but the first, by the policy as it
            is then. Else they stay those of the policy that acted.
        cuda_graph: on CUDA, record a minibatch as one graph and replay it: the same numbers, without waiting for the
            host. Where one graph cannot stand for all minibatches they run eagerly (docs/devices.md says where).

    Positional arguments are in the order of sb3-contrib's RecurrentPPO, whose policies' names and arguments are
    understood as well (docs/from_sb3_contrib.md).

    Raises:
        HyperparameterError: sizes that do not fit together, or arguments that there are not.
    """

    sized_by = ("batch_size", "n_envs", "n_steps", "d_model", "n_layers")

    def __init__(
        self,
        policy: str | type[RecurrentActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int | None = None,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        # The arguments before are those of sb3-contrib's RecurrentPPO, in its order.
        *,
        sequence_length: int | None = None,
        backbone: str | None = None,
        recompute_states: bool = False,
        advantage_floor: float = 0.0,
        cuda_graph: bool = True,
    ):
        check_device(device)
        # PyTorch and random take no int of NumPy's, and Stable-Baselines3 no float of it.
        seed = settle("seed", int | None, seed)
        policy_kwargs = plain(policy_kwargs or {})
        if backbone is not None and policy_kwargs.setdefault("backbone", backbone) != backbone:
            raise HyperparameterError(f"backbone is {backbone}, and {policy_kwargs['backbone']} in policy_kwargs")
        policy_kwargs = policy_kwargs_of(policy, policy_kwargs)
        given = {name: policy_kwargs[name] for name in OF_POLICY if name in policy_kwargs}
        policy_kwargs |= settle_arguments(PPOConfig, given)
        super().__init__(
            policy,
            env,
            learning_rate=plain(learning_rate),
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=device,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
            _init_setup_model=False,
        )
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.n_epochs = n_epochs
        self.clip_range = plain(clip_range)
        self.clip_range_vf = plain(clip_range_vf)
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.recompute_states = recompute_states
        self.advantage_floor = advantage_floor
        self.cuda_graph = cuda_graph
        self.largest_deviation = 0.0  # of the advantages of a rollout so far
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._settle_numbers()
        with memory_guard(self):
            super()._setup_model()
            # the first ratio is 1 only where steps and sequences are computed alike
            set_products("float32", self.device)
            self.clip_range = FloatSchedule(self.clip_range)
            if isinstance(self.clip_range_vf, float | int) and self.clip_range_vf <= 0:
                raise HyperparameterError(f"clip_range_vf {self.clip_range_vf}: must be positive, None for no clipping")
            if self.clip_range_vf is not None and not callable(self.clip_range_vf):
                self.clip_range_vf = settle("clip_range_vf", float, self.clip_range_vf)
            if self.clip_range_vf is not None:
                self.clip_range_vf = FloatSchedule(self.clip_range_vf)
            self.steps_of_sequence = self._choose_length()
            self._sequences_per_minibatch = self._check_sizes()
            self._warn_of_remainder()
            self._log_interval: int | None = 1
            self._loss = world.parallel(PPOLoss(self.policy))
            self._recorded = RecordedMinibatches(self)

    def _settle_numbers(self) -> None:
        """Settle what no network is built from, and ``load`` may have changed."""
        self.n_steps = settle("n_steps", PositiveInt, self.n_steps)
        self.n_epochs = settle("n_epochs", PositiveInt, self.n_epochs)
        self._stats_window_size = settle("stats_window_size", PositiveInt, self._stats_window_size)
        self._settle_sizes()
        vars(self).update(settle_arguments(PPOConfig, {name: getattr(self, name) for name in AS_IN_CONFIG}))
        # Schedules may say any number.
        if not callable(self.learning_rate):
            self.learning_rate = settle("learning_rate", float, self.learning_rate)
        if not callable(self.clip_range):
            self.clip_range = settle("clip_range", PositiveFloat, self.clip_range)
        if self.max_grad_norm != math.inf:  # which clips nothing
            self.max_grad_norm = settle("max_grad_norm", PositiveFloat, self.max_grad_norm)

    def _settle_sizes(self) -> None:
        self.batch_size = settle("batch_size", int | None, self.batch_size)
        self.sequence_length = settle("sequence_length", PositiveInt | None, self.sequence_length)

    def _choose_length(self) -> int:
        """How many steps a sequence has."""
        if self.sequence_length is not None:
            return self.sequence_length
        if self.batch_size is not None:
            # A minibatch is whole sequences, so one that is less than a rollout of one environment has shorter ones.
            divides = 0 < self.batch_size < self.n_steps and self.n_steps % self.batch_size == 0
            return self.batch_size if divides else self.n_steps
        if self.n_envs * world.size > 1:
            return self.n_steps
        # The rollout of a single environment would be one sequence, and every epoch one minibatch.
        for parts in range(SEQUENCES, self.n_steps // SHORTEST + 1):
            if self.n_steps % parts == 0:
                return self.n_steps // parts
        return self.n_steps

    def _check_sizes(self) -> int:
        """How many sequences a minibatch has."""
        length = self.steps_of_sequence
        # The rollout is cut into sequences of equal length,
        if self.n_steps % length:
            raise HyperparameterError(f"sequence_length {length} is not a divisor of n_steps {self.n_steps}")
        steps = self.n_steps * self.n_envs * world.size
        if self.normalize_advantage and 1 in (steps, self.batch_size):
            what = "n_steps × n_envs is 1" if steps == 1 else "batch_size is 1"
            raise HyperparameterError(f"{what}, and one advantage cannot be normalised: normalize_advantage=False")
        n = steps // length

        # and a minibatch is some of them, whole.
        if self.batch_size is None:
            return math.ceil(n / MINIBATCHES)
        if self.batch_size % length or self.batch_size < 1:
            near = max(1, round(self.batch_size / length)) * length
            raise HyperparameterError(
                f"batch_size {self.batch_size}: a minibatch is whole sequences of {length} steps, so {near} would do; "
                f"sequence_length sets how long they are, and divides n_steps {self.n_steps}"
            )
        return int(self.batch_size // length)

    def _warn_of_remainder(self) -> None:
        """Warn where the last minibatch of a rollout is smaller than the others that ``batch_size`` asks for."""
        n = self.n_steps * self.n_envs * world.size // self.steps_of_sequence
        size = self._sequences_per_minibatch
        if self.batch_size is not None and size < n and n % size:
            last = n % size
            warnings.warn(
                f"the rollout's {n} sequences do not divide into minibatches of {size}: the last has {last}, a "
                f"truncated mini-batch of size {last * self.steps_of_sequence}",
                stacklevel=4,
            )

    def train(self) -> None:
        """Make ``n_epochs`` passes over the sequences of the rollout, in minibatches.

        ``interrupted`` ends it in the middle.
        """
        with memory_guard(self):
            began = time.perf_counter()
            self.policy.set_training_mode(True)
            self._update_learning_rate(self.policy.optimizer)
            settings = self._settings()
            self._sequences_per_minibatch = self._check_sizes()  # batch_size may have been set anew

            # The rollout as sequences, each with the memory before it, of the environments of all processes.
            own = self._sequences()
            if self.anchor is not None:
                own = self.anchor.with_reference(own, self.n_envs)
            sequences = own.of_all_ranks(self.n_envs)
            if self.normalize_advantage:
                self.largest_deviation = max(self.largest_deviation, sequences.deviation)
                sequences = sequences.with_normal_advantages(self.advantage_floor * self.largest_deviation)
            sequences = self._see_returns(sequences)
            metrics_of_memory = memory_metrics(self.policy, sequences)

            parts = parameters_of(self.policy)
            recorded = self._recorded if can_be_recorded(self, sequences) else None
            if recorded is not None:
                recorded.begin(sequences, settings)
            epochs: list[list[Metrics]] = []
            learned = 0
            while len(epochs) < self.n_epochs and not self._diverged(epochs):
                # From the second epoch on, the stored states are those of an older policy.
                if self.recompute_states and epochs:
                    own = self._with_new_states(own)
                    sequences = dataclasses.replace(sequences, state=own.of_all_ranks(self.n_envs).state)
                    if recorded is not None:
                        recorded.begin(sequences, settings)
                epochs.append([])

                for rows, weight in sequences.minibatches(self._sequences_per_minibatch):
                    if self.interrupted:
                        return
                    if recorded is not None and recorded.fits(rows):
                        epochs[-1].append(recorded(rows))
                    else:
                        with self._distribution_explained():
                            loss, metrics = self._loss(sequences.select(rows), **settings, weight=weight)
                        epochs[-1].append(metrics)
                        if self._diverged(epochs):
                            break
                        self._descend(loss, metrics, parts)
                    learned += sequences.size_of(rows, weight)
                self._n_updates += 1

            if recorded is not None:
                self._check_finite([metrics for epoch in epochs for metrics in epoch])
            self._count_anchored()
            self._log_update(epochs, settings)
            for name, metric in metrics_of_memory.items():
                self.logger.record(f"train/{name}", metric)
            self._log_speed(time.perf_counter() - began, learned)
            self.between_updates = True

    def _descend(self, loss: Tensor, metrics: Metrics, parts: Parts) -> None:
        """Compute the gradient, clip that of each part, and move the weights if it is finite."""
        self.policy.optimizer.zero_grad()
        loss.backward()
        if self.anchor is not None and self.anchor.holds_actor:
            # Without a gradient a weight stays as it is, an encoder that the critic shares among them.
            for parameter in parts[0]:
                parameter.grad = None
        metrics["grad_norm"] = clip_gradients(parts, self.max_grad_norm)
        self._check_finite([metrics])
        self.policy.optimizer.step()

    def _count_anchored(self) -> None:
        """Count a rollout during which the pretrained policy holds the new one, until it no longer does."""
        if self.anchor is not None:
            self.anchor.count(self.n_steps * self.n_envs * world.size)
            if self.anchor.over:
                self.anchor = None

    def _see_returns(self, sequences: Sequences) -> Sequences:
        """Set the unit in which values are said, and return the sequences with their values in it.

        A value is clipped around what the same network says in the same unit.
        """
        returns = sequences.real(sequences.returns)
        values = sequences.real(sequences.values)
        larger = self.policy.value_scale.update(returns, values, self.policy.value_net)
        return dataclasses.replace(sequences, values=sequences.values * larger)

    def _settings(self) -> dict[str, Any]:
        """The numbers in the loss, as they are at this point of the training."""
        left = self._current_progress_remaining
        clip_range_vf = None
        if self.clip_range_vf is not None:
            clip_range_vf = self.clip_range_vf(left)
        return {
            "clip_range": self.clip_range(left),
            "clip_range_vf": clip_range_vf,
            "ent_coef": self.ent_coef,
            "vf_coef": self.vf_coef,
            "kl_coef": 0.0 if self.anchor is None else self.anchor.coefficient,
        }

    def _sequences(self) -> Sequences:
        """The rollout of this process, cut into sequences."""
        return make_sequences(
            self.rollout_buffer,
            self.steps_of_sequence,
            self._states,
            self.policy.reset_on_done,
            self._action_masks,
            self.device,
            self._learned_from,
        )

    def _check_finite(self, minibatches: list[Metrics]) -> None:
        """Raise TrainingError for the first whose loss or gradient is not finite, which has not moved the weights."""
        # One number to wait for, where all is well.
        if not math.isfinite(sum(metrics["loss"] + metrics["grad_norm"] for metrics in minibatches)):
            for metrics in minibatches:
                check_finite({f"train/{name}": value for name, value in metrics.items()}, *self._when())

    def _diverged(self, epochs: list[list[Metrics]]) -> bool:
        """Whether the policy is further from the one that acted than is wanted, by the last minibatch."""
        if self.target_kl is None or not epochs:
            return False
        return float(world.mean(epochs[-1][-1]["approx_kl"].clone())) > 1.5 * self.target_kl

    def _with_new_states(self, sequences: Sequences) -> Sequences:
        """The sequences with the states that the policy as it is now would have before them."""
        states = [self._states[0]]
        with torch.no_grad():
            for k in range(len(self._states) - 1):
                rows = torch.arange(k * self.n_envs, (k + 1) * self.n_envs, device=self.device)
                part = sequences.select(rows)
                states.append(self.policy.states_after(part.observations, states[-1], part.reset))
        return dataclasses.replace(sequences, state=map_state(lambda *parts: torch.cat(parts), *states))

    def _log_update(self, epochs: list[list[Metrics]], settings: dict[str, Any]) -> None:
        """Log means over the minibatches (approx_kl: over those of the last epoch), under Stable-Baselines3's names."""
        # The losses. The first minibatch was seen by the very policy that acted: its ratio must be 1.
        everything = [metrics for epoch in epochs for metrics in epoch]
        means = {name: mean_of(name, everything) for name in everything[0]}
        means["approx_kl"] = mean_of("approx_kl", epochs[-1])
        means["loss"] = mean_of("loss", everything[-1:])
        means["first_ratio_error"] = float(everything[0]["ratio_error"])
        del means["ratio_error"]
        if self._n_updates == len(epochs) and world.rank == 0:  # this update was the agent's first
            warn_of_ratio(means["first_ratio_error"])
        for name, value in means.items():
            self.logger.record(f"train/{name}", value)

        # How well the value foretold the returns.
        buffer = self.rollout_buffer
        real = slice(None) if self._learned_from is None else self._learned_from.flatten()
        values = world.all_rows(torch.as_tensor(buffer.values.flatten()[real]).cpu()).numpy()
        returns = world.all_rows(torch.as_tensor(buffer.returns.flatten()[real]).cpu()).numpy()
        self.logger.record("train/explained_variance", float(explained_variance(values, returns)))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", float(self.policy.log_std.detach().exp().mean()))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", settings["clip_range"])
        if settings["clip_range_vf"] is not None:
            self.logger.record("train/clip_range_vf", settings["clip_range_vf"])

    def _log_speed(self, seconds: float, learned: int) -> None:
        """Log how fast the rollout was and this update, which learned from so many sequences."""
        steps = self.n_steps * self.n_envs * world.size
        self.logger.record("time/rollout_fps", int(steps / self._rollout_seconds))
        self.logger.record("time/train_fps", int(steps / seconds))
        self.logger.record("perf/train_tokens_per_s", learned * self.steps_of_sequence / seconds)

    def pretrain(
        self: Self, episodes: Episodes, updates: int = 3000, *, log_interval: int = 100, **options: Any
    ) -> Self:
        """Learn from recorded episodes what to do, before ``learn`` goes on with the same weights and statistics.

        The environments begin anew afterwards. The options are those of ``unroll.agents.ppo.pretraining.pretrain``:
        batch_size, context, learning_rate, top_fraction, critic_first, kl_coef, kl_steps, log_interval.

        Raises:
            UserError: the episodes are of other spaces, or the agent is one that cannot learn from them, or an option
                is out of its bounds, which are those of the config.
        """
        options = settle_arguments(PretrainConfig, {"updates": updates, **options})
        log_interval = settle("log_interval", PositiveInt, log_interval)
        if not hasattr(self, "_logger"):
            self._logger = configure_logger(self.verbose, self.tensorboard_log, "pretraining")
        self.interrupted = False
        self._last_obs = None
        pretrain(self, episodes, log_interval=log_interval, **options)
        return self

    def take_weights(self, run: str | Path) -> str:
        """Begin with the weights of another run, of PPO or of a decision agent, where names and shapes agree.

        Return a line that says what was taken.

        Raises:
            CheckpointError: the run is damaged, has another backbone, or nothing of it fits.
        """
        from unroll.agents.ppo.transfer import take_weights

        return take_weights(self, run)

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "RecurrentPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Learn as in Stable-Baselines3, under this algorithm's name in TensorBoard.

        ``log_interval`` counts the rollouts of all calls together: a run that goes on logs where an undisturbed one
        would.
        """
        self._log_interval = log_interval
        # sequence_length, or the batch_size that it follows, may have been set anew since the last call.
        self._settle_sizes()
        self.steps_of_sequence = self._choose_length()
        self._check_sizes()
        return super().learn(total_timesteps, callback, 1, tb_log_name, reset_num_timesteps, progress_bar)

    @property
    def rollouts(self) -> int:
        """How many rollouts were played, in all calls of ``learn``."""
        return self.num_timesteps // (self.n_steps * self.n_envs * world.size)

    @property
    def logs_now(self) -> bool:
        """Whether the last rollout and its update are among those that are logged."""
        return self._log_interval is not None and self.rollouts % self._log_interval == 0

    def dump_logs(self, iteration: int = 0) -> None:
        """Write what was logged, if it is the turn of this rollout. Callbacks, which name no iteration, always may."""
        if iteration == 0:
            super().dump_logs()
        elif self.logs_now:
            super().dump_logs(self.rollouts)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[Self],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        **kwargs: Any,
    ) -> Self:
        """Load Stable-Baselines3's zip, as ``save`` writes it, or the agent of a run folder, a checkpoint or the zoo.

        That of a folder can go on learning in ``env``, which needs VecNormalize around it if the run had it. Without
        ``env`` it acts as ``unroll.load`` gives it.

        Args:
            kwargs: arguments of the constructor in the place of those that it was made with.

        Raises:
            CheckpointError: the folder or the zip holds no agent of this kind; the zip names classes that are not here,
                as one of an earlier version does.
            HyperparameterError: ``kwargs`` name what is no argument, or what an agent cannot change; its
                ``policy_kwargs`` are others than those in the zip.
        """
        folder = None
        if not isinstance(path, io.BufferedIOBase) and (is_zoo(path) or Path(path).is_dir()):
            folder = path
        cls._check_changes(kwargs, path, folder is not None)
        if folder is not None:
            from unroll.agents.ppo.training import load_ppo

            vector = None if env is None else cls._wrap_env(env)
            agent: Any = load_ppo(latest_checkpoint(folder), str(device), vector, kwargs)[0]
            if env is None:
                agent.act_unnormalized()
            return agent
        check_zip(path)
        policy_kwargs = kwargs.pop("policy_kwargs", None)  # as given to the constructor, which may have named them anew
        if "stats_window_size" in kwargs:  # the library's own name of it
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")
        try:
            loaded = super().load(path, env, device, **kwargs)
        except ModuleNotFoundError as error:
            raise CheckpointError(f"{path}: of another version, or of another program ({error})") from None
        if policy_kwargs is not None and not name_the_same(policy_kwargs, loaded.policy_kwargs):
            raise HyperparameterError(
                f"load({path}): policy_kwargs {policy_kwargs} are not those in the zip, {loaded.policy_kwargs}"
            )
        loaded.leave_to_vec_normalize()
        for name in ("ep_info_buffer", "ep_success_buffer"):  # of a zip of another window
            episodes = getattr(loaded, name)
            if episodes is not None:
                setattr(loaded, name, deque(episodes, loaded._stats_window_size))
        return loaded

    @classmethod
    def _check_changes(cls, changes: dict[str, Any], path: Any, folder: bool) -> None:
        """Raise HyperparameterError for arguments of ``load`` that would change nothing."""
        known = set(inspect.signature(cls.__init__).parameters) - FIXED
        known |= set() if folder else {"custom_objects", "print_system_info", "force_reset", "policy_kwargs"}
        for name in changes:
            if name not in known:
                meant = suggest(name, list(known))
                where = "a run folder" if folder else "a zip"
                raise HyperparameterError(f"load({path}): {name} is no argument for {where}{meant}")

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_loss", "_recorded"]


def mean_of(name: str, minibatches: list[Metrics]) -> float:
    """The mean of a metric over the minibatches that have it, and over processes; 0 where none has."""
    values = [metrics[name] for metrics in minibatches if name in metrics]
    if not values:
        return 0.0
    return float(world.mean(torch.stack(values).mean()))
