from __future__ import annotations

import math

import pytest
import torch
from tiny_network import bind, random_batches, seeded, three_exits
from torch.testing import assert_close

from raygf.config.run import OptimConfig
from raygf.errors import NonFiniteError
from raygf.records import ExitScore
from raygf.training.losses import exit_losses, mean_score, require_finite
from raygf.training.sgd import FlatSGD, train_epoch

BATCHES = random_batches(5)


def by_hand(optim: OptimConfig, lr: float) -> torch.nn.Module:
    """The same epoch with separate parameters and torch's own SGD."""
    network = seeded(three_exits).train()
    sgd = torch.optim.SGD(network.parameters(), lr, optim.momentum, weight_decay=optim.weight_decay)
    for images, labels in BATCHES:
        sgd.zero_grad()
        exit_losses(network(images), labels).sum().backward()
        sgd.step()
    return network


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_an_epoch_equals_torchs_sgd(momentum, weight_decay):
    optim, bound = OptimConfig(momentum=momentum, weight_decay=weight_decay), bind()
    result = train_epoch(
        bound, FlatSGD(bound, optim, 0.05), BATCHES, lambda losses: losses.sum().backward(), "here"
    )
    expected = by_hand(optim, 0.05).state_dict()
    assert result.steps == 5
    for name, tensor in bound.network.state_dict().items():
        assert_close(tensor, expected[name], msg=name)
    assert not torch.equal(bound.vector, bind().vector)


def test_momentum_handed_over_continues_the_run():
    optim = OptimConfig(weight_decay=0.01)
    whole, parts = bind(), bind()
    backward = lambda losses: losses.sum().backward()  # noqa: E731
    train_epoch(whole, FlatSGD(whole, optim, 0.05), BATCHES, backward, "here")
    first = FlatSGD(parts, optim, 0.05)
    assert first.momentum is None
    train_epoch(parts, first, BATCHES[:2], backward, "here")
    handed, second = first.momentum.clone(), FlatSGD(parts, optim, 0.05)
    second.momentum = handed
    train_epoch(parts, second, BATCHES[2:], backward, "here")
    assert torch.equal(parts.vector, whole.vector)
    assert torch.equal(handed, first.momentum)  # the setter copies: the old buffer is not written


def test_without_momentum_there_is_none():
    bound = bind()
    sgd = FlatSGD(bound, OptimConfig(momentum=0.0), 0.05)
    train_epoch(bound, sgd, BATCHES, lambda losses: losses.sum().backward(), "here")
    assert sgd.momentum is None


def test_zero_grad_keeps_the_memory():
    bound = bind()
    bound.grad.fill_(3)
    place = bound.grad.data_ptr()
    FlatSGD(bound, OptimConfig(), 0.1).zero_grad()
    assert not bound.grad.any() and bound.grad.data_ptr() == place
    assert next(bound.network.parameters()).grad.data_ptr() == place


def test_scores_are_those_of_the_training_batches():
    bound, optim = bind(), OptimConfig(lr=1e-9, momentum=0, weight_decay=0)
    batches = [BATCHES[0], (BATCHES[1][0][:2], BATCHES[1][1][:2])]
    result = train_epoch(
        bound, FlatSGD(bound, optim, 1e-9), batches, lambda losses: losses.sum().backward(), "here"
    )
    network = seeded(three_exits).train()
    with torch.no_grad():
        one, two = (exit_losses(network(images), labels) for images, labels in batches)
    assert result.score.loss == pytest.approx(((6 * one + 2 * two) / 8).tolist(), rel=1e-5)


def test_training_switches_to_train_mode():
    bound = bind()
    bound.network.eval()
    train_epoch(
        bound, FlatSGD(bound, OptimConfig(), 0.1), BATCHES[:1], lambda losses: losses.sum().backward(), "here"
    )
    assert bound.network.training
    assert bound.network.stages[0][1].num_batches_tracked == 1


def test_mean_score_weighs_batches_by_their_images():
    losses, hits = torch.tensor([[1.0, 2.0], [4.0, 8.0]]), torch.tensor([[3, 0], [1, 1]])
    assert mean_score(losses, hits, [3, 1]) == ExitScore((1.75, 3.5), (1.0, 0.25))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_loss_is_named(bad):
    history = torch.zeros(4, 3)
    history[1, 2] = history[2, 0] = bad
    with pytest.raises(
        NonFiniteError, match=r"^exit 2, round 7: the loss of exit 3 became .* at step 2;"
    ) as e:
        require_finite(history, "", "exit 2, round 7")
    assert "optim.lr" in str(e.value)


def test_a_bad_weight_is_named():
    with pytest.raises(NonFiniteError, match=r"^here: a weight became .* last step, 4: stem\.weight; "):
        require_finite(torch.zeros(4, 1), "stem.weight", "here")


def test_finite_values_pass():
    require_finite(torch.zeros(2, 2), "", "here")
