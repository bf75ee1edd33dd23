"""A sweep with everything decided: its options, the plan that trials are made and compared by, its folder.

Every trial gets as many training passes (epochs of joint SGD, by operations) as the recipe spends, so that
methods are compared at equal compute. Trials are compared by the numbers of a round's validation, under the
names that MLflow shows.
"""

import re
import shlex
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import yaml

from raygf.config.fields import Limits, Section, from_dict, override, to_dict
from raygf.config.run import MILLION, Count, Name, Natural, RunConfig, StorageConfig
from raygf.data.base import images_of_rounds
from raygf.errors import ConfigError, StorageError
from raygf.evaluation.tables import passes_text
from raygf.methods.base import JointSGD
from raygf.methods.registry import is_step_method, training_operations
from raygf.storage.folder import RunFolder, brief
from raygf.storage.lock import Owner, RunLock
from raygf.sweeps.space import Values, text_of

OURS = "raygf"
PASSES = "training_passes"
"""Where Tune's schedulers find how much compute a trial has had."""

_LONGEST = 200
"""Characters of a trial's name; MLflow takes 250."""
_PLAN = "sweep.yaml"
_TRIALS = "trials.yaml"
_TUNE = "experiment_state-"
_METRIC = re.compile(r"(val_accuracy|val_loss)/(average|exit_([1-9]\d*))")


@dataclass(frozen=True)
class SweepOptions(Section):
    """How trials are chosen, stopped and placed; the texts are what ``--help`` shows."""

    space: Name = "fusion_lr"
    """Search space: one of those listed above, a Python file, or package.module:function of your own."""
    trials: Count | None = None
    """Trials; by default 8, or all points of a grid."""
    search: Literal["random", "grid"] | None = None
    """How they are chosen: drawn at random, or every point of a grid. By default as the space says, mostly
    random."""
    points: Annotated[int, Limits(2, MILLION)] = 3
    """grid: values taken of every range, its ends included."""
    scheduler: Literal["asha", "none"] = "none"
    """none: all trials run to their end. asha stops one that is not among the best third of those that had as
    many training passes before it: who came first matters."""
    grace: Count | None = None
    """Training passes before asha may stop a trial; by default half of what a trial gets."""
    concurrent: Count | None = None
    """Trials that run side by side; by default as many as the cluster holds. A trial's exit actors are made
    fewer so that they do, unless resources.actors is given."""
    max_failures: Natural = 2
    """Times that a trial which crashed is tried again from its checkpoint before it counts as failed."""
    resume: bool = False
    """Resume the sweep --storage.name, which was interrupted or killed. No other flag is needed."""


@dataclass(frozen=True)
class Plan:
    """One sweep; stored in its folder, so that it can be resumed.

    ``run``: what trials have in common; its storage is the sweep's own folder. ``fields``: dotted names of
    what is swept. ``costs``: operations up to each exit; ``actors``: exit actors of a trial whose method
    trains exits. ``trials``: how many there are. ``parent``: the sweep's run in MLflow, empty if nothing is
    tracked. ``ranges``: what each field may be, for people. ``own``: operations a round and image of methods
    that are the user's own. ``images``: of every split.
    """

    recipe: str
    options: SweepOptions
    run: RunConfig
    fields: tuple[str, ...]
    metric: str
    mode: str
    costs: tuple[int, ...]
    actors: int
    trials: int = 0
    parent: str = ""
    ranges: dict[str, str] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    @property
    def judged(self) -> str:
        """What of the network is optimised: ``average`` or ``exit_i``."""
        return self.metric.partition("/")[2]

    @property
    def budget(self) -> float:
        """Training passes that every trial gets."""
        return self.passes(self.run, self.run.rounds)

    def passes(self, run: RunConfig, rounds: int = 1) -> float:
        """Training passes of so many rounds of ``run``."""
        return self._operations(run, rounds) / (self.images["train"] * JointSGD.operations(self.costs))

    def _operations(self, run: RunConfig, rounds: int) -> int:
        if own := self.own.get(run.method):
            return own * images_of_rounds(run, rounds, self.images["train"])
        return training_operations(run, self.costs, self.images, rounds)

    def exit_bundles(self, values: Values) -> int:
        """Exit actors of a trial with ``values``; methods within a step have none."""
        return 0 if is_step_method(values.get("method", self.run.method)) else self.actors

    def trial_run(self, trial: str, values: Values, folder: str = "") -> RunConfig:
        """The run of ``trial``, a name, with ``values`` and as many whole rounds as the budget pays for.

        Args:
            folder: where its own checkpoints go; by default the sweep's.

        Raises ConfigError: the values are not allowed, or the budget does not pay for one round.
        """
        run = override(self.run, values)
        budget = self._operations(self.run, self.run.rounds)
        rounds = bisect_right(range(1, MILLION + 1), budget, key=lambda some: self._operations(run, some))
        if not rounds:
            raise ConfigError(
                f"every trial gets {passes_text(self.budget)} training passes, too few for one round of "
                f"{run.method} ({passes_text(self.passes(run))}): raise rounds"
            )
        resources = replace(run.resources, actors=self.actors or None)
        storage = replace(run.storage, name=trial, path=folder or run.storage.path)
        return replace(run, rounds=rounds, resources=resources, storage=storage)


