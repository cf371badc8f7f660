"""Bits per character of backbones of one size as language models of a text, after the same updates or the same time.

    python -m benchmarks.language_model --text FILE --output FOLDER --minutes 10 --parameters 1000000 [--paper]

A character is a byte. The first 90 % of the file are for training, in random windows of ``context`` characters that
begin with an empty memory. The last 10 % are for validation: every character is predicted once, in consecutive windows
that begin empty as well. The column ``carried`` has a memory that goes on from window to window, in ``batch`` streams
(a rest that fills no row of windows is left out).

The headline is the last validation, not the best. The training loss is that of the last ``evaluate_every`` updates,
dropout included. Bits are nats / ln 2. ``--parameters`` matches the backbones' sizes, without embedding and head.
``--paper`` is the size of Feng et al. 2024 (arXiv 2410.01201) on Shakespeare, for a GPU.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.grid import Row, duration, fill, fitting, listed, make_parser, once, positive, report, spread
from benchmarks.tokens import Batch, TokenModel, Training, fit
from unroll.agents.common.machine import set_products
from unroll.commands.process import Reporting
from unroll.errors import DatasetError
from unroll.policies.backbones import make_backbone, match_parameters

CPU = dict(layers=3, d_model=128, batch=32, dropout=0.0, wanted={})
PAPER = dict(layers=3, d_model=384, batch=64, dropout=0.2, wanted=dict(expansion=2.0, conv=4))
RATES = {"adamw": 1e-3, "lamb": 2e-3}  # optimizer → learning rate; that of LAMB is SHA-RNN's


def read_text(file: Path, context: int) -> tuple[Tensor, Tensor, int]:
    """Return the training and the validation characters as int64 codes [N], and the number of different characters.

    Raises:
        DatasetError: the text is too short for one window of validation.
    """
    # A symbol is the rank of a byte among those that occur.
    codes = np.frombuffer(file.read_bytes(), np.uint8)
    symbols, text = np.unique(codes, return_inverse=True)
    cut = len(text) * 9 // 10
    if len(text) - cut <= context:
        raise DatasetError(f"{file}: {len(text)} characters are too few for a context of {context}")
    return torch.from_numpy(text[:cut]), torch.from_numpy(text[cut:]), len(symbols)


def draw(text: Tensor, batch: int, context: int, generator: torch.Generator) -> Batch:
    """Draw random windows of ``text`` and, as targets, the characters one further on: [batch, context] both."""
    start = torch.randint(len(text) - context, (batch, 1), generator=generator)
    windows = text[start + torch.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def nats(model: TokenModel, text: Tensor, streams: int, context: int, carry: bool) -> float:
    """Return the mean cross-entropy over ``text``, cut into so many streams of windows.

    A rest shorter than a row of windows is left out. With ``carry`` the memory goes on from window to window.
    """
    streams = min(streams, (len(text) - 1) // context)
    length = (len(text) - 1) // streams // context * context  # of a stream: whole windows
    device = next(model.parameters()).device
    size = streams * length
    tokens = text[:size].reshape(streams, length).to(device)
    targets = text[1 : size + 1].reshape(streams, length).to(device)

    # Every stream is read from its beginning to its end, one window after the other.
    total = 0.0
    state = None
    for window, target in zip(tokens.split(context, 1), targets.split(context, 1), strict=True):
        logits, after = model(window, state)
        total += F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").item()
        if carry:
            state = after
    return total / tokens.numel()


def learn(options: Namespace, name: str, seed: int, folder: Path) -> Row:
    """Train one model; return its validation in nats, and what it took."""
    train, validation, symbols = read_text(options.text, options.context)
    d_model = options.d_model
    wanted = fitting(name, dropout=options.dropout, window=options.context, **options.wanted)
    if options.parameters:
        d_model, wanted = match_parameters(name, options.parameters, options.layers, **wanted)
    training = Training(
        updates=options.updates,
        seconds=60 * options.minutes if options.minutes else None,
        optimizer=options.optimizer,
        lr=RATES[options.optimizer],
        clip=0.25,
        evaluate_every=options.evaluate_every,
    )

    torch.manual_seed(seed)
    backbone = make_backbone(name, d_model, options.layers, **wanted)
    model = TokenModel(backbone, symbols, options.dropout).to(options.device)
    generator = torch.Generator().manual_seed(seed)
    result = fit(
        model,
        lambda: draw(train, options.batch, options.context, generator),
        lambda: {"validation_nats": nats(model, validation, options.batch, options.context, carry=False)},
        training,
        folder,
        title=f"{name}, seed {seed}",
    )
    with torch.inference_mode():
        carried = nats(model, validation, options.batch, options.context, carry=True)
    return {
        "d_model": d_model,
        "backbone_parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "parameters": model.size(),
        "updates": result.updates,
        "characters_per_second": result.updates * options.batch * options.context / result.seconds,
        "train_nats": result.last["train_loss"],
        "validation_nats": result.last["validation_nats"],
        "best_nats": min(metrics["validation_nats"] for metrics in result.history),
        "carried_nats": carried,
        "history": result.history,
    }


def run(options: Namespace) -> int:
    torch.set_num_threads(options.threads)
    set_products("tf32" if options.tf32 else "float32", torch.device(options.device))
    keys = ("parameters", "minutes", "updates", "context", "evaluate_every", "device", "optimizer", *CPU)
    settings = {key: getattr(options, key) for key in keys} | {"text": str(options.text)}
    if options.tf32:  # results of before have no such setting
        settings["tf32"] = True
    rows = []
    for name in options.backbones:
        results = []
        for seed in range(options.seeds):
            folder = options.output / name / f"seed{seed}"
            results.append(once(folder, settings, partial(learn, options, name, seed, folder)))
        rows.append({"backbone": name} | columns(results))

    budget = f"{options.updates} updates"
    if options.minutes:
        budget = f"{options.minutes:g} minutes"
    title = (
        f"{options.text.name}: {budget}, {options.batch} windows of {options.context} characters an update, "
        f"{options.layers} layers, {options.seeds} seed(s); bits per character, last validation in nats too"
    )
    report(title, rows, options.output)
    return 0


def columns(results: list[Row]) -> Row:
    """Make the columns of a backbone, over its seeds."""

    def bits(key: str) -> str:
        return spread([result[key] / math.log(2) for result in results], 3)

    return {
        "d_model": results[0]["d_model"],
        "parameters": f"{results[0]['parameters']:,}",
        "of the backbone": f"{results[0]['backbone_parameters']:,}",
        "updates": spread([result["updates"] for result in results], 0),
        "characters/s": spread([result["characters_per_second"] for result in results], 0),
        "train": bits("train_nats"),
        "validation": bits("validation_nats"),
        "nats": spread([result["validation_nats"] for result in results], 3),
        "best": bits("best_nats"),
        "carried": bits("carried_nats"),
    }


def main(arguments: list[str]) -> int:
    parser = make_parser("benchmarks.language_model", __doc__, type=positive, help=f"default: {CPU['layers']}")
    parser.add_argument("--text", type=Path, required=True, help="any file")
    parser.add_argument("--parameters", type=positive, help="of the backbone; default: no matching, but one d_model")
    parser.add_argument("--d_model", type=positive, help=f"where sizes are not matched; default: {CPU['d_model']}")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--minutes", type=duration, help="of training, evaluations apart; default: 5, or with --paper 5,000 updates"
    )
    budget.add_argument("--updates", type=positive)
    parser.add_argument(
        "--optimizer", choices=["adamw", "lamb"], default="adamw", help="at 1e-3 and 2e-3, SHA-RNN's; default: adamw"
    )
    parser.add_argument("--context", type=positive, default=256)
    parser.add_argument("--batch", type=positive, help=f"default: {CPU['batch']}")
    parser.add_argument("--evaluate_every", type=positive, default=100, help="updates")
    parser.add_argument("--paper", action="store_true", help=listed(PAPER))
    parser.add_argument("--tf32", action="store_true", help="round the factors of products on CUDA to TF32")
    options = parser.parse_args(arguments)
    size = CPU
    budget_by_default: Row = {"minutes": 5.0}
    if options.paper:
        size = PAPER
        budget_by_default = {"updates": 5000}
    if not (options.minutes or options.updates):
        fill(options, budget_by_default)
    fill(options, size)
    with Reporting(parser.prog) as report:
        report.code = run(options)
    return report.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
