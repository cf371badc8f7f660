"""Run a fused recurrent kernel over sequences that contain resets: rows are cut at episode starts and packed, in one
call."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


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
