"""Files that are whole, and hold what nobody can use: other shapes and types, NaN, and contents that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save

from benchmarks.reliability import cases
from benchmarks.reliability.cases import Case
from benchmarks.reliability.victims import rewrite
from unroll.agents.common.checkpoint import STATE, TENSORS

FIELDS = ("observations", "actions", "rewards", "terminals", "timeouts")
OF_EPISODES = ("observations", "actions", "rewards", "terminations", "truncations")


def wrong_shapes(rng: Random) -> Case:
    return rng.choice((_tensor_shape, _recording_shape, _minari_shape))(rng)


def wrong_types(rng: Random) -> Case:
    return rng.choice((_tensor_type, _recording_type, _minari_type))(rng)


def not_finite(rng: Random) -> Case:
    value = rng.choice((np.nan, np.inf, -np.inf))
    place = rng.choice(("checkpoint", "recording", "minari", "config"))
    if place == "config":
        key = rng.choice(("learning_rate", "learning_rate", "max_grad_norm"))
        value = np.nan if key == "max_grad_norm" else value  # infinity: never clipped
        text = {np.inf: ".inf", -np.inf: "-.inf"}.get(value, ".nan")
        return cases.config(rng).case(f"{key} is {text}", lambda path: set_yaml(path, key, text), key)
    if place == "checkpoint":
        share = rng.random()

        def spoil(tensors: dict[str, torch.Tensor]) -> None:
            names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
            tensors[names[int(share * len(names))]].view(-1)[-1] = value

        return cases.checkpoint(rng).case(
            f"{value} in a tensor", lambda path: change_tensors(path, spoil), "checkpoints"
        )
    if place == "recording":
        name = rng.choice(("observations", "actions", "rewards"))
        return cases.recording(rng).case(
            f"{value} in {name}", lambda path: change_array(path, name, lambda x: _with(x, value))
        )
    name = rng.choice(("observations", "actions", "rewards"))
    return cases.minari(rng, "main_data.hdf5").case(
        f"{value} in {name}", lambda path: change_array(path, f"episode_1/{name}", lambda x: _with(x, value))
    )


def _with(values: np.ndarray, value: float) -> np.ndarray:
    values.reshape(-1)[-1] = value
    return values


def _tensor_shape(rng: Random) -> Case:
    share, how = rng.random(), rng.choice(("longer", "transposed", "scalar", "empty", "missing", "one more"))

    def reshape(tensors: dict[str, torch.Tensor]) -> None:
        names = [name for name, tensor in tensors.items() if tensor.ndim == (2 if how == "transposed" else 1)]
        names = [name for name in names if how != "transposed" or tensors[name].shape[0] != tensors[name].shape[1]]
        name = names[int(share * len(names))]
        tensor = tensors.pop(name)
        if how == "one more":
            tensors |= {name: tensor, f"{name}.more": tensor.clone()}
        elif how != "missing":
            changed = {"longer": torch.cat([tensor, tensor]), "transposed": tensor.t(), "scalar": tensor.sum()}
            tensors[name] = changed.get(how, tensor[:0]).contiguous()

    return cases.checkpoint(rng).case(f"a tensor is {how}", lambda path: change_tensors(path, reshape))


def _tensor_type(rng: Random) -> Case:
    share = rng.random()
    dtype = rng.choice((torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64))

    def cast(tensors: dict[str, torch.Tensor]) -> None:
        name = sorted(tensors)[int(share * len(tensors))]
        tensors[name] = tensors[name].to(dtype)

    return cases.checkpoint(rng).case(f"a tensor is {dtype}", lambda path: change_tensors(path, cast))


def _recording_shape(rng: Random) -> Case:
    changes = {
        "two short": lambda x: x[:-2],
        "a matrix wider": lambda x: np.stack([x, x, x], 1),
        "without steps": lambda x: x[:0],
        "a number": lambda x: x.reshape(-1)[0],
        "gone": lambda x: None,
    }
    how, name = rng.choice(list(changes)), rng.choice(FIELDS[:4])
    return cases.recording(rng).case(f"{name} is {how}", lambda path: change_array(path, name, changes[how]))


def _recording_type(rng: Random) -> Case:
    name, how = rng.choice(FIELDS), rng.choice(list(TYPES))
    return cases.recording(rng).case(f"{name} is {how}", lambda path: change_array(path, name, TYPES[how]))


def _minari_shape(rng: Random) -> Case:
    changes = {
        "two short": lambda x: x[:-2],
        "wider": lambda x: np.concatenate([x, x], -1) if x.ndim > 1 else np.stack([x, x], 1),
        "without steps": lambda x: x[:0],
        "a number": lambda x: x.reshape(-1)[0],
        "gone": lambda x: None,
    }
    how, name = rng.choice(list(changes)), rng.choice(OF_EPISODES)
    return cases.minari(rng, "main_data.hdf5").case(
        f"{name} is {how}", lambda path: change_array(path, f"episode_1/{name}", changes[how])
    )


def _minari_type(rng: Random) -> Case:
    name, how = rng.choice(OF_EPISODES), rng.choice(list(TYPES))
    return cases.minari(rng, "main_data.hdf5").case(
        f"{name} is {how}", lambda path: change_array(path, f"episode_1/{name}", TYPES[how])
    )


TYPES = {
    "text": lambda x: np.array(["left"] * len(x), dtype=h5py.string_dtype()),
    "bytes": lambda x: np.full(x.shape, b"12"),
    "complex": lambda x: x.astype(np.complex64),
    "records": lambda x: np.zeros(x.shape, [("a", "f4"), ("b", "i4")]),
    "lists of many lengths": lambda x: np.array([np.ones(i % 3) for i in range(len(x))], object),
}


def change_tensors(checkpoint: Path, change: Any) -> None:
    """Other tensors under a manifest that agrees with them."""
    tensors = {name: tensor.clone() for name, tensor in load_file(checkpoint / TENSORS).items()}
    change(tensors)
    rewrite(checkpoint, tensors=save(tensors))


def change_state(checkpoint: Path, keys: tuple[str, ...], value: Any) -> None:
    """Another value at ``keys`` of state.json, under a manifest that agrees with it."""
    state = json.loads((checkpoint / STATE).read_text())
    inner = state
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    rewrite(checkpoint, state=state)


def change_array(path: Path, name: str, change: Any) -> None:
    """Another array in an HDF5 file; none where ``change`` gives None."""
    with h5py.File(path, "a") as file:
        changed = change(file[name][()])
        del file[name]
        if changed is None:
            return
        vlen = isinstance(changed, np.ndarray) and changed.dtype == object and isinstance(changed[0], np.ndarray)
        file.create_dataset(name, data=changed, dtype=h5py.vlen_dtype(np.float32) if vlen else None)


def set_yaml(path: Path, key: str, text: str) -> None:
    """Another value, as it is written, at ``key`` or ``outer.key`` of a config."""
    fields = yaml.safe_load(path.read_text())
    *outer, last = key.split(".")
    inner = fields
    for name in outer:
        inner = inner[name]
    inner[last] = "PLACE"
    path.write_text(yaml.safe_dump(fields, sort_keys=False).replace("PLACE", text))
