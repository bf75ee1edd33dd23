"""All tables and figures of past runs, from their checkpoints alone.

python jobs/evaluate.py --checkpoint runs/digits-20260102-030405 --out results
python jobs/evaluate.py --checkpoint runs/ours-0 runs/ours-1 runs/sgd-0 --labels ours ours SGD --out results
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raygf.errors import loading

with loading():
    from raygf.cli import main, parse_flags
    from raygf.config.fields import Section
    from raygf.config.run import Name
    from raygf.console import print_table
    from raygf.errors import ConfigError, RaygfError, TrackingError
    from raygf.evaluation.loading import LoadedRun, load_run
    from raygf.evaluation.report import (
        anytime_tables,
        comparison_files,
        run_files,
        run_folders,
        what_is_missing,
        write_files,
    )
    from raygf.evaluation.results import Group, RunResults, evaluate_run, group_runs
    from raygf.evaluation.tables import to_rich
    from raygf.methods.registry import is_step_method
    from raygf.storage.checkpoint import find_checkpoint

_MANY = 10_000
"""With more training images than this, two epochs of every exit are worth a warning."""
DESCRIPTION = "Evaluate past runs: anytime and budgeted accuracy, convergence, conflict, importance."


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """Which runs, and where to put the results."""

    checkpoint: tuple[Name, ...]
    """Checkpoint files (.npz, local or URIs), or folders of runs, whose newest checkpoint is taken."""
    out: Name = "results"
    """Folder for tables and figures."""
    labels: tuple[str, ...] = ()
    """A name for each checkpoint; by default the method. Runs that differ in their seed alone share one."""
    data_path: str | None = None
    """Where the data set is now; by default where the runs found it."""
    importance: bool = True
    """Prune what is important to each exit and measure (2 passes over the test images an exit)."""
    noise: bool = True
    """Train each exit in two orders of the images: how much conflict is noise (2 training passes an exit)."""
    log_to_mlflow: bool = True
    """Add the results to the runs' pages in MLflow."""
    log_model: bool = False
    """Also log each network, with its thresholds, as an MLflow model that can be served."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise ConfigError("checkpoint: name at least one")


def evaluate_runs(argv: Sequence[str]) -> dict[str, Any]:
    """Load, measure, write, log; print the table."""
    config = parse_flags(EvaluateConfig, DESCRIPTION, argv)
    started = time.perf_counter()
    results = [_evaluate(path, config) for path in config.checkpoint]
    groups = group_runs(results, config.labels)
    together = write_files(Path(config.out), comparison_files(groups))
    files = list(together)
    for folder, run in run_folders(groups).items():
        own = write_files(Path(config.out) / folder, run_files(run))
        files += own
        for line in what_is_missing(run):
            _note(f"{folder}: {line}")
        if config.log_to_mlflow:
            _log(run, folder, [*together, *own])
    for table in anytime_tables(groups):
        print_table(to_rich(table, "Test accuracy of every exit"))
    return _summary(groups, files, time.perf_counter() - started)


def _evaluate(path: str, config: EvaluateConfig) -> RunResults:
    file, notes = find_checkpoint(path)
    for note in notes:
        _note(note)
    run = load_run(file, config.data_path)
    if config.noise and run.dataset.count("train") > _MANY and not is_step_method(run.config.method):
        _note("training every exit for two epochs, for the noise in conflict; --noise False leaves it out")
    results = evaluate_run(run, config.importance, config.noise)
    if config.log_model:
        _log_model(run, results)
    return results


def _log(run: RunResults, name: str, files: Sequence[Path]) -> None:
    """Add ``files`` to the run's page; a store that can't be reached causes a one-line note."""
    if not run.run_id:
        return _note(f"{name}: was not tracked, nothing logged")
    from raygf.tracking.report import log_evaluation

    try:
        uri = log_evaluation(run.config.tracking, Path.cwd(), run.run_id, files, run.top5 or (), run.round)
    except TrackingError as error:
        return _note(f"{name}: not logged to MLflow: {error}")
    _note(f"{name}: logged to run {run.run_id} in {uri}")


def _log_model(run: LoadedRun, results: RunResults) -> None:
    """Log the adaptive classifier; a failure causes a one-line note."""
    name = run.config.storage.name
    if not results.run_id:
        return _note(f"{name}: was not tracked, no model logged")
    from raygf.serving.adaptive import AdaptiveClassifier
    from raygf.serving.card import default_line
    from raygf.serving.mlflow_model import log_model
    from raygf.tracking.store import resolve_uri

    uri = resolve_uri(run.config.tracking, Path.cwd())
    try:
        classifier = AdaptiveClassifier.from_run(run)
        model = log_model(run, classifier, uri, results.run_id)
    except RaygfError as error:
        return _note(f"{name}: no model logged: {error}")
    _note(f"{name}: model {model}. {default_line(classifier)}")


def _summary(groups: Sequence[Group], files: Sequence[Path], seconds: float) -> dict[str, Any]:
    return {
        "runs": {
            group.label: {
                "seeds": list(group.seeds),
                "rounds": group.runs[0].round,
                "training_passes": group.runs[0].training_passes,
                "training_operations": group.runs[0].training_operations,
                "test_accuracy": [list(run.top1) for run in group.runs],
                "negative_cosines": [run.noise and asdict(run.noise) for run in group.runs],
            }
            for group in groups
        },
        "files": [str(path) for path in files],
        "seconds": round(seconds, 3),
    }


def _note(text: str) -> None:
    print(f"note: {' '.join(text.split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(evaluate_runs))
