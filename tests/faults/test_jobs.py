"""Jobs as people start them: a second one in the same place, and one that is killed."""

import os
import signal

import psutil
from runs import LOCAL, RESUME, SMALL, UNTRACKED, checkpoints_left, one_error, raygf_actors


def test_the_second_job_is_refused_and_the_first_can_be_resumed_after_its_death(
    cluster, start_job, run_job, straight_hash, tmp_path
):
    flags = ("--rounds", "12", "--data.train-limit", "96", *SMALL[2:])
    mine = (*flags, *UNTRACKED, "--storage.path", "runs", "--storage.name", "one")
    first = start_job("digits", *mine, "--resources.actors", "1", "--resources.address", cluster)
    assert first.stderr is not None
    for line in first.stderr:
        if line.startswith("round 1/12"):
            break
    folder = tmp_path / "runs" / "one"
    held = (folder / "lock.json").read_text()
    for more in ((), RESUME):
        error = one_error(run_job("digits", *mine, *LOCAL, *more))
        assert "runs/one is in use by another run (process " in error and "--storage.name" in error
    assert '"id"' in held and held.split('"id"')[1][:40] in (folder / "lock.json").read_text()
    assert first.poll() is None, "the job was over before the second one was refused"

    actors = raygf_actors()
    assert actors
    os.kill(first.pid, signal.SIGKILL)
    third = run_job("digits", *mine, *LOCAL, *RESUME)  # at once
    assert third.result["weights_sha256"] == straight_hash(*flags)
    assert third.rounds[-1] == "12/12" and third.rounds[0] != "1/12"
    assert "note: took " in third.err and "has ended" in third.err
    psutil.wait_procs(actors, timeout=10)
    assert [actor for actor in actors if actor.is_running()] == []
    assert checkpoints_left(folder) == ["round-000011.npz", "round-000012.npz"]
    lines = [line.split(",")[:2] for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert lines == [[str(round), str(exit)] for round in range(1, 13) for exit in (1, 2, 3)]
