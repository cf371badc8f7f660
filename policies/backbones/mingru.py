"""minGRU of "Were RNNs All We Needed?" (Feng et al. 2024, arXiv 2410.01201, section 3.1), in linear space."""

from __future__ import annotations

import torch

from unroll.policies.backbones.kernels.reference import Candidate
from unroll.policies.backbones.minrnn import MinRNN
from unroll.policies.backbones.remember import Signed, remember_bias


class MinGRU(MinRNN):
    """z = σ(W_z x);  h̃ = g(W_h x);  h[t] = (1 - z)·h[t-1] + z·h̃;  y = W_o h.

    Args:
        memory_span: The gates start so that the channels forget over 2 to this many steps, spaced evenly in the
            logarithm. With 0 they start half open, as in the paper, and minGRU stays at chance on memory tasks.

    The other options and the state are those of MinRNN.
    """

    paper = "Feng et al. 2024, arXiv 2410.01201"

    def __init__(
        self,
        d_model: int,
        expansion: float = 1.0,
        memory_span: float = 100.0,
        candidate: Candidate = "g",
        conv: int = 0,
        learned_initial_state: bool = False,
        highway: bool = False,
        signed: Signed = False,
        unit_variance: bool = False,
    ):
        super().__init__(
            d_model, "mingru", expansion, candidate, conv, learned_initial_state, highway, signed, unit_variance
        )
        # 1 - z retains
        with torch.no_grad():
            self.project.bias[: self.d_inner] = -remember_bias(self.d_inner, memory_span, signed)
