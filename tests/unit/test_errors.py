"""Errors: one line for people, whole after pickling; calls with a time limit; a user's own functions."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raygf.errors import (
    ConfigError,
    DataError,
    DriverLost,
    ExitFailed,
    StorageLost,
    UserError,
    import_function,
    one_line,
    within,
    without_password,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("job", ["digits", "cifar", "imagenet", "sweep", "demo", "evaluate", "toy"])
def test_a_job_that_is_stopped_while_packages_load_ends_without_a_traceback(tmp_path, job):
    """The first package that takes time stands still here; no heavy one comes before."""
    for name in ("tyro", "numpy", "torch"):
        (tmp_path / f"{name}.py").write_text("import time; print('loading', flush=True); time.sleep(60)")
    number = signal.SIGTERM if job == "sweep" else signal.SIGINT
    program = subprocess.Popen(
        [sys.executable, f"{REPOSITORY}/jobs/{job}.py"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout.readline() == "loading\n"
    program.send_signal(number)
    assert (program.communicate(timeout=30), program.returncode) == (("", ""), -number)


def test_exit_codes_tell_what_was_asked_for_from_what_failed():
    assert (DataError.exit_code, StorageLost.exit_code, ExitFailed.exit_code) == (2, 1, 1)
    assert issubclass(StorageLost, UserError)


def test_errors_with_parts_survive_pickling():
    exit_failed = pickle.loads(pickle.dumps(ExitFailed(1, 7, "10.0.0.1", "gone", "retry")))
    assert str(exit_failed) == "exit 2 could not be trained in round 7 on node 10.0.0.1: gone; retry"
    assert (exit_failed.exit, exit_failed.round) == (1, 7)
    lost = pickle.loads(pickle.dumps(DriverLost("its node has died", "STUCK")))
    assert (str(lost), lost.kind) == ("its node has died", "STUCK")


@pytest.mark.parametrize(
    ("error", "line", "bare"),
    [
        (ValueError("first\nsecond"), "ValueError: first", "first"),
        (ValueError("\n  indented  \n"), "ValueError: indented", "indented"),
        (KeyError(), "KeyError", "KeyError"),
        (
            OSError("at http://me:secret@host/x"),
            "OSError: at http://me:***@host/x",
            "at http://me:***@host/x",
        ),
        (ValueError("x" * 999), f"ValueError: {'x' * 300}", "x" * 300),
    ],
)
def test_any_error_is_one_line(error, line, bare):
    assert (one_line(error), one_line(error, kind=False)) == (line, bare)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.text("ab1:@/?#%+", min_size=1, max_size=12), st.sampled_from(["http", "postgresql+x", "s3"]))
def test_no_password_is_shown(rest, scheme):
    """Whatever it is made of, as long as it has no blanks."""
    password = f"geheim{rest}geheim"
    shown = without_password(f"no answer at {scheme}://me:{password}@host:5000/db?x=1 (port 5000)")
    assert shown == f"no answer at {scheme}://me:***@host:5000/db?x=1 (port 5000)"
    assume("&" not in rest and "#" not in rest)
    shown = without_password(f"{scheme}://host/db?user=me&password={password}&x=1 refused")
    assert "geheim" not in shown and shown.startswith(f"{scheme}://")


def test_a_call_within_its_limit_gives_what_it_gives():
    assert within(60, lambda: 3) == 3
    with pytest.raises(KeyError, match="lost"):
        within(60, lambda: {}["lost"])
    with pytest.raises(TimeoutError, match="own"):
        within(60, raising_its_own)


def raising_its_own():
    raise TimeoutError("own")


def test_a_call_beyond_its_limit_is_left_alone():
    end = threading.Event()
    with pytest.raises(TimeoutError, match=r"^no answer within 0\.01 s$"):
        within(0.01, end.wait)
    end.set()


def test_functions_are_imported_by_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_of_mine.py").write_text("def make(): return 3\nnumber = 4\n")
    (tmp_path / "exits_at_once.py").write_text("import sys; sys.exit(3)\n")
    assert import_function("f", "own_of_mine:make")() == 3
    for name, says in (
        ("own_of_mine:number", "number is not a function"),
        ("own_of_mine:none", "can't be imported: AttributeError: "),
        ("no_such_module:make", "can't be imported: ModuleNotFoundError: No module named"),
        ("exits_at_once:make", "can't be imported: SystemExit: 3"),
    ):
        with pytest.raises(ConfigError) as caught:
            import_function("f", name)
        assert str(caught.value).startswith(f"f = {name!r}: {says}")
    sys.modules.pop("own_of_mine")