class SweepFolder:
    """The folder ``storage.name`` in ``storage.path`` (a local path or a URI); nothing is created yet.

    It has Ray Tune's trials and checkpoints, and in ``raygf/`` what raygf needs to resume them: Tune copies
    files that lie beside its own when it resumes, and later writes the copies back.

    Raises StorageError: there is no such kind of storage; in methods: it can't be read or written.
    """

    def __init__(self, storage: StorageConfig) -> None:
        self._storage = storage
        self._tunes = RunFolder(storage.path, storage.name)
        self.path = self._tunes.shown
        self._files = RunFolder(self.path, OURS)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder for this process alone; a StorageError if another sweep is in it."""
        with self._errors("write to"):
            self._files.create()
        lock = RunLock(self._files, Owner.new())
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def of_trial(self, trial: str) -> str:
        """The folder that Tune keeps ``trial`` in."""
        return self._tunes.path(trial)

    def has_plan(self) -> bool:
        """Whether there is a sweep in it."""
        return bool(self._read(_PLAN))

    def has_trials(self) -> bool:
        """Whether Tune has written down the state of its trials, so that they can be restored."""
        with self._errors("read"):
            return any(name.startswith(_TUNE) for name in self._tunes.names())

    def write_plan(self, plan: Plan) -> None:
        """Keep ``plan``."""
        self.write(_PLAN, yaml.safe_dump(to_dict(plan), sort_keys=False).encode())

    def read_plan(self) -> Plan:
        """The plan that is kept, its storage being where it was found; a StorageError if there is none."""
        values = self._read(_PLAN)
        if not values:
            raise StorageError(f"there is no sweep in {self.path}: check --storage.path and --storage.name")
        plan = from_dict(Plan, values)
        storage = replace(plan.run.storage, path=self._storage.path, name=self._storage.name)
        return replace(plan, run=replace(plan.run, storage=storage))

    def write_trials(self, trials: dict[str, str]) -> None:
        """Keep every started trial's MLflow run, by the trial's id, in the order of their start."""
        self.write(_TRIALS, yaml.safe_dump(trials, sort_keys=False).encode())

    def read_trials(self) -> dict[str, str]:
        """What ``write_trials`` kept; nothing before the first trial."""
        return self._read(_TRIALS)

    def write(self, name: str, content: bytes) -> str:
        """Write a file beside the plan, whole or not at all; returns its path."""
        with self._errors("write to"):
            self._files.write(name, content)
        return self._files.path(name)

    def _read(self, name: str) -> dict[str, Any]:
        """The values in the file ``name``; none if it is not there."""
        try:
            return dict(yaml.safe_load(self._files.read(name)) or {})
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise StorageError(f"{self._files.path(name)} can't be read: {brief(error)}") from None

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"storage.path: can't {what} {self.path}: {brief(error)}") from None


def check_metric(metric: str, mode: str, exits: int | None = None) -> None:
    """Raise ConfigError unless ``metric`` is one of those that trials have, and ``mode`` max or min.

    ``exits``: how many the network has, if that is known.
    """
    found = _METRIC.fullmatch(metric)
    if found is None:
        raise ConfigError(
            f"space: metric = {metric!r}: must be val_accuracy/average, val_accuracy/exit_1 and so on, or "
            "the same of val_loss"
        )
    if mode not in ("max", "min"):
        raise ConfigError(f"space: mode = {mode!r}: must be max or min")
    if exits is not None and found[3] and int(found[3]) > exits:
        raise ConfigError(f"space: metric = {metric!r}: the network has {exits} exits")


def shown_score(metric: str, score: float) -> str:
    """``score`` as people read it: accuracies in percent."""
    return f"{100 * score:.2f} %" if metric.startswith("val_accuracy") else f"{score:.4f}"


def name_of(values: Values) -> str:
    """A trial's name for people, what it sets: ``fusion.lr=0.083 fusion.ema=0.95``."""
    return " ".join(f"{name}={text_of(value, ',')}" for name, value in values.items())[:_LONGEST]


def set_field(nested: dict[str, Any], name: str, value: object) -> None:
    """Set the field with the dotted ``name`` in a run's nested plain values."""
    *sections, field = name.split(".")
    for section in sections:
        nested = nested[section]
    nested[field] = value


def flag_of(name: str) -> str:
    """The flag that sets the field ``name``: ``fusion.lr`` → ``--fusion.lr``."""
    return "--" + name.replace("_", "-")


def flags_for(values: Values) -> str:
    """The flags that set ``values``, as typed in a shell."""
    words = []
    for name, value in values.items():
        several = value if isinstance(value, list | tuple) else [value]
        words += [flag_of(name), *(shlex.quote(str(item)) for item in several)]
    return " ".join(words)
