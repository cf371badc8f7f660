"""Measure the most RAM that one layer of a backbone takes at once, forward and backward.

On the CPU each measurement is a new process, because a process keeps what it has freed and its high-water mark never
falls. The process makes the layer and its input, and passes a little data through it, so that libraries allocate what
they allocate once. Then the growth of the high-water mark during the pass is the answer. It counts pages, also those
that PyTorch's allocator does not see. The processes are forked from a server that has imported everything and computed
nothing. On the GPU PyTorch's allocator knows.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from benchmarks.grid import fitting
from unroll.policies.backbones import make_backbone

WARM_LENGTH = 16


class Point(NamedTuple):
    """A measurement: one layer of ``backbone`` over [batch, length, d_model]."""

    backbone: str
    batch: int
    length: int
    d_model: int
    device: str

    def forward_backward(self) -> Callable[[], None]:
        """Return a call that runs the layer, which attends to the whole sequence, and computes all gradients."""
        torch.manual_seed(0)
        options = fitting(self.backbone, window=self.length)
        layer = make_backbone(self.backbone, self.d_model, 1, **options).to(self.device)
        x = torch.randn(self.batch, self.length, self.d_model, device=self.device, requires_grad=True)
        inputs = [x, *layer.parameters()]
        grad = torch.randn_like(x)

        def run() -> None:
            torch.autograd.grad(layer(x)[0], inputs, grad, allow_unused=True)

        return run


def peak_memory(point: Point, threads: int) -> int | None:
    """Measure the bytes above parameters, input and output gradient; None if the process dies of it."""
    if point.device == "cuda":
        return _on_cuda(point.forward_backward())

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

    # A process that dies closes its end of the pipe without a message.
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(point, threads, sender))
    process.start()
    sender.close()  # ours, so that the end of the process is the end of the pipe
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()
        receiver.close()


def _measure(point: Point, threads: int, sender: Connection) -> None:
    """Send the growth of the high-water mark of this process."""
    torch.set_num_threads(threads)

    # A little data first: what libraries allocate once is not the layer's.
    point._replace(batch=1, length=WARM_LENGTH).forward_backward()()
    run = point.forward_backward()
    before = _high_water()
    run()
    sender.send(_high_water() - before)


def _high_water() -> int:
    """Return the most bytes that this process has had in RAM so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return peak
    return 1024 * peak  # Linux counts in kilobytes


def _on_cuda(run: Callable[[], None]) -> int:
    """Return the growth of what PyTorch's allocator gave out."""
    run()  # what libraries allocate once is not the layer's
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before
