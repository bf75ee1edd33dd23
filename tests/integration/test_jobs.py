"""The jobs as people call them: what they print, and equal bits however the work is spread."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import LOCAL, TINY, UNTRACKED

RunJob = Callable[..., Any]

KEYS = (
    *("run_id", "method", "rounds", "test_accuracy", "operations", "parameters", "training_passes"),
    *("seconds", "weights_sha256", "checkpoint"),
)
SMALL = ("--rounds", "3", *TINY, "--storage.path", "runs")


def test_last_line_is_the_result_and_progress_is_elsewhere(
    call_job: RunJob, tracking_uri: str, tmp_path: Path, straight_hash: Callable[..., str]
) -> None:
    """As a program of its own, with tracking; the second run of the same gives the same bits."""
    outcome = call_job("digits", *SMALL, *LOCAL, "--tracking.uri", tracking_uri, "--storage.name", "one")
    assert outcome.code == 0, outcome.err
    (line,) = outcome.out.splitlines()
    result = json.loads(line)
    assert tuple(result) == KEYS
    assert result["weights_sha256"] == straight_hash("--rounds", "3", *TINY)
    assert re.fullmatch("[0-9a-f]{64}", result["weights_sha256"])
    assert (result["method"], result["rounds"], result["training_passes"]) == ("metagf", 3, 12)
    assert len(result["test_accuracy"]) == len(result["operations"]) == len(result["parameters"]) == 3
    assert all(0 <= accuracy <= 1 for accuracy in result["test_accuracy"])
    assert result["operations"] == sorted(result["operations"])
    assert 0 < result["seconds"] < 100
    assert result["checkpoint"] == str(tmp_path / "runs" / "one" / "round-000003.npz")
    assert Path(result["checkpoint"]).is_file()
    rounds = [line.split("  ")[0] for line in outcome.err.splitlines() if line.startswith("round ")]
    assert rounds == ["round 1/3", "round 2/3", "round 3/3"]
    assert "Traceback" not in outcome.err and "error:" not in outcome.err
    assert_tracked(tracking_uri, result)


def assert_tracked(uri: str, result: dict[str, Any]) -> None:
    """MLflow has the run under the id of the last line, with the same results."""
    from mlflow import MlflowClient

    run = MlflowClient(uri).get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["weights_sha256"] == result["weights_sha256"]
    assert run.data.tags["recipe"] == "digits"
    accuracy = [run.data.metrics[f"test_accuracy/exit_{i}"] for i in (1, 2, 3)]
    assert accuracy == pytest.approx(result["test_accuracy"], abs=1e-12)


def test_smallest_feature_maps_give_equal_bits_too(run_job: RunJob) -> None:
    """Three scales of 8x8 images end in maps of 1x1, which bfloat16 kernels must get right as well."""
    flags = ("--model.msdnet.factors", "1", "2", "4", "--compute.precision", "bf16", *LOCAL, *UNTRACKED)
    hashes = set()
    for number in range(2):
        outcome = run_job("digits", *SMALL, *flags, "--storage.name", f"run-{number}")
        assert outcome.code == 0, outcome.err
        hashes.add(outcome.result["weights_sha256"])
    assert len(hashes) == 1


def test_recipe_for_sgd_costs_as_many_passes(run_job: RunJob) -> None:
    """At equal compute: four times the rounds of a network with three exits."""
    few = ("--rounds", "12", *SMALL[2:])
    outcome = run_job("digits", "--recipe=digits-sgd", *few, *LOCAL, *UNTRACKED)
    assert outcome.code == 0, outcome.err
    assert (outcome.result["method"], outcome.result["training_passes"]) == ("sgd", 12)
    assert outcome.result["run_id"] == ""
    assert re.fullmatch(r"digits-sgd-\d{8}-\d{6}", Path(outcome.result["checkpoint"]).parent.name)
