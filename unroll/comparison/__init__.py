"""Compare backbones: train a grid of ordinary runs and report on their folders. The command is ``unroll compare``."""
