"""minLSTM of "Were RNNs All We Needed?" (Feng et al. 2024, arXiv 2410.01201, section 3.2), in linear space."""

from __future__ import annotations

import torch

from unroll.policies.backbones.kernels.reference import Candidate, Gates
from unroll.policies.backbones.minrnn import MinRNN
from unroll.policies.backbones.remember import Signed, remember_bias


class MinLSTM(MinRNN):
    """f = σ(W_f x), i = σ(W_i x);  h̃ = g(W_h x);  h[t] = f'·h[t-1] + i'·h̃;  y = W_o h.

    Args:
        memory_span: f starts at 1 - 1/τ and i at 1/τ, normalised or not, with τ as in MinGRU.
        normalize_gates: f' = f/(f + i) and i' = i/(f + i), as in the paper. False: f' = f and i' = i, as in the
            paper's released code.

    The other options and the state are those of MinRNN.
    """

    paper = "Feng et al. 2024, arXiv 2410.01201"

    def __init__(
        self,
        d_model: int,
        expansion: float = 1.0,
        memory_span: float = 100.0,
        normalize_gates: bool = True,
        candidate: Candidate = "g",
        conv: int = 0,
        learned_initial_state: bool = False,
        highway: bool = False,
        signed: Signed = False,
        unit_variance: bool = False,
    ):
        form: Gates = "minlstm" if normalize_gates else "minlstm_unnormalized"
        super().__init__(
            d_model, form, expansion, candidate, conv, learned_initial_state, highway, signed, unit_variance
        )
        # f comes first, then i
        with torch.no_grad():
            bias = remember_bias(self.d_inner, memory_span, signed)
            self.project.bias[: 2 * self.d_inner] = torch.cat([bias, -bias])
