from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_network import (
    Tied,
    bind,
    dense_fuse,
    random_batches,
    random_vectors,
    segment_numbers,
    three_exits,
)
from torch.func import functional_call
from torch.testing import assert_close

from raygf.config.run import FusionConfig
from raygf.errors import NonFiniteError
from raygf.fusion.fuse import carry, fuse, fusion_weights
from raygf.fusion.learned import Fit, FusionFitter, FusionState
from raygf.training.losses import exit_losses
from raygf.training.network import as_tensor
from raygf.training.space import Segments, find_ownership

KINDS = ("tensor", "channel", "network")
BATCHES = random_batches(3)


class Case:
    """A fitter for the tiny network, random deltas, and a start."""

    def __init__(self, kind: str = "tensor", normalise: str = "softmax", epsilon: float = 1.0) -> None:
        self.bound = bind()
        self.config = FusionConfig(segments=kind, normalise=normalise, epsilon=epsilon)
        self.segments = Segments(kind, self.bound.space)
        tensors = find_ownership(self.bound.network, torch.zeros(1, 1, 4, 4), self.bound.space)
        self.owned = self.segments.spread(tensors)
        self.fitter = FusionFitter(self.bound, self.segments, self.owned, self.config)
        self.base = self.bound.vector.clone()
        self.deltas = random_vectors(3, self.bound.space.size, 0.3, seed=5)
        self.start = FusionState.initial(3, self.segments.count)

    def buffers(self) -> dict[str, torch.Tensor]:
        return self.bound.buffer_tensors(self.bound.buffer_arrays())

    def fit(self, state: FusionState | None = None, batches=BATCHES, lr: float = 0.1) -> Fit:
        state = self.start if state is None else state
        return self.fitter.fit(
            state, self.base, self.deltas, self.buffers(), batches, lr, "fusion pass, round 3"
        )

    def naive_loss(self, eta: torch.Tensor, batch) -> torch.Tensor:
        """F at the fused weights, every step written out densely."""
        shapes = [slot.shape for slot in self.bound.space.slots]
        alpha = self.config.epsilon * fusion_weights(eta, self.owned, self.config.normalise)
        fused = dense_fuse(self.base, self.deltas, alpha, segment_numbers(self.config.segments, shapes))
        self.bound.network.train()
        named = {**self.bound.space.views(fused), **self.buffers()}
        return exit_losses(functional_call(self.bound.network, named, (batch[0],)), batch[1]).sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalise", ["softmax", "sigmoid"])
@pytest.mark.parametrize("epsilon", [1.0, 0.3])
def test_gradient_equals_that_of_the_dense_formula(kind, normalise, epsilon):
    case = Case(kind, normalise, epsilon)
    gradient = case.fit(batches=BATCHES[:1]).state.first / 0.1  # Adam's first moment after one step
    eta = torch.ones(3, case.segments.count, requires_grad=True)
    case.naive_loss(eta, BATCHES[0]).backward()
    assert eta.grad.abs().max() > 1e-3
    assert_close(gradient, eta.grad, atol=1e-6, rtol=1e-4)


def test_two_passes_with_carried_state_are_one_run_of_adam():
    case = Case()
    once = case.fit()
    twice = case.fit(once.state, random_batches(3, seed=1))
    eta = torch.nn.Parameter(torch.ones(3, case.segments.count))
    adam = torch.optim.Adam([eta], 0.1)
    for images, labels in [*BATCHES, *random_batches(3, seed=1)]:
        adam.zero_grad()
        fused = fuse(case.base, case.deltas, fusion_weights(eta, case.owned), case.segments)
        named = {**case.bound.space.views(fused), **case.buffers()}
        exit_losses(functional_call(case.bound.network, named, (images,)), labels).sum().backward()
        adam.step()
    assert_close(twice.state.eta, eta.detach())
    assert_close(twice.state.first, adam.state[eta]["exp_avg"])
    assert_close(twice.state.second, adam.state[eta]["exp_avg_sq"])
    assert twice.state.steps == 6


