"""A run and its folder: held by one, written with patience, given back in the end."""

import csv
import errno
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import pytest
import yaml
from tiny_network import bind, dataset, run_config

from raygf.config.fields import from_dict, to_dict
from raygf.config.run import DataConfig, RunConfig
from raygf.errors import CheckpointError, DataError, StorageError, StorageLost
from raygf.rounds.driver import Driver
from raygf.serving.adaptive import AdaptiveClassifier
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
    """Checkpoints, locks and what else is not for people."""
    readable = {"config.yaml", "metrics.csv", "summary.json", "model.json", "model.safetensors"}
    return sorted({file.name for file in (path / "run").iterdir()} - readable)


def rounds_of(path):
    """Round and exit of every line of ``metrics.csv``, and the lines without their seconds."""
    lines = [*csv.DictReader((path / "run" / "metrics.csv").open())]
    for line in lines:
        assert float(line.pop("seconds")) > 0
    return [(int(line["round"]), int(line["exit"])) for line in lines], lines


EVERY = [(round, exit) for round in range(1, ROUNDS + 1) for exit in (1, 2, 3)]


def test_a_run_leaves_a_folder_that_people_and_programs_can_read(tmp_path):
    run = config(tmp_path, data=DataConfig(pad=0, flip=False, val=8))
    secret = replace(run, tracking=replace(run.tracking, uri="http://me:secret@example.org"))
    driver = make(secret)
    driver.prepare()
    records = []
    for record in driver.rounds("id"):
        records.append(record)
        assert rounds_of(tmp_path)[0] == EVERY[: 3 * record.round]  # as the run goes
    end = driver.end()
    driver.close()
    for (round, exit), line in zip(*rounds_of(tmp_path), strict=True):
        record = records[round - 1]
        assert float(line["training_passes"]) == record.training_passes
        for split, score in (("train", record.train), ("val", record.val)):
            assert float(line[f"{split}_loss"]) == pytest.approx(score.loss[exit - 1], rel=1e-5)
            assert float(line[f"{split}_accuracy"]) == pytest.approx(score.accuracy[exit - 1], rel=1e-5)
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "secret" not in text
    assert replace(from_dict(RunConfig, yaml.safe_load(text)), tracking=secret.tracking) == secret
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["run_id"], summary["finished"], summary["rounds"]) == ("id", True, ROUNDS)
    assert tuple(summary["test_accuracy"]) == end.test.accuracy
    assert summary["weights_sha256"] == end.weights_sha256
    known = json.loads((tmp_path / "run" / "model.json").read_text())
    assert (known["weights_sha256"], known["rounds"]) == (end.weights_sha256, ROUNDS)
    model = AdaptiveClassifier.load(str(tmp_path / "run"))
    assert model.table is not None and model.task.class_names == ("a", "b", "c")


def test_the_metrics_of_a_killed_run_are_whole_and_a_resumed_one_goes_on(tmp_path):
    """What the dead process wrote beyond its last checkpoint, or did not come to write, is as if never."""
    run = config(tmp_path / "a")
    driver = make(run)
    driver.prepare()
    next(driver.rounds("id"))
    driver.close()
    metrics = tmp_path / "a" / "run" / "metrics.csv"
    for left in (metrics.read_text() + "2,1,half a li", "", metrics.read_text() + metrics.read_text()):
        metrics.write_text(left)
        again = make(replace(run, storage=replace(run.storage, resume=True)))
        again.prepare()
        again.close()
        assert rounds_of(tmp_path / "a")[0] == EVERY[:3]
    drive(replace(run, storage=replace(run.storage, resume=True)))
    drive(config(tmp_path / "b"))
    assert rounds_of(tmp_path / "a") == rounds_of(tmp_path / "b")
    assert rounds_of(tmp_path / "a")[0] == EVERY


def test_files_that_can_not_be_written_do_not_end_the_run_and_lines_come_later(tmp_path):
    class Full(RunFolder):
        tries = 0

        def append(self, name, content):
            Full.tries += 1
            if Full.tries < ROUNDS:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().append(name, content)

        def write(self, name, content):
            if name.startswith("model."):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            super().write(name, content)

    said = []
    assert len(drive(config(tmp_path), open_folder=Full, notify=said.append)[0]) == ROUNDS
    assert rounds_of(tmp_path)[0] == EVERY
    assert [line.split(" could")[0] for line in said] == [
        *["metrics.csv"] * 2,
        "model.safetensors",
        "model.json",
    ]
    assert said[0] == "metrics.csv could not be written: [Errno 28] No space left on device; the run goes on"


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
    assert list(tmp_path.iterdir()) == []
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
