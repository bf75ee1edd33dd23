"""A cluster of several nodes: where actors go, and runs that share the cluster at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import three_nodes
import tiny
from ray_head import ray_folder
from runs import local_driver

from raygf.storage.checkpoint import CheckpointStore


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program saw when both runs had met, and what became of them."""
    folder = tmp_path_factory.mktemp("three-nodes")
    with ray_folder() as temporary:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        done = subprocess.run(
            [sys.executable, three_nodes.__file__, str(folder)],
            env=environment | {"RAY_TMPDIR": str(temporary), "PYTHONPATH": str(Path(tiny.__file__).parent)},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    return {"folder": folder, **json.loads(done.stdout.splitlines()[-1])}


def test_actors_of_both_runs_live_at_the_same_time_where_they_were_placed(met: dict[str, Any]) -> None:
    """Neither went on before the other had trained a round, so both held their actors then."""
    assert met["running"] == met["asked"]
    exits, drivers = met["asked"]["ExitActor"], met["asked"]["DriverActor"]
    assert sorted(exits.values()) in ([1, 1, 2], [1, 3])  # one run on three nodes, the other on one of them
    assert sum(drivers.values()) == 2
    assert len(exits.keys() | drivers.keys()) == 3


def test_both_runs_give_the_bits_of_one_process(met: dict[str, Any], tmp_path: Path) -> None:
    for seed, name in enumerate(three_nodes.STRATEGIES):
        config = three_nodes.run_config(tmp_path, name, seed)
        local = local_driver(config)
        local.prepare()
        rounds = [record.round for record in local.rounds("")]
        assert rounds == CheckpointStore(str(met["folder"]), name, 2).rounds() == [1, 2]
        assert met["weights_sha256"][name] == local.end().weights_sha256
    assert len(set(met["weights_sha256"].values())) == 2
