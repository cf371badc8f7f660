"""What acting costs: the policy alone at several batch sizes, and whole episodes of Hopper.

    python -m benchmarks.acting [--threads N] [--output FILE.json]      run from the root of the repository

Two tables. The policy's microseconds for one step of one environment, observation arrays in and actions out, against
the published way to act: the last ``CONTEXT`` steps of a Transformer with interleaved tokens encoded anew for every
action (``memory: window``); where ``transformers`` can be imported, also against one forward of Hugging Face's
DecisionTransformerModel of the same size over tensors that are there already. Then environment steps per second of
episodes end to end, 100 environments in lock-step against the loop of research code: one environment, the last steps
embedded and encoded anew.

The policies are untrained, so Hopper-v5 is told not to end an episode when the hopper falls. Environments are made
before the clock starts. All numbers are of one run, in which the candidates take turns.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from benchmarks.timing import medians, report
from unroll.agents import DecisionAgent
from unroll.agents.evaluation.play import Episode, play
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.sampling import SEQUENCE_KEYS
from unroll.envs.make import make_env
from unroll.envs.wrappers import ReturnToGo
from unroll.policies.backbones import BACKBONES

CONTEXT = 20
CALLS = {1: 20, 8: 10}  # in a row, for one measurement; 3 of larger batches
OURS, THEIRS = "transformer, re-encoding", "Hugging Face, re-encoding"


def episodes_like_hopper() -> Episodes:
    """A dataset of Hopper's shapes, for statistics and sizes alone."""
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
    """A function that asks for an action in ``batch`` environments, in the midst of their episodes."""
    random = np.random.default_rng(0)
    observation = {
        "observation": random.normal(size=(batch, 11)),
        "previous_action": random.uniform(-1, 1, (batch, 3)).astype(np.float32),
        "return_to_go": np.full((batch, 1), 3600, np.float32),
        "timestep": np.zeros((batch, 1), np.int64),
    }
    memory, start = SimpleNamespace(state=None), np.zeros(batch, bool)

    def act() -> None:
        _, memory.state = agent.predict(observation, memory.state, start)

    for _ in range(CONTEXT):  # until windows are full
        act()
    return act


def acting_elsewhere(batch: int) -> Callable[[], Any] | None:
    """The same of Hugging Face's model, 3 layers of 128 with one head; None where it is not installed."""
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
    """For one step of one environment, by policy and tokens."""
    runs = {(OURS, "interleaved"): acting(make_agent("transformer", "interleaved", "window"), batch)}
    elsewhere = acting_elsewhere(batch)
    if elsewhere is not None:
        runs[THEIRS, "interleaved"] = elsewhere
    for tokens in ("fused", "interleaved"):
        runs |= {(name, tokens): acting(make_agent(name, tokens), batch) for name in backbones}
    calls = CALLS.get(batch, 3)
    seconds = medians(
        {key: lambda run=run: [run() for _ in range(calls)] for key, run in runs.items()}, repeats, settle=True
    )
    return {key: 1e6 * value / calls / batch for key, value in seconds.items()}


class ReencodingLoop:
    """The published way to act, for a batch of one: a history that grows, and a forward over its end."""

    def __init__(self, agent: DecisionAgent):
        self.policy = agent.policy.eval()

    @torch.inference_mode()
    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        new = {key: torch.as_tensor(observation[key]) for key in SEQUENCE_KEYS}
        new["observation"] = new["observation"].float()
        new["return_to_go"], new["timestep"] = new["return_to_go"].squeeze(-1), new["timestep"].squeeze(-1)
        history = tuple(new[key][:, None] for key in SEQUENCE_KEYS)
        if not episode_start[0]:
            history = tuple(torch.cat([old, x], 1)[:, -CONTEXT:] for old, x in zip(state, history, strict=True))
        prediction, _ = self.policy(dict(zip(SEQUENCE_KEYS, history, strict=True)))
        return self.policy.action.choose(prediction[:, -1], deterministic).numpy(), history


class Idle:
    """No policy: the limit."""

    def predict(self, observation, *_):
        rows = len(observation["observation"])
        return np.zeros((rows, 3), np.float32), torch.zeros(rows)


def steps_per_second(backbones: list[str], episodes: int, length: int, repeats: int) -> dict[str, float]:
    """Environment steps per second of ``episodes`` episodes, end to end."""
    envs = [
        ReturnToGo(make_env("Hopper-v5", terminate_when_unhealthy=False, max_episode_steps=length))
        for _ in range(episodes)
    ]
    loop = max(1, episodes // 10)  # one after the other: a tenth of them has the same rate

    def playing(agent: Any, n_envs: int, n_episodes: int) -> Callable[[], None]:
        def run() -> None:
            free = iter(envs)
            play(agent, lambda: next(free), [Episode(seed, 3600.0) for seed in range(n_episodes)], n_envs)

        return run

    runs = {OURS: playing(ReencodingLoop(make_agent("transformer", "interleaved")), 1, loop)}
    runs |= {name: playing(make_agent(name, "fused"), episodes, episodes) for name in backbones}
    runs["no policy"] = playing(Idle(), episodes, episodes)
    seconds = medians(runs, repeats, warm=1)
    return {name: (loop if name == OURS else episodes) * length / value for name, value in seconds.items()}


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
    rows = []
    for key in costs[options.batches[0]]:
        row: dict[str, Any] = dict(zip(("policy", "tokens"), key, strict=True))
        for batch, cost in costs.items():
            row[f"µs × {batch}"] = cost[key]
            for sign, reference in (("re-encoding", OURS), ("Hugging Face", THEIRS)):
                if (reference, "interleaved") in cost:
                    row[f"{sign} / this × {batch}"] = cost[reference, "interleaved"] / cost[key]
        rows.append(row)
    report(f"The policy: µs per environment step, context {CONTEXT}, {options.threads} thread(s)", rows, None)
    rates = steps_per_second(options.backbones, options.episodes, options.length, options.repeats)
    played = [{"policy": n, "environment steps/s": rate, "ratio": rate / rates[OURS]} for n, rate in rates.items()]
    title = f"{options.episodes} episodes of Hopper-v5, end to end, {options.threads} thread(s)"
    report(title, played, options.output, policy=rows)


if __name__ == "__main__":
    main()