def test_eta_learns_in_every_round_with_its_average_in_between():
    """In the published program, η dropped out of Adam after the first epoch."""
    case, state = Case(), FusionState.initial(3, 15)
    for round in range(1, 5):
        fitted = case.fit(state).state
        assert fitted.steps == 3 * round
        assert (fitted.eta - state.eta).abs().max() > 1e-3
        assert not torch.equal(fitted.first, state.first)
        eta = carry(state.eta, fitted.eta, 0.9)
        assert not torch.equal(eta, state.eta)
        state = FusionState(eta, fitted.first, fitted.second, fitted.steps)


def test_fitting_lowers_the_loss():
    case = Case()
    eta = case.fit(batches=BATCHES * 6).state.eta
    before = sum(case.naive_loss(case.start.eta, batch) for batch in BATCHES)
    assert sum(case.naive_loss(eta, batch) for batch in BATCHES) < before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalise", ["softmax", "sigmoid"])
def test_a_useful_delta_outweighs_a_harmful_one(kind, normalise):
    """Exit 1 brings a step downhill, exit 2 the same step uphill, exit 3 nothing."""
    case = Case(kind, normalise)
    vector = case.base.clone().requires_grad_()
    named = {**case.bound.space.views(vector), **case.buffers()}
    case.bound.network.train()
    exit_losses(functional_call(case.bound.network, named, (BATCHES[0][0],)), BATCHES[0][1]).sum().backward()
    downhill = -0.03 * vector.grad
    case.deltas = [downhill, -downhill, torch.zeros_like(downhill)]
    case.fitter = FusionFitter(case.bound, case.segments, torch.ones_like(case.owned), case.config)
    alpha = case.fitter.weights(case.fit(batches=BATCHES[:1]).state.eta)
    moved = case.segments.slot_means(alpha)
    assert (alpha[0] >= alpha[1]).all()
    assert (moved[0] > moved[2]).all() and (moved[2] > moved[1]).all()


def test_no_learning_rate_no_change():
    case = Case()
    fit = case.fit(lr=0.0)
    assert torch.equal(fit.state.eta, case.start.eta)
    assert fit.state.steps == 3
    assert fit.state.first.abs().max() > 0


def test_first_step_of_adam_is_as_long_as_the_learning_rate():
    case = Case()
    for lr in (0.1, 0.01):
        step = (case.fit(batches=BATCHES[:1], lr=lr).state.eta - 1).abs().max().item()
        assert step == pytest.approx(lr, rel=1e-3)


@pytest.mark.parametrize("normalise", ["softmax", "sigmoid"])
def test_logits_that_change_nothing_stay(normalise):
    """η of exits that don't own a segment, and of a segment's only owner, has no gradient: it stays 1."""
    case = Case("tensor", normalise)
    eta = case.fit(batches=BATCHES * 3).state.eta
    single = case.owned & (case.owned.sum(dim=0) == 1)
    assert torch.equal(eta[~case.owned], torch.ones_like(eta[~case.owned]))
    assert torch.equal(eta[single], torch.ones_like(eta[single]))


def test_inputs_are_not_written():
    case = Case()
    before = [case.base.clone(), *(delta.clone() for delta in case.deltas)]
    state = case.fit().state
    kept = copy.deepcopy(state)
    vector, grad = case.bound.vector.clone(), case.bound.grad.clone()
    case.fit(state)
    assert all(torch.equal(a, b) for a, b in zip([case.base, *case.deltas], before, strict=True))
    for field in ("eta", "first", "second"):
        assert torch.equal(getattr(state, field), getattr(kept, field))
    assert torch.equal(case.bound.vector, vector) and torch.equal(case.bound.grad, grad)
    assert torch.equal(case.start.eta, torch.ones(3, 15))


def test_the_networks_own_buffers_are_not_written():
    case = Case()
    before = case.bound.buffer_arrays()
    case.fit()
    after = case.bound.buffer_arrays()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_recalibrated_statistics_are_those_of_a_train_mode_pass_of_the_fused_network():
    case = Case()
    fit = case.fit(lr=0.0)
    by_hand = bind(three_exits)
    by_hand.vector.copy_(case.fitter.merge(case.base, case.deltas, case.start.eta))
    by_hand.network.train()
    with torch.no_grad():
        for images, _ in BATCHES:
            by_hand.network(images)
    expected = dict(by_hand.network.named_buffers())
    assert fit.buffers.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(fit.buffers[name], value), name
    assert fit.buffers["stages.0.1.num_batches_tracked"] == 3
    assert not torch.equal(fit.buffers["stages.2.1.running_mean"], torch.zeros(4))


