"""Accuracy of backbones at saying which value belonged to a key, after several pairs were shown.

    python -m benchmarks.associative_recall --output FOLDER [--backbones mingru,deltanet] [--pairs 2,4,8] [--seeds 3]

A sequence is so many pairs of a key and a value, of 16 symbols each, no key twice, and then keys of them in another
order, at each of which the model says the value (multi-query associative recall; Arora et al. 2023, arXiv 2312.04927).
Chance is 6.25 %. There is no MLP; attention has one head and sees the whole sequence. Every backbone has the same
budget of updates and minutes, whichever ends first, and stops when all of 256 fresh sequences are right.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch

from benchmarks.grid import Row, duration, fitting, make_parser, once, positive, positives, report, summary
from benchmarks.tokens import IGNORED, Batch, TokenModel, Training, answer
from unroll.commands.process import Reporting
from unroll.policies.backbones import make_backbone

SYMBOLS = 16  # keys, and as many values
BATCH = 32
D_MODEL = 64
RATE = 3e-3


def draw(batch: int, pairs: int, generator: torch.Generator) -> Batch:
    """Draw sequences and targets [batch, 3 · pairs]. The last ``pairs`` are keys, whose values are the targets."""
    keys = torch.rand(batch, SYMBOLS, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(SYMBOLS, (batch, pairs), generator=generator)
    order = torch.rand(batch, pairs, generator=generator).argsort(1)
    shown = torch.stack([keys, SYMBOLS + values], 2).flatten(1)
    sequence = torch.cat([shown, keys.gather(1, order)], 1)
    targets = torch.full_like(sequence, IGNORED)
    targets[:, -pairs:] = values.gather(1, order)
    return sequence, targets


def learn(options: Namespace, name: str, pairs: int, seed: int, folder: Path) -> Row:
    """Train one model; return its accuracy in percent, and what it took."""
    torch.manual_seed(seed)
    # A value must be stored under the key before it, which the short convolution shows to all that have one.
    wanted = fitting(name, n_heads=1, window=3 * pairs, mlp_ratio=0.0, conv=4, memory_span=float(3 * pairs))
    model = TokenModel(make_backbone(name, D_MODEL, options.layers, **wanted), 2 * SYMBOLS).to(options.device)
    train = torch.Generator().manual_seed(seed)
    test = torch.Generator().manual_seed(1_000_000 + seed)

    # The test sequences are drawn once, and are the same for every backbone of a seed.
    fresh = [draw(BATCH, pairs, test) for _ in range(8)]
    training = Training(
        updates=options.updates,
        seconds=60 * options.minutes,
        lr=RATE,
        evaluate_every=max(1, options.updates // 24),
    )
    return answer(
        model, lambda: draw(BATCH, pairs, train), fresh, training, 1.0, folder, f"{name}, {pairs} pairs, seed {seed}"
    )


def run(options: Namespace) -> int:
    torch.set_num_threads(options.threads)
    settings = {key: getattr(options, key) for key in ("layers", "updates", "minutes", "device")}
    rows = []
    for name in options.backbones:
        for pairs in options.pairs:
            results = []
            for seed in range(options.seeds):
                folder = options.output / f"{name}-pairs{pairs}" / f"seed{seed}"
                results.append(once(folder, settings, partial(learn, options, name, pairs, seed, folder)))
            rows.append({"backbone": name, "pairs": pairs} | summary(results))
    title = (
        f"associative recall (chance: {100 / SYMBOLS:g} %): {options.updates} updates of {BATCH} sequences or "
        f"{options.minutes:g} minutes, d_model {D_MODEL} × {options.layers}, learning rate {RATE:g}, "
        f"{options.seeds} seed(s)"
    )
    report(title, rows, options.output)
    return 0


def few(text: str) -> list[int]:
    """Parse numbers of pairs: no more than there are keys."""
    numbers = positives(text)
    if max(numbers) > SYMBOLS:
        raise argparse.ArgumentTypeError(f"{text!r}: there are only {SYMBOLS} keys")
    return numbers


def main(arguments: list[str]) -> int:
    parser = make_parser("benchmarks.associative_recall", __doc__, type=positive, default=1, help="default: 1")
    parser.add_argument("--pairs", type=few, default=[2, 4, 8], help=f"up to {SYMBOLS}; default: 2,4,8")
    parser.add_argument("--updates", type=positive, default=3000, help="at most; default: 3000")
    parser.add_argument("--minutes", type=duration, default=2.0, help="of training, at most; default: 2")
    options = parser.parse_args(arguments)
    with Reporting(parser.prog) as report:
        report.code = run(options)
    return report.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
