"""A sweep from its flags to its last line, with what Ray and MLflow would do left out."""

from types import SimpleNamespace

import pytest
from sweep_parts import plan, row

from raygf.errors import ConfigError, RunFailed, StorageError
from raygf.sweeps import run as module
from raygf.sweeps.plan import SweepFolder
from raygf.sweeps.run import _tune, read_command


@pytest.fixture
def stored(tmp_path):
    """A sweep that was begun in ``tmp_path``."""
    made = plan(path=str(tmp_path))
    folder = SweepFolder(made.run.storage)
    with folder.held():
        folder.write_plan(made)
    return made


def test_a_new_sweep_is_named_after_its_space_and_the_time(tmp_path):
    flags = ["--space", "my/spaces.py", "--storage.path", str(tmp_path)]
    command, folder, stored = read_command(flags)
    assert command.run.storage.name.startswith("spaces-2")
    assert folder.path == f"{tmp_path}/{command.run.storage.name}" and stored is None


def test_a_sweep_is_resumed_only_on_request(stored, tmp_path):
    where = ["--storage.path", str(tmp_path), "--storage.name", "sweep"]
    command, _, found = read_command(["--resume", *where])
    assert found == stored and command.run == stored.run
    with pytest.raises(StorageError, match="holds a sweep already: resume it with --resume, or choose"):
        read_command(where)
    with pytest.raises(StorageError, match="there is no sweep in"):
        read_command(["--resume", *where[:3], "other"])
    with pytest.raises(ConfigError, match=r"resume: say which sweep with --storage\.name"):
        read_command(["--resume"])


@pytest.mark.parametrize("score", [0.5, None])
def test_a_sweep_reports_its_best_trial_and_fails_without_one(stored, monkeypatch, capsys, tmp_path, score):
    rows = [row(0, score), row(1, None)]
    run = SimpleNamespace(start=lambda *given: "parent", failed=[], finished=[])
    run.fail = lambda status, why, texts=None: run.failed.append((status, why))
    run.finish = run.finished.append
    monkeypatch.setattr(module, "SweepRun", lambda *given: run)
    monkeypatch.setattr(module, "read_rows", lambda *given: rows)
    tuner, folder = SimpleNamespace(fit=list), SweepFolder(stored.run.storage)
    if score is None:
        why = "none of 2 trials succeeded: trial fusion.lr=0.1 .* failed: .*; trial fusion.lr=0.2 .* failed"
        with pytest.raises(RunFailed, match=why):
            _tune(stored, lambda made: tuner, folder)
        assert {status for status, _ in run.failed} == {"FAILED"} and run.finished == []
    else:
        result = _tune(stored, lambda made: tuner, folder)
        assert (result["best_trial"], result["mlflow_run_id"]) == ("ab_00000", "parent")
        assert (len(run.finished), run.failed) == (1, [])
    assert (tmp_path / "sweep" / "raygf" / "results.csv").exists()
    printed = capsys.readouterr()
    assert (printed.out, folder.read_plan().parent) == ("", "parent")
