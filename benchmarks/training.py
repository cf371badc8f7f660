"""Updates per second of a decision agent: sampling, loss, gradient, clipping and the optimizer's step.

    python -m benchmarks.training --threads 1 [--output FILE.json]          run from the root of the repository

The rows are every backbone with fused and interleaved tokens, at Hopper's shapes, B 64, K 20, d 128 and 3 layers. Two
models of these sizes are the references, with the same batches, optimizer and clipping. One is the Transformer in the
shape of the published Decision Transformer: three tokens per step, one head, dropout in the attention
(configs/decision/published.yaml). The other is Hugging Face's ``DecisionTransformerModel``, where it can be imported.
Two of the rows are timed with the switches of an update as well.

All rows take turns in one process. The compiler makes its code for one number of threads, so another number is another
process.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import medians, repeated, report
from unroll.agents import DecisionAgent, schemas
from unroll.agents.common.optim import make_optimizer
from unroll.configs import load_config
from unroll.envs import load_episodes
from unroll.envs.datasets.episodes import Episodes
from unroll.policies.backbones import BACKBONES

PUBLISHED = ("transformer as published", "interleaved", "")
PEER = ("Hugging Face's", "interleaved", "")
SWITCHES: dict[str, dict[str, Any]] = {
    "bfloat16": dict(precision="bfloat16"),
    "compile": dict(compile="default"),
    "bfloat16, compile": dict(precision="bfloat16", compile="default"),
}
SWITCHED = (("mingru", "fused"), ("transformer", "interleaved"))

Row = tuple[str, str, str]  # model, tokens, switches


class HuggingFace(nn.Module):
    """A Decision Transformer of Hugging Face, as a policy with a loss."""

    def __init__(self, episodes: Episodes, context: int, d_model: int, n_layers: int):
        from transformers import DecisionTransformerConfig, DecisionTransformerModel

        super().__init__()
        self.model = DecisionTransformerModel(
            DecisionTransformerConfig(
                state_dim=episodes.observation_dim,
                act_dim=episodes.actions.shape[1],
                hidden_size=d_model,
                n_layer=n_layers,
                n_head=1,
                max_length=context,
                max_ep_len=int(episodes.lengths.max()),
                n_positions=3 * context,
            )
        )

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean squared error over the steps that are not padding, as in DecisionLoss."""
        prediction = self.model(
            states=batch["observation"],
            actions=batch["action"],
            rewards=None,
            returns_to_go=batch["return_to_go"][..., None],
            timesteps=batch["timestep"],
            attention_mask=batch["mask"].long(),
        ).action_preds
        mask = batch["mask"]
        errors = (prediction - batch["action"]).square().mean(-1)
        return (errors * mask).sum() / mask.sum()


def agents(options: argparse.Namespace, episodes: Episodes) -> Iterator[tuple[Row, DecisionAgent]]:
    """Yield our own rows, each with its agent."""
    sizes = dict(d_model=options.d_model, n_layers=options.layers)

    def agent(policy: dict[str, Any], **more: Any) -> DecisionAgent:
        more = dict(batch_size=options.batch, context=options.context, device=options.device) | more
        made = DecisionAgent(episodes, policy_kwargs=sizes | policy, **more)
        made._total_timesteps = 10**9  # the learning rate's schedule has no end here
        return made

    # The model of the paper, with its embedding of timesteps.
    published = load_config(["--config", "configs/decision/published.yaml"], schemas())
    policy = dict(backbone="transformer", tokens="interleaved", backbone_options=published.backbone.options)
    yield PUBLISHED, agent(policy, timestep_embedding=True)
    for tokens in ("fused", "interleaved"):
        for name in options.backbones.split(","):
            yield (name, tokens, ""), agent(dict(backbone=name, tokens=tokens))
            if (name, tokens) not in SWITCHED:
                continue

            # Two of the rows are timed with every switch.
            for switch, more in SWITCHES.items():
                if options.compile or "compile" not in more:
                    yield (name, tokens, switch), agent(dict(backbone=name, tokens=tokens), **more)


def updates(options: argparse.Namespace, episodes: Episodes) -> dict[Row, Callable[[], Any]]:
    """Return a function that makes one update, for each row."""
    made: dict[Row, Callable[[], Any]] = {row: agent.update for row, agent in agents(options, episodes)}
    try:
        policy = HuggingFace(episodes, options.context, options.d_model, options.layers).to(options.device)
    except ImportError:
        print("no row for Hugging Face's model: transformers is not installed")
        return made
    optimizer = make_optimizer("adamw", policy.parameters(), 1e-4, 1e-4)
    sample = sampler(options, episodes)
    return made | {PEER: lambda: update_peer(policy, optimizer, sample())}


def update_peer(policy: HuggingFace, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    """Make one update of Hugging Face's model, as DecisionAgent makes one."""
    policy.train()
    optimizer.zero_grad()
    policy.loss(batch).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.25)
    optimizer.step()


def sampler(options: argparse.Namespace, episodes: Episodes) -> Callable[[], dict[str, Tensor]]:
    """Return a function that draws a batch."""
    agent = DecisionAgent(episodes, context=options.context, device=options.device, policy_kwargs=dict(d_model=8))
    assert agent.sampler is not None
    sample = agent.sampler.sample
    return lambda: sample(options.batch, 0, 0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=7, help="timings of each row, whose median counts")
    parser.add_argument("--updates", type=int, default=4, help="updates of a timing")
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="rows with the compiler")
    parser.add_argument("--device", default="cpu")
    for name, size in (("batch", 64), ("context", 20), ("d_model", 128), ("layers", 3)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--output", help="write the numbers to this JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    episodes = load_episodes("embedded:hopper-v5-replay")

    # Sampling takes a turn of its own, to show its share of an update.
    made = updates(options, episodes)
    runs = {" · ".join(row): repeated(run, options.updates) for row, run in made.items()}
    runs["sampling"] = repeated(sampler(options, episodes), options.updates)
    seconds = {name: value / options.updates for name, value in medians(runs, options.repeats).items()}

    rows = []
    for row in made:
        name, tokens, switches = row
        own = seconds[" · ".join(row)]
        cells = {
            "backbone": name,
            "tokens": tokens,
            "switches": switches,
            "updates/s": 1 / own,
            "× published": seconds[" · ".join(PUBLISHED)] / own,
            "× Hugging Face's": "",
            "sampling, %": 100 * seconds["sampling"] / own,
        }
        if PEER in made:
            cells["× Hugging Face's"] = seconds[" · ".join(PEER)] / own
        rows.append(cells)
    sizes = f"B {options.batch}, K {options.context}, d {options.d_model}, {options.layers} layers"
    report(f"decision updates, {sizes}, {options.threads} thread(s), {options.device}", rows, options.output)


if __name__ == "__main__":
    main()
