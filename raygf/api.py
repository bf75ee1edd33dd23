"""raygf from Python: what ``import raygf`` offers, and the commands that do the same from a shell."""

from __future__ import annotations

import copy
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import nn

from raygf.cli import parse_flags
from raygf.config.fields import Limits, Section, from_dict, full_name, not_empty, override
from raygf.config.recipes import RECIPES, Recipe, get_recipe
from raygf.config.run import DataConfig, Name, RunConfig
from raygf.console import notify, print_table
from raygf.data.base import InputSpec
from raygf.errors import CheckpointError, ConfigError, DataError, Named, RaygfError, name_function, one_line
from raygf.evaluation.loading import LoadedRun, load_run, read_config
from raygf.evaluation.results import RunResults, evaluate_run, group_runs
from raygf.evaluation.tables import ResultTable, count_unit, terminal_table, to_rich
from raygf.launch import Result, named
from raygf.launch import run as run_to_end
from raygf.methods.registry import is_step_method, method_title
from raygf.models.build import build_model
from raygf.records import History, read_history
from raygf.serving.adaptive import CIFAR10, AdaptiveClassifier
from raygf.serving.files import Segments, export_model
from raygf.storage.checkpoint import find_checkpoint, load_checkpoint
from raygf.storage.folder import RunFolder, above
from raygf.storage.run_storage import SUMMARY

Network = str | nn.Module | Callable[[InputSpec], nn.Module]
_MOST_VAL = 5000
_MANY = 10_000
"""With more training images than this, two epochs of every exit are worth a warning."""


