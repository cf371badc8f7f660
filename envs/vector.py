"""Environments in worker processes: a SubprocVecEnv that names a worker which dies.

Workers are started by forkserver. After a plain fork each would inherit its siblings' pipes, and
the end of one would go unnoticed. A script that makes such a vector needs ``if __name__ ==
"__main__":`` around what it does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.util import Finalize
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.subproc_vec_env import _worker

from unroll.envs.faults import after, env_fault, numbered
from unroll.errors import EnvError, one_line

PATIENCE = 2.0  # seconds that the workers are given to end


class ProcessVecEnv(SubprocVecEnv):
    """A SubprocVecEnv with the rollouts of DummyVecEnv, bit for bit. `name` stands in its errors.

    Raises:
        EnvError: an environment cannot be made; from every method, its process is dead.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], name: str):
        self.waiting = False
        self.closed = False
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["stable_baselines3.common.vec_env", "mujoco"])  # once for all workers

        workers: list[Worker] = []
        for i, env_fn in enumerate(env_fns):
            workers.append(Worker(name, i, env_fn, context, workers))
        self.remotes: Any = workers
        self.processes = [worker.process for worker in workers]

        # At the interpreter's exit this must come before multiprocessing waits for its children.
        self._finalizer = Finalize(self, end_workers, args=(workers,), exitpriority=1)
        try:
            workers[0].send(("get_spaces", None))
            observation_space, action_space = workers[0].recv()
            VecEnv.__init__(self, len(workers), observation_space, action_space)
        except BaseException:
            self.close()
            raise

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = super().step_wait()
        return self._typed(observations), np.asarray(rewards, np.float32), dones, infos

    def reset(self) -> Any:
        return self._typed(super().reset())

    def _typed(self, observations: Any) -> Any:
        """Give observations the dtypes of their space, as the buffers of DummyVecEnv have them."""
        space = self.observation_space
        if isinstance(space, gym.spaces.Dict):
            return {key: value.astype(space[key].dtype, copy=False) for key, value in observations.items()}
        return observations.astype(space.dtype, copy=False)

    def close(self) -> None:
        """End the processes within seconds, whatever they do. Closing twice is allowed."""
        self.closed = True
        self._finalizer()


class Worker:
    """The process of one environment, as the connection that SubprocVecEnv talks to.

    When one fails, all of `workers` are ended: their answers to the failed call would be read as
    those to the next.
    """

    def __init__(
        self, name: str, i: int, env_fn: Callable[[], gym.Env], context: ForkServerContext, workers: list[Worker]
    ):
        self.name = name
        self.who = numbered(name, i)
        self.workers = workers
        self.action: Any = None
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.connection, CloudpickleWrapper(env_fn))
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()  # now the worker alone holds this end, and its death closes the pipe

    def send(self, message: tuple[str, Any]) -> None:
        if message[0] == "step":
            self.action = message[1]
        # If the process is dead, recv() says so: it follows every send, and may find a last answer
        # first.
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def recv(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            answer = EnvError("")  # it ended without a last word
        if not isinstance(answer, EnvError):
            return answer
        reason = str(answer).removeprefix(f"{self.who}: ").removeprefix(f"{self.name}: ")
        if answer.details:  # an exception of the environment's own code, which says all
            error = EnvError(f"{self.who}: {reason}")
            error.details = answer.details
        else:
            error = self._describe_end(reason)
        end_workers(self.workers)
        raise error

    def _describe_end(self, reason: str) -> EnvError:
        if self.connection.closed:
            return EnvError(f"{self.who}: is closed")

        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is None:
            how = "its process does not answer"
        elif code < 0:
            how = f"its process was ended by signal {-code} ({signal.Signals(-code).name})"
        else:
            how = f"its process ended with exit code {code}"
        if reason:
            how = f"{reason}; {how}"

        when = "before its first action"
        if self.action is not None:
            when = after(self.action)
        return EnvError(one_line(f"{self.who}: {how}, {when}", most=1000))


def end_workers(workers: Sequence[Worker]) -> None:
    """Ask the processes to end, discard what they still say, and kill those that do not."""
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.connection.send(("close", None))

    deadline = time.monotonic() + PATIENCE
    for worker in workers:
        # A process that is about to send a large answer cannot end before somebody reads it.
        with contextlib.suppress(EOFError, OSError):
            while worker.connection.poll(max(0.0, deadline - time.monotonic())):
                worker.connection.recv_bytes()
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()


def serve(theirs: Connection, ours: Connection, env_fn: CloudpickleWrapper) -> None:
    """Run Stable-Baselines3's loop in a worker, until it is told to end or the parent is gone.

    An exception of the environment is the last answer, as an EnvError.
    """
    # Ctrl-C and a batch system's SIGTERM reach the whole process group. The parent needs its
    # environments to finish the step and to save, so it alone decides when they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=end_after_parent, daemon=True).start()
    try:
        _worker(theirs, ours, env_fn)
    except Exception as error:
        if isinstance(error, EnvError):
            last = error
        else:
            last = env_fault(error, "")
        with contextlib.suppress(OSError):  # the parent is gone
            theirs.send(last)
        sys.exit(1)


def end_after_parent() -> None:
    """End this process some seconds after its parent, also where an environment hangs in a step."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    time.sleep(PATIENCE)
    os._exit(1)
