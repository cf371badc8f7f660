"""Recurrent policies: decision agents and recurrent PPO over swappable sequence backbones."""
