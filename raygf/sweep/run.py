"""A sweep from its command line to its last line: check, connect, prepare, tune, report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import tune

from raygf.cli import interruptible
from raygf.config.fields import storage_path, to_dict
from raygf.config.run import StorageConfig
from raygf.console import print_table
from raygf.errors import ConfigError, RunFailed, StorageError
from raygf.launch import temporary_path_warning
from raygf.on_ray.placement import check_fits, idle_nodes, swept_cluster
from raygf.sweep.callback import notify
from raygf.sweep.command import Command, parse_resumed, parse_sweep
from raygf.sweep.folder import SweepFolder
from raygf.sweep.plan import Plan, flags_for
from raygf.sweep.prepare import check_command, check_flags, prepare
from raygf.sweep.report import (
    RESULTS,
    best_row,
    failures,
    read_rows,
    result_of,
    shown,
    sweep_report,
    trials_csv,
    trials_table,
    write_report,
)
from raygf.sweep.tuner import restore_tuner, tune_as_wanted
from raygf.tracking.store import resolve_uri
from raygf.tracking.sweep import SweepRun

DESCRIPTION = "Train many runs of one recipe side by side, and find the settings that validate best."

MakeTuner = Callable[[Plan], tune.Tuner]


def run_sweep(argv: Sequence[str]) -> dict[str, Any]:
    """What ``jobs/sweep.py`` does; returns its last line.

    Raises:
        UserError: what is asked for can't be done; no trial has been started.
        RunFailed: no trial succeeded, or Ray Tune gave up.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the runs in MLflow are marked KILLED.
    """
    command, folder, stored = read_command(argv)
    checked = None if stored is not None and folder.has_trials() else check_command(command)
    concurrent = command.options.concurrent or 1
    try:
        with (
            interruptible(_go_on(command.run.storage)) as guard,
            swept_cluster(command.run.resources, concurrent) as (where, resources),
        ):
            guard()
            notify(where)
            if checked is None:
                assert stored is not None
                return _tune(_resumed(stored, command), restore_tuner, folder)
            prepared = prepare(checked, resources)
            for note in prepared.notes:
                notify(note)
            plan = replace(prepared.plan, parent=stored.parent if stored else "")
            return _tune(plan, prepared.tuner, folder)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or "the same command: no trial had been started") from None


def read_command(argv: Sequence[str]) -> tuple[Command, SweepFolder, Plan | None]:
    """What is asked for, the sweep's folder, and the plan that is stored there if it is to be resumed.

    Raises:
        UserError: see ``run_sweep``.
    """
    command, stored = parse_sweep(DESCRIPTION, argv), None
    storage = _settled(command)
    folder = SweepFolder(storage)
    if command.options.resume:
        stored = folder.read_plan()
        command = parse_resumed(DESCRIPTION, argv, stored)
    elif folder.has_plan():
        raise StorageError(
            f"{folder.path} holds a sweep already: go on with it with --resume, or choose another "
            "--storage.name"
        )
    command = replace(command, run=replace(command.run, storage=storage))
    check_flags(command)
    return command, folder, stored


def _go_on(storage: StorageConfig) -> str:
    """The flags that go on with the sweep that is stored there."""
    return "--resume " + flags_for({"storage.path": storage.path, "storage.name": storage.name})


def _settled(command: Command) -> StorageConfig:
    """The storage with a name, and with a local path made absolute: workers have folders of their own."""
    storage, options = command.run.storage, command.options
    if options.resume and not storage.name:
        raise ConfigError("resume: say which sweep with --storage.name")
    label = Path(options.space.rpartition(":")[2]).stem
    name = storage.name or f"{label}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return replace(storage, name=name, path=storage_path("storage.path", storage.path))


def _resumed(stored: Plan, command: Command) -> Plan:
    """The plan to go on with; the cluster may be another one now."""
    plan = replace(stored, options=command.options, run=command.run)
    if plan.run.resources.wait_for_resources_s == 0:
        check_fits(plan.run.resources, plan.actors, plan.options.concurrent or 1, idle_nodes())
    return plan


def _tune(plan: Plan, make: MakeTuner, folder: SweepFolder) -> dict[str, Any]:
    """Run the trials, and leave the report everywhere."""
    with folder.held(), _tracked(plan) as (plan, run):
        folder.write_plan(plan)
        notify(f"sweep {plan.name}: {plan.trials} trials of {plan.budget} training passes; in {folder.path}")
        if warning := temporary_path_warning(plan.run):
            notify(warning)
        with tune_as_wanted(plan):
            results = _fit(make(plan))
        rows = read_rows(list(results), plan, folder)
        best = best_row(rows, plan.mode)
        path = write_report(folder, rows, plan, best)
        print_table(trials_table(rows, plan), sys.stderr)
        if best is None:
            why = f"none of {len(rows)} trials succeeded: {'; '.join(failures(rows))}"
            if run is not None:
                run.fail("FAILED", why, {RESULTS: trials_csv(rows, plan)})
            raise RunFailed(why)
        notify(f"best: trial {best.trial}, {flags_for(best.values)}")
        if run is not None:
            run.finish(sweep_report(rows, plan, best))
        return result_of(rows, plan, best, path)


def _fit(tuner: tune.Tuner) -> Any:
    try:
        return tuner.fit()
    except tune.TuneError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise RunFailed(f"Ray Tune gave up ({lines[-1].strip()}); go on with --resume") from error


@contextmanager
def _tracked(plan: Plan) -> Iterator[tuple[Plan, SweepRun | None]]:
    """The plan with its run in MLflow, which is marked if the sweep ends with an error; None: not tracked."""
    tracking = plan.run.tracking
    run = (
        SweepRun(resolve_uri(tracking, Path.cwd()), tracking.experiment, notify) if tracking.enabled else None
    )
    if run is not None:
        plan = replace(plan, parent=run.start(plan.name, plan.parent, *_described(plan)))
    try:
        yield plan, run
    except KeyboardInterrupt:
        if run is not None:
            run.fail("KILLED", "interrupted")
        raise KeyboardInterrupt(_go_on(plan.run.storage)) from None
    except BaseException as error:
        if run is not None:
            run.fail("FAILED", str(error))
        raise


def _described(plan: Plan) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """For the sweep's run: what trials have in common, parameters and tags of the sweep."""
    common = shown(plan.run)
    for name in plan.fields:
        *sections, field = name.split(".")
        inner = common
        for section in sections:
            inner = inner[section]
        inner[field] = "swept"
    options = to_dict(plan.options)
    params = {f"sweep.{name}": options[name] for name in ("space", "search", "scheduler", "grace")}
    settled = {name: getattr(plan, name) for name in ("trials", "budget", "metric", "mode", "actors")}
    tags = {"recipe": plan.recipe, "raygf.sweep": plan.options.space, "model": plan.run.model.name}
    return common, {**params, **{f"sweep.{name}": value for name, value in settled.items()}}, tags
