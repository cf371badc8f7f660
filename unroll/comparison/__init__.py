"""Compare backbones: a grid of ordinary runs, and a report of what their folders say. The command is compare.py."""
