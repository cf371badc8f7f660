"""Run PyTorch's fused recurrent kernels, which know no resets, over sequences that contain resets.

There are three ways, the first two with one call of the kernel and no loop over time in Python:

* ``run_packed`` cuts every row where an episode begins and packs the pieces. It works for each ``nn.GRU`` and
  ``nn.LSTM``, on each device and for each input.
* ``run_inserted`` inserts a step before each episode that empties the memory of an LSTM. On a CPU it is 3 to 10 times
  as fast: PyTorch has one call of oneDNN's kernel for whole rows, but a loop for packed pieces.
* ``run_stepwise`` makes one step after the other. A CUDA graph is recorded of it: how many pieces there are is a number
  that a graph cannot wait for, and its many small kernels cost no launches.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from unroll.policies.backbones.backbone import forget


class GRUKernel(nn.GRU):
    """A GRU whose kernel on CUDA computes as all other layers do.

    cuDNN has gradients in training mode alone, which makes no other difference here. And it would round float32 to
    TF32, by which a sequence differs from its steps in the fourth digit: see ``round_like_products``.
    """

    def train(self, mode: bool = True) -> GRUKernel:
        return super().train(True)

    def forward(self, *inputs: Any) -> Any:
        round_like_products(next(self.parameters()))
        return super().forward(*inputs)


class LSTMKernel(nn.LSTM):
    """An LSTM whose kernel on CUDA computes as all other layers do, like ``GRUKernel``."""

    def train(self, mode: bool = True) -> LSTMKernel:
        return super().train(True)

    def forward(self, *inputs: Any) -> Any:
        round_like_products(next(self.parameters()))
        return super().forward(*inputs)


def round_like_products(weight: Tensor) -> None:
    """Let cuDNN round float32 to TF32 if PyTorch's matrix products do, and not otherwise.

    PyTorch has a switch for each, and lets cuDNN round unless it is told not to. The switch is set for good: the
    gradient is computed later, and must be computed alike.
    """
    if weight.is_cuda:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"


def run_with_resets(
    rnn: nn.RNNBase, x: Tensor, state: tuple[Tensor, ...], reset: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a one-layer, batch-first ``rnn`` over x [B, T, D], starting anew where ``reset`` [B, T] is true.

    ``state`` holds one tensor [B, H] (GRU) or two (LSTM). Returns y [B, T, H] and the state after the last step.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return run_stepwise(rnn, x, state, reset)
    if isinstance(rnn, nn.LSTM) and can_insert(x, state, reset):
        return run_inserted(rnn, x, state, reset)
    return run_packed(rnn, x, state, reset)


def run_packed(
    rnn: nn.RNNBase, x: Tensor, state: tuple[Tensor, ...], reset: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Do what ``run_with_resets`` does with every piece between two resets as a row of its own."""
    batch, time = reset.shape

    # Every piece between two resets becomes a row of its own. ``first`` [S] and ``owner`` [S] are the index of its
    # first step in the flattened batch and the row that it was cut from. PackedSequence wants the longest first.
    begins = reset.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero().squeeze(1)
    lengths = torch.diff(first, append=first.new_tensor([batch * time]))
    order = lengths.argsort(descending=True, stable=True)
    lengths = lengths[order]
    first = first[order]
    owner = first // time

    # The packed order is time-major: all pieces' first steps, then the second steps of those that have one, and so on.
    offset = torch.arange(int(lengths[0]), device=x.device)[:, None]
    exists = offset < lengths
    rows = (first + offset)[exists]
    packed = PackedSequence(x.flatten(0, 1)[rows], exists.sum(1).cpu())

    # A piece at the start of a row continues from the given state, unless the row begins with a reset.
    continues = (first % time == 0) & ~reset.flatten()[first]
    initial = tuple(torch.where(continues[:, None], part[owner], 0)[None] for part in state)
    # an LSTM takes and gives two tensors, a GRU one
    is_lstm = len(initial) > 1
    out, final = rnn(packed, initial if is_lstm else initial[0])
    finals = final if is_lstm else (final,)

    # Put the outputs back in the order of the batch, and take each row's state from the piece at its end.
    y = out.data[rows.argsort()].unflatten(0, (batch, time))
    is_last = first + lengths == (owner + 1) * time
    last = torch.empty(batch, dtype=torch.int64, device=x.device)
    last[owner[is_last]] = is_last.nonzero().squeeze(1)
    return y, tuple(part[0, last] for part in finals)


