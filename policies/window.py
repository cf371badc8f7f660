"""Acting as the published Decision Transformer does: the last steps are encoded anew for every action."""

from __future__ import annotations

import torch
from torch import Tensor

from unroll.policies.backbones import Backbone, State
from unroll.policies.backbones.backbone import forget


class Window(Backbone):
    """A backbone that forgets all but the last ``length`` tokens: its state is those tokens, and each call runs the
    backbone over them from nothing, as in training. O(length) per step, where the backbone's own step is O(1).

    The tokens stand at the right end of the state; what is left of them is hidden by a reset (an episode is blind to
    what came before). ``forward`` takes the tokens of one environment step, as many at every call.
    """

    def __init__(self, backbone: Backbone, length: int):
        super().__init__()
        self.backbone, self.length, self.d_model = backbone, length, backbone.d_model

    def initial_state(self, batch_size: int) -> State:
        weight = next(self.backbone.parameters())
        return weight.new_zeros(batch_size, self.length, self.d_model), torch.zeros(
            batch_size, dtype=torch.int64, device=weight.device
        )

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        tokens, filled = self.initial_state(len(x)) if state is None else state
        new = x.shape[1]
        if reset is not None:  # only the first token of an environment step can begin an episode
            tokens, filled = (forget(part, reset[:, 0]) for part in (tokens, filled))
        tokens = torch.cat([tokens[:, new:], x], 1)
        filled = (filled + new).clamp_max(self.length)
        least, used = torch.stack(filled.aminmax()).tolist()
        begins = None  # where all rows hold as many tokens, all begin with the first
        if least < used:
            begins = torch.arange(used, device=x.device) == used - filled[:, None]
        y, _ = self.backbone(tokens[:, -used:], None, begins)
        return y[:, -new:], (tokens, filled)
