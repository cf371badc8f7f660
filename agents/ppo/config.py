"""The config of RecurrentPPO, which learns in environments."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from unroll.configs.fields import BackboneConfig, RunConfig
from unroll.configs.sizes import Environments, Episodes, Rate, Seed, Size


@dataclasses.dataclass
class PPOBackboneConfig(BackboneConfig):
    """The sequence model that is compared."""

    d_model: Size = 64
    """width"""
    n_layers: Size = 1
    """number of residual blocks"""


@dataclasses.dataclass
class PPOEvaluationConfig:
    """Playing episodes with the trained agent: the likeliest action in every step."""

    episodes: Episodes = 20
    """episodes to play; 0: there is no evaluation"""
    every: NonNegativeInt = 20_000
    """environment steps between evaluations while training, at the next update; 0: at the end alone"""
    ablation: bool = True
    """also play them with the memory wiped before every step: what is the memory worth?"""
    seed: Seed = 1_000_000
    """reset seed of the first episode; the others count up. The same for every backbone"""
    max_steps: PositiveInt = 100_000
    """steps after which an episode is cut, which is told, where an environment has no end"""
    n_envs: Environments = 100
    """the most environments that are open at once to play, beside those that are learned in"""
    reuse_envs: bool = False
    """play in the environments that are learned in, for a simulator of which no more can be open. Their episodes go on
    afterwards where they can be saved, and begin anew elsewhere"""
    video: bool = False
    """also record a GIF of one episode, where rendering works"""


@dataclasses.dataclass
class PretrainConfig:
    """Learning from recorded episodes before the first step in the environments."""

    dataset: str | None = None
    """minari:ID, d4rl:ID, embedded:NAME or the path of an HDF5 file with D4RL's fields; null: no pretraining"""
    weights: str | None = None
    """a run folder, or one of its checkpoints, to begin with: the policy of another run of ppo, or the backbone of a
    decision agent, where names and shapes agree"""
    updates: PositiveInt = 3000
    """gradient updates"""
    batch_size: Size = 64
    """sequences of a batch"""
    context: Size | None = None
    """steps of a sequence, which begins with an empty memory; null: the length of PPO's own sequences"""
    learning_rate: Rate = 1e-3
    """of the first update; it falls to 0"""
    top_fraction: ClosedUnitInterval = 1.0
    """learn from the best episodes alone, until they make up this share of the steps"""
    critic_first: NonNegativeInt = 10_000
    """environment steps, from the first on, in which PPO trains the critic alone"""
    kl_coef: NonNegativeFloat = 0.2
    """weight, in PPO's loss, of how far the policy is from the pretrained one; 0: that does not matter"""
    kl_steps: NonNegativeInt = 1_000_000
    """environment steps over which this weight falls to 0"""


