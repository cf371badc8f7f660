"""Run a fused recurrent kernel, which knows no resets, over sequences that contain them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from unroll.policies.backbones.backbone import forget


def run_packed(
    rnn: nn.RNNBase, x: Tensor, state: tuple[Tensor, ...], reset: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y [B, T, H] and the final states of a one-layer, batch-first ``rnn`` whose state starts anew where ``reset``
    [B, T].

    x [B, T, D]; ``state`` holds one [B, H] (GRU) or two (LSTM). Nothing loops over time in Python: every segment
    between two resets becomes a row of its own, and the rows are sorted by length as PackedSequence wants them.
    """
    batch, time = reset.shape
    begins = reset.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero().squeeze(1)  # [S] rows of the flattened batch where a segment begins
    lengths = torch.diff(first, append=first.new_tensor([batch * time]))
    order = lengths.argsort(descending=True, stable=True)
    lengths, first = lengths[order], first[order]

    # the packed order is time-major: all segments' first steps, then the second steps of those that have one, …
    offset = torch.arange(int(lengths[0]), device=x.device)[:, None]
    exists = offset < lengths
    rows = (first + offset)[exists]
    packed = PackedSequence(x.flatten(0, 1)[rows], exists.sum(1).cpu())

    continues = (first % time == 0) & ~reset.flatten()[first]  # these segments go on from the given state
    owner = first // time
    initial = tuple(torch.where(continues[:, None], s[owner], 0)[None] for s in state)
    out, final = rnn(packed, initial if len(initial) > 1 else initial[0])
    y = out.data[rows.argsort()]

    last = torch.empty(batch, dtype=torch.int64, device=x.device)
    ends = first + lengths == (owner + 1) * time
    last[owner[ends]] = ends.nonzero().squeeze(1)
    finals = final if isinstance(final, tuple) else (final,)
    return y.unflatten(0, (batch, time)), tuple(h[0, last] for h in finals)


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
