from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_network import CPU, bind, dataset, one_exit, plain, run_config, seeded, torch_epoch, vector_of
from torch.testing import assert_close

from raygf.config.run import LossConfig, OptimConfig, ResourceConfig
from raygf.data.splits import Split
from raygf.errors import NonFiniteError
from raygf.training.exit_trainer import ExitTrainer, LocalExecutor
from raygf.training.losses import exit_losses
from raygf.training.network import BoundNetwork, NetworkState

STATE = bind().state()
STEP = OptimConfig(momentum=0.0, weight_decay=0.0)
ONE_BATCH = dataset(train=8)


def trainer(model="three_exits", data=None, **changes):
    return ExitTrainer(run_config(model, **changes), dataset() if data is None else data)


def same(one, two):
    return (
        np.array_equal(one.delta, two.delta)
        and one.buffers.keys() == two.buffers.keys()
        and all(np.array_equal(one.buffers[name], two.buffers[name]) for name in one.buffers)
        and (one.loss, one.accuracy) == (two.loss, two.accuracy)
    )


@pytest.mark.parametrize("model", ["three_exits", "with_dropout"])
def test_equal_arguments_give_equal_bits_whatever_the_global_random_state(model):
    """In any order, from any trainer: so a retry and any schedule give the same result."""
    data = dataset(pad=1, flip=True)
    one = trainer(model, data)
    first = [one.train(STATE, exit, 3, 2) for exit in (0, 1, 2)]
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    again = [one.train(STATE, exit, 3, 2) for exit in (2, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(first[0], again[1]) and same(first[1], again[2]) and same(first[2], again[0])
    assert same(first[1], trainer(model, data).train(STATE, 1, 3, 2))


@pytest.mark.parametrize(("exit", "round", "seed"), [(0, 2, 0), (1, 1, 0), (0, 1, 1)])
def test_rounds_exits_and_seeds_see_the_images_in_different_orders(exit, round, seed):
    loss = LossConfig(aux=1.0)  # all exits' losses count alike: exits differ in nothing but their stream
    one, two = trainer(loss=loss).train(STATE, 0, 3, 1), trainer(loss=loss, seed=seed)
    assert not np.array_equal(one.delta, two.train(STATE, exit, 3, round).delta)


def test_an_exit_can_take_the_order_of_another():
    one = trainer(loss=LossConfig(aux=1.0))  # exits differ in nothing but their stream
    assert np.array_equal(one.train(STATE, 0, 3, 1, order=2).delta, one.train(STATE, 2, 3, 1).delta)
    assert same(one.train(STATE, 0, 3, 1, order=0), one.train(STATE, 0, 3, 1))


def test_delta_is_trained_minus_start():
    update, network = trainer().train(STATE, 1, 3, 1), bind().network
    sgd = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-3)
    torch_epoch(network, dataset().open(CPU, 4, 5).train(0, "exit", 1, 1), sgd, (0.1, 1.0, 0.1))
    assert_close(torch.from_numpy(update.delta), vector_of(network) - torch.from_numpy(STATE.vector))
    buffers = dict(network.named_buffers())
    for name, array in update.buffers.items():
        assert_close(torch.from_numpy(array), buffers[name])
    assert update.exit == 1 and update.momentum is None


@pytest.mark.parametrize("replicas", [(1,), (2,)])
def test_fisher_is_the_square_of_the_batches_gradients(replicas):
    """One batch of four, whole or in two shares; the step is the gradient times the learning rate."""
    resources = ResourceConfig(executor="local", replicas=replicas)
    one = trainer(data=dataset(train=4), optim=STEP, method="delta-fisher", resources=resources)
    update = one.train(STATE, 1, 3, 1)
    assert_close(
        torch.from_numpy(update.fisher), torch.from_numpy(update.delta / 0.1).square(), atol=1e-8, rtol=1e-3
    )
    assert trainer().train(STATE, 1, 3, 1).fisher is None


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
    optim = OptimConfig(weight_decay=0.0)
    update = trainer(loss=LossConfig(aux=0.0), optim=optim).train(STATE, 1, 3, 1)
    for name, part in bind().space.views(torch.from_numpy(update.delta)).items():
        assert part.any() != name.startswith(("heads.0", "heads.2", "stages.2")), name


def test_losses_are_weighed_by_lambda_and_sdns_coefficients():
    """One small step without momentum: a head moves as far as its loss counts."""
    optim = replace(STEP, lr=1e-2)

    def moved(exit, head, **loss):
        one = trainer(data=ONE_BATCH, batch_size=8, optim=optim, loss=LossConfig(**loss))
        delta = torch.from_numpy(one.train(STATE, exit, 3, 1).delta)
        return bind().space.views(delta)[f"heads.{head}.2.weight"]

    assert_close(moved(0, 2), 0.1 * moved(2, 2), atol=1e-7, rtol=1e-3)
    for head in (0, 2):  # the others' losses have the coefficient of the exit that trains
        assert_close(moved(0, head, coefficients="sdn"), 0.01 * moved(0, head), atol=1e-6, rtol=1e-2)


def test_the_learning_rate_decays_with_the_rounds():
    """All images in one batch: rounds differ in nothing but the rate (and the order of summation)."""
    one = trainer(data=ONE_BATCH, batch_size=8, optim=STEP)
    first, *later = [torch.from_numpy(one.train(STATE, 0, 3, round).delta) for round in (1, 2, 3, 4)]
    for delta, factor in zip(later, (1, 0.1, 0.01), strict=True):
        assert_close(delta, factor * first, atol=1e-6, rtol=1e-3)


def test_score_is_that_of_the_trained_exit():
    images, labels = next(iter(ONE_BATCH.open(CPU, 8, 8).train(0, "exit", 1, 2)))
    expected = exit_losses(bind().network.train()(images), labels)
    update = trainer(data=ONE_BATCH, batch_size=8, optim=replace(STEP, lr=1e-9)).train(STATE, 2, 3, 1)
    assert update.loss == pytest.approx(expected[2].item(), rel=1e-5)


def test_carried_momentum_continues_the_run():
    """One exit, two rounds: as one run of torch's SGD over both rounds' batches."""
    network = bind(one_exit).network
    one = trainer("one_exit", optim=OptimConfig(weight_decay=1e-3, milestones=(), carry_momentum=True))
    start = bind(one_exit).state()
    first = one.train(start, 0, 1, 1)
    middle = NetworkState(start.vector + first.delta, first.buffers)
    second = one.train(middle, 0, 1, 2, first.momentum)
    sgd = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-3)
    for round in (1, 2):
        torch_epoch(network, dataset().open(CPU, 4, 5).train(0, "exit", round, 0), sgd)
    found = torch.from_numpy(middle.vector + second.delta)
    assert_close(found, vector_of(network), atol=1e-5, rtol=1e-4)
    assert not np.allclose(second.delta, one.train(middle, 0, 1, 2).delta, atol=1e-3)


