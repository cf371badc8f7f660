"""The backbones by name, their options, and classes of the user's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from unroll.errors import BackboneError
from unroll.policies.backbones.backbone import Backbone, Mixer, ResidualStack, require
from unroll.policies.backbones.gru import GRU
from unroll.policies.backbones.lstm import LSTM
from unroll.policies.backbones.mamba import Mamba
from unroll.policies.backbones.mingru import MinGRU
from unroll.policies.backbones.minlstm import MinLSTM
from unroll.policies.backbones.sharnn import SHARNN
from unroll.policies.backbones.transformer import Transformer

BACKBONES: dict[str, type[Mixer] | type[Backbone]] = {
    "mingru": MinGRU,
    "minlstm": MinLSTM,
    "gru": GRU,
    "lstm": LSTM,
    "sharnn": SHARNN,
    "transformer": Transformer,
    "mamba": Mamba,
}


MOST_WIDTH, MOST_LAYERS = 1 << 20, 1 << 10  # what is refused before anything of that size is made


def make_backbone(name: str, d_model: int = 128, n_layers: int = 3, **options: Any) -> Backbone:
    """The backbone ``name`` of width ``d_model``: a Mixer inside the shared residual stack, or a Backbone of its own.

    Raises:
        BackboneError: an unknown name or option; the message lists those that exist. A width or depth that is none.
    """
    cls = find_backbone(name)
    for size, value, most in (("d_model", d_model, MOST_WIDTH), ("n_layers", n_layers, MOST_LAYERS)):
        fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        require(fits, f"backbone {name}: {size} is an int from 1 to {most:,}, not {value!r}")
    check_options(name, cls, options)
    if issubclass(cls, Mixer):
        return ResidualStack(cls, d_model, n_layers, **options)
    return cls(d_model=d_model, n_layers=n_layers, **options)


def options_of(name: str) -> dict[str, Any]:
    """The options of backbone ``name`` with their defaults."""
    return defaults_of(find_backbone(name))


def find_backbone(name: str) -> type[Mixer] | type[Backbone]:
    """The class of a registered backbone, or ``module:Class`` of a module that is imported already (``import_own``)."""
    if ":" in name:
        return find_own(name)
    if name not in BACKBONES:
        raise BackboneError(f"unknown backbone {name!r}{suggest(name, BACKBONES)}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name]


SIZES = ("d_model", "n_layers")
MOST = 1 << 24  # no option counts anything that is more
KINDS = {bool: "a bool", int: "an int", float: "a finite float", str: "a str"}


def defaults_of(cls: type[Mixer] | type[Backbone]) -> dict[str, Any]:
    """The options of a backbone's class, and those of the stack around a Mixer, with their defaults."""
    return {
        parameter.name: parameter.default
        for constructor in _constructors(cls)
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.default is not parameter.empty and parameter.name not in SIZES
    }


def check_options(name: str, cls: type[Mixer] | type[Backbone], options: dict[str, Any]) -> None:
    """Raise BackboneError for an option that does not exist, is not of its type (bool, int, float, str) or not one of
    its choices (``Literal``). Options of other types are the constructor's own concern."""
    known = defaults_of(cls)
    kinds = {option: type(default) for option, default in known.items()} | _annotations(cls)
    for option, value in options.items():
        if option not in known:
            listed = ", ".join(f"{key}={default}" for key, default in known.items()) or "none"
            raise BackboneError(f"backbone {name} has no option {option!r}{suggest(option, known)}; it has {listed}")
        wanted = misfit(kinds[option], value)
        if not wanted and isinstance(value, int | float) and abs(value) > MOST:
            wanted = f"at most {MOST:,}, not {value:,}"
        if wanted:
            raise BackboneError(f"backbone {name}: option {option} is {wanted}")


