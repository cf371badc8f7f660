"""Train one agent from a config: python train.py [--config configs/….yaml] [--key value …]"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unroll.commands.process import names, run_command
from unroll.commands.threads import give_back_memory
from unroll.configs import RESUMABLE, Config, load_config, save_config
from unroll.configs.loading import flat

SCORE = "eval/return_mean"  # of the highest target: what the best checkpoint is best in

if TYPE_CHECKING:  # torch and the rest are imported once the arguments are known to be right
    from rich.console import Console

    from unroll.agents.algorithm import Job
    from unroll.agents.common.logs import RunLogger


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = load_config(arguments)
    return run_command("train.py", train, config, names(arguments, "--backbone.name", config.backbone.name))


def train(config: Config, may_import: bool = False) -> int:
    """The exit code: 0, or 128 + n when signal n stopped the run, which can be resumed then.

    ``may_import``: whether the command line itself names the backbone, which may be a class of the user's own then.
    """
    import torch
    from rich.console import Console

    from unroll.agents.algorithm import make_job, settle
    from unroll.agents.common.checkpoint import clear_leftovers
    from unroll.agents.common.distributed import joined_ranks
    from unroll.agents.common.machine import parameters_of
    from unroll.agents.common.run_folder import run_lock
    from unroll.agents.common.tracking import tracked

    first = int(os.environ.get("RANK", "0")) == 0  # of torchrun's processes one alone writes and prints
    console = Console(markup=False, highlight=False, soft_wrap=True, quiet=not first)
    config = dataclasses.replace(config, backbone=settle(config.backbone, may_import))
    if config.threads:
        torch.set_num_threads(config.threads)
    with contextlib.ExitStack() as stack:
        run = Path(config.run_dir or "")
        if config.resume and first:
            stack.enter_context(run_lock(run))
            clear_leftovers(run)
        stack.enter_context(joined_ranks(config.device))
        job = make_job(config, console.print)
        if not first:
            return learn_along(config, job)
        if not config.resume:
            stack.enter_context(run_lock(run := claim_folder(config, job.name)))
        sizes = {"d_model": config.backbone.d_model, "n_layers": config.backbone.n_layers} | config.backbone.options
        console.print(
            f"{config.backbone.name} ({', '.join(f'{key} {value}' for key, value in sizes.items())}),", end=" "
        )
        console.print(f"{parameters_of(job.agent):,} parameters, on {job.agent.device}; {job.describe()}")
        if config.track == "wandb":  # before the first event file
            stack.enter_context(tracked(run, flat(dataclasses.asdict(config)), console.print))
        logger = stack.enter_context(contextlib.closing(start_logs(config, job, run)))
        return learn_and_score(config, job, run, logger, console)


def learn_along(config: Config, job: Job) -> int:
    """What a process does that torchrun has started beside the first: its share of the learning."""
    from stable_baselines3.common.logger import Logger

    from unroll.agents.common.callbacks import StopOnSignal

    job.agent.set_logger(Logger(folder=None, output_formats=[]))
    with StopOnSignal() as stop:
        steps = config.steps - job.agent.num_timesteps
        job.agent.learn(steps, [stop, *job.callbacks], log_interval=config.log_every, reset_num_timesteps=False)
    return 0 if stop.received is None else 128 + stop.received


def learn_and_score(config: Config, job: Job, run: Path, logger: RunLogger, console: Console) -> int:
    """Learn to the last step or the first signal, then play, and say what came of it and what to type next."""
    from unroll.agents.common.callbacks import Every, SaveCheckpoints, ShowProgress, StopOnSignal, last_good
    from unroll.agents.common.logs import read_metrics
    from unroll.agents.common.machine import memory_mb, parameters_of
    from unroll.agents.evaluation import scoring
    from unroll.errors import EnvError, TrainingError

    agent, options = job.agent, config.evaluation

    def own(flag: str) -> str:  # a class of the user's own is named on every command line
        return f"{flag} {config.backbone.name}" if ":" in config.backbone.name else ""

    def evaluate() -> dict[str, Any] | None:
        player = job.player()
        if player is None:
            return None
        result = stop.unless_stopped(lambda: scoring.evaluate(player, options.episodes, options.seed))
        give_back_memory()
        if result is None:
            return None
        metrics = scoring.headline(result)
        save.save_best(metrics[SCORE])
        for tag, value in metrics.items():
            logger.record(tag, value)
        logger.dump(agent.num_timesteps)
        return result

    logged = read_metrics(run)
    before = [line for line in logged if SCORE in line]
    progress, stop = ShowProgress(config.steps, console, job.unit, job.progress), StopOnSignal()
    best = max((line[SCORE] for line in before), default=None)
    save = SaveCheckpoints(run, config.checkpoint_every, config.keep, job.save, best)
    play = Every(options.every, evaluate, last=int(before[-1]["step"]) if before else 0)
    steps = config.steps - agent.num_timesteps
    with progress, stop:
        callbacks = [progress, stop, *job.callbacks, play, save]  # what is saved has been logged and evaluated
        try:
            agent.learn(steps, callbacks, log_interval=config.log_every, reset_num_timesteps=False)
        except (TrainingError, EnvError) as error:
            raise type(error)(f"{error}; {last_good(run)}") from error
    if stop.received is not None:
        save.check()
        hint = f"python train.py --resume true --run_dir {shlex.quote(str(run))}{own(' --backbone.name')}"
        console.print(f"stopped at {job.unit} {agent.num_timesteps}; to go on: {hint}")
        return 128 + stop.received
    if steps > 0 or not any("perf/parameters" in line for line in logged):  # stopped after its last step, it had none
        logger.record("perf/parameters", parameters_of(agent))
        logger.record("perf/peak_memory_mb", memory_mb(agent))
        logger.dump(agent.num_timesteps)

    finished = run / "evaluation.json"
    # a finished run that is "resumed" has nothing left to do
    result = None if steps > 0 else scoring.read_evaluation(finished)
    if result is None:
        result = evaluate()
        if result is not None:
            console.print(scoring.score_table(result))
            save.check()  # after what would be lost with it
            scoring.write_evaluation(result, finished)
        save.check()
    else:
        console.print(scoring.score_table(result))
    if result is not None:
        player = job.player() if options.video else None
        gif = scoring.try_gif(player, result, console.print) if player else None
        if gif is not None:
            (run / "evaluation.gif").write_bytes(gif)
            logger.gif("eval/episode", gif, agent.num_timesteps)
    quoted = shlex.quote(str(run))
    console.print(
        f"run folder    {run}\nwatch         tensorboard --logdir {'runs' if config.run_dir is None else quoted}"
    )
    if result is not None:
        console.print(f"score again   python evaluate.py {quoted}{own(' --backbone')}")
    return 0


def claim_folder(config: Config, name: str) -> Path:
    """The new folder of the run, made by this call. What is there is never overwritten: a name of ours gets a number, a
    folder that was given and holds anything is an error.

    Raises:
        CheckpointError: the given folder is not empty.
    """
    from unroll.errors import CheckpointError

    if config.run_dir is not None:
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if any(path.name[0] != "." for path in folder.iterdir()):  # the lock, or what a killed process was writing
            hint = "--resume true goes on with a run, another --run_dir starts a new one"
            raise CheckpointError(f"{folder}: is not empty; {hint}")
        return folder
    backbone = config.backbone.name.replace(":", ".")
    first = Path("runs", config.experiment or name, backbone, f"seed{config.seed}")
    first.parent.mkdir(parents=True, exist_ok=True)
    folder, number = first, 1
    while True:
        try:
            folder.mkdir()  # fails where another process was faster
            return folder
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}-{number}")


def start_logs(config: Config, job: Job, run: Path) -> RunLogger:
    """Events, metrics.jsonl and the saved config, with the hyperparameters of a new run."""
    from unroll.agents.common.logs import RunLogger

    save_config(config, run / "config.yaml")  # first: it says whose folder this is
    logger = RunLogger(run, job.agent.num_timesteps)
    job.agent.set_logger(logger)
    if not config.resume:
        fields = flat(dataclasses.asdict(config))
        hidden = set(RESUMABLE) - {"dataset", "steps"}  # what does not bear on the result
        logger.hyperparameters({k: v for k, v in fields.items() if k.split(".")[0] not in hidden}, job.headlines)
        rows = "\n".join(f"| {key} | `{value}` |" for key, value in fields.items())
        logger.text("config", f"| key | value |\n|---|---|\n{rows}", 0)
    return logger
