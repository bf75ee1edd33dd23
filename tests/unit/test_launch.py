"""What a submitted job is told of results that would go with its working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygf.config.run import RunConfig, StorageConfig, TrackingConfig
from raygf.launch import temporary_path_warning

COPY = Path("ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0123")
BOTH = "checkpoints (--storage.path) and MLflow's records (--tracking.uri) lie in Ray's copy of"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory as Ray makes one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / COPY
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def note(storage: str, **tracking: object) -> str:
    return temporary_path_warning(
        RunConfig(storage=StorageConfig(storage, "one"), tracking=TrackingConfig(**tracking))
    )


def test_what_lies_in_the_copy_is_named(copy: Path) -> None:
    assert note(str(copy / "runs")).startswith(BOTH)
    assert note(str(copy / "runs"), uri="http://head:5000").startswith("checkpoints (--storage.path) lie")
    assert note("s3://bucket/runs").startswith("MLflow's records (--tracking.uri) lie")


def test_what_lies_elsewhere_is_not(copy: Path) -> None:
    assert note("/shared/runs", uri="http://head:5000") == ""
    assert note("s3://bucket/runs", enabled=False) == ""


def test_jobs_that_were_not_submitted_hear_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert note(str(tmp_path / "runs")) == ""
