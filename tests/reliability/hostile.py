"""Files that somebody made on purpose.

Code to run, sizes that no machine has, bombs, ways out of the folder, and a state.json that is well-formed and means
nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import h5py

from tests.reliability import victims
from tests.reliability.cases import CANARY, Case
from tests.reliability.damage import CHECKPOINTS, other_bytes
from tests.reliability.edits import read_tree, set_value, write_tree
from unroll.agents.common.checkpoint import TENSORS

CODE = ("os:mkdir", "os:system", "subprocess:call", "builtins:eval", "posix:system", "runpy:run_path", "shutil:rmtree")
WRONG = ("many", [], {}, None, -1, 1.5, True, [[1]], {"a": 1}, "\ud800", 1e308)
ARRAYS = {"own.hdf5": "observations", "foreign.hdf5": "actions", victims.MINARI_DATA: "episode_0/rewards"}

# Where a file names code, where it gives a size, and which values of a checkpoint must mean something.
NAMES = {
    "decision.yaml": "backbone.name evaluation.env",
    "ppo.yaml": "backbone.name env",
    victims.DECISION_STATE: "policy.backbone task.env",
    victims.PPO_STATE: "config.backbone.name config.env",
}
ALL_SIZES = "backbone.d_model backbone.n_layers backbone.match_parameters backbone.options evaluation.episodes threads"
SIZES = {
    "decision.yaml": f"batch_size context {ALL_SIZES}",
    "ppo.yaml": f"n_envs n_steps net_arch {ALL_SIZES}",
    victims.DECISION_STATE: "policy.d_model policy.n_layers policy.context policy.max_timestep policy.observation_dim "
    "policy.action_space policy.backbone_options",
    victims.PPO_STATE: "config.backbone.d_model config.backbone.n_layers config.backbone.options config.net_arch "
    "config.n_steps",
}
MEANINGS = {
    victims.DECISION_STATE: "num_timesteps total_timesteps config policy memory task format agent config.context "
    "config.batch_size config.optimizer config.learning_rate config.schedule config.max_grad_norm config.top_fraction "
    "config.precision config.seed policy.observation_dim policy.action_space policy.backbone policy.d_model "
    "policy.n_layers policy.backbone_options policy.tokens policy.condition policy.dropout policy.max_timestep "
    "policy.action_modes policy.action_space.type policy.action_space.low task.env task.reference_returns "
    "task.return_quantiles",
    victims.PPO_STATE: "num_timesteps n_updates config format agent config.agent config.env config.backbone "
    "config.backbone.d_model config.n_steps config.gamma config.evaluation config.activation config.schedule "
    "config.steps",
}


def draw_keys(rng: Random, places: dict[str, str]) -> tuple[str, str]:
    """Draw a file, and the keys of a value in it."""
    path = rng.choice(sorted(places))
    return path, rng.choice(places[path].split())


def other_value(path: str, keys: str, value: Any) -> Case:
    """Set a value. Of a config the line must name the keys or the value."""
    case = Case(path, f"{keys} is {value!r}", lambda file: set_value(file, keys, value))
    if path in victims.CONFIGS:
        case.names = (*keys.split("."), str(value))
    elif path == victims.PPO_STATE and keys.startswith("config"):
        case.readers = (victims.EVALUATE, victims.RECORD)  # a run that goes on has its config.yaml instead
    return case


def evil_entry_point(rng: Random) -> Case:
    """Name code where an environment or a backbone is named."""
    code = rng.choice(CODE)
    if rng.random() < 0.5:
        return other_value(*draw_keys(rng, NAMES), code)

    def infect_recording(file: Path) -> None:
        with h5py.File(file, "a") as recording:
            recording.attrs["env"] = code

    if rng.random() < 0.5:
        return Case(rng.choice(victims.RECORDINGS), f"env is {code}", infect_recording)
    entry = {"entry_point": code, "kwargs": {"path": CANARY}}
    known = {"id": "Pendulum-v1", "entry_point": None}
    wrapped = known | {"additional_wrappers": [{"name": "Evil", **entry}]}
    spec = rng.choice((known | entry, {"id": "Evil-v0", **entry}, known | {"id": code}, wrapped))

    def infect_minari(file: Path) -> None:
        metadata = read_tree(file) | {"env_spec": json.dumps(spec)}
        if rng.random() < 0.3:  # Minari would make the environment to learn its spaces
            del metadata["observation_space"]
            del metadata["action_space"]
        write_tree(file, metadata)

    return Case(victims.METADATA, f"env_spec is {spec}", infect_minari)


def absurd_sizes(rng: Random) -> Case:
    """Declare a size that no machine has."""
    huge = rng.choice((10**9, 10**12, 10**18, 10**30))
    if rng.random() < 0.5:
        path, keys = draw_keys(rng, SIZES)
        return other_value(path, keys, size_at(rng, path, keys, huge))
    if rng.random() < 0.5:
        path = rng.choice(sorted(ARRAYS))
        how = rng.choice(sorted(DECLARED))
        return Case(path, how, lambda file: declare(file, ARRAYS[path], how))
    discrete = {"type": "Discrete", "dtype": "int64", "start": 0, "n": min(huge, 10**18)}
    box = {"type": "Box", "dtype": "float32", "shape": [min(huge, 10**12)], "low": 0.0, "high": 1.0}
    space = json.dumps(rng.choice((discrete, box)))
    return other_value(victims.METADATA, *rng.choice((("total_episodes", huge), ("observation_space", space))))


def size_at(rng: Random, path: str, keys: str, huge: int) -> Any:
    """Give a huge size the form that it has at these keys."""
    last = keys.split(".")[-1]
    if path in victims.STATES and last in ("d_model", "n_layers"):
        return rng.choice((huge, 30_000))  # the second: more than the file has tensors for, not more than memory
    if last.endswith("options"):
        return {"expansion": huge}
    return {"net_arch": [huge], "action_space": {"type": "Discrete", "n": huge}}.get(last, huge)


DECLARED: dict[str, dict[str, Any]] = {
    "rows": dict(shape=(10**14, 3), chunks=(1 << 16, 3)),
    "width": dict(shape=(600, 10**12), chunks=(1, 1 << 16)),
    "chunks": dict(shape=(600, 3), maxshape=(None, None), chunks=(1 << 15, 1 << 14), compression="gzip"),
}


def declare(path: Path, name: str, how: str) -> None:
    """Let an array of an HDF5 file say that it is larger than any disk, or one chunk of it than memory."""
    with h5py.File(path, "a") as file:
        del file[name]
        item = file.create_dataset(name, dtype="f4", **DECLARED[how])
        if how == "chunks":  # one chunk of 2 GiB, of a few stored bytes
            item.id.write_direct_chunk((0, 0), b"x\x9c\x03\x00\x00\x00\x00\x01")


def bombs(rng: Random) -> Case:
    """Nest deeply, refer to references of references, use tags that make objects."""
    depth = rng.choice((2_000, 50_000, 400_000))
    nested = "[" * depth + "]" * depth
    paths = rng.choice((victims.MANIFESTS, victims.STATES, (victims.METADATA,)))
    texts = [nested, "[" * depth, '{"a":' * depth + "1" + "}" * depth, f'{{"a": {nested}}}']
    if rng.random() < 0.5:
        # Nine references to nine references, eight times: 9⁹ values in a few hundred bytes.
        aliases = "a: &a [x,x,x,x,x,x,x,x,x]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True):
            aliases += f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
        paths = victims.CONFIGS + victims.SAVED_CONFIGS
        texts = [f"backbone: {text}" for text in texts] + [
            f"{aliases}backbone: {{options: {{expansion: *i}}}}\n",
            "backbone: &a {options: {b: &b [*a, *a]}}\n",
            f"steps: !!python/object/apply:os.mkdir [{CANARY}]",
            "steps: !!python/name:os.system",
            "steps: !!binary x",
            f"experiment: {'x' * 30_000_000}",
        ]
    text = rng.choice(texts).encode()
    return other_bytes(rng, lambda rng, file: text, paths)


SOURCES = (
    *("minari:../decision-v0", "minari:unit/../../x-v0", "minari:/etc/passwd-v0", "minari:unit/.-v0"),
    *("d4rl:../own", "embedded:../own", "embedded:../../own"),
)


def ways_out(rng: Random) -> Case:
    """Lead out of the folder: ids and names with .., links, data in other files."""
    how = rng.choice(("id", "experiment", "link", "manifest", "external", "external link", "virtual"))
    if how == "id":
        source = rng.choice(SOURCES)
        return Case("own.hdf5", source, lambda file: None, (source,), argument=source)
    if how == "experiment":
        return other_value(rng.choice(victims.CONFIGS), how, rng.choice(("../x", "a/../../x", "/tmp/x", "a/..")))
    if how == "link":
        return Case(rng.choice(CHECKPOINTS), "a link to outside", link_outside)
    if how == "manifest":
        return Case(rng.choice(victims.MANIFESTS), "names another file", lambda file: mention_outside(rng, file))
    path = rng.choice(sorted(ARRAYS))
    return Case(path, f"{how} data", lambda file: place_outside(file, ARRAYS[path], how))


def link_outside(path: Path) -> None:
    """Move a file out of its run and leave a link to it."""
    elsewhere = path.parents[3] / "elsewhere"
    os.replace(path, elsewhere)
    path.symlink_to(elsewhere)


def mention_outside(rng: Random, path: Path) -> None:
    """Let a manifest name another file, beside or instead of one of the checkpoint's own."""
    name = rng.choice(("../../../../etc/passwd", "/etc/passwd", f"../{TENSORS}", "more.bin"))
    manifest = read_tree(path)
    manifest[name] = rng.choice((manifest.pop, manifest.get))(TENSORS)
    write_tree(path, manifest)


