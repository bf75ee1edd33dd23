"""A tracking store that is gone at the end of a run gets everything when the run is resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raygf.config.run import RunConfig, StorageConfig
from raygf.records import ExitScore, RoundRecord, RunEnd, RunStart
from raygf.tracking.delivery import NAME, Undelivered
from raygf.tracking.tracker import MLflowTracker

SCORE = ExitScore((1.0, 0.5), (0.5, 0.75))
START = RunStart(0, 10, 48, 0, 99, (1, 2), (1, 2), ("a", "b"), "cpu")
END = RunEnd(3, 9, SCORE, "ab" * 32, "c", finished=True)
CONFIG = RunConfig(rounds=3)


def record(round: int, *notes: str) -> RoundRecord:
    return RoundRecord(round, 3, 3 * round, 0.1, 0.1, SCORE, None, {"train": float(round)}, "c", None, notes)


class Breaking:
    """A client that can lose its store."""

    broken = False

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        if Breaking.broken:
            raise OSError("[Errno 111] Connection refused")
        return getattr(self._client, name)


@pytest.fixture
def store(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    from raygf.tracking import mlflow_run

    connect = mlflow_run.connect
    monkeypatch.setattr(mlflow_run, "connect", lambda uri: Breaking(connect(uri)))
    monkeypatch.setattr(Breaking, "broken", False)
    return tracking_uri


@pytest.fixture
def storage(tmp_path: Path) -> StorageConfig:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    return StorageConfig(str(tmp_path / "runs"), "one")


def tracker(store: str, storage: StorageConfig, tmp_path: Path, said: list[str]) -> MLflowTracker:
    return MLflowTracker(store, "trial", said.append, Undelivered(storage, tmp_path))


def steps(store: str, run_id: str, metric: str) -> list[int]:
    from mlflow import MlflowClient

    return sorted(point.step for point in MlflowClient(store).get_metric_history(run_id, metric))


def test_what_was_not_delivered_is_kept_and_sent_by_a_resume(
    store: str, storage: StorageConfig, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    said: list[str] = []
    first = tracker(store, storage, tmp_path, said)
    run_id = first.start(CONFIG, "one")
    first.log_start(START)
    first.log_round(record(1, "exit 1 retried in round 1: it died"))
    while first._delivery.undelivered:
        pass
    Breaking.broken = True
    first.log_round(record(2, "took a break"))
    first.log_round(record(3))
    first.finish(END)
    file = tmp_path / "runs" / "one" / NAME
    assert said[-1].startswith(
        f"tracking: not delivered to {store} (Connection refused): rounds 2-3, a note, "
    )
    assert f"; kept in {file}, sent when the run is resumed with: --storage.name one" in said[-1]
    assert len(file.read_text().splitlines()) == 5  # two rounds, a note, results, tags
    assert steps(store, run_id, "lr") == [1]

    Breaking.broken = False
    second = tracker(store, storage, tmp_path, said[:0])
    assert second.start(CONFIG, "one", run_id) == run_id
    second.log_start(replace(START, round=3, recent=(record(1), record(2), record(3))))
    second.finish(END)
    assert steps(store, run_id, "lr") == steps(store, run_id, "train_loss/exit_2") == [1, 2, 3]
    run = MlflowClient(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["raygf.remarks"].splitlines() == [
        "exit 1 retried in round 1: it died",
        "round 2: took a break",
    ]
    assert run.data.tags["weights_sha256"] == END.weights_sha256
    assert not file.exists()


def test_a_round_that_was_stored_but_not_logged_is_logged_by_a_resume(store: str) -> None:
    """The job was killed between the two."""
    said: list[str] = []
    first = MLflowTracker(store, "trial", said.append)
    run_id = first.start(CONFIG, "one")
    first.log_start(START)
    first.log_round(record(1))
    first.fail("KILLED", "interrupted")
    second = MLflowTracker(store, "trial", said.append)
    second.start(CONFIG, "one", run_id)
    second.log_start(replace(START, round=2, recent=(record(1), record(2))))
    second.log_round(record(3))
    second.finish(END)
    assert said == []
    assert steps(store, run_id, "seconds/train") == [1, 2, 3]


def test_remarks_keep_the_newest_that_fit(store: str) -> None:
    from mlflow import MlflowClient

    said: list[str] = []
    one = MLflowTracker(store, "trial", said.append)
    run_id = one.start(CONFIG, "one")
    one.log_round(record(1, *(f"round 1, remark {number}: {'x' * 900}" for number in range(9))))
    one.finish(END)
    tag = MlflowClient(store).get_run(run_id).data.tags["raygf.remarks"]
    assert len(tag) <= 5000
    assert [line.split(":")[0] for line in tag.splitlines()] == [f"round 1, remark {n}" for n in range(4, 9)]
    assert said == []
