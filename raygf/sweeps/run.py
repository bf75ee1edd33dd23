"""A sweep from its command line to its last line: check, connect, prepare, tune, report."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import tune

from raygf.cli import command_with, interruptible
from raygf.config.fields import storage_path, to_dict
from raygf.config.run import StorageConfig
from raygf.console import notify, print_table
from raygf.errors import ConfigError, RunFailed, StorageError, without_passwords
from raygf.evaluation.tables import passes_text, terminal_table
from raygf.launch import temporary_path_warning
from raygf.on_ray.cluster import connected
from raygf.on_ray.placement import check_fits, idle_nodes
from raygf.sweeps.command import Command, check_flags, check_space, parse_sweep, prepare
from raygf.sweeps.plan import Plan, SweepFolder, flags_for, set_field
from raygf.sweeps.report import (
    RESULTS,
    best_row,
    failures,
    read_rows,
    result_of,
    sweep_report,
    trials_csv,
    trials_table,
    write_report,
)
from raygf.sweeps.space import load_space
from raygf.sweeps.tuner import restore_tuner, tune_as_wanted
from raygf.tracking.store import resolve_uri
from raygf.tracking.sweep import SweepRun

DESCRIPTION = "Train many runs of one recipe side by side, and find the settings that validate best."


def run_sweep(argv: Sequence[str]) -> dict[str, Any]:
    """What ``jobs/sweep.py`` does; returns its last line.

    Raises:
        UserError: what is asked for can't be done; no trial has been started.
        RunFailed: no trial succeeded, or Ray Tune gave up.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the runs in MLflow are marked KILLED.
    """
    command, folder, stored = read_command(argv)
    begun = stored is not None and folder.has_trials()
    if not begun:
        space = load_space(command.options.space, command.run)
        check_space(space, command)
    concurrent = command.options.concurrent or 1
    try:
        with (
            interruptible(_how_to_resume(command.run.storage)) as guard,
            connected(command.run.resources, concurrent) as (where, resources),
        ):
            guard()
            notify(where)
            if stored is not None and begun:
                plan = replace(stored, options=command.options, run=command.run)
                check_fits(plan.run.resources, plan.actors, concurrent, idle_nodes())  # it may be another one
                return _tune(plan, restore_tuner, folder)
            plan, make, notes = prepare(command, space, resources)
            for note in notes:
                notify(note)
            plan = replace(plan, parent=stored.parent if stored else "")
            return _tune(plan, make, folder)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or "the same command: no trial had been started") from None


def read_command(argv: Sequence[str]) -> tuple[Command, SweepFolder, Plan | None]:
    """What is asked for, the sweep's folder, and the plan that is stored there if it is to be resumed.

    Raises UserError: a flag is not allowed, or the folder does not hold what is asked for.
    """
    command, stored = parse_sweep(DESCRIPTION, argv), None
    options, storage = command.options, command.run.storage
    if options.resume and not storage.name:
        raise ConfigError("resume: say which sweep with --storage.name")
    label = Path(options.space.rpartition(":")[2]).stem
    name = storage.name or f"{label}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    # A local path is made absolute: workers have folders of their own.
    storage = replace(storage, name=name, path=storage_path("storage.path", storage.path))
    folder = SweepFolder(storage)
    if options.resume:
        stored = folder.read_plan()
        command = parse_sweep(DESCRIPTION, argv, stored)
    elif folder.has_plan():
        raise StorageError(
            f"{folder.path} holds a sweep already: resume it with --resume, or choose another --storage.name"
        )
    command = replace(command, run=replace(command.run, storage=storage))
    check_flags(command)
    return command, folder, stored


def _how_to_resume(storage: StorageConfig) -> str:
    """The command that resumes the sweep that is stored there."""
    own = {"--storage.path": storage.path, "--storage.name": storage.name, "--resume": "True"}
    return command_with(own)


def _tune(plan: Plan, make: Callable[[Plan], tune.Tuner], folder: SweepFolder) -> dict[str, Any]:
    """Run the trials, and leave the report everywhere."""
    with folder.held(), _tracked(plan) as (plan, run):
        folder.write_plan(plan)
        size = f"{plan.trials} trials of {passes_text(plan.budget)} training passes"
        notify(f"sweep {plan.run.storage.name}: {size}; in {folder.path}")
        if warning := temporary_path_warning(plan.run):
            notify(warning)
        try:
            with tune_as_wanted(plan):
                results = make(plan).fit()
        except tune.TuneError as error:
            cause = str(error).strip().rpartition("\n")[2].strip()
            raise RunFailed(f"Ray Tune gave up ({cause}); resume with --resume") from error
        rows = read_rows(list(results), plan, folder)
        best = best_row(rows, plan.mode)
        path = write_report(folder, rows, plan, best)
        print_table(terminal_table(*trials_table(rows, plan), "Trials, the best first"), sys.stderr)
        if best is None:
            why = f"none of {len(rows)} trials succeeded: {'; '.join(failures(rows))}"
            if run is not None:
                run.fail("FAILED", why, {RESULTS: trials_csv(rows, plan)})
            raise RunFailed(why)
        notify(f"best: trial {best.name}, {flags_for(best.values)}")
        if run is not None:
            run.finish(sweep_report(rows, plan, best))
        return result_of(rows, plan, best, path)


@contextmanager
def _tracked(plan: Plan) -> Iterator[tuple[Plan, SweepRun | None]]:
    """The plan with its run in MLflow, which is marked if the sweep ends with an error; None: not tracked."""
    tracking, run = plan.run.tracking, None
    if tracking.enabled:
        run = SweepRun(resolve_uri(tracking, Path.cwd()), tracking.experiment, notify)
        parent = run.start(plan.run.storage.name, plan.parent, *_described(plan))
        plan = replace(plan, parent=parent)
    try:
        yield plan, run
    except KeyboardInterrupt:
        if run is not None:
            run.fail("KILLED", "interrupted")
        raise KeyboardInterrupt(_how_to_resume(plan.run.storage)) from None
    except BaseException as error:
        if run is not None:
            run.fail("FAILED", str(error))
        raise


def _described(plan: Plan) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """For the sweep's run: what trials have in common, parameters and tags of the sweep."""
    common = without_passwords(to_dict(plan.run))
    for name in plan.fields:
        set_field(common, name, f"swept: {plan.ranges.get(name, '')}".rstrip(": "))
    params = {
        f"sweep.{name}": getattr(plan.options, name) for name in ("space", "search", "scheduler", "grace")
    }
    own = ("trials", "metric", "mode", "actors")
    params |= {f"sweep.{name}": getattr(plan, name) for name in own}
    params["sweep.budget"] = passes_text(plan.budget)
    tags = {"recipe": plan.recipe, "raygf.sweep": plan.options.space, "model": plan.run.model.name}
    return common, params, tags
