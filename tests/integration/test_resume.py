"""A run that was stopped or interrupted goes on to the bits of one that was not."""

import os
import signal

import psutil
import pytest
from runs import LOCAL, RESUME, SMALL, raygf_actors, tracked_runs

from raygf.storage.checkpoint import CheckpointStore


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--optim.carry-momentum", "True", "--fusion.batchnorm", "weighted", "--fusion.segments", "channel"),
        (
            *("--optim.carry-momentum", "True", "--loss.aux-exits", "none", "--fusion.images", "24"),
            *("--fusion.shards", "2", "--resources.replicas", "1", "1", "2"),
        ),
    ],
    ids=["plain", "with more in the checkpoint", "parts of the network, in shares"],
)
def test_stopped_run_goes_on_to_the_same_bits(run_job, tracking_uri, straight_hash, flags):
    """Under Ray: tests of faults, and of submitted jobs."""
    flags = ("--rounds", "4", *SMALL, *flags)
    mine = (*flags, *LOCAL, "--tracking.uri", tracking_uri, "--storage.path", "runs", "--storage.name", "one")
    stopped, resumed = run_job("digits", *mine, "--stop-after", "2"), run_job("digits", *mine, *RESUME)
    assert stopped.result["rounds"] == 2
    assert (stopped.rounds, resumed.rounds) == (["1/4", "2/4"], ["3/4", "4/4"])
    sha = resumed.result["weights_sha256"]
    assert sha == straight_hash(*flags) != stopped.result["weights_sha256"]
    assert (resumed.result["rounds"], resumed.result["training_passes"]) == (
        4,
        stopped.result["training_passes"] * 2,
    )
    (run,) = tracked_runs(tracking_uri)
    assert run.id == resumed.result["run_id"] == stopped.result["run_id"]
    assert (run.status, run.rounds, run.tags["weights_sha256"]) == ("FINISHED", [1, 2, 3, 4], sha)


def test_ctrl_c_ends_a_job_and_its_ray_at_once_and_the_run_can_be_resumed(
    start_job, run_job, tracking_uri, straight_hash, tmp_path
):
    """It goes to the whole process group. SIGTERM: tests of submitted jobs, and of sweeps."""
    flags = ("--rounds", "16", *SMALL)
    mine = (*flags, "--tracking.uri", tracking_uri, "--storage.path", "runs", "--storage.name", "one")
    job = start_job("digits", *mine, "--resources.actors", "1", "--resources.address", "local")
    assert job.stderr is not None
    before = []
    for line in job.stderr:
        before.append(line)
        if line.startswith("round 1/16"):
            break
    program = psutil.Process(job.pid)
    processes = program.children(recursive=True)
    said = "".join(before)[-3000:]
    assert len(raygf_actors(of=program)) == 2, said  # the driver and its exit actor
    os.killpg(job.pid, signal.SIGINT)
    out, err = job.communicate(timeout=60)
    assert (job.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("interrupted; ")
    assert err.splitlines()[-1].endswith(" --storage.resume True")
    assert "Traceback" not in err and "error:" not in err
    psutil.wait_procs(processes, timeout=5)
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []

    (killed,) = tracked_runs(tracking_uri)
    checkpoint, notes = CheckpointStore(str(tmp_path / "runs"), "one", 2).newest()
    assert checkpoint is not None and notes == ()
    assert (killed.status, killed.id) == ("KILLED", checkpoint.meta["run_id"])
    resumed = run_job("digits", *mine, *LOCAL, *RESUME)
    assert resumed.result["weights_sha256"] == straight_hash(*flags)
    (run,) = tracked_runs(tracking_uri)
    assert (run.id, run.status) == (killed.id, "FINISHED")
    # Asked last, so that a failure here says that all of the above held.
    assert checkpoint.round < 16, "training went on to its end after the signal"
    assert run.rounds == list(range(1, 17))  # also one that was stored but not yet logged
