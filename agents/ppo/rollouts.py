"""Rollouts of policies that remember: an on-policy algorithm of Stable-Baselines3 that carries states."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from unroll.agents.common.distributed import world
from unroll.agents.common.guards import check_budget, memory_guard, not_finite
from unroll.agents.ppo.anchor import Anchor
from unroll.agents.ppo.finite import check_observations, check_returns, check_rewards, check_sizes
from unroll.agents.ppo.shown import Shown
from unroll.agents.ppo.spaces import (
    POLICIES,
    as_drawn,
    as_normalized,
    check_actions,
    check_numbers,
    check_policy_for,
    check_widths,
)
from unroll.agents.ppo.tensor_buffer import TensorRolloutBuffer
from unroll.agents.ppo.tensor_rollouts import check_tensor_env, collect_on_device
from unroll.envs.faults import env_fault
from unroll.envs.gymnasium_vector import GymnasiumVector, dummy_steps, warn_of_monitor
from unroll.envs.tensor import TensorEnv, TensorVector, tensor_vector
from unroll.errors import EnvError, HyperparameterError, TrainingError, UserError
from unroll.policies.actor_critic import RecurrentActorCriticPolicy, fill_options
from unroll.policies.backbones import State, count_parameters, select_rows
from unroll.policies.masking import NO_METHOD, check_masks


class RecurrentOnPolicyAlgorithm(OnPolicyAlgorithm):
    """Plays with a policy whose state is carried from step to step and from rollout to rollout.

    Beside Stable-Baselines3's buffer it keeps the states before steps 0, L, 2·L, … of the rollout, where L is
    ``steps_of_sequence``, and the action masks of environments that have a method ``action_masks()``. A subclass learns
    from them in ``train``.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        **POLICIES,
        # sb3-contrib's names, with its arguments (see sb3_contrib.py)
        **{name.replace("Policy", "LstmPolicy"): policy for name, policy in POLICIES.items()},
    }
    policy: RecurrentActorCriticPolicy
    steps_of_sequence: int
    sized_by: tuple[str, ...] = ("n_envs", "n_steps")
    agree_every = 16  # steps after which several processes ask each other whether one was told to stop
    masked = False  # whether the environments that it last learned in have action masks
    # Of an agent that was loaded to act: it takes what an environment shows.
    normalizer: VecNormalize | None = None
    shown: Shown | None = None

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, TensorEnv):
            env = TensorVector(env)
        elif isinstance(env, VectorEnv):
            env = GymnasiumVector(env)
        if not hasattr(env, "observation_space"):
            name = type(env).__name__
            hint = "; EnvPool makes one with env_type='gymnasium'" if name.endswith("EnvPool") else ""
            raise EnvError(f"{name} has no observation_space and is no Gymnasium environment{hint}")
        warn_of_monitor(env)
        check_numbers(env.observation_space)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        check_actions(self.action_space)
        check_policy_for(self.observation_space, self.policy_class, self.policy_kwargs)
        self._check_budget()
        check_tensor_env(self.env, self.device)
        self.rollout_buffer_class = self._buffer_class()
        super()._setup_model()
        self._state: State | None = None  # None: the environments begin
        self._states: list[State] = []  # before each part of the rollout
        self._action_masks: np.ndarray | None = None  # [n_steps, n_envs, mask_width]
        self.anchor: Anchor | None = None  # after a pretraining, for a while
        self._learned_from: np.ndarray | None = None  # [n_steps, n_envs], false for dummy steps; None: all
        self._rollout_seconds = 0.0
        self._ended: list[dict[str, Any]] = []  # episodes of this process that the others have not heard of
        self.between_updates = True  # False inside of a rollout, and of the update that follows it
        self.interrupted = False  # may be set at any time: an update is left after the current minibatch
        if world.size > 1:
            every = self.n_envs * world.size
            self.policy.rows = (world.share(every).start, every)

    def _buffer_class(self) -> type[RolloutBuffer] | None:
        """The kind of buffer that the environments fill; None: the library's own choice."""
        return None if tensor_vector(self.env) is None else TensorRolloutBuffer

    def act_unnormalized(self) -> None:
        """From now on ``predict`` takes what an environment shows.

        It makes rows of it as ``make_env`` does, and normalises them by the statistics as they are.

        ``get_env`` gives the environment without VecNormalize. Such an agent does not learn.
        """
        assert self.env is not None
        self.shown = Shown(self.env.unwrapped.envs[0])  # type: ignore[attr-defined]
        self.normalizer = self.get_vec_normalize_env()
        if self.normalizer is not None:
            self.env = self._wrap_env(self.normalizer.venv)
            self._vec_normalize_env = None

    def leave_to_vec_normalize(self) -> None:
        """Have ``predict`` take what ``get_env`` shows where that normalises observations, as that of any other agent.

        Warns where the VecNormalize has other statistics than the agent was loaded with, and learned by.
        """
        given = self.get_vec_normalize_env()
        own = self.normalizer
        if given is None:
            return
        if not given.norm_obs:
            if own is not None and not own.norm_obs:  # rewards alone, for learning
                self.normalizer = None
            return
        self.normalizer = None
        self.shown = None
        learned_by = own.obs_rms if own is not None and own.norm_obs else None
        if own is not None and not same_statistics(learned_by, given.obs_rms):
            warnings.warn(
                "the VecNormalize of env has other statistics of observations than the agent learned by, and its own "
                "are used from now on; RecurrentPPO.load(run folder, env) gives it those that the agent learned by",
                stacklevel=3,
            )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Go on in other environments of the same spaces and number.

        Raises:
            EnvError: they are tensors and those of before were arrays, or the other way round.
        """
        env = self._wrap_env(env, self.verbose)
        if (tensor_vector(env) is not None) != isinstance(self.rollout_buffer, TensorRolloutBuffer):
            raise EnvError("set_env: both environments are of tensors, or both of arrays; load(path, env) takes any")
        check_tensor_env(env, self.device)
        super().set_env(env, force_reset)
        self.leave_to_vec_normalize()

    def _check_budget(self) -> None:
        """Raise TrainingError, before anything is allocated, where policy and rollout are more than the device has."""
        space = as_normalized(self.observation_space, self.get_vec_normalize_env())
        numbers = math.prod(getattr(space, "shape", None) or (1,))
        row = numbers * space.dtype.itemsize if space.dtype else 1
        rollout = {f"a rollout of n_steps {self.n_steps} × n_envs {self.n_envs}": self.n_steps * self.n_envs * row}
        check_budget(count_policy_parameters(self.policy_kwargs, space), rollout, self.device)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "RecurrentPPO",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self.normalizer is not None:
            raise TrainingError(
                "this agent was loaded to act, with the statistics of its observations inside; to go on learning, "
                "RecurrentPPO.load(run folder, env) takes an env with VecNormalize around it, and so does set_env, "
                "whose env brings the statistics"
            )
        goes_on = not reset_num_timesteps and self._last_obs is not None
        if goes_on and self._state is None and not np.all(self._last_episode_starts):
            warnings.warn(
                "a zip holds no memory of the episodes that were being played: every environment begins a new one",
                stacklevel=4,
            )
            self._last_obs = None
            goes_on = False
        if not goes_on:  # the environments begin, and with them the memory
            self._state = None
            if self.anchor is not None:
                self.anchor.memory = None
        # The buffer keeps what is shown, and what is drawn, in the types of these spaces.
        self.rollout_buffer.observation_space = as_normalized(self.observation_space, self.get_vec_normalize_env())
        self.rollout_buffer.action_space = as_drawn(self.action_space)
        self.interrupted = False
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Play ``n_rollout_steps`` in every environment; False where a callback ended it.

        Local names are those of Stable-Baselines3, whose callbacks read them.
        """
        assert self._last_obs is not None
        assert self._last_episode_starts is not None
        if self.interrupted:  # maybe in the middle of the update before
            return False
        normalizer = self.get_vec_normalize_env()
        check_observations(self._last_obs, env, self.num_timesteps, normalizer)
        with memory_guard(self):
            began = time.perf_counter()
            if isinstance(rollout_buffer, TensorRolloutBuffer):
                played = collect_on_device(self, env, callback, rollout_buffer, n_rollout_steps)
                self._rollout_seconds = time.perf_counter() - began
                return played
            masks = self._begin_rollout(env, callback, rollout_buffer)
            dummies = self._begin_dummies(env)

            for n_steps in range(n_rollout_steps):
                # New noise where it is due, and the state before each sequence.
                if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                    self.policy.reset_noise(env.num_envs * world.size)
                if n_steps % self.steps_of_sequence == 0:
                    self._states.append(self._state)

                # One step of the policy. The memory is emptied where an episode begins.
                self._last_obs = copy.deepcopy(self._last_obs)  # environments may write into what they gave
                action_masks = self._ask_masks(env, masks)
                obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                with self._memory_goes_back():
                    actions, values, log_probs = self._act(obs_tensor, action_masks)

                    # One step of the environments.
                    clipped_actions = self.policy.to_environment(actions)
                    new_obs, rewards, dones, infos = env.step(clipped_actions)
                    self.num_timesteps += env.num_envs * world.size
                    check_rewards(rewards, env, self.num_timesteps, normalizer)
                    check_observations(new_obs, env, self.num_timesteps, normalizer)
                rewards = np.array(rewards, np.float32)  # the value of a truncation is added; theirs may be integers

                over = dones
                if dummies is not None:  # the memory begins anew after a dummy step, but no episode ended in it
                    dummies.append(dummy_steps(infos))
                    dones = dones & ~dummies[-1]
                callback.update_locals(locals())
                try:
                    if not callback.on_step():  # it finds in _last_obs what the policy saw
                        return False
                    self._update_info_buffer(infos, dones)
                    self._bootstrap(rewards, dones, infos)
                    starts = self._last_episode_starts
                    rollout_buffer.add(self._last_obs, actions, rewards, starts, values, log_probs)  # type: ignore[arg-type]
                finally:  # what comes next, also where the learning ends now
                    self._last_obs = new_obs  # type: ignore[assignment]
                    self._last_episode_starts = over

            self._end_rollout(rollout_buffer, masks)
            self._learned_from = None if dummies is None else ~np.stack(dummies)
            callback.update_locals(locals())
            callback.on_rollout_end()
            self._tell_episodes()
            self._rollout_seconds = time.perf_counter() - began
        return True

    def _begin_rollout(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer
    ) -> list[np.ndarray] | None:
        """Empty what the last rollout filled; the list that action masks go to, None where there are none."""
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        self._states = []
        if self._state is None:
            # A learned initial state gets its gradient from the episodes that begin inside of a sequence.
            with torch.no_grad():
                self._state = self.policy.initial_state(env.num_envs)
        callback.on_rollout_start()  # which may save: nothing of this rollout has been drawn yet
        self.between_updates = False
        if self.use_sde:
            self.policy.reset_noise(env.num_envs * world.size)
        self.masked = has_masks(env)
        return [] if self.masked else None

    def _begin_dummies(self, env: VecEnv) -> list[np.ndarray] | None:
        """The list of which steps are dummies; None where no environment makes any."""
        if not getattr(env.unwrapped, "has_dummy_steps", False):
            return None
        reason = None
        if not self.policy.reset_on_done:
            reason = "reset_on_done False keeps the memory through the steps in which an environment is only reset"
        elif self.n_steps == 1:
            reason = "n_steps 1: in a rollout of one step every environment may only be reset"
        if reason is not None:
            raise HyperparameterError(f"{reason}; make the vector with autoreset_mode SAME_STEP or DISABLED")
        return []

    def _ask_masks(self, env: VecEnv, masks: list[np.ndarray] | None) -> torch.Tensor | None:
        """What the environments allow now, which is also appended to ``masks``."""
        if masks is None:
            return None
        masks.append(check_masks(ask_masks(env), self.action_space, env.num_envs))
        return torch.from_numpy(masks[-1]).to(self.device)

    def _act(self, obs_tensor: Any, action_masks: torch.Tensor | None) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
        """Make one step of the policy: actions as it counts them, values and log-probabilities."""
        assert self._last_episode_starts is not None
        with self._distribution_explained(), torch.no_grad():
            reset = self._reset(self._last_episode_starts)
            try:
                actions, values, log_probs, self._state = self.policy(
                    obs_tensor, self._state, reset, action_masks=action_masks
                )
            except ValueError:
                check_sizes(self._last_obs, self.env, self.num_timesteps)
                raise
        return actions.cpu().numpy(), values, log_probs

    @contextlib.contextmanager
    def _memory_goes_back(self) -> Iterator[None]:
        """Where a step fails, let the memory be what it was: learning may go on, and show it the observation again."""
        before = self._state
        try:
            yield
        except BaseException:
            self._state = before
            raise

    @contextlib.contextmanager
    def _distribution_explained(self) -> Iterator[None]:
        """Raise TrainingError where PyTorch's distributions were given NaN."""
        try:
            yield
        except ValueError as error:
            if "to satisfy the constraint" in str(error):
                raise TrainingError(not_finite("the distribution of actions is not finite", *self._when())) from error
            raise

    def _when(self) -> tuple[str, float]:
        return f"at step {self.num_timesteps}", self.policy.optimizer.param_groups[0]["lr"]

    def _end_rollout(self, rollout_buffer: RolloutBuffer, masks: list[np.ndarray] | None) -> None:
        """Compute returns and advantages, with the value of what each environment shows now."""
        assert self._last_episode_starts is not None
        self._action_masks = None if masks is None else np.stack(masks)
        with torch.no_grad():
            obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
            values = self.policy.predict_values(obs_tensor, self._state, self._reset(self._last_episode_starts))
        with np.errstate(over="ignore", invalid="ignore"):  # too large a reward is told of below
            rollout_buffer.compute_returns_and_advantage(last_values=values, dones=self._last_episode_starts)
        check_returns(rollout_buffer.returns, rollout_buffer.rewards, self.env, self.num_timesteps)

    def _tell_episodes(self) -> None:
        """Give every process the episodes that ended in any."""
        if world.size > 1:
            told = world.all_of(self._ended)
            super()._update_info_buffer(told, np.ones(len(told), bool))
            self._ended = []

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        # Monitor says "episode" where one ends. What an environment itself says by that name elsewhere is its own.
        over = range(len(infos)) if dones is None else np.flatnonzero(dones)
        ended = [infos[i] for i in over]
        ended = [info if is_monitors(info.get("episode")) else info | {"episode": None} for info in ended]
        if world.size == 1:
            super()._update_info_buffer(ended, np.ones(len(ended), bool))
        else:
            self._ended += [{key: info.get(key) for key in ("episode", "is_success")} for info in ended]

    def _reset(self, episode_start: np.ndarray) -> torch.Tensor | None:
        """Where the memory is emptied; None: nowhere."""
        if not (self.policy.reset_on_done and episode_start.any()):
            return None
        return torch.as_tensor(episode_start, dtype=torch.bool, device=self.device)

    def _bootstrap(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Add the discounted value of the observation that a truncated episode ended with, to its last reward.

        It is the value under the memory that has seen the episode.
        """
        rows = []
        for i in np.flatnonzero(dones):
            truncated = infos[i].get("TimeLimit.truncated", False)
            if truncated and infos[i].get("terminal_observation") is not None:
                rows.append(int(i))
        if not rows:
            return
        last: list[Any] = [infos[i]["terminal_observation"] for i in rows]
        if isinstance(last[0], dict):
            stacked: Any = {key: np.stack([observation[key] for observation in last]) for key in last[0]}
        else:
            stacked = np.stack(last)
        check_observations(stacked, self.env, self.num_timesteps, rows=rows)
        with torch.no_grad():
            state = select_rows(self._state, torch.tensor(rows, device=self.device))
            values = self.policy.predict_values(obs_as_tensor(stacked, self.device), state)
        rewards[rows] += self.gamma * values.flatten().cpu().numpy()

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: State | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, State]:
        """See ``RecurrentActorCriticPolicy.predict``.

        ``action_masks`` is what the environments' ``action_masks()`` give. An agent that learned under masks warns
        where none are given: what it chooses may be forbidden.
        """
        if self.shown is not None:
            observation = self.shown.prepare(observation)
        if self.normalizer is not None and self.normalizer.norm_obs:
            check_widths(observation, self.observation_space)
            observation = self.normalizer.normalize_obs(observation)
        if self.masked and action_masks is None:
            warnings.warn(
                "the agent learned under action masks, and predict was given none: pass action_masks=, or for "
                "evaluate_policy wrap the agent in unroll.agents.ppo.player.MaskedPredictor",
                stacklevel=2,
            )
        chosen = self.policy.predict(observation, state, episode_start, deterministic, action_masks)
        if state is None and episode_start is not None and not np.all(episode_start):
            warnings.warn(
                "predict was given state None in the middle of an episode, so the memory is empty: hand the state that "
                "it returned to the next call (sb3-contrib's evaluation for masks does not: see MaskedPredictor)",
                stacklevel=2,
            )
        return chosen

    def _excluded_save_params(self) -> list[str]:
        own = ["_state", "_states", "_action_masks", "_learned_from", "anchor", "shown"]
        return [*super()._excluded_save_params(), *own]


def is_monitors(episode: Any) -> bool:
    """Whether this is what Monitor says of an episode that ended: its return and its length."""
    return isinstance(episode, dict) and {"r", "l"} <= episode.keys()


def same_statistics(ours: Any, theirs: Any) -> bool:
    """Whether the running statistics of two VecNormalize say the same, of an observation or of the parts of a Dict."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same_statistics(ours[key], theirs[key]) for key in ours)
    if ours is None or isinstance(ours, dict) or isinstance(theirs, dict):
        return False
    return np.array_equal(ours.mean, theirs.mean) and np.array_equal(ours.var, theirs.var)


def has_masks(env: VecEnv) -> bool:
    """Whether the environments have a method ``action_masks()``.

    Raises:
        EnvError: some have, and others have not.
    """
    if env.has_attr("action_masks"):
        return True
    # ``has_attr`` is of all together. Only of environments in this process can one be asked by itself.
    inner = env.unwrapped
    if isinstance(inner, DummyVecEnv):
        have = [one.has_wrapper_attr("action_masks") for one in inner.envs]
        if any(have):
            raise EnvError(
                f"environment {have.index(True)} has action_masks(), and environment {have.index(False)} has none: "
                "all of a vector need it, or none"
            )
    return False


def ask_masks(env: VecEnv) -> list[Any]:
    """What ``action_masks()`` of each environment gives.

    Raises:
        EnvError: it is no method, or raises.
    """
    try:
        return env.env_method("action_masks")
    except Exception as error:
        if "not callable" in str(error):
            raise EnvError(NO_METHOD) from None
        if isinstance(error, UserError):
            raise
        raise env_fault(error, "action_masks()") from error


def count_policy_parameters(policy_kwargs: dict[str, Any], observation_space: Any) -> int:
    """Count the numbers that a policy of these arguments learns, without its features extractor."""
    d_model = policy_kwargs.get("d_model", 64)
    name = policy_kwargs.get("backbone", "mingru")
    options = fill_options(name, policy_kwargs.get("backbone_options") or {})
    backbone = count_parameters(name, d_model, policy_kwargs.get("n_layers", 1), options)

    # The two MLPs behind the backbone, where their widths are a plain list.
    widths = policy_kwargs.get("net_arch")
    layers = []
    if isinstance(widths, list) and all(isinstance(width, int) for width in widths):
        layers = [2 * d_model, *widths]
    heads = 2 * sum(a * b for a, b in itertools.pairwise(layers))

    shape: tuple[int, ...] = getattr(observation_space, "shape", None) or ()
    width = shape[0] if len(shape) == 1 else 1  # an image's features are its extractor's
    copies = 2 if policy_kwargs.get("separate_critic", True) else 1
    return heads + copies * (width * d_model + backbone)
