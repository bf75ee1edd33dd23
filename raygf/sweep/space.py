"""What a search space is: fields of a run, the values that each may take, and what to optimise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Values = dict[str, Any]
"""What one trial sets: dotted names of a run's fields, such as ``fusion.lr``, and their values."""


@dataclass(frozen=True)
class Space:
    """A search space. A file in ``tune_spaces`` has a function that returns one.

    ``variables``: dotted names of a run's fields, each with the values to try: ``ray.tune``'s ``uniform``,
    ``loguniform``, ``randint``, ``choice`` and their quantized forms, or one plain value. ``variants``:
    alternatives with fields of their own; every trial takes one of them, and all of ``variables``.
    ``metric``: ``val_accuracy/average``, ``val_accuracy/exit_i`` (from 1), ``val_loss/average`` or
    ``val_loss/exit_i``. ``search``: how trials are chosen unless ``--search`` says otherwise. ``notes`` are
    shown when the sweep starts.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    variants: Sequence[Mapping[str, Any]] = ({},)
    metric: str = "val_accuracy/average"
    mode: Literal["max", "min"] = "max"
    search: Literal["random", "grid", "optuna"] = "random"
    notes: Sequence[str] = ()

    @property
    def alternatives(self) -> tuple[Values, ...]:
        """Every variant with the common variables, in order; the variant's own fields come first."""
        return tuple({**variant, **self.variables} for variant in self.variants)

    @property
    def fields(self) -> tuple[str, ...]:
        """The dotted names of all fields that are set, each once."""
        return tuple(dict.fromkeys(name for alternative in self.alternatives for name in alternative))