def place_outside(path: Path, name: str, how: str) -> None:
    """Put an array into another file, which is there and holds what fits."""
    elsewhere = path.with_name("elsewhere")
    with h5py.File(path, "a") as file:
        values = file.pop(name)[()]
        if how == "external":
            values.tofile(elsewhere)
            file.create_dataset(name, values.shape, values.dtype, external=[(str(elsewhere), 0, values.nbytes)])
            return
        with h5py.File(elsewhere, "w") as other:
            other["values"] = values
        if how == "external link":
            file[name] = h5py.ExternalLink(str(elsewhere), "values")
            return
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource(str(elsewhere), "values", values.shape)
        file.create_virtual_dataset(name, layout)


def nonsense(rng: Random) -> Case:
    """Put a value of another type into a state.json whose manifest agrees with it."""
    path, keys = draw_keys(rng, MEANINGS)
    wrong = rng.choice([value for value in WRONG if not may_be(keys.split(".")[-1], value)])
    return other_value(path, keys, wrong)


def may_be(key: str, value: Any) -> bool:
    """Tell whether the value is right there after all: an option left out, some environment, a number."""
    if value == "many":
        return key == "env"
    if isinstance(value, float):
        return key in ("learning_rate", "max_grad_norm", "top_fraction", "dropout")
    left_out = ("backbone_options", "env", "reference_returns", "task", "evaluation", "backbone")
    return value in (None, {}, []) and key in left_out
