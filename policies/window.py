"""Acting as the published Decision Transformer does: the last steps are encoded anew for every action."""

from __future__ import annotations

import torch
from torch import Tensor

from unroll.policies.backbones import Backbone, State
from unroll.policies.backbones.backbone import forget


class Window(Backbone):
    """A backbone that forgets all but the last ``length`` tokens.

    Its state is those tokens, and each call runs the backbone over them from nothing, as in training. That is O(length)
    per step, where the backbone's own step is O(1).

    The tokens stand at the right end of the state. What is left of them is hidden by a reset, since an episode is blind
    to what came before. ``forward`` takes the tokens of one environment step, as many at every call.
    """

    def __init__(self, backbone: Backbone, length: int):
        super().__init__()
        self.backbone = backbone
        self.length = length
        self.d_model = backbone.d_model

    def initial_state(self, batch_size: int) -> State:
        """Return no tokens [B, length, d_model], and how many there are [B]: 0."""
        weight = next(self.backbone.parameters())
        tokens = weight.new_zeros(batch_size, self.length, self.d_model)
        return tokens, torch.zeros(batch_size, dtype=torch.int64, device=weight.device)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        if state is None:
            state = self.initial_state(len(x))
        tokens, filled = state
        new = x.shape[1]
        if reset is not None:
            # only the first token of an environment step can begin an episode
            tokens = forget(tokens, reset[:, 0])
            filled = forget(filled, reset[:, 0])
        tokens = torch.cat([tokens[:, new:], x], 1)
        filled = (filled + new).clamp_max(self.length)

        # Run over as many tokens as the row with most of them has. The others begin later, with a reset.
        fewest, most = torch.stack(filled.aminmax()).tolist()
        begins = None
        if fewest < most:
            begins = torch.arange(most, device=x.device) == most - filled[:, None]
        y, _ = self.backbone(tokens[:, -most:], None, begins)
        return y[:, -new:], (tokens, filled)
