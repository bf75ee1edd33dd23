"""Many exits on many actors and few cores: nothing gets stuck, and every update is in its place."""

import load
import numpy as np
import pytest
import ray
from runs import with_resources

from raygf.data.load import load_data
from raygf.on_ray.executor import RayExecutor
from raygf.training.network import NetworkState

EXITS = 64

ray.cloudpickle.register_pickle_by_value(load)  # the actors can't import it


@pytest.mark.timeout(120)
def test_a_thousand_trainings_on_actors_that_join_while_others_train(cluster):
    """On two cores they start one after the other; who is there trains, nobody is waited for.

    The actors know nothing of the network: every update is its own. ``benchmarks/load.py`` has 16 exits,
    waits for all actors, and trains.
    """
    config = with_resources(load.many_exits(16, 4), actors=2, cpus_per_exit=0.01)
    pool = RayExecutor(config, load_data(config.data, 0), EXITS, trainer=load.Nothing)
    state, round = NetworkState(np.zeros(1000, np.float32), {}), 0
    try:
        assert len(pool._pool.workers) == 2
        while round < 16 or len(pool._pool.ready()) < 2:
            round += 1
            assert load.one_round(pool, state, round, EXITS)
    finally:
        pool.close()
