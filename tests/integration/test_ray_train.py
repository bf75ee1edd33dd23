"""Within-step methods trained by workers of Ray Train: what the local executor gives, on one or on several.

Starting Ray Train takes most of these tests' time, so that each asks of one start what it can.
"""

import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch.distributed as dist
from runs import LOCAL, SMALL, UNTRACKED, checkpoints_left, local_driver, raygf_actors, wait_until
from torch import nn

from raygf.config.run import ComputeConfig, ModelConfig, ResourceConfig, StorageConfig
from raygf.errors import ConfigError
from raygf.models.multi_exit import MultiExitNetwork
from raygf.on_ray.cluster import with_gpus
from raygf.on_ray.data_parallel import TrainDriver, work
from raygf.storage.checkpoint import CheckpointStore

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers can't import this file
PATH = [str(Path(__file__).parents[2]), *sys.path]
FAIL = "RAYGF_TESTS_FAIL"

FP32 = ComputeConfig("cpu", "fp32", "contiguous")


class FailsOnTheSecond(nn.ReLU):
    """Raises on the second worker, once a file says so."""

    def forward(self, pixels):
        if dist.is_initialized() and dist.get_rank() == 1 and Path(os.environ[FAIL]).exists():
            raise ConfigError("made-up trouble")
        return super().forward(pixels)


def without_batchnorm(spec):
    """Two exits, a thousand parameters."""
    stages = [nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), FailsOnTheSecond()) for c in (spec.channels, 8)]
    heads = [
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, spec.classes)) for _ in range(2)
    ]
    return MultiExitNetwork(stages, heads)


def loop(job):
    """A worker that finds the network of this file."""
    sys.path.extend(PATH)
    os.environ[FAIL] = fail_file(job["config"])
    work(job)


def fail_file(config):
    return f"{config.storage.path}/fail"


@pytest.fixture
def start_driver(cluster):
    """Starts two workers on the shared cluster and ends them."""
    drivers: list[TrainDriver] = []

    def start(config):
        resources = with_gpus(ResourceConfig(workers=2))
        drivers.append(TrainDriver(replace(config, resources=resources), loop))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.close()
    wait_until(lambda: not workers() and not raygf_actors("TrainHost"), 15)
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}


def workers():
    """The processes of Ray Train's workers."""
    return {process.pid for process in raygf_actors("RayTrainWorker")}


def test_one_worker_gives_the_bits_of_the_local_executor(cluster, run_job, tmp_path):
    """PCGrad draws the order of the exits; so the draws are the same, too."""
    pcgrad = ("--rounds", "3", *SMALL, *UNTRACKED, "--storage.path", "runs", "--method", "pcgrad")
    expected = run_job("digits", *pcgrad, *LOCAL, "--storage.name", "local").result
    trained = run_job("digits", *pcgrad, "--resources.workers", "1", "--storage.name", "train")
    slow = ("note: waiting up to", "note: there is")  # for Ray Train, on a busy machine
    lines = [line for line in trained.err.splitlines() if not line.startswith(slow)]
    assert [line.split()[0] for line in lines[:8]] == [
        *("note:", "note:", "note:", "48", "round", "round", "round", "Test")
    ], "something else was printed"
    for key in ("weights_sha256", "test_accuracy", "training_operations", "rounds", "operations"):
        assert trained.result[key] == expected[key], key
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert checkpoints_left(tmp_path / "runs" / "train") == ["round-000002.npz", "round-000003.npz"]


def test_two_workers_agree_with_one_are_started_again_when_one_is_lost_and_end_with_an_error_of_one(
    start_driver, small_config, tmp_path
):
    """Records too; that both workers hold the same weights is checked by every round itself. The error comes
    while the first worker waits for the second."""
    config = replace(small_config, method="sgd", rounds=2000, batch_size=15)
    config = replace(config, model=ModelConfig(f"{__name__}:without_batchnorm"))
    config = replace(config, storage=replace(config.storage, keep=2000), compute=FP32)
    elsewhere = replace(config.storage, path=str(tmp_path / "local"))
    local = local_driver(replace(config, stop_after=3, storage=elsewhere))
    start = local.prepare()
    together = start_driver(config)
    assert together.prepare() == start
    records = together.rounds("a-run")
    for theirs, mine in zip(local.rounds("a-run"), records, strict=False):
        assert mine.train.loss == pytest.approx(theirs.train.loss, rel=1e-5)
        assert mine.train.accuracy == theirs.train.accuracy
        assert mine.val is not None and theirs.val is not None
        assert mine.val.accuracy == theirs.val.accuracy
    one, two = (
        CheckpointStore(path, "small", 2000).load(3) for path in (elsewhere.path, config.storage.path)
    )
    np.testing.assert_allclose(two.network.vector, one.network.vector, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(two.method["momentum"], one.method["momentum"], rtol=1e-3, atol=1e-6)
    assert two.meta["run_id"] == "a-run"

    before = workers()
    assert len(before) == 2
    os.kill(max(before), signal.SIGKILL)
    record = next(records)
    while not record.notes:  # rounds that were done before the loss was noticed come first
        before_it, record = record.round, next(records)
        assert record.round == before_it + 1
    (note,) = record.notes
    says = rf"driver restarted in round {record.round}: worker [12] was lost: ActorDiedError: its worker"
    assert re.match(says, note), note
    assert len(workers()) == 2 and not before & workers()
    expected = one_round(config, tmp_path / "copy", record.round)
    assert record.train.loss == pytest.approx(expected.train.loss, rel=1e-5)

    Path(fail_file(config)).touch()
    with pytest.raises(ConfigError, match=r"^made-up trouble$"):
        list(records)


def one_round(config, folder, round):
    """What one process makes of ``round``, from the checkpoint before it."""
    (folder / "small").mkdir(parents=True)
    shutil.copy(Path(config.storage.path, "small", f"round-{round - 1:06d}.npz"), folder / "small")
    config = replace(config, storage=StorageConfig(str(folder), "small", resume=True))
    driver = local_driver(config)
    driver.prepare()
    record = next(driver.rounds(""))
    driver.close()
    return record
