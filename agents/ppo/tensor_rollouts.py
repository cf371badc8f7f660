"""Rollouts in environments of tensors: nothing waits for the device before the rollout is over.

What is learned from is what ``RecurrentOnPolicyAlgorithm.collect_rollouts`` gives. There the critic takes every step
with the actor; here it reads the whole rollout afterwards, in a few calls of its backbone. Between two rollouts all is
on the host, where callbacks, checkpoints and evaluations find it under the same names.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.lib.mixins import NDArrayOperatorsMixin
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecTransposeImage, unwrap_vec_normalize
from torch import Tensor

from unroll.agents.common.distributed import world
from unroll.agents.common.guards import not_finite
from unroll.agents.ppo.finite import (
    LARGEST,
    check_observations,
    check_returns,
    check_rewards,
    check_sizes,
    name_of,
)
from unroll.agents.ppo.tensor_buffer import TensorNormalizer, TensorRolloutBuffer, to_host
from unroll.envs.spaces import in_words
from unroll.envs.tensor import TensorVector, tensor_vector
from unroll.errors import EnvError, TrainingError
from unroll.policies.backbones import map_state, select_rows
from unroll.policies.backbones.scan import linear_scan
from unroll.policies.choices import first_choice

if TYPE_CHECKING:
    from unroll.agents.ppo.rollouts import RecurrentOnPolicyAlgorithm


def collect_on_device(
    agent: RecurrentOnPolicyAlgorithm, env: VecEnv, callback: BaseCallback, buffer: TensorRolloutBuffer, n_steps: int
) -> bool:
    """Play ``n_steps`` in every environment; False where a callback ended it.

    Callbacks are called in every step. What they read of it in their ``locals`` is copied then; there are no infos.
    """
    agent._begin_rollout(env, callback, buffer)
    rollout = TensorRollout(agent, env, buffer)
    for step in range(n_steps):
        # New noise where it is due, and the state before each sequence.
        if agent.use_sde and agent.sde_sample_freq > 0 and step % agent.sde_sample_freq == 0:
            agent.policy.reset_noise(env.num_envs)
        if step % agent.steps_of_sequence == 0:
            rollout.states.append(rollout.memory())

        try:
            with torch.inference_mode():
                seen = rollout.step()
        except BaseException:  # the steps before it were taken, and learning may go on
            with contextlib.suppress(Exception):  # the first error is told
                rollout.leave()
            raise
        agent.num_timesteps += env.num_envs

        callback.update_locals(
            {name: HostArray(value) for name, value in seen.items()} | {"infos": [], "n_steps": step}
        )
        if not callback.on_step():
            rollout.leave()
            return False

    rollout.finish()
    callback.update_locals({"rollout_buffer": buffer})
    callback.on_rollout_end()
    return True


class TensorRollout:
    """One rollout of an agent in a TensorVector.

    Args:
        env: the vector with its VecNormalize, if it has one.
    """

    def __init__(self, agent: RecurrentOnPolicyAlgorithm, env: VecEnv, buffer: TensorRolloutBuffer):
        vector = env.unwrapped
        assert isinstance(vector, TensorVector)
        self.agent = agent
        self.vector = vector
        self.buffer = buffer
        self.first_step = agent.num_timesteps
        self.device = agent.device
        self.state: Any = agent._state
        self.states: list[Any] = []  # before each sequence
        self.bounds = action_bounds(agent)
        self.normalizer: TensorNormalizer | None = None
        normalizer = agent.get_vec_normalize_env()
        if normalizer is not None:
            self.normalizer = TensorNormalizer(normalizer, self.device)

        # What was copied to the host after the rollout before.
        self.observations = torch.as_tensor(agent._last_obs, device=self.device)
        self.starts = torch.as_tensor(agent._last_episode_starts, dtype=torch.bool, device=self.device)
        # Of each step: what was shown after it, where that is normalised; which episodes were truncated, and what
        # those that are over showed last, where the environments say so.
        self.raw_observations: list[Tensor] = []
        self.cuts: list[Tensor] = []
        self.last_observations: list[Tensor | None] = []

    def memory(self) -> Any:
        """Copy the state, so that gradients may begin at it."""
        return map_state(torch.clone, self.state)

    def step(self) -> dict[str, Tensor]:
        """Take one step, and return of it what callbacks read, by the names that Stable-Baselines3 has for it."""
        self.buffer.see(self.observations, self.starts)

        # One step of the policy. The memory is emptied where an episode begins.
        actions, log_probs, state = self.agent.policy.sample(self.observations, self.state, self.reset())
        actions = actions.reshape(-1, *self.agent.action_space.shape)  # type: ignore[misc]
        taken = self.to_environment(actions)

        # One step of the environments, which may write into what they gave before.
        new, paid, terminated, truncated, info = self.vector.env.step(taken)
        over = terminated | truncated
        last = info.get("final_obs")
        raw = paid.float()
        rewards = raw
        if self.normalizer is not None:
            self.raw_observations.append(new.clone())
            rewards = self.normalizer.step(new, raw, over)
            new = self.normalizer.observe(new)
            last = None if last is None else self.normalizer.observe(last)

        self.state = state
        self.buffer.act(actions, log_probs, raw, rewards)
        self.cuts.append(truncated & ~terminated)
        self.last_observations.append(None if last is None else last.clone())
        self.observations = new
        self.starts = over
        return {"actions": actions, "clipped_actions": taken, "new_obs": new, "rewards": rewards, "dones": over}

    def reset(self) -> Tensor | None:
        """Say where the memory is emptied; None: nowhere, which spares a backbone some work.

        Whether it is anywhere is asked of a CPU alone: a GPU would have to be waited for.
        """
        if not self.agent.policy.reset_on_done:
            return None
        if self.starts.device.type == "cpu" and not self.starts.any():
            return None
        return self.starts

    def to_environment(self, actions: Tensor) -> Tensor:
        """Convert actions to what the environments take, as the policy does it with arrays."""
        if self.bounds is None:
            return actions
        low, high = self.bounds
        if self.agent.policy.squash_output:
            return low + 0.5 * (actions + 1.0) * (high - low)
        return actions.clamp(low, high)

    def think(self) -> None:
        """Compute the values of all steps, and the state of the critic before each sequence and after the rollout."""
        policy = self.agent.policy
        buffer = self.buffer
        length = self.agent.steps_of_sequence
        critic = self.states[0][-1]
        for k, before in enumerate(self.states):
            part = slice(k * length, min((k + 1) * length, buffer.pos))
            if policy.separate_critic:
                self.states[k] = (*before[:-1], critic)
            observations = buffer.observations[part].transpose(0, 1)
            starts = self._empties()[part].transpose(0, 1)
            values, critic = policy.sequence_values(observations, self.states[k][-1], starts)
            buffer.values[part] = values.transpose(0, 1)
        if policy.separate_critic:
            self.state = (*self.state[:-1], critic)

    def _empties(self) -> Tensor:
        """Say where the memory is emptied before a step, bool [T, N]."""
        starts = self.buffer.episode_starts
        return starts if self.agent.policy.reset_on_done else torch.zeros_like(starts)

    def bootstrap(self) -> None:
        """Add the discounted value of the observation that a truncated episode ended with, to its last reward.

        It is the value under the memory that has seen the episode: that of the sequence up to there, with the last
        observation for its next step. In steps in which the environments do not show it, the value of the step before
        stands for it, as in rsl_rl.
        """
        buffer = self.buffer
        length = self.agent.steps_of_sequence
        cut = torch.stack(self.cuts)
        shown = [last for last in self.last_observations if last is not None]
        if len(shown) < len(cut):
            hidden = torch.tensor([last is None for last in self.last_observations], device=self.device)[:, None]
            buffer.rewards += self.agent.gamma * buffer.values * (cut & hidden)
            cut = cut & ~hidden
        if not shown:
            return
        t, i = cut.nonzero(as_tuple=True)  # how many there are is the one number that the host waits for
        if not len(t):
            return

        # Each sequence with a truncation, and one step more.
        steps = t[:, None] // length * length + torch.arange(length + 1, device=self.device)
        inside = steps.clamp(max=len(cut) - 1)
        observations = buffer.observations[inside, i[:, None]]
        starts = self._empties()[inside, i[:, None]]
        here = torch.arange(len(t), device=self.device)
        after = t % length + 1
        last = torch.stack([shown[0] if last is None else last for last in self.last_observations])
        observations[here, after] = last[t, i].to(observations.dtype)
        starts[here, after] = False

        before = map_state(lambda *parts: torch.cat(parts), *[state[-1] for state in self.states])
        before = select_rows(before, t // length * buffer.n_envs + i)
        values, _ = self.agent.policy.sequence_values(observations, before, starts)
        buffer.rewards[t, i] += self.agent.gamma * values[here, after]

    @torch.no_grad()
    def leave(self) -> None:
        """Copy to the host what the next rollout begins with, after one that was not played to its end."""
        if not self.buffer.pos:
            return
        begun = -(-self.buffer.pos // self.agent.steps_of_sequence)
        del self.states[begun:]  # of a sequence whose first step failed
        self.think()
        self._put_back(to_host(self._progress(*self._sums())))

    @torch.no_grad()
    def finish(self) -> None:
        """Compute values, returns and advantages, and copy to the host, at once, what is wanted there.

        Raises:
            EnvError: an observation or a reward was not finite, or the returns are too large.
            TrainingError: what the policy made of them was not finite.
        """
        self.think()
        self.bootstrap()
        values = self.agent.policy.predict_values(self.observations, self.state, self.reset())
        self.buffer.compute_returns_and_advantage(values, self.starts)

        returns, lengths = self._sums()
        host = to_host(self._progress(returns, lengths) | self._episodes(returns, lengths) | self._faults(values))
        if host["not_finite"].any() or not host["fits"]:
            self._explain(host)
        self._put_back(host)
        played = int(host["episodes"])
        seconds = round(self.vector.seconds, 6)
        assert self.agent.ep_info_buffer is not None
        for i in reversed(range(played)):
            total = round(float(host["ended_returns"][i]), 6)
            record = {"r": total, "l": int(host["ended_lengths"][i]), "t": seconds}
            self.agent.ep_info_buffer.append(record)

    def _progress(self, returns: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Return what the next rollout begins with."""
        parts = {"observations": self.observations, "starts": self.starts}
        parts["returns"] = torch.where(self.starts, 0.0, returns[-1])
        parts["lengths"] = torch.where(self.starts, 0.0, lengths[-1])
        if self.normalizer is not None:
            parts |= self.normalizer.numbers()
        return parts

    def _put_back(self, host: dict[str, np.ndarray]) -> None:
        agent = self.agent
        agent._state = self.memory()
        agent._states = self.states
        agent._last_obs = host["observations"]
        agent._last_episode_starts = host["starts"]
        self.vector.set_progress(host["returns"], host["lengths"].astype(np.int64))
        if self.normalizer is not None:
            self.normalizer.write_back(host)

    def _sums(self) -> tuple[Tensor, Tensor]:
        """Compute the return and the length of the episode so far, float64 [t, N] for the t steps that were taken."""
        buffer = self.buffer
        rewards = buffer.raw_rewards[: buffer.pos].double()
        starts = buffer.episode_starts[: buffer.pos]
        counts = torch.stack([rewards, torch.ones_like(rewards)], -1)  # [t, N, 2]
        before = torch.from_numpy(np.stack([self.vector.returns, self.vector.lengths], -1)).to(self.device)
        goes_on = (~starts).double()[..., None].expand_as(counts)
        sums = linear_scan(goes_on[None], counts[None], before.double()[None])[0]
        return sums[..., 0], sums[..., 1]

    def _episodes(self, returns: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Find the last episodes that ended, the newest first, as many as the log averages over at most."""
        over = torch.cat([self.buffer.episode_starts[1:], self.starts[None]]).flatten()
        places = torch.where(over, torch.arange(len(over), device=self.device), -1)
        newest = places.topk(min(self.agent._stats_window_size, len(over))).values
        found = newest.clamp(min=0)
        return {
            "episodes": (newest >= 0).sum(),
            "ended_returns": returns.flatten()[found],
            "ended_lengths": lengths.flatten()[found],
        }

    def _faults(self, last_values: Tensor) -> dict[str, Tensor]:
        """Say where a number was not finite, bool [T, 4], and whether the returns fit into what can be learned from.

        The columns are in the order of a step: the log-probability of the action, the reward, the observation after
        it, and the reward to which the value of a last observation was added.
        """
        buffer = self.buffer
        columns = [buffer.log_probs, buffer.raw_rewards, self._shown().flatten(2), buffer.rewards]
        finite = [torch.isfinite(column).flatten(1).all(1) for column in columns]
        fits = (buffer.returns.abs() <= LARGEST).all() & torch.isfinite(last_values).all()
        return {"not_finite": ~torch.stack(finite, 1), "fits": fits}

    def _shown(self) -> Tensor:
        """Return what the environments themselves showed after each step, [T, N, …]."""
        if self.raw_observations:
            return torch.stack(self.raw_observations)
        return torch.cat([self.buffer.observations[1:], self.observations[None].to(self.buffer.observations.dtype)])

    def _explain(self, host: dict[str, np.ndarray]) -> None:
        """Raise an error for the first number that is not finite, or for returns that are too large."""
        vector = self.vector
        found = np.argwhere(host["not_finite"])
        if not len(found):
            buffer = self.buffer
            check_returns(buffer.returns.cpu().numpy(), buffer.rewards.cpu().numpy(), vector, self.agent.num_timesteps)
            return
        t, column = found[0]
        step = self.first_step + int(t + 1) * vector.num_envs
        if column == 0:
            check_sizes(self.buffer.observations[t].cpu().numpy(), vector, step)
            rate = self.agent._when()[1]
            raise TrainingError(not_finite("the distribution of actions is not finite", f"at step {step}", rate))
        if column == 1:
            check_rewards(self.buffer.raw_rewards[t].cpu().numpy(), vector, step)
        if column == 2:
            check_observations(self._shown()[t].cpu().numpy(), vector, step)
        i = int(np.argmin(np.isfinite(self.buffer.rewards[t].cpu().numpy())))
        raise EnvError(f"the last observation of an episode of {name_of(vector, i)} is not finite at step {step}")


class HostArray(NDArrayOperatorsMixin):
    """A tensor that is an array to whoever reads it, which copies it to the host once."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    @functools.cached_property
    def array(self) -> np.ndarray:
        return self.tensor.cpu().numpy().copy()  # on a CPU too: environments may write into what they gave

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        def arrays(values: tuple[Any, ...]) -> list[Any]:
            return [value.array if isinstance(value, HostArray) else value for value in values]

        if "out" in kwargs:  # x += y
            kwargs["out"] = tuple(arrays(kwargs["out"]))
        return getattr(ufunc, method)(*arrays(inputs), **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array, name)

    def __getitem__(self, place: Any) -> Any:
        return self.array[place]

    def __bool__(self) -> bool:
        return bool(self.array)

    def __float__(self) -> float:
        return float(self.array)

    def __len__(self) -> int:
        return len(self.tensor)

    def __reduce__(self) -> tuple[Any, ...]:
        return np.array, (self.array,)


def action_bounds(agent: RecurrentOnPolicyAlgorithm) -> tuple[Tensor, Tensor] | None:
    """Return the bounds of continuous actions on the device; None for choices."""
    space = agent.action_space
    if not isinstance(space, spaces.Box):
        return None
    return torch.as_tensor(space.low, device=agent.device), torch.as_tensor(space.high, device=agent.device)


def check_tensor_env(env: VecEnv | None, device: torch.device) -> None:
    """Check that a policy on ``device`` can act in an environment of tensors; any other environment passes.

    Raises:
        EnvError: its tensors are on another device, its actions are integers in a Box or choices not from 0, its
            images have their channels last, or a wrapper that is around it would be passed by.
        TrainingError: several processes learn together.
    """
    vector = tensor_vector(env)
    if vector is None:
        return
    name = type(vector.env).__name__
    if _numbered(vector.env.device) != _numbered(device):
        raise EnvError(f"the tensors of {name} are on {vector.env.device}, and the policy is on {device}")
    space = vector.action_space
    integers = isinstance(space, spaces.Box) and space.dtype.kind in "iu"
    if integers or first_choice(space) is not None:
        raise EnvError(f"{name} takes actions of {in_words(space)}; environments of tensors count choices from 0")
    check_wrappers(env, name)
    if world.size > 1:
        raise TrainingError("environments of tensors are for one process: start without torchrun")


def _numbered(device: torch.device) -> torch.device:
    """Return the device with its number: "cuda" is the current one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device.type, device.index or 0)


def check_wrappers(env: Any, name: str) -> None:
    """Raise EnvError where anything but a VecNormalize is around a TensorVector, whose TensorEnv is stepped itself."""
    normalizer = unwrap_vec_normalize(env)
    layer = env
    while isinstance(layer, VecEnvWrapper):
        inner = layer.venv
        if isinstance(layer, VecTransposeImage):  # which the library puts there by itself
            shape = inner.observation_space.shape
            raise EnvError(f"{name} shows images of {shape}; environments of tensors show them with channels first")
        if layer is not normalizer:
            raise EnvError(
                f"{type(layer).__name__} around {name} would be passed by, as rollouts step the TensorEnv itself: put "
                "a TensorEnv of your own around it, as PreviousTensorStep is"
            )
        layer = inner
