import math

import numpy as np
import pytest
import torch
from tiny_network import (
    Tied,
    bind,
    dense_fuse,
    owners_of,
    pass_over,
    random_batches,
    random_vectors,
    run_config,
    segment_numbers,
    three_exits,
)
from torch.func import functional_call
from torch.testing import assert_close

from raygf.config.run import FusionConfig
from raygf.errors import NonFiniteError
from raygf.fusion.fuse import FusionTask, fuse, fusion_weights
from raygf.fusion.fusion_pass import exit_entropies
from raygf.fusion.learned import LearnedFusion, carry
from raygf.training.losses import exit_losses
from raygf.training.network import as_tensor
from raygf.training.space import Segments

KINDS = ("tensor", "channel", "network")
BATCHES = random_batches(3)


class Case:
    """A rule for a tiny network, and random deltas."""

    def __init__(self, build=three_exits, owned=None, **fusion):
        self.bound = bind(build)
        self.config = FusionConfig(**fusion)
        self.segments = Segments(self.config.segments, self.bound.space)
        tensors = owners_of(self.bound) if owned is None else owned
        self.owned = self.segments.spread(tensors)
        self.run_config = run_config(fusion=self.config)
        self.rule = LearnedFusion(self.run_config, self.segments, tensors, "cpu")
        self.state = self.bound.state()
        self.base = as_tensor(self.state.vector)
        self.deltas = random_vectors(len(tensors), self.bound.space.size, 0.3, seed=5)
        self.coefficients = torch.ones(len(tensors))

    def buffers(self):
        return self.bound.buffer_copies()

    def task(self, batches=BATCHES, lr=0.1):
        """What a rule is called with."""
        run = pass_over(batches, self.run_config, self.bound, self.state, self.deltas, self.coefficients)
        return FusionTask(self.base, self.deltas, lr, "fusion pass, round 3"), run

    def fit(self, batches=BATCHES, lr=0.1):
        return self.rule.fit(*self.task(batches, lr))

    def dense(self, eta):
        """The fused vector, every step written out."""
        shapes = [slot.shape for slot in self.bound.space.slots]
        alpha = self.config.epsilon * fusion_weights(eta, self.owned, self.config.normalise)
        return dense_fuse(self.base, self.deltas, alpha, segment_numbers(self.config.segments, shapes))

    def loss(self, vector, batch):
        """F at ``vector``."""
        self.bound.network.train()
        named = {**self.bound.space.views(vector), **self.buffers()}
        losses = exit_losses(functional_call(self.bound.network, named, (batch[0],)), batch[1])
        return torch.stack(losses) @ self.coefficients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalise", ["softmax", "sigmoid", "free"])
@pytest.mark.parametrize(("epsilon", "coefficients"), [(1.0, (1.0, 1.0, 1.0)), (0.3, (0.01, 0.3, 1.0))])
def test_gradient_equals_that_of_the_dense_formula(kind, normalise, epsilon, coefficients):
    case = Case(segments=kind, normalise=normalise, epsilon=epsilon)
    case.coefficients = torch.tensor(coefficients)
    eta = case.rule.eta.clone().requires_grad_()
    case.fit(batches=BATCHES[:1])
    gradient = case.rule.first / 0.1  # Adam's first moment after one step
    case.loss(case.dense(eta), BATCHES[0]).backward()
    assert eta.grad.abs().max() > 1e-3
    assert_close(gradient, eta.grad, atol=1e-6, rtol=1e-4)


def test_two_passes_are_one_run_of_adam():
    case, other = Case(), random_batches(3, seed=1)
    case.fit()
    case.fit(other)
    eta = torch.nn.Parameter(torch.ones(3, case.segments.count))
    adam = torch.optim.Adam([eta], 0.1)
    for batch in [*BATCHES, *other]:
        adam.zero_grad()
        alpha = fusion_weights(eta, case.owned)
        case.loss(fuse(case.base, case.deltas, alpha, case.segments), batch).backward()
        adam.step()
    assert_close(case.rule.eta, eta.detach())
    assert_close(case.rule.first, adam.state[eta]["exp_avg"])
    assert_close(case.rule.second, adam.state[eta]["exp_avg_sq"])
    assert case.rule.steps == 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalise", ["softmax", "sigmoid"])
def test_a_useful_delta_outweighs_a_harmful_one(kind, normalise):
    """Exit 1 brings a step downhill, exit 2 the same step uphill, exit 3 nothing."""
    case = Case(owned=torch.ones(3, 15, dtype=torch.bool), segments=kind, normalise=normalise)
    vector = case.base.clone().requires_grad_()
    case.loss(vector, BATCHES[0]).backward()
    downhill = -0.03 * vector.grad
    case.deltas = [downhill, -downhill, torch.zeros_like(downhill)]
    case.fit(batches=BATCHES[:1])
    alpha = case.rule.weights(case.rule.eta)
    moved = case.segments.slot_means(alpha)
    assert (alpha[0] >= alpha[1]).all()
    assert (moved[0] > moved[2]).all() and (moved[2] > moved[1]).all()


@pytest.mark.parametrize("normalise", ["softmax", "sigmoid"])
def test_logits_that_change_nothing_stay(normalise):
    """η of exits that don't own a segment, and of a segment's only owner, has no gradient: it stays 1."""
    case = Case(normalise=normalise)
    case.fit(batches=BATCHES * 3)
    stays = ~case.owned | (case.owned.sum(dim=0) == 1)
    assert (case.rule.eta[stays] == 1).all()
    assert (case.rule.eta[~stays] != 1).any()


