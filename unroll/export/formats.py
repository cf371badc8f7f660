"""A step as a file: ONNX, or PyTorch's own exported program."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch

from unroll.agents.common.step import Step
from unroll.errors import ExportError

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = get_args(Format)
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def require_packages(format: Format) -> None:
    """Raise ExportError unless what writes and runs the format is installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None] if format == "onnx" else []
    if missing:
        raise ExportError(f"--format onnx needs {', '.join(missing)}: pip install -e '.[export]'")


def write_step(step: Step, format: Format, path: Path) -> None:
    """Write the step for any number of environments to ``path``.

    Raises:
        ExportError: the step cannot be traced, or the format has no word for one of its operations. Those of this
            project can; a backbone of the user's own must not look at values, and take its batch from ``x.shape[0]``.
    """
    try:
        with quiet():
            program = trace(step)
            if format == "pt2":
                torch.export.save(program, path)
                return
            inputs, outputs = ([port.name for port in ports] for ports in (step.inputs, step.outputs))
            model = torch.onnx.export(
                program, dynamo=True, input_names=inputs, output_names=outputs, external_data=False, verbose=False
            )
            assert model is not None
            for node in model.model.graph.all_nodes():
                node.metadata_props.clear()  # where each came from, with paths of this machine
            model.save(path)
    except Exception as error:  # whatever PyTorch's tracer and translator raise, over many lines
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"this policy cannot be exported to {format}: {type(error).__name__}: {reason}") from error


def trace(step: Step) -> torch.export.ExportedProgram:
    """The step as a graph of PyTorch's operators."""
    batch = torch.export.Dim("batch")
    # two rows: a size of one would be taken for a constant
    inputs = tuple(port.zeros(2) for port in step.inputs)
    with torch.no_grad():
        program = torch.export.export(step, inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which has paths of this machine
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter says about itself, and the whole graph that it prints where it fails."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        logging.disable(disabled)
