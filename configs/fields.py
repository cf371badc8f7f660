"""The fields that the configs of all agents have. The docstring of a field is its line in ``--help``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from unroll.configs.sizes import Seed, Size, Threads


@dataclasses.dataclass
class BackboneConfig:
    """The sequence model that is compared."""

    name: str = "mingru"
    """which one, or module:Class of your own; a wrong name lists those that exist"""
    d_model: Size = 64
    """width"""
    match_parameters: NonNegativeInt = 0
    """give the backbone this number of parameters within 2 % (its own, without embedding and head), through d_model
    and, where it has one, mlp_ratio. d_model is then ignored; config.yaml holds what came out, and 0 here. 0: off"""
    n_layers: Size = 2
    """number of residual blocks"""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """the backbone's own options, e.g. --backbone.options.expansion 2"""


@dataclasses.dataclass(kw_only=True)
class RunConfig:
    """How a run is named, seeded, computed and kept. The config of every agent adds its own fields.

    ``may_change`` names the fields that may have another value when a run goes on, because its weights do not depend
    on them. ``starting`` names those that say how a run was started, which no config.yaml holds.
    """

    starting: ClassVar[tuple[str, ...]] = ("run_dir", "resume", "download")
    may_change: ClassVar[tuple[str, ...]] = (
        *starting,
        "evaluation",
        "steps",
        "device",
        "threads",
        "log_every",
        "checkpoint_every",
        "keep",
        "track",
    )

    experiment: str | None = None
    """first part of the run's name runs/<experiment>/<backbone>/seed<k>; null: what is learned from"""
    seed: Seed = 0
    """of the weights and of all that is drawn while learning"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one"""
    threads: Threads = 0
    """CPU threads; 0: as many as cores. Results are equal bit for bit only at equal numbers of threads"""
    keep: PositiveInt = 2
    """how many checkpoints are kept"""
    run_dir: str | None = None
    """the run's folder; null: runs/<experiment>/<backbone>/seed<k>"""
    track: Literal["none", "wandb"] = "none"
    """also send what TensorBoard shows to Weights & Biases; WANDB_PROJECT, WANDB_MODE=offline and so on say how"""
    resume: bool = False
    """go on with the run in run_dir from its last checkpoint, under its saved config"""

    if TYPE_CHECKING:  # every agent's config has these, with types and defaults of its own
        agent: Any
        backbone: BackboneConfig
        evaluation: Any
        steps: int
        log_every: int
        checkpoint_every: int

    def faults(self) -> Iterator[str]:
        """Yield a line for each value that its type lets pass and that makes no sense."""
        yield from ()

    def name_what_changed(self) -> bool:
        """Name, in the config of a run, what it left to a default that has changed since; return whether that is so."""
        return False
