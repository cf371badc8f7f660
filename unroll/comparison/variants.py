"""The rows of a comparison: a backbone with its options, and the values of the fields that are varied."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

from unroll.errors import ComparisonError

OPTION = "backbone.options."
SIZES = ("backbone.d_model", "backbone.n_layers", "backbone.match_parameters")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row: a backbone, and what its runs have beside the config, as (field, value) in the words of a command line."""

    backbone: str
    fields: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """The name of the row and of its folder: ``mingru``, or ``mingru-conv=4-learning_rate=1e-3``."""
        parts = [self.backbone.rpartition(":")[2]]
        for name, value in self.fields:
            plain = re.sub(r"[^\w.,+-]", "", value)  # it is the name of a folder too
            parts.append(f"{name.removeprefix(OPTION)}={plain}")
        return "-".join(parts)

    @property
    def architecture(self) -> tuple[str, ...]:
        """What of the row its backbone's number of parameters depends on."""
        return (self.backbone, *(f"{name}={value}" for name, value in self.fields if name.startswith("backbone.")))

    @property
    def words(self) -> list[str]:
        """The arguments of ``unroll train``."""
        words = ["--backbone.name", self.backbone]
        for name, value in self.fields:
            words += [f"--{name}", value]
        return words


def make_variants(backbones: Sequence[str], vary: Sequence[str]) -> list[Variant]:
    """Make a row of each backbone with each combination of the values of the fields that are varied.

    Args:
        backbones: ``mingru``, ``module:Class``, or either with options: ``mingru:expansion=2,conv=4``.
        vary: ``learning_rate=1e-3,3e-4``: a field, and values of it.

    Raises:
        ComparisonError: a word cannot be read, or two rows are the same.
    """
    axes = [_axis(word) for word in vary]
    names = [axis[0][0] for axis in axes]
    if len(set(names)) < len(names):
        raise ComparisonError(f"--vary {' '.join(vary)}: one field is there twice")

    variants = []
    for word in backbones:
        name, options = _backbone(word)
        for values in itertools.product(*axes):
            variants.append(Variant(name, (*options, *values)))
    labels = [variant.label for variant in variants]
    for label in labels:
        if labels.count(label) > 1:
            raise ComparisonError(f"{label} is there twice")
    return variants


def check_reference(reference: str | None, labels: Sequence[str]) -> None:
    """Raise ComparisonError unless one of the rows is the reference; None is the first."""
    if reference is not None and reference not in labels:
        raise ComparisonError(f"reference {reference!r}: the rows are {', '.join(labels)}")


def split_backbones(words: Iterable[str]) -> list[str]:
    """Split ``mingru,gru`` and ``mingru:expansion=2,conv=4`` into backbones: after options, a comma is theirs."""
    backbones: list[str] = []
    for word in words:
        for part in word.split(","):
            if "=" in part and ":" not in part and backbones:
                backbones[-1] += f",{part}"
            else:
                backbones.append(part)
    return backbones


def varied_fields(label: str) -> list[str]:
    """Return the names of the options and fields in a row's label."""
    return re.findall(r"-([A-Za-z_][\w.]*)=", label)


def _backbone(word: str) -> tuple[str, list[tuple[str, str]]]:
    """Read a backbone with options. A colon before the last one belongs to ``module:Class``."""
    name, _, tail = word.rpartition(":")
    if "=" not in tail:
        return word, []
    options = []
    for part in tail.split(","):
        option, equals, value = part.partition("=")
        if not (name and option and equals and value):
            raise ComparisonError(f"--backbones {word!r}: options are written as mingru:expansion=2,conv=4")
        options.append((OPTION + option, value))
    return name, options


def _axis(word: str) -> list[tuple[str, str]]:
    """Read a field and its values. Commas in brackets belong to a value."""
    name, _, values = word.partition("=")
    name = name.removeprefix("--")
    listed = re.findall(r"(?:[^,\[{]|\[[^\]]*\]|\{[^}]*\})+", values)
    if not name or len(listed) < 2:
        raise ComparisonError(f"--vary {word!r}: a field and two values of it or more, as learning_rate=1e-3,3e-4")
    return [(name, value) for value in listed]
