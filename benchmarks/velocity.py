"""What is left of the error of a velocity of which only displacements are seen, by backbone.

    python -m benchmarks.velocity --output FOLDER [--backbones mingru,gru] [--seeds 3]

A body is pushed by a random force that changes from step to step and is even within each, as the noise of an agent's
actions pushes it: v[t] = 0.9·v[t-1] + noise, and what is seen is how far it moved, d[t] = (v[t] + v[t-1])/2. So v[t] =
2·d[t] - v[t-1], a memory that changes its sign from step to step. A memory that only fades has to add up the last
displacements that it can tell apart. The network is that of RecurrentPPO's actor up to its latent, with a linear layer
in the place of the MLP. minGRU and minLSTM are also learned with ``signed`` gates in some channels, as PPO has them,
and in all. The error is the mean square in percent of the velocity's variance, on fresh sequences.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.grid import Row, make_parser, once, positive, report, spread, with_signed_gates
from unroll.commands.process import Reporting
from unroll.policies.actor_critic import Encoder, fill_options
from unroll.policies.backbones.scan import linear_scan

BATCH = 16
LENGTH = 128
D_MODEL = 64
RATE = 1e-3


def draw(batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw displacements and velocities [batch, length, 1]; the body rests before the first step."""
    noise = torch.randn(length, batch, 1, generator=generator).transpose(0, 1)
    velocity = linear_scan(torch.full_like(noise, 0.9), noise)
    before = F.pad(velocity[:, :-1], (0, 0, 1, 0))
    return (velocity + before) / 2, velocity


def learn(options: Namespace, name: str, given: dict[str, Any], seed: int) -> Row:
    """Train one network; return its error in percent of the variance, and what it took."""
    torch.manual_seed(seed)
    encoder = Encoder(1, name, D_MODEL, options.layers, fill_options(name, given)).to(options.device)
    head = nn.Linear(encoder.d_latent, 1).to(options.device)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, RATE)
    train = torch.Generator().manual_seed(seed)

    def error(generator: torch.Generator, batch: int) -> Tensor:
        seen, wanted = (x.to(options.device) for x in draw(batch, LENGTH, generator))
        embedded = encoder.embed(seen)
        remembered, _ = encoder.backbone(embedded)
        return (head(encoder.latent(remembered, embedded)) - wanted).square().mean() / wanted.square().mean()

    began = time.process_time()
    for _ in range(options.updates):
        optimizer.zero_grad()
        error(train, BATCH).backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
    seconds = time.process_time() - began
    with torch.no_grad():
        left = error(torch.Generator().manual_seed(1_000_000 + seed), 256)
    return {"error": 100 * left.item(), "seconds": seconds}


def run(options: Namespace) -> int:
    torch.set_num_threads(options.threads)
    settings = {key: getattr(options, key) for key in ("layers", "updates", "device")}
    rows = []
    for name in options.backbones:
        for words, given in with_signed_gates(name):
            results = []
            for seed in range(options.seeds):
                folder: Path = options.output / words.replace(" ", "-") / f"seed{seed}"
                folder.mkdir(parents=True, exist_ok=True)
                results.append(once(folder, settings, partial(learn, options, name, given, seed)))
            rows.append({"backbone": words})
            rows[-1]["error, %"] = spread([result["error"] for result in results], 2)
            rows[-1]["seconds"] = spread([result["seconds"] for result in results], 0)
    title = (
        f"velocity from displacements: {options.updates} updates of {BATCH} sequences of {LENGTH} steps, "
        f"d_model {D_MODEL} × {options.layers}, learning rate {RATE:g}, {options.seeds} seed(s)"
    )
    report(title, rows, options.output)
    return 0


def main(arguments: list[str]) -> int:
    parser = make_parser("benchmarks.velocity", __doc__, type=positive, default=1, help="default: 1")
    parser.add_argument("--updates", type=positive, default=2000, help="default: 2000")
    options = parser.parse_args(arguments)
    with Reporting(parser.prog) as report:
        report.code = run(options)
    return report.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
