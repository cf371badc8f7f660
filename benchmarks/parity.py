"""Accuracy of backbones at saying whether the ones so far are even or odd, also over more steps than were learned.

    python -m benchmarks.parity --output FOLDER [--backbones mingru,gru] [--lengths 40,400] [--seeds 3]

A sequence is random bits, and the target of each step is the parity of all bits up to it. No window of the last steps
says it, and no sum that only fades does: the memory has to be turned over by each one (Grazzi et al. 2024, arXiv
2411.12537). So minGRU and minLSTM are also learned with ``signed`` gates, some and all. Learned are sequences of the
first length; what is scored are fresh ones of all lengths. Chance is 50 %. There is no MLP, and attention sees the
whole sequence.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.grid import (
    Row,
    duration,
    fitting,
    make_parser,
    once,
    positive,
    positives,
    report,
    spread,
    with_signed_gates,
)
from benchmarks.tokens import Batch, TokenModel, Training, accuracy, fit
from unroll.commands.process import Reporting
from unroll.policies.backbones import make_backbone

BATCH = 64
D_MODEL = 32
RATE = 3e-3


def draw(batch: int, length: int, generator: torch.Generator) -> Batch:
    """Draw bits, and for each the parity of those up to it, [batch, length]."""
    bits = torch.randint(2, (batch, length), generator=generator)
    return bits, bits.cumsum(1) % 2


def learn(options: Namespace, name: str, given: dict[str, Any], seed: int, folder: Path) -> Row:
    """Train one model; return its accuracy in percent at each length, and what it took."""
    torch.manual_seed(seed)
    wanted = fitting(name, n_heads=1, window=max(options.lengths), mlp_ratio=0.0) | given
    model = TokenModel(make_backbone(name, D_MODEL, options.layers, **wanted), 2).to(options.device)
    train = torch.Generator().manual_seed(seed)
    test = torch.Generator().manual_seed(1_000_000 + seed)

    # The test sequences are drawn once, and are the same for every backbone of a seed.
    fresh = {f"{length}": [draw(BATCH, length, test)] for length in options.lengths}
    training = Training(
        updates=options.updates,
        seconds=60 * options.minutes,
        lr=RATE,
        evaluate_every=max(1, options.updates // 10),
    )
    result = fit(
        model,
        lambda: draw(BATCH, options.lengths[0], train),
        lambda: {length: 100 * accuracy(model, batches) for length, batches in fresh.items()},
        training,
        folder,
        title=f"{name} {given}, seed {seed}",
    )
    return {"updates": result.updates, "seconds": result.seconds} | {length: result.last[length] for length in fresh}


def run(options: Namespace) -> int:
    torch.set_num_threads(options.threads)
    settings = {key: getattr(options, key) for key in ("layers", "updates", "minutes", "device", "lengths")}
    rows = []
    for name in options.backbones:
        for words, given in with_signed_gates(name):
            results = []
            for seed in range(options.seeds):
                folder = options.output / words.replace(" ", "-") / f"seed{seed}"
                results.append(once(folder, settings, partial(learn, options, name, given, seed, folder)))
            row: Row = {"backbone": words}
            for length in options.lengths:
                row[f"{length} steps, %"] = spread([result[f"{length}"] for result in results])
            row["updates"] = spread([result["updates"] for result in results], 0)
            row["seconds"] = spread([result["seconds"] for result in results], 0)
            rows.append(row)
    title = (
        f"parity (chance: 50 %), learned from {options.lengths[0]} steps: {options.updates} updates of {BATCH} "
        f"sequences or {options.minutes:g} minutes, d_model {D_MODEL} × {options.layers}, learning rate {RATE:g}, "
        f"{options.seeds} seed(s)"
    )
    report(title, rows, options.output)
    return 0


def main(arguments: list[str]) -> int:
    parser = make_parser("benchmarks.parity", __doc__, type=positive, default=1, help="default: 1")
    parser.add_argument("--lengths", type=positives, default=[40, 400], help="the first is learned; default: 40,400")
    parser.add_argument("--updates", type=positive, default=3000, help="at most; default: 3000")
    parser.add_argument("--minutes", type=duration, default=2.0, help="of training, at most; default: 2")
    options = parser.parse_args(arguments)
    with Reporting(parser.prog) as report:
        report.code = run(options)
    return report.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
