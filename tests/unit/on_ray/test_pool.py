"""How many exit actors a cluster has room for beside the driver."""

import pytest
import ray

from raygf.config.run import ResourceConfig
from raygf.errors import ResourceError
from raygf.on_ray.pool import room

GPU_NODE = {"CPU": 48.0, "GPU": 1.0}


def nodes(*resources):
    """What ``ray.nodes`` tells of living nodes "0", "1", … with these resources."""
    return [
        {"NodeID": str(number), "Alive": True, "Resources": total} for number, total in enumerate(resources)
    ]


@pytest.mark.parametrize(
    ("cluster", "exit_gpus", "driver_gpus", "actors"),
    [
        (nodes(*[GPU_NODE] * 3), 0.8, 0.2, 3),  # the driver finds room beside an exit
        (nodes(*[GPU_NODE] * 3), 0.7, 0.3, 3),
        (nodes(*[GPU_NODE] * 3), 1.0, 1.0, 2),
        (nodes(*[GPU_NODE] * 3), 0.5, 0.5, 5),
        (nodes({"CPU": 8.0, "GPU": 4.0}), 0.9, 0.1, 4),
        (nodes({"CPU": 8.0, "GPU": 4.0}), 0.9, 0.4, 3),  # no share is spread over two GPUs
        (nodes({"CPU": 16.0, "GPU": 4.0}), 0.4, 0.2, 8),
        (nodes({"CPU": 8.0, "GPU": 4.0}), 2.0, 0.2, 1),
        (nodes(GPU_NODE), 0.5, 0.5, 1),
        (nodes({"CPU": 4.0}, *[GPU_NODE] * 3), 1.0, 0.0, 3),
        (nodes({"CPU": 4.0}), 0.0, 0.0, 3),
        (nodes({"CPU": 4.0}, {"CPU": 2.0}), 0.0, 0.0, 5),
        (nodes({"CPU": 1.0}), 0.0, 0.0, 1),  # at least one, which waits for the driver to make room
    ],
)
def test_driver_takes_what_it_takes_on_its_node(monkeypatch, cluster, exit_gpus, driver_gpus, actors):
    monkeypatch.setattr(ray, "nodes", lambda: cluster)
    assert room(ResourceConfig(gpus_per_exit=exit_gpus, driver_gpus=driver_gpus), 9, "0") == actors


def test_exits_that_fit_nowhere_are_refused_unless_nodes_may_come(monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: nodes(GPU_NODE))
    with pytest.raises(ResourceError, match="no node of the cluster can hold an exit actor"):
        room(ResourceConfig(gpus_per_exit=2.0), 9, "0")
    assert room(ResourceConfig(gpus_per_exit=2.0, wait_for_resources_s=60.0), 9, "0") == 9
