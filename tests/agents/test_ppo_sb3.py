"""Stable-Baselines3's own tools work on RecurrentPPO as on its algorithms: the usage that its documentation shows."""

import csv
import warnings

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    CheckpointCallback,
    EvalCallback,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from memory_tasks import Noise, Scripted, make_ppo, vector
from unroll.agents import RecurrentPPO
from unroll.policies.actor_critic import RecurrentActorCriticPolicy
from unroll.policies.backbones import BACKBONES, map_state


def cartpole(n_envs, seed=0):
    return make_vec_env("CartPole-v1", n_envs=n_envs, seed=seed)


def same_weights(a, b):
    pairs = zip(a.policy.state_dict().items(), b.policy.state_dict().values(), strict=True)
    return all(torch.equal(value, other) for (_, value), other in pairs)


def test_an_environment_may_be_given_by_its_id():
    agent = RecurrentPPO("MlpPolicy", "CartPole-v1", n_steps=8, n_epochs=1, device="cpu").learn(8)
    assert agent.num_timesteps == 8


def test_callbacks_and_normalised_environments_and_evaluation(tmp_path):
    env = VecNormalize(cartpole(4))
    agent = make_ppo(
        env, n_steps=32, learning_rate=LinearSchedule(1e-3, 0.0, 1.0), clip_range=LinearSchedule(0.2, 0.1, 1.0)
    )
    evaluation = VecNormalize(cartpole(2, seed=1), training=False, norm_reward=False)
    stop = StopTrainingOnRewardThreshold(reward_threshold=1e9)
    agent.learn(
        4 * 32 * 3,
        callback=[
            EvalCallback(
                evaluation,
                eval_freq=32,
                n_eval_episodes=2,
                callback_on_new_best=stop,
                log_path=str(tmp_path),
                best_model_save_path=str(tmp_path),
                verbose=0,
            ),
            CheckpointCallback(save_freq=32, save_path=str(tmp_path), save_vecnormalize=True),
        ],
    )
    assert agent.num_timesteps == 384
    assert (np.load(tmp_path / "evaluations.npz")["timesteps"] == [128, 256, 384]).all()
    assert (tmp_path / "rl_model_384_steps.zip").exists()
    assert (tmp_path / "rl_model_vecnormalize_384_steps.pkl").exists()
    np.testing.assert_array_equal(evaluation.obs_rms.mean, env.obs_rms.mean)  # EvalCallback keeps them the same
    best = RecurrentPPO.load(tmp_path / "best_model", device="cpu")
    assert evaluate_policy(best, evaluation, n_eval_episodes=4)[0] > 0
    assert agent.logger.name_to_value["train/clip_range"] == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_saved_agent_acts_the_same_and_learns_on_in_another_number_of_environments(backbone, tmp_path):
    agent = make_ppo(cartpole(4), backbone=backbone, n_steps=8).learn(64)
    agent.save(tmp_path / "agent")
    loaded = RecurrentPPO.load(tmp_path / "agent", device="cpu")
    assert same_weights(agent, loaded)
    obs = cartpole(3).reset()
    states = [None, None]
    for start in (True, False, False):
        results = [
            one.predict(obs, state, np.full(3, start), deterministic=True)
            for one, state in zip((agent, loaded), states, strict=True)
        ]
        states = [state for _, state in results]
        np.testing.assert_array_equal(results[0][0], results[1][0])
    map_state(lambda a, b: a if torch.equal(a, b) else pytest.fail("states differ"), *states)

    wider = RecurrentPPO.load(tmp_path / "agent", env=cartpole(7), device="cpu")
    wider.learn(7 * 8 * 2, reset_num_timesteps=False)
    assert wider.num_timesteps == 64 + 7 * 8 * 2
    map_state(lambda part: part if len(part) == 7 else pytest.fail(str(part.shape)), wider._state)
    assert not same_weights(agent, wider)


def test_parameters_can_be_got_set_and_exchanged():
    agent, other = (make_ppo(cartpole(2), seed=seed) for seed in (0, 1))
    assert not same_weights(agent, other)
    other.set_parameters(agent.get_parameters())
    assert same_weights(agent, other)


