"""What a decision agent keeps of its dataset, and what its checkpoints must say."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from unroll.agents.common.guards import FLOAT32, check_budget
from unroll.agents.common.restoring import check_arguments, check_count, check_fields, check_size
from unroll.agents.decision.config import Hyperparameters
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.images import Parts, check_parts, parts_in_words, row_bytes
from unroll.envs.datasets.registered import is_env_id, known_env, not_plain
from unroll.envs.datasets.statistics import moments
from unroll.errors import DatasetError, EnvError, one_line
from unroll.policies.actions import build_space, describe_whole
from unroll.policies.backbones import count_parameters
from unroll.policies.decision import DecisionPolicy
from unroll.policies.images import PartsExtractor

QUANTILES = (0, 0.1, 0.5, 0.9, 1)
OF_THE_DATA = ("dataset", "return_mean", "return_quantiles", "data")  # of a task: what other episodes change

# A digest covers all rows of a set up to WHOLE numbers, and SAMPLED rows spread over a larger one.
WHOLE = 1 << 24
SAMPLED = 4096

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

LEAST_SCALE = 1e-30  # of returns: float32 is to hold them with all its digits, and what they are divided by


def describe_task(episodes: Episodes) -> dict[str, Any]:
    """What an evaluation needs to know of the data, as plain values for a checkpoint."""
    returns = episodes.returns
    reference = episodes.reference_returns
    return {
        "dataset": episodes.name,
        "env": episodes.env_id,
        "env_kwargs": episodes.env_kwargs,
        "env_doubt": episodes.env_doubt,
        "reference_returns": None if reference is None else tuple(map(float, reference)),
        "reference_name": episodes.reference_name,
        "return_mean": float(returns.mean()),
        "return_quantiles": {str(q): float(np.quantile(returns, q)) for q in QUANTILES},
        "data": digest(episodes),
    }


def whole_actions(task: dict[str, Any], actions: dict[str, Any]) -> dict[str, Any] | None:
    """Describe the Box of integers that the environment takes; None where it takes others, or is not known here.

    A run says it of the environment that it is evaluated in. Otherwise it is the dataset's own. ``actions`` describes
    those of the policy.
    """
    if "whole_actions" in task:
        return task["whole_actions"]
    known = known_env(task.get("env"), task.get("env_kwargs", {}))
    whole = describe_whole(known.action_space) if known else None
    return whole if whole and len(whole["low"]) == len(actions["low"]) else None


def digest(episodes: Episodes) -> dict[str, Any]:
    """Return what tells these episodes from others, whatever file they are in: their numbers and a checksum."""
    rows = _spread(episodes.n_steps, episodes.observation_dim + 2)
    actions = episodes.actions[rows]
    if isinstance(episodes.action_space, gym.spaces.Discrete):
        actions = actions + int(episodes.action_space.start)  # as the environment counts them
    parts = [
        episodes.lengths[_spread(len(episodes), 1)],
        episodes.observations[rows],
        actions,
        episodes.rewards[rows],
    ]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(np.ascontiguousarray(part).tobytes(), checksum)
    return {"episodes": len(episodes), "steps": episodes.n_steps, "checksum": f"{checksum:08x}"}


def _spread(n: int, width: int) -> np.ndarray | slice:
    """Choose all of n rows of this width, or some that are spread over them."""
    if n * width <= WHOLE:
        return slice(None)
    return np.linspace(0, n - 1, SAMPLED).astype(np.int64)


def check_actions(env_name: str, actions: gym.Space, config: dict[str, Any]) -> None:
    """Raise EnvError unless an environment takes the actions that the policy of this config chooses."""
    space = build_space(config["action_space"])
    same = actions == space
    if isinstance(actions, gym.spaces.Box) and isinstance(space, gym.spaces.Box):
        same = actions.low.size == space.low.size  # bounds may differ, as a dataset's are often guessed
    if not same:
        raise EnvError(f"{env_name} takes actions of {one_line(actions)}, the policy was trained on {one_line(space)}")


def check_same_data(episodes: Episodes, task: dict[str, Any]) -> None:
    """Raise DatasetError unless the episodes are those of the task. Old checkpoints do not say which these are."""
    before = task.get("data")
    now = digest(episodes)
    if before not in (None, now):
        was = f"{before['episodes']:,} episodes, {before['steps']:,} steps, checksum {before['checksum']}"
        found = f"{now['episodes']:,}, {now['steps']:,}, {now['checksum']}"
        raise DatasetError(
            f"{episodes.name} is not what this run has learned from ({was}; now {found}); it goes on with its own data"
        )


def check_task(task: Any) -> None:
    """Raise ValueError unless ``describe_task`` can have said this; an agent that has seen no data has none."""
    if not isinstance(task, dict):
        raise ValueError("task is no JSON object")
    if not task:
        return
    env_id = task["env"]
    if env_id is not None and not is_env_id(env_id):
        raise ValueError(f"task.env {env_id!r} is not the id of an environment")
    wrong = not_plain(task.get("env_kwargs", {}))  # checkpoints from before lack the key
    if wrong:
        raise ValueError(f"task.env_kwargs: {wrong[0]} is no plain value")
    if not isinstance(task.get("env_doubt"), str | None):
        raise ValueError("task.env_doubt is no text")

    data = task.get("data")
    if data is not None:
        check_count(data, "episodes", "steps")
        if not isinstance(data["checksum"], str):
            raise ValueError("task.data.checksum is no text")

    numbers = [task["return_mean"]]
    numbers += [task["return_quantiles"][str(q)] for q in QUANTILES]
    reference = task["reference_returns"]
    if reference is not None:
        numbers += [*reference]
        if len(reference) != 2 or not isinstance(task["reference_name"], str):
            raise ValueError("task.reference_returns are no two numbers with a name")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError("a return of the task is no finite number")


def scale_of(blocks: Callable[[], Iterator[np.ndarray]]) -> tuple[float, float]:
    """The mean of numbers, and their standard deviation, by which the policy divides them.

    Where they do not vary but for the rounding of float32, it is their size: such a return tells nothing.
    """
    mean, std = (float(value) for value in moments(blocks())[:2])
    largest = max(float(np.abs(values).max()) for values in blocks())
    if largest < LEAST_SCALE:
        return mean, 1.0
    return mean, std if std > max(1e-6 * largest, LEAST_SCALE) else largest


def outweighed(episodes: Episodes) -> str | None:
    """Say in a line that a few returns are so large that, as the policy divides them, the others are all alike.

    Others that do not differ but for the rounding of float64 are alike anyway.
    """
    low, high = np.quantile(episodes.returns, (0.05, 0.95))
    scale = float(episodes.returns.std())
    if not 1e-9 * scale < high - low < 0.01 * scale:
        return None
    return (
        "a few returns are so large that the agent cannot tell the others apart: of all episodes 90 % have "
        f"{low:.4g} to {high:.4g}, and all are divided by about {scale:.2g}; where these few are faults of the data, "
        "leave them out"
    )


def averages_in_blocks(episodes: Episodes) -> Iterator[np.ndarray]:
    """Iterate over the averages that an Outlook learns, those of some whole episodes at a time."""
    horizon = int(episodes.lengths.max())
    first = 0
    for values in episodes.returns_to_go_in_blocks():
        ends = np.cumsum(episodes.lengths[first:])
        n = int(np.searchsorted(ends, len(values))) + 1
        lengths = episodes.lengths[first : first + n]
        timestep = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        yield values / (horizon - timestep)
        first += n


def fit_statistics(policy: DecisionPolicy, episodes: Episodes) -> None:
    """Give the policy the scale of the observations and of the returns that it will learn from."""
    values = episodes.statistics()
    policy.normalizer.fit(values.mean, values.std)
    if policy.outlook is None:
        policy.return_scale.fill_(scale_of(episodes.returns_to_go_in_blocks)[1])
        return
    policy.horizon.fill_(int(episodes.lengths.max()))
    mean, scale = scale_of(lambda: averages_in_blocks(episodes))
    policy.return_scale.fill_(scale)
    policy.average_mean.fill_(mean)
    # The prediction begins with what is right on average.
    nn.init.zeros_(policy.outlook.value[-1].bias)  # type: ignore[arg-type]


def as_learned(episodes: Episodes, policy: dict[str, Any]) -> Episodes:
    """Return the episodes with rows of numbers if the policy of this config has learned from images as such rows."""
    return episodes if policy.get("parts") else episodes.without_images()


def check_same_spaces(episodes: Episodes, policy: dict[str, Any]) -> None:
    """Raise DatasetError unless the episodes observe and act as the policy of this config."""
    if episodes.parts is None and policy.get("parts") is None:
        seen: dict[str, Any] = {"observation_dim": episodes.observation_dim}
        learned: dict[str, Any] = {"observation_dim": policy["observation_dim"]}
    else:
        seen = {"an observation": observed_in_words(episodes.observation_dim, episodes.parts)}
        learned = {"an observation": observed_in_words(policy["observation_dim"], policy.get("parts"))}
    have = seen | {"action_space": episodes.action_space}
    trained = learned | {"action_space": build_space(policy["action_space"])}
    for key, value in have.items():
        if trained[key] != value:
            was = one_line(trained[key])
            raise DatasetError(f"{episodes.name}: {key} is {one_line(value)}, the agent was trained on {was}")


def observed_in_words(observation_dim: int, parts: Parts | None) -> str:
    """Describe what a policy observes."""
    return parts_in_words(parts) if parts else f"{observation_dim} numbers"


def with_mixture(state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's state with what is said of the actions' mixture; one of before there was any has none.

    Unless it was told otherwise, behaviour cloning learned from all episodes then, and an agent for the best return
    from 10,000 steps at least. A run that goes on learns from the same ones.

    Raises:
        ValueError: the means of its mixture are bounded, as they were in format 1.
    """
    policy = state["policy"]
    if "action_modes" in policy:
        mixed = policy["action_modes"] and policy["action_space"].get("type") == "Box"
        if mixed and state["format"] == 1:
            raise ValueError("the means of its Gaussians are bounded, as they are no more; it has to be trained again")
        return state
    config = dict(state["config"])
    condition = policy.get("condition")
    data = state["task"].get("data")
    if config.get("top_fraction") is None and condition == "none":
        config["top_fraction"] = 1.0
    elif config.get("top_fraction") is None and condition == "best" and data is not None:
        config["top_fraction"] = min(1.0, max(0.1, 10_000 / max(1, data["steps"])))
    return state | {"config": config, "policy": {**policy, "action_modes": 0}}


