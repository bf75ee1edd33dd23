from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_network import CPU, bind, dataset, one_exit, run_config, three_exits
from torch.testing import assert_close

from raygf.config.run import LossConfig, OptimConfig
from raygf.errors import NonFiniteError
from raygf.training.exit_trainer import ExitTrainer, ExitUpdate, LocalExecutor
from raygf.training.losses import exit_losses
from raygf.training.network import NetworkState

STATE = bind().state()
PLAIN = OptimConfig(weight_decay=0.0)


def trainer(model: str = "three_exits", data=None, **changes) -> ExitTrainer:
    return ExitTrainer(run_config(model, **changes), dataset() if data is None else data)


def same(one: ExitUpdate, two: ExitUpdate) -> bool:
    return (
        np.array_equal(one.delta, two.delta)
        and one.buffers.keys() == two.buffers.keys()
        and all(np.array_equal(one.buffers[name], two.buffers[name]) for name in one.buffers)
        and (one.loss, one.accuracy) == (two.loss, two.accuracy)
    )


def part(delta: np.ndarray, name: str) -> torch.Tensor:
    return bind().space.views(torch.from_numpy(delta))[name]


@pytest.mark.parametrize("model", ["three_exits", "with_dropout"])
def test_equal_arguments_give_equal_bits(model):
    """In any order, from any trainer: so a retry and any schedule give the same result."""
    data = dataset(pad=1, flip=True)
    one = trainer(model, data)
    first = [one.train(STATE, exit, 3, 2) for exit in (0, 1, 2)]
    again = [one.train(STATE, exit, 3, 2) for exit in (2, 0, 1)]
    assert same(first[0], again[1]) and same(first[1], again[2]) and same(first[2], again[0])
    assert same(first[1], trainer(model, data).train(STATE, 1, 3, 2))


def test_the_global_random_state_neither_matters_nor_changes():
    one = trainer("with_dropout")
    torch.manual_seed(1)
    first = one.train(STATE, 0, 3, 1)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert same(first, one.train(STATE, 0, 3, 1))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("change", ["round", "exit", "seed"])
def test_rounds_exits_and_seeds_see_the_images_in_different_orders(change):
    loss = LossConfig(aux=1.0)  # all exits' losses count alike: exits differ in nothing but their stream
    one = trainer(loss=loss).train(STATE, 0, 3, 1)
    if change == "round":
        two = trainer(loss=loss).train(STATE, 0, 3, 2)
    elif change == "exit":
        two = trainer(loss=loss).train(STATE, 1, 3, 1)
    else:
        two = trainer(loss=loss, seed=1).train(STATE, 0, 3, 1)
    assert not np.array_equal(one.delta, two.delta)


def test_delta_is_trained_minus_start():
    config = run_config("three_exits")
    update = trainer().train(STATE, 1, 3, 1)
    network = bind()
    network.load(STATE)
    sgd = torch.optim.SGD(network.network.parameters(), 0.1, 0.9, weight_decay=1e-3)
    batches = dataset().open(CPU, 4, 5).train(config.seed, "exit", 1, 1)
    network.network.train()
    for images, labels in batches:
        sgd.zero_grad()
        losses = exit_losses(network.network(images), labels)
        (0.1 * losses[0] + losses[1] + 0.1 * losses[2]).backward()
        sgd.step()
    trained = torch.cat([p.detach().flatten() for p in network.network.parameters()])
    assert_close(torch.from_numpy(update.delta), trained - torch.from_numpy(STATE.vector))
    buffers = dict(network.network.named_buffers())
    for name, array in update.buffers.items():
        assert_close(torch.from_numpy(array), buffers[name])
    assert update.exit == 1 and update.momentum is None


def test_arguments_are_only_read_and_the_update_owns_its_memory():
    state, momentum = bind(seed=4).state(), np.ones(393, np.float32)
    before = state.sha256()
    for array in (momentum, state.vector, *state.buffers.values()):
        array.flags.writeable = False
    one = trainer(optim=OptimConfig(carry_momentum=True))
    first = one.train(state, 0, 3, 1, momentum)
    kept = [array.copy() for array in (first.delta, first.momentum, *first.buffers.values())]
    one.train(state, 1, 3, 1, momentum)
    assert state.sha256() == before and (momentum == 1).all()
    now = (first.delta, first.momentum, *first.buffers.values())
    assert all(np.array_equal(a, b) for a, b in zip(kept, now, strict=True))


def test_without_aux_the_other_heads_and_deeper_stages_do_not_move():
    update = trainer(loss=LossConfig(aux=0.0), optim=PLAIN).train(STATE, 1, 3, 1)
    for name in bind().space.names:
        moved = bool(part(update.delta, name).any())
        unused = name.startswith(("heads.0", "heads.2", "stages.2"))
        assert moved is not unused, name