def test_merge_uses_epsilon_and_has_no_graph():
    case = Case(epsilon=0.25)
    merged = case.fitter.merge(case.base, case.deltas, case.start.eta.clone().requires_grad_())
    shapes = [slot.shape for slot in case.bound.space.slots]
    alpha = 0.25 * fusion_weights(case.start.eta, case.owned)
    assert_close(merged, dense_fuse(case.base, case.deltas, alpha, segment_numbers("tensor", shapes)))
    assert not merged.requires_grad


def test_read_only_arrays_do():
    case = Case()
    plain = case.fit().state.eta
    arrays = [case.base.numpy().copy(), *(delta.numpy().copy() for delta in case.deltas)]
    for array in arrays:
        array.flags.writeable = False
    case.base, *case.deltas = (as_tensor(array) for array in arrays)
    assert torch.equal(case.fit().state.eta, plain)


def test_scores_are_means_over_the_pass():
    case = Case()
    batches = [BATCHES[0], (BATCHES[1][0][:2], BATCHES[1][1][:2])]
    fit = case.fit(batches=batches, lr=0.0)
    total = [case.naive_loss(case.start.eta, batch).item() for batch in batches]
    assert sum(fit.score.loss) == pytest.approx((6 * total[0] + 2 * total[1]) / 8, rel=1e-5)
    assert all(0 <= accuracy <= 1 for accuracy in fit.score.accuracy)


def test_a_loss_that_is_not_finite_names_pass_exit_and_step():
    case = Case()
    images = BATCHES[1][0] * float("nan")
    with pytest.raises(NonFiniteError, match=r"fusion pass, round 3: the loss of exit 1 .* at step 2"):
        case.fit(batches=[BATCHES[0], (images, BATCHES[1][1])])


def test_initial_state():
    state = FusionState.initial(2, 5)
    assert torch.equal(state.eta, torch.ones(2, 5))
    assert torch.equal(state.first, torch.zeros(2, 5)) and torch.equal(state.second, torch.zeros(2, 5))
    assert state.steps == 0
    state.first.add_(1)
    assert torch.equal(state.second, torch.zeros(2, 5))


def test_frozen_parameters_travel_with_the_buffers():
    def frozen():
        network = three_exits()
        network.stages[1][0].weight.requires_grad_(False)
        return network

    bound = bind(frozen)
    segments = Segments("tensor", bound.space)
    owned = find_ownership(bound.network, torch.zeros(1, 1, 4, 4), bound.space)
    fitter = FusionFitter(bound, segments, owned, FusionConfig())
    buffers = bound.buffer_tensors(bound.buffer_arrays())
    deltas = random_vectors(3, bound.space.size, 0.1)
    fit = fitter.fit(FusionState.initial(3, 14), bound.vector, deltas, buffers, BATCHES, 0.1, "here")
    assert torch.equal(fit.buffers["stages.1.0.weight"], bound.network.stages[1][0].weight)


def test_tied_weights_can_be_fused():
    bound = bind(Tied)
    segments = Segments("tensor", bound.space)
    owned = find_ownership(bound.network, torch.zeros(1, 1, 4, 4), bound.space)
    fitter = FusionFitter(bound, segments, owned, FusionConfig())
    deltas = random_vectors(2, bound.space.size, 0.1)
    buffers = bound.buffer_tensors(bound.buffer_arrays())
    start = FusionState.initial(2, segments.count)
    fit = fitter.fit(start, bound.vector, deltas, buffers, BATCHES, 0.0, "here")
    by_hand = bind(Tied)
    by_hand.vector.copy_(fitter.merge(bound.vector, deltas, start.eta))
    losses = [exit_losses(by_hand.network(images), labels) for images, labels in BATCHES]
    assert_close(torch.tensor(fit.score.loss), torch.stack(losses).mean(0).detach(), check_dtype=False)
