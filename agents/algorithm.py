"""What an algorithm brings. The registry ``AGENTS`` holds one object for each; no other file knows which there are."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from unroll.configs.fields import BackboneConfig, RunConfig

if TYPE_CHECKING:  # PyTorch and the libraries around it are imported when an agent is made
    from stable_baselines3.common.callbacks import BaseCallback

    from unroll.agents.common.step import Step
    from unroll.agents.evaluation.player import Player

Tell = Callable[[str], Any]  # takes a line for the user


class Training(Protocol):
    """An agent that is about to learn, and what it learns from.

    ``name`` is the name of what is learned from. ``callbacks`` come before the one that saves.
    """

    agent: Any
    name: str
    callbacks: list[BaseCallback]

    def describe(self) -> str:
        """Say what is learned from."""

    def progress(self) -> str:
        """Say how the learning goes."""

    def player(self) -> Player | None:
        """The agent as it is now, to be evaluated; None where there is nowhere to play."""

    def save(self, path: Path) -> None:
        """Write a checkpoint."""

    def go_back(self) -> None:
        """After learning has failed: have the agent count the steps of what ``save`` writes."""


@dataclasses.dataclass(frozen=True)
class PlayOptions:
    """How a trained agent is to be played where that differs from its config; None: as there."""

    device: str = "auto"
    env: str | None = None
    env_kwargs: dict[str, Any] | None = None
    targets: list[float] | None = None
    memory: str | None = None


@dataclasses.dataclass(frozen=True)
class Words:
    """An algorithm in words, for the card of a shared run."""

    title: str
    """what the agent is called in a sentence"""
    tag: str
    """what it is called in an index"""
    paper: str
    """Markdown: where it was published"""


class Algorithm(ABC):
    """One way to learn.

    To add one: a folder with a subclass of this, and a line in ``AGENTS``.
    """

    name: ClassVar[str]
    """in configs and on the command line"""
    agent: ClassVar[str]
    """the name of the agent's class, by which a checkpoint says whose it is"""
    config: ClassVar[type[RunConfig]]
    """the fields that the agent has in a config"""
    unit: ClassVar[str]
    """what the config's ``steps`` and the agent's ``num_timesteps`` count, for one of them"""
    long_unit: ClassVar[str]
    """the same in the plural, in full"""
    source: ClassVar[str]
    """the field of the config that names what is learned from"""
    headlines: ClassVar[tuple[str, ...]]
    """the metrics by which runs are compared"""

    @abstractmethod
    def training(self, config: Any, tell: Tell) -> Training:
        """Make the agent of a config whose backbone is settled: new, or resumed from its ``run_dir``.

        Raises:
            UserError: what the config describes cannot be had here.
        """

    @abstractmethod
    def load(self, checkpoint: Path, device: str = "auto") -> Any:
        """Load the agent of a checkpoint.

        Raises:
            CheckpointError: the checkpoint is damaged, or of another agent or version.
        """

    @abstractmethod
    def player(self, checkpoint: Path, config: Any | None, options: PlayOptions) -> Player:
        """Load the agent of a checkpoint and put it in its environment.

        ``config`` is that of the run, None for a checkpoint by itself.

        Raises:
            CheckpointError: the checkpoint cannot be loaded, or the agent has no such option.
            EnvError: there is no environment to play in, or it does not fit the agent.
        """

    @abstractmethod
    def step(self, checkpoint: Path, memory: str | None) -> tuple[Step, dict[str, Any]]:
        """Load one step of the agent's policy for an export, and the facts that are said of it.

        Raises:
            CheckpointError: the checkpoint cannot be loaded.
            ExportError: the agent acts in a way that cannot be exported.
        """

    @abstractmethod
    def words(self, config: Any) -> Words:
        """Say what the agent of a config is called."""

    @abstractmethod
    def learned_from(self, config: Any, describe_dataset: Callable[[str], str]) -> str:
        """Say in a sentence what the agent of a config learned from, for the card of a shared run.

        ``describe_dataset`` gives the words for the name of a dataset.
        """

    @abstractmethod
    def env(self, config: Any) -> str | None:
        """The environment that a config names."""

    def fill(self, backbone: str, options: dict[str, Any]) -> dict[str, Any]:
        """Add to the options of a backbone those that this agent's have unless others are given."""
        return options

    def settled(self, config: RunConfig) -> RunConfig:
        """Return the config with its backbone as it is built.

        Raises:
            BackboneError: there is no such backbone, option or size.
        """
        return dataclasses.replace(config, backbone=settle(config.backbone, self.fill))

    def imports(self, config: Any) -> dict[str, str]:
        """Flags whose values name an environment of the user's own, ``module:id``, with these values."""
        return {}

    def run_config(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """The config of the run in a checkpoint's state; None where a checkpoint holds none."""
        return None


def shared_arguments(config: Any, function: Callable[..., Any]) -> dict[str, Any]:
    """The fields of a config that a function takes as arguments of the same names."""
    parameters = inspect.signature(function).parameters
    names = [field.name for field in dataclasses.fields(config) if field.name in parameters]
    return {name: getattr(config, name) for name in names}


def settle(backbone: BackboneConfig, fill: Callable[[str, dict[str, Any]], dict[str, Any]]) -> Any:
    """The backbone with the width and options that it is built with, of the type that it had.

    ``fill`` adds the agent's own defaults to the options of a backbone.

    Raises:
        BackboneError: it does not exist, or has no such option or size.
    """
    from unroll.policies.backbones import match_parameters
    from unroll.policies.backbones.registry import check_options, find_backbone

    check_options(backbone.name, find_backbone(backbone.name), backbone.options)
    options = fill(backbone.name, backbone.options)
    d_model = backbone.d_model
    if backbone.match_parameters:
        d_model, options = match_parameters(backbone.name, backbone.match_parameters, backbone.n_layers, **options)
    return dataclasses.replace(backbone, d_model=d_model, options=options, match_parameters=0)
