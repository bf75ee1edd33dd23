"""raygf from Python: train, load, look at, compare, sweep and export runs.

``import raygf`` offers these names. The command ``raygf`` and the programs in ``jobs/`` run the same code.
"""

from __future__ import annotations

import copy
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from raygf.cli import parse_flags
from raygf.config.fields import Section, full_name, override
from raygf.config.recipes import RECIPES, Recipe, get_recipe
from raygf.config.run import DataConfig, Name, RunConfig
from raygf.console import print_table
from raygf.data.base import InputSpec
from raygf.errors import ConfigError, Named, RaygfError, TrackingError, name_function, one_line
from raygf.evaluation.loading import LoadedRun, load_run, read_config
from raygf.evaluation.tables import ResultTable, to_rich
from raygf.launch import Result, named, result_table
from raygf.launch import run as run_to_end
from raygf.methods.registry import is_step_method, method_title
from raygf.models.build import build_model
from raygf.models.multi_exit import evaluating
from raygf.records import History, read_history, wall_time
from raygf.storage.checkpoint import Checkpoint, find_checkpoint, load_checkpoint

if TYPE_CHECKING:
    from raygf.serving.adaptive import AdaptiveClassifier

Images = tuple[Dataset[Any], Dataset[Any] | None]
"""Map-style data sets of (image, class): to train on, and to test on."""
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

    A recipe trains in this process and does not log to MLflow, unless: this process is connected to Ray,
    ``RAY_ADDRESS`` is set, or there are several GPUs, then its exits train side by side on Ray
    (``executor="local"`` or ``"ray"`` decides); ``MLFLOW_TRACKING_URI`` or a setting of ``tracking`` is
    given. The weights are the same. A ``RunConfig`` is taken as it is.

    Args:
        run: a recipe's name, see ``recipes``, or a configuration.
        network: in place of the recipe's: a module whose output is a list of logits (B, classes), one an
            exit, or a function from an ``InputSpec`` to one. It is copied, with its weights.
        data: in place of the recipe's: ``(train, test)``, map-style ``torch.utils.data.Dataset`` of (image,
            class), see ``data.source``; or a function that returns them. The section ``data`` then begins
            from its defaults, with a tenth of ``train`` for validation (``val=``).
        settings: fields of the run by their dotted names, or the last part of it where that is one field's
            alone: ``rounds=20``, ``executor="ray"``, ``**{"optim.lr": 0.05}``. A function may be given where
            ``package.module:function`` may.

    Raises:
        RaygfError: with one line on what is wrong, where, and what to change.
    """
    recipe = run if isinstance(run, str) else ""
    config = get_recipe(recipe) if isinstance(run, str) else run
    if isinstance(run, str):
        config = override(config, {"resources.executor": _executor(), "tracking.enabled": _tracked(settings)})
    if data is not None:
        val = min(_MOST_VAL, len(data[0]) // 10) if isinstance(data, tuple) else 0
        config = replace(config, data=DataConfig(val=val))
    config = named(_configured(config, network, data, settings), recipe)
    result = run_to_end(config, recipe)
    return Run(result.checkpoint, config, result)


def load(path: str | Path, *, network: Network | None = None, data: Any = None, **settings: Any) -> Run:
    """The run in the folder ``path``, or of one of its checkpoint files; a URI is a path, too.

    >>> import raygf
    >>> folder = raygf.train("digits", rounds=1).folder
    >>> run = raygf.load(folder)
    >>> run.accuracies == raygf.load(run.checkpoint).accuracies
    True

    Args:
        network, data: as for ``train``; needed where they were given as objects that can't be imported.
        settings: what is different here, such as ``**{"data.path": "/data/cifar10"}`` or ``device="cpu"``.

    Raises:
        CheckpointError: there is no checkpoint, or none that can be read.
    """
    file, notes = find_checkpoint(str(path))
    for text in notes:
        _note(text)
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
    >>> logits = run.model()(run.loaded.dataset.spec.blank(5))
    >>> [tuple(exit.shape) for exit in logits]
    [(5, 10), (5, 10), (5, 10)]

    Attributes:
        checkpoint: the file that its network is read from.
        config: every setting.
    """

    def __init__(self, checkpoint: str, config: RunConfig, result: Result | None = None) -> None:
        self.checkpoint, self.config = checkpoint, config
        if result is not None:
            self.__dict__["result"] = result  # need not be computed

    @property
    def folder(self) -> str:
        """Where its checkpoints are."""
        return self.checkpoint.rpartition("/")[0]

    @cached_property
    def _stored(self) -> Checkpoint:
        return load_checkpoint(self.checkpoint)

    @cached_property
    def history(self) -> History:
        """One record a round: losses and accuracies in training and validation, seconds, fusion weights."""
        return read_history(self._stored.meta)

    @cached_property
    def loaded(self) -> LoadedRun:
        """Network, data set and all that is needed to evaluate."""
        return load_run(self.checkpoint, config=self.config)

    @cached_property
    def result(self) -> Result:
        """Test accuracy of every exit, costs, compute; a loaded run is evaluated for it."""
        run, history = self.loaded, self.history
        last: Mapping[str, Any] = history[-1] if history else {}
        costs = run.costs()
        return Result(
            run_id=str(self._stored.meta.get("run_id", "")),
            method=self.config.method,
            rounds=self._stored.round,
            test_accuracy=run.outputs("test").top1,
            operations=tuple(cost.operations for cost in costs),
            parameters=tuple(cost.parameters for cost in costs),
            training_passes=last.get("training_passes", math.nan),
            training_operations=last.get("training_operations", 0),
            seconds=wall_time(history),
            weights_sha256=self._stored.network.sha256(),
            checkpoint=self.checkpoint,
        )

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Share of the test images that every exit classifies rightly, 0–1, shallow to deep."""
        return self.result.test_accuracy

    def table(self) -> ResultTable:
        """Test accuracy of every exit beside what it costs."""
        return result_table({method_title(self.config.method): self.result})

    def model(self) -> nn.Module:
        """The trained network, in evaluation mode: normalised images (B, C, H, W) to a list of logits.

        ``AdaptiveClassifier`` normalises by itself and stops early.
        """
        return self.loaded.bound.network

    def __repr__(self) -> str:
        config, known = self.config, self.__dict__.get("result")
        done = f"{known.rounds if known else self._stored.round} of {config.rounds} rounds"
        shown = ""
        if known:
            shown = f"; test accuracy {' '.join(f'{100 * exit:.1f}' for exit in known.test_accuracy)} %"
        place = self.folder.removeprefix(f"{Path.cwd()}/")
        return f"Run {config.storage.name}: {method_title(config.method)}, {done}{shown}; in {place}"


def recipes(word: str = "") -> dict[str, Recipe]:
    """The recipes whose names have ``word`` in them; each is a complete run, and a line on it.

    >>> import raygf
    >>> raygf.recipes("digits")["digits-sgd"].run.method
    'sgd'
    >>> sorted(raygf.recipes("vgg16-metagf"))
    ['cifar10-vgg16-metagf', 'cifar100-vgg16-metagf']
    """
    return {name: recipe for name, recipe in RECIPES.items() if word in name}


def attach_exits(
    network: nn.Module,
    at: Sequence[float | str],
    image: tuple[int, int, int] | None = None,
    head: Literal["mean", "mixed"] | Callable[[int, int], nn.Module] = "mean",
) -> nn.Module:
    """``network`` with early exits at the places ``at``, and its own output as the last exit.

    >>> import raygf, torch, torchvision
    >>> network = raygf.attach_exits(torchvision.models.resnet18(num_classes=10), at=[0.3, 0.6])
    >>> [tuple(logits.shape) for logits in network(torch.zeros(2, 3, 64, 64))]
    [(2, 10), (2, 10), (2, 10)]

    Args:
        network: from images (B, C, H, W) to logits (B, classes); its modules become the result's.
        at: shares of its operations in (0, 1), or names of its modules.
        image: (C, H, W) of the images to count operations with; by default 224x224, with as many channels as
            the first convolution takes.
        head: the exits' classifiers, see ``raygf.models.attach.attach_exits``.

    Raises:
        ConfigError: it can't be run on such images or traced, or a place is unknown.
    """
    from raygf.models import attach

    channels = (part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d))
    size = image or (next(channels, 3), 224, 224)
    try:
        with evaluating(network):
            classes = network(torch.zeros(2, *size)).shape[-1]
    except Exception as error:  # the forward is the user's, and may raise anything
        shown = "x".join(map(str, size))
        raise ConfigError(f"image: the network fails on images of {shown}: {one_line(error)}") from error
    return attach.attach_exits(network, InputSpec(*size, classes), at, head)


def export(
    run: Run, folder: str | Path, segments: Literal["none", "pt2", "onnx"] = "none"
) -> AdaptiveClassifier:
    """Write the network of ``run`` to ``folder``: weights, description, model card and figures.

    The folder needs nothing else of the run, and can be pushed to the Hugging Face Hub as it is.

    >>> import raygf
    >>> run = raygf.train("digits", rounds=1)
    >>> fast = raygf.export(run, "model/")
    >>> fast.exits, raygf.AdaptiveClassifier.load("model/").operations == fast.operations
    (3, True)

    Args:
        segments: also every exit as a program of its own, by ``torch.export`` or in ONNX.

    Returns:
        The classifier as it is loaded from ``folder``, which stops early.

    Raises:
        DataError: the run has no test images, or no validation images to read thresholds off.
        ConfigError: the network can't stop early, can't be exported, or a package is missing.
        StorageError: the folder can't be written.
    """
    from raygf.serving.adaptive import AdaptiveClassifier
    from raygf.serving.files import export_model

    export_model(run.loaded, folder, segments)
    config, given = run.config, None
    if isinstance(config.model.name, Named):
        given = build_model(config.model, run.loaded.dataset.spec, config.seed)
    return AdaptiveClassifier.load(str(folder), network=given)


def sweep(space: str, recipe: str = "digits", **settings: Any) -> dict[str, Any]:
    """Train many runs of ``recipe`` side by side under Ray Tune, and find the best settings of ``space``.

    >>> import raygf
    >>> found = raygf.sweep("fusion_lr", "digits", trials=2, rounds=1, train_limit=48)
    >>> sorted(found["best"]["settings"])
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


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What was measured of runs: a group for those that differ in their seed alone, and the files written."""

    groups: list[Any]
    files: list[Path]
    seconds: float

    @property
    def tables(self) -> list[ResultTable]:
        """Test accuracy of every exit, a table for every network."""
        from raygf.evaluation.report import anytime_tables

        return anytime_tables(self.groups)

    def __repr__(self) -> str:
        return "\n\n".join([*map(repr, self.tables), f"{len(self.files)} files, such as {self.files[0]}"])

    _repr_markdown_ = __repr__

    def json(self) -> dict[str, Any]:
        """The last line of the job."""
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
                for group in self.groups
            },
            "files": [str(path) for path in self.files],
            "seconds": round(self.seconds, 3),
        }


def evaluate(runs: Run | str | Sequence[Run | str], out: str = "results", **options: Any) -> Evaluation:
    """Measure past runs, and write every table and figure of them to the folder ``out``.

    >>> import raygf
    >>> run = raygf.train("digits", rounds=1)
    >>> found = raygf.evaluate([run], out="figures", importance=False, noise=False)
    >>> found
    | Exit...
    15 files, such as figures/anytime.md

    Args:
        runs: runs, their folders, or checkpoint files. Those that differ in their seed alone are one column.
        options: ``labels``, a name for each run; ``data_path``; ``importance`` and ``noise``, which take
            passes over the images; ``log_to_mlflow``, ``log_model``.
    """
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    paths = tuple(run.checkpoint if isinstance(run, Run) else str(run) for run in given)
    return _evaluate(EvaluateConfig(paths, out, **options), given)


def evaluate_job(argv: Sequence[str]) -> dict[str, Any]:
    """What ``jobs/evaluate.py`` and ``raygf evaluate`` do: measure, write, log; print the tables."""
    text = "Evaluate past runs: anytime and budgeted accuracy, convergence, conflict, importance."
    config = parse_flags(EvaluateConfig, text, argv)
    found = _evaluate(config, config.checkpoint)
    for table in found.tables:
        print_table(to_rich(table, "Test accuracy of every exit"))
    return found.json()


def _evaluate(config: EvaluateConfig, runs: Sequence[Run | str]) -> Evaluation:
    from raygf.evaluation.report import comparison_files, run_files, run_folders, what_is_missing, write_files
    from raygf.evaluation.results import group_runs

    started = time.perf_counter()
    groups = group_runs([_measure(run, config) for run in runs], config.labels)
    together = write_files(Path(config.out), comparison_files(groups))
    files = list(together)
    for folder, run in run_folders(groups).items():
        own = write_files(Path(config.out) / folder, run_files(run))
        files += own
        for line in what_is_missing(run):
            _note(f"{folder}: {line}")
        if config.log_to_mlflow:
            _log(run, folder, [*together, *own])
    return Evaluation(groups, files, time.perf_counter() - started)


def _measure(given: Run | str, config: EvaluateConfig) -> Any:
    from raygf.evaluation.results import evaluate_run

    moved = {} if config.data_path is None else {"data.path": config.data_path}
    run = (given if isinstance(given, Run) else load(given, **moved)).loaded
    if config.noise and run.dataset.count("train") > _MANY and not is_step_method(run.config.method):
        _note("training every exit for two epochs, for the noise in conflict; --noise False leaves it out")
    results = evaluate_run(run, config.importance, config.noise)
    if config.log_model:
        _log_model(run, results)
    return results


def _log(run: Any, name: str, files: Sequence[Path]) -> None:
    """Add ``files`` to the run's page; a store that can't be reached causes a one-line note."""
    if not run.run_id:
        return _note(f"{name}: was not tracked, nothing logged")
    from raygf.tracking.report import log_evaluation

    try:
        uri = log_evaluation(run.config.tracking, Path.cwd(), run.run_id, files, run.top5 or (), run.round)
    except TrackingError as error:
        return _note(f"{name}: not logged to MLflow: {error}")
    _note(f"{name}: logged to run {run.run_id} in {uri}")


def _log_model(run: LoadedRun, results: Any) -> None:
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


def _configured(
    config: RunConfig, network: Network | None, data: Any, settings: Mapping[str, Any]
) -> RunConfig:
    """``config`` with what is given in place of its fields, objects under names of their own."""
    values = {full_name(name, config): value for name, value in settings.items()}
    values = {name: name_function(value) if callable(value) else value for name, value in values.items()}
    if network is not None:
        values["model.name"] = _given(
            network, _Copies(network) if isinstance(network, nn.Module) else network
        )
    if data is not None:
        values["data.source"] = _given(data, _Constant(data) if isinstance(data, tuple) else data)
    return override(config, values)


def _given(part: Any, function: Any) -> str:
    """A name for ``part``, which ``function`` hands out."""
    if part is function:
        return part if isinstance(part, str) else name_function(part)
    return Named(name_function(part[0] if isinstance(part, tuple) else part), function)


class _Copies:
    """A function from an input to a fresh copy of ``network``: every exit's trainer has its own."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __call__(self, spec: InputSpec) -> nn.Module:
        return copy.deepcopy(self._network)


class _Constant:
    """A function that returns ``value``."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __call__(self, config: DataConfig) -> Any:
        return self._value


def _executor() -> str:
    """On Ray where that has been set up or pays off, else in this process, which begins at once."""
    ray = sys.modules.get("ray")
    connected = "RAY_ADDRESS" in os.environ or (ray is not None and ray.is_initialized())
    return "ray" if connected or torch.cuda.device_count() > 1 else "local"


def _tracked(settings: Mapping[str, Any]) -> bool:
    """Whether MLflow has been asked for: a database in the working folder would come as a surprise."""
    return "MLFLOW_TRACKING_URI" in os.environ or any(name.startswith("tracking.") for name in settings)


def _note(text: str) -> None:
    print(f"note: {' '.join(text.split())}", file=sys.stderr, flush=True)
