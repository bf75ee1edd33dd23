"""Clusters of several nodes: one of them is lost, and two runs share them."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import nodes
import pytest
from ray_head import ray_folder
from runs import run_here

from raygf.storage.checkpoint import CheckpointStore
from raygf.training.exit_trainer import LocalExecutor


def program(name, folder):
    """What the program has seen."""
    with ray_folder() as temporary:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        done = subprocess.run(
            [sys.executable, nodes.__file__, name, str(folder)],
            env=environment | {"RAY_TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    return program("lost", tmp_path_factory.mktemp("lost"))


def test_a_run_whose_node_is_lost_waits_for_another_and_ends_with_the_same_bits(lost, tmp_path):
    records, end = run_here(nodes.lost_config(tmp_path))
    assert [record.round for record in records] == lost["run"]["rounds"] == [1, 2, 3]
    assert lost["run"]["weights_sha256"] == end.weights_sha256
    notes = lost["run"]["notes"]
    says = r"driver restarted in round [12]: Actor"  # round 2 begins while round 1 is stored
    assert re.match(says, notes[0])


def test_a_pool_whose_node_is_lost_trains_every_exit_again(lost, tmp_path):
    """Two actors are lost, one failure of an exit is allowed."""
    config = nodes.lost_config(tmp_path)
    assert config.resources.max_failures == 1
    retried = [f"exit {exit} retried in round 2" for exit in (1, 2)]
    assert sorted(note.split(":")[0] for note in lost["pool"]["notes"]) == retried
    dataset, state = nodes.start_of(config)
    trained = LocalExecutor(config, dataset).train(state, 2, [None] * nodes.EXITS)
    assert lost["pool"]["deltas"] == nodes.hashes(trained)


def test_people_are_told_what_is_waited_for_and_that_it_came(lost):
    size = "(1 CPUs, 0 GPUs)"
    for who, what in (("run", f"the driver {size}"), ("pool", f"an exit actor {size}")):
        said = lost["said"][who]
        waiting = said.index(f"waiting up to 120 s for a node that can hold {what}")
        assert any(text.startswith(f"there is {what} after ") for text in said[waiting + 1 :])


def test_two_runs_that_share_a_cluster_are_where_they_were_placed_and_keep_their_bits(tmp_path):
    """Neither goes on before the other has trained a round and both hold their actors where they should."""
    shared = program("shared", tmp_path / "shared")
    exits, drivers = shared["running"]["ExitActor"], shared["running"]["DriverActor"]
    # One run on both nodes, the other on one of them.
    assert sum(exits.values()) == sum(drivers.values()) == 2
    together = Counter(exits) + Counter(drivers)
    assert sorted(together.values()) == [1, 3]
    for seed, name in enumerate(nodes.STRATEGIES):
        records, end = run_here(nodes.shared_config(tmp_path, name, seed))
        rounds = [record.round for record in records]
        assert rounds == CheckpointStore(str(tmp_path / "shared"), name, 2).rounds() == [1, 2]
        assert shared["weights_sha256"][name] == end.weights_sha256
    assert len(set(shared["weights_sha256"].values())) == 2
