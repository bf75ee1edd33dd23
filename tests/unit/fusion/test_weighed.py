"""Deltas fused without learning."""

import pytest
import torch
from tiny_network import (
    bind,
    buffers_after,
    owners_of,
    pass_over,
    random_batches,
    random_vectors,
    run_config,
    setting_of,
)
from torch.testing import assert_close

from raygf.config.run import FusionConfig
from raygf.errors import NonFiniteError
from raygf.fusion.fuse import FusionTask
from raygf.fusion.weighed import WeighedFusion, owner_shares
from raygf.methods.registry import WEIGHTINGS, make_weighting
from raygf.training.space import Segments

OWNED = owners_of(bind())
BATCHES = random_batches()


def fuse(name, deltas, kind="tensor", epsilon=1.0):
    bound = bind()
    config = run_config(fusion=FusionConfig(epsilon=epsilon))
    weighting = make_weighting(name, setting_of(bound))
    rule = WeighedFusion(config, Segments(kind, bound.space), OWNED, "cpu", weighting)
    torch.manual_seed(0)
    state = bound.state()
    task = FusionTask(bound.tensor(state.vector), deltas, 0.1, "test")
    fused = rule.fuse(task, pass_over(BATCHES, config, bound, state, deltas))
    bound.load(state)
    return bound, fused


def test_shares_sum_to_one_over_the_owners():
    weights = torch.tensor([3.0, 1.0, -0.5])
    owned = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    expected = torch.tensor([[3 / 3.5, 0, 1, 0], [1 / 3.5, 2, 0, 0], [-0.5 / 3.5, -1, 0, 0]])
    assert_close(owner_shares(weights, owned), expected)
    for cancels in ([0.0, 0.0, 1.0], [1.0, -1.0, 0.0], [-2.0, 1.0, 0.0]):  # the owners' mean is taken
        found = owner_shares(torch.tensor(cancels), torch.tensor([[True], [True], [False]]))
        assert_close(found, torch.tensor([[0.5], [0.5], [0.0]]))


def test_the_mean_is_the_mean_of_the_owners_deltas():
    deltas = random_vectors(3, bind().space.size)
    bound, fused = fuse("mean", deltas)
    for slot, owners in zip(bound.space.slots, OWNED.T, strict=True):
        owning = [d[slot.start : slot.stop] for d, owns in zip(deltas, owners, strict=True) if owns]
        expected = bound.vector[slot.start : slot.stop] + torch.stack(owning).mean(dim=0)
        assert_close(fused.vector[slot.start : slot.stop], expected)


@pytest.mark.parametrize("name", ["mean", *WEIGHTINGS])
def test_equal_deltas_give_that_delta(name):
    """Of tensors that all own; where fewer do, what non-owners changed does not count."""
    delta = 0.01 * random_vectors(1, bind().space.size)[0]
    bound, fused = fuse(name, [delta.clone() for _ in range(3)])
    assert_close(fused.vector, bound.vector + delta, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mean", "mgda", "pcgrad"])
@pytest.mark.parametrize("kind", ["tensor", "channel"])
def test_epsilon_scales_the_step(name, kind):
    deltas = random_vectors(3, bind().space.size)
    bound, whole = fuse(name, deltas, kind)
    _, half = fuse(name, deltas, kind, epsilon=0.5)
    assert_close(half.vector - bound.vector, (whole.vector - bound.vector) / 2)


def test_statistics_are_those_of_a_pass_in_train_mode():
    _, fused = fuse("mean", random_vectors(3, bind().space.size, scale=0.01))
    for name, value in buffers_after(fused.vector, BATCHES).items():
        assert_close(fused.buffers[name], value)
    assert fused.score.loss and len(fused.score.accuracy) == 3


def test_a_delta_that_is_not_finite_is_named():
    """A NaN in the Gramian would give ordinary weights under some rules."""
    deltas = random_vectors(3, bind().space.size)
    deltas[1][0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^test: the gradient of exit 2 is not finite; lower optim\.lr"):
        fuse("pcgrad", deltas)
