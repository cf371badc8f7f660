"""Run a fused LSTM kernel that knows no resets over sequences that contain them, by steps that empty the memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from policies.backbones.backbone import forget

SHUT = 1e4  # σ(-1e4) is 0 and σ(1e4) is 1 to the last digit, whatever the state adds to it


def can_insert(x: Tensor, state: tuple[Tensor, ...], reset: Tensor) -> bool:
    """Whether the inserted steps forget: 0 · NaN would be NaN. On CUDA other weights than the module's are slow."""
    if x.is_cuda:
        return False
    with torch.no_grad():
        return all(math.isfinite(part.sum()) for part in (x, *(forget(part, reset[:, 0]) for part in state)))


def run_inserted(
    lstm: nn.LSTM, x: Tensor, state: tuple[Tensor, ...], reset: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y [B, T, H] and the final (h, c) of a one-layer, batch-first LSTM whose state starts anew where ``reset`` [B, T].

    Before each step that begins an episode one more is inserted, whose input shuts all gates: c = 0·c + 0·g and
    h = 0·tanh(c). Rows with fewer of them are filled up at their end by steps that keep: c = 1·c + 0·g. Two more
    columns of the input's weights make it so, and all gradients through those steps are exactly those of the
    recurrence with resets. It stays one call of oneDNN's kernel: 3 to 10 times as fast as packed sequences, which a
    loop computes.
    """
    batch, time = reset.shape
    steps = batch * time
    state = tuple(forget(part, reset[:, 0]) for part in state)
    begins = reset.clone()
    begins[:, 0] = False
    place = torch.arange(time, device=x.device) + begins.cumsum(1)  # where each step goes in the longer row
    longest = int(place[:, -1].max()) + 1

    source = torch.full((batch, longest), steps, device=x.device)  # of the rows below: a step, one to keep, one to shut
    source.scatter_(1, place, torch.arange(steps, device=x.device).view(batch, time))
    source[begins.nonzero()[:, 0], (place - 1)[begins]] = steps + 1
    flags = x.new_zeros(steps + 2, 2)
    flags[steps, 0], flags[steps + 1, 1] = 1, 1
    rows = torch.cat([torch.cat([x.flatten(0, 1), x.new_zeros(2, x.shape[2])]), flags], 1)

    weight, *others = lstm.all_weights[0]
    none = weight.new_zeros(lstm.hidden_size)
    shut = none - SHUT
    keep = torch.cat([shut, -shut, none, none])  # PyTorch's order of gates is i, f, g, o
    empty = torch.cat([shut, shut, none, shut])
    weights = (torch.cat([weight, torch.stack([keep, empty], 1)], 1), *others)
    before = [part[None] for part in state]
    y, _, c = torch.lstm(rows[source], before, weights, True, 1, 0.0, lstm.training, False, True)
    y = torch.take_along_dim(y, place[..., None], 1)
    return y, (y[:, -1].clone(), c[0])
