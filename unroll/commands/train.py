"""Train one agent from a config: unroll train [--config ppo/tmaze] [--key value …]"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unroll.agents import AGENTS, schemas
from unroll.agents.algorithm import Algorithm
from unroll.commands.process import Reporting, give_back_memory, leave, typed
from unroll.commands.scores import SCORE, begin_anew, best_so_far, drop_old_score, drop_pictures, scores_begin_anew
from unroll.configs import RunConfig, flat, load_config, save_config
from unroll.errors import EnvError, TrainingError, UserError
from unroll.own import import_backbone, import_environment

if TYPE_CHECKING:  # PyTorch and the rest are imported once the arguments are known to be right
    from rich.console import Console
    from stable_baselines3.common.callbacks import BaseCallback

    from unroll.agents.algorithm import Training
    from unroll.agents.common.logs import RunLogger


def main(arguments: list[str] | None = None) -> int:
    """Train an agent. The exit code is 0, or 128 + n when signal n stopped the run, which can be resumed then."""
    arguments = sys.argv[1:] if arguments is None else arguments

    def settled(config: RunConfig) -> RunConfig:
        import_backbone(arguments, "--backbone.name", config.backbone.name)
        return AGENTS[config.agent].settled(config)

    config = load_config(arguments, schemas(), settled=settled)
    with Reporting("unroll train") as report, contextlib.ExitStack() as stack:
        from unroll.agents.common.callbacks import last_good

        run = open_run(config, arguments, stack)
        with run.stop:  # until the last evaluation has ended
            try:
                # From here it is one call to the agent's update, and one more to its loss.
                with run.progress:
                    run.agent.learn(
                        run.steps_left,
                        run.callbacks,
                        log_interval=run.config.log_every,
                        reset_num_timesteps=False,
                    )
            except TrainingError as error:
                raise TrainingError(f"{error}; {last_good(run.folder)}") from error
            except Exception as error:
                run.rescue(error)
                raise
            try:
                report.code = run.finish()
            except EnvError as error:
                run.rescue(error)
                raise
    return leave(report.code)


def open_run(config: RunConfig, arguments: list[str], stack: contextlib.ExitStack) -> Run | Follower:
    """Make everything that a run needs: its folder, which is locked, the agent, what it learns from, and its logs.

    ``stack`` ends what must be ended.
    """
    import torch

    from unroll.agents.common.distributed import world
    from unroll.agents.common.machine import count_parameters
    from unroll.agents.common.run_folder import claim_folder, clear_leftovers, run_lock
    from unroll.agents.common.tracking import tracked
    from unroll.commands.console import Output

    algorithm = AGENTS[config.agent]
    import_code(config, algorithm, arguments)
    config = algorithm.settled(config)
    if config.threads:
        torch.set_num_threads(config.threads)

    # Of torchrun's processes the first alone writes and prints.
    first = int(os.environ.get("RANK", "0")) == 0
    console = Output(quiet=not first)
    folder = Path(config.run_dir or "")
    if config.resume and first:
        stack.enter_context(run_lock(folder))
        clear_leftovers(folder)
    stack.enter_context(world.joined(config.device))
    training = make_training(config, algorithm, console)
    if not first:
        return Follower(config, training)
    if config.resume:
        check_steps(config, algorithm, training, console)
    else:
        folder = claim_folder(config, training.name)
        stack.enter_context(run_lock(folder))

    backbone = config.backbone
    sizes = {"d_model": backbone.d_model, "n_layers": backbone.n_layers} | backbone.options
    listed = ", ".join(f"{key} {value}" for key, value in sizes.items())
    parameters = count_parameters(training.agent)
    console.print(f"run folder    {folder}")
    console.print(
        f"{backbone.name} ({listed}), {parameters:,} parameters, on {training.agent.device}; {training.describe()}"
    )
    if config.track == "wandb":  # before the first event file
        stack.enter_context(tracked(folder, flat(dataclasses.asdict(config)), console.print))
    if config.resume:  # now that nothing refuses it
        drop_old_score(config, folder, training.agent.num_timesteps < config.steps)
    logger = stack.enter_context(contextlib.closing(start_logs(config, algorithm, training, folder, console)))
    return Run(config, algorithm, training, folder, logger, console)


def check_steps(config: RunConfig, algorithm: Algorithm, training: Training, console: Console) -> None:
    """Say what it means for a run that goes on that it has another number of steps than before.

    Raises:
        CheckpointError: it has made more already.
    """
    import yaml

    from unroll.errors import CheckpointError

    path = Path(config.run_dir or "", "config.yaml")
    before = yaml.safe_load(path.read_text())["steps"] if path.is_file() else config.steps
    made = training.agent.num_timesteps
    if before == config.steps:
        return
    if config.steps < made:
        raise CheckpointError(f"{config.run_dir}: is at {algorithm.unit} {made}, and --steps {config.steps} is less")
    if any(getattr(config, name, "constant") != "constant" for name in ("schedule", "clip_schedule")):
        console.print(
            f"note: the run was made for {before} {algorithm.unit}s; what falls over a run, such as the learning rate, "
            f"goes on as if it had been made for {config.steps}"
        )


def import_code(config: RunConfig, algorithm: Algorithm, arguments: list[str]) -> None:
    """Import the classes of the user's own that the command line names."""
    import_backbone(arguments, "--backbone.name", config.backbone.name)
    for flag, name in algorithm.imports(config).items():
        import_environment(arguments, flag, name)


