"""Damaged inputs: a sample of those that ``python -m tests.reliability malformed`` and ``fuzz`` make, and others."""

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fake_runs import fake_run
from tests.reliability.malformed import KINDS, draw
from toy import toy_episodes
from unroll.agents import DecisionAgent, RecurrentPPO, schemas
from unroll.agents.common.logs import JsonLines
from unroll.agents.evaluation.scoring import read_evaluation
from unroll.configs import load_config
from unroll.configs.loading import read_config
from unroll.envs import load_episodes, make_vec_env
from unroll.envs.datasets.recording import write_hdf5
from unroll.errors import BackboneError, DatasetError, TrainingError
from unroll.policies.backbones import BACKBONES, make_backbone

ROOT = Path(__file__).parents[2]


def reliability(*arguments):
    """Run a command in a process of its own, because a process with threads cannot be forked."""
    command = [sys.executable, "-m", "tests.reliability", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_sample_of_damaged_inputs_is_refused_in_one_line_each():
    numbers = map(str, range(1, 1 + len(KINDS)))
    assert "| **all** | **15** | **15** |" in reliability("malformed", "--seed", "1", "--only", *numbers)


def test_a_sample_of_mutated_inputs_is_refused_or_whole(tmp_path):
    printed = reliability("fuzz", "--minutes", "0.05", "--keep", str(tmp_path))
    assert re.search(r"\| \*\*all\*\* \| \d+ \| \d+ \| \d+ \| 0 \|", printed)


def test_a_case_depends_on_its_number_and_seed_alone():
    cases = [draw(KINDS, n, 0) for n in range(30)]
    for n, (kind, case) in enumerate(cases):
        again = draw(KINDS, n, 0)[1]
        assert (again.path, again.what) == (case.path, case.what)
        assert kind == list(KINDS)[n % len(KINDS)]


def test_a_flipped_bit_anywhere_in_a_recording_of_ours_is_refused_or_changes_nothing(make_episodes, tmp_path):
    path = tmp_path / "own.hdf5"
    write_hdf5(make_episodes([30] * 4), path, command="x")
    whole, content = load_episodes(str(path)), path.read_bytes()
    random, refused = np.random.default_rng(0), 0
    for at in random.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            episodes = load_episodes(str(path))
        except DatasetError:
            refused += 1
            continue
        for name in ("observations", "actions", "rewards", "lengths", "terminated", "final_observations"):
            np.testing.assert_array_equal(getattr(episodes, name), getattr(whole, name))
        assert episodes.env_id == whole.env_id
    assert refused > 90


def test_a_damaged_evaluation_or_log_of_a_run_is_made_anew_and_stops_nothing(tmp_path):
    fake_run(tmp_path / "run", "gru", 0, 5.0)
    path, log = tmp_path / "run" / "evaluation.json", tmp_path / "run" / "metrics.jsonl"
    evaluation = json.loads(path.read_text())
    assert read_evaluation(path) == evaluation
    for content in (b"", b"\xff\xfe", b"[1]", b"[" * 100_000, json.dumps(evaluation | {"results": 5}).encode()):
        path.write_bytes(content)
        assert read_evaluation(path) is None
    assert read_evaluation(tmp_path / "none") is None
    log.write_bytes(b'{"step": 1, "a": 1.0}\n\xff\xfe\n' + b"[" * 100_000 + b'\n[1]\n{"step": 9}\n')
    JsonLines(log, first_step=5).close()
    assert log.read_text() == '{"step": 1, "a": 1.0}\n'


@pytest.mark.parametrize("name", BACKBONES)
def test_sizes_that_nothing_has_are_refused_before_they_are_built(name):
    for sizes in (dict(d_model=10**9), dict(n_layers=10**9), dict(memory_span=1e30)):
        with pytest.raises(BackboneError, match=f"backbone {name}.*(d_model|n_layers|memory_span)"):
            make_backbone(name, **sizes)


@pytest.mark.parametrize("text", ["9" * 400, "'" + "9" * 400 + "'"])
def test_a_whole_number_that_no_float_holds_is_refused_in_one_line(text, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(f"learning_rate: {text}\n")
    with pytest.raises(SystemExit, match="2"):
        load_config(["--config", str(path)], schemas())
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(SystemExit, match="2"):
        read_config({"max_grad_norm": 10**400}, schemas(), "state.json")
    assert capsys.readouterr().err.startswith("state.json: a number is too large")


def test_an_agent_that_no_memory_holds_is_refused_before_it_is_built():
    kwargs = dict(d_model=2**19, n_layers=2)
    with pytest.raises(TrainingError, match="GiB for d_model, n_layers"):
        DecisionAgent(toy_episodes(2), policy_kwargs=kwargs)
    with pytest.raises(TrainingError, match="GiB for a batch of batch_size 1048576 × context 12"):
        DecisionAgent(toy_episodes(2), batch_size=2**20, policy_kwargs=dict(d_model=2**15))
    with pytest.raises(TrainingError, match="GiB for d_model, n_layers"):
        RecurrentPPO("MlpPolicy", make_vec_env("CartPole-v1"), policy_kwargs=kwargs)
    with pytest.raises(TrainingError, match="GiB for a rollout of n_steps 1000000000000 × n_envs 1"):
        RecurrentPPO("MlpPolicy", make_vec_env("CartPole-v1"), n_steps=10**12)


def test_the_count_before_building_leaves_the_random_numbers_alone():
    DecisionAgent(toy_episodes(2), seed=3)
    after = torch.get_rng_state()
    DecisionAgent(toy_episodes(2), seed=3)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_chunk_larger_than_what_is_stored_is_refused_before_memory_is_taken(fields, write):
    path = write(fields)
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file.create_dataset("rewards", (12,), "f4", maxshape=(None,), chunks=(1 << 29,), compression="gzip")
    with pytest.raises(DatasetError, match=r"rewards declares 2.1e\+09 bytes"):
        load_episodes(str(path))
