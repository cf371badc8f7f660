"""The CUDA kernels without a GPU: Triton's interpreter computes them, its compiler makes machine code of them."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# the name of what was compared, then the greatest error relative to the greatest value in float64
INTERPRETED = """
import torch
from unroll.policies.backbones.kernels import cuda
from unroll.policies.backbones.scan import gated_scan, linear_scan

def compare(name, got, function, inputs, gradients):
    inputs = [x.double().requires_grad_() for x in inputs]
    expected = function(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    wanted = *expected, *torch.autograd.grad(expected, inputs, [x.double() for x in gradients])
    for x, y in zip(got, wanted, strict=True):
        print(name, ((x.double() - y).abs().max() / y.abs().max()).item() if x.isfinite().all() else "nan")

torch.manual_seed(0)
B, T, D = 2, 18, 20
cuda.block = lambda *_: {"BT": 8, "BD": 16, "num_warps": 2}  # several, the last in part, and few for the interpreter
resets = torch.rand(B, T) < 0.2
resets[:, 0] = torch.tensor([False, True])
h0, dh, dlast = (torch.randn(shape) for shape in ((B, D), (B, T, D), (B, D)))
for gates, parts, candidate, reset, dtype in CASES:
    dtype, reset = getattr(torch, dtype), resets if reset else None
    x, dy = (torch.randn(B, T, parts * D) * 4).to(dtype), dh.to(dtype)
    h, last = cuda.gated_forward(x, h0, reset, gates, candidate)
    got = h, last, *cuda.gated_backward(dy, dlast, x, h0, reset, h, gates, candidate)
    compare(dtype, got, lambda x, h0: gated_scan(x, h0, reset, gates, candidate), (x, h0), (dy, dlast))
a, b = torch.rand(B, T, D), torch.randn(B, T, D)
for reverse in (False, True):
    h = cuda.linear_forward(a, b, h0, resets, reverse)
    got = h, *cuda.linear_backward(dh, a, h0, resets, h, reverse)
    compare("linear", got, lambda a, b, h0: linear_scan(a, b, h0, resets, reverse=reverse), (a, b, h0), (dh,))
b[:, 5] = torch.nan
resets[:] = torch.arange(T) == 9
print("linear", 0.0 if cuda.linear_forward(a, b, h0, resets, False)[:, 9:].isfinite().all() else "nan")
"""
CASES = [
    ("mingru", 2, "g", True, "float32"),
    ("mingru", 2, "tanh", False, "float32"),
    ("minlstm", 3, "g", True, "float32"),
    ("minlstm_unnormalized", 3, "identity", True, "float32"),
    ("mingru", 2, "g", True, "bfloat16"),
]


def test_the_kernels_are_the_recurrences_in_the_interpreter():
    script = INTERPRETED.replace("CASES", repr(CASES))
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = [line.split() for line in done.stdout.splitlines()]
    assert len(errors) == 4 * len(CASES) + 4 * 2 + 1
    for name, error in errors:
        assert float(error) < (1e-2 if name == "torch.bfloat16" else 1e-5), done.stdout


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gated_forward", "gated_backward", "linear_forward", "linear_backward"])
def test_the_kernels_compile_for_a_hopper_gpu_and_keep_to_its_registers(name, dtype, tmp_path):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from unroll.policies.backbones.kernels import cuda, triton_kernels

    kernel, tile = getattr(triton_kernels, name), cuda.block(256, 1024, 512)
    warps = tile.pop("num_warps")
    forms = [{"GATES": gates, "CANDIDATE": 0} for gates in range(3)] if "gated" in name else [{"REVERSE": True}]
    for form in forms:
        constants = {"HAS_RESET": True} | form | tile
        types = {"T": "i32", "D": "i32", "reset": "*u8"} | dict.fromkeys(("h0", "last", "dlast", "dh0"), "*fp32")
        signature = {n: "constexpr" if n in constants else types.get(n, f"*{dtype}") for n in kernel.arg_names}
        source = ASTSource(
            fn=kernel,
            signature=signature,
            constexprs={(kernel.arg_names.index(n),): value for n, value in constants.items()},
            attrs={
                (i,): [["tt.divisibility", 16]]
                for i, n in enumerate(kernel.arg_names)
                if n == "D" or signature[n][0] == "*"
            },
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [tool, "-res-usage", tmp_path / "kernel.cubin"]
        usage = subprocess.run(command, capture_output=True, text=True, check=True)
        registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage.stdout).groups())
        assert registers < 255
        assert stack <= 16  # bytes
        assert local == 0
