"""A run and its folder: held by one, written with patience, given back in the end."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_network import dataset, run_config

from raygf.config.run import RunConfig
from raygf.errors import DataError, RunFailed, StorageError, StorageLost
from raygf.rounds.driver import Driver
from raygf.storage.checkpoint import CheckpointStore
from raygf.storage.folder import RunFolder
from raygf.storage.lock import NAME, Held, Owner, Process
from raygf.training.exit_trainer import LocalExecutor

ROUNDS = 3


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch):
    monkeypatch.setattr("raygf.rounds.driver.load_data", lambda config, seed: dataset(val=config.val))


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Pauses between tries, which take no time; ``after`` is called in each."""

    class Pauses(list):
        after: Callable[[], None] = staticmethod(lambda: None)

        def __call__(self, seconds: float) -> None:
            self.append(seconds)
            self.after()

    pauses = Pauses()
    monkeypatch.setattr("raygf.storage.run_storage.time.sleep", pauses)
    return pauses


def config(path: Path, retries: int = 3, **changes) -> RunConfig:
    base = run_config(path=str(path), method="sgd", rounds=ROUNDS, **changes)
    return replace(base, storage=replace(base.storage, retries=retries, keep=1))


def make(run: RunConfig, **options) -> Driver:
    return Driver(run, lambda *args: LocalExecutor(*args[:2]), **options)


def drive(run: RunConfig, **options):
    driver = make(run, **options)
    try:
        driver.prepare()
        return list(driver.rounds("id")), driver.end().weights_sha256
    finally:
        driver.close()


def failing(tries: set[int], code: int = errno.ENOSPC):
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


def checkpoints(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "run").glob("round-*"))


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
def test_after_the_last_try_the_run_ends_and_the_checkpoint_before_is_whole(tmp_path, pauses, code):
    folder, seen = failing(set(range(2, 99)), code)
    with pytest.raises(StorageLost, match=r"round 2 .*earlier checkpoints stand; tried 4 times") as caught:
        drive(config(tmp_path), open_folder=folder)
    assert os.strerror(code) in str(caught.value) and "storage.retries" in str(caught.value)
    assert caught.value.exit_code == 1 and isinstance(caught.value, StorageError)
    assert (len(seen), pauses) == (5, [1, 2, 4])
    assert checkpoints(tmp_path) == ["round-000001.npz"]
    checkpoint, notes = CheckpointStore(str(tmp_path), "run", 1).newest()
    assert checkpoint.round == 1 and notes == ()


def test_what_was_left_is_gone_on_from_to_the_same_bits(tmp_path, pauses):
    folder, _ = failing(set(range(2, 99)))
    run = config(tmp_path / "a", retries=0)
    with pytest.raises(StorageLost):
        drive(run, open_folder=folder)
    assert pauses == []
    again = replace(run, storage=replace(run.storage, resume=True))
    assert drive(again)[1] == drive(config(tmp_path / "b"))[1]


def test_a_mount_that_vanishes_and_comes_back(tmp_path, pauses):
    """Meanwhile nothing is written where it was."""
    mount, away = tmp_path / "mount", tmp_path / "away"
    driver = make(config(mount))
    driver.prepare()
    rounds = driver.rounds("id")
    assert next(rounds).round == 1
    mount.rename(away)

    def back() -> None:
        assert not mount.exists()
        if len(pauses) == 2:
            away.rename(mount)

    pauses.after = back
    record = next(rounds)
    assert (record.round, len(record.notes), pauses) == (2, 2, [1, 2])
    assert checkpoints(mount) == ["round-000002.npz"]
    driver.close()


def test_a_mount_that_stays_away_ends_the_run(tmp_path, pauses):
    mount, away = tmp_path / "mount", tmp_path / "away"
    driver = make(config(mount))
    driver.prepare()
    rounds = driver.rounds("id")
    next(rounds)
    mount.rename(away)
    with pytest.raises(StorageLost, match=r"round 2 could not be written to .*mount/run: .*No such file"):
        next(rounds)
    driver.close()
    assert not mount.exists()
    assert CheckpointStore(str(away), "run", 1).newest()[0].round == 1


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(tmp_path):
    run = config(tmp_path / "a")
    first = make(run)
    first.prepare()
    rounds = first.rounds("id")
    next(rounds)
    for resume in (False, True):
        second = make(replace(run, storage=replace(run.storage, resume=resume)))
        with pytest.raises(StorageError, match="is in use by another run") as caught:
            second.prepare()
        assert caught.value.exit_code == 2
        second.close()
    assert [record.round for record in rounds] == [2, 3]
    assert first.end().weights_sha256 == drive(config(tmp_path / "b"))[1]
    first.close()
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["round-000003.npz"]


def test_a_run_whose_folder_was_taken_stops_before_it_writes(tmp_path):
    driver = make(config(tmp_path))
    driver.prepare()
    rounds = driver.rounds("id")
    next(rounds)
    other = Held("other", Owner.new(), replace(Process.this(), pid=1))
    RunFolder(str(tmp_path), "run").write(NAME, other.json())
    with pytest.raises(RunFailed, match="was taken over by another run"):
        next(rounds)
    driver.close()
    assert checkpoints(tmp_path) == ["round-000001.npz"]
    assert (tmp_path / "run" / NAME).exists()  # it is the other's


def test_what_is_refused_gives_the_folder_back(tmp_path, monkeypatch):
    def unreadable(config, seed):
        raise DataError("nothing there")

    with monkeypatch.context() as patch:
        patch.setattr("raygf.rounds.driver.load_data", unreadable)
        with pytest.raises(DataError):
            drive(config(tmp_path))
    assert list((tmp_path / "run").iterdir()) == []
    drive(config(tmp_path))
    refused = make(config(tmp_path))
    with pytest.raises(StorageError, match="holds checkpoints already"):
        refused.prepare()
    assert checkpoints(tmp_path) == [path.name for path in (tmp_path / "run").iterdir()]


def test_an_abandoned_run_has_given_its_folder_back(tmp_path):
    driver = make(config(tmp_path))
    driver.prepare()
    next(driver.rounds("id"))
    driver.abandon()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["round-000001.npz"]
