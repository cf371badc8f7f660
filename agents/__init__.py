"""How to learn: agents with the surface of Stable-Baselines3's algorithms."""

from agents.decision import DecisionAgent
from agents.ppo import HyperparameterError, RecurrentPPO

__all__ = ["DecisionAgent", "HyperparameterError", "RecurrentPPO"]
