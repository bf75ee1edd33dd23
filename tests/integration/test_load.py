"""Many exits on few actors, and many actors on few cores: nothing gets stuck, and the bits are the same."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import ray

from raygf.config.run import RunConfig
from raygf.data.base import Dataset
from raygf.data.load import load_data
from raygf.on_ray.executor import RayExecutor
from raygf.rounds.driver import Driver, MakeExecutor
from raygf.training.exit_trainer import ExitTrainer, ExitUpdate, LocalExecutor, Trained
from raygf.training.network import NetworkState, Vector

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


class DeepFirst(ExitTrainer):
    """Holds shallow exits back, so that trainings end in another order than they began."""

    def train(
        self, state: NetworkState, exit: int, exits: int, round: int, momentum: Vector | None = None
    ) -> ExitUpdate:
        time.sleep(0.3 * (exit % 3 == 0))
        return super().train(state, exit, exits, round, momentum)


def watched(make: MakeExecutor, orders: list[list[int]]) -> MakeExecutor:
    """``make`` whose executors note the order in which each round's updates come back."""

    def made(config: RunConfig, dataset: Dataset, exits: int) -> Any:
        executor: Any = make(config, dataset, exits)
        train = executor.train

        def noting(*args: Any) -> Trained:
            trained: Trained = train(*args)
            orders.append([update.exit for update in trained.updates])
            return trained

        executor.train = noting
        return executor

    return made


def run(config: RunConfig, folder: Path, make: MakeExecutor) -> tuple[str, list[list[int]]]:
    """The hash of the weights after all rounds, and the order of merging in each."""
    orders: list[list[int]] = []
    driver = Driver(replace(config, storage=replace(config.storage, path=str(folder))), watched(make, orders))
    driver.prepare()
    try:
        for record in driver.rounds(""):
            assert record.notes == ()
        return driver.end().weights_sha256, orders
    finally:
        driver.close()


@pytest.fixture(scope="module")
def expected(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash that one process comes to."""
    sha, orders = run(
        config, tmp_path_factory.mktemp("local"), lambda run, data, exits: LocalExecutor(run, data)
    )
    assert orders == [list(range(EXITS))] * ROUNDS
    return sha


@pytest.mark.timeout(120)
def test_64_trainings_on_three_actors(cluster: str, config: RunConfig, expected: str, tmp_path: Path) -> None:
    """However they end, they are merged in the order of the exits."""
    three = replace(config, resources=replace(config.resources, actors=3))
    sha, orders = run(three, tmp_path, lambda *run: RayExecutor(*run, trainer=DeepFirst))
    assert orders == [list(range(EXITS))] * ROUNDS
    assert sha == expected


@pytest.mark.timeout(120)
def test_a_thousand_trainings_on_eight_actors_that_join_while_others_train(
    cluster: str, load: ModuleType, config: RunConfig
) -> None:
    """On two cores they start one after the other; who is there trains, nobody is waited for.

    64 exits a round, of which the actors know nothing: every update is its own, and in its place.
    ``benchmarks/load.py`` has 16 of them, waits for all, and trains.
    """
    exits, round = 64, 0
    crowd = replace(config, resources=replace(config.resources, actors=8, cpus_per_exit=0.01))
    pool = RayExecutor(crowd, load_data(config.data, 0), exits, trainer=load.Nothing)
    state = NetworkState(np.zeros(1000, np.float32), {})
    try:
        assert len(pool._pool.workers) == 8
        while round < 16 or len(pool._pool.ready()) < 4:
            round += 1
            assert load.one_round(pool, state, round, exits)
    finally:
        pool.close()
