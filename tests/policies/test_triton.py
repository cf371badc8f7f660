"""The CUDA kernels without a GPU: Triton's interpreter computes them, its compiler makes machine code of them."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# the name of what was compared, then the greatest error relative to the greatest value in float64
COMPARE = """
import torch
from unroll.policies.backbones.kernels import cuda, selective
from unroll.policies.backbones.scan import gated_scan, linear_scan
from unroll.policies.backbones.selective import on_the_linear_scan

def compare(name, got, function, inputs, gradients):
    inputs = [x.double().requires_grad_() for x in inputs]
    expected = function(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    wanted = *expected, *torch.autograd.grad(expected, inputs, [x.double() for x in gradients])
    for x, y in zip(got, wanted, strict=True):
        print(name, ((x.double() - y).abs().max() / y.abs().max()).item() if x.isfinite().all() else "nan")

torch.manual_seed(0)
B, T, D = 2, 10, 20
resets = torch.rand(B, T) < 0.2
resets[:, 0] = resets[:, -1] = torch.tensor([False, True])
"""

# several blocks of channels and steps, the last of each in part, and few of them for the interpreter
SCANS = """
cuda.choose_tile = lambda *_: cuda.Tile(channels=16, blocks=2, steps=STEPS, chunks=-(-T // STEPS))
cuda.UNROLL_FORWARD = cuda.UNROLL_BACKWARD = 2
h0, dh, dlast = (torch.randn(shape) for shape in ((B, D), (B, T, D), (B, D)))
for gates, parts, candidate, signed, reset, dtype in CASES:
    dtype, reset = getattr(torch, dtype), resets if reset else None
    turn = torch.randint(2, (2, D)).float() * torch.tensor([[-2.0], [1.0]]) + 1 if signed else None
    x, dy = (torch.randn(B, T, parts * D) * 4).to(dtype), dh.to(dtype)
    h, last = cuda.gated_forward(x, h0, reset, gates, candidate, turn)
    got = h, last, *cuda.gated_backward(dy, dlast, x, h0, reset, h, gates, candidate, turn)
    compare(dtype, got, lambda x, h0: gated_scan(x, h0, reset, gates, candidate, turn=turn), (x, h0), (dy, dlast))
a, b = torch.rand(B, T, D), torch.randn(B, T, D)
for reverse in (False, True):
    h = cuda.linear_forward(a, b, h0, resets, reverse)
    got = h, *cuda.linear_backward(dh, a, h0, resets, h, reverse)
    compare("linear", got, lambda a, b, h0: linear_scan(a, b, h0, resets, reverse=reverse), (a, b, h0), (dh,))
b[:, 3] = a[:, 5] = torch.nan
resets[:] = torch.arange(T) == 7
print("linear", 0.0 if cuda.linear_forward(a, b, h0, resets, False)[:, 7:].isfinite().all() else "nan")
"""

SELECTIVE = """
selective.CHUNK, cuda.SELECTIVE_CHANNELS, N = 4, 16, 4
u, dt, a, b, c, h0 = (torch.randn(s) for s in ((B, T, D), (B, T, D), (N, D), (B, T, N), (B, T, N), (B, N, D)))
dt, a = dt.sigmoid(), -a.exp()
for reset in (None, resets):
    y, last, borders = cuda.selective_forward(u, dt, a, b, c, h0, reset)
    dy, dlast = torch.randn_like(y), torch.randn_like(last)
    got = y, last, *cuda.selective_backward(dy, dlast, u, dt, a, b, c, reset, borders)
    def exact(u, dt, a, b, c, h0):
        y, last = on_the_linear_scan(u, dt, a.mT, b, c, h0.mT, reset)
        return y, last.mT
    compare("selective", got, exact, (u, dt, a, b, c, h0), (dy, dlast))
"""
CASES = [
    ("mingru", 2, "g", False, True, "float32"),
    ("mingru", 2, "tanh", True, False, "float32"),
    ("minlstm", 3, "g", False, True, "float32"),
    ("minlstm_unnormalized", 3, "identity", False, True, "float32"),
    ("minlstm_unnormalized", 3, "g", True, True, "float32"),
    ("mingru", 2, "g", False, True, "bfloat16"),
]


SEQUENCES = {
    f"{steps} steps a chunk": SCANS.replace("CASES", repr(CASES)).replace("STEPS", str(steps)) for steps in (10, 4)
}


@pytest.mark.parametrize("script", [*SEQUENCES.values(), SELECTIVE], ids=[*SEQUENCES, "selective"])
def test_the_kernels_are_the_recurrences_in_the_interpreter(script):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", COMPARE + script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = [line.split() for line in done.stdout.splitlines()]
    assert len(errors) == (2 * 8 if script == SELECTIVE else 4 * len(CASES) + 4 * 2 + 1)
    for name, error in errors:
        assert float(error) < (1e-2 if name == "torch.bfloat16" else 1e-5), done.stdout


GATED = [{"GATES": gates, "PARTS": 2 if gates == 0 else 3} for gates in range(3)]
FORMS = [form | {"CANDIDATE": 0, "SIGNED": False, "REVERSE": False} for form in GATED]
FORMS.append(FORMS[0] | {"SIGNED": True})
FORMS.append({"GATES": 3, "PARTS": 1, "CANDIDATE": 1, "SIGNED": False, "REVERSE": True})
KERNELS = {
    "forward": [form | {"BD": 64, "UNROLL": 8} for form in FORMS],
    "backward": [form | {"BD": 128, "UNROLL": 4} for form in FORMS],
    "chunk_effect": [
        form | {"BD": 64, "UNROLL": unroll, "BACKWARD": backward}
        for form in FORMS
        for backward, unroll in ((False, 8), (True, 4))
    ],
    "carry": [{"BD": 32, "BACKWARD": True}],
    "selective_forward": [{"BD": 32, "STEPS": 16, "N": 16, "GROUP": 4}],
    "selective_backward": [{"BD": 32, "STEPS": 16, "N": 16, "GROUP": 4}],
}
FLOATS = ("h0", "turn", "last", "follows", "start", "dh0", "products", "sums", "first", "carried")


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_compile_for_a_hopper_gpu_and_keep_to_its_registers(name, dtype, tmp_path):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from unroll.policies.backbones.kernels import triton_kernels, triton_selective

    if dtype == "bf16" and "selective" in name:
        pytest.skip("the selective scan is float32 alone")
    kernel = getattr(triton_selective if "selective" in name else triton_kernels, name)
    types = dict.fromkeys(("T", "D", "CHUNK", "CHUNKS"), "i32") | {"reset": "*u8"} | dict.fromkeys(FLOATS, "*fp32")
    for form in KERNELS[name]:
        constants = {n: value for n, value in ({"HAS_RESET": True} | form).items() if n in kernel.arg_names}
        signature = {n: "constexpr" if n in constants else types.get(n, f"*{dtype}") for n in kernel.arg_names}
        divisible = [i for i, n in enumerate(kernel.arg_names) if n == "D" or signature[n][0] == "*"]
        source = ASTSource(
            fn=kernel,
            signature=signature,
            constexprs={(kernel.arg_names.index(n),): value for n, value in constants.items()},
            attrs={(i,): [["tt.divisibility", 16]] for i in divisible},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
        (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [tool, "-res-usage", tmp_path / "kernel.cubin"]
        usage = subprocess.run(command, capture_output=True, text=True, check=True)
        registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage.stdout).groups())
        assert registers < 255
        assert stack <= 16  # bytes
        assert local == 0


def test_without_a_c_compiler_the_kernels_say_that_they_cannot_be_used(monkeypatch):
    """Triton looks for one at the first launch, where it would be too late."""
    from unroll.policies.backbones.kernels import cuda

    class Driver:
        @property
        def utils(self):
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    monkeypatch.setattr("triton.runtime.driver", SimpleNamespace(active=Driver()))
    assert cuda.why_not.__wrapped__() == (
        "Triton: Failed to find C compiler. Please specify via CC environment variable"
    )
