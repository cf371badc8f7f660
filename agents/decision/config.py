"""The config of the decision agent, which learns from a dataset."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from unroll.agents.common.settling import settle_fields
from unroll.configs.fields import BackboneConfig, RunConfig
from unroll.configs.sizes import Environments, Episodes, Rate, Seed, Size

if TYPE_CHECKING:
    from unroll.envs.datasets.episodes import Episodes as DataEpisodes

# What an agent learns from that follows no given return: this share of the steps, or more where these are fewer than
# ENOUGH_STEPS: up to a larger share, or all whose returns are as good as the best but for NEARLY of them.
BEST_SHARE = 0.1
LARGER_SHARE = 0.25
ENOUGH_STEPS = 25_000
LEAST_STEPS = 2_000
NEARLY = 0.1


@dataclasses.dataclass
class EvaluationConfig:
    """Playing episodes with the trained agent."""

    env: str | None = None
    """environment id; null: the dataset's own. my_module:MyEnv-v0 imports my_module, on the command line alone"""
    env_kwargs: dict[str, Any] | None = None
    """arguments of the environment, e.g. '{frame_skip: 2, max_episode_steps: 500}', in place of those that the dataset
    says; null: these; '{}': none"""
    episodes: Episodes = 20
    """episodes for each target return; 0: there is no evaluation"""
    targets: list[float] | None = None
    """returns to ask for, where the condition is best or return; null: the best that can be had, or, with return, the
    median, 90 % quantile and maximum of the dataset's returns"""
    memory: Literal["carried", "window"] = "carried"
    """keep the state through an episode, or encode the last `context` steps anew for every action"""
    every: NonNegativeInt = 1000
    """updates between evaluations while training; 0: at the end alone"""
    seed: Seed = 1_000_000
    """reset seed of the first episode; the others count up. The same for every backbone"""
    max_steps: PositiveInt = 100_000
    """steps after which an episode is cut, which is told, where an environment has no end"""
    n_envs: Environments = 100
    """the most environments that are open at once"""
    video: bool = False
    """also record a GIF of one episode, where rendering works"""


@dataclasses.dataclass(kw_only=True)
class Hyperparameters:
    """How a DecisionAgent learns: the keyword arguments of its constructor, and fields of the config."""

    context: Size = 20
    """environment steps of a training sequence, from 1 to whole episodes"""
    batch_size: Size = 64
    """sequences of a batch"""
    optimizer: Literal["adamw", "lamb"] = "adamw"
    """AdamW, or LAMB with a minimum trust, with which SHA-RNN was published"""
    learning_rate: Rate = 1e-3
    """the optimizer's learning rate after the warm-up"""
    schedule: Literal["constant", "cosine"] = "cosine"
    """the learning rate after the warm-up: constant, or falling to 0"""
    warmup_steps: NonNegativeInt = 300
    """updates over which the learning rate rises from 0"""
    weight_decay: NonNegativeFloat | None = None
    """the optimizer's weight decay; null: 1e-4, or, of AdamW, 0.3 where actions are discrete"""
    max_grad_norm: PositiveFloat = 0.25
    """gradients are clipped to this norm"""
    top_fraction: ClosedUnitInterval | None = None
    """learn from the best episodes alone, until they make up this share of the steps, and from others that are as good
    as the last of them; null: 0.1; where that is fewer than 25,000 steps up to 0.25, or all whose returns are within
    0.1 of the best tenth's; at least 2,000 steps; and 1 where the condition is return"""
    timestep_embedding: bool = False
    """add an embedding of the absolute timestep to the tokens"""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """of the matrix products while learning; weights, optimizer and recurrences are float32 always. tf32 is for CUDA:
    three digits of a factor instead of seven, while acting too"""
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    """torch.compile the loss, once, for a minute or so: default needs a C++ compiler on a CPU; reduce-overhead also
    replays CUDA graphs on CUDA"""
    cuda_graph: bool = True
    """on CUDA, record an update as one graph and replay it: the same numbers, without waiting for the host"""
    seed: Seed = 0
    """of the weights and of all that is drawn while learning"""

    def __post_init__(self) -> None:
        # Whatever is taken here can be saved and loaded again.
        settle_fields(self)


def weight_decay_of(given: float | None, optimizer: str, discrete: bool) -> float:
    """Return how fast the weights decay; see ``Hyperparameters.weight_decay``.

    Who explores draws an action, and nothing in the data tells the likeliest from the one that came up. A memory that
    sees each step some hundred times knows by heart what came up where, and a choice among few actions follows that.
    With continuous actions a decay of 1 made the play worse (benchmarks/results/conditions.md).
    """
    if given is not None:
        return given
    return 0.3 if discrete and optimizer == "adamw" else 1e-4


