"""What a command tells the process reaches PyTorch, and leaves the user's word alone."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from unroll import cli

ROOT = Path(__file__).parents[2]
KEPT = """
import sys
from unroll.commands.process import give_back_memory, keep_freed_memory
if sys.argv[1] != "default":
    keep_freed_memory()
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
parts = [torch.ones(6 * 2**20) for _ in range(6)]  # 24 MB each
del parts
if sys.argv[1] == "give back":
    give_back_memory()
print((resident() - before) // 2**20)
"""


def output(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *arguments]
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told to keep memory")
def test_memory_that_was_freed_is_kept_for_the_next_until_it_is_given_back():
    assert int(output(KEPT, "default")) < 50 < 100 < int(output(KEPT, "keep"))
    assert int(output(KEPT, "give back")) < 50


def test_threads_spin_shortly_unless_the_environment_says_otherwise():
    show = "import unroll, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    assert output(show).split() == ["10000", "False"]
    assert output(show, GOMP_SPINCOUNT="7").split() == ["7", "False"]
    assert output(show, OMP_WAIT_POLICY="active").split() == ["None", "False"]


def test_ctrl_c_while_a_command_is_imported_is_one_line(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli.importlib, "import_module", interrupted)
        assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "unroll train: interrupted\n"
