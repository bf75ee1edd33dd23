"""Jobs as people start them: a second one in the same place, and one that is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from raygf.storage.checkpoint import CheckpointStore

RunJob = Callable[..., Any]

SMALL = (
    *("--rounds", "12", "--data.train-limit", "150", "--data.val", "50", "--model.msdnet.base", "1"),
    *("--model.msdnet.step", "1", "--model.msdnet.channels", "8", "--storage.path", "runs"),
    *("--tracking.enabled", "False", "--resources.actors", "2"),
)
LOCAL = ("--resources.executor", "local")
MINE = ("--storage.name", "one")
RESUME = ("--storage.resume", "True")


@pytest.fixture
def straight_hash(run_job: RunJob) -> str:
    """The weights after an undisturbed run, in one process."""
    outcome = run_job("digits", *SMALL, *LOCAL, "--storage.name", "straight")
    assert outcome.code == 0, outcome.err
    return str(outcome.result["weights_sha256"])


def test_the_second_job_is_refused_and_the_first_is_gone_on_with_after_its_death(
    cluster: str,
    start_job: Callable[..., Any],
    run_job: RunJob,
    straight_hash: str,
    tmp_path: Path,
) -> None:
    first = start_job("digits", *SMALL, *MINE, "--resources.address", cluster)
    for line in first.stderr:
        if line.startswith("round 1/12"):
            break
    held = (tmp_path / "runs" / "one" / "lock.json").read_text()
    for flags in ((), RESUME):
        second = run_job("digits", *SMALL, *LOCAL, *MINE, *flags)
        assert (second.code, second.out) == (2, "")
        (error,) = [line for line in second.err.splitlines() if line.startswith("error:")]
        assert "runs/one is in use by another run (process " in error and "--storage.name" in error
    assert '"id"' in held and held.split('"id"')[1][:40] in (tmp_path / "runs/one/lock.json").read_text()
    assert first.poll() is None, "the job was over before the second one was refused"

    actors = raygf_actors()
    os.kill(first.pid, signal.SIGKILL)
    third = run_job("digits", *SMALL, *LOCAL, *MINE, *RESUME)  # at once
    assert third.code == 0, third.err
    assert third.result["weights_sha256"] == straight_hash
    rounds = [line.split()[1] for line in third.err.splitlines() if line.startswith("round ")]
    assert rounds[-1] == "12/12" and rounds[0] != "1/12"
    assert "note: took " in third.err and "has ended" in third.err
    psutil.wait_procs(actors, timeout=10)
    assert [actor for actor in actors if actor.is_running()] == []
    store = CheckpointStore(str(tmp_path / "runs"), "one", 2)
    assert sorted(path.name for path in Path(store.folder).iterdir()) == [
        *("round-000011.npz", "round-000012.npz"),
    ]


def raygf_actors() -> list[psutil.Process]:
    """The processes of raygf's actors in the cluster that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if (process.cmdline() or [""])[0].startswith(("ray::DriverActor", "ray::ExitActor")):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    assert found
    return found
