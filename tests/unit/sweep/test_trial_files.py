"""Checkpoints between a trial's driver and Ray Tune."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray import tune

from raygf.config.fields import to_dict
from raygf.config.recipes import get_recipe
from raygf.config.run import StorageConfig
from raygf.errors import CheckpointError
from raygf.storage.checkpoint import Checkpoint, CheckpointStore, write_archive
from raygf.storage.run_storage import require_same_run
from raygf.sweep.plan import override
from raygf.sweep.trial import NAME, handed_over, take_over
from raygf.training.network import NetworkState

RUN = get_recipe("digits")


def checkpoint(round: int = 3, run=RUN) -> Checkpoint:
    state = NetworkState(np.arange(4, dtype=np.float32) + round, {"steps": np.array(round)})
    return Checkpoint(round, state, {"eta": np.ones(2)}, {"config": to_dict(run), "run_id": "theirs"})


def kept_by_tune(folder: Path, made: Checkpoint) -> tune.Checkpoint:
    folder.mkdir(parents=True)
    with (folder / NAME).open("wb") as stream:
        write_archive(stream, made)
    return tune.Checkpoint.from_directory(folder)


@pytest.fixture
def run(tmp_path):
    return replace(RUN, storage=StorageConfig(str(tmp_path / "scratch"), "trial", resume=True))


def taken(run) -> Checkpoint:
    newest, notes = CheckpointStore(run.storage.path, run.storage.name, 2).newest()
    assert newest is not None and notes == ()
    return newest


def test_a_checkpoint_is_handed_over_alone_and_outlives_the_drivers_file(tmp_path):
    store = CheckpointStore(str(tmp_path), "run", 2)
    store.check_writable()
    path = store.save(checkpoint())
    with handed_over(path) as given:
        assert given is not None
        Path(path).unlink()
        assert [file.name for file in Path(given.path).iterdir()] == [NAME]
    assert not Path(given.path).exists()


def test_a_file_that_is_gone_is_not_handed_over(tmp_path):
    with handed_over(str(tmp_path / "round-000001.npz")) as given:
        assert given is None


def test_the_driver_finds_what_tune_has(tmp_path, run):
    assert take_over(kept_by_tune(tmp_path / "a", checkpoint()), str(tmp_path), run, {}) == ()
    found = taken(run)
    assert found.round == 3
    assert found.network.sha256() == checkpoint().network.sha256()
    assert found.meta["run_id"] == "theirs"
    np.testing.assert_array_equal(found.method["eta"], np.ones(2))
    require_same_run(found, run)


def test_values_of_another_trial_are_replaced_and_nothing_else(tmp_path, run):
    """Population based training: their checkpoint, our values."""
    values = {"fusion.lr": 0.3, "loss.aux": 0.2}
    ours = override(run, values)
    theirs = override(RUN, {"fusion.lr": 0.7, "loss.aux": 0.9})
    take_over(kept_by_tune(tmp_path / "a", checkpoint(run=theirs)), str(tmp_path), ours, values)
    require_same_run(taken(ours), ours)


def test_a_difference_that_is_not_swept_is_still_refused(tmp_path, run):
    values = {"fusion.lr": 0.3}
    ours, theirs = override(run, values), override(RUN, {"fusion.lr": 0.7, "optim.lr": 0.05})
    take_over(kept_by_tune(tmp_path / "a", checkpoint(run=theirs)), str(tmp_path), ours, values)
    with pytest.raises(CheckpointError, match=r"optim\.lr was 0\.05, is now 0\.1"):
        require_same_run(taken(ours), ours)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_the_newest_whole_one_serves_where_the_given_is_lost(tmp_path, run, damage):
    trial = tmp_path / "sweep" / "trial"
    for number, round in enumerate((4, 6, 5)):
        kept_by_tune(trial / f"checkpoint_{number:06d}", checkpoint(round))
    given = kept_by_tune(tmp_path / "given", checkpoint(7))
    file = tmp_path / "given" / NAME
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-50])
    (trial / "checkpoint_000001" / NAME).write_bytes(b"half")
    (note,) = take_over(given, str(trial), run, {})
    assert "going on from" in note and note.endswith("checkpoint_000002")
    assert taken(run).round == 5


def test_nothing_to_go_on_from_names_the_checkpoint_that_was_given(tmp_path, run):
    given = kept_by_tune(tmp_path / "given", checkpoint())
    (tmp_path / "given" / NAME).unlink()
    with pytest.raises(CheckpointError, match=rf"given/{NAME} can't be read"):
        take_over(given, str(tmp_path / "no-such-trial"), run, {})
