"""How to learn: agents with the surface of Stable-Baselines3's algorithms."""

from agents.decision import DecisionAgent

__all__ = ["DecisionAgent"]
