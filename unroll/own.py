"""Code of the user's own, ``module:name``: imported where the command line names it, and nowhere else."""

from __future__ import annotations

import itertools


def says(arguments: list[str], flag: str, value: str | None) -> bool:
    """Whether the command line itself gives this value to this flag.

    Only then may it be code to import: a file or the environment never names any.
    """
    return value is not None and (f"{flag}={value}" in arguments or (flag, value) in itertools.pairwise(arguments))


def import_backbone(arguments: list[str], flag: str, name: str | None) -> None:
    """Import a backbone ``module:Class`` that the command line names.

    Raises:
        BackboneError: there is no such class.
    """
    if name and ":" in name and says(arguments, flag, name):
        from unroll.policies.backbones import import_own

        import_own(name)


def import_environment(arguments: list[str], flag: str, name: str | None) -> None:
    """Import an environment ``module:id`` that the command line names.

    Raises:
        EnvError: there is no such environment.
    """
    if name and ":" in name and says(arguments, flag, name):
        from unroll.envs.own import import_env

        import_env(name)
