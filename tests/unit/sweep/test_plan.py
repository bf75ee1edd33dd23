"""A settled sweep, and its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from sweep_parts import plan

from raygf.config.run import StorageConfig
from raygf.errors import ConfigError, StorageError
from raygf.sweep.folder import OURS, SweepFolder
from raygf.sweep.plan import SweepOptions, read_plan


def storage(path: Path, name: str = "sweep") -> StorageConfig:
    return StorageConfig(str(path), name)


def test_every_trial_gets_the_recipes_passes():
    made = plan()
    assert made.budget == 160
    assert made.trial_run("a", {}).rounds == 40
    assert made.trial_run("a", {"method": "sgd"}).rounds == 160
    assert made.trial_run("a", {"method": "delta-mean"}).rounds == 40


def test_only_trials_that_train_exits_have_actors():
    made = plan()
    assert made.exit_bundles({}) == made.exit_bundles({"method": "delta-pcgrad"}) == 2
    assert made.exit_bundles({"method": "pcgrad"}) == 0
    assert made.trial_run("a", {}).resources.actors == 2


def test_a_trials_run_has_its_values_and_a_place_of_its_own():
    run = plan().trial_run("ab_00001", {"fusion.lr": 0.3}, "/scratch")
    assert run.fusion.lr == 0.3
    assert (run.storage.path, run.storage.name, run.storage.resume) == ("/scratch", "ab_00001", False)
    assert plan().trial_run("ab_00001", {}).storage.path == "/runs"
    with pytest.raises(ConfigError, match=r"fusion\.lr = -1\.0"):
        plan().trial_run("a", {"fusion.lr": -1.0})


def test_plans_are_stored_whole():
    made = plan(options=SweepOptions(trials=3, cpus_per_exit=0.5), parent="run", mode="min")
    made = replace(made, run=replace(made.run, optim=replace(made.run.optim, milestones=(0.2, 0.4))))
    assert read_plan(yaml.safe_load(yaml.safe_dump(made.text()))) == made


def test_a_plan_is_found_where_it_lies_now(tmp_path):
    made = plan(path=str(tmp_path / "a"))
    folder = SweepFolder(made.run.storage)
    assert not folder.has_plan()
    with folder.held():
        folder.write_plan(made)
    assert folder.has_plan() and folder.read_plan() == made
    (tmp_path / "a").rename(tmp_path / "b")
    moved = SweepFolder(storage(tmp_path / "b"))
    assert moved.read_plan().run.storage == storage(tmp_path / "b")


def test_trials_keep_their_order(tmp_path):
    folder = SweepFolder(storage(tmp_path))
    assert folder.read_trials() == {}
    with folder.held():
        folder.write_trials({"b": "run1", "a": "", "c": "run2"})
    assert list(folder.read_trials().items()) == [("b", "run1"), ("a", ""), ("c", "run2")]


def test_tune_has_begun_once_it_has_written_its_state(tmp_path):
    folder = SweepFolder(storage(tmp_path))
    assert not folder.has_trials()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "tuner.pkl").touch()
    assert not folder.has_trials()
    (tmp_path / "sweep" / "experiment_state-2026-01-02_03-04-05.json").touch()
    assert folder.has_trials()


def test_nothing_of_ours_lies_where_tune_copies_files(tmp_path):
    folder = SweepFolder(storage(tmp_path))
    with folder.held():
        folder.write_plan(plan())
        folder.write_trials({"a": "b"})
        folder.write("results.csv", b"")
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == [OURS]


def test_two_sweeps_can_not_share_a_folder(tmp_path):
    folder = SweepFolder(storage(tmp_path))
    with folder.held(), pytest.raises(StorageError, match="in use by another run"), folder.held():
        pytest.fail("let in")
    with folder.held():
        pass


def test_what_is_no_sweep_is_an_error_of_one_line(tmp_path):
    folder = SweepFolder(storage(tmp_path))
    with pytest.raises(StorageError, match=r"there is no sweep in .*/sweep: check --storage\.path and"):
        folder.read_plan()
    (tmp_path / "sweep" / OURS).mkdir(parents=True)
    (tmp_path / "sweep" / OURS / "sweep.yaml").write_text("a: [")
    with pytest.raises(StorageError, match=r"sweep\.yaml can't be read"):
        folder.read_plan()
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match=r"storage\.path: can't write to .*file/sweep"),
        SweepFolder(storage(tmp_path / "file")).held(),
    ):
        pytest.fail("let in")


def test_a_folder_behind_a_uri(tmp_path):
    folder = SweepFolder(StorageConfig(f"file://{tmp_path}", "sweep"))
    with folder.held():
        folder.write_plan(plan())
        assert folder.write("a.csv", b"1") == f"file://{tmp_path}/sweep/{OURS}/a.csv"
    assert folder.of_trial("x") == f"file://{tmp_path}/sweep/x"
    assert SweepFolder(storage(tmp_path)).has_plan()
