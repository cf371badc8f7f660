"""Write a step as a file: ONNX, or PyTorch's own exported program."""

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
from unroll.errors import ExportError, one_line

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = get_args(Format)
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def require_packages(format: Format) -> None:
    """Raise ExportError unless the packages that write and run the format are installed."""
    if format != "onnx":
        return
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"--format onnx needs {', '.join(missing)}: pip install 'unroll-rl[export]'")


def write_step(step: Step, format: Format, path: Path) -> None:
    """Write the step for any number of environments to ``path``.

    Raises:
        ExportError: the step cannot be traced, or the format does not have one of its operations. The backbones of
            this project can be exported. A backbone of the user's own must not look at values, and must take its
            batch from ``x.shape[0]``.
    """
    try:
        with quiet():
            program = trace(step)
            if format == "pt2":
                torch.export.save(program, path)
            else:
                write_onnx(program, step, path)
    except Exception as error:  # PyTorch's tracer and translator raise anything, over many lines
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise ExportError(f"this policy cannot be exported to {format}: {reason}") from error


def write_onnx(program: torch.export.ExportedProgram, step: Step, path: Path) -> None:
    """Translate a traced step to ONNX and write it."""
    from onnxscript import opset18 as op

    # PyTorch writes log(sigmoid(x)), which is -inf in onnxruntime from about x = -18 on.
    log_sigmoid = torch.ops.aten.log_sigmoid.default
    model = torch.onnx.export(
        program,
        dynamo=True,
        input_names=[port.name for port in step.inputs],
        output_names=[port.name for port in step.outputs],
        external_data=False,
        verbose=False,
        custom_translation_table={log_sigmoid: lambda x: op.Neg(op.Softplus(op.Neg(x)))},
    )
    assert model is not None

    # The metadata say where each node came from, with paths of this machine.
    for node in model.model.graph.all_nodes():
        node.metadata_props.clear()
    model.save(path)


def trace(step: Step) -> torch.export.ExportedProgram:
    """Trace the step into a graph of PyTorch's operators."""
    # With one row the batch would be taken for a constant.
    inputs = tuple(port.zeros(2) for port in step.inputs)
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in inputs)
    with torch.no_grad():
        program = torch.export.export(step, inputs, dynamic_shapes=(shapes,), strict=False)

    # The stack traces have paths of this machine.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter, which talks about itself and prints the whole graph where it fails."""
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