def top_fraction_of(given: float | None, condition: str, episodes: DataEpisodes) -> float:
    """Return the share of the steps of ``episodes`` to learn from; see ``Hyperparameters.top_fraction``.

    Episodes of other behaviours than the best ones blur what is learned of these, even where the return tells them
    apart. Too few are learned by heart. An agent that is to follow any return needs all of them.
    """
    if given is not None:
        return given
    if condition == "return":
        return 1.0
    n_steps = episodes.n_steps
    if BEST_SHARE * n_steps >= ENOUGH_STEPS:
        return BEST_SHARE

    # The best episodes first, and how many steps they are up to each.
    order = np.argsort(-episodes.returns)
    returns, steps = episodes.returns[order], np.cumsum(episodes.lengths[order])
    crossing = int(np.searchsorted(steps, BEST_SHARE * n_steps))
    tenth = int(np.searchsorted(-returns, -returns[crossing], side="right")) - 1  # with those that are equal

    best = float(returns[: tenth + 1].mean())
    near = int(np.count_nonzero(returns >= best - NEARLY * abs(best)))
    enough = min(ENOUGH_STEPS, max(LARGER_SHARE * n_steps, steps[near - 1]))
    more = int(np.searchsorted(steps, min(n_steps, max(enough, LEAST_STEPS))))
    if more + 1 < len(returns) and returns[more] == returns[more + 1]:
        # All that are equal would be taken, and they may be most of the data: the failures, where success pays 1.
        more = int(np.searchsorted(-returns, -returns[more])) - 1

    # Half a step less: a share that was rounded upwards would take one episode more.
    return float(steps[max(tenth, more)] - 0.5) / n_steps


@dataclasses.dataclass
class DecisionConfig(RunConfig, Hyperparameters):
    """Train a decision agent on recorded episodes, evaluate it, and leave everything in a run folder."""

    may_change: ClassVar[tuple[str, ...]] = (*RunConfig.may_change, "dataset")

    agent: Literal["decision"] = "decision"
    """how to learn: decision, from a dataset; other agents have fields of their own"""
    dataset: list[str] | str = "embedded:hopper-v5-replay"
    """minari:ID, d4rl:ID, embedded:NAME or the path of an HDF5 file with D4RL's fields; or several, of one space"""
    dataset_weights: list[PositiveFloat] | None = None
    """how often each of several datasets is drawn, e.g. 1 3, and then top_fraction is that of each; null: every step as
    often as any other"""
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    """the sequence model"""
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    """playing episodes"""
    steps: PositiveInt = 3000
    """gradient updates"""
    dropout: ClosedUnitInterval = 0.1
    """dropout of the embedding and of every residual branch"""
    tokens: Literal["fused", "interleaved"] = "fused"
    """one token per step, or one each for previous action, return-to-go and observation"""
    condition: Literal["best", "return", "none"] = "none"
    """none: imitate, by default the best episodes; best: act for the largest return that the data make likely, or for a
    smaller one that is asked for; return: Decision Transformer, which is always asked for one"""
    previous_action: bool = True
    """show each step the action before it"""
    action_modes: NonNegativeInt = 1
    """Gaussians that a continuous action is drawn from and then cut at its bounds; several for several behaviours,
    between which one mean would lie; 0: none, the squared error of one action"""
    log_every: PositiveInt = 100
    """updates between two points in TensorBoard and metrics.jsonl"""
    checkpoint_every: PositiveInt = 1000
    """updates between two checkpoints"""
    download: bool = False
    """fetch a d4rl: dataset that is not on the disk"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.dataset, list) and len(self.dataset) == 1:
            self.dataset = self.dataset[0]

    def faults(self) -> Iterator[str]:
        n = 1 if isinstance(self.dataset, str) else len(self.dataset)
        weights = self.dataset_weights
        if n == 0:
            yield "dataset is a list of none"
        if weights is not None:
            counted = self.resume or 1 < n == len(weights)  # a run that goes on knows its datasets
            if not (counted and all(map(math.isfinite, weights))):
                yield f"dataset_weights {weights}: as many finite numbers as there are datasets, which are {n}"
        targets = self.evaluation.targets
        if targets is not None and not (targets and all(map(math.isfinite, targets))):
            yield f"targets {targets}: one finite number or more is needed, or none for the default"
