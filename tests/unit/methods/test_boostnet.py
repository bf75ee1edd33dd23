"""BoostNet's gradient rescaling by its equation, and its being Gradient Equilibrium's."""

from __future__ import annotations

import pytest
import torch
from tiny_network import bind, random_batches
from torch import Tensor
from torch.testing import assert_close

from raygf.methods.ge import BoostNetRescaling, GradientEquilibrium
from raygf.training.losses import exit_losses

IMAGES, LABELS = random_batches(1, size=8)[0]


def features_and_losses(network) -> tuple[list[Tensor], Tensor]:
    """What every stage gives, and the exits' losses."""
    seen: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda *args: seen.append(args[2])) for stage in network.stages]
    losses = exit_losses(network(IMAGES), LABELS)
    for hook in hooks:
        hook.remove()
    return seen, losses


def test_a_stage_gets_the_mean_of_the_exits_behind_it():
    """dL/db_i = 1/(n − i + 1) Σ_{j ≥ i} dL_j/db_i."""
    network = bind().network.eval()
    features, losses = features_and_losses(network)
    plain = [
        [
            torch.autograd.grad(losses[exit], feature, retain_graph=True)[0]
            for exit in range(number, len(losses))
        ]
        for number, feature in enumerate(features)
    ]
    method = BoostNetRescaling(network)
    features, losses = features_and_losses(network)
    rescaled = torch.autograd.grad(losses.sum(), features)
    method.close()
    for found, exits in zip(rescaled, plain, strict=True):
        assert_close(found, torch.stack(exits).mean(dim=0))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_it_gives_the_bits_of_gradient_equilibrium(scale):
    def direction(make) -> Tensor:
        bound = bind()
        method = make(bound.network.eval())
        method.backward(scale * exit_losses(bound.network(IMAGES), LABELS), bound)
        method.close()
        return bound.grad

    assert torch.equal(direction(BoostNetRescaling), direction(GradientEquilibrium))
