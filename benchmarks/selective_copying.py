"""Accuracy of backbones on selective copying, where the symbols themselves say which of them matter.

    python -m benchmarks.selective_copying --output FOLDER [--backbones mingru,gru] [--layers 1,2,3] [--seeds 3]

``tokens`` data symbols stand at random places among ``length`` positions of noise. As many queries follow, at which the
model says the data symbols in their order (Gu & Dao 2023, arXiv 2312.00752; Feng et al. 2024, arXiv 2410.01201, table
1). Of the 16 symbols 0 is the noise and 15 the query. The score is the share of right answers on 1,024 fresh sequences.

The blocks have no MLP and no convolution, as in the paper. Gates start with a memory of ``length`` steps, and attention
sees the whole sequence. Every backbone has the same budget of updates, and stops when 99.9 % are right. The default
size is for one CPU thread; ``--paper`` is the paper's own, for a GPU.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch

from benchmarks.grid import Row, fill, fitting, listed, make_parser, once, positive, positives, report, summary
from benchmarks.tokens import IGNORED, Batch, TokenModel, Training, answer
from unroll.agents.common.machine import set_products
from unroll.commands.process import Reporting
from unroll.policies.backbones import make_backbone

SYMBOLS = 16
NOISE = 0
QUERY = SYMBOLS - 1
CPU = dict(length=64, tokens=8, updates=3000, batch=64, d_model=64, expansion=2.0, dropout=0.0, lr=3e-3)
PAPER = dict(length=4096, tokens=16, updates=400_000, batch=64, d_model=64, expansion=6.0, dropout=0.1, lr=3e-4)


def draw(batch: int, length: int, tokens: int, generator: torch.Generator) -> Batch:
    """Draw sequences and targets [batch, length + tokens], where the generator is. Only the queries have targets."""
    device = generator.device
    data = torch.randint(NOISE + 1, QUERY, (batch, tokens), generator=generator, device=device)

    # The places are the first ones of a random order of all positions.
    order = torch.rand(batch, length, generator=generator, device=device).argsort(1)
    places = order[:, :tokens].sort(1).values
    sequence = torch.full((batch, length + tokens), NOISE, device=device).scatter(1, places, data)
    sequence[:, length:] = QUERY
    targets = torch.full_like(sequence, IGNORED)
    targets[:, length:] = data
    return sequence, targets


def learn(options: Namespace, name: str, layers: int, seed: int, folder: Path) -> Row:
    """Train one model; return its accuracy in percent, and what it took."""
    torch.manual_seed(seed)
    wanted = fitting(
        name,
        expansion=options.expansion,
        dropout=options.dropout,
        memory_span=float(options.length),
        mlp_ratio=0.0,
        window=options.length + options.tokens,
    )
    model = TokenModel(make_backbone(name, options.d_model, layers, **wanted), SYMBOLS).to(options.device)
    train = torch.Generator(options.device).manual_seed(seed)
    test = torch.Generator().manual_seed(1_000_000 + seed)

    # The test sequences are drawn once, and are the same for every backbone of a seed.
    fresh = [draw(64, options.length, options.tokens, test) for _ in range(16)]
    training = Training(updates=options.updates, lr=options.lr, evaluate_every=max(1, options.updates // 30))

    def batch() -> Batch:
        return draw(options.batch, options.length, options.tokens, train)

    return answer(model, batch, fresh, training, 0.999, folder, f"{name} × {layers}, seed {seed}")


def run(options: Namespace) -> int:
    torch.set_num_threads(options.threads)
    set_products("tf32" if options.tf32 else "float32", torch.device(options.device))
    settings = {key: getattr(options, key) for key in (*CPU, "device")}
    if options.tf32:  # results of before have no such setting
        settings["tf32"] = True
    rows = []
    for name in options.backbones:
        for layers in options.layers:
            results = []
            for seed in range(options.seeds):
                folder = options.output / f"{name}-{layers}" / f"seed{seed}"
                results.append(once(folder, settings, partial(learn, options, name, layers, seed, folder)))
            rows.append({"backbone": name, "layers": layers} | summary(results))
    title = (
        f"selective copying of {options.tokens} tokens among {options.length}: {options.updates} updates of "
        f"{options.batch} sequences, d_model {options.d_model}, learning rate {options.lr:g}, {options.seeds} seed(s)"
    )
    report(title, rows, options.output)
    return 0


def main(arguments: list[str]) -> int:
    parser = make_parser(
        "benchmarks.selective_copying", __doc__, type=positives, default=[1, 2, 3], help="default: 1,2,3"
    )
    parser.add_argument("--length", type=positive, help=f"positions before the queries; default: {CPU['length']}")
    parser.add_argument("--tokens", type=positive, help=f"data symbols among them; default: {CPU['tokens']}")
    parser.add_argument("--updates", type=positive, help=f"at most; default: {CPU['updates']}")
    parser.add_argument("--paper", action="store_true", help=listed(PAPER))
    parser.add_argument("--tf32", action="store_true", help="round the factors of products on CUDA to TF32")
    options = parser.parse_args(arguments)
    fill(options, PAPER if options.paper else CPU)
    if options.tokens > options.length:
        parser.error(f"--tokens {options.tokens}: there are only {options.length} positions")
    with Reporting(parser.prog) as report:
        report.code = run(options)
    return report.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
