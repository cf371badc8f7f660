"""The files that are damaged: small runs of both agents, a config of each, recordings of ours and of another tool.

All of them are accepted as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py

from tests.reliability import forks
from unroll.agents import AGENTS, schemas
from unroll.agents.common.checkpoint import MANIFEST, STATE, TENSORS
from unroll.commands import evaluate, record, train
from unroll.configs import load_config, save_config
from unroll.envs.datasets import cache
from unroll.envs.datasets.episodes import Episodes
from unroll.envs.datasets.recording import Recorded, Recorder, to_episodes, write_hdf5, write_minari
from unroll.envs.make import make_env
from unroll.policies.backbones import count_parameters

# Paths below the folder that holds all of them. The first part of each is copied as a whole.
RUNS = ("decision_run", "ppo_run")
STEP = "checkpoints/step_00000016"
TENSOR_FILES = tuple(f"{run}/{STEP}/{TENSORS}" for run in RUNS)
STATES = DECISION_STATE, PPO_STATE = tuple(f"{run}/{STEP}/{STATE}" for run in RUNS)
MANIFESTS = tuple(f"{run}/{STEP}/{MANIFEST}" for run in RUNS)
SAVED_CONFIGS = tuple(f"{run}/config.yaml" for run in RUNS)
CONFIGS = ("decision.yaml", "ppo.yaml")
RECORDINGS = ("own.hdf5", "foreign.hdf5")
MINARI = "minari:unit/pendulum-v0"
MINARI_DATA = "minari_datasets_path/unit/pendulum-v0/data/main_data.hdf5"
METADATA = "minari_datasets_path/unit/pendulum-v0/data/metadata.json"
CACHE = (*(f"entry/{name}.npy" for name in (*cache.ARRAYS, "low", "high")), *["entry/meta.json"] * 9)  # as often

SMALL = "--backbone.d_model 8 --backbone.n_layers 1 --evaluation.episodes 1 --device cpu"
FLAGS = {
    "decision": f"--dataset own.hdf5 {SMALL} --batch_size 4 --context 5 --log_every 1".split(),
    "ppo": f"--agent ppo --env CartPole-v1 {SMALL} --n_envs 2 --n_steps 8 --evaluation.ablation false "
    "--normalize_observation true".split(),
}
NEW = ["--steps", "2", "--run_dir", "new"]
READERS: dict[str, Callable[[str], int]] = {
    "unroll evaluate": lambda run: evaluate.main([run, "--episodes", "1"]),
    "unroll train --resume": lambda run: train.main(["--resume", "true", "--run_dir", run, "--steps", "1000"]),
    "unroll record --run": lambda run: record.main(["--run", run, "--episodes", "1", "--output", "out.hdf5"]),
    "unroll train --config": lambda path: train.main(["--config", path, *NEW]),
    "unroll train --dataset": lambda source: train.main([*FLAGS["decision"], "--dataset", source, *NEW]),
}
EVALUATE, RESUME, RECORD, CONFIG, DATASET = READERS


def reading(path: str) -> tuple[tuple[str, ...], str, str]:
    """Say who reads a file, what the reader is given, and what it calls the file."""
    if path in SAVED_CONFIGS:
        return (EVALUATE, RESUME), path.split("/")[0], "config.yaml"
    if path.startswith(RUNS):
        return (EVALUATE, RESUME, RECORD), path.split("/")[0], "checkpoints/"
    if path in (MINARI_DATA, METADATA):
        return (DATASET,), MINARI, MINARI.removeprefix("minari:")
    return (CONFIG if path in CONFIGS else DATASET,), path, path


def make(top: Path) -> Path:
    """Make all of them in a new folder in ``top``, in a child, and return the folder."""
    _import_all()
    healthy = top / "healthy"
    healthy.mkdir()
    code, stderr, _ = forks.run(_make, healthy, seconds=300)
    if code != 0:
        raise SystemExit(f"cannot make what is to be damaged:\n{stderr}")
    return healthy


def _import_all() -> None:
    """Import everything that a command imports later, on one thread."""
    import minari  # noqa: F401
    import torch.utils.tensorboard

    from unroll.agents.evaluation import scoring  # noqa: F401

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

    # The first model that is only counted and the first fused optimizer import parts of PyTorch that take seconds.
    count_parameters("mingru", 8, 1, {})
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)


def _make() -> None:
    episodes = play_randomly("Pendulum-v1", 3)
    write_hdf5(episodes, "own.hdf5")
    about = dict(description="random", author="a", author_email="a", code_permalink="a")
    write_minari(episodes, MINARI.removeprefix("minari:"), **about)
    cache._write(episodes, Path("entry").absolute())

    # Another tool's file has the same fields without compression and checksums.
    with h5py.File("own.hdf5") as own, h5py.File("foreign.hdf5", "w") as foreign:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            foreign[name] = own[name][()]
        foreign.attrs["env"] = "Pendulum-v1"

    for name, flags in FLAGS.items():
        config = load_config([*flags, "--steps", "16"], schemas())
        training = AGENTS[name].training(config, lambda line: None)
        training.agent.learn(16, training.callbacks)
        run = Path(f"{name}_run")
        training.save(run / STEP)
        save_config(config, run / "config.yaml")
        shutil.copy(run / "config.yaml", f"{name}.yaml")


def play_randomly(env_id: str, n: int) -> Episodes:
    """Record ``n`` episodes of random actions."""
    done: list[Recorded] = []
    env = Recorder(make_env(env_id), done)
    env.action_space.seed(0)
    while len(done) < n:
        env.reset(seed=len(done))
        while not any(env.step(env.action_space.sample())[2:4]):
            pass
    return to_episodes(done, make_env(env_id), "random")
