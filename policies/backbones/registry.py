"""The backbones by name, their options, and backbones of the user's own.

A new backbone is one file in this folder and one line in ``BACKBONES``. Its options are the arguments of its
constructor that have a default.

A backbone of the user's own is called ``module:Class``. Looking one up imports nothing, so no file can name code to
run: only ``import_own`` imports, and commands call it for names from their own command line.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np

from unroll.errors import BackboneError, one_line
from unroll.policies.backbones.backbone import Backbone, Mixer, ResidualStack, require
from unroll.policies.backbones.contract import check_shapes
from unroll.policies.backbones.deltanet import DeltaNet
from unroll.policies.backbones.gru import GRU
from unroll.policies.backbones.lstm import LSTM
from unroll.policies.backbones.mamba import Mamba
from unroll.policies.backbones.mingru import MinGRU
from unroll.policies.backbones.minlstm import MinLSTM
from unroll.policies.backbones.sharnn import SHARNN
from unroll.policies.backbones.transformer import Transformer

BackboneClass: TypeAlias = type[Mixer] | type[Backbone]

BACKBONES: dict[str, BackboneClass] = {
    "mingru": MinGRU,
    "minlstm": MinLSTM,
    "gru": GRU,
    "lstm": LSTM,
    "sharnn": SHARNN,
    "transformer": Transformer,
    "mamba": Mamba,
    "deltanet": DeltaNet,
}

# Limits that are checked before anything of such a size is allocated.
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1 << 10
MAX_OPTION = 1 << 24

SIZES = ("d_model", "n_layers")
KINDS = {bool: "a bool", int: "an int", float: "a finite float", str: "a str"}


def make_backbone(name: str | BackboneClass, d_model: int = 128, n_layers: int = 3, **options: Any) -> Backbone:
    """Make a backbone of width ``d_model``: a Mixer inside the shared residual stack, or a Backbone as it is.

    ``name`` is a key of ``BACKBONES``, ``module:Class`` of an imported module, or a class.

    One that is not ours runs a step and a short sequence, so that wrong shapes are told here.

    Raises:
        BackboneError: The name or an option is unknown (the message lists those that exist), or a value is not allowed;
            outputs or states have wrong shapes.
    """
    made = build_backbone(name, d_model, n_layers, **options)
    if find_backbone(name) not in BACKBONES.values():
        check_shapes(_shown(name), made, d_model)
    return made


def build_backbone(name: str | BackboneClass, d_model: int, n_layers: int, **options: Any) -> Backbone:
    """Make a backbone as ``make_backbone`` does, without running it."""
    cls = find_backbone(name)
    shown = _shown(name)
    # NumPy's numbers, as of a list of sizes, are numbers too
    d_model = _plain(d_model)
    n_layers = _plain(n_layers)
    options = {option: _plain(value) for option, value in options.items()}
    _check_size(shown, "d_model", d_model, MAX_WIDTH)
    _check_size(shown, "n_layers", n_layers, MAX_LAYERS)
    check_options(shown, cls, options)

    # the stack takes its own options and hands the others to the mixers
    if issubclass(cls, Mixer):
        return ResidualStack(cls, d_model, n_layers, **options)
    return cls(d_model=d_model, n_layers=n_layers, **options)


def find_backbone(name: str | BackboneClass) -> BackboneClass:
    """Return the class of a registered name or of ``module:Class``, or check the class that is given.

    Raises:
        BackboneError: There is no such backbone, its module is not imported, or the class is not a backbone.
    """
    if isinstance(name, type):
        _check_class(_shown(name), name.__name__, name)
        return name
    require(isinstance(name, str), f"a backbone is a name, module:Class or a class, not {one_line(name)}")
    if ":" in name:
        return find_own(name)
    if name not in BACKBONES:
        raise BackboneError(f"unknown backbone {name!r}{suggest(name, BACKBONES)}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name]


def options_of(name: str | BackboneClass) -> dict[str, Any]:
    """Return the options of a backbone with their defaults."""
    return defaults_of(find_backbone(name))


# ---- options


def defaults_of(cls: BackboneClass) -> dict[str, Any]:
    """Return the options of a class with their defaults. Those of the residual stack around a Mixer are among them."""
    defaults = {}
    for constructor in _constructors(cls):
        for parameter in inspect.signature(constructor).parameters.values():
            if parameter.default is not parameter.empty and parameter.name not in SIZES:
                defaults[parameter.name] = parameter.default
    return defaults


def check_options(name: str, cls: BackboneClass, options: dict[str, Any]) -> None:
    """Check that every option exists, has its type (bool, int, float, str) and is one of its choices (``Literal``).

    An option of another type is left to the constructor.

    Raises:
        BackboneError: An option is wrong.
    """
    # an annotation says more than the type of the default
    known = defaults_of(cls)
    kinds = {option: type(default) for option, default in known.items()} | _annotations(cls)

    for option, value in options.items():
        if option not in known:
            listed = ", ".join(f"{key}={default}" for key, default in known.items()) or "none"
            raise BackboneError(f"backbone {name} has no option {option!r}{suggest(option, known)}; it has {listed}")

        expected = misfit(kinds[option], value)
        if not expected and isinstance(value, int | float) and abs(value) > MAX_OPTION:
            expected = f"at most {MAX_OPTION:,}, not {value:,}"
        if expected:
            raise BackboneError(f"backbone {name}: option {option} is {expected}")


def misfit(kind: Any, value: Any) -> str:
    """Say what an option of this kind must be, unless the value fits or the kind is unknown: then return ``""``."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        # True == 1, so the types are compared too
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return ""
        return f"one of {', '.join(map(str, choices))}, not {value!r}{suggest(value, choices)}"

    if kind not in KINDS:
        return ""
    # an int is a fine float; a bool is an int in Python, but not for us
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    else:
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    if fits:
        return ""
    return f"{KINDS[kind]}, not {value!r}"


