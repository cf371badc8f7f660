"""What is damaged: small runs of both agents, a config of each, recordings of ours and of others. All are accepted as
they are."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from unroll.agents import schemas
from unroll.agents.algorithm import make_job
from unroll.agents.common.checkpoint import MANIFEST, STATE, TENSORS
from unroll.commands import evaluate, train
from unroll.commands import record as collect
from unroll.configs import load_config, save_config
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.recording import Recorded, Recorder, to_episodes, write_hdf5, write_minari
from unroll.envs.make import make_env

MINARI = "unit/pendulum-v0"
MINARI_DATA = f"minari_datasets_path/{MINARI}/data"
SMALL = ["--backbone.d_model", "8", "--backbone.n_layers", "1", "--evaluation.episodes", "1", "--device", "cpu"]
DECISION = ["--dataset", "own.hdf5", *SMALL, "--batch_size", "4", "--context", "5", "--log_every", "1"]
PPO = ["--agent", "ppo", "--env", "CartPole-v1", *SMALL, "--n_envs", "2", "--n_steps", "8", "--evaluation.ablation"]
PPO += ["false", "--normalize_observation", "true"]
TRAIN = ["--steps", "2", "--run_dir", "new"]


def evaluated(run: str) -> int:
    return evaluate.main([run, "--episodes", "1"])


def resumed(run: str) -> int:
    return train.main(["--resume", "true", "--run_dir", run, "--steps", "1000"])


def recorded(run: str) -> int:
    return collect.main(["--run", run, "--episodes", "1", "--output", "out.hdf5"])


def configured(path: str) -> int:
    return train.main(["--config", path, *TRAIN])


def trained_on(source: str) -> int:
    return train.main([*DECISION, "--dataset", source, *TRAIN])


READERS: dict[str, Callable[[str], int]] = {
    "evaluate.py": evaluated,
    "train.py --resume": resumed,
    "unroll.commands.record --run": recorded,
    "train.py --config": configured,
    "train.py --dataset": trained_on,
}
OF_RUNS = ("evaluate.py", "train.py --resume", "unroll.commands.record --run")


def build(folder: Path) -> int:
    """Make all of them in ``folder``, the current one, where DECISION and PPO leave their runs."""
    episodes = play_randomly("Pendulum-v1", 3)
    write_hdf5(episodes, "own.hdf5")
    write_foreign(episodes, Path("foreign.hdf5"))
    write_minari(episodes, MINARI, description="random", author="a", author_email="a", code_permalink="a")
    for name, arguments in (("decision", DECISION), ("ppo", PPO)):
        config = load_config([*arguments, "--steps", "16"], schemas())
        job, run = make_job(config, lambda _: None), Path(f"{name}_run")
        job.agent.learn(16, job.callbacks)
        job.save(run / "checkpoints" / "step_00000016")
        save_config(config, run / "config.yaml")
        shutil.copy(run / "config.yaml", f"{name}.yaml")
    return 0


def play_randomly(env_id: str, n: int) -> Episodes:
    done: list[Recorded] = []
    env = Recorder(make_env(env_id), done)
    env.action_space.seed(0)
    while len(done) < n:
        env.reset(seed=len(done))
        while not any(env.step(env.action_space.sample())[2:4]):
            pass
    return to_episodes(done, make_env(env_id), "random")


def write_foreign(episodes: Episodes, path: Path) -> None:
    """With D4RL's fields, as other tools write them: no compression and no checksums."""
    last = episodes.starts + episodes.lengths - 1
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards"):
            file[name] = getattr(episodes, name)
        for name, flags in (("terminals", episodes.terminated), ("timeouts", ~episodes.terminated)):
            file[name] = np.isin(np.arange(episodes.n_steps), last[flags])
        file.attrs["env"] = episodes.env_id or ""


def checkpoint_of(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def rewrite(checkpoint: Path, tensors: bytes | None = None, state: Any = None) -> None:
    """Other contents under a manifest that agrees with them; a ``state`` that is not bytes is written as JSON."""
    if tensors is not None:
        (checkpoint / TENSORS).write_bytes(tensors)
    if state is not None:
        (checkpoint / STATE).write_bytes(state if isinstance(state, bytes) else json.dumps(state).encode())
    contents = {name: (checkpoint / name).read_bytes() for name in (TENSORS, STATE)}
    manifest = {k: {"bytes": len(v), "sha256": hashlib.sha256(v).hexdigest()} for k, v in contents.items()}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
