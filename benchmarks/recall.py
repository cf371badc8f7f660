"""Accuracy of backbones at recalling the first symbol after a delay, with and without the remembering bias.

    python -m benchmarks.recall --output FOLDER [--backbones mingru,gru] [--delays 10,100,1000] [--seeds 3]

A sequence is one of 8 cues, ``delay`` random distractors of 8 other symbols, and a query at which the model says the
cue. A T-maze asks the same of a memory, with reinforcement learning on top. Chance is 12.5 %.

The bias lets the gates start so that they forget over 2 to ``delay`` steps (memory_span; Tallec & Ollivier 2018,
arXiv 1804.11188). Without it they start as in the backbone's paper. Attention has one head and sees the whole sequence;
there is no MLP. Every backbone has the same budget of updates and minutes, whichever ends first, and stops when all of
256 fresh sequences are right.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch

from benchmarks.grid import Row, duration, fitting, make_parser, once, positive, positives, report, summary
from benchmarks.tokens import IGNORED, Batch, TokenModel, Training, answer
from unroll.commands.process import Reporting
from unroll.policies.backbones import make_backbone, options_of

CUES = 8
DISTRACTORS = 8
QUERY = CUES + DISTRACTORS  # the symbol after them
BATCH = 32
D_MODEL = 32
RATE = 1e-2


def draw(batch: int, delay: int, generator: torch.Generator) -> Batch:
    """Draw sequences and targets [batch, delay + 2]. Only the query at the end has a target, the first symbol."""
    sequence = torch.randint(CUES, QUERY, (batch, delay + 2), generator=generator)
    sequence[:, 0] = torch.randint(CUES, (batch,), generator=generator)
    sequence[:, -1] = QUERY
    targets = torch.full_like(sequence, IGNORED)
    targets[:, -1] = sequence[:, 0]
    return sequence, targets


def learn(options: Namespace, name: str, delay: int, span: float, seed: int, folder: Path) -> Row:
    """Train one model; return its accuracy in percent, and what it took."""
    torch.manual_seed(seed)
    # A backbone takes of these what it has: the span its gates start with, heads, window and MLP.
    wanted = fitting(name, memory_span=span, n_heads=1, window=delay + 2, mlp_ratio=0.0)
    model = TokenModel(make_backbone(name, D_MODEL, options.layers, **wanted), QUERY + 1).to(options.device)
    train = torch.Generator().manual_seed(seed)
    test = torch.Generator().manual_seed(1_000_000 + seed)

    # The test sequences are drawn once, and are the same for every backbone of a seed.
    fresh = [draw(BATCH, delay, test) for _ in range(8)]
    training = Training(
        updates=options.updates,
        seconds=60 * options.minutes,
        lr=RATE,
        warmup=20,
        evaluate_every=max(1, options.updates // 24),
    )
    title = f"{name}, delay {delay}, memory_span {span:g}, seed {seed}"
    return answer(model, lambda: draw(BATCH, delay, train), fresh, training, 1.0, folder, title)


def run(options: Namespace) -> int:
    torch.set_num_threads(options.threads)
    settings = {key: getattr(options, key) for key in ("layers", "updates", "minutes", "device")}
    rows = []
    for name in options.backbones:
        for bias in biases(name):
            for delay in options.delays:
                span = 0.0
                if bias == "yes":
                    span = float(max(2, delay))
                results = []
                for seed in range(options.seeds):
                    folder = options.output / f"{name}-delay{delay}-span{span:g}" / f"seed{seed}"
                    results.append(once(folder, settings, partial(learn, options, name, delay, span, seed, folder)))
                rows.append({"backbone": name, "remembering bias": bias, "delay": delay} | summary(results))
    title = (
        f"recall of the first of {CUES} symbols (chance: {100 / CUES:g} %): {options.updates} updates of {BATCH} "
        f"sequences or {options.minutes:g} minutes, d_model {D_MODEL} × {options.layers}, learning rate {RATE:g}, "
        f"{options.seeds} seed(s)"
    )
    report(title, rows, options.output)
    return 0


def biases(name: str) -> list[str]:
    """Return the cells of the column of the bias: with it and without it, or neither if the backbone has none."""
    if "memory_span" in options_of(name):
        return ["yes", "no"]
    return ["–"]


def main(arguments: list[str]) -> int:
    parser = make_parser("benchmarks.recall", __doc__, type=positive, default=2, help="default: 2")
    parser.add_argument("--delays", type=positives, default=[10, 100, 1000], help="default: 10,100,1000")
    parser.add_argument("--updates", type=positive, default=600, help="at most; default: 600")
    parser.add_argument("--minutes", type=duration, default=2.0, help="of training, at most; default: 2")
    options = parser.parse_args(arguments)
    with Reporting(parser.prog) as report:
        report.code = run(options)
    return report.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
