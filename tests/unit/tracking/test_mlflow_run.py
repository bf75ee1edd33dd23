"""The names under which MLflow shows a run's records."""

import numpy as np
import pytest

from raygf.records import ExitScore, FusionReport, RoundRecord, RunEnd, RunStart
from raygf.tracking.mlflow_run import end_metrics, round_metrics, start_metrics, start_params

SCORE = ExitScore((1.0, 2.0, 6.0), (0.5, 0.25, 0.75))
COSINE = np.array([[1, 0.1, 0.2], [0.1, 1, 0.3], [0.2, 0.3, 1]])
FUSION = FusionReport(
    np.ones((3, 1)), (0.2, 0.3, 0.5), COSINE, (3.0, 4.0, 5.0), 1.5, (0.6, 0.7, 0.8), np.zeros(1), 0.25, 0.125
)


def record(val, fusion):
    return RoundRecord(2, 3, 8, 0.05, 0.1, SCORE, val, {"train": 1.5, "fuse": 0.5}, "c", fusion)


def test_names_and_values_of_a_rounds_metrics():
    assert set(round_metrics(record(SCORE, FUSION))) == {
        *(f"{split}_{what}/{of}" for split in ("train", "val") for what in ("loss", "accuracy")
          for of in ("exit_1", "exit_2", "exit_3", "average")),
        *(f"{name}/exit_{i}" for name in ("fusion_weight", "fusion_accuracy", "delta_norm")
          for i in (1, 2, 3)),
        *(f"delta_cosine/exit_{pair}" for pair in ("1_2", "1_3", "2_3")),
        *("conflict/before_fusion", "conflict/after_fusion"),
        *("fusion_loss", "lr", "fusion_lr", "training_passes"),
        *("seconds/train", "seconds/fuse", "seconds/round"),
    }  # fmt: skip
    metrics = round_metrics(record(SCORE, FUSION))
    assert (metrics["train_loss/exit_3"], metrics["train_loss/average"]) == (6.0, 3.0)
    assert (metrics["val_accuracy/exit_2"], metrics["val_accuracy/average"]) == (0.25, 0.5)
    assert (metrics["delta_cosine/exit_1_3"], metrics["delta_cosine/exit_2_3"]) == (0.2, 0.3)
    assert (metrics["conflict/before_fusion"], metrics["conflict/after_fusion"]) == (0.25, 0.125)
    assert metrics["fusion_accuracy/exit_2"] == 0.7
    assert (metrics["fusion_weight/exit_2"], metrics["delta_norm/exit_3"]) == (0.3, 5.0)
    assert (metrics["seconds/fuse"], metrics["seconds/round"], metrics["training_passes"]) == (0.5, 2.0, 8.0)


def test_what_a_round_lacks_is_left_out():
    names = set(round_metrics(record(None, None)))
    lacking = ("val", "fusion_w", "fusion_loss", "delta", "conflict")
    assert "train_loss/exit_1" in names and not [name for name in names if name.startswith(lacking)]


def test_start_and_end():
    start = RunStart(0, 10, 900, 300, 597, (30, 60), (350, 800), ("stem",), "cpu")
    operations = {"operations/exit_1": 350.0, "operations/exit_2": 800.0}
    assert start_metrics(start) == {**operations, "parameters/exit_1": 30.0, "parameters/exit_2": 60.0}
    sizes = {"train_images": 900, "val_images": 300, "test_images": 597}
    assert start_params(start) == {**sizes, "classes": 10, "setting": "cpu"}
    metrics = end_metrics(RunEnd(2, 6, SCORE, "ab", "c", True))
    assert metrics["test_accuracy/average"] == pytest.approx(0.5)
    assert (metrics["test_loss/exit_2"], metrics["training_passes"]) == (2.0, 6.0)
