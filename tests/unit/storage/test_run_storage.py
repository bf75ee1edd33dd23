"""A run and its folder: held by one, written with patience, given back in the end."""

import errno
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tiny_network import bind, dataset, run_config

from raygf.config.fields import to_dict
from raygf.errors import CheckpointError, DataError, StorageError, StorageLost
from raygf.rounds.driver import Driver
from raygf.storage.checkpoint import Checkpoint
from raygf.storage.folder import RunFolder
from raygf.storage.run_storage import pause_s, require_same_run
from raygf.training.exit_trainer import LocalExecutor

ROUNDS = 3


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    monkeypatch.setattr("raygf.rounds.driver.load_data", lambda config, seed: dataset(val=config.val))


@pytest.fixture
def pauses(monkeypatch):
    """Pauses between tries, which take no time; ``after`` is called in each."""

    class Pauses(list):
        after: Callable[[], None] = staticmethod(lambda: None)

        def __call__(self, seconds):
            self.append(seconds)
            self.after()

    pauses = Pauses()
    monkeypatch.setattr("raygf.storage.run_storage.time.sleep", pauses)
    return pauses


def config(path, retries=3, **changes):
    base = run_config(path=str(path), method="sgd", rounds=ROUNDS, **changes)
    return replace(base, storage=replace(base.storage, retries=retries, keep=1))


def make(run, **options):
    return Driver(run, lambda *args: LocalExecutor(*args[:2]), **options)


def drive(run, **options):
    driver = make(run, **options)
    try:
        driver.prepare()
        return list(driver.rounds("id")), driver.end().weights_sha256
    finally:
        driver.close()


def failing(tries, code=errno.ENOSPC):
    """Folders in which the checkpoint writes ``tries`` (from 1, over the whole run) fail half-way."""
    seen = []

    class Failing(RunFolder):
        @contextmanager
        def replacing(self, name, *, force=True):
            with super().replacing(name, force=force) as stream:
                yield stream
                if name.startswith("round-"):
                    seen.append(name)
                    if len(seen) in tries:
                        raise OSError(code, os.strerror(code))

    return Failing, seen


def files(path):
    return sorted(file.name for file in (path / "run").iterdir())


def test_a_write_that_fails_is_tried_again_with_pauses_that_grow(tmp_path, pauses):
    folder, seen = failing({2, 3})
    said = []
    records, found = drive(config(tmp_path / "a"), open_folder=folder, notify=said.append)
    assert len(seen) == ROUNDS + 2
    assert pauses == [1, 2]
    assert found == drive(config(tmp_path / "b"))[1]
    assert [len(record.notes) for record in records] == [0, 2, 0]
    assert list(records[1].notes) == said
    assert "checkpoint of round 2 could not be written" in said[0] and "No space left on device" in said[0]
    assert said[0].endswith("trying again after 1 s") and said[1].endswith("trying again after 2 s")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_after_the_last_try_the_run_ends_and_can_be_resumed_to_the_same_bits(tmp_path, pauses, code):
    folder, seen = failing(set(range(2, 99)), code)
    run = config(tmp_path / "a")
    with pytest.raises(StorageLost, match=r"round 2 .*earlier checkpoints stand; tried 4 times") as caught:
        drive(run, open_folder=folder)
    assert os.strerror(code) in str(caught.value) and "storage.retries" in str(caught.value)
    assert caught.value.exit_code == 1 and isinstance(caught.value, StorageError)
    assert (len(seen), pauses) == (5, [1, 2, 4])
    assert files(tmp_path / "a") == ["round-000001.npz"]
    again = replace(run, storage=replace(run.storage, resume=True))
    assert drive(again)[1] == drive(config(tmp_path / "b"))[1]


def test_pauses_double_up_to_a_minute_and_come_to_an_end():
    assert [pause_s(failures, 8) for failures in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, None]
    assert pause_s(0, 0) is None


def test_a_mount_that_vanishes_and_comes_back(tmp_path, pauses):
    """Meanwhile nothing is written where it was."""
    mount, away = tmp_path / "mount", tmp_path / "away"
    driver = make(config(mount))
    driver.prepare()
    rounds = driver.rounds("id")
    assert next(rounds).round == 1
    mount.rename(away)

    def back():
        assert not mount.exists()
        if len(pauses) == 2:
            away.rename(mount)

    pauses.after = back
    record = next(rounds)
    assert (record.round, len(record.notes), pauses) == (2, 2, [1, 2])
    driver.close()
    assert files(mount) == ["round-000002.npz"]


def test_what_is_refused_gives_the_folder_back(tmp_path, monkeypatch):
    def unreadable(config, seed):
        raise DataError("nothing there")

    with monkeypatch.context() as patch:
        patch.setattr("raygf.rounds.driver.load_data", unreadable)
        with pytest.raises(DataError):
            drive(config(tmp_path))
    assert files(tmp_path) == []
    drive(config(tmp_path))
    refused = make(config(tmp_path))
    with pytest.raises(StorageError, match="holds checkpoints already"):
        refused.prepare()
    assert files(tmp_path) == ["round-000003.npz"]


def test_a_field_that_is_newer_than_the_checkpoint_has_its_default_there(tmp_path):
    run = config(tmp_path)
    stored = to_dict(run)
    del stored["loss"]["kd_reduction"], stored["method"]
    checkpoint = Checkpoint(1, bind().state(), {}, {"config": stored})
    require_same_run(checkpoint, replace(run, method="metagf"))
    program = replace(run.loss, kd_reduction="mean")
    with pytest.raises(CheckpointError, match=r"loss\.kd_reduction was 'batchmean', is now 'mean'; give"):
        require_same_run(checkpoint, replace(run, method="metagf", loss=program))


def test_an_abandoned_run_has_given_its_folder_back(tmp_path):
    driver = make(config(tmp_path))
    driver.prepare()
    next(driver.rounds("id"))
    driver.abandon()
    assert files(tmp_path) == ["round-000001.npz"]
