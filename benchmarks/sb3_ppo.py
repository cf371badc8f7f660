"""Stable-Baselines3's PPO under a config of ours, scored as our runs are: the reference beside RecurrentPPO.

    python -m benchmarks.sb3_ppo --config configs/ppo/hopper.yaml --seed 0 --run_dir FOLDER

It takes from the config what the two have in common: environments, normalisation, sizes of rollout and minibatch,
schedules and coefficients. Its network is Stable-Baselines3's own, two MLPs of [64, 64]. Leaves the config and the
evaluation of the last weights in FOLDER, where compare.py --from finds them beside runs of ours, as backbone ``sb3``.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import torch
from stable_baselines3 import PPO

from unroll.agents import schemas
from unroll.agents.evaluation import scoring
from unroll.agents.evaluation.player import Player
from unroll.agents.ppo.config import PPOConfig
from unroll.agents.ppo.player import PPOActor
from unroll.agents.ppo.training import falling, vector_env
from unroll.configs import load_config, save_config
from unroll.envs.make import make_env


def main(arguments: list[str]) -> None:
    config = load_config(arguments, schemas(), "python -m benchmarks.sb3_ppo")
    assert isinstance(config, PPOConfig)
    assert config.run_dir is not None
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads or torch.get_num_threads())

    env = vector_env(config)
    agent = PPO(
        "MlpPolicy",
        env,
        learning_rate=falling(config.learning_rate, config.schedule),
        n_steps=config.n_steps,
        batch_size=config.batch_size or config.n_steps * config.n_envs // 4,
        n_epochs=config.n_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=falling(config.clip_range, config.clip_schedule),
        ent_coef=config.ent_coef,
        vf_coef=config.vf_coef,
        max_grad_norm=config.max_grad_norm,
        use_sde=config.use_sde,
        sde_sample_freq=config.sde_sample_freq,
        seed=config.seed,
        device="cpu",
    )
    began = time.perf_counter()
    agent.learn(config.steps)
    seconds = time.perf_counter() - began
    actor = PPOActor(agent, agent.get_vec_normalize_env())  # type: ignore[arg-type]
    facts = {"agent": "Stable-Baselines3's PPO", "steps": agent.num_timesteps, "memory": "none", "seconds": seconds}
    player = Player(actor, config.env, lambda **kwargs: make_env(config.env, **kwargs), facts)
    result = scoring.evaluate(player, config.evaluation.episodes, config.evaluation.seed)
    named = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, name="sb3"))
    save_config(named, folder / "config.yaml")
    scoring.write_evaluation(result, folder / "evaluation.json")


if __name__ == "__main__":
    main(sys.argv[1:])