def test_the_entropy_of_the_outputs_is_fitted_without_labels():
    """By hand, and three steps of free weights, from the plain mean on, lower that of the batch."""
    even, sure = torch.zeros(2, 4), torch.tensor([[0.0, -1e3, -1e3, 0.0]])
    found = torch.stack(exit_entropies([even, sure, torch.tensor([[0.0, math.log(3)]])], torch.zeros(1)))
    quarters = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert_close(found, torch.tensor([math.log(4), math.log(2), quarters]))
    case, other = (Case(objective="entropy", normalise="free") for _ in range(2))
    assert_close(case.rule.weights(case.rule.eta), case.owned / case.owned.sum(dim=0))
    before, _, after = (sum(case.fit(BATCHES[:1] * n, lr).score.loss) for n, lr in ((1, 0), (3, 0.1), (1, 0)))
    assert after < before < 3 * math.log(3)
    for n, lr in ((1, 0), (3, 0.1), (1, 0)):
        other.fit([(images, 2 - labels) for images, labels in BATCHES[:1] * n], lr)
    assert torch.equal(case.rule.eta, other.rule.eta)


def test_a_merge_uses_the_fitted_weights_and_the_next_round_their_average():
    case, plain = Case(epsilon=0.25, ema=0.9), Case(epsilon=0.25)
    plain.fit()
    fitted, fused = plain.rule.eta, case.rule.fuse(*case.task())
    assert torch.equal(case.rule.fitted, fitted)
    assert_close(case.rule.eta, 0.9 + 0.1 * fitted)
    assert_close(fused.alpha, fusion_weights(fitted, case.owned))
    assert_close(fused.vector, case.dense(fitted))
    assert not fused.vector.requires_grad
    ends = [carry(torch.tensor(1.0), torch.tensor(2.0), ema).item() for ema in (1.0, 0.75, 0.0)]
    assert ends == [1.0, 1.25, 2.0]


def test_statistics_and_scores_are_those_of_a_train_mode_pass_of_the_fused_network():
    """Without a learning rate the weights stay equal, so the pass can be repeated by hand."""
    case = Case()
    batches = [BATCHES[0], (BATCHES[1][0][:2], BATCHES[1][1][:2])]
    fused = case.rule.fuse(*case.task(batches, lr=0.0))
    by_hand, hits = bind(), 0
    by_hand.vector.copy_(fused.vector)
    by_hand.network.train()
    with torch.no_grad():
        for images, labels in batches:
            hits = hits + (torch.stack(by_hand.network(images)).argmax(dim=2) == labels).sum(dim=1)
    assert fused.buffers.keys() == dict(by_hand.network.named_buffers()).keys()
    for name, value in by_hand.network.named_buffers():
        assert torch.equal(fused.buffers[name], value), name
    total = [case.loss(fused.vector, batch).item() for batch in batches]
    assert sum(fused.score.loss) == pytest.approx((6 * total[0] + 2 * total[1]) / 8, rel=1e-5)
    assert fused.score.accuracy == pytest.approx((hits / 8).tolist())
    assert torch.equal(case.rule.eta, torch.ones(3, 15)) and case.rule.steps == 2


def test_inputs_are_only_read():
    case = Case()
    arrays = [vector.numpy().copy() for vector in (case.base, *case.deltas)]
    for array in arrays:
        array.flags.writeable = False
    case.base, *case.deltas = (as_tensor(array) for array in arrays)
    buffers = {name: array.copy() for name, array in case.state.buffers.items()}
    before = case.rule.arrays()
    kept = {name: array.copy() for name, array in before.items()}
    case.rule.fuse(*case.task())
    assert all(np.array_equal(array, buffers[name]) for name, array in case.state.buffers.items())
    assert all(np.array_equal(before[name], kept[name]) for name in kept)  # a checkpoint may be on its way


def test_a_pass_that_is_not_finite_changes_nothing_and_is_named():
    case = Case()
    with pytest.raises(NonFiniteError, match=r"^fusion pass, round 3: the loss of exit 1 .* at step 2"):
        case.fit(batches=[BATCHES[0], (BATCHES[1][0] * float("nan"), BATCHES[1][1])])
    assert torch.equal(case.rule.eta, torch.ones(3, 15)) and case.rule.steps == 0
    with pytest.raises(NonFiniteError, match=r"step, 1: the fusion weight of exit 1 in stages\.0\.0\.weight"):
        case.fit(batches=BATCHES[:1], lr=float("inf"))


def test_frozen_parameters_travel_with_the_buffers():
    def frozen():
        network = three_exits()
        network.stages[1][0].weight.requires_grad_(False)
        return network

    case = Case(frozen)
    fused = case.rule.fuse(*case.task())
    assert torch.equal(fused.buffers["stages.1.0.weight"], case.bound.network.stages[1][0].weight)


def test_tied_weights_can_be_fused():
    case, by_hand = Case(Tied), bind(Tied)
    fused = case.rule.fuse(*case.task(lr=0.0))
    by_hand.vector.copy_(fused.vector)
    with torch.no_grad():
        losses = torch.tensor([exit_losses(by_hand.network(images), labels) for images, labels in BATCHES])
    assert_close(torch.tensor(fused.score.loss), losses.mean(0), check_dtype=False)
