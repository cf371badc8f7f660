"""The card of a shared run: what it learned, how well it plays, and the commands that train and play it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unroll.agents.evaluation.scoring import cuts_in_words, highest, task_in_words
from unroll.hub.verify import Shared
from unroll.policies.backbones import BACKBONES, find_backbone
from unroll.tables import exact, markdown_table, significant

REFERENCES = {
    "minari": "[Minari's {name}](https://minari.farama.org/datasets/{name})",
    "d4rl": "D4RL's {name} (Fu et al. 2020, [2004.07219](https://arxiv.org/abs/2004.07219))",
    "embedded": "{name}, which comes with the toolkit",
    "file": "the file {name}, which is not in this repository",
}


def model_card(run: Shared, repository: str) -> str:
    """Write the README.md of a repository: YAML for the hub's index, then Markdown for people."""
    return f"---\n{yaml.safe_dump(front_matter(run), sort_keys=False)}---\n\n{text(run, repository)}"


def front_matter(run: Shared) -> dict[str, Any]:
    """Return what the hub indexes.

    The score is that of the highest target, in the hub's usual form: mean +/- standard deviation of the episodes.
    """
    backbone = run.config.backbone.name
    tag = run.algorithm.words(run.config).tag
    task = task_of(run)
    tags = ["reinforcement-learning", tag, backbone]
    if task:
        tags.append(task)
    about: dict[str, Any] = {"library_name": "unroll", "pipeline_tag": "reinforcement-learning", "tags": tags}
    if run.evaluation is None:
        return about
    returns = highest(run.evaluation)["returns"]
    metric = {
        "type": "mean_reward",
        "value": f"{np.mean(returns):.2f} +/- {np.std(returns):.2f}",
        "name": "mean_reward",
    }
    result = {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": played_in(run.evaluation), "type": task},
        "metrics": [metric],
    }
    about["model-index"] = [{"name": f"{tag}-{backbone}", "results": [result]}]
    return about


def text(run: Shared, repository: str) -> str:
    """Write the card's Markdown."""
    config = run.config
    state = run.state
    words = run.algorithm.words(config)

    learned = f"{run.algorithm.learned_from(config, describe_dataset)}{mean_of_data(run.evaluation)}"
    versions = ", ".join(f"{package} {version}" for package, version in (state.get("versions") or {}).items())
    return f"""# {words.title} with {config.backbone.name} on {task_of(run) or "recorded episodes"}

A run of unroll: a {words.title} ({words.paper}) whose memory is {backbone(run)}, after {state["num_timesteps"]:,} \
{run.algorithm.long_unit} from
training seed {config.seed}. {learned}

## Score

{score(run.evaluation)}

## Use

```sh
pip install 'unroll-rl[share]'
unroll share download {repository}
unroll evaluate runs/{repository} --video{evaluate_flags(run)}
unroll train --config runs/{repository}/config.yaml{train_flags(run)}    # what trained it: every setting is there
```

Weights are safetensors under a SHA-256 manifest; nothing here is a pickle or runs code when it is loaded.

Made with {versions} on {str(state.get("machine")).split(";")[0]}.
"""


def evaluate_flags(run: Shared) -> str:
    """Name the code of its author's own for whoever plays the run: no file of a run is believed in that."""
    flags = [("--env", name) for name in run.algorithm.imports(run.config).values()]
    return _flags("--backbone", run, flags)


def train_flags(run: Shared) -> str:
    """Name the code of its author's own for whoever trains the run again."""
    return _flags("--backbone.name", run, list(run.algorithm.imports(run.config).items()))


def _flags(flag: str, run: Shared, flags: list[tuple[str, str]]) -> str:
    name = run.config.backbone.name
    if ":" in name:
        flags = [(flag, name), *flags]
    return "".join(f" {flag} {shlex.quote(value)}" for flag, value in flags)


def backbone(run: Shared) -> str:
    """Describe the sequence model and its sizes."""
    own = run.config.backbone
    about = f"`{own.name}`"
    if own.name in BACKBONES:
        about += f" ({find_backbone(own.name).paper})"
    elif ":" in own.name:
        about += ", a class of its author's own that is not in this repository"
    sizes = {"d_model": own.d_model, "n_layers": own.n_layers, **own.options}
    about += ", " + ", ".join(f"{key} {value}" for key, value in sizes.items())
    parameters = run.metrics.get("perf/parameters")
    if parameters:
        about += f"; {parameters:,.0f} parameters with embedding and heads"
    return about


def task_of(run: Shared) -> str | None:
    """Return the environment's id; None if nothing names one."""
    if run.evaluation:
        return str(run.evaluation["env"])
    return run.algorithm.env(run.config)


def played_in(evaluation: dict[str, Any]) -> str:
    """Name the environment of a score with its arguments."""
    return task_in_words(evaluation["env"], evaluation.get("env_kwargs"))


def describe_dataset(dataset: str) -> str:
    """Describe a dataset with its reference."""
    # A name without a known source is a path, of which only the last part is anybody's business.
    kind, colon, name = dataset.partition(":")
    if not colon or kind not in REFERENCES:
        kind = "file"
        name = Path(dataset).name
    return REFERENCES[kind].format(name=name)


def mean_of_data(evaluation: dict[str, Any] | None) -> str:
    """Say what the recorded episodes return, those of all datasets together; nothing where that is not known."""
    mean = (evaluation or {}).get("dataset_return_mean")
    return f" The mean return of its episodes is {significant(mean)}." if isinstance(mean, float) else ""


def score(evaluation: dict[str, Any] | None) -> str:
    """Write a table with the score for every target return, and say what its numbers are."""
    if evaluation is None:
        return "Not evaluated."
    results = list(evaluation["results"])
    if "ablation" in evaluation:
        results.append(evaluation["ablation"])
    rows = [_score_row(result) for result in results]
    table = markdown_table(["target return", "mean return", "95 % interval", "normalised score"], rows)

    seeds = evaluation["seeds"]
    cuts = f" {cuts_in_words(evaluation)}." if "max_steps" in evaluation else ""
    reference = ""
    if evaluation["reference"]:
        reference = f" 0 and 100 are the random and expert returns of {evaluation['reference']}."
    intervals = ""
    if evaluation["episodes"] > 1:
        intervals = " The interval is a bootstrap of the mean over episodes of this one run: it says nothing of other "
        intervals += "training seeds."
    return (
        f"{table}\n\n{evaluation['episodes']} episodes of {played_in(evaluation)} each, reset seeds {seeds[0]} to "
        f"{seeds[-1]}, {evaluation['memory']} memory.{cuts}{intervals}{reference}"
    )


def _score_row(result: dict[str, Any]) -> list[str]:
    asked = "–"
    if "memory" in result:
        asked = f"memory {result['memory']}"
    elif result["target_return"] is not None:
        asked = exact(result["target_return"])
    interval = "–"
    if len(result["returns"]) > 1:
        low, high = result["return_interval"]
        interval = f"{low:.4g} to {high:.4g}"
    score = "–"
    if result["normalized_score"] is not None:
        score = f"{result['normalized_score']:.1f}"
    return [asked, f"{result['return_mean']:.4g}", interval, score]
