"""The driver as an actor: records and errors are those of the plain driver, and nothing is left behind."""

from dataclasses import replace

import numpy as np
import pytest
from runs import local_driver, raygf_actors, wait_until, with_resources

from raygf.errors import DataError, ExitFailed, ResourceError
from raygf.on_ray.cluster import connected, with_gpus
from raygf.on_ray.driver import RemoteDriver
from raygf.storage.checkpoint import CheckpointStore


@pytest.fixture
def start_driver(cluster):
    """Starts drivers on the shared cluster and closes them."""
    drivers: list[RemoteDriver] = []

    def start(config):
        drivers.append(RemoteDriver(replace(config, resources=with_gpus(config.resources))))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.close()
    wait_until(lambda: not raygf_actors(), 10, "the end of all actors that closing ends")


def assert_same_fusion(mine, theirs):
    assert mine is not None and theirs is not None
    np.testing.assert_array_equal(mine.weights, theirs.weights)
    np.testing.assert_array_equal(mine.cosine, theirs.cosine)
    assert (mine.mean_weight, mine.delta_norm, mine.loss) == (
        theirs.mean_weight,
        theirs.delta_norm,
        theirs.loss,
    )


def test_records_are_those_of_the_plain_driver(start_driver, small_config, tmp_path):
    remote = start_driver(with_resources(small_config, actors=2))
    elsewhere = replace(small_config.storage, path=str(tmp_path / "local"))
    local = local_driver(replace(small_config, storage=elsewhere))
    assert remote.prepare() == local.prepare()
    rounds = remote.rounds("a-run")
    records = [next(rounds)]
    wait_until(lambda: len(raygf_actors("ExitActor")) == 2, 30)
    assert len(raygf_actors("DriverActor")) == 1
    records += rounds
    assert [record.round for record in records] == [1, 2, 3]
    for mine, theirs in zip(records, local.rounds("a-run"), strict=True):
        assert_same_fusion(mine.fusion, theirs.fusion)
        assert mine.seconds.keys() == theirs.seconds.keys()
        assert (mine.notes, theirs.notes) == ((), ())
        timeless = {"fusion": None, "seconds": {}, "checkpoint": ""}
        assert replace(mine, **timeless) == replace(theirs, **timeless)
    end = remote.end()
    assert replace(end, checkpoint="") == replace(local.end(), checkpoint="")
    assert end.finished and end.training_passes == 3 * 4
    stored = CheckpointStore(small_config.storage.path, "small", 2).load(3)
    assert stored.network.sha256() == end.weights_sha256
    assert stored.meta["run_id"] == "a-run"


@pytest.mark.parametrize(
    "change, kind, says",
    [
        (lambda c: replace(c, data=replace(c.data, val=1300)), DataError, r"^data\.val = 1300: "),
        (
            lambda c: with_resources(c, cpus_per_exit=64.0),
            ResourceError,
            r"64 CPUs.*resources\.cpus_per_exit",
        ),
    ],
    ids=["data", "resources"],
)
def test_errors_before_training_come_back_as_themselves(start_driver, small_config, change, kind, says):
    remote = start_driver(change(small_config))
    with pytest.raises(kind, match=says) as caught:
        remote.prepare()
    assert type(caught.value) is kind


def test_stuck_exit_is_named_through_the_driver(start_driver, small_config):
    """The submitting process must not give up before the executor has used up its retries."""
    config = with_resources(small_config, actors=1, max_failures=1, exit_timeout_s=0.3)
    config = replace(config, data=replace(config.data, train_limit=1200), batch_size=4)  # seconds an epoch
    remote = start_driver(config)
    remote.prepare()
    with pytest.raises(
        ExitFailed, match=r"^exit 3 could not be trained in round 1 on node \S+ \(pid \d+\): "
    ) as c:
        list(remote.rounds(""))
    assert type(c.value) is ExitFailed
    assert (c.value.exit, c.value.round) == (2, 1)
    assert c.value.knob == "give it more time with resources.exit_timeout_s"


def test_joined_cluster_is_left_running(cluster, small_config):
    """Whoever was in a cluster before stays in it; GPUs settle to none where there are none."""
    import ray

    with connected(small_config.resources) as (where, resources):
        assert where == "the cluster that this process is in"
        assert (resources.gpus_per_exit, resources.driver_gpus) == (0.0, 0.0)
    assert ray.is_initialized()
    assert ray.get_runtime_context().gcs_address == cluster
