"""Gated DeltaNet, whose memory is a matrix (Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464), in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unroll.policies.backbones.backbone import Mixer, State, forget, require
from unroll.policies.backbones.conv import CausalConv
from unroll.policies.backbones.layers import Linear, linear, without_autocast
from unroll.policies.backbones.remember import remember_bias

CHUNK = 32  # steps that are computed side by side


class DeltaNet(Mixer):
    """S[t] = α·S[t-1] + β·k (v - α·S[t-1]ᵀ k)ᵀ;  y = W_o (norm(S[t]ᵀ q)·silu(W_g x)), for each head.

    S maps keys to values. A step replaces what is stored under its key by its value, as far as β says (the delta
    rule), and fades all else by α. So a head of d channels keeps up to d pairs apart.

    q, k and v are silu(conv(W x)), q and k of length 1; α and β are sigmoids of linear maps of x, one of each a head.
    As published, but for α, which is there the exponential of -A·softplus, and for how convolution and gates start.

    Args:
        n_heads: Heads of d_model / n_heads channels, each with a matrix of its own.
        conv: Steps of the convolution, which starts as the identity.
        memory_span: α starts so that the heads forget over up to this many steps, spaced evenly in the logarithm. 0:
            half open.
        signed: β goes to 2, so that a step can turn over what is stored under its key (Grazzi et al. 2024, arXiv
            2411.12537).

    Numbers that are not finite are an exception. In one ``forward`` they reach all steps of their row that are computed
    side by side, earlier ones and those behind a reset too, because in a product of matrices 0 · NaN is NaN. A memory
    is emptied where the first step begins an episode.

    The state is (the convolution's state, S [B, n_heads, channels of a key, channels of a value]).
    """

    paper = "Yang et al. 2024, arXiv 2412.06464"

    def __init__(self, d_model: int, n_heads: int = 4, conv: int = 4, memory_span: float = 100.0, signed: bool = False):
        super().__init__()
        require(n_heads >= 1, f"deltanet: n_heads must be at least 1, not {n_heads}")
        require(d_model % n_heads == 0, f"deltanet: d_model {d_model} must be divisible by n_heads = {n_heads}")
        self.heads = (n_heads, d_model // n_heads)
        self.signed = signed
        self.query_key_value = Linear(d_model, 3 * d_model, bias=False)
        self.conv = CausalConv(3 * d_model, conv)
        self.conv.start_as_identity()
        self.gates = Linear(d_model, 2 * n_heads)
        with torch.no_grad():
            # a single head has the whole span
            self.gates.bias[:n_heads] = remember_bias(n_heads + 1, memory_span)[1:]
        self.norm = nn.Parameter(torch.ones(self.heads[1]))
        self.gate = Linear(d_model, d_model)
        self.out = Linear(d_model, d_model)

    def initial_state(self, batch_size: int) -> State:
        n_heads, size = self.heads
        return self.conv.initial_state(batch_size), self.out.weight.new_zeros(batch_size, n_heads, size, size)

    def forward(self, x: Tensor, state: State | None = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        recent, memory = self.initial_state(len(x)) if state is None else state
        mixed, recent = self.conv(self.query_key_value(x), recent, reset)
        gates = self.gates(x)
        with without_autocast(x.device):
            query, key, value, log_keep, write = self._parts(mixed, gates)
            # heads before steps, [B, n_heads, T, …]
            query, key, value, log_keep, write = (part.transpose(1, 2) for part in (query, key, value, log_keep, write))
            read, memory = delta_scan(query, key, value, log_keep, write, memory, reset)
        return self._output(read.transpose(1, 2), x), (recent, memory)

    def step(self, x: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        recent, memory = state
        if reset is not None:
            memory = forget(memory, reset)
        mixed, recent = self.conv.step(linear(self.query_key_value, x), recent, reset)
        gates = linear(self.gates, x)
        with without_autocast(x.device):
            query, key, value, log_keep, write = self._parts(mixed, gates)
            memory = log_keep.exp()[..., None, None] * memory
            new = write[..., None] * (value - (key[..., None, :] @ memory)[..., 0, :])
            memory = memory + key[..., :, None] * new[..., None, :]
            read = (query[..., None, :] @ memory)[..., 0, :]
        return self._output(read, x), (recent, memory)

    def gate_activations(self, x: Tensor, state: State) -> dict[str, Tensor]:
        keep, write = torch.sigmoid(linear(self.gates, x)).chunk(2, -1)
        return {"keep": keep, "write": write}

    def _parts(self, mixed: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Compute q, k and v [..., n_heads, size], and log α and β [..., n_heads], at least in float32."""
        dtype = torch.promote_types(mixed.dtype, torch.float32)
        query, key, value = (part.unflatten(-1, self.heads) for part in F.silu(mixed.to(dtype)).chunk(3, -1))
        keep, write = gates.to(dtype).chunk(2, -1)
        write = torch.sigmoid(write) * (2 if self.signed else 1)
        return F.normalize(query, dim=-1), F.normalize(key, dim=-1), value, F.logsigmoid(keep), write

    def _output(self, read: Tensor, x: Tensor) -> Tensor:
        """Normalise what was read [..., n_heads, size] in each head, gate it by x, and mix the heads."""
        read = F.rms_norm(read, self.norm.shape, self.norm.to(read.dtype), 1e-5).flatten(-2).to(x.dtype)
        return linear(self.out, read * F.silu(linear(self.gate, x)))


def delta_scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_keep: Tensor,
    write: Tensor,
    memory: Tensor,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute what is read [B, H, T, V], and the memory [B, H, K, V] after the last step.

    query and key are [B, H, T, K], value is [B, H, T, V], log_keep and write are [B, H, T], reset is [B, T].

    What step t writes is u[t] = β (v - expected), where expected is what the steps before wrote. So u of a chunk is the
    solution of a triangular system (Yang et al. 2024, arXiv 2406.06484). Chunks follow one another.
    """
    memory = memory.to(key.dtype)  # weights of 16 bits begin with a memory of 16 bits
    reads = []
    for at in range(0, query.shape[2], CHUNK):
        q, k, v, g, beta = (part[:, :, at : at + CHUNK] for part in (query, key, value, log_keep, write))
        n = g.shape[-1]

        # How much of what step i wrote is left at step t, [B, H, t, i], and of the memory before the chunk, [B, H, t].
        # The logarithms from i to t are summed for each pair: differences of one running sum would lose digits.
        steps = torch.ones(n, n, dtype=torch.bool, device=g.device).tril()
        seen = steps if reset is None else steps & _same_episode(reset[:, at : at + CHUNK])[:, None]
        left = g[..., None].expand(*g.shape, n).tril(-1).cumsum(-2).masked_fill(~seen, -torch.inf).exp()
        carried = g.cumsum(-1).exp()
        if reset is not None:
            begins = reset[:, at : at + CHUNK]
            memory = forget(memory, begins[:, 0])
            carried = carried.masked_fill(begins.cumsum(1)[:, None] > 0, 0)
        carried = carried[..., None]

        expected = (k @ memory) * carried
        system = (beta[..., None] * left * (k @ k.mT)).tril(-1)
        new = torch.linalg.solve_triangular(system, beta[..., None] * (v - expected), upper=False, unitriangular=True)
        reads.append((q @ memory) * carried + (left * (q @ k.mT)) @ new)
        memory = memory * carried[:, :, -1:] + k.mT @ (left[:, :, -1, :, None] * new)
    return torch.cat(reads, 2), memory


def _same_episode(reset: Tensor) -> Tensor:
    """Say of each pair of steps whether they are of one episode, [B, T, T]."""
    episode = reset.cumsum(1)
    return episode[:, :, None] == episode[:, None, :]
