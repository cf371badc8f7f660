"""What a CUDA GPU makes of this: the scans against the memory's own speed, whole updates, and where to act.

    python -m benchmarks.gpu [--tables scans selective updates ppo acting] [--output FOLDER]

Each call of a kernel is recorded as a CUDA graph and replayed, so that what launching it from Python costs is not
counted; the L2 cache is cleared before each. "of copy" is the share of the speed at which this GPU copies 1 GiB, over
the fewest bytes that the call has to read and write.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.recurrent_peers import Iterations
from benchmarks.timing import report
from unroll.agents import DecisionAgent, RecurrentPPO
from unroll.envs import load_episodes, make_tensor_env, make_vec_env
from unroll.policies.backbones import BACKBONES, selective

DATASET = "embedded:hopper-v5-replay"

# B, T, D: one that fills a GPU, two of long sequences in few rows, one row, and those of an update of either agent.
SHAPES = ((256, 1024, 512), (16, 4096, 384), (16, 4096, 128), (1, 16384, 128), (64, 20, 128), (256, 128, 64))
FORMS = (("mingru", 2, False), ("mingru", 2, True), ("minlstm", 3, False))
SELECTIVE_SHAPES = ((64, 20, 256), (16, 1024, 512), (8, 4096, 256), (1, 16384, 256))
LARGE = dict(batch_size=256, context=64, policy_kwargs=dict(d_model=512))


def milliseconds(call: Callable[[], Any]) -> float:
    """Measure one replay of the call as a CUDA graph, as the median over a tenth of a second."""
    from triton.testing import do_bench

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()  # what it returns must outlive the graph
    time_ms = do_bench(graph.replay, warmup=10, rep=100, return_mode="median")
    del kept
    return float(time_ms)


def copy_rate() -> float:
    """Measure how many bytes a millisecond are read and written while 1 GiB is copied."""
    from triton.testing import do_bench

    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    # not as a graph, in which a GPU may leave the copying to another engine than its multiprocessors, and a slower one
    return 2 * source.nbytes / float(do_bench(lambda: target.copy_(source), rep=200, return_mode="median"))


def scans() -> list[dict[str, Any]]:
    """Time the fused scans, forward and backward."""
    from unroll.policies.backbones.kernels import cuda

    rate = copy_rate()
    rows = []
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for gates, parts, with_resets in FORMS:
                batch, time_, size = shape
                x = torch.randn(batch, time_, parts * size, device="cuda").to(dtype)
                dh = torch.randn(batch, time_, size, device="cuda").to(dtype)
                state = torch.zeros(batch, size, device="cuda")
                reset = torch.rand(batch, time_, device="cuda") < 0.01 if with_resets else None
                h, _ = cuda.gated_forward(x, state, reset, gates, "g", False)

                forward = milliseconds(lambda: cuda.gated_forward(x, state, reset, gates, "g", False))  # noqa: B023
                backward = milliseconds(lambda: cuda.gated_backward(dh, state, x, state, reset, h, gates, "g", False))  # noqa: B023
                row = {"B, T, D": ", ".join(map(str, shape)), "type": str(dtype).removeprefix("torch.")}
                row |= {"gates": gates, "resets": "1 %" if with_resets else "none"}
                row |= {"forward, µs": 1e3 * forward, "of copy": (x.nbytes + h.nbytes) / forward / rate}
                # x, h and dh are read, and dx is written
                row |= {"backward, µs": 1e3 * backward, "of copy ": 2 * (x.nbytes + h.nbytes) / backward / rate}
                rows.append(row)
    return rows


def selective_scans() -> list[dict[str, Any]]:
    """Time Mamba's scan, the kernel and PyTorch's operations, with 16 states a channel, and what memory they take."""
    rows = []
    for batch, time_, size in SELECTIVE_SHAPES:
        sequences = [torch.randn(batch, time_, size, device="cuda"), torch.rand(batch, time_, size, device="cuda") / 10]
        decays = -4 * torch.rand(size, 16, device="cuda")
        inputs = [*sequences, decays, *(torch.randn(batch, time_, 16, device="cuda") for _ in range(2))]
        inputs = [x.requires_grad_() for x in inputs]
        row: dict[str, Any] = {"B, T, D": f"{batch}, {time_}, {size}"}
        narrowest = selective.NARROWEST
        selective.NARROWEST = 0
        for name, scan in (("kernel", selective.selective_scan), ("PyTorch", selective.on_the_linear_scan)):

            def both(scan: Callable[..., Any] = scan, inputs: list[Tensor] = inputs) -> Any:
                y, _ = scan(*inputs)
                return torch.autograd.grad(y.sum(), inputs)

            both()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            both()
            row[f"{name}, MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
            row[f"{name}, ms"] = milliseconds(both)
        selective.NARROWEST = narrowest
        rows.append(row)
    return rows


def updates() -> list[dict[str, Any]]:
    """Time updates of a decision agent, eager and recorded as one graph, at the sizes of Hopper and at large ones."""
    episodes = load_episodes(DATASET)

    def rate(precision: str, cuda_graph: bool, sizes: dict[str, Any], name: str) -> float:
        agent = DecisionAgent(
            episodes, backbone=name, device="cuda", precision=precision, cuda_graph=cuda_graph, **sizes
        )
        agent._total_timesteps = 10**9
        update = agent._recorded or agent.update
        for _ in range(6):
            update()
        torch.cuda.synchronize()
        began = time.perf_counter()
        made = 0
        while time.perf_counter() - began < 0.5:
            for _ in range(10):
                update()
            torch.cuda.synchronize()
            made += 10
        return made / (time.perf_counter() - began)

    rows = []
    small: dict[str, Any] = dict(batch_size=64, context=20)
    for name in BACKBONES:
        row: dict[str, Any] = {"backbone": name}
        row["eager, updates/s"] = rate("float32", False, small, name)
        row["one graph"] = rate("float32", True, small, name)
        row["times"] = row["one graph"] / row["eager, updates/s"]
        for precision in ("float32", "tf32", "bfloat16"):
            row[f"B 256, K 64, d 512, {precision}"] = rate(precision, True, LARGE, name)
        rows.append(row)
    return rows


def ppo(device: str = "cuda", sizes: tuple[tuple[int, int], ...] = ((64, 128), (4096, 32))) -> list[dict[str, Any]]:
    """Time PPO whose environments are tensors, with eager minibatches and with one graph for them.

    ``sizes`` are numbers of environments and of steps of a rollout. All else is the agent's default.
    """
    rows = []
    for n_envs, n_steps in sizes:
        for name in ("mingru", "gru", "lstm", "transformer"):
            row: dict[str, Any] = {"environments × steps": f"{n_envs} × {n_steps}", "backbone": name}
            for how, cuda_graph in (("eager", False), ("one graph", True)):
                env = make_tensor_env("CartPoleNoVel-v1", n_envs, device)
                agent = RecurrentPPO(
                    "MlpPolicy", env, n_steps=n_steps, backbone=name, cuda_graph=cuda_graph, seed=0, device=device
                )
                run = Iterations(agent)
                for _ in range(5):
                    run()
                # the first two compile and record
                rollout = statistics.median(acting + rest for acting, rest, _ in run.seconds[2:])
                update = statistics.median(training for _, _, training in run.seconds[2:])
                row["rollout, ms"] = 1e3 * rollout
                row[f"update {how}, ms"] = 1e3 * update
                row[f"{how}, steps/s in all"] = n_envs * n_steps / (rollout + update)
            row["times"] = row["one graph, steps/s in all"] / row["eager, steps/s in all"]
            row["first ratio, off by"] = agent.logger.name_to_value["train/first_ratio_error"]
            rows.append(row)
    return rows


def acting() -> list[dict[str, Any]]:
    """Time acting and PPO on the CPU and on the GPU."""
    episodes = load_episodes(DATASET)
    rows = []
    for device in ("cpu", "cuda"):
        agent = DecisionAgent(episodes, device=device)
        row: dict[str, Any] = {"device": device}
        for n in (1, 100):
            observation = dict(
                observation=np.zeros((n, 11), np.float32),
                previous_action=np.zeros((n, 3), np.float32),
                return_to_go=np.ones((n, 1), np.float32),
                timestep=np.zeros((n, 1), np.int64),
            )
            state = None
            times = []
            for _ in range(60):
                began = time.perf_counter()
                _, state = agent.predict(observation, state)
                times.append(time.perf_counter() - began)
            row[f"a step in {n}, µs"] = 1e6 * statistics.median(times)
        for n_envs in (8, 64):
            ppo = RecurrentPPO(
                "MlpPolicy", make_vec_env("CartPoleNoVel-v1", n_envs), n_steps=32, n_epochs=4, device=device
            )
            ppo.learn(3 * n_envs * 32, log_interval=None)
            values = ppo.logger.name_to_value
            row[f"PPO in {n_envs}: rollout, steps/s"] = values["time/rollout_fps"]
            row[f"PPO in {n_envs}: train, steps/s"] = values["time/train_fps"]
        rows.append(row)
    return rows


TABLES = {"scans": scans, "selective": selective_scans, "updates": updates, "ppo": ppo, "acting": acting}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--output", help="folder for a JSON file of each table")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("python -m benchmarks.gpu: PyTorch finds no CUDA GPU here")
    print(torch.cuda.get_device_name(), f"copies {copy_rate() / 1e6:,.0f} GB/s\n")
    for name in options.tables:
        output = f"{options.output}/{name}.json" if options.output else None
        report(name, TABLES[name](), output)


if __name__ == "__main__":
    main()
