from __future__ import annotations

import numpy as np
from tiny_network import bind, dataset, run_config

from raygf.config.run import OptimConfig
from raygf.training.exit_trainer import ExitTrainer, LocalExecutor


def test_updates_are_those_of_the_trainer_in_the_order_of_the_exits():
    config, data, state = run_config(), dataset(), bind().state()
    executor = LocalExecutor(config, data)
    trained = executor.train(state, 2, [None] * 3)
    executor.close()
    reference = ExitTrainer(config, data)
    assert [update.exit for update in trained.updates] == [0, 1, 2]
    for update in trained.updates:
        expected = reference.train(state, update.exit, 3, 2)
        assert np.array_equal(update.delta, expected.delta)
        assert update.loss == expected.loss


def test_each_exit_gets_its_own_momentum():
    config = run_config(optim=OptimConfig(carry_momentum=True))
    data, state = dataset(), bind().state()
    executor = LocalExecutor(config, data)
    first = executor.train(state, 1, [None] * 3)
    momenta = [update.momentum for update in first.updates]
    second = executor.train(state, 2, momenta)
    reference = ExitTrainer(config, data)
    for exit in range(3):
        assert np.array_equal(
            second.updates[exit].delta, reference.train(state, exit, 3, 2, momenta[exit]).delta
        )


def test_times():
    trained = LocalExecutor(run_config(), dataset()).train(bind().state(), 1, [None] * 3)
    assert trained.train_s == sum(update.seconds for update in trained.updates) > 0
    assert trained.broadcast_s == trained.wait_s == 0
    assert trained.notes == ()
