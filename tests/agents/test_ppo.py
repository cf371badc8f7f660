"""RecurrentPPO learns from what it saw: returns worked by hand, whole sequences, options that do what they say."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from memory_tasks import Noise, Recall, Scripted, make_ppo, rollout, vector
from unroll.agents import RecurrentPPO
from unroll.agents.ppo.checkpoint import read_ppo, restore_ppo, save_ppo
from unroll.agents.ppo.loss import PPOLoss
from unroll.errors import BackboneError, EnvError, HyperparameterError, TrainingError
from unroll.policies.backbones import BACKBONES, Backbone, map_state
from unroll.policies.backbones.mingru import MinGRU


def steps_of(agent, n=1):
    return n * agent.n_steps * agent.n_envs


def with_constant_value(agent, value):
    torch.nn.init.zeros_(agent.policy.value_net.weight)
    torch.nn.init.constant_(agent.policy.value_net.bias, value)
    return agent


def test_advantages_and_returns_are_those_worked_by_hand_with_a_truncated_and_a_terminated_episode():
    """Rewards 1 2 3 4, the second step truncated, the third terminated, V = 10 everywhere, γ = 1/2, λ = 1/2.

    t = 4: δ = 4 + 5 - 10 = -1           A = -1
    t = 3: δ = 3 - 10 = -7 (terminated)   A = -7
    t = 2: r = 2 + 5 (truncated), δ = 7 - 10 = -3, A = -3
    t = 1: δ = 1 + 5 - 10 = -4            A = -4 + 1/4·(-3) = -4.75
    """
    env = DummyVecEnv([lambda: Scripted({2: "truncated", 3: "terminated"})])
    agent = with_constant_value(make_ppo(env, n_steps=4, gamma=0.5, gae_lambda=0.5, n_epochs=1, batch_size=4), 10)
    agent.learning_rate = agent.lr_schedule = lambda _: 0.0
    agent.learn(4)
    np.testing.assert_allclose(agent.rollout_buffer.advantages[:, 0], [-4.75, -3, -7, -1], rtol=1e-6)
    np.testing.assert_allclose(agent.rollout_buffer.returns[:, 0], [5.25, 7, 3, 9], rtol=1e-6)
    assert agent.rollout_buffer.episode_starts[:, 0].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_truncated_episode_is_worth_its_last_observation_under_its_own_memory(backbone):
    ends = {5: "truncated", 6: "truncated", 12: "truncated"}
    envs = DummyVecEnv([lambda: Scripted(ends), lambda: Scripted({}), lambda: Scripted({5: "truncated"})])
    agent = make_ppo(envs, n_steps=12, gamma=0.9, backbone=backbone, n_epochs=1)
    agent.policy.value_net.weight.data.mul_(10)
    paid = {}

    class Rewards(BaseCallback):
        def _on_step(self):
            paid[self.num_timesteps // 3] = self.locals["rewards"]  # bootstrapped in place, after this call
            return True

        def _on_rollout_end(self):
            self.model.policy.set_training_mode(False)
            seen = [[0.0, *(t + 0.5 for t in range(1, 6))], [5.0, 6.5], [6.0, *(t + 0.5 for t in range(7, 13))]]
            # (environment, step of the end, observations of the episode to its very last)
            for env, end, episode in ((0, 5, seen[0]), (2, 5, seen[0]), (0, 6, seen[1]), (0, 12, seen[2])):
                obs = torch.tensor(episode).view(1, -1, 1)
                actions, never = torch.zeros(obs.shape[:2]), torch.zeros(obs.shape[:2], dtype=torch.bool)
                with torch.no_grad():
                    values, *_ = self.model.policy.evaluate_sequences(
                        obs, actions, self.model.policy.initial_state(1), never
                    )
                    value = values[0, -1]
                assert paid[end][env] == pytest.approx(end + 0.9 * value.item(), rel=1e-4)
                assert abs(value.item()) > 1e-3
            assert paid[5][1] == 5  # an episode that goes on

    agent.learn(36, Rewards())


def test_the_state_is_stored_before_each_sequence_alone_with_the_batch_first():
    agent = make_ppo(vector(Noise), n_steps=16, sequence_length=4)
    sequences, _ = rollout(agent, 1)
    assert len(agent._states) == 4
    assert len(sequences) == 12
    assert sequences.reset.shape == (12, 4)
    map_state(lambda part: part if part.shape[0] == 12 else pytest.fail(str(part.shape)), sequences.state)
    for k in range(4):  # sequence k·N + e is part k of environment e
        for e in range(3):
            np.testing.assert_array_equal(
                sequences.observations[3 * k + e], agent.rollout_buffer.observations[4 * k : 4 * k + 4, e]
            )


@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 12), (4, [4] * 3), (5, [5, 5, 2]), (50, [12])])
def test_minibatches_are_all_the_sequences_each_once(size, sizes):
    sequences, _ = rollout(make_ppo(vector(Noise), sequence_length=4), 1)
    minibatches = [sequences.select(rows) for rows, _ in sequences.minibatches(size)]
    assert [len(batch) for batch in minibatches] == sizes
    drawn = torch.cat([batch.observations for batch in minibatches]).flatten(1)
    whole = sequences.observations.flatten(1)
    assert sorted(drawn.tolist()) == sorted(whole.tolist())
    assert size == 50 or drawn.tolist() != whole.tolist()


@pytest.mark.parametrize(("wanted", "floor"), [(True, 0.0), (True, 0.5), (False, 0.5)])
def test_advantages_are_normalised_over_the_rollout_and_not_in_each_minibatch(wanted, floor, monkeypatch):
    seen = []
    forward = PPOLoss.forward

    def spy(loss, batch, **settings):
        seen.append(batch.advantages)
        return forward(loss, batch, **settings)

    monkeypatch.setattr(PPOLoss, "forward", spy)
    sizes = dict(sequence_length=4, batch_size=8, n_epochs=1)
    agent = make_ppo(vector(Noise), **sizes, normalize_advantage=wanted, advantage_floor=floor)
    agent.largest_deviation = 200.0
    agent.learn(steps_of(agent))
    assert agent.largest_deviation == 200
    raw, drawn = torch.from_numpy(agent.rollout_buffer.advantages), torch.cat(seen)
    expected = (raw - raw.mean()) / raw.std().clamp(min=200 * floor) if wanted else raw
    torch.testing.assert_close(drawn.flatten().sort().values, expected.flatten().sort().values, rtol=1e-4, atol=1e-5)
    assert max(part.mean().abs() for part in seen) > 0.05 * expected.std()


def test_the_largest_deviation_of_advantages_is_kept_and_saved(tmp_path):
    agent = make_ppo(vector(Noise))
    agent.learn(2 * steps_of(agent))
    assert agent.largest_deviation >= float(np.std(agent.rollout_buffer.advantages))
    save_ppo(agent, tmp_path / "agent", {})
    other = make_ppo(vector(Noise))
    restore_ppo(other, tmp_path / "agent", *read_ppo(tmp_path / "agent"))
    assert other.largest_deviation == agent.largest_deviation > 0


def test_a_checkpoint_of_before_keeps_the_values_that_it_says(tmp_path):
    """Its network says values in the unit of the rewards."""
    agent = make_ppo(vector(Noise))
    save_ppo(agent, tmp_path / "agent", {})
    tensors, state = read_ppo(tmp_path / "agent")
    old = {name: value for name, value in tensors.items() if "value_scale" not in name}
    assert len(old) == len(tensors) - 2
    agent.learn(3 * steps_of(agent))
    assert agent.policy.value_scale.count == 3
    restore_ppo(agent, tmp_path / "agent", old, state)
    last = agent.policy.value_net
    assert torch.equal(last.weight, old["policy.value_net.weight"])
    features = torch.randn(5, last.in_features)
    said = last(features)
    scale = agent.policy.value_scale
    torch.testing.assert_close(scale(last(features)), said)
    scale.update(torch.full((8,), 900.0), torch.zeros(8), last)
    torch.testing.assert_close(scale(last(features)), said)


def test_a_checkpoint_of_before_has_the_gates_of_then(tmp_path):
    """None of them was signed. The zip of Stable-Baselines3 brings them too."""
    agent = make_ppo(vector(Noise), backbone="mingru", backbone_options=dict(signed=False), d_model=32)
    save_ppo(agent, tmp_path / "agent", {})
    agent.policy_kwargs["backbone_options"] = {}
    agent.save(tmp_path / "zip")
    observation = agent.env.reset()
    actions, state = agent.predict(observation, deterministic=True)

    other = make_ppo(vector(Noise), backbone="mingru", d_model=32)
    assert (other.policy.encoders[0].backbone.blocks[0].mixer.turn == -1).sum() == 2
    restore_ppo(other, tmp_path / "agent", *read_ppo(tmp_path / "agent"))
    for one in (other, RecurrentPPO.load(tmp_path / "zip")):
        again, after = one.predict(observation, deterministic=True)
        assert np.array_equal(again, actions)
        map_state(torch.testing.assert_close, after, state)


def test_a_clipped_value_moves_from_the_first_update_on():
    """There the unit of the values changes, and what is clipped around must be in the new one."""

    class Rich(Noise):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation, 200 + reward, *rest

    agent = make_ppo(vector(Rich), clip_range_vf=0.2, sequence_length=4)
    moved = []
    inner = agent._loss.forward

    def forward(batch, **settings):
        with torch.no_grad():
            values, *_ = agent.policy.evaluate_sequences(batch.observations, batch.actions, batch.state, batch.reset)
        moved.append(float((values - batch.values).abs().max()))
        return inner(batch, **settings)

    agent._loss.forward = forward
    for _ in range(3):
        moved.clear()
        before = agent.policy.value_net.weight.clone()
        agent.learn(steps_of(agent), reset_num_timesteps=False)
        assert moved[0] < 1e-3
        assert not torch.equal(agent.policy.value_net.weight, before)
    assert agent.policy.value_scale.square > 1000


def test_states_that_are_made_anew_are_those_of_the_policy_as_it_is_now():
    agent = make_ppo(vector(Noise), sequence_length=4)
    sequences, _ = rollout(agent, 1)
    agent.policy.set_training_mode(False)
    same = agent._with_new_states(sequences)
    map_state(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5) or a, sequences.state, same.state)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(0.1)
    state, n = agent._states[0], agent.n_envs
    for t in range(4):  # by single steps from the beginning of the rollout
        obs, reset = sequences.observations[:n, t], sequences.reset[:n, t]
        with torch.no_grad():
            state = agent.policy(obs, state, reset)[3]
    new = map_state(lambda part: part[n : 2 * n], agent._with_new_states(sequences).state)
    map_state(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5) or a, new, state)


def test_an_agent_whose_states_are_made_anew_learns():
    agent = make_ppo(vector(Noise), sequence_length=4, recompute_states=True)
    agent.learn(steps_of(agent, 2))
    assert np.isfinite(agent.logger.name_to_value["train/loss"])


def test_a_memory_that_is_kept_reaches_the_next_episode_and_no_further_than_a_new_beginning():
    agent = make_ppo(vector(Noise), reset_on_done=False)
    obs = agent.env.reset()
    _, state = agent.predict(obs)
    start = np.ones(3, bool)
    kept = agent.predict(obs, state, start)[1]
    ignored = agent.predict(obs, state)[1]
    map_state(lambda a, b: a if torch.equal(a, b) else pytest.fail("episode_start was heard"), kept, ignored)
    agent.learn(steps_of(agent))
    agent._setup_learn(1, reset_num_timesteps=False)
    assert agent._state is not None
    agent._setup_learn(1)  # the environments begin
    assert agent._state is None


def test_a_callback_that_stops_in_mid_rollout_leaves_the_observation_that_belongs_to_the_memory():
    agent = make_ppo(DummyVecEnv([lambda: Scripted({})]))

    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 5

    agent.learn(100, Stop())
    assert agent._last_obs.item() == 5.5
    agent.learn(steps_of(agent), reset_num_timesteps=False)
    assert agent.rollout_buffer.observations[:, 0, 0].tolist() == [t + 0.5 for t in range(5, 21)]


class Sees(BaseCallback):
    """Keeps what the agent says in each step that was seen before it, and that an episode began."""

    def _on_training_start(self):
        self.seen = []
        self.began = []

    def _on_step(self):
        self.seen.append(self.model._last_obs.copy())
        self.began.append(self.model._last_episode_starts.copy())
        return True


def test_callbacks_find_the_observation_of_their_step_as_in_stable_baselines3():
    callback = Sees()
    agent = make_ppo(vector(Noise)).learn(48, callback)
    np.testing.assert_array_equal(callback.seen, agent.rollout_buffer.observations)
    np.testing.assert_array_equal(callback.began, agent.rollout_buffer.episode_starts)


def test_the_learning_ends_where_the_policy_moved_too_far():
    agent = make_ppo(vector(Noise), learning_rate=0.1, n_epochs=50, target_kl=0.01)
    agent.learn(steps_of(agent))
    assert 1 <= agent._n_updates < 50


def test_a_loss_that_is_not_finite_stops_the_learning_before_it_reaches_the_weights():
    agent = make_ppo(vector(Noise))

    class Broken(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.model.rollout_buffer.returns[3, 1] = np.nan

    with pytest.raises(TrainingError, match=r"train/value_loss became nan at step 48, learning rate 0.0003"):
        agent.learn(steps_of(agent), Broken())
    assert all(parameter.isfinite().all() for parameter in agent.policy.parameters())


def test_a_learning_rate_that_throws_the_weights_away_stops_the_learning():
    agent = make_ppo(vector(Noise), learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"at step 48, learning rate 1e\+30: lower the learning rate"):
        agent.learn(steps_of(agent))


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_an_observation_that_is_not_finite_is_told_with_its_environment(observation):
    class Broken(Noise):
        def step(self, action):
            observation, *rest = super().step(action)
            (observation["a"] if isinstance(observation, dict) else observation)[0] = np.nan
            return observation, *rest

    env = DummyVecEnv([lambda: Noise(observation), lambda: Broken(observation)])
    agent = make_ppo(env, "MultiInputPolicy" if observation == "dict" else "MlpPolicy")
    where = "a of environment 1" if observation == "dict" else "environment 1"
    with pytest.raises(EnvError, match=f"the observation of {where} is not finite at step 2"):
        agent.learn(steps_of(agent))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(n_steps=16, sequence_length=5), "sequence_length 5 is not a divisor of n_steps 16"),
        (dict(n_steps=16, sequence_length=8, batch_size=12), "batch_size 12: a minibatch is whole sequences of 8"),
        (dict(n_steps=16, batch_size=0), "so 16 would do"),
        (dict(backbone="gru", policy_kwargs=dict(backbone="lstm")), "backbone is gru, and lstm in policy_kwargs"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(sizes, message):
    with pytest.raises(HyperparameterError, match=message):
        RecurrentPPO("MlpPolicy", vector(Noise), **sizes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(n_steps=0), "n_steps: 0 does not conform to restriction v>0"),
        (dict(n_steps=-4), "n_steps: -4 does not conform to restriction v>0"),
        (dict(n_epochs=0), "n_epochs: 0 does not conform to restriction v>0"),
        (dict(n_epochs=2.5), "n_epochs is an int, not 2.5"),
        (dict(sequence_length=0), "sequence_length: 0 does not conform to restriction v>0"),
        (dict(sequence_length=-8), "sequence_length: -8 does not conform to restriction v>0"),
        (dict(max_grad_norm=None), "max_grad_norm is a finite float, not None"),
        (dict(max_grad_norm=0), "max_grad_norm: 0 does not conform to restriction v>0"),
        (dict(ent_coef="auto"), "ent_coef is a finite float, not 'auto'"),
        (dict(vf_coef=None), "vf_coef is a finite float, not None"),
        (dict(gamma=1.5), "gamma: 1.5 does not conform to restriction v>=0 and v<=1"),
        (dict(gamma=-1), "gamma: -1 does not conform to restriction v>=0 and v<=1"),
        (dict(gamma="0.99"), "gamma is a finite float, not '0.99'"),
        (dict(gae_lambda=2.0), "gae_lambda: 2.0 does not conform to restriction v>=0 and v<=1"),
        (dict(clip_range=-1.0), "clip_range: -1.0 does not conform to restriction v>0"),
        (dict(clip_range="0.2"), "clip_range is a finite float, not '0.2'"),
        (dict(clip_range_vf=float("nan")), "clip_range_vf is a finite float, not nan"),
        (dict(target_kl=-1.0), "target_kl: -1.0 does not conform to restriction v>0"),
        (dict(advantage_floor=-1.0), "advantage_floor: -1.0 does not conform to restriction v>=0 and v<=1"),
        (dict(advantage_floor=float("nan")), "advantage_floor is a finite float, not nan"),
        (dict(normalize_advantage="no"), "normalize_advantage is a bool, not 'no'"),
        (dict(learning_rate="1e-3"), "learning_rate is a finite float, not '1e-3'"),
    ],
)
def test_numbers_that_no_update_can_compute_with_are_one_line(wrong, message, tmp_path):
    with pytest.raises(HyperparameterError, match=f"^{message}$"):
        make_ppo(vector(Noise), **wrong)
    make_ppo(vector(Noise), max_grad_norm=float("inf")).save(tmp_path / "agent")
    with pytest.raises(HyperparameterError, match=f"^{message}$"):
        RecurrentPPO.load(tmp_path / "agent", **wrong)


@pytest.mark.parametrize("name", ["reset_on_done", "separate_critic"])
def test_a_word_is_no_yes(name):
    with pytest.raises(HyperparameterError, match=f"^{name} is a bool, not 'no'$"):
        RecurrentPPO("MlpPolicy", vector(Noise), policy_kwargs={name: "no"})


def test_schedules_may_fall_to_nothing():
    def falls(left):
        return 0.1 * left

    make_ppo(vector(Noise), learning_rate=falls, clip_range=falls, clip_range_vf=falls, gamma=1, gae_lambda=0)


def test_minibatches_of_unequal_size_are_told_of():
    with pytest.warns(UserWarning, match="12 sequences do not divide into minibatches of 5: the last has 2"):
        make_ppo(vector(Noise), sequence_length=4, batch_size=20)


@pytest.mark.filterwarnings("ignore:the rollout's 12 sequences")
def test_the_speed_counts_the_steps_that_were_learned_from(monkeypatch):
    learned = []
    monkeypatch.setattr(RecurrentPPO, "_log_speed", lambda self, _, sequences: learned.append(sequences))
    make_ppo(vector(Noise, 3), sequence_length=4, batch_size=20, n_epochs=2).learn(48)
    assert learned == [2 * (5 + 5 + 2)]
    # The minibatch that tells that the policy is too far from the one that acted is not learned from.
    make_ppo(vector(Noise, 3), sequence_length=4, batch_size=16, target_kl=1e-9, learning_rate=0.1).learn(48)
    assert learned[1:] == [4]


def test_a_batch_size_that_is_set_between_two_calls_of_learn_counts_as_in_stable_baselines3():
    agent = make_ppo(vector(Noise, 2), batch_size=32, sequence_length=8, n_epochs=1).learn(32)
    steps = []
    agent.policy.optimizer.register_step_post_hook(lambda *_: steps.append(agent.batch_size))
    for agent.batch_size in (32, 8, np.int64(16), None):
        agent.learn(32, reset_num_timesteps=False)
    assert steps == [32] + [8] * 4 + [16] * 2 + [None] * 4
    agent.batch_size = 12
    with pytest.raises(HyperparameterError, match=r"^batch_size 12: a minibatch is whole sequences of 8 steps"):
        agent.learn(32, reset_num_timesteps=False)


def test_a_sequence_length_that_is_set_between_two_calls_of_learn_counts():
    agent = make_ppo(vector(Noise, 2), n_steps=16, n_epochs=1).learn(32)
    assert len(agent._states) == 1
    for agent.sequence_length, states in ((4, 4), (np.int64(8), 2), (None, 1)):
        agent.learn(32, reset_num_timesteps=False)
        assert len(agent._states) == states
    agent.batch_size = 8.0  # which the sequences follow
    assert len(agent.learn(32, reset_num_timesteps=False)._states) == 2
    agent.sequence_length = 5
    with pytest.raises(HyperparameterError, match=r"^sequence_length 5 is not a divisor of n_steps 16$"):
        agent.learn(32, reset_num_timesteps=False)


def test_dropout_is_refused():
    with pytest.raises(BackboneError, match=r"attention_dropout must be 0 in PPO, not 0\.1"):
        make_ppo(vector(Noise), backbone="transformer", backbone_options={"attention_dropout": 0.1})


@pytest.mark.parametrize("action", ["discrete", "box"])
@pytest.mark.parametrize("observation", ["box", "dict"])
def test_an_observation_that_is_not_finite_chooses_no_action(observation, action):
    env = vector(lambda: Noise(observation, action))
    agent = make_ppo(env, "MultiInputPolicy" if observation == "dict" else "MlpPolicy")
    obs = env.reset()
    (obs["a"] if observation == "dict" else obs)[1] = np.nan
    what = "a" if observation == "dict" else "observation"
    with pytest.raises(ValueError, match=f"^{what} of environment 1 is not finite, so that no action can be chosen$"):
        agent.predict(obs)


def test_a_state_of_another_number_of_environments_is_refused():
    agent = make_ppo(vector(Noise))
    obs = agent.env.reset()
    _, state = agent.predict(obs)
    with pytest.raises(ValueError, match="the state is of 3 environments, the observation of 2"):
        agent.predict(obs[:2], state)


def test_methods_of_the_policy_take_one_row_for_no_other():
    policy = make_ppo(vector(Noise)).policy
    obs, state = torch.randn(3, *policy.observation_space.shape), policy.initial_state(3)
    for method in (policy.predict_values, policy.get_distribution, policy.forward, policy.sample):
        for wrong in (torch.ones(1), torch.ones(3, 1), torch.tensor(True)):
            with pytest.raises(ValueError, match=r"^reset \[B\] is bool and \(3,\) here, not torch.bool and \(.*\)$"):
                method(obs, state, wrong)
        with pytest.raises(ValueError, match=r"^the state before \[B, …\] has 1 rows, the step 3$"):
            method(obs, policy.initial_state(1))


def test_one_observation_gives_one_action_and_goes_on_from_its_state():
    agent = make_ppo(vector(Noise), backbone="lstm")
    obs = agent.env.reset()
    actions, states = agent.predict(obs, deterministic=True)
    action, state = agent.predict(obs[1], deterministic=True)
    assert action.shape == (2,)
    np.testing.assert_allclose(action, actions[1], rtol=1e-4)
    again, _ = agent.predict(obs[1], state, deterministic=True)
    np.testing.assert_allclose(again, agent.predict(obs, states, deterministic=True)[0][1], rtol=1e-4)
    assert not np.allclose(again, action)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_learns_to_recall_what_it_saw_first(backbone):
    env = vector(Recall, 8)
    agent = make_ppo(env, backbone=backbone, n_steps=32, learning_rate=3e-3, n_epochs=6, gamma=0.9)
    for _ in range(12):
        agent.learn(steps_of(agent, 2), reset_num_timesteps=False)
        reward, _ = evaluate_policy(agent, env, n_eval_episodes=40)
        if reward == 1:
            break
    assert reward == 1

    class Forgetful:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return agent.predict(observation, None, None, deterministic)[0], None

    assert evaluate_policy(Forgetful(), env, n_eval_episodes=100)[0] < 0.8


class Dropping(MinGRU):
    def forward(self, x, state=None, reset=None):
        return super().forward(torch.nn.functional.dropout(x, 0.3, self.training), state, reset)


class Declaring(Backbone):
    def __init__(self, d_model: int, n_layers: int, dropout: float = 0.1):
        super().__init__()

    def initial_state(self, batch_size):
        return ()

    def forward(self, x, state=None, reset=None):
        return x, ()


def test_a_policy_that_is_another_function_while_it_learns_is_told_of_once(caplog):
    agent = make_ppo(vector(Noise), backbone=f"{__name__}:Dropping")
    agent.learn(steps_of(agent, 3))
    (line,) = caplog.messages
    assert "the ratio of new to old probabilities is off from 1 by" in line
    assert "unroll.testing.check_backbone" in line
    assert "\n" not in line
    caplog.clear()
    agent = make_ppo(vector(Noise), recompute_states=True)
    agent.learn(steps_of(agent, 2))
    assert not caplog.messages


def test_a_dropout_that_nobody_gave_is_refused_too():
    with pytest.raises(BackboneError, match=r"dropout must be 0 in PPO, not 0\.1"):
        make_ppo(vector(Noise), backbone=f"{__name__}:Declaring")
