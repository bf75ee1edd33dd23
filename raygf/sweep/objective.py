"""What trials are compared by: numbers of a round's validation, under the names that MLflow shows too."""

from __future__ import annotations

import re

from raygf.errors import ConfigError
from raygf.records import ExitScore, RoundRecord

PASSES = "training_passes"
"""Where Tune's schedulers find how much compute a trial has had."""

_METRIC = re.compile(r"(val_accuracy|val_loss)/(average|exit_([1-9]\d*))")


def metrics_of(record: RoundRecord) -> dict[str, float]:
    """``val_accuracy/average``, ``val_accuracy/exit_1`` and so on, the same of ``val_loss``, and the passes.

    Raises:
        ConfigError: the run has no validation images.
    """
    if record.val is None:
        raise ConfigError("data.val = 0: trials are compared by validation images; hold some out")
    return {**_scores(record.val), PASSES: float(record.training_passes)}


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


def _scores(val: ExitScore) -> dict[str, float]:
    metrics = {}
    for name, values in (("val_accuracy", val.accuracy), ("val_loss", val.loss)):
        metrics[f"{name}/average"] = sum(values) / len(values)
        metrics |= {f"{name}/exit_{i}": value for i, value in enumerate(values, start=1)}
    return metrics
