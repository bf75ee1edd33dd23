"""What is known of a cluster, and that Ray prints nothing inside ``silent_ray``."""

import pytest
import ray
from ray._private.worker import print_to_stdstream

from raygf.config.run import ResourceConfig
from raygf.errors import ResourceError
from raygf.on_ray import cluster
from raygf.on_ray.cluster import check_driver_fits, silent_ray, with_gpus


def report(text):
    """By the function with which Ray prints what raylets report."""
    print_to_stdstream({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)


def test_ray_is_silent_inside_and_not_after(capsys):
    with pytest.raises(KeyError), silent_ray():
        report("a worker died")
        raise KeyError
    report("another one did")
    printed = capsys.readouterr().out
    assert "another one did" in printed and "a worker died" not in printed


def test_a_ray_that_does_not_start_is_one_line(monkeypatch):
    def init(**options):
        raise Exception("The current node timed out during startup.\nSee the logs")

    monkeypatch.setattr(ray, "init", init)
    says = r"^Ray could not be started on this machine: .*timed out during startup.*executor local$"
    with pytest.raises(ResourceError, match=says):
        cluster.connect(ResourceConfig(address="local"))


@pytest.mark.parametrize(
    ("total", "asked", "exit_gpus", "driver_gpus"),
    [
        (0, {}, 0.0, 0.0),
        (1, {}, 0.5, 0.5),
        (4, {}, 1.0, 1.0),
        (4, {"gpus_per_exit": 2.0}, 2.0, 2.0),
        (4, {"driver_gpus": 0.5}, 1.0, 0.5),
        (4, {"workers": 4}, 1.0, 1.0),
        (2, {"workers": 5}, 1.0, 1 / 3),
    ],
)
def test_gpus_are_shared_out(monkeypatch, total, asked, exit_gpus, driver_gpus):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": total})
    found = with_gpus(ResourceConfig(**asked))
    assert (found.gpus_per_exit, found.driver_gpus) == (exit_gpus, driver_gpus)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"driver_cpus": 4.0}, ""),
        (
            {"driver_cpus": 5.0},
            r"the driver \(5 CPUs, 0 GPUs each\): lower resources\.driver_cpus",
        ),
        ({"driver_cpus": 5.0, "wait_for_resources_s": 1.0}, ""),
        ({"workers": 6}, ""),
        ({"workers": 7}, r"can't hold 7 workers \(1 CPUs, 0 GPUs each\): lower resources\.workers"),
    ],
)
def test_a_driver_that_fits_nowhere_is_refused(monkeypatch, asked, text):
    nodes = [{"NodeID": str(cpus), "Alive": True, "Resources": {"CPU": cpus}} for cpus in (4.0, 2.0)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    if not text:
        check_driver_fits(ResourceConfig(**asked))
        return
    with pytest.raises(ResourceError, match=text):
        check_driver_fits(ResourceConfig(**asked))