def with_share(state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's state with the share of the data that it learned from where nobody chose it.

    Up to format 2 that was a tenth, but 2,000 steps at least. A run that goes on learns from the same episodes.
    """
    config, data = state["config"], state["task"].get("data")
    chosen = config.get("top_fraction") is not None or state["policy"].get("condition") not in ("none", "best")
    if state["format"] > 2 or chosen or data is None:
        return state
    share = min(1.0, max(0.1, 2_000 / max(1, data["steps"])))
    return state | {"config": {**config, "top_fraction": share}}


def with_average_mean(tensors: dict[str, Tensor], state: dict[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint's tensors with the mean of what its outlook learns; one of before it was subtracted has 0."""
    name = "policy.average_mean"
    if state["policy"].get("condition") != "best" or name in tensors:
        return tensors
    return tensors | {name: torch.zeros(())}


def check_state(tensors: Mapping[str, Tensor], state: dict[str, Any]) -> dict[str, Any]:
    """Check that all of a checkpoint's state is usable, and return the policy's arguments.

    Raises any of the exceptions that ``restoring.of_checkpoint`` turns into a CheckpointError.
    """
    check_fields(Hyperparameters, state["config"], "config")
    check_arguments(DecisionPolicy.__init__, state["policy"], "policy")
    check_count(state, "num_timesteps", "total_timesteps")
    check_task(state["task"])
    policy = state["policy"] | {"action_space": build_space(state["policy"]["action_space"])}
    whole = state["task"].get("whole_actions")
    if whole is not None and (
        whole["dtype"] not in INTEGERS or build_space(whole).shape != policy["action_space"].shape
    ):
        raise ValueError("task.whole_actions is no Box of integers for this policy")
    if policy.get("parts") is not None:
        policy["parts"] = check_parts(policy["parts"])
        if row_bytes(policy["parts"]) != policy["observation_dim"]:
            raise ValueError("policy.observation_dim is not the width of its parts")
    check_size(tensors, count_policy_parameters(**policy))
    return policy


def count_policy_parameters(
    observation_dim: int,
    action_space: Any,
    backbone: str = "mingru",
    d_model: int = 64,
    n_layers: int = 2,
    backbone_options: dict[str, Any] | None = None,
    action_modes: int = 1,
    max_timestep: int = 0,
    parts: Parts | None = None,
    **_: Any,
) -> int:
    """Count the numbers that a DecisionPolicy of these arguments learns, but for some vectors.

    Raises:
        BackboneError: there is no such backbone.
    """
    actions = getattr(action_space, "n", None) or math.prod(action_space.shape) * max(1, int(action_modes))
    features = int(observation_dim)
    extractor = 0
    if parts is not None:
        with torch.device("meta"):
            images = PartsExtractor(parts)
        features = images.features_dim
        extractor = sum(parameter.numel() for parameter in images.parameters())
    embeddings = d_model * (features + int(actions) + int(max_timestep))
    return extractor + embeddings + count_parameters(backbone, d_model, n_layers, backbone_options or {})


def check_budget_of(policy_kwargs: dict[str, Any], batch_size: int, learns: bool, device: torch.device) -> None:
    """Raise TrainingError where the policy and a batch are more than the device has memory for."""
    context = policy_kwargs["context"]
    width = int(policy_kwargs["observation_dim"]) + policy_kwargs.get("d_model", 64)
    batch = FLOAT32 * batch_size * context * width if learns else 0
    needs = {f"a batch of batch_size {batch_size} × context {context}": batch}
    check_budget(count_policy_parameters(**policy_kwargs), needs, device)
