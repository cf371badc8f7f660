"""Fingerprints of what the agents learn and play: they stay the same however the code is moved or rewritten.

``python tests/golden/fingerprints.py`` says what changed. With ``--write`` they are written anew, which is right only
after a change that was meant to change what is learned; the commit says which."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parents[1])]  # for the script, which pytest does not run

from toy import replay, toy_episodes, whole_episode  # noqa: E402
from unroll.agents import DecisionAgent, RecurrentPPO  # noqa: E402
from unroll.envs import make_vec_env  # noqa: E402
from unroll.envs.datasets.sampling import SEQUENCE_KEYS  # noqa: E402
from unroll.policies.backbones import BACKBONES  # noqa: E402

UPDATES = 20
OPTIONS: dict[str, dict[str, Any]] = {"mingru": {"conv": 3}, "minlstm": {"candidate": "tanh"}}


def of_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """For each tensor its norm and the sum of its numbers weighted by their place, in float64."""
    found = {}
    for name, tensor in tensors.items():
        values = tensor.detach().double().flatten()
        weights = torch.linspace(-1, 1, len(values), dtype=torch.float64) if len(values) > 1 else torch.ones(1).double()
        found[name] = [float(values.norm()), float(values @ weights)]
    return found


def of_decision(backbone: str, discrete: bool) -> dict[str, Any]:
    """A decision agent after 20 updates on the toy task: its losses, its weights and what it does."""
    torch.manual_seed(0)
    episodes = toy_episodes(20, discrete)
    agent = DecisionAgent(
        episodes,
        context=6,
        batch_size=8,
        warmup_steps=5,
        device="cpu",
        policy_kwargs=dict(
            backbone=backbone,
            d_model=8,
            n_layers=2,
            backbone_options=OPTIONS.get(backbone, {}),
            tokens="interleaved" if discrete else "fused",
            condition="return",
            action_modes=0,
        ),
    )
    agent._total_timesteps = UPDATES
    losses = [float(agent.update()["train/loss"]) for _ in range(UPDATES)]
    agent.policy.eval()
    steps = whole_episode(episodes, 3)
    prediction, _ = agent.policy({key: steps[key] for key in SEQUENCE_KEYS})
    acted = replay(agent, episodes, 3)
    return {
        "losses": losses,
        "weights": of_tensors(agent.policy.state_dict()),
        "predicted": of_tensors({"prediction": prediction, "acted": torch.as_tensor(acted)}),
    }


def of_ppo(backbone: str, env_id: str) -> dict[str, Any]:
    """RecurrentPPO after 20 updates: the last rollout that it played, and its weights."""
    env = make_vec_env(env_id, n_envs=2, seed=1)
    agent = RecurrentPPO(
        "MlpPolicy",
        env,
        n_steps=16,
        sequence_length=8,
        batch_size=16,
        n_epochs=2,
        backbone=backbone,
        seed=0,
        device="cpu",
        policy_kwargs=dict(d_model=8, n_layers=1, net_arch=[8], backbone_options=OPTIONS.get(backbone, {})),
    )
    agent.learn(16 * 2 * UPDATES // 4)
    buffer = agent.rollout_buffer
    rollout = {
        name: torch.from_numpy(np.asarray(getattr(buffer, name), np.float64))
        for name in ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages")
    }
    return {"rollout": of_tensors(rollout), "weights": of_tensors(agent.policy.state_dict())}


def cases() -> dict[str, Any]:
    """Name → a function that computes the fingerprint."""
    found: dict[str, Any] = {}
    for backbone in BACKBONES:
        found[f"decision {backbone} box"] = lambda backbone=backbone: of_decision(backbone, False)
        found[f"decision {backbone} discrete"] = lambda backbone=backbone: of_decision(backbone, True)
        found[f"ppo {backbone} TMaze10-v0"] = lambda backbone=backbone: of_ppo(backbone, "TMaze10-v0")
    found["ppo gru PendulumNoVel-v1"] = lambda: of_ppo("gru", "PendulumNoVel-v1")
    return found


def largest_difference(a: Any, b: Any) -> float:
    """Over all numbers of two fingerprints, relative where they are above 1; infinite where their names differ."""
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return float("inf")
        return max((largest_difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list):
        return max((largest_difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    return abs(a - b) / max(1.0, abs(a))


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = FOLDER / "fingerprints.json"
    now = {name: compute() for name, compute in cases().items()}
    if path.exists():
        before = json.loads(path.read_text())
        for name in now:
            print(f"{largest_difference(before[name], now[name]):.3g}  {name}" if name in before else f"new  {name}")
    if "--write" in sys.argv:
        path.write_text(json.dumps(now, indent=None, separators=(",", ":")) + "\n")
