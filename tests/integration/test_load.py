"""Many exits on few actors, and many actors on few cores: nothing gets stuck, and the bits are the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import ray

from raygf.config.run import RunConfig
from raygf.data.load import load_data
from raygf.on_ray.executor import RayExecutor
from raygf.training.network import NetworkState

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors can't import this file

EXITS, ROUNDS = 16, 4


@pytest.fixture(scope="module")
def load() -> Iterator[ModuleType]:
    """The benchmark as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import load

        ray.cloudpickle.register_pickle_by_value(load)
        yield load
        ray.cloudpickle.unregister_pickle_by_value(load)
        del sys.modules["load"]


@pytest.fixture(scope="module")
def config(load: ModuleType) -> RunConfig:
    return load.many_exits(EXITS, ROUNDS)  # type: ignore[no-any-return]


@pytest.mark.timeout(120)
def test_a_thousand_trainings_on_five_actors_that_join_while_others_train(
    cluster: str, load: ModuleType, config: RunConfig
) -> None:
    """On two cores they start one after the other; who is there trains, nobody is waited for.

    64 exits a round, of which the actors know nothing: every update is its own, and in its place.
    ``benchmarks/load.py`` has 16 of them, waits for all, and trains.
    """
    exits, round = 64, 0
    crowd = replace(config, resources=replace(config.resources, actors=5, cpus_per_exit=0.01))
    pool = RayExecutor(crowd, load_data(config.data, 0), exits, trainer=load.Nothing)
    state = NetworkState(np.zeros(1000, np.float32), {})
    try:
        assert len(pool._pool.workers) == 5
        while round < 16 or len(pool._pool.ready()) < 3:
            round += 1
            assert load.one_round(pool, state, round, exits)
    finally:
        pool.close()
