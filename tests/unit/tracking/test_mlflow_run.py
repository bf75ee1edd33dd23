"""The names under which MLflow shows a run's records."""

import numpy as np
import pytest

from raygf.records import ExitScore, FusionReport, RoundRecord, RunEnd, RunStart
from raygf.tracking.mlflow_run import MLflowRun, end_metrics, round_metrics, source_tags, start_params

SCORE = ExitScore((1.0, 2.0, 6.0), (0.5, 0.25, 0.75))
COSINE = np.array([[1, 0.1, 0.2], [0.1, 1, 0.3], [0.2, 0.3, 1]])
FUSION = FusionReport(
    np.ones((3, 1)), (0.2, 0.3, 0.5), COSINE, (3.0, 4.0, 5.0), 1.5, (0.6, 0.7, 0.8), np.zeros(1), 0.25, 0.125
)


END = RunEnd(2, 6, SCORE, "ab", "c", True, training_operations=10**12)


def record(val, fusion):
    return RoundRecord(2, 3, 8, 0.05, 0.1, SCORE, val, {"train": 1.5, "fuse": 0.5}, "c", fusion)


def test_names_and_values_of_a_rounds_metrics():
    metrics = round_metrics(record(SCORE, FUSION))
    assert set(metrics) == {
        *(f"{name}/{of}" for name in ("accuracy_by_passes", "val_accuracy", "val_loss")
          for of in ("exit_1", "exit_2", "exit_3", "average")),
        *(f"fusion_weight/exit_{i}" for i in (1, 2, 3)),
        *("train_accuracy/average", "train_loss/average", "seconds/round"),
        *("conflict/before_fusion", "conflict/after_fusion", "fusion_loss", "lr", "training_passes"),
    }  # fmt: skip
    assert metrics["train_loss/average"] == 3.0
    assert (metrics["val_accuracy/exit_2"], metrics["val_accuracy/average"]) == (0.25, 0.5)
    assert metrics["accuracy_by_passes/exit_3"] == 0.75
    assert (metrics["conflict/before_fusion"], metrics["conflict/after_fusion"]) == (0.25, 0.125)
    assert (metrics["fusion_weight/exit_2"], metrics["fusion_loss"]) == (0.3, 1.5)
    assert (metrics["seconds/round"], metrics["training_passes"]) == (2.0, 8.0)
    assert len(metrics | end_metrics(END)) < 30


def test_what_a_round_lacks_is_left_out():
    names = set(round_metrics(record(None, None)))
    lacking = ("val", "fusion_w", "fusion_loss", "delta", "conflict")
    assert "train_loss/exit_1" in names and not [name for name in names if name.startswith(lacking)]


def test_start_and_end():
    start = RunStart(0, 10, 900, 300, 597, (30, 60), (350, 800), ("stem",), "cpu", software={"torch": "2.14"})
    sizes = {"classes": 10, "train_images": 900, "val_images": 300, "test_images": 597, "setting": "cpu"}
    costs = {"operations/exit_1": 350, "parameters/exit_2": 60}
    assert start_params(start).items() >= {**sizes, **costs, "software.torch": "2.14"}.items()
    metrics = end_metrics(END)
    assert (metrics["test_accuracy/average"], metrics["test_accuracy/exit_2"]) == (pytest.approx(0.5), 0.25)
    assert (metrics["test_loss/average"], metrics["training_passes"]) == (3.0, 6.0)
    assert metrics["training_operations"] == 1e12


def test_a_submitted_job_knows_its_submission_and_the_commit(monkeypatch):
    monkeypatch.delenv("RAYGF_COMMIT", raising=False)
    assert source_tags().keys() <= {"raygf.version"}
    monkeypatch.setenv("RAYGF_COMMIT", "06e923d-dirty")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "imagenet-1"}}')
    tags = source_tags()
    assert (tags["mlflow.source.git.commit"], tags["ray.submission_id"]) == ("06e923d-dirty", "imagenet-1")


def test_where_a_person_sees_the_run():
    file, runs, kind = "sqlite:////a b/mlflow.db", "/#/experiments/1/runs", "?workflowType=machine_learning"
    here = f"mlflow ui --backend-store-uri '{file}', then open http://127.0.0.1:5000"
    for uri, where in (("http://me:secret@head/ml/", f"http://head/ml{runs}/ab"), (file, f"{here}{runs}")):
        run = MLflowRun(uri)
        run.id, run._experiment_id = "ab", "1"
        assert run.where == f"{where}{kind}"