def make_training(config: RunConfig, algorithm: Algorithm, console: Console) -> Training:
    """The agent and what it learns from. Where the last checkpoint is damaged, the error says which one is not."""
    from unroll.agents.common.checkpoint import checkpoints
    from unroll.errors import CheckpointError, FormatError

    try:
        return algorithm.training(config, console.print)
    except FormatError:
        raise
    except CheckpointError as error:
        *older, last = checkpoints(config.run_dir or "") or [Path()]
        if not (config.resume and older):
            raise
        raise CheckpointError(f"{error}; without {last} the run goes on from {older[-1].name}") from None


def start_logs(
    config: RunConfig, algorithm: Algorithm, training: Training, folder: Path, console: Console
) -> RunLogger:
    """Open events and metrics.jsonl, and save the config; a run at its beginning says its hyperparameters."""
    from unroll.agents.common.logs import RunLogger

    step = training.agent.num_timesteps
    if not config.resume:
        save_config(config, folder / "config.yaml")  # first: it says whose folder this is
    anew = config.resume and scores_begin_anew(config, folder)  # by all that is logged, and not only up to here
    logger = RunLogger(folder, step)
    training.agent.set_logger(logger)
    if config.resume:  # the old config tells what is another one now, so it is replaced when that is logged
        told = begin_anew(folder, logger, step) if anew else None
        if told:
            console.print(told)
        save_config(config, folder / "config.yaml")
    if step:
        return logger

    fields = flat(dataclasses.asdict(config))
    learned = {algorithm.source, "steps"}  # these may change in a run that goes on, but they bear on the result
    hidden = set(config.may_change) - learned
    shown = {key: value for key, value in fields.items() if key.split(".")[0] not in hidden}
    logger.hyperparameters(shown, algorithm.headlines)
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in fields.items())
    logger.text("config", f"| key | value |\n|---|---|\n{rows}", 0)
    return logger


