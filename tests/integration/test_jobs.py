"""The jobs as people call them: what they print, and equal bits in other processes."""

import json
import re
from pathlib import Path

import pytest
from runs import LOCAL, SMALL, UNTRACKED, tracked_runs

KEYS = (
    *("run_id", "method", "rounds", "test_accuracy", "operations", "parameters", "training_passes"),
    *("training_operations", "seconds", "weights_sha256", "checkpoint"),
)


def test_last_line_is_the_result_and_progress_is_elsewhere(call_job, tracking_uri, tmp_path, straight_hash):
    """As a program of its own, with tracking; the second run of the same gives the same bits."""
    flags, storage = ("--rounds", "3", *SMALL), ("--storage.path", "runs", "--storage.name", "one")
    outcome = call_job("digits", *flags, *storage, *LOCAL, "--tracking.uri", tracking_uri)
    assert outcome.code == 0, outcome.err
    (line,) = outcome.out.splitlines()
    result = json.loads(line)
    assert tuple(result) == KEYS
    assert result["weights_sha256"] == straight_hash(*flags)
    assert re.fullmatch("[0-9a-f]{64}", result["weights_sha256"])
    assert (result["method"], result["rounds"], result["training_passes"]) == ("metagf", 3, 12)
    assert result["training_operations"] == 12 * 3 * result["operations"][-1] * 48
    assert len(result["test_accuracy"]) == len(result["operations"]) == len(result["parameters"]) == 3
    assert all(0 <= accuracy <= 1 for accuracy in result["test_accuracy"])
    assert result["operations"] == sorted(result["operations"])
    assert 0 < result["seconds"] < 100
    assert result["checkpoint"] == str(tmp_path / "runs" / "one" / "round-000003.npz")
    assert Path(result["checkpoint"]).is_file()
    assert outcome.rounds == ["1/3", "2/3", "3/3"]
    assert "Traceback" not in outcome.err and "error:" not in outcome.err
    (run,) = tracked_runs(tracking_uri)
    assert (run.id, run.status) == (result["run_id"], "FINISHED")
    uri = (
        f"mlflow ui --backend-store-uri {tracking_uri}, then open http://127.0.0.1:5000/#/experiments/1/runs?"
    )
    assert f"note: MLflow: {uri}workflowType=machine_learning" in outcome.notes
    assert run.tags["weights_sha256"] == result["weights_sha256"]
    accuracy = [run.metrics[f"test_accuracy/exit_{i}"] for i in (1, 2, 3)]
    assert accuracy == pytest.approx(result["test_accuracy"], abs=1e-12)


def test_smallest_feature_maps_give_equal_bits_too(run_job):
    """Three scales of 8x8 images end in maps of 1x1, which bfloat16 kernels must get right as well."""
    flags = ("--rounds", "3", *SMALL, "--model.msdnet.factors", "1", "2", "4", "--compute.precision", "bf16")
    flags += (*LOCAL, *UNTRACKED, "--storage.path", "runs", "--storage.name")
    one, two = (run_job("digits", *flags, name).result["weights_sha256"] for name in ("one", "two"))
    assert one == two


def test_recipe_for_sgd_costs_as_many_passes_and_a_changed_one_does_not_name_the_run(run_job):
    """At equal compute: four times the rounds of a network with three exits."""
    flags = ("--recipe=digits-sgd", "--rounds", "12", *SMALL, "--storage.path", "runs", *LOCAL, *UNTRACKED)
    result = run_job("digits", *flags).result
    assert (result["method"], result["training_passes"], result["run_id"]) == ("sgd", 12, "")
    assert re.fullmatch(r"digits-msdnet-sgd-\d{8}-\d{6}", Path(result["checkpoint"]).parent.name)
