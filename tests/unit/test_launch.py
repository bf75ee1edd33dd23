"""A run from start to end: its readers, its results, and what is refused before it starts."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from runs import LOCAL, SMALL, UNTRACKED
from tiny_network import run_config

from raygf import launch
from raygf.cli import parse
from raygf.config.recipes import get_recipe
from raygf.config.run import DataConfig, ModelConfig, ResourceConfig, RunConfig, StorageConfig, TrackingConfig
from raygf.errors import CheckpointError, NonFiniteError, StorageError
from raygf.launch import label, run, run_job, temporary_path_warning
from raygf.records import ExitScore, RoundRecord, RunEnd, RunStart
from raygf.tracking import tracker

SCORE = ExitScore((1.0, 1.5), (0.5, 0.75))
START = RunStart(0, 10, 900, 0, 90, (1, 2), (10, 20), ("a",), "cpu", run_id="before")
END = RunEnd(2, 6, SCORE, "ab", "runs/x/round-000002.npz", True, 2.5, 600)


class MadeUpDriver:
    """Two rounds, after which ``error`` is raised."""

    error: BaseException | None = None

    def __init__(self, config, make_executor, *, notify):
        self.notify = notify

    def prepare(self):
        return START

    def rounds(self, run_id):
        for round in (1, 2):
            yield RoundRecord(round, 2, 3 * round, 0.1, 0.1, SCORE, None, {"train": 1.0}, "c")
        if self.error is not None:
            raise self.error

    def end(self):
        return END

    def close(self):
        self.notify("closed")


class Spy:
    """A tracker that keeps what it was called with."""

    where = "http://head:5000/#/experiments/1/runs/id"

    def __init__(self):
        self.calls: list[tuple[Any, ...]] = []

    def start(self, *arguments, **named):
        self.calls.append(("start", *arguments[1:], named["recipe"]))
        return "id"

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


@pytest.fixture
def spy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "Driver", MadeUpDriver)
    made = Spy()
    monkeypatch.setattr(tracker, "make_tracker", lambda *_: made)
    return made


def config(**changes):
    return replace(run_config(), resources=ResourceConfig("local"), storage=StorageConfig("here"), **changes)


def test_a_run_hands_its_records_to_the_tracker_and_returns_the_result(spy, capsys):
    result = run(config(method="sgd"), "digits")
    (_, name, resumed, recipe), *others = spy.calls
    assert name.startswith("digits-three_exits-sgd-2") and (resumed, recipe) == ("before", "digits")
    assert [call[0] for call in others] == ["log_start", "log_round", "log_round", "finish"]
    assert others[0][1] is START and others[-1][1] is END
    values = json.loads(json.dumps(asdict(result)))
    assert list(values.items()) == [
        ("run_id", "id"),
        ("method", "sgd"),
        ("rounds", 2),
        ("test_accuracy", [0.5, 0.75]),
        ("operations", [10, 20]),
        ("parameters", [1, 2]),
        ("training_passes", 6),
        ("training_operations", 600),
        ("seconds", 2.5),
        ("weights_sha256", "ab"),
        ("checkpoint", "runs/x/round-000002.npz"),
    ]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"note: run {name}, checkpoints in {Path.cwd() / 'here'}"
    assert lines[1] == "note: MLflow: http://head:5000/#/experiments/1/runs/id"
    assert [line[:9] for line in lines[3:]] == ["round 1/2", "round 2/2", "note: clo"]


CIFAR = {"val": 5000, "path": "/elsewhere"}
PETS = {"model": ModelConfig("torchvision:resnet18@0.3,0.6"), "data": DataConfig("parquet", "/a/pets")}


@pytest.mark.parametrize(
    ("recipe", "changes", "name"),
    [
        ("digits", {"seed": 3, "tracking": TrackingConfig(False)}, "digits"),
        ("digits", {"rounds": 3, "method": "delta-mine:by_length"}, "digits-msdnet-delta-by_length"),
        ("cifar10-msdnet-metagf", {"data": DataConfig("cifar10", **CIFAR)}, "cifar10-msdnet-metagf"),
        ("cifar10-msdnet-metagf", PETS, "pets-resnet18-metagf"),
        ("", {"model": ModelConfig("my nets.mine:a/b")}, "digits-my-a-b-metagf"),
    ],
)
def test_a_run_is_named_by_the_recipe_or_by_what_it_is(recipe, changes, name):
    assert label(replace(get_recipe(recipe or "digits"), **changes), recipe) == name


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (KeyboardInterrupt(), ("fail", "KILLED", "interrupted")),
        (NonFiniteError("nan"), ("fail", "FAILED", "nan")),
    ],
)
def test_a_run_that_does_not_end_is_marked_and_closed(spy, capsys, monkeypatch, error, call):
    monkeypatch.setattr(MadeUpDriver, "error", error)
    with pytest.raises(type(error)):
        run(config())
    assert spy.calls[-1] == call
    assert capsys.readouterr().err.endswith("note: closed\n")


def test_an_interrupted_job_names_the_whole_command_and_a_resumed_one_its_round(spy, monkeypatch, capsys):
    monkeypatch.setattr(MadeUpDriver, "error", KeyboardInterrupt())
    monkeypatch.setattr(MadeUpDriver, "prepare", lambda self: replace(START, round=1))
    monkeypatch.setattr(sys, "orig_argv", ["python", "jobs/digits.py", "--seed", "3"])
    with pytest.raises(KeyboardInterrupt) as caught:
        run_job("", "digits", ["--seed", "3", "--resources.executor", "local"])
    name = spy.calls[0][1]
    command = f"python jobs/digits.py --seed 3 --storage.name {name} --storage.resume True"
    assert str(caught.value) == command and name.startswith("digits-2")
    assert f"note: run {name}, resumed after round 1, checkpoints in " in capsys.readouterr().err


COPY = "ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0123"
BOTH = "checkpoints (--storage.path) and MLflow's records (--tracking.uri) lie in Ray's copy of"


@pytest.mark.parametrize(
    ("folder", "path", "tracking", "says"),
    [
        (COPY, "runs", {}, BOTH),
        (COPY, "runs", {"uri": "http://head:5000"}, "checkpoints (--storage.path) lie"),
        (COPY, "s3://bucket/runs", {}, "MLflow's records (--tracking.uri) lie"),
        (COPY, "/shared/runs", {"uri": "http://head:5000"}, ""),
        (COPY, "s3://bucket/runs", {"enabled": False}, ""),
        ("home", "runs", {}, ""),
    ],
)
def test_results_in_a_submitted_jobs_temporary_folder_are_named(
    tmp_path, monkeypatch, folder, path, tracking, says
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    place = str(Path.cwd() / path) if path == "runs" else path
    warning = temporary_path_warning(
        RunConfig(storage=StorageConfig(place, "one"), tracking=TrackingConfig(**tracking))
    )
    assert warning.startswith(says) and bool(warning) == bool(says)


def test_a_job_is_resumed_by_name_or_as_the_last_one_with_its_own_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, *LOCAL, *UNTRACKED, "--rounds", "3", "--seed", "5"]
    whole = run_job("", "digits", [*small, "--storage.name", "whole"])
    for name in ("first", "second"):
        run_job("", "digits", [*small, "--storage.name", name, "--stop-after", "1"])
    resumed = run_job("", "digits", ["--resume", "--stop-after", "None"])
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["checkpoint"].endswith("runs/second/round-000003.npz")
    assert run_job("", "digits", ["--resume", "first", "--stop-after", "2"])["rounds"] == 2
    with pytest.raises(StorageError, match="no run frist in runs; did you mean 'first'"):
        run_job("", "digits", ["--resume", "frist"])
    with pytest.raises(CheckpointError, match="seed was 5, is now 6"):
        run_job("", "digits", ["--resume", "first", "--seed", "6"])


def test_a_printed_configuration_is_the_run_that_it_was_printed_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--recipe", "cifar10-vgg16-sgd", "--optim.lr", "0.5", "--data.val", "7"]
    assert run_job("", "digits", [*words, "--print-config"]) is None
    Path("run.yaml").write_text(capsys.readouterr().out)
    assert parse("", "digits", ["--config", "run.yaml"])[1] == parse("", "digits", words)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
