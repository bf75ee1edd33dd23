"""What Tune runs for a trial: its checkpoints between driver and Tune, and why it failed in one line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray import tune
from ray.exceptions import ActorDiedError, RayTaskError

from raygf.config.fields import to_dict
from raygf.config.recipes import get_recipe
from raygf.config.run import StorageConfig
from raygf.errors import CheckpointError, ConfigError, RunFailed
from raygf.storage.checkpoint import Checkpoint, CheckpointStore, write_archive
from raygf.storage.run_storage import require_same_run
from raygf.sweeps.trial import NAME, cause_of, handed_over, take_over
from raygf.training.network import NetworkState

RUN = get_recipe("digits")


def checkpoint(round=3):
    state = NetworkState(np.arange(4, dtype=np.float32) + round, {"steps": np.array(round)})
    return Checkpoint(round, state, {"eta": np.ones(2)}, {"config": to_dict(RUN), "run_id": "theirs"})


def kept_by_tune(folder, made):
    folder.mkdir(parents=True)
    with (folder / NAME).open("wb") as stream:
        write_archive(stream, made)
    return tune.Checkpoint.from_directory(folder)


def taken(run):
    newest, notes = CheckpointStore(run.storage.path, run.storage.name, 2).newest()
    assert newest is not None and notes == ()
    return newest


@pytest.fixture
def run(tmp_path):
    return replace(RUN, storage=StorageConfig(str(tmp_path / "scratch"), "trial", resume=True))


def test_a_checkpoint_is_handed_over_with_the_files_for_people_and_outlives_the_drivers(tmp_path):
    path = tmp_path / "round-000003.npz"
    for name in (path.name, "round-000002.npz", "lock", "metrics.csv", "summary.json"):
        (tmp_path / name).write_text(name)
    with handed_over(str(path)) as given:
        path.unlink()
        found = {file.name: file.read_text() for file in Path(given.path).iterdir()}
        assert found == {NAME: path.name, "metrics.csv": "metrics.csv", "summary.json": "summary.json"}
    assert not Path(given.path).exists()
    with handed_over(str(path)) as given:
        assert given is None


def test_the_driver_finds_what_tune_has(tmp_path, run):
    take_over(kept_by_tune(tmp_path / "a", checkpoint()), run)
    found = taken(run)
    assert (found.round, found.meta["run_id"]) == (3, "theirs")
    assert found.network.sha256() == checkpoint().network.sha256()
    np.testing.assert_array_equal(found.method["eta"], np.ones(2))
    require_same_run(found, run)


def test_a_checkpoint_that_is_gone_or_damaged_is_named(tmp_path, run):
    given = kept_by_tune(tmp_path / "given", checkpoint())
    file = tmp_path / "given" / NAME
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=rf"given/{NAME}: "):
        take_over(given, run)
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"given/{NAME} can't be read: FileNotFoundError"):
        take_over(given, run)


def from_a_process(cause, text):
    """``cause`` as Ray brings it back: an error that has its type, too, and the text of its traceback."""
    return RayTaskError("train", f"Traceback ...\nmuch text\n{text}", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("optim.lr = -1: must be positive"), "optim.lr = -1: must be positive"),
        (from_a_process(RunFailed("lost"), "raygf.errors.RunFailed: lost"), "lost"),
        (from_a_process(ValueError("odd"), "ValueError: odd"), "ValueError: odd"),
        (ActorDiedError(), "its process was lost (killed, out of memory, or its node has gone)"),
        ("Failure # 1\nTraceback\n  ValueError: odd\n", "ValueError: odd"),
        (None, "unknown"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_cause_of_a_failure_is_one_line(error, line):
    assert cause_of(error).startswith(line)
    assert "\n" not in cause_of(error)