@dataclasses.dataclass
class PPOConfig(RunConfig):
    """Train RecurrentPPO in environments, evaluate it, and leave everything in a run folder."""

    agent: Literal["ppo"] = "ppo"
    """how to learn: ppo, in environments; other agents have fields of their own"""
    env: str = "CartPoleNoVel-v1"
    """id of a registered environment; my_module:MyEnv-v0 imports my_module, on the command line alone"""
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """arguments of the environment, e.g. '{length: 70}'"""
    previous_action: bool = False
    """show each step the action before it"""
    previous_reward: bool = False
    """show each step the reward before it"""
    backbone: PPOBackboneConfig = dataclasses.field(default_factory=PPOBackboneConfig)
    """the sequence model"""
    evaluation: PPOEvaluationConfig = dataclasses.field(default_factory=PPOEvaluationConfig)
    """playing episodes"""
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    """learning from a dataset first"""
    steps: PositiveInt = 100_000
    """environment steps, those of all environments together"""
    n_envs: Environments = 8
    """environments that are stepped together"""
    vector: Literal["serial", "processes", "tensor"] = "serial"
    """step them one after another, or each in a process of its own: faster where a step takes a millisecond or more;
    tensor: all at once on the device that is learned on, for the tasks that have such a form"""
    n_steps: Size = 128
    """steps of each environment in a rollout, from one update to the next"""
    sequence_length: Size | None = None
    """steps through which gradients flow, a divisor of n_steps; null: n_steps, or batch_size where that divides it, or,
    of a single environment without batch_size, at most an eighth of n_steps: minibatches can be drawn then"""
    batch_size: Size | None = None
    """steps of a minibatch, a multiple of the sequence length; null: a quarter of the rollout"""
    n_epochs: PositiveInt = 10
    """passes over a rollout"""
    learning_rate: Rate = 3e-4
    """Adam's learning rate at the start"""
    schedule: Literal["constant", "linear"] = "constant"
    """the learning rate: constant, or falling to 0"""
    clip_range: PositiveFloat = 0.2
    """how far from 1 the ratio of the new to the old probability of an action may pay"""
    clip_schedule: Literal["constant", "linear"] = "constant"
    """the clip range: constant, or falling to 0"""
    gamma: ClosedUnitInterval = 0.99
    """discount of rewards, by step"""
    gae_lambda: ClosedUnitInterval = 0.95
    """of generalised advantage estimation: 0 trusts the value of the next step, 1 the rewards of the episode"""
    ent_coef: NonNegativeFloat = 0.0
    """weight of the policy's entropy in the loss"""
    vf_coef: NonNegativeFloat = 0.5
    """weight of the value's error in the loss, in units of the returns"""
    max_grad_norm: PositiveFloat = 0.5
    """the gradients of the actor and of the critic are clipped to this norm each"""
    target_kl: PositiveFloat | None = None
    """end an update where the new policy is 1.5 times this far from the old one; null: never"""
    normalize_advantage: bool = True
    """make the advantages of each rollout of mean 0 and deviation 1"""
    advantage_floor: ClosedUnitInterval = 0.0
    """share of their largest deviation so far below which advantages are not made larger: above 0 an agent that is paid
    the same for all that it does goes on to explore"""
    normalize_observation: bool = False
    """by running means and deviations (VecNormalize), which are saved with the weights"""
    normalize_reward: bool = False
    """by the running deviation of the discounted return (VecNormalize); evaluations show the environment's own"""
    cuda_graph: bool = True
    """on CUDA, record a minibatch as one graph and replay it: the same numbers, without waiting for the host"""
    recompute_states: bool = False
    """make the states before the sequences anew for every epoch, where they would be those of the old policy"""
    reset_on_done: bool = True
    """begin an episode with an empty memory; false keeps it from one episode to the next, as in RL²"""
    separate_critic: bool = True
    """give the critic a backbone of its own; false lets it see the actor's memory, which is less to compute"""
    net_arch: list[Size] = dataclasses.field(default_factory=lambda: [64, 64])
    """widths of the layers between the backbone and the action, and between it and the value"""
    activation: Literal["tanh", "relu"] = "tanh"
    """of these layers"""
    ortho_init: bool = True
    """orthogonal weights at the start, all but the backbone's"""
    log_std_init: float = 0.0
    """logarithm of the deviation of continuous actions at the start"""
    use_sde: bool = False
    """explore by noise that depends on the observation (gSDE), for continuous actions"""
    sde_sample_freq: int = -1
    """steps from one draw of that noise to the next; -1: once for each rollout"""
    log_every: PositiveInt = 1
    """rollouts between two points in TensorBoard and metrics.jsonl"""
    checkpoint_every: PositiveInt = 50_000
    """environment steps between two checkpoints, at the next update"""

    def name_what_changed(self) -> bool:
        # A run's options are all named. Those of before have no signed gates.
        changed = self.backbone.name in ("mingru", "minlstm") and "signed" not in self.backbone.options
        if changed:
            self.backbone.options = {**self.backbone.options, "signed": False}
        return changed
