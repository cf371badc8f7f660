"""Runs to the Hugging Face Hub and back, without a file that can run code. The command is ``unroll share``."""
