"""Jobs as people start them: a second one in the same place, and one that is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from runs import LOCAL, RESUME, TINY, UNTRACKED, raygf_actors, rounds_shown

from raygf.storage.checkpoint import CheckpointStore

RunJob = Callable[..., Any]

LONG = ("--rounds", "12", "--data.train-limit", "150", *TINY[2:])
SMALL = (*LONG, "--storage.path", "runs", *UNTRACKED, "--resources.actors", "2")
MINE = ("--storage.name", "one")


def test_second_job_is_refused_and_first_is_resumed_after_its_death(
    cluster: str,
    start_job: Callable[..., Any],
    run_job: RunJob,
    straight_hash: Callable[..., str],
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
    assert actors
    os.kill(first.pid, signal.SIGKILL)
    third = run_job("digits", *SMALL, *LOCAL, *MINE, *RESUME)  # at once
    assert third.code == 0, third.err
    assert third.result["weights_sha256"] == straight_hash(*LONG)
    rounds = rounds_shown(third.err)
    assert rounds[-1] == "12/12" and rounds[0] != "1/12"
    assert "note: took " in third.err and "has ended" in third.err
    psutil.wait_procs(actors, timeout=10)
    assert [actor for actor in actors if actor.is_running()] == []
    store = CheckpointStore(str(tmp_path / "runs"), "one", 2)
    assert sorted(path.name for path in Path(store.folder).iterdir()) == [
        *("round-000011.npz", "round-000012.npz"),
    ]
