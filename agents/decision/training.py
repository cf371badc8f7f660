"""A decision agent that is about to learn, from its config."""

from __future__ import annotations

from pathlib import Path

from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.callbacks import BaseCallback

from unroll.agents.algorithm import Tell, shared_arguments
from unroll.agents.common.callbacks import describe_updates
from unroll.agents.common.checkpoint import checkpoints, latest_checkpoint, read_state
from unroll.agents.common.machine import not_as_made
from unroll.agents.common.restoring import check_goes_on
from unroll.agents.decision.agent import DecisionAgent
from unroll.agents.decision.config import DecisionConfig, Hyperparameters
from unroll.agents.decision.player import decision_player, learned_returns, undecided
from unroll.agents.decision.task import as_learned, check_same_data, outweighed
from unroll.agents.evaluation.player import Player
from unroll.agents.evaluation.scoring import asked_beyond
from unroll.envs.datasets.conversion import flat_box
from unroll.envs.datasets.doctor import describe_space
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.registered import in_words, is_registered, known_env, why_unknown
from unroll.envs.datasets.sources import load_episodes
from unroll.envs.datasets.starts import unlike_starts
from unroll.envs.datasets.statistics import find_outside
from unroll.envs.make import find_env
from unroll.envs.own import registered_id
from unroll.errors import EnvError
from unroll.policies.actions import build_space, describe_whole
from unroll.policies.decision import DecisionPolicy


class DecisionTraining:
    """See ``unroll.agents.algorithm.Training``. A run that crashed before its first checkpoint begins again."""

    def __init__(self, config: DecisionConfig, tell: Tell):
        self.config = config
        if config.evaluation.env and config.evaluation.episodes:  # one that is not imported is no fault of the data
            registered_id(config.evaluation.env)
        self.episodes = load_episodes(config.dataset, config.download, config.dataset_weights, tell)
        self.name = self.episodes.name
        self.env_id = evaluation_env(config, self.episodes, tell)
        self.callbacks: list[BaseCallback] = []
        if config.resume and checkpoints(config.run_dir or ""):
            self.agent = self._resumed(tell)
        else:
            self.agent = make_agent(config, self._counted(tell))
        player = self._first_player(tell)
        if player is not None:
            self._tell_env(player, tell)
            known = known_env(player.env_id, player.env_kwargs)
            if known is not None:  # an export gives what the evaluation does
                self.agent.task["whole_actions"] = describe_whole(known.action_space)
        if config.condition == "none" and config.evaluation.targets is not None:
            tell("no return is asked for: with condition none an agent follows none; --condition best or return does")
        alike = config.condition == "return" and outweighed(self.episodes)
        if alike:
            tell(alike)
        unlearned = player and asked_beyond(player.targets, learned_returns(self.agent))
        if unlearned:
            tell(unlearned)

    def _first_player(self, tell: Tell) -> Player | None:
        """Make sure that the agent fits its environment: else an error if the config names it, or no evaluation."""
        try:
            return self.player()
        except EnvError as error:
            if self.config.evaluation.env or self.config.evaluation.env_kwargs is not None:
                raise
            tell(f"no evaluation: {error}")
            self.env_id = None
            return None

    def _tell_env(self, player: Player, tell: Tell) -> None:
        """Say with which arguments the environment is made, and whether it begins as the episodes do."""
        if player.env_kwargs:
            tell(f"evaluated in {player.env_id} with {in_words(player.env_kwargs)}")
        if (player.env_id, player.env_kwargs) != (self.episodes.env_id, self.episodes.env_kwargs):
            begins = unlike_starts(self.episodes, player.env_id, player.env_kwargs)  # else the dataset's own says so
            if begins:
                tell(f"note: {begins}")

    def _counted(self, tell: Tell) -> Episodes:
        """Return the episodes with their actions counted, or bounded, as in the environment to evaluate in."""
        if self.env_id is None:
            return self.episodes
        env_id = registered_id(self.env_id)
        env_kwargs = self.config.evaluation.env_kwargs
        if env_kwargs is None:
            env_kwargs = self.episodes.env_kwargs if env_id == self.episodes.env_id else {}
        known = known_env(env_id, env_kwargs)
        if known is None:
            return self.episodes
        counted = self.episodes.counted_as(known.action_space)
        space = counted.action_space
        if isinstance(space, Discrete):
            if counted is not self.episodes:
                tell(f"discrete actions are counted as in {env_id}: {space}")
        elif counted is not self.episodes:
            tell(f"actions are bounded as in {env_id}: {describe_space(space)}")
        elif isinstance(known.action_space, Box) and self._reaches_beyond(known.action_space):
            tell(
                f"actions do not all lie in {env_id}'s {describe_space(known.action_space)}: they are bounded as the "
                f"data are, {describe_space(space)}, and cut there when played"
            )
        return counted

    def _reaches_beyond(self, box: Box) -> bool:
        """Whether actions lie outside of a Box of their shape that is not their own."""
        flat = flat_box(box)
        own = self.episodes.action_space
        return flat.shape == own.shape and flat != own and find_outside(self.episodes.actions, flat)[0] > 0

    def _resumed(self, tell: Tell) -> DecisionAgent:
        path = latest_checkpoint(self.config.run_dir or "")
        agent = DecisionAgent.load(path, device=self.config.device)
        check_goes_on(path, agent.optimizer, agent.num_timesteps)
        # Their actions are held against those that were learned from as the policy counts them.
        counted = self.episodes.counted_as(build_space(agent.policy.config["action_space"]))
        self.episodes = as_learned(counted, agent.policy.config)
        check_same_data(self.episodes, agent.task)
        agent.set_episodes(self.episodes)
        tell(f"goes on at update {agent.num_timesteps}")
        note = not_as_made(read_state(path), agent.device)
        if note:
            tell(note)
        return agent

    def describe(self) -> str:
        whole = f"{len(self.episodes):,} episodes, {self.episodes.n_steps:,} steps of {self.episodes.name}"
        best = self.episodes.top(self.agent.top_fraction(self.episodes))
        if best is self.episodes:
            return whole
        return f"the best {len(best):,} of {whole}: {best.n_steps:,} steps"

    def progress(self) -> str:
        return describe_updates(self.agent)

    def player(self) -> Player | None:
        if self.env_id is None:
            return None
        options = self.config.evaluation
        player = decision_player(self.agent, self.env_id, options.targets, options.memory, options.env_kwargs)
        return player.as_told(options)

    def save(self, path: Path) -> None:
        self.agent.save(path)

    def go_back(self) -> None:
        """Do nothing: an update that failed was not counted."""


