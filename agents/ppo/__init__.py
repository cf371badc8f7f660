"""Recurrent PPO: learns in environments."""
