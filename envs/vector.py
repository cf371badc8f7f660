"""Environments in processes of their own, of which none can leave the training waiting."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.subproc_vec_env import _worker

from unroll.errors import EnvError

PATIENCE = 2.0  # seconds that a process is given to end


class Failure(NamedTuple):
    """What a worker answers before it ends: the exception, in one line."""

    text: str


class ProcessVecEnv(SubprocVecEnv):
    """Stable-Baselines3's SubprocVecEnv, whose rollouts are those of DummyVecEnv bit for bit, and in which a process
    that dies is an EnvError at once: it names the environment, how the process ended, and the last action.

    Workers are started by forkserver: after a plain fork each holds the other ends of its siblings' pipes, and the
    death of one is never heard of. They leave signals of the terminal to the parent, and end with it however it ends.
    A script that makes one needs ``if __name__ == "__main__":`` around what it does.

    Raises:
        EnvError: an environment cannot be made; from every method: its process is dead.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], name: str):
        self.waiting, self.closed = False, False
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["stable_baselines3.common.vec_env", "mujoco"])  # once for all workers
        lines: list[Line] = []
        for i, env_fn in enumerate(env_fns):
            ours, theirs = context.Pipe()
            arguments = (theirs, ours, CloudpickleWrapper(env_fn))
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            lines.append(Line(f"environment {i} ({name})", ours, process, lines))
        self.remotes: Any = lines
        self.processes = [line.process for line in lines]
        # also where nobody closes it, before Python waits for its children
        self._finalizer = Finalize(self, hang_up, args=(lines,), exitpriority=1)
        try:
            self.remotes[0].send(("get_spaces", None))
            observation_space, action_space = self.remotes[0].recv()
            VecEnv.__init__(self, len(lines), observation_space, action_space)
        except BaseException:
            self.close()
            raise

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = super().step_wait()
        return self._typed(observations), np.asarray(rewards, np.float32), dones, infos

    def reset(self) -> Any:
        return self._typed(super().reset())

    def _typed(self, observations: Any) -> Any:
        """With the dtypes of the space, as DummyVecEnv's buffers have them."""
        space = self.observation_space
        if isinstance(space, gym.spaces.Dict):
            return {key: value.astype(space[key].dtype, copy=False) for key, value in observations.items()}
        return observations.astype(space.dtype, copy=False)

    def close(self) -> None:
        """End the processes: within seconds, whatever they do. More than once is no mistake."""
        self.closed = True
        self._finalizer()


class Line:
    """To the process of one environment, with the methods of a Connection. ``who`` it is, in words; ``lines`` are those
    of all, which are closed when one fails: the answers that the others still have to a question would be taken for
    those to the next."""

    def __init__(self, who: str, connection: Connection, process: Any, lines: list[Line]):
        self.who, self.connection, self.process, self.lines = who, connection, process, lines
        self.action: Any = None

    def send(self, message: tuple[str, Any]) -> None:
        if message[0] == "step":
            self.action = message[1]
        try:
            self.connection.send(message)
        except OSError:
            while True:  # what it said before, its last words, or that there are none
                self.recv()

    def recv(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._died(None) from None
        if isinstance(answer, Failure):
            raise self._died(answer.text)
        return answer

    def close(self) -> None:
        self.connection.close()

    def _died(self, reason: str | None) -> EnvError:
        if self.connection.closed:
            return EnvError(f"{self.who}: is closed")
        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is None:
            end = "its process does not answer"
        elif code < 0:
            end = f"its process was ended by signal {-code} ({signal.Signals(-code).name})"
        else:
            end = f"its process ended with exit code {code}"
        when = "before its first action"
        if self.action is not None:
            when = f"after the action {np.array2string(np.asarray(self.action), precision=4, threshold=8)}"
        what = f"{reason}; {end}" if reason else end
        hang_up(self.lines)
        return EnvError(f"{self.who}: {what}, {when}".replace("\n", " "))


def hang_up(lines: Sequence[Line]) -> None:
    """Ask all workers to end, hear out what they still say, and kill those that do not end."""
    for line in lines:
        with contextlib.suppress(OSError):
            line.connection.send(("close", None))
    until = time.monotonic() + PATIENCE
    for line in lines:
        with contextlib.suppress(EOFError, OSError):
            while line.connection.poll(max(0.0, until - time.monotonic())):
                line.connection.recv_bytes()
        line.process.join(max(0.0, until - time.monotonic()))
        if line.process.is_alive():
            line.process.kill()
            line.process.join()
        line.connection.close()


def serve(theirs: Connection, ours: Connection, env_fn: CloudpickleWrapper) -> None:
    """A worker's life: Stable-Baselines3's loop, until it is told to end or the parent is no more.

    Ctrl-C and a batch system's SIGTERM reach every process of a group; the parent finishes its step and saves, for
    which it needs its environments.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _worker(theirs, ours, env_fn)
    except Exception as error:
        with contextlib.suppress(OSError):  # the parent is no more
            theirs.send(Failure(in_one_line(error)))
        sys.exit(1)


def in_one_line(error: Exception) -> str:
    """An exception's type, message and place; of an EnvError the message is enough."""
    message = " ".join(str(error).split())
    if isinstance(error, EnvError):
        return message
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {message} ({Path(frame.filename).name}, line {frame.lineno})"
