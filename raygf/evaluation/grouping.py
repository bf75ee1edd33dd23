"""Which of several runs differ in nothing but their seed: those become one column, one line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from raygf.config_dict import to_dict
from raygf.errors import ConfigError
from raygf.evaluation.run_results import RunResults
from raygf.storage.same_run import binding


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one configuration, by ascending seed, under one label."""

    label: str
    runs: tuple[RunResults, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The runs' seeds."""
        return tuple(run.config.seed for run in self.runs)


def group_runs(runs: Sequence[RunResults], labels: Sequence[str] = ()) -> list[Group]:
    """``runs`` in groups, in the order of each group's first run.

    Runs belong together if they had the same configuration but for the seed, the machines and the names, and
    are after equally many rounds; a seed that comes twice is a group of its own.

    Args:
        labels: One for every run, of which a group takes its first run's. By default the method, with the
            run's name where two groups have the same method.

    Raises:
        ConfigError: there are not as many labels as runs, or two groups have the same label.
    """
    if labels and len(labels) != len(runs):
        raise ConfigError(f"labels: {len(labels)} given for {len(runs)} checkpoints; give one for each")
    members: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        key = _key(run)
        if any(runs[other].config.seed == run.config.seed for other in members.get(key, [])):
            key = f"{key} {index}"
        members.setdefault(key, []).append(index)
    firsts = [indices[0] for indices in members.values()]
    titles = [labels[first] for first in firsts] if labels else _own_labels([runs[first] for first in firsts])
    _require_distinct(titles)
    return [
        Group(title, tuple(sorted((runs[i] for i in indices), key=lambda run: run.config.seed)))
        for title, indices in zip(titles, members.values(), strict=True)
    ]


def _key(run: RunResults) -> str:
    """What runs of one group have in common, as text."""
    values = {name: value for name, value in binding(to_dict(run.config)).items() if name != "seed"}
    return json.dumps([run.round, values], sort_keys=True)


def _own_labels(runs: Sequence[RunResults]) -> list[str]:
    methods = Counter(run.config.method for run in runs)
    named = [run.config.method if methods[run.config.method] == 1 else _full_label(run) for run in runs]
    counts = Counter(named)
    return [name if counts[name] == 1 else f"{name} #{i + 1}" for i, name in enumerate(named)]


def _full_label(run: RunResults) -> str:
    return f"{run.config.method} ({run.config.storage.name}, round {run.round})"


def _require_distinct(titles: Sequence[str]) -> None:
    for title, count in Counter(titles).items():
        if count > 1 or not title.strip():
            raise ConfigError(
                f"labels: {title!r} names {count} configurations; give each its own name"
                if title.strip()
                else "labels: a label is empty"
            )
