"""A soak counts what a process holds, and sees what grows."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability import soak

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
GROWING = """
import sys, threading, time
kept = []
while True:
    time.sleep(0.02)
    if sys.argv[1] == "grow":
        kept.append((open(sys.argv[2] + "/" + str(len(kept)), "w"), bytearray(2**18)))
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""


@linux
@pytest.mark.parametrize("how", ["grow", "stay"])
def test_what_grows_is_seen_and_what_does_not_is_flat(how, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", GROWING, how, str(tmp_path)])
    try:
        run = soak.Run("toy", tmp_path, process)
        soak.watch([run], warmup=0.3, seconds=1.5, interval=0.05)
    finally:
        process.kill()
        process.wait()
    flat = {what: flat for _, what, *_, flat in soak.rows(run)}
    assert flat == dict.fromkeys(["memory_mb", "descriptors", "threads", "files"], "no" if how == "grow" else "yes")


@linux
def test_a_run_that_ends_by_itself_is_an_error(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    with pytest.raises(RuntimeError, match="toy ended with exit code 7"):
        soak.watch([soak.Run("toy", tmp_path, process)], warmup=0, seconds=5, interval=0.05)


def test_drift_is_from_the_first_tenth_to_the_last():
    assert soak.drift([100] * 10 + [500] * 80 + [103] * 10) == pytest.approx(3)
    assert not soak.grows("memory_mb", [100] * 10 + [104] * 10)
    assert soak.grows("memory_mb", [100] * 10 + [106] * 10)
    assert soak.grows("descriptors", [100] * 10 + [101] * 10)
    assert not soak.grows("descriptors", [5] * 9 + [6] * 2 + [5] * 9)


def test_files_may_become_as_many_as_are_kept():
    assert not soak.grows("files", [4] * 10 + [13] * 10)
    assert soak.grows("files", [13] * 10 + [16] * 10)
