"""A node that is lost suddenly costs one failure and the rounds' bits nothing, once there is another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import faults
import lost_node
import pytest
from ray_head import ray_folder
from runs import local_driver

from raygf.compute import resolve_compute
from raygf.data.load import load_data
from raygf.models.build import build_model
from raygf.training.exit_trainer import LocalExecutor
from raygf.training.network import BoundNetwork


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program saw."""
    folder = tmp_path_factory.mktemp("lost-node")
    with ray_folder() as temporary:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        done = subprocess.run(
            [sys.executable, lost_node.__file__, str(folder)],
            env=environment | {"RAY_TMPDIR": str(temporary), "PYTHONPATH": str(Path(faults.__file__).parent)},
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_run_whose_node_is_lost_waits_for_another_and_ends_with_the_same_bits(
    seen: dict[str, Any], tmp_path: Path
) -> None:
    config = lost_node.run_config(tmp_path)
    local = local_driver(config)
    local.prepare()
    assert [record.round for record in local.rounds("")] == seen["run"]["rounds"] == [1, 2, 3]
    assert seen["run"]["weights_sha256"] == local.end().weights_sha256
    notes = seen["run"]["notes"]
    assert notes and all(note.startswith("driver restarted in round 2: Actor") for note in notes)


def test_a_pool_whose_node_is_lost_counts_that_once(seen: dict[str, Any], tmp_path: Path) -> None:
    """Three actors are lost, one failure is allowed."""
    config = lost_node.run_config(tmp_path)
    assert config.resources.max_failures == 1
    assert sorted(note.split(":")[0] for note in seen["pool"]["notes"]) == [
        f"exit {exit} retried in round 2" for exit in (1, 2, 3)
    ]
    dataset = load_data(config.data, config.seed)
    network = build_model(config.model, dataset.spec, config.seed)
    state = BoundNetwork(network, resolve_compute(config.compute)).state()
    trained = LocalExecutor(config, dataset).train(state, 2, [None] * 3)
    assert seen["pool"]["deltas"] == lost_node.hashes(trained)


def test_people_are_told_what_is_waited_for_and_that_it_came(seen: dict[str, Any]) -> None:
    size = "(1 CPUs, 0 GPUs)"
    for who, what in (("run", f"the driver {size}"), ("pool", f"an exit actor {size}")):
        said = seen["said"][who]
        waiting = said.index(f"waiting up to 120 s for a node that can hold {what}")
        assert any(text.startswith(f"there is {what} after ") for text in said[waiting + 1 :])
