"""The card of a shared run: what it learned, how well it plays, and the commands that train and play it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unroll.configs import Config, TrainConfig
from unroll.hub.verify import Shared
from unroll.policies.backbones import BACKBONES, find_backbone

REFERENCES = {
    "minari": "[Minari's {name}](https://minari.farama.org/datasets/{name})",
    "d4rl": "D4RL's {name} (Fu et al. 2020, [2004.07219](https://arxiv.org/abs/2004.07219))",
    "embedded": "{name}, which comes with the toolkit",
    "file": "the file {name}, which is not in this repository",
}


def model_card(run: Shared, repository: str) -> str:
    """README.md of a repository: YAML for the hub's index, then Markdown for people."""
    return f"---\n{yaml.safe_dump(front_matter(run), sort_keys=False)}---\n\n{text(run, repository)}"


def front_matter(run: Shared) -> dict[str, Any]:
    """What the hub indexes. The score is the highest target's, in its usual form: mean +/- deviation of episodes."""
    config, evaluation = run.config, run.evaluation
    _, tag, _ = algorithm(config)
    task = task_of(run)
    tags = ["reinforcement-learning", tag, config.backbone.name, *([task] if task else [])]
    about: dict[str, Any] = {"library_name": "unroll", "pipeline_tag": "reinforcement-learning", "tags": tags}
    if evaluation:
        returns = max(evaluation["results"], key=lambda result: result["target_return"] or 0)["returns"]
        result = {
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"name": task, "type": task},
            "metrics": [
                {
                    "type": "mean_reward",
                    "value": f"{np.mean(returns):.2f} +/- {np.std(returns):.2f}",
                    "name": "mean_reward",
                }
            ],
        }
        about["model-index"] = [{"name": f"{tag}-{config.backbone.name}", "results": [result]}]
    return about


def text(run: Shared, repository: str) -> str:
    config, state = run.config, run.state
    name, _, paper = algorithm(config)
    own = f" --backbone {config.backbone.name}" if ":" in config.backbone.name else ""
    train = f" --backbone.name {config.backbone.name}" if own else ""
    unit = "updates" if config.agent == "decision" else "environment steps"
    versions = ", ".join(f"{package} {version}" for package, version in (state.get("versions") or {}).items())
    return f"""# {name} with {config.backbone.name} on {task_of(run) or "recorded episodes"}

A run of unroll: a {name} ({paper}) whose memory is {backbone(run)}, after {state["num_timesteps"]:,} {unit} from
training seed {config.seed}. {learned_from(config, run.evaluation)}

## Score

{score(run.evaluation)}

## Use

```sh
pip install -e '.[share]'
python share.py download {repository}
python evaluate.py runs/{repository} --video{own}
python train.py --config runs/{repository}/config.yaml{train}    # what trained it: every setting is there
```

Weights are safetensors under a SHA-256 manifest; nothing here is a pickle or runs code when it is loaded.

Made with {versions} on {str(state.get("machine")).split(";")[0]}.
"""


def algorithm(config: Config) -> tuple[str, str, str]:
    """What learned: in words, as a tag, and its paper."""
    if not isinstance(config, TrainConfig):
        return "RecurrentPPO agent", "recurrent-ppo", "after [1707.06347](https://arxiv.org/abs/1707.06347)"
    if config.condition == "none":
        return "behaviour cloning agent", "behavior-cloning", "a decision agent without returns"
    return "decision agent", "decision-transformer", "after [2106.01345](https://arxiv.org/abs/2106.01345)"


def backbone(run: Shared) -> str:
    """The sequence model and its sizes."""
    own = run.config.backbone
    about = f"`{own.name}`"
    if own.name in BACKBONES:
        about += f" ({find_backbone(own.name).paper})"
    elif ":" in own.name:
        about += ", a class of its author's own that is not in this repository"
    sizes = {"d_model": own.d_model, "n_layers": own.n_layers, **own.options}
    parameters = run.metrics.get("perf/parameters")
    of = f"; {parameters:,.0f} parameters with embedding and heads" if parameters else ""
    return f"{about}, {', '.join(f'{key} {value}' for key, value in sizes.items())}{of}"


def task_of(run: Shared) -> str | None:
    """The environment's id; None: the dataset names none."""
    if run.evaluation:
        return str(run.evaluation["env"])
    return run.config.evaluation.env if isinstance(run.config, TrainConfig) else run.config.env


def learned_from(config: Config, evaluation: dict[str, Any] | None) -> str:
    """The dataset with its reference, or the environments."""
    if not isinstance(config, TrainConfig):
        return f"It learned in {config.n_envs} environments {config.env}."
    kind, colon, name = config.dataset.partition(":")
    if not colon or kind not in REFERENCES:
        kind, name = "file", Path(config.dataset).name
    mean = (evaluation or {}).get("dataset_return_mean")
    of = f", whose mean return is {mean:.1f}" if isinstance(mean, float) else ""
    return f"It learned from {REFERENCES[kind].format(name=name)}{of}."


def score(evaluation: dict[str, Any] | None) -> str:
    """A table of every target return's score, and what its numbers are."""
    if evaluation is None:
        return "Not evaluated."
    rows = ["| target return | mean return | 95 % interval | normalised score |", "|---|---|---|---|"]
    ablation = [evaluation["ablation"]] if "ablation" in evaluation else []
    for result in evaluation["results"] + ablation:
        target, normalized = result["target_return"], result["normalized_score"]
        asked = f"memory {result['memory']}" if "memory" in result else "–" if target is None else f"{target:g}"
        low, high = result["return_interval"]
        number = "–" if normalized is None else f"{normalized:.1f}"
        rows.append(f"| {asked} | {result['return_mean']:.4g} | {low:.4g} to {high:.4g} | {number} |")
    n, seeds = evaluation["episodes"], evaluation["seeds"]
    reference = (
        f" 0 and 100 are the random and expert returns of {evaluation['reference']}." if evaluation["reference"] else ""
    )
    return "\n".join(rows) + (
        f"\n\n{n} episodes of {evaluation['env']} each, reset seeds {seeds[0]} to {seeds[-1]}, {evaluation['memory']} "
        "memory. The interval is a bootstrap of the mean over episodes of this one run: it says nothing of other "
        f"training seeds.{reference}"
    )