def train(run: str | RunConfig, *, network: Network | None = None, data: Any = None, **settings: Any) -> Run:
    """Train a run to its end, with progress on standard error, and return it.

    >>> import raygf
    >>> run = raygf.train("digits", rounds=1, **{"optim.lr": 0.05})
    >>> run
    Run digits-msdnet-metagf-...: Meta-GF, 1 of 1 rounds; test accuracy ... %; in runs/digits-...

    A recipe is trained in this process, which begins at once, or on Ray, exits side by side, if this process
    is connected to it, ``RAY_ADDRESS`` is set, or there are several GPUs: to the same weights. It is logged
    to MLflow if ``MLFLOW_TRACKING_URI`` or a setting of ``tracking`` is given. A ``RunConfig`` is taken as it
    is.

    Args:
        run: a recipe's name, see ``recipes``, or a configuration.
        network: in place of the recipe's: a module whose output is a list of logits (B, classes), one an
            exit, which is copied with its weights; or a function from an ``InputSpec`` to one.
        data: in place of the recipe's: ``(train, test)``, map-style ``torch.utils.data.Dataset`` of (image,
            class), see ``data.source``; or a function that returns them. Other fields of ``data`` are then
            the defaults, but for ``val``: a tenth of ``train``.
        settings: fields of the run by their dotted names, or the last part where that is one field's alone:
            ``rounds=20``, ``executor="ray"``, ``**{"optim.lr": 0.05}``. Where ``package.module:function`` may
            be given, so may a function.

    Raises RaygfError: with one line on what is wrong, where, and what to change.
    """
    recipe, config = (run, get_recipe(run)) if isinstance(run, str) else ("", run)
    if recipe:
        config = override(config, {"resources.executor": _executor(), "tracking.enabled": _tracked(settings)})
    if data is not None:
        val = min(_MOST_VAL, len(data[0]) // 10) if isinstance(data, tuple) else 0
        config = replace(config, data=DataConfig(val=val))
    config = named(_configured(config, network, data, settings), recipe)
    return Run(run_to_end(config, recipe).checkpoint, config)


def load(path: str | Path, *, network: Network | None = None, data: Any = None, **settings: Any) -> Run:
    """The run in the folder ``path``, or of one of its checkpoint files; may be a URI.

    >>> import raygf
    >>> run = raygf.load(raygf.train("digits", rounds=1).folder)
    >>> len(run.accuracies)
    3

    Args:
        network: as for ``train``; needed where it was given as an object that can't be imported.
        data: the same.
        settings: what is different here, such as ``**{"data.path": "/data/cifar10"}`` or ``device="cpu"``.

    Raises CheckpointError: there is no checkpoint, or none that can be read.
    """
    file, notes = find_checkpoint(str(path))
    for text in notes:
        notify(text)
    config = read_config(load_checkpoint(file), file)
    return Run(file, _configured(config, network, data, settings))


class Run:
    """A run that has been trained, here or some time ago.

    >>> import raygf
    >>> run = raygf.train("digits", rounds=2)
    >>> [entry["round"] for entry in run.history], len(run.accuracies)
    ([1, 2], 3)
    >>> run.table()
    | Exit                | Operations (M) | Parameters (M) | Meta-GF test accuracy (%) |
    ...
    >>> [tuple(logits.shape) for logits in run.model()(run.loaded.dataset.spec.blank(5))]
    [(5, 10), (5, 10), (5, 10)]

    Attributes:
        checkpoint: the file that its network is read from.
        config: every setting.
    """

    def __init__(self, checkpoint: str, config: RunConfig) -> None:
        self.checkpoint, self.config = checkpoint, config

    @property
    def folder(self) -> str:
        """Where its files are."""
        return above("checkpoint", self.checkpoint)[0]

    @cached_property
    def history(self) -> History:
        """One record a round: losses and accuracies in training and validation, seconds, fusion weights."""
        return read_history(load_checkpoint(self.checkpoint).meta)

    @cached_property
    def loaded(self) -> LoadedRun:
        """Network, data set and all that is needed to evaluate."""
        return load_run(self.checkpoint, self.config)

    @cached_property
    def result(self) -> Result:
        """Test accuracy, costs and compute, as the run left them at its end."""
        try:
            known = json.loads(RunFolder(*above("folder", self.folder)).read(SUMMARY))
        except (OSError, ValueError):
            raise CheckpointError(f"{self.folder}: no {SUMMARY}: the run has not come to its end") from None
        return from_dict(Result, {field.name: known[field.name] for field in fields(Result)})

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Share of the test images that every exit classifies rightly, 0–1, shallow to deep."""
        return self.result.test_accuracy

    def table(self) -> ResultTable:
        """Test accuracy of every exit beside what it costs."""
        return self.result.table()

    def model(self) -> nn.Module:
        """The trained network in evaluation mode: normalised images (B, C, H, W) to a list of logits."""
        return self.loaded.bound.network

    def __repr__(self) -> str:
        config, place = self.config, self.folder.removeprefix(f"{Path.cwd()}/")
        try:
            shown = " ".join(f"{100 * accuracy:.1f}" for accuracy in self.accuracies)
            how = f"{self.result.rounds} of {config.rounds} rounds; test accuracy {shown} %"
        except RaygfError:
            how = "not at its end"
        return f"Run {config.storage.name}: {method_title(config.method)}, {how}; in {place}"


def recipes(word: str = "") -> dict[str, Recipe]:
    """The recipes whose names have ``word`` in them; each is a complete run, and a line on it.

    >>> import raygf
    >>> raygf.recipes("digits")["digits-sgd"].run.method
    'sgd'
    """
    return {name: recipe for name, recipe in RECIPES.items() if word in name}


def sweep(space: str, recipe: str = "digits", **settings: Any) -> dict[str, Any]:
    """Train many runs of ``recipe`` side by side under Ray Tune, and find the best settings of ``space``.

    >>> import raygf
    >>> found = raygf.sweep("fusion_lr", "digits", trials=2, rounds=1, train_limit=48)
    >>> sorted(found["best_config"])
    ['fusion.ema', 'fusion.lr', 'loss.aux']

    Args:
        space: one that comes with raygf, a Python file, or package.module:function; see docs/sweeps.md.
        settings: of the sweep (``trials``, ``search``, ``scheduler`` …) and, as for ``train``, of its runs.

    Returns:
        The best trial's settings and accuracies, and where the report is.
    """
    from raygf.sweeps.plan import SweepOptions, flags_for
    from raygf.sweeps.run import run_sweep

    run, own = get_recipe(recipe), {field.name for field in fields(SweepOptions)}
    values = {name if name in own else full_name(name, run): value for name, value in settings.items()}
    values.setdefault("tracking.enabled", _tracked(settings))
    return run_sweep(["--space", space, "--recipe", recipe, *shlex.split(flags_for(values))])


def export(run: Run, folder: str | Path, segments: Segments = "none") -> AdaptiveClassifier:
    """Write the network of ``run`` to ``folder``: weights, description, model card and figures.

    The folder needs nothing else of the run, and can be pushed to the Hugging Face Hub as it is.

    >>> import raygf
    >>> fast = raygf.export(raygf.train("digits", rounds=1), "model/")
    >>> raygf.AdaptiveClassifier.load("model/").operations == fast.operations
    True

    Args:
        segments: also every exit as a program of its own, by ``torch.export`` or in ONNX.

    Returns:
        The classifier that is loaded from ``folder``; it stops early.

    Raises:
        DataError: the run has no test images, or no validation images to read thresholds off.
        ConfigError: the network can't stop early, can't be exported, or a package is missing.
        StorageError: the folder can't be written.
    """
    export_model(run.loaded, folder, segments)
    config, given = run.config, None
    if isinstance(config.model.name, Named):
        given = build_model(config.model, run.loaded.dataset.spec, config.seed)
    return AdaptiveClassifier.load(str(folder), network=given)


@dataclass(frozen=True)
class ExportConfig(Section):
    """Whose network, and where to."""

    run: Name
    """The run's folder, or one of its checkpoints."""
    folder: Name
    """Folder for the weights, their description, the model card and figures."""
    segments: Segments = "none"
    """Also every exit as a program of its own, by torch.export (pt2) or in ONNX."""


def export_job(argv: Sequence[str]) -> dict[str, Any]:
    """What ``raygf export`` does; returns its last line."""
    config = parse_flags(ExportConfig, "Write a run's network to a folder, to load or serve anywhere.", argv)
    fast = export(load(config.run), config.folder, config.segments)
    return {"folder": config.folder, "exits": fast.exits, "default_budget": fast.default_budget}


@dataclass(frozen=True)
class PredictConfig(Section):
    """Which network, which pictures, and what may be spent."""

    pictures: Annotated[tuple[Name, ...], not_empty]
    """Image files; the central part is scaled to the network's size."""
    run: str = ""
    """A run's folder, or one that was exported; by default the network of CIFAR-10's classes in raygf."""
    budget: Annotated[float, Limits(0, above=True)] | None = None
    """Operations that an image may cost on average; by default the least that loses no accuracy."""


def predict_job(argv: Sequence[str]) -> dict[str, Any]:
    """What ``raygf predict`` does: a table of class, probability, exit, operations; returns its last line."""
    config = parse_flags(PredictConfig, "Classify pictures with a network that stops early.", argv)
    first, *others = config.pictures
    names_run = not config.run and ("://" in first or Path(first).is_dir())
    paths = others if names_run else [first, *others]
    if not paths:
        raise ConfigError(f"predict: give pictures after {first}")
    fast = AdaptiveClassifier.load(first if names_run else config.run or CIFAR10)
    images = np.stack([_picture(path, fast.task.input) for path in paths])
    found = fast.predict(images, budget=config.budget or fast.default_budget)
    names = [fast.task.class_names[label] for label in found.label]
    spent, unit = found.operations.tolist(), count_unit(fast.operations)
    cells = (paths, names, found.probability.tolist(), (found.exit + 1).tolist(), spent)
    titles, rows = ("picture", "class", "probability", "exit", "operations"), [*zip(*cells, strict=True)]
    shown = ((*row[:2], f"{row[2]:.1%}", str(row[3]), f"{unit.text(row[4])} {unit.name}") for row in rows)
    print_table(terminal_table(titles, shown, []), sys.stderr)
    return {"predictions": [dict(zip(titles, row, strict=True)) for row in rows]}


def _picture(path: str, spec: InputSpec) -> NDArray[np.uint8]:
    """The image file as ``spec`` has it: uint8 (C, H, W)."""
    try:
        with Image.open(path) as file:
            picture = file.convert("L" if spec.channels == 1 else "RGB")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or one_line(error, kind=False)
        raise DataError(f"{path}: no run's folder, and no picture: {why}") from None
    return np.atleast_3d(np.asarray(ImageOps.fit(picture, (spec.width, spec.height)))).transpose(2, 0, 1)


def evaluate(
    runs: Run | str | Sequence[Run | str], out: str = "results", **options: Any
) -> list[ResultTable]:
    """Measure past runs, and write every table and figure of them to the folder ``out``.

    >>> import raygf
    >>> run = raygf.train("digits", rounds=1)
    >>> (table,) = raygf.evaluate([run], out="figures", importance=False, noise=False)
    >>> [column.title for column in table.columns]
    ['Meta-GF']

    Args:
        runs: runs, their folders, or checkpoint files. Those that differ in their seed alone are one column.
        options: ``labels``, a name for each run; ``data_path``; ``importance`` and ``noise``, which take
            passes over the images; ``log_to_mlflow``, ``log_model``.

    Returns:
        Test accuracy of every exit, a table for every network.
    """
    given = [runs] if isinstance(runs, Run | str) else list(runs)
    paths = tuple(run.checkpoint if isinstance(run, Run) else run for run in given)
    return _evaluate(EvaluateConfig(paths, out, **options), given)[0]


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """Which runs, and where to put the results."""

    checkpoint: Annotated[tuple[Name, ...], not_empty]
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


def evaluate_job(argv: Sequence[str]) -> dict[str, Any]:
    """What ``raygf evaluate`` does: measure, write, log, print the tables; returns its last line."""
    text = "Evaluate past runs: anytime and budgeted accuracy, convergence, conflict, importance."
    config = parse_flags(EvaluateConfig, text, argv)
    tables, summary = _evaluate(config, config.checkpoint)
    for table in tables:
        print_table(to_rich(table, "Test accuracy of every exit"))
    return summary


def _evaluate(config: EvaluateConfig, runs: Sequence[Run | str]) -> tuple[list[ResultTable], dict[str, Any]]:
    """The tables of ``runs``, and the last line of the job."""
    from raygf.evaluation import report  # with matplotlib
    from raygf.tracking.tracker import log_evaluation

    started = time.perf_counter()
    groups = group_runs([_measure(run, config) for run in runs], config.labels)
    together = report.write_files(Path(config.out), report.comparison_files(groups))
    files = list(together)
    for folder, run in report.run_folders(groups).items():
        own = report.write_files(Path(config.out) / folder, report.run_files(run))
        files += own
        for line in report.what_is_missing(run):
            notify(f"{folder}: {line}")
        if config.log_to_mlflow:
            _log(run, folder, partial(log_evaluation, run, Path.cwd(), [*together, *own]))
    by_label = {
        group.label: {
            "seeds": list(group.seeds),
            "rounds": group.runs[0].round,
            "training_passes": group.runs[0].training_passes,
            "training_operations": group.runs[0].training_operations,
            "test_accuracy": [list(run.top1) for run in group.runs],
            "negative_cosines": [run.noise and asdict(run.noise) for run in group.runs],
        }
        for group in groups
    }
    seconds = round(time.perf_counter() - started, 3)
    summary = {"runs": by_label, "files": [str(path) for path in files], "seconds": seconds}
    return report.anytime_tables(groups), summary


def _measure(given: Run | str, config: EvaluateConfig) -> RunResults:
    moved = {} if config.data_path is None else {"data.path": config.data_path}
    run = (given if isinstance(given, Run) else load(given, **moved)).loaded
    if config.noise and run.dataset.count("train") > _MANY and not is_step_method(run.config.method):
        notify("training every exit for two epochs, for the noise in conflict; --noise False leaves it out")
    results = evaluate_run(run, config.importance, config.noise)
    if config.log_model:
        _log(results, run.config.storage.name, partial(_log_model, run, results))
    return results


def _log(run: RunResults, name: str, log: Callable[[], str]) -> None:
    """Note what ``log`` has added to the run's page, or in one line why it could not."""
    try:
        notify(f"{name}: {log() if run.run_id else 'was not tracked, nothing logged'}")
    except RaygfError as error:
        notify(f"{name}: not logged to MLflow: {error}")


def _log_model(run: LoadedRun, results: RunResults) -> str:
    from raygf.serving.card import default_line
    from raygf.serving.mlflow_model import log_model
    from raygf.tracking.store import resolve_uri

    classifier = AdaptiveClassifier.from_run(run)
    uri = resolve_uri(run.config.tracking, Path.cwd())
    return f"model {log_model(run, classifier, uri, results.run_id)}. {default_line(classifier)}"


def _configured(config: RunConfig, network: Any, data: Any, settings: Mapping[str, Any]) -> RunConfig:
    """``config`` with what is given in place of its fields, objects under names of their own."""
    values = {full_name(name, config): value for name, value in settings.items()}
    if isinstance(network, nn.Module):
        network = Named(name_function(network), partial(_copy, network))
    if isinstance(data, tuple):
        data = Named(name_function(data[0]), partial(_same, data))
    values |= {name: part for name, part in (("model.name", network), ("data.source", data)) if part}
    named = {name: name_function(value) if callable(value) else value for name, value in values.items()}
    return override(config, named)


def _copy(value: object, setting: object) -> Any:
    """A fresh one, as every exit's trainer needs."""
    return copy.deepcopy(value)


def _same(value: object, setting: object) -> Any:
    return value


def _executor() -> str:
    ray = sys.modules.get("ray")
    connected = "RAY_ADDRESS" in os.environ or (ray is not None and ray.is_initialized())
    return "ray" if connected or torch.cuda.device_count() > 1 else "local"


def _tracked(settings: Mapping[str, Any]) -> bool:
    """Whether MLflow was asked for: a database in the working folder would come as a surprise."""
    return "MLFLOW_TRACKING_URI" in os.environ or any(name.startswith("tracking.") for name in settings)