def test_losses_are_weighed_by_lambda_and_sdns_coefficients():
    """One small step without momentum: a head moves as far as its loss counts."""
    optim = OptimConfig(lr=1e-2, momentum=0.0, weight_decay=0.0)

    def moved(exit, head, **loss):
        one = trainer(data=dataset(train=8), batch_size=8, optim=optim, loss=LossConfig(**loss))
        return part(one.train(STATE, exit, 3, 1).delta, f"heads.{head}.2.weight")

    assert_close(moved(0, 2), 0.1 * moved(2, 2), atol=1e-7, rtol=1e-3)
    assert_close(moved(0, 0, coefficients="sdn"), 0.01 * moved(0, 0), atol=1e-6, rtol=1e-2)


def test_the_learning_rate_decays_with_the_rounds():
    """All images in one batch: rounds differ in nothing but the rate (and the order of summation)."""
    optim = OptimConfig(lr=0.1, momentum=0.0, weight_decay=0.0)
    one = trainer(data=dataset(train=8), batch_size=8, optim=optim)
    first, *later = [torch.from_numpy(one.train(STATE, 0, 3, round).delta) for round in (1, 2, 3, 4)]
    for delta, factor in zip(later, (1, 0.1, 0.01), strict=True):
        assert_close(delta, factor * first, atol=1e-6, rtol=1e-3)


def test_score_is_that_of_the_trained_exit():
    optim = OptimConfig(lr=1e-9, momentum=0.0, weight_decay=0.0)
    data = dataset(train=8)
    network = bind(three_exits).network.train()
    images, labels = next(iter(data.open(CPU, 8, 8).train(0, "exit", 1, 2)))
    expected = exit_losses(network(images), labels)
    update = trainer(data=data, batch_size=8, optim=optim).train(STATE, 2, 3, 1)
    assert update.loss == pytest.approx(expected[2].item(), rel=1e-5)


def test_carried_momentum_continues_the_run():
    """One exit, two rounds: as one run of torch's SGD over both rounds' batches."""
    optim = OptimConfig(weight_decay=1e-3, milestones=(), carry_momentum=True)
    start = bind(one_exit).state()
    one = trainer("one_exit", optim=optim)
    first = one.train(start, 0, 1, 1)
    middle = NetworkState(start.vector + first.delta, first.buffers)
    second = one.train(middle, 0, 1, 2, first.momentum)
    reference = bind(one_exit)
    sgd = torch.optim.SGD(reference.network.parameters(), 0.1, 0.9, weight_decay=1e-3)
    reference.network.train()
    for round in (1, 2):
        for images, labels in dataset().open(CPU, 4, 5).train(0, "exit", round, 0):
            sgd.zero_grad()
            exit_losses(reference.network(images), labels).sum().backward()
            sgd.step()
    trained = torch.cat([p.detach().flatten() for p in reference.network.parameters()])
    assert_close(torch.from_numpy(middle.vector + second.delta), trained, atol=1e-5, rtol=1e-4)
    assert not np.allclose(second.delta, one.train(middle, 0, 1, 2).delta, atol=1e-3)


def test_a_loss_that_is_not_finite_is_named_and_leaves_the_trainer_as_good_as_new():
    vector, one = STATE.vector.copy(), trainer(rounds=9)
    vector[-1] = np.nan  # the bias of the last head
    with pytest.raises(
        NonFiniteError, match=r"^metagf, exit 2, round 7: the loss of exit 3 became nan at step 1;"
    ):
        one.train(replace(STATE, vector=vector), 1, 3, 7)
    assert same(one.train(STATE, 1, 3, 1), trainer(rounds=9).train(STATE, 1, 3, 1))


def test_the_local_executor_trains_exits_in_order_each_with_its_own_momentum():
    config = run_config(optim=OptimConfig(carry_momentum=True))
    executor, reference = LocalExecutor(config, dataset()), ExitTrainer(config, dataset())
    momenta = [update.momentum for update in executor.train(STATE, 1, [None] * 3).updates]
    trained = executor.train(STATE, 2, momenta)
    executor.close()
    assert [update.exit for update in trained.updates] == [0, 1, 2]
    for exit, update in enumerate(trained.updates):
        assert same(update, reference.train(STATE, exit, 3, 2, momenta[exit]))
    assert trained.train_s == sum(update.seconds for update in trained.updates) > 0
    assert (trained.broadcast_s, trained.wait_s, trained.notes) == (0, 0, ())
