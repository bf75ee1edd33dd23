"""Ray Tune set up for a sweep: schedulers, which trials there are, the tuner that starts or restores them.

asha stops trials early; its time is counted in training passes.
"""

import io
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pyarrow import PythonFile, fs
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from raygf.errors import ConfigError
from raygf.evaluation.tables import passes_text
from raygf.sweeps.callback import SweepCallback
from raygf.sweeps.plan import PASSES, Plan, SweepFolder
from raygf.sweeps.space import Axes, Values, draw_trials, grid
from raygf.sweeps.trial import VALUES, placement, run_trial

KEEP_BEST = 3.0
"""asha: one trial in so many goes on from each rung to the next, which is so many times as far."""


def make_scheduler(plan: Plan, alternatives: list[Axes]) -> TrialScheduler:
    """The scheduler that the options name; ConfigError if a trial gets fewer passes than ``grace``."""
    if plan.options.scheduler == "none":
        return FIFOScheduler()
    grace = grace_passes(plan, alternatives)
    return ASHAScheduler(time_attr=PASSES, max_t=plan.budget, grace_period=grace, reduction_factor=KEEP_BEST)


def grace_passes(plan: Plan, alternatives: list[Axes]) -> float:
    """Passes before the first decision, at least a round; ConfigError if a trial gets fewer."""
    grace = plan.options.grace
    if grace is None:
        swept = {method for axes in alternatives if "method" in axes for method in axes["method"].ends}
        least = max(plan.passes(replace(plan.run, method=method)) for method in swept or {plan.run.method})
        return min(plan.budget, max(least, math.ceil(plan.budget / 2)))
    if grace > plan.budget:
        raise ConfigError(f"grace = {grace}: a trial gets {passes_text(plan.budget)} training passes in all")
    return grace


TRIALS = 8
"""How many trials there are by default."""

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the other kind of output can't be given a reporter
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own waits for trials; a job that is stopped has 3 seconds
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that can't succeed reports why, and no metric
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the callback prints a line each
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_SNAPSHOT_S = "0.2"
"""Seconds between two snapshots of the sweep on a local disk; elsewhere Tune chooses, at least 10."""
_UNDER_WAY = 5
"""Newest checkpoints of a trial that are kept at least: the one that its snapshot names must be there when
it is killed. With rounds of 0.1 s on a busy machine the snapshot was up to 4 rounds behind."""


def draw(plan: Plan, alternatives: list[Axes]) -> list[Values]:
    """The trials of the axes in ``alternatives``, chosen as the plan's options say."""
    options = plan.options
    if options.search == "grid":
        return grid(alternatives, options.points)
    return draw_trials(alternatives, options.trials or TRIALS, plan.run.seed)


def make_tuner(plan: Plan, trials: list[Values], scheduler: TrialScheduler) -> tune.Tuner:
    """A new sweep of these ``trials``."""
    options, storage = plan.options, plan.run.storage
    table = tune.CLIReporter(
        metric_columns={plan.metric: plan.metric, PASSES: "passes"},
        parameter_columns=[VALUES],
        max_progress_rows=12,
        max_column_length=100,
        max_report_frequency=30,  # seconds between two tables
        print_intermediate_tables=True,  # not by the metric: failed trials have none
    )
    return tune.Tuner(
        _trainable(plan),
        param_space={VALUES: tune.grid_search(trials)},
        tune_config=tune.TuneConfig(
            metric=plan.metric,
            mode=plan.mode,
            scheduler=scheduler,
            max_concurrent_trials=options.concurrent,
            reuse_actors=False,
            trial_name_creator=lambda trial: str(trial.trial_id),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=storage.name,
            storage_path=storage.path,
            storage_filesystem=_file_system(plan),
            callbacks=[SweepCallback(storage)],
            progress_reporter=table,
            verbose=1,
            failure_config=tune.FailureConfig(max_failures=options.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=max(storage.keep, _UNDER_WAY)),
        ),
    )


def restore_tuner(plan: Plan) -> tune.Tuner:
    """A sweep that was begun; its failed trials stay failed."""
    path = SweepFolder(plan.run.storage).path
    return tune.Tuner.restore(
        path, _trainable(plan), resume_unfinished=True, storage_filesystem=_file_system(plan)
    )


@contextmanager
def tune_as_wanted(plan: Plan) -> Iterator[None]:
    """Tune's environment inside: it prints to standard error, and not what the sweep itself prints."""
    local = {"TUNE_GLOBAL_CHECKPOINT_S": _SNAPSHOT_S} if _file_system(plan) else {}
    added = {name: value for name, value in (_ENVIRONMENT | local).items() if name not in os.environ}
    os.environ.update(added)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _file_system(plan: Plan) -> fs.FileSystem | None:
    """What Tune writes local files with, whose own way leaves half a file if killed; None: no need."""
    return None if "://" in plan.run.storage.path else fs.PyFileSystem(_WholeFiles(LocalFileSystem()))


class _WholeFiles(fs.FSSpecHandler):  # type: ignore[misc]
    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        return PythonFile(_WholeFile(path), mode="w")


class _WholeFile(io.BufferedWriter):
    """A file that is there, or replaces another, once it is closed."""

    def __init__(self, path: str) -> None:
        super().__init__(io.FileIO(f"{path}.part", "wb"))
        self._path = path

    def close(self) -> None:
        if not self.closed:
            super().close()  # raises if something could not be written
            Path(f"{self._path}.part").replace(self._path)


def _trainable(plan: Plan) -> Any:
    with_plan = tune.with_parameters(run_trial, plan=plan)
    return tune.with_resources(with_plan, partial(placement, plan))
