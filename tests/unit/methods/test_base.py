import math

import pytest
import torch
import torch.nn.functional as F
from tiny_network import bind, random_batches, setting_of
from torch.testing import assert_close

from raygf.compute import Compute
from raygf.config.run import ModelConfig, MSDNetConfig
from raygf.data.base import InputSpec
from raygf.errors import NonFiniteError
from raygf.methods.base import GramianMethod, JointSGD, combine, exit_gradients, weigh
from raygf.models.build import build_model
from raygf.training.losses import exit_losses
from raygf.training.network import BoundNetwork
from raygf.training.space import FlatSpace, Slot, Stretches, find_ownership

IMAGES, LABELS = random_batches(1, size=8)[0]


def test_joint_sgd_adds_the_exits_scaled_gradients():
    def direction(coefficients):
        bound = bind()
        method = JointSGD(setting_of(bound))
        losses = exit_losses(bound.network(IMAGES), LABELS)
        method.backward([c * loss for c, loss in zip(coefficients, losses, strict=True)], bound)
        return bound.grad

    singles = [direction([float(j == i) for j in range(3)]) for i in range(3)]
    assert all(single.any() for single in singles)
    assert_close(direction([0.5, 2.0, 1.0]), 0.5 * singles[0] + 2 * singles[1] + singles[2])


def test_every_row_is_one_exits_gradient():
    bound = bind()
    bound.network.eval()
    rows = exit_gradients(exit_losses(bound.network(IMAGES), LABELS), bound)
    for exit in range(3):
        loss = exit_losses(bound.network(IMAGES), LABELS)[exit]
        expected = torch.autograd.grad(loss, list(bound.network.parameters()), materialize_grads=True)
        assert_close(rows[exit], torch.cat([grad.flatten() for grad in expected]))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["msdnet", "resnet56-sdn"])
def test_a_backward_pass_is_as_deep_as_its_exit_and_gives_the_bits_of_one_through_the_whole_network(
    name, precision
):
    """Losses that are elements of one tensor send zeros through all that is deeper."""
    config = ModelConfig(name, MSDNetConfig(exits=3, base=2, step=1, channels=4, growth=4, head_channels=8))
    spec = InputSpec(1, 8, 8, 10)
    bound = BoundNetwork(build_model(config, spec, 0), Compute("cpu", precision, "channels_last"))
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, owned = torch.tensor([3, 0, 9, 3]), find_ownership(bound.network, images, bound.space)
    seen = []
    for tensor, parameter in enumerate(bound.network.parameters()):
        parameter.register_hook(lambda gradient, tensor=tensor: seen.append(tensor))
    rows = exit_gradients(exit_losses(bound.forward(images), labels), bound)
    assert torch.bincount(torch.tensor(seen)).tolist() == owned.sum(dim=0).tolist()
    stacked = torch.stack(bound.forward(images)).float()
    n = len(stacked)
    losses = F.cross_entropy(stacked.flatten(0, 1), labels.repeat(n), reduction="none").view(n, -1).mean(1)
    assert torch.equal(rows, exit_gradients(list(losses), bound)) and rows.any(dim=1).all()


def test_shared_parameters_are_weighted_and_the_others_are_not():
    seen = []

    def weighting(gramian):
        seen.append(gramian)
        return torch.tensor([2.0, -1.0, 0.5])

    rows = torch.tensor([[1.0, 2.0, 5.0, 0.0], [3.0, 1.0, 0.0, 7.0], [0.0, 4.0, 0.0, 0.0]])
    out = torch.empty(4)
    space = FlatSpace((Slot("a", (2,), 0, 2), Slot("b", (2,), 2, 4)))
    combine(rows, Stretches.of(space, [True, False]), weighting, out)
    assert_close(seen[0], rows[:, :2] @ rows[:, :2].T)
    assert_close(out, torch.tensor([2.0 - 3.0, 4.0 - 1.0 + 2.0, 5.0, 7.0]))


def test_the_gramian_is_that_of_the_shared_tensors_alone():
    bound, seen = bind(), []
    setting = setting_of(bound)
    method = GramianMethod(lambda g: (seen.append(g), torch.ones(3))[1], setting)
    bound.network.eval()
    method.backward(exit_losses(bound.network(IMAGES), LABELS), bound)
    rows = exit_gradients(exit_losses(bound.network(IMAGES), LABELS), bound)
    shared = [s for s, m in zip(bound.space.slots, setting.owned.sum(0).tolist(), strict=True) if m > 1]
    columns = torch.cat([torch.arange(s.start, s.stop) for s in shared])
    assert_close(seen[0], rows[:, columns] @ rows[:, columns].T)
    assert len(columns) < bound.space.size


def test_weights_of_a_gramian_that_says_nothing_or_too_much():
    never = pytest.fail
    assert torch.equal(weigh(never, torch.tensor([[2.0]])), torch.ones(1))  # one exit alone
    assert torch.equal(weigh(never, torch.zeros(3, 3)), torch.zeros(3))  # nothing to weigh
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="the gradient of exit 2 is not finite"):
            weigh(never, torch.diag(torch.tensor([1.0, bad, bad])))
    with pytest.raises(NonFiniteError, match="weights of the exits' gradients are not finite"):
        weigh(lambda gramian: torch.full((2,), math.nan), torch.eye(2))


def test_an_exit_that_trains_nothing_has_no_gradient():
    bound = bind()
    rows = exit_gradients([torch.tensor(1.0), *exit_losses(bound.network(IMAGES), LABELS)[1:]], bound)
    assert rows.any(dim=1).tolist() == [False, True, True]
