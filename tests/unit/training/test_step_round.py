from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_network import CPU, bind, dataset, run_config, seeded, three_exits
from torch.testing import assert_close

from raygf.config.run import LossConfig, OptimConfig
from raygf.errors import NonFiniteError
from raygf.rounds.step import StepRound
from raygf.training.losses import exit_losses
from raygf.training.network import BoundNetwork, NetworkState
from raygf.training.space import find_ownership

DATA = dataset()
STATE = bind().state()
OWNED = find_ownership(bind().network, torch.zeros(2, 1, 4, 4), bind().space)


def make(**changes) -> StepRound:
    config = run_config(method="sgd", **changes)
    bound = BoundNetwork(seeded(three_exits), CPU)
    return StepRound(config, bound, DATA.open(CPU, config.batch_size, 5), OWNED)


def by_hand(rounds, rates, coefficients=(1.0, 1.0, 1.0)) -> torch.nn.Module:
    """torch's SGD on the weighted sum of the exits' losses, momentum running on."""
    network = seeded(three_exits).train()
    sgd = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-3)
    for round, lr in zip(rounds, rates, strict=True):
        sgd.param_groups[0]["lr"] = lr
        for images, labels in DATA.open(CPU, 4, 5).train(0, "step", round):
            sgd.zero_grad()
            (exit_losses(network(images), labels) * torch.tensor(coefficients)).sum().backward()
            sgd.step()
    return network


def vector_of(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_a_round_is_an_epoch_of_joint_sgd():
    outcome = make().run(STATE, 1)
    expected = by_hand([1], [0.1])
    assert_close(torch.from_numpy(outcome.state.vector), vector_of(expected))
    for name, value in expected.named_buffers():
        assert_close(torch.from_numpy(outcome.state.buffers[name]), value)


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
    whole = make()
    middle = whole.run(STATE, 1).state
    arrays = copy.deepcopy(whole.arrays())
    expected = whole.run(middle, 2).state.sha256()
    second = make()
    arrays["momentum"].flags.writeable = False
    second.restore(arrays)
    assert second.run(middle, 2).state.sha256() == expected
    assert make().run(middle, 2).state.sha256() != expected


def test_arrays_stand_when_the_run_goes_on():
    step = make()
    middle = step.run(STATE, 1).state
    arrays = step.arrays()
    before = arrays["momentum"].copy()
    step.run(middle, 2)
    assert np.array_equal(arrays["momentum"], before)


def test_without_momentum_there_is_nothing_to_store():
    step = make(optim=OptimConfig(momentum=0.0))
    assert step.arrays() == {}
    step.run(STATE, 1)
    assert step.arrays() == {}
    step.restore({})


def test_equal_arguments_give_equal_bits():
    assert make().run(STATE, 1).state.sha256() == make().run(STATE, 1).state.sha256()
    assert make().run(STATE, 1).state.sha256() != make(seed=1).run(STATE, 1).state.sha256()


def test_the_state_is_not_written():
    state = bind().state()
    before = state.sha256()
    for array in (state.vector, *state.buffers.values()):
        array.flags.writeable = False
    make().run(state, 1)
    assert state.sha256() == before


def test_outcome():
    outcome = make().run(STATE, 1)
    assert make().passes == 1
    assert outcome.fusion is None
    assert set(outcome.seconds) == {"train"}
    assert len(outcome.train.loss) == 3


def test_a_loss_that_is_not_finite_names_method_round_and_step():
    vector = np.full_like(STATE.vector, np.nan)
    with pytest.raises(NonFiniteError, match=r"^sgd, round 3: the loss of exit 1 became nan at step 1;"):
        make().run(NetworkState(vector, STATE.buffers), 3)
