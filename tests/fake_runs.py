"""Run folders as unroll train leaves them, without the training."""

import json

import numpy as np

from unroll.agents import schemas
from unroll.configs import load_config, save_config

PPO = ["--agent", "ppo", "--env", "TMaze10-v0", "--steps", "1000"]
DECISION = ["--steps", "1000"]


def fake_run(folder, backbone, seed, score, arguments=PPO, targets=(None,), normalized=True, curve=True, **changes):
    """A finished run whose evaluation has this mean score; ``changes`` go into its evaluation."""
    folder.mkdir(parents=True)
    config = load_config([*arguments, "--backbone.name", backbone, "--seed", str(seed)], schemas())
    save_config(config, folder / "config.yaml")
    results = [
        {
            "target_return": target,
            "returns": [score - 1.0 + i, score + 1.0 - i],
            "lengths": [5, 5],
            "return_mean": score + i,
            "return_interval": [score - 1, score + 1],
            "normalized_score": 10 * (score + i) if normalized else None,
            "normalized_interval": None,
        }
        for i, target in enumerate(targets)
    ]
    evaluation = {
        "env": "TMaze10-v0",
        "versions": {"torch": "2", "mujoco": "4"},
        "machine": "a machine",
        "reference": "toy" if normalized else None,
        "agent": "RecurrentPPO" if arguments is PPO else "DecisionAgent",
        "memory": "carried",
        "episodes": 2,
        "seeds": [7, 8],
        "results": results,
        "step_latency_us": 100.0 + seed,
    } | changes
    if arguments is PPO:
        evaluation["ablation"] = results[0] | {"return_mean": score / 2}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    lines = [{"step": 1000, "perf/parameters": 50.0, "perf/peak_memory_mb": 300.0}]
    for step in np.linspace(100, 1000, 10) if curve else [1000]:
        value = 10 * score * step / 1000
        lines.append({"step": int(step), "eval/normalized_score": value, "eval/return_mean": value / 10})
        if arguments is PPO:
            lines[-1]["eval/return_mean_without_memory"] = value / 20
        lines.append({"step": int(step), "perf/train_tokens_per_s": 500.0 + len(backbone), "train/loss": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10')
    return folder


def fake_grid(top, scores, experiment="maze", **kwargs):
    """``scores``: {backbone: the score of each seed}."""
    for backbone, values in scores.items():
        for seed, score in enumerate(values):
            fake_run(top / experiment / backbone / f"seed{seed}", backbone, seed, score, **kwargs)
    return top
