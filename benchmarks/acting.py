"""What acting costs: the policy alone at several batch sizes, and whole episodes of Hopper.

    python -m benchmarks.acting [--threads N] [--output FILE.json]      run from the root of the repository

The first table has the policy's microseconds for one step of one environment, from observation arrays to actions. It is
compared with the published way to act, which encodes the last ``CONTEXT`` steps anew for every action, by a Transformer
with interleaved tokens (``memory: window``). Where ``transformers`` can be imported, it is also compared with one
forward of Hugging Face's DecisionTransformerModel of the same size, over tensors that are there already.

The second table has the environment steps per second of whole episodes: 100 environments in lock-step, against the loop
of research code, in which one environment steps and the last steps are embedded and encoded anew.

The policies are untrained, so Hopper-v5 is told not to end an episode when the hopper falls. Environments are made
before the clock starts. All numbers are of one run, in which the candidates take turns.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from benchmarks.timing import medians, repeated, report
from unroll.agents import DecisionAgent
from unroll.agents.evaluation.play import Episode, play
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.sampling import SEQUENCE_KEYS
from unroll.envs.make import make_env
from unroll.envs.wrappers import ReturnToGo
from unroll.policies.backbones import BACKBONES

CONTEXT = 20
CALLS = {1: 20, 8: 10}  # batch → calls in a row for one measurement
CALLS_OF_LARGER = 3
OURS = "transformer, re-encoding"
THEIRS = "Hugging Face, re-encoding"


def episodes_like_hopper() -> Episodes:
    """Make a dataset of Hopper's shapes, which gives the agents their statistics and sizes."""
    random = np.random.default_rng(0)
    return Episodes(
        observations=random.normal(size=(1000, 11)).astype(np.float32),
        actions=random.uniform(-1, 1, (1000, 3)).astype(np.float32),
        rewards=random.normal(size=1000).astype(np.float32),
        lengths=np.array([1000]),
        terminated=np.array([True]),
        truncated=np.array([False]),
        action_space=gym.spaces.Box(-1, 1, (3,), np.float32),
        name="shapes",
    )


def make_agent(backbone: str, tokens: str, memory: str = "carried") -> DecisionAgent:
    policy = dict(backbone=backbone, tokens=tokens, memory=memory)
    return DecisionAgent(episodes_like_hopper(), context=CONTEXT, device="cpu", policy_kwargs=policy)


def acting(agent: DecisionAgent, batch: int) -> Callable[[], None]:
    """Return a function that asks for an action in ``batch`` environments, in the midst of their episodes."""
    random = np.random.default_rng(0)
    observation = {
        "observation": random.normal(size=(batch, 11)),
        "previous_action": random.uniform(-1, 1, (batch, 3)).astype(np.float32),
        "return_to_go": np.full((batch, 1), 3600, np.float32),
        "timestep": np.zeros((batch, 1), np.int64),
    }
    start = np.zeros(batch, bool)
    state: Any = None

    def act() -> None:
        nonlocal state
        _, state = agent.predict(observation, state, start)

    # Windows are full after so many steps.
    for _ in range(CONTEXT):
        act()
    return act


def acting_elsewhere(batch: int) -> Callable[[], Any] | None:
    """Return the same of Hugging Face's model, 3 layers of 128 with one head; None if it is not installed."""
    try:
        from transformers import DecisionTransformerConfig, DecisionTransformerModel
    except ImportError:
        return None
    config = DecisionTransformerConfig(state_dim=11, act_dim=3, hidden_size=128, n_layer=3, n_head=1, max_ep_len=1000)
    model = DecisionTransformerModel(config).eval()
    inputs = dict(
        states=torch.randn(batch, CONTEXT, 11),
        actions=torch.randn(batch, CONTEXT, 3),
        rewards=None,
        returns_to_go=torch.randn(batch, CONTEXT, 1),
        timesteps=torch.arange(CONTEXT).expand(batch, -1),
        attention_mask=torch.ones(batch, CONTEXT, dtype=torch.long),
    )
    return torch.inference_mode()(lambda: model(**inputs).action_preds[:, -1].numpy())


