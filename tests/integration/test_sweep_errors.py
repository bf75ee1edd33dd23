"""What can't be swept ends with one line that says why, before anything has been trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import TINY

RunJob = Callable[..., Any]

UNTRACKED = ("--tracking.enabled", "False", "--storage.path", "runs", *TINY)


def assert_one_error(outcome: Any, says: str) -> None:
    lines = outcome.err.splitlines()
    assert outcome.code == 2, outcome.err
    assert [line for line in lines if line.startswith("error:")] == lines[-1:], outcome.err
    assert says in lines[-1]
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--space", "nope"), "space = 'nope': there is none; choose from fusion, fusion_lr, joint, method"),
        (("--space", "empty"), "space: it is empty"),
        (("--space", "crossed"), "space: fusion.lr goes from 1 to 0.1: no values to draw from"),
        (("--space", "unknown_field"), "space: fusion.lrr: a run has no such field"),
        (("--space", "refused"), "fusion.ema = 1.5: must be"),
        (("--space", "odd_method"), "method = 'sgdd': must be one of metagf"),
        (("--recipe", "nope"), "recipe = 'nope': must be one of digits"),
        (("--fusion.lr", "0.3"), "fusion.lr is swept by 'fusion_lr' and also fixed by --fusion.lr"),
        (("--recipe", "digits-sgd"), "learned fusion weights, which sgd does not have"),
        (("--data.val", "0"), "data.val = 0: trials are compared by validation images"),
        (("--resources.executor", "local"), "sweeps need Ray"),
        (("--resume",), "resume: say which sweep with --storage.name"),
        (("--resume", "--storage.name", "nope"), "there is no sweep in "),
        (("--trials", "0"), "trials = 0"),
        (("--nonsense", "1"), "--nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_seen_at_once(
    run_job: RunJob, tmp_path: Path, flags: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaces = {
        "empty": "{}",
        "crossed": '{"fusion.lr": tune.loguniform(1.0, 0.1)}',
        "unknown_field": '{"fusion.lrr": tune.uniform(0.1, 1.0)}',
        "refused": '{"fusion.ema": tune.uniform(0.5, 1.5)}',
        "odd_method": '{"method": tune.choice(["sgd", "sgdd"])}',
    }
    (tmp_path / "tune_spaces").mkdir()
    for name, variables in spaces.items():
        text = f"from ray import tune\nfrom raygf.sweep import Space\n\n\ndef {name}(run):\n"
        (tmp_path / "tune_spaces" / f"{name}.py").write_text(f"{text}    return Space({variables})\n")
    monkeypatch.setattr("raygf.on_ray.cluster.connect", lambda resources: pytest.fail("went to the cluster"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    started = time.monotonic()
    assert_one_error(run_job("sweep", *UNTRACKED, *flags), says)
    assert time.monotonic() - started < 10
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--cpus-per-exit", "64"),
            "could never hold a trial with a driver (1 CPUs, 0 GPUs) and 1 exit actor (64",
        ),
        (("--gpus-per-exit", "1"), "could never hold a trial with a driver (1 CPUs, 1 GPUs)"),
        (("--resources.driver-cpus", "64"), "could never hold a trial with a driver (64 CPUs, 0 GPUs)"),
        (("--resources.actors", "3", "--cpus-per-exit", "2"), "and 3 exit actors (2 CPUs, 0 GPUs each)"),
        (("--concurrent", "3"), "could never hold 3 trials side by side, each with a driver"),
        (("--data.val", "1300"), "data.val = 1300"),
        (("--model.name", "nope"), "nope"),
        (("--rounds", "2", "--grace", "9"), "grace = 9: a trial gets 8 training passes in all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_seen_on_the_cluster(
    cluster: str, run_job: RunJob, tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    assert_one_error(run_job("sweep", *UNTRACKED, *flags), says)
    assert not (tmp_path / "runs").exists()