def run_stepwise(
    rnn: nn.RNNBase, x: Tensor, state: tuple[Tensor, ...], reset: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Do what ``run_with_resets`` does step by step."""
    weights = rnn.all_weights[0]
    outputs = []
    for now, begins in zip(x.unbind(1), reset.unbind(1), strict=True):
        state = tuple(forget(part, begins) for part in state)
        if isinstance(rnn, nn.LSTM):
            state = torch.lstm_cell(now, state, *weights)
        else:
            state = (torch.gru_cell(now, state[0], *weights),)
        outputs.append(state[0])
    return torch.stack(outputs, 1), state


# σ(-SHUT) is 0 and σ(SHUT) is 1 to the last digit, whatever the state adds to the pre-activation.
SHUT = 1e4


def can_insert(x: Tensor, state: tuple[Tensor, ...], reset: Tensor) -> bool:
    """Check that ``run_inserted`` gives the right result, and not slowly.

    An inserted step multiplies the memory by 0, and 0 · NaN would be NaN. On CUDA, weights other than the module's own
    are slow.
    """
    if x.is_cuda:
        return False
    with torch.no_grad():
        kept = [forget(part, reset[:, 0]) for part in state]
        return all(math.isfinite(part.sum()) for part in (x, *kept))


def run_inserted(
    lstm: nn.LSTM, x: Tensor, state: tuple[Tensor, ...], reset: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a one-layer, batch-first LSTM over x [B, T, D], starting anew where ``reset`` [B, T] is true.

    Before each step that begins an episode, one step is inserted that shuts all gates: c = 0·c + 0·g and
    h = 0·tanh(c). A row with fewer episodes than the longest is filled up at its end by steps that keep the memory:
    c = 1·c + 0·g. Two more columns of the input's weights do this, so the gradients through these steps are exactly
    those of the recurrence with resets. Returns y [B, T, H] and the final (h, c).
    """
    batch, time = reset.shape
    steps = batch * time

    # A reset at the first step needs no insertion: the given state is emptied instead.
    state = tuple(forget(part, reset[:, 0]) for part in state)
    begins = reset.clone()
    begins[:, 0] = False

    # place [B, T] is where each step goes in the longer rows.
    place = torch.arange(time, device=x.device) + begins.cumsum(1)
    longest = int(place[:, -1].max()) + 1

    # source [B, longest] says which of the rows below each step of the longer rows is: a step of x, the step that
    # keeps (index ``steps``) or the step that shuts (index ``steps + 1``).
    source = torch.full((batch, longest), steps, device=x.device)
    source.scatter_(1, place, torch.arange(steps, device=x.device).view(batch, time))
    source[begins.nonzero()[:, 0], (place - 1)[begins]] = steps + 1

    # Two flags behind the channels of x mark the step that keeps and the step that shuts.
    flags = x.new_zeros(steps + 2, 2)
    flags[steps, 0] = 1
    flags[steps + 1, 1] = 1
    inputs = torch.cat([x.flatten(0, 1), x.new_zeros(2, x.shape[2])])
    rows = torch.cat([inputs, flags], 1)

    # The flags' weights shut and open gates. PyTorch's order of gates is i, f, g, o.
    weight, *others = lstm.all_weights[0]
    none = weight.new_zeros(lstm.hidden_size)
    shut = none - SHUT
    keep = torch.cat([shut, -shut, none, none])
    empty = torch.cat([shut, shut, none, shut])
    weights = (torch.cat([weight, torch.stack([keep, empty], 1)], 1), *others)

    before = [part[None] for part in state]
    y, _, c = torch.lstm(rows[source], before, weights, True, 1, 0.0, lstm.training, False, True)

    # Leave out the inserted steps. The steps at the end kept c; h after the last real step is its output.
    y = torch.take_along_dim(y, place[..., None], 1)
    return y, (y[:, -1].clone(), c[0])
