"""A run's records under the flat names that MLflow shows; exits count from 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from raygf.records import ExitScore, FusionReport, RoundRecord, RunEnd, RunStart


def start_params(start: RunStart) -> dict[str, str | int]:
    """Sizes of the data, and what the run computes on."""
    return {
        "classes": start.classes,
        "train_images": start.train_images,
        "val_images": start.val_images,
        "test_images": start.test_images,
        "setting": start.setting,
    }


def start_metrics(start: RunStart) -> dict[str, float]:
    """``operations/exit_i`` and ``parameters/exit_i``, cumulative up to each exit."""
    return {**_per_exit("operations", start.operations), **_per_exit("parameters", start.parameters)}


def round_metrics(record: RoundRecord) -> dict[str, float]:
    """All metrics of one round."""
    metrics = {
        **_score_metrics("train", record.train),
        "lr": record.lr,
        "fusion_lr": record.fusion_lr,
        "training_passes": float(record.training_passes),
        **{f"seconds/{phase}": seconds for phase, seconds in record.seconds.items()},
        "seconds/round": record.total_seconds,
    }
    if record.val is not None:
        metrics |= _score_metrics("val", record.val)
    if record.fusion is not None:
        metrics |= _fusion_metrics(record.fusion)
    return metrics


def end_metrics(end: RunEnd) -> dict[str, float]:
    """The test's metrics, and the training passes in all."""
    return {**_score_metrics("test", end.test), "training_passes": float(end.training_passes)}


def top5_metrics(accuracy: Sequence[float]) -> dict[str, float]:
    """``test_top5_accuracy/exit_i`` and their average, 0–1."""
    average = sum(accuracy) / len(accuracy)
    return {**_per_exit("test_top5_accuracy", accuracy), "test_top5_accuracy/average": average}


def _per_exit(name: str, values: Iterable[float]) -> dict[str, float]:
    return {f"{name}/exit_{i}": float(value) for i, value in enumerate(values, start=1)}


def _score_metrics(split: str, score: ExitScore) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, values in ((f"{split}_loss", score.loss), (f"{split}_accuracy", score.accuracy)):
        metrics |= {**_per_exit(name, values), f"{name}/average": sum(values) / len(values)}
    return metrics


def _fusion_metrics(fusion: FusionReport) -> dict[str, float]:
    pairs = combinations(range(len(fusion.delta_norm)), 2)
    return {
        "fusion_loss": fusion.loss,
        "conflict/before_fusion": fusion.conflict_before,
        "conflict/after_fusion": fusion.conflict_after,
        **_per_exit("fusion_accuracy", fusion.accuracy),
        **_per_exit("fusion_weight", fusion.mean_weight),
        **_per_exit("delta_norm", fusion.delta_norm),
        **{f"delta_cosine/exit_{i + 1}_{j + 1}": float(fusion.cosine[i, j]) for i, j in pairs},
    }