def test_a_loss_that_is_not_finite_is_named_and_leaves_the_trainer_as_good_as_new():
    vector, one = STATE.vector.copy(), trainer(rounds=9)
    vector[-1] = np.nan  # the bias of the last head
    message = "^metagf, exit 2, round 7: the loss of exit 3 became nan at step 1;"
    with pytest.raises(NonFiniteError, match=message):
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


def replicated(model, replicas, **changes):
    return trainer(model, resources=ResourceConfig(executor="local", replicas=replicas), **changes)


def test_replicas_agree_with_one_where_nothing_is_normalised():
    state = BoundNetwork(seeded(plain), CPU).state()
    one, two = trainer("plain"), replicated("plain", (1, 2, 1))
    alone, shared = (t.train(state, 1, 3, 1) for t in (one, two))
    assert_close(shared.delta, alone.delta, rtol=1e-4, atol=1e-6)
    assert not same(shared, alone)
    assert shared.loss == pytest.approx(alone.loss, rel=1e-5) and shared.accuracy == alone.accuracy
    assert same(one.train(state, 0, 3, 1), two.train(state, 0, 3, 1))  # it has one replica


def test_replicas_normalise_apart_and_their_gradients_and_statistics_are_averaged():
    data = dataset(train=4)
    update = replicated("three_exits", (2,), data=data, optim=STEP, loss=LossConfig(aux=0.0)).train(
        STATE, 0, 3, 1
    )
    ((images, labels),) = data.open(CPU, 4, 5).train(0, "exit", 1, 0)
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        bound = bind()
        bound.load(STATE)
        bound.network.train()
        exit_losses(bound.network(images[half]), labels[half])[0].backward()
        halves.append((bound.grad.clone(), bound.buffer_arrays()))
    (one, first), (two, second) = halves
    assert_close(torch.tensor(update.delta), -STEP.lr * (one + two) / 2)
    name = "stages.0.1.running_var"
    assert not np.array_equal(first[name], second[name])
    np.testing.assert_allclose(update.buffers[name], (first[name] + second[name]) / 2, rtol=1e-6)


def test_replicas_have_random_draws_of_their_own():
    """The two shares of every batch are equal, and only dropout tells them apart."""
    once = dataset(train=2)
    twice = replace(
        once, train=Split(*(np.concatenate([a, a]) for a in (once.train.images, once.train.labels)))
    )
    shares = []

    def losses(logits, labels):
        shares.append(torch.stack(list(logits)).detach())
        return exit_losses(logits, labels)

    both = replicated("with_dropout", (2,), data=twice)
    both._losses = losses
    first = both.train(STATE, 0, 3, 1)
    assert len(shares) == 2 and not torch.equal(shares[0].sort(1)[0], shares[1].sort(1)[0])
    assert same(first, both.train(STATE, 0, 3, 1))
