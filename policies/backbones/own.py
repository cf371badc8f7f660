"""A backbone of the user's own, ``module:Class``. Finding one imports nothing, so that no file can name code to run."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType

from policies.backbones.backbone import Backbone, Mixer, ResidualStack, require
from policies.backbones.options import suggest


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
    require(_is_backbone(cls), f"backbone {name}: {attribute} is neither a Mixer nor a Backbone of policies.backbones")
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