@pytest.mark.parametrize("changes", [{}, {"separate_critic": False}, {"reset_on_done": False}])
def test_a_policy_is_saved_and_loaded_by_itself_at_any_size(changes, tmp_path):
    agent = make_ppo(
        cartpole(2), backbone="minlstm", d_model=24, n_layers=3, backbone_options={"expansion": 2.0}, **changes
    )
    agent.policy.save(tmp_path / "policy")
    loaded = RecurrentActorCriticPolicy.load(tmp_path / "policy", device="cpu")
    obs = cartpole(3).reset()
    np.testing.assert_array_equal(agent.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert loaded.reset_on_done == agent.policy.reset_on_done
    assert evaluate_policy(loaded, cartpole(2), n_eval_episodes=2)[0] > 0


def test_learning_goes_on_where_it_stopped_with_the_memory_of_the_episodes_that_run():
    agent = make_ppo(vector(Noise), n_steps=8).learn(24)
    before = agent._state
    agent.learn(24, reset_num_timesteps=False)
    map_state(lambda a, b: a if torch.equal(a, b) else pytest.fail("begins anew"), before, agent._states[0])
    assert agent.num_timesteps == 48


def test_a_zip_in_running_episodes_has_no_memory_of_them_so_new_ones_begin(tmp_path):
    env = vector(lambda: Scripted({}))  # which never ends by itself, and shows how often it was stepped
    agent = make_ppo(env, n_steps=8).learn(24)
    agent.save(tmp_path / "agent")
    loaded = RecurrentPPO.load(tmp_path / "agent", env=env, force_reset=False, device="cpu")
    with pytest.warns(UserWarning, match="a zip holds no memory of the episodes .* every environment begins a new one"):
        loaded.learn(24, reset_num_timesteps=False)
    assert loaded.num_timesteps == 48
    assert loaded.rollout_buffer.episode_starts[0].all()

    # Where no episode runs, there is nothing to begin anew.
    fresh = make_ppo(vector(Noise), n_steps=8).learn(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.learn(24, reset_num_timesteps=False)


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_rewards_of_any_type_are_learned_from(dtype):
    class Whole(DummyVecEnv):
        """Pays whole numbers, and keeps the array in which it does."""

        def step_wait(self):
            observations, rewards, dones, infos = super().step_wait()
            self.paid = rewards.astype(dtype)
            return observations, self.paid, dones, infos

    env = Whole([lambda: Scripted({3: "truncated", 5: "truncated"})])
    agent = make_ppo(env, n_steps=5, gamma=0.5, n_epochs=1)
    torch.nn.init.zeros_(agent.policy.value_net.weight)
    torch.nn.init.constant_(agent.policy.value_net.bias, 3)
    agent.learn(5)
    np.testing.assert_allclose(agent.rollout_buffer.rewards[:, 0], [1, 2, 4.5, 4, 6.5])
    assert env.paid.tolist() == [5]


def test_episodes_can_be_counted_and_end_the_learning():
    agent = make_ppo(vector(Noise, 1), n_steps=8).learn(1000, StopTrainingOnMaxEpisodes(5))
    assert agent.num_timesteps < 1000


def test_a_callback_may_log_between_rollouts(tmp_path):
    agent = make_ppo(cartpole(2), n_steps=16, n_epochs=1)
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(128, callback=LogEveryNTimesteps(64), log_interval=None)
    agent.logger.close()
    rows = list(csv.DictReader((tmp_path / "progress.csv").read_text().splitlines()))
    assert [row["time/total_timesteps"] for row in rows] == ["64", "128"]


def test_the_same_seed_gives_the_same_weights():
    agents = [make_ppo(cartpole(2), seed=3, n_steps=16).learn(64) for _ in range(2)]
    assert same_weights(*agents)


def test_tensorboard_has_the_names_of_stable_baselines3(tmp_path):
    agent = make_ppo(vector(Noise), n_steps=16, tensorboard_log=str(tmp_path), clip_range_vf=0.3)
    agent.learn(3 * 16 * 3)
    events = EventAccumulator(str(tmp_path / "RecurrentPPO_1")).Reload()
    train = "approx_kl clip_fraction clip_range clip_range_vf entropy_loss explained_variance first_ratio_error"
    train += " grad_norm learning_rate loss policy_gradient_loss std value_loss"
    tags = set(events.Tags()["scalars"])
    assert {f"train/{name}" for name in train.split()} <= tags
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/rollout_fps", "time/train_fps"} <= tags
