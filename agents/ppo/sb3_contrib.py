"""Arguments of sb3-contrib's RecurrentPPO that have other names here, so that its code runs with another import."""

from __future__ import annotations

from typing import Any

from unroll.agents.common.settling import plain
from unroll.errors import HyperparameterError
from unroll.policies.actor_critic import RecurrentActorCriticPolicy

# What its policies take beside what Stable-Baselines3's do, with the values that they have by default.
DEFAULTS: dict[str, Any] = {
    "lstm_hidden_size": 256,
    "n_lstm_layers": 1,
    "shared_lstm": False,
    "enable_critic_lstm": True,
    "lstm_kwargs": None,
}


def policy_kwargs_of(policy: Any, policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of our policy for these of a policy by this name: those of ``MlpLstmPolicy`` are sb3-contrib's.

    Raises:
        HyperparameterError: what our policy does not have, with what to write instead.
    """
    if isinstance(policy, type) and not issubclass(policy, RecurrentActorCriticPolicy):
        raise HyperparameterError(
            f"policy {policy.__module__}.{policy.__name__} is none of unroll's: write its name, such as 'MlpPolicy' "
            "or 'MlpLstmPolicy', or derive it from unroll.policies.actor_critic.RecurrentActorCriticPolicy"
        )
    given = [name for name in DEFAULTS if name in policy_kwargs]
    if not (isinstance(policy, str) and policy.endswith("LstmPolicy")):
        if given:
            raise HyperparameterError(
                f"{given[0]} is an argument of MlpLstmPolicy, CnnLstmPolicy and MultiInputLstmPolicy; the others take "
                "backbone, d_model, n_layers and separate_critic"
            )
        return policy_kwargs

    theirs = DEFAULTS | {name: policy_kwargs[name] for name in given}
    _check(theirs, policy_kwargs)
    own = {name: value for name, value in policy_kwargs.items() if name not in DEFAULTS}
    return {
        "backbone": "lstm",
        "d_model": theirs["lstm_hidden_size"],
        "n_layers": theirs["n_lstm_layers"],
        **own,
        "separate_critic": theirs["enable_critic_lstm"],
    }


def name_the_same(given: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether a policy with the arguments ``own`` may have been made from these, by any of the names for it.

    Its backbone may have been given beside them.
    """
    given, own = _as_in_zip(plain(given)), _as_in_zip(own)
    if "backbone" in own:
        given = {"backbone": own["backbone"], **given}
    if given == own:
        return True
    try:
        return policy_kwargs_of("MlpLstmPolicy", given) == own
    except HyperparameterError:
        return False


def _as_in_zip(value: Any) -> Any:
    """Return the value with lists for tuples, as a zip holds them."""
    if isinstance(value, dict):
        return {key: _as_in_zip(part) for key, part in value.items()}
    return [_as_in_zip(part) for part in value] if isinstance(value, list | tuple) else value


def _check(theirs: dict[str, Any], policy_kwargs: dict[str, Any]) -> None:
    """Raise HyperparameterError for what contradicts itself, or is not to be had here."""
    shared = theirs["shared_lstm"]
    critic = theirs["enable_critic_lstm"]
    if shared and critic:
        raise HyperparameterError("shared_lstm and enable_critic_lstm: the critic has one of the two, or none")
    if shared and not policy_kwargs.get("share_features_extractor", True):
        raise HyperparameterError("shared_lstm with share_features_extractor False: who shares a memory shares both")
    if not (shared or critic):
        raise HyperparameterError(
            "enable_critic_lstm False: a critic without memory is not to be had here; shared_lstm=True beside it gives "
            "the critic the actor's memory"
        )
    for name, theirs_for in (("d_model", "lstm_hidden_size"), ("n_layers", "n_lstm_layers")):
        if name in policy_kwargs:
            raise HyperparameterError(f"{name} is an argument of MlpPolicy; here it is {theirs_for}")
    if theirs["lstm_kwargs"]:
        raise HyperparameterError(
            f"lstm_kwargs {theirs['lstm_kwargs']}: options of the memory are backbone_options, and it has no dropout: "
            "the policy that learns must be the one that acted"
        )
