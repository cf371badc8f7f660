"""Benchmarks run in a process that is prepared as that of a command is."""

from unroll.commands.process import prepare_process

prepare_process()
