"""Files that somebody made on purpose: code to run, sizes that no machine has, bombs, ways out of the folder; and a
state.json that is well-formed and means nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import h5py

from benchmarks.reliability import cases
from benchmarks.reliability.cases import Case
from benchmarks.reliability.damage import CANARY
from benchmarks.reliability.values import change_state, set_yaml
from benchmarks.reliability.victims import rewrite
from unroll.agents.common.checkpoint import MANIFEST, STATE, TENSORS

CODE = ("os:mkdir", "os:system", "subprocess:call", "builtins:eval", "posix:system", "runpy:run_path", "shutil:rmtree")
HUGE = (10**9, 10**12, 10**18, 10**30)


def evil_entry_point(rng: Random) -> Case:
    code = rng.choice(CODE)
    place = rng.choice(("config", "checkpoint", "minari", "recording"))
    if place == "config":
        target = cases.config(rng)
        keys = ("backbone.name", "env") if target.name == "ppo.yaml" else ("backbone.name", "evaluation.env")
        key = rng.choice(keys)
        return target.case(f"{key} is {code}", lambda path: set_yaml(path, key, code), key.split(".")[0], code)
    if place == "checkpoint":
        run, keys = rng.choice(
            (
                ("decision_run", ("policy", "backbone")),
                ("decision_run", ("task", "env")),
                ("ppo_run", ("config", "backbone", "name")),
                ("ppo_run", ("config", "env")),
            )
        )
        target = cases.checkpoint(rng, run)
        if run == "ppo_run" and target.reader == "train.py --resume":  # which has the run's config.yaml for that
            target.reader = "evaluate.py"
        return target.case(f"{'.'.join(keys)} is {code}", lambda path: change_state(path, keys, code))
    if place == "recording":
        return cases.recording(rng).case(f"env is {code}", lambda path: set_attribute(path, "env", code))
    spec = {"id": rng.choice(("Pendulum-v1", "Evil-v0")), "entry_point": code, "kwargs": {"path": CANARY}}
    how = rng.choice(("entry_point", "id", "wrapper", "no spaces"))
    if how == "id":
        spec = {"id": code, "entry_point": None}
    elif how == "wrapper":
        wrapper = {"name": "Evil", "entry_point": code, "kwargs": {"path": CANARY}}
        spec = {"id": "Pendulum-v1", "entry_point": None, "additional_wrappers": [wrapper]}

    def infect(path: Path) -> None:
        metadata = json.loads(path.read_text()) | {"env_spec": json.dumps(spec)}
        if how == "no spaces":
            del metadata["observation_space"], metadata["action_space"]
        path.write_text(json.dumps(metadata))

    return cases.minari(rng, "metadata.json").case(f"{how} is {code}", infect)


def absurd_sizes(rng: Random) -> Case:
    huge = rng.choice(HUGE)
    place = rng.choice(("config", "checkpoint", "recording", "minari"))
    if place == "config":
        target = cases.config(rng)
        own = ("n_envs", "n_steps", "net_arch") if target.name == "ppo.yaml" else ("batch_size", "context")
        sizes = ("backbone.d_model", "backbone.n_layers", "backbone.match_parameters", "backbone.options")
        key = rng.choice((*own, *sizes, "evaluation.episodes", "threads"))
        text = {"net_arch": f"[{huge}]", "backbone.options": f"{{expansion: {huge}}}"}.get(key, str(huge))
        names = {"backbone.options": ("expansion",), "backbone.match_parameters": ("match_parameters", "d_model")}.get(
            key, (key.rpartition(".")[2],)
        )
        return target.case(f"{key} is {text}", lambda path: set_yaml(path, key, text), *names)
    if place == "checkpoint":
        run, keys = rng.choice(
            (
                ("decision_run", ("policy", "d_model")),
                ("decision_run", ("policy", "n_layers")),
                ("decision_run", ("policy", "context")),
                ("decision_run", ("policy", "max_timestep")),
                ("decision_run", ("policy", "observation_dim")),
                ("decision_run", ("policy", "action_space")),
                ("decision_run", ("policy", "backbone_options")),
                ("ppo_run", ("config", "backbone", "d_model")),
                ("ppo_run", ("config", "backbone", "n_layers")),
                ("ppo_run", ("config", "backbone", "options")),
                ("ppo_run", ("config", "net_arch")),
                ("ppo_run", ("config", "n_steps")),
            )
        )
        value: Any = rng.choice((huge, 30_000)) if keys[-1] in ("d_model", "n_layers") else huge
        value = {
            "action_space": {"type": "Discrete", "n": huge},
            "backbone_options": {"expansion": huge},
            "options": {"expansion": huge},
            "net_arch": [huge],
        }.get(keys[-1], value)
        target = cases.checkpoint(rng, run)
        if run == "ppo_run" and target.reader == "train.py --resume":
            target.reader = "unroll.commands.record --run"
        return target.case(f"{'.'.join(keys)} is {value}", lambda path: change_state(path, keys, value))
    if place == "recording":
        name, how = rng.choice(("observations", "actions", "rewards")), rng.choice(("rows", "width", "chunks"))
        return cases.recording(rng).case(f"{how} of {name}", lambda path: declare(path, name, how))
    how = rng.choice(("data", "total_episodes", "Box", "Discrete"))
    name = rng.choice(("observations", "actions", "rewards"))
    if how == "data":
        size = rng.choice(("rows", "width", "chunks"))
        target = cases.minari(rng, "main_data.hdf5")
        return target.case(f"{size} of {name}", lambda path: declare(path, f"episode_0/{name}", size))
    space = {"type": "Discrete", "dtype": "int64", "start": 0, "n": min(huge, 10**18)}
    if how == "Box":
        space = {"type": "Box", "dtype": "float32", "shape": [min(huge, 10**12)], "low": 0.0, "high": 1.0}

    def exaggerate(path: Path) -> None:
        metadata = json.loads(path.read_text())
        if how in metadata:
            metadata[how] = huge
        else:
            metadata["observation_space"] = json.dumps(space)
        path.write_text(json.dumps(metadata))

    return cases.minari(rng, "metadata.json").case(f"{how} of {huge}", exaggerate)


def bombs(rng: Random) -> Case:
    """Nesting, aliases of aliases, tags that make objects."""
    depth = rng.choice((2_000, 50_000, 400_000))
    nested = f"{'[' * depth}{']' * depth}"
    if rng.random() < 0.5:
        kind = rng.choice(("nested", "unclosed", "nested maps", "aliases", "merged aliases", "tag", "long"))
        tag = rng.choice((f"!!python/object/apply:os.mkdir [{CANARY}]", "!!python/name:os.system", "!!binary x"))
        texts = {
            "nested": f"backbone: {nested}",
            "unclosed": f"backbone: {'[' * depth}",
            "nested maps": f"backbone: {'{a: ' * depth}1{'}' * depth}",
            "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
            + "backbone: {options: {expansion: *i}}\n",
            "merged aliases": "backbone: &a {options: {b: &b [*a, *a]}}\n",
            "tag": f"steps: {tag}",
            "long": f"experiment: {'x' * 30_000_000}",
        }
        target = rng.choice((cases.config, cases.saved_config))(rng)
        return target.case(f"{kind} {depth}", lambda path: path.write_text(texts[kind]) and None)
    content = rng.choice((nested, "[" * depth, '{"a":' * depth + "1" + "}" * depth, f'{{"a": {nested}}}'))
    target = rng.choice(
        (
            cases.in_checkpoint(rng, MANIFEST),
            cases.in_checkpoint(rng, STATE),
            cases.checkpoint(rng),
            cases.minari(rng, "metadata.json"),
        )
    )

    def nest(path: Path) -> None:
        if path.is_dir():
            rewrite(path, state=content.encode())
        else:
            path.write_text(content)

    return target.case(f"nested {depth}", nest)


def ways_out(rng: Random) -> Case:
    """Of the folder: ids and names with .., links, data in other files."""
    how = rng.choice(("id", "experiment", "link", "manifest", "external", "external link", "virtual"))
    if how == "id":
        source = rng.choice(("minari:../decision-v0", "minari:unit/../../x-v0", "d4rl:../own", "embedded:../own"))
        source = rng.choice((source, "minari:/etc/passwd-v0", "minari:unit/.-v0", "embedded:../../own"))
        return Case(f"id {source}", "own.hdf5", "train.py --dataset", source, lambda folder: None, (source,))
    if how == "experiment":
        name = rng.choice(("../x", "a/../../x", "/tmp/x", "a/.."))
        return cases.config(rng).case(f"experiment {name}", lambda p: set_yaml(p, "experiment", name), "experiment")
    if how == "link":
        target = cases.in_checkpoint(rng)

        def link(path: Path) -> None:
            elsewhere = path.parents[3] / "elsewhere"
            os.replace(path, elsewhere)
            path.symlink_to(elsewhere)

        return target.case("a link to outside", link)
    if how == "manifest":
        name, instead = (
            rng.choice(("../../../../etc/passwd", "/etc/passwd", f"../{TENSORS}", "more.bin")),
            rng.random() < 0.5,
        )

        def mention(path: Path) -> None:
            manifest = json.loads(path.read_text())
            manifest[name] = manifest.pop(TENSORS) if instead else manifest[TENSORS]
            path.write_text(json.dumps(manifest))

        return cases.in_checkpoint(rng, MANIFEST).case(f"a manifest with {name}", mention)
    at_file = rng.random() < 0.5
    target = cases.recording(rng) if at_file else cases.minari(rng, "main_data.hdf5")
    place = "observations" if at_file else "episode_0/observations"
    return target.case(f"{how} data", lambda path: place_outside(path, place, how))


def nonsense(rng: Random) -> Case:
    """Values of other types in a state.json whose manifest agrees with it."""
    wrong = rng.choice(("many", [], {}, None, -1, 1.5, True, [[1]], {"a": 1}, "\ud800", 1e308))
    run = rng.choice(("decision_run", "ppo_run"))
    decision = (
        ("num_timesteps",), ("total_timesteps",), ("config",), ("policy",), ("memory",), ("task",), ("format",),
        ("agent",),
        ("config", "context"), ("config", "batch_size"), ("config", "optimizer"), ("config", "learning_rate"),
        ("config", "schedule"), ("config", "max_grad_norm"), ("config", "top_fraction"), ("config", "precision"),
        ("config", "seed"), ("policy", "observation_dim"), ("policy", "action_space"), ("policy", "backbone"),
        ("policy", "d_model"), ("policy", "n_layers"), ("policy", "backbone_options"), ("policy", "tokens"),
        ("policy", "condition"), ("policy", "dropout"), ("policy", "max_timestep"),
        ("policy", "action_space", "type"), ("policy", "action_space", "low"),
        ("task", "env"), ("task", "reference_returns"), ("task", "return_quantiles"),
    )  # fmt: skip
    ppo = (
        ("num_timesteps",), ("n_updates",), ("config",), ("format",), ("agent",), ("config", "agent"),
        ("config", "env"),
        ("config", "backbone"), ("config", "backbone", "d_model"), ("config", "n_steps"), ("config", "gamma"),
        ("config", "evaluation"), ("config", "activation"), ("config", "schedule"), ("config", "steps"),
    )  # fmt: skip
    keys = rng.choice(decision if run == "decision_run" else ppo)
    if is_allowed(keys, wrong):
        wrong = [[1]]
    target = cases.checkpoint(rng, run)
    if run == "ppo_run" and target.reader == "train.py --resume" and keys[0] == "config":
        target.reader = "evaluate.py"
    return target.case(f"{'.'.join(keys)} is {wrong!r}", lambda path: change_state(path, keys, wrong))


def is_allowed(keys: tuple[str, ...], value: Any) -> bool:
    """Whether this is right there after all: an option left out, a number that a float may be, some environment."""
    floats = ("learning_rate", "max_grad_norm", "top_fraction", "dropout")
    empty = value in (None, {}, []) and keys[-1] in ("backbone_options", "env", "reference_returns")
    left_out = value == {} and keys[-1] in ("task", "evaluation", "backbone")
    number = isinstance(value, float) and keys[-1] in floats
    return empty or left_out or number or (keys[-1] == "env" and value == "many")


def set_attribute(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "a") as file:
        file.attrs[name] = value


def declare(path: Path, name: str, how: str) -> None:
    """A dataset that says it is larger than any disk."""
    sizes: dict[str, dict[str, Any]] = {
        "rows": dict(shape=(10**14, 3), chunks=(1 << 16, 3)),
        "width": dict(shape=(600, 10**12), chunks=(1, 1 << 16)),
        "chunks": dict(shape=(600, 3), maxshape=(None, None), chunks=(1 << 15, 1 << 14), compression="gzip"),
    }
    with h5py.File(path, "a") as file:
        del file[name]
        item = file.create_dataset(name, dtype="f4", **sizes[how])
        if how == "chunks":  # one chunk of 2 GiB, of a few stored bytes
            item.id.write_direct_chunk((0, 0), b"x\x9c\x03\x00\x00\x00\x00\x01")


def place_outside(path: Path, name: str, how: str) -> None:
    """The dataset is in another file, which is there and holds what fits."""
    other = path.parent / "elsewhere.hdf5"
    with h5py.File(path, "a") as file:
        values = file[name][()]
        del file[name]
        with h5py.File(other, "w") as out:
            out["values"] = values
        if how == "external":
            values.tofile(path.parent / "elsewhere.bin")
            file.create_dataset(
                name, values.shape, values.dtype, external=[(str(path.parent / "elsewhere.bin"), 0, values.nbytes)]
            )
        elif how == "virtual":
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[:] = h5py.VirtualSource(str(other), "values", values.shape)
            file.create_virtual_dataset(name, layout)
        elif how == "external link":
            file[name] = h5py.ExternalLink(str(other), "values")
        else:
            file["hidden/values"] = values
            file[name] = h5py.SoftLink("/hidden/values")