class Run:
    """A run in its folder: what happens while the agent learns, and after it."""

    def __init__(
        self,
        config: RunConfig,
        algorithm: Algorithm,
        training: Training,
        folder: Path,
        logger: RunLogger,
        console: Console,
    ):
        from unroll.agents.common.callbacks import Every, SaveCheckpoints, ShowProgress, StopOnSignal
        from unroll.agents.common.logs import read_metrics

        self.config = config
        self.algorithm = algorithm
        self.training = training
        self.folder = folder
        self.logger = logger
        self.console = console
        self.agent = training.agent
        self.steps_left = config.steps - self.agent.num_timesteps

        # A run that goes on knows its best score, and when it was evaluated last.
        self.logged = read_metrics(folder)
        self.scored = [int(line["step"]) for line in self.logged if SCORE in line]
        last = self.scored[-1] if self.scored else 0

        self.stop = StopOnSignal()
        self.progress = ShowProgress(config.steps, console, algorithm.unit, training.progress)
        best = best_so_far(self.logged) if (folder / "checkpoints" / "best").exists() else (None, None)
        self.saving = SaveCheckpoints(folder, config.checkpoint_every, config.keep, training.save, *best)
        playing = Every(config.evaluation.every, self.evaluate, last)
        # What is saved has been logged. An evaluation comes after it, and may fail.
        self.callbacks: list[BaseCallback] = [self.progress, self.stop, *training.callbacks, self.saving, playing]

    def evaluate(self) -> dict[str, Any] | None:
        """Play the agent as it is now and log its scores; None where there is nowhere to play, or a signal came.

        A step has one score in the log. One that an earlier process has logged stays, and with it the best checkpoint.
        """
        from unroll.agents.evaluation import scoring

        player = self.training.player()
        if player is None:
            return None
        options = self.config.evaluation
        result = self.stop.unless_stopped(
            lambda: scoring.evaluate(player, options.episodes, options.seed, self.stop.leave_if_stopped),
            at_once=player.lending is None,
        )
        give_back_memory()
        if result is None:
            return None
        if self.agent.num_timesteps in self.scored:
            return result
        metrics = scoring.headline(result)
        self.saving.save_best(metrics[SCORE])
        for tag, value in metrics.items():
            self.logger.record(tag, value)
        self.logger.dump(self.agent.num_timesteps)
        return result

    def finish(self) -> int:
        """Evaluate what was learned, and say what came of it and what to type next. Returns the exit code."""
        if self.agent.num_timesteps >= self.config.steps:  # also where a signal came after the last one
            self._log_costs()
        if self.stop.received is not None:
            return self._say_stopped(self.stop.received)
        result = self._last_evaluation()
        if result is not None and self.config.evaluation.video and not (self.folder / "evaluation.gif").exists():
            self._film(result)
        if self.stop.received is not None:  # meanwhile
            return self._say_stopped(self.stop.received)

        watched = "runs" if self.config.run_dir is None else shlex.quote(str(self.folder))
        self.console.print(f"run folder    {self.folder}\nwatch         tensorboard --logdir {watched}")
        if result is not None:
            again = f"{typed('evaluate')} {shlex.quote(str(self.folder))}{self._own('--backbone')}"
            for name in self.algorithm.imports(self.config).values():
                again += f" --env {name}"
            self.console.print(f"score again   {again}")
        return 0

    def rescue(self, error: Exception) -> None:
        """Save what was learned before an environment or an evaluation failed.

        The run goes back to where it can go on from, as after a stop. An error of no environment stays what it is.

        Raises:
            EnvError: one that also says what was saved.
        """
        from unroll.agents.common.distributed import world

        if world.size > 1 and not isinstance(error, EnvError):
            return  # maybe another process is lost, which is told elsewhere
        at = self.agent.num_timesteps
        saved = self._save_after_failure()
        if not isinstance(error, EnvError):
            print(f"unroll train: failed at {self.algorithm.unit} {at}; {saved}", file=sys.stderr)
            return
        what = f"{error}; at {self.algorithm.unit} {at}, {saved}"
        if error.details:
            path = self.folder / "traceback.txt"
            path.write_text(error.details)
            what += f"; traceback: {path}"
        raise EnvError(what) from error

    def _save_after_failure(self) -> str:
        """Save, and say where and how the run goes on."""
        from unroll.agents.common.callbacks import last_good

        if not self.saving.begun:
            return f"before anything was learned; {last_good(self.folder)}"
        self.training.go_back()
        try:
            self.saving.save()
        except (OSError, UserError) as error:
            return f"which could not be saved ({error}); {last_good(self.folder)}"
        return f"saved at {self.agent.num_timesteps}; to go on: {self._again()}"

    def _again(self) -> str:
        """The command line that goes on with the run."""
        again = f"{typed('train')} --resume true --run_dir {shlex.quote(str(self.folder))}"
        again += self._own("--backbone.name")
        for flag, name in self.algorithm.imports(self.config).items():
            again += f" {flag} {name}"
        return again

    def _say_stopped(self, number: int) -> int:
        self.saving.check()
        self.console.print(f"stopped at {self.algorithm.unit} {self.agent.num_timesteps}; to go on: {self._again()}")
        return 128 + number

    def _own(self, flag: str) -> str:
        """The flag that names a backbone of the user's own, which every command line must."""
        name = self.config.backbone.name
        return f" {flag} {name}" if ":" in name else ""

    def _log_costs(self) -> None:
        """Log what the agent costs, unless an earlier process did and nothing was learned since.

        A process that only evaluates has less memory than one that learned.
        """
        from unroll.agents.common.machine import count_parameters, peak_memory_mb

        if self.steps_left > 0 or not any("perf/parameters" in line for line in self.logged):
            costs = {
                "perf/parameters": float(count_parameters(self.agent)),
                "perf/peak_memory_mb": peak_memory_mb(self.agent),
            }
            self.logger.write(costs, self.agent.num_timesteps)

    def _last_evaluation(self) -> dict[str, Any] | None:
        """Score the last checkpoint, unless a finished run is "resumed" and it has been scored before."""
        from unroll.agents.evaluation import scoring

        path = self.folder / "evaluation.json"
        result = None if self.steps_left > 0 else scoring.read_evaluation(path)
        if result is not None and self._is_own(result):
            self.console.print(scoring.score_table(result))
            return result
        result = self.evaluate()
        if result is not None:
            self.console.print(scoring.score_table(result))
            self.saving.check()  # after the table, which would be lost with it
            drop_pictures(self.folder)
            scoring.write_evaluation(result, path)
        self.saving.check()
        return result

    def _is_own(self, result: dict[str, Any]) -> bool:
        """Whether an evaluation is that of the last checkpoint as the config says: unroll evaluate may have made it."""
        from unroll.agents.evaluation import scoring

        at = self.agent.num_timesteps
        if result.get(f"{self.algorithm.unit}s", at) != at:
            return False
        player = self.training.player()
        return player is None or scoring.is_played_so(result, player)

    def _film(self, result: dict[str, Any]) -> None:
        from unroll.agents.evaluation.video import try_gif

        player = self.training.player()
        if player is None:
            return
        gif = self.stop.unless_stopped(
            lambda: try_gif(player, result, self.console.print), at_once=player.lending is None
        )
        if gif is not None:
            (self.folder / "evaluation.gif").write_bytes(gif)
            self.logger.gif("eval/episode", gif, self.agent.num_timesteps)


class Follower:
    """A process that torchrun has started beside the first: it does its share of the learning, and writes nothing."""

    def __init__(self, config: RunConfig, training: Training):
        from stable_baselines3.common.logger import Logger

        from unroll.agents.common.callbacks import StopOnSignal

        self.config = config
        self.agent = training.agent
        self.agent.set_logger(Logger(folder=None, output_formats=[]))
        self.folder = Path(config.run_dir or "")
        self.steps_left = config.steps - self.agent.num_timesteps
        self.progress = contextlib.nullcontext()
        self.stop = StopOnSignal()
        self.callbacks: list[BaseCallback] = [self.stop, *training.callbacks]

    def rescue(self, error: Exception) -> None:
        """Say which process it was, whose environments are numbered from 0 too. The first one saves.

        Raises:
            EnvError: what an environment of this process did.
        """
        from unroll.agents.common.distributed import world

        if isinstance(error, EnvError):
            if error.details:
                print(error.details, file=sys.stderr)
            raise EnvError(f"rank {world.rank}: {error}") from error

    def finish(self) -> int:
        """The exit code."""
        return 0 if self.stop.received is None else 128 + self.stop.received