def microseconds(backbones: list[str], batch: int, repeats: int) -> dict[tuple[str, str], float]:
    """Measure the microseconds for one step of one environment, by policy and tokens."""
    # The references re-encode a window of interleaved tokens.
    runs = {(OURS, "interleaved"): acting(make_agent("transformer", "interleaved", "window"), batch)}
    elsewhere = acting_elsewhere(batch)
    if elsewhere is not None:
        runs[THEIRS, "interleaved"] = elsewhere
    for tokens in ("fused", "interleaved"):
        for name in backbones:
            runs[name, tokens] = acting(make_agent(name, tokens), batch)

    calls = CALLS.get(batch, CALLS_OF_LARGER)
    timed = {key: repeated(run, calls) for key, run in runs.items()}
    seconds = medians(timed, repeats, settle=True)
    return {key: 1e6 * value / calls / batch for key, value in seconds.items()}


class ReencodingLoop:
    """An agent that acts in the published way, for a batch of one: a history that grows, and a forward over its end."""

    def __init__(self, agent: DecisionAgent):
        self.policy = agent.policy.eval()

    @torch.inference_mode()
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        new = {key: torch.as_tensor(observation[key]) for key in SEQUENCE_KEYS}
        new["observation"] = new["observation"].float()
        new["return_to_go"] = new["return_to_go"].squeeze(-1)
        new["timestep"] = new["timestep"].squeeze(-1)

        # Append the step to the history, and keep the last steps of it.
        history = tuple(new[key][:, None] for key in SEQUENCE_KEYS)
        if not episode_start[0]:
            history = tuple(torch.cat([old, x], 1)[:, -CONTEXT:] for old, x in zip(state, history, strict=True))
        prediction, _ = self.policy(dict(zip(SEQUENCE_KEYS, history, strict=True)))
        return self.policy.action.choose(prediction[:, -1], deterministic).numpy(), history


class Idle:
    """An agent that does nothing: the limit of what a policy can reach."""

    def predict(self, observation, *_):
        rows = len(observation["observation"])
        return np.zeros((rows, 3), np.float32), torch.zeros(rows)


def steps_per_second(backbones: list[str], episodes: int, length: int, repeats: int) -> dict[str, float]:
    """Measure the environment steps per second of ``episodes`` episodes, end to end."""
    # Each play takes the same environments, which are made once.
    envs = []
    for _ in range(episodes):
        env = make_env("Hopper-v5", terminate_when_unhealthy=False, max_episode_steps=length)
        envs.append(ReturnToGo(env))

    def playing(agent: Any, n_envs: int, n_episodes: int) -> Callable[[], None]:
        def run() -> None:
            free = iter(envs)
            play(agent, lambda: next(free), [Episode(seed, 3600.0) for seed in range(n_episodes)], n_envs)

        return run

    # The loop plays one episode after the other, so that a tenth of them has the same rate.
    played = dict.fromkeys([OURS, *backbones, "no policy"], episodes)
    played[OURS] = max(1, episodes // 10)
    runs = {OURS: playing(ReencodingLoop(make_agent("transformer", "interleaved")), 1, played[OURS])}
    runs |= {name: playing(make_agent(name, "fused"), episodes, episodes) for name in backbones}
    runs["no policy"] = playing(Idle(), episodes, episodes)
    seconds = medians(runs, repeats, warm=1)
    return {name: played[name] * length / value for name, value in seconds.items()}


def policy_rows(costs: dict[int, dict[tuple[str, str], float]]) -> list[dict[str, Any]]:
    """Make the first table of the microseconds by batch, then by policy and tokens."""
    rows = []
    for key in next(iter(costs.values())):
        policy, tokens = key
        row: dict[str, Any] = {"policy": policy, "tokens": tokens}
        for batch, cost in costs.items():
            # A reference that is not installed has no column.
            row[f"µs × {batch}"] = cost[key]
            for sign, reference in (("re-encoding", OURS), ("Hugging Face", THEIRS)):
                if (reference, "interleaved") in cost:
                    row[f"{sign} / this × {batch}"] = cost[reference, "interleaved"] / cost[key]
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.acting", description=__doc__.split("\n")[0])
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 100], help="environments that step together")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--length", type=int, default=100, help="steps of an episode")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", help="write the numbers to this JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    costs = {batch: microseconds(options.backbones, batch, options.repeats) for batch in options.batches}
    rows = policy_rows(costs)
    report(f"The policy: µs per environment step, context {CONTEXT}, {options.threads} thread(s)", rows, None)

    rates = steps_per_second(options.backbones, options.episodes, options.length, options.repeats)
    played = []
    for name, rate in rates.items():
        played.append({"policy": name, "environment steps/s": rate, "ratio": rate / rates[OURS]})
    title = f"{options.episodes} episodes of Hopper-v5, end to end, {options.threads} thread(s)"
    report(title, played, options.output, policy=rows)


if __name__ == "__main__":
    main()