def evaluation_env(config: DecisionConfig, episodes: Episodes, tell: Tell) -> str | None:
    """The environment to evaluate in; None where none is asked for, or, with a line that says why, where there is none.

    A dataset may name an environment that is not installed or cannot start, or say of it what no file may, and be
    trained on all the same.

    Raises:
        EnvError: the config names an environment that there is not.
    """
    if not config.evaluation.episodes:
        return None
    if config.evaluation.env:
        find_env(registered_id(config.evaluation.env))
        return config.evaluation.env
    if episodes.env_id is None:
        tell("no evaluation: the dataset names no environment; --evaluation.env gives one")
        return None
    why = None
    if config.evaluation.env_kwargs is None:
        why = why_unknown(episodes.env_id, episodes.env_kwargs)
        if episodes.env_doubt:
            why = undecided(episodes.name, episodes.env_id, episodes.env_doubt)
    elif not is_registered(episodes.env_id):
        why = why_unknown(episodes.env_id, {})
    if why:
        tell(f"no evaluation: {why}")
        return None
    return episodes.env_id


def make_agent(config: DecisionConfig, episodes: Episodes) -> DecisionAgent:
    """The untrained agent of a config."""
    backbone = config.backbone
    policy_kwargs = shared_arguments(config, DecisionPolicy)
    policy_kwargs |= {
        "backbone": backbone.name,
        "d_model": backbone.d_model,
        "n_layers": backbone.n_layers,
        "backbone_options": backbone.options,
        "memory": config.evaluation.memory,
    }
    del policy_kwargs["context"]  # a hyperparameter of the agent, which gives it to the policy
    hyperparameters = shared_arguments(config, Hyperparameters)
    return DecisionAgent(episodes, device=config.device, policy_kwargs=policy_kwargs, **hyperparameters)