def suggest(name: Any, known: Iterable[Any]) -> str:
    """Return ``" (did you mean …?)"`` if one of the known words is similar, else ``""``."""
    near = difflib.get_close_matches(str(name), [str(word) for word in known], n=1)
    if not near:
        return ""
    return f" (did you mean {near[0]}?)"


def _plain(value: Any) -> Any:
    """Return a number of NumPy as Python's, and all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _check_size(name: str, size: str, value: Any, most: int) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
    require(fits, f"backbone {name}: {size} is an int from 1 to {most:,}, not {value!r}")


def _constructors(cls: BackboneClass) -> list[type]:
    """List the classes whose constructors take the options."""
    if issubclass(cls, Mixer):
        return [cls, ResidualStack]
    return [cls]


def _annotations(cls: BackboneClass) -> dict[str, Any]:
    """Return the annotated types of the options."""
    hints: dict[str, Any] = {}
    for constructor in _constructors(cls):
        try:
            hints |= get_type_hints(constructor.__init__)  # type: ignore[misc]
        except Exception:
            # An annotation may be any text, or a name that only type checkers import.
            continue
    return hints


# ---- backbones of the user's own


def import_own(name: str) -> None:
    """Import the module of ``module:Class`` from the current folder or from the installed packages.

    Call this for a name from the command line or from code, never for one from a file.

    Raises:
        BackboneError: The module does not exist or cannot be imported, or ``find_own`` refuses the class.
    """
    module, _ = _parts(name)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))

    problem = ""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        # Importing runs the user's code, which may raise anything.
        problem = f"importing {module} raised {type(error).__name__}: {one_line(error)}"
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            problem = f"there is no module {module} in this folder, nor installed"
    require(not problem, f"backbone {name}: {problem}")
    find_own(name)


def find_own(name: str) -> BackboneClass:
    """Return the class ``module:Class`` of a module that is already imported.

    Raises:
        BackboneError: The module is not imported, has no such class, or the class is not a backbone.
    """
    module, attribute = _parts(name)
    require(
        isinstance(sys.modules.get(module), ModuleType),
        f"backbone {name} is not imported, and no file may ask for that: name it on the command line "
        f"(unroll train --backbone.name {name}, others --backbone {name}), or import {module} first",
    )

    # vars and not getattr: a module's own __getattr__ may import something
    found = vars(sys.modules[module])
    classes = [key for key, value in found.items() if _is_backbone(value) and not inspect.isabstract(value)]
    require(
        isinstance(found.get(attribute), type),
        f"backbone {name}: {module} has no class {attribute}{suggest(attribute, classes)}",
    )
    _check_class(name, attribute, found[attribute])
    return found[attribute]


def _check_class(name: str, attribute: str, cls: type) -> None:
    """Check that a class is a complete Mixer or Backbone that ``make_backbone`` can construct."""
    require(
        _is_backbone(cls),
        f"backbone {name}: {attribute} is neither a Mixer nor a Backbone of unroll.policies.backbones",
    )
    missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
    require(not missing, f"backbone {name}: {attribute} does not define {missing}")

    # make_backbone passes the sizes by name, the residual stack passes d_model as the first argument
    signature = inspect.signature(cls)
    is_mixer = issubclass(cls, Mixer)
    try:
        if is_mixer:
            sizes = ["d_model"]
            bound = signature.bind(1)
        else:
            sizes = ["d_model", "n_layers"]
            bound = signature.bind(d_model=1, n_layers=1)
        fits = set(bound.arguments) == set(sizes)
    except TypeError:
        fits = False
    expected = f"({', '.join(sizes)}, options with defaults)"
    require(fits, f"backbone {name}: its constructor must take {expected}, not {signature}")

    if is_mixer:
        stack_options = set(inspect.signature(ResidualStack).parameters) - set(sizes)
        clash = ", ".join(sorted(set(signature.parameters) & stack_options))
        require(not clash, f"backbone {name}: {clash} belongs to the stack around a Mixer; choose another name")


def _parts(name: str) -> tuple[str, str]:
    """Split ``module:Class``."""
    module, _, attribute = name.partition(":")
    fits = all(part.isidentifier() for part in (*module.split("."), attribute))
    require(fits, f"backbone {name!r}: a class of your own is module:Class, for example my_module:MyBackbone")
    return module, attribute


def _is_backbone(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Mixer | Backbone)


def _shown(name: str | type) -> str:
    """Return the name of a backbone in messages."""
    return name if isinstance(name, str) else name.__name__
