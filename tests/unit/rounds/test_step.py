import copy

import numpy as np
import pytest
import torch
from tiny_network import (
    CPU,
    bind,
    dataset,
    owners_of,
    run_config,
    seeded,
    three_exits,
    torch_epoch,
    vector_of,
)
from torch.testing import assert_close

from raygf.config.run import LossConfig, OptimConfig
from raygf.rounds.step import StepRound
from raygf.training.network import Average, NetworkState, averaged

DATA = dataset()
STATE = bind().state()


def make(**changes):
    config = run_config(method="sgd", **changes)
    bound = bind()
    return StepRound(config, bound, DATA.open(CPU, config.batch_size, 5), owners_of(bound))


def by_hand(rounds, rates, coefficients=(1.0,)):
    """torch's SGD on the weighted sum of the exits' losses, momentum running on."""
    network = seeded(three_exits)
    sgd = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-3)
    for round, lr in zip(rounds, rates, strict=True):
        sgd.param_groups[0]["lr"] = lr
        torch_epoch(network, DATA.open(CPU, 4, 5).train(0, "step", round), sgd, coefficients)
    return network


def test_a_round_is_an_epoch_of_joint_sgd():
    step = make()
    outcome = step.run(STATE, 1)
    expected = by_hand([1], [0.1])
    assert_close(torch.from_numpy(outcome.state.vector), vector_of(expected))
    for name, value in expected.named_buffers():
        assert_close(torch.from_numpy(outcome.state.buffers[name]), value)
    assert set(outcome.seconds) == {"train"} and outcome.fusion is None
    assert len(outcome.train.loss) == 3
    assert make(seed=1).run(STATE, 1).state.sha256() != outcome.state.sha256()


@pytest.mark.parametrize("steps", [2, 3, 10])
def test_rounds_of_any_length_are_the_same_training(steps):
    seen = {}
    for length in (steps, None):
        step, seen[length] = make(round_steps=length, optim=OptimConfig(milestones=())), STATE
        for number in range(1, 30 // (length or 5) + 1):
            seen[length] = step.run(seen[length], number).state
    assert seen[steps].sha256() == seen[None].sha256()


def test_momentum_runs_on_and_the_rate_decays():
    step = make()
    middle = step.run(STATE, 2).state
    outcome = step.run(middle, 3)
    expected = by_hand([2, 3], [0.1, 0.01])
    assert_close(torch.from_numpy(outcome.state.vector), vector_of(expected), atol=1e-5, rtol=1e-4)


def test_sdn_coefficients():
    outcome = make(loss=LossConfig(coefficients="sdn")).run(STATE, 4)
    expected = by_hand([4], [0.001], (0.15, 0.30, 1.0))
    assert_close(torch.from_numpy(outcome.state.vector), vector_of(expected))


def test_arrays_and_restore_continue_the_run():
    whole, second = make(), make()
    middle = whole.run(STATE, 1).state
    arrays = whole.arrays()
    before = copy.deepcopy(arrays)
    for array in (arrays["momentum"], middle.vector, *middle.buffers.values()):
        array.flags.writeable = False
    expected = whole.run(middle, 2).state.sha256()
    assert np.array_equal(arrays["momentum"], before["momentum"])  # a checkpoint may still be on its way
    second.restore(arrays)
    assert second.run(middle, 2).state.sha256() == expected
    assert make().run(middle, 2).state.sha256() != expected


def test_the_average_takes_in_every_step_and_its_buffers():
    """Five steps a round and a horizon of two steps: d = 1/2."""
    network, average = seeded(three_exits), None
    sgd = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-3)
    for batch in DATA.open(CPU, 4, 5).train(0, "step", 1):
        torch_epoch(network, [batch], sgd)
        now = torch.cat([vector_of(network), network.stages[1][1].running_mean])
        average = now if average is None else (average + now) / 2
    step = make(optim=OptimConfig(weight_decay=1e-3, ema=0.4))
    found = step.evaluated(step.run(STATE, 1).state)
    mean = found.buffers["stages.1.1.running_mean"]
    assert_close(torch.from_numpy(np.concatenate([found.vector, mean])), average)
    assert found.buffers["stages.1.1.num_batches_tracked"] == 5


@pytest.mark.parametrize(("horizon", "value"), [(2.0, 5.25), (0.1, 0.0)])
def test_an_average_by_hand(horizon, value):
    """Of 8, 4, 0 with two updates a round: d = 3/4 gives 8, 7, 5.25; less than one update the last."""
    average = Average(horizon)
    for count, number in enumerate((8.0, 4.0, 0.0)):
        average.update(torch.tensor([number]), {"n": torch.tensor(count)}, updates=2)
    found = averaged(average.arrays(), NetworkState(np.zeros(1), {"n": np.array(2)}))
    assert (found.vector, found.buffers["n"]) == (value, 2)
