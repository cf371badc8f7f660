"""What train.py asks of an agent of either kind, from its config to its evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from stable_baselines3.common.callbacks import BaseCallback

from unroll.agents.common.checkpoint import checkpoints
from unroll.agents.decision.config import TrainConfig
from unroll.agents.evaluation.player import Player
from unroll.configs.fields import BackboneConfig
from unroll.configs.loading import Config
from unroll.errors import CheckpointError


class Job(Protocol):
    """An agent that is about to learn, and what it learns from.

    ``name`` is that of what is learned from, ``unit`` what ``num_timesteps`` and the config's ``steps`` count, and
    ``headlines`` are the metrics by which runs are compared. ``callbacks`` come before the one that saves.
    """

    agent: Any
    name: str
    unit: str
    headlines: list[str]
    callbacks: list[BaseCallback]

    def describe(self) -> str:
        """What is learned from, in words."""

    def progress(self) -> str:
        """How the learning goes, in words."""

    def player(self) -> Player | None:
        """The agent as it is now, to be evaluated; None: there is nowhere to play."""

    def save(self, path: Path) -> None:
        """Write a checkpoint."""


def make_job(config: Config, tell: Callable[[str], Any]) -> Job:
    """The job of a config whose backbone is settled; new, or resumed from the last checkpoint in ``run_dir``.

    Raises:
        Exception: one of ``unroll.agents.errors.USER_ERRORS``.
    """
    try:
        if isinstance(config, TrainConfig):
            from unroll.agents.decision.algorithm import DecisionJob

            return DecisionJob(config, tell)
        from unroll.agents.ppo.algorithm import PPOJob

        return PPOJob(config, tell)
    except CheckpointError as error:
        *older, last = checkpoints(config.run_dir or "") or [Path()]
        if not (config.resume and older):
            raise
        raise CheckpointError(f"{error}; without {last} the run goes on from {older[-1].name}") from None


def settle(backbone: BackboneConfig, may_import: bool) -> Any:
    """The backbone with the width and options that it is built with; of the type that it had.

    ``may_import``: whether the command line itself names it, which may be a class of the user's own then.

    Raises:
        BackboneError: it does not exist, or has no such option or size.
    """
    from unroll.policies.backbones import find_backbone, import_own, match_parameters
    from unroll.policies.backbones.registry import check_options

    if may_import and ":" in backbone.name:
        import_own(backbone.name)
    check_options(backbone.name, find_backbone(backbone.name), backbone.options)
    if not backbone.match_parameters:
        return backbone
    d_model, options = match_parameters(backbone.name, backbone.match_parameters, backbone.n_layers, **backbone.options)
    return dataclasses.replace(backbone, d_model=d_model, options=options, match_parameters=0)