def suggest(name: Any, known: Iterable[Any]) -> str:
    """ " (did you mean …?)" where one of the known words is near, else nothing."""
    near = difflib.get_close_matches(str(name), [str(word) for word in known], n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def misfit(kind: Any, value: Any) -> str:
    """What an option of this kind is, and the value is not; empty where the value fits, or the kind is another."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return ""
        return f"one of {', '.join(map(str, choices))}, not {value!r}{suggest(value, choices)}"
    if kind not in KINDS:
        return ""
    fits = isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not fits or (kind is float and not math.isfinite(value)):
        return f"{KINDS[kind]}, not {value!r}"
    return ""


def _constructors(cls: type[Mixer] | type[Backbone]) -> list[type]:
    return [cls, ResidualStack] if issubclass(cls, Mixer) else [cls]


def _annotations(cls: type[Mixer] | type[Backbone]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for constructor in _constructors(cls):
        try:
            hints |= get_type_hints(constructor.__init__)  # type: ignore[misc]
        except Exception:  # any text may be an annotation, or a name that is imported for type checkers alone
            continue
    return hints


def find_own(name: str) -> type[Mixer] | type[Backbone]:
    """The class ``module:Class`` of a module that is imported already.

    Raises:
        BackboneError: it is not imported, has no such class, or the class is no backbone.
    """
    module, attribute = _parts(name)
    require(
        isinstance(sys.modules.get(module), ModuleType),
        f"backbone {name} is not imported, and no file may ask for that: name it on the command line "
        f"(train.py --backbone.name {name}, others --backbone {name}), or import {module} first",
    )
    found = vars(sys.modules[module])  # not getattr: a module's own __getattr__ may import
    classes = [key for key, value in found.items() if _is_backbone(value) and not inspect.isabstract(value)]
    require(
        isinstance(found.get(attribute), type),
        f"backbone {name}: {module} has no class {attribute}{suggest(attribute, classes)}",
    )
    cls = found[attribute]
    require(
        _is_backbone(cls),
        f"backbone {name}: {attribute} is neither a Mixer nor a Backbone of unroll.policies.backbones",
    )
    missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
    require(not missing, f"backbone {name}: {attribute} does not define {missing}")
    _check_constructor(name, cls)
    return cls


def import_own(name: str) -> None:
    """Import the module of ``module:Class``, from the current folder or the installed ones. For a name from the
    command line or from code, never for one from a file.

    Raises:
        BackboneError: there is no such module, or it cannot be imported; and as ``find_own`` does.
    """
    module, _ = _parts(name)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    problem = ""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the module does
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        raised = f"importing {module} raised {type(error).__name__}: {' '.join(str(error).split())}"
        problem = f"there is no module {module} in this folder, nor installed" if absent else raised
    require(not problem, f"backbone {name}: {problem}")
    find_own(name)


def _check_constructor(name: str, cls: type[Mixer] | type[Backbone]) -> None:
    """It can be called as make_backbone and the residual stack do, and leaves the stack's options to the stack."""
    signature, mixer = inspect.signature(cls), issubclass(cls, Mixer)
    sizes = ["d_model"] if mixer else ["d_model", "n_layers"]
    try:
        bound = signature.bind(1) if mixer else signature.bind(d_model=1, n_layers=1)
        fits = set(bound.arguments) == set(sizes)
    except TypeError:
        fits = False
    wanted = f"({', '.join(sizes)}, options with defaults)"
    require(fits, f"backbone {name}: its constructor must take {wanted}, not {signature}")
    shared = set(signature.parameters) & set(inspect.signature(ResidualStack).parameters) - set(sizes)
    clash = ", ".join(sorted(shared)) if mixer else ""
    require(not clash, f"backbone {name}: {clash} belongs to the stack around a Mixer; choose another name")


def _parts(name: str) -> tuple[str, str]:
    module, _, attribute = name.partition(":")
    fits = all(part.isidentifier() for part in (*module.split("."), attribute))
    require(fits, f"backbone {name!r}: a class of your own is module:Class, for example my_module:MyBackbone")
    return module, attribute


def _is_backbone(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Mixer | Backbone)
