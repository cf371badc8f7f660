"""Stable-Baselines3's PPO under a config of ours, scored as our runs are: the reference beside RecurrentPPO.

    python -m benchmarks.sb3_ppo --config configs/ppo/hopper.yaml --seed 0 --run_dir FOLDER
    python -m benchmarks.sb3_ppo --recurrent --config configs/ppo/popgym.yaml --seed 0 --run_dir FOLDER

Of the config it takes what the two have in common: environments, normalisation, sizes of rollout and minibatch,
schedules and coefficients. Its network is Stable-Baselines3's own, two MLPs of [64, 64]; ``--recurrent`` takes
sb3-contrib's RecurrentPPO (the extra ``peers``), with an LSTM of the config's width before each. It leaves the config
and the evaluation of the last weights in FOLDER, where ``unroll compare --from`` finds them beside runs of ours, as
backbone ``sb3`` or ``sb3_contrib``. One's own environment is ``--env my_module:MyEnv-v0``.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from unroll.agents.evaluation import scoring
from unroll.agents.evaluation.player import Player
from unroll.agents.ppo.config import PPOConfig
from unroll.agents.ppo.training import falling, vector_env
from unroll.configs import load_config, save_config
from unroll.envs.make import make_env
from unroll.envs.own import registered_id
from unroll.own import import_environment


class Actor:
    """A PPO of Stable-Baselines3 in environments without VecNormalize around them.

    Its state has the batch first, as ``play`` expects; sb3-contrib's has it second.
    """

    def __init__(self, agent: OnPolicyAlgorithm, normalizer: VecNormalize | None):
        self.agent = agent
        self.normalizer = normalizer

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        if self.normalizer is not None and self.normalizer.norm_obs:
            observation = self.normalizer.normalize_obs(observation)
        if state is not None:
            state = tuple(part.numpy().swapaxes(0, 1) for part in state)
        actions, after = self.agent.predict(observation, state, episode_start, deterministic)
        if after is None:
            return actions, None
        return actions, tuple(torch.from_numpy(part.swapaxes(0, 1).copy()) for part in after)


def make_peer(config: PPOConfig, recurrent: bool) -> OnPolicyAlgorithm:
    """Make the untrained peer, with the settings that it has in common with ours."""
    peer: type[OnPolicyAlgorithm] = PPO
    policy = "MlpPolicy"
    policy_kwargs: dict[str, Any] = {}
    if recurrent:
        from sb3_contrib import RecurrentPPO

        peer = RecurrentPPO
        policy = "MlpLstmPolicy"
        policy_kwargs = {"lstm_hidden_size": config.backbone.d_model, "n_lstm_layers": config.backbone.n_layers}
    return peer(
        policy,
        vector_env(config),
        policy_kwargs=policy_kwargs,
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


def main(arguments: list[str]) -> None:
    """Train, score and save."""
    recurrent = "--recurrent" in arguments
    arguments = [word for word in arguments if word != "--recurrent"]
    config = load_config(arguments, {"ppo": PPOConfig}, "python -m benchmarks.sb3_ppo")
    assert isinstance(config, PPOConfig)
    import_environment(arguments, "--env", config.env)
    env_id = registered_id(config.env)
    assert config.run_dir is not None
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads or torch.get_num_threads())

    agent = make_peer(config, recurrent)
    began = time.perf_counter()
    agent.learn(config.steps)
    seconds = time.perf_counter() - began

    # The evaluation is that of our runs, and so is what it leaves.
    actor = Actor(agent, agent.get_vec_normalize_env())
    facts = {
        "agent": f"{type(agent).__module__.partition('.')[0]}'s {type(agent).__name__}",
        "steps": agent.num_timesteps,
        "memory": "carried" if recurrent else "none",
        "seconds": seconds,
    }
    player = Player(
        actor,
        env_id,
        make_env=lambda **kwargs: make_env(
            env_id, previous_action=config.previous_action, env_kwargs=config.env_kwargs, **kwargs
        ),
        show=lambda env: env,
        facts=facts,
    )
    result = scoring.evaluate(player, config.evaluation.episodes, config.evaluation.seed)

    # The report names a run by the backbone in its config.
    name = "sb3_contrib" if recurrent else "sb3"
    named = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, name=name))
    save_config(named, folder / "config.yaml")
    scoring.write_evaluation(result, folder / "evaluation.json")


if __name__ == "__main__":
    main(sys.argv[1:])
