"""MSDNet: shapes, state, and what it refuses."""

import pytest
import torch

from raygf.config.run import MSDNetConfig
from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.msdnet import MSDNet

CIFAR = MSDNetConfig(growth=16)
DIGITS = InputSpec(channels=1, height=8, width=8, classes=10)


def small_net(spec=DIGITS, factors=(1, 2, 4), step=1):
    return MSDNet(
        MSDNetConfig(exits=3, base=2, step=step, channels=4, growth=2, factors=factors, head_channels=8), spec
    )


@pytest.mark.parametrize("factors", [(1,), (1, 2), (1, 2, 4), (1, 1, 2, 2)])
@pytest.mark.parametrize("size", [(32, 32), (30, 17), (8, 8)])
def test_one_tensor_of_logits_per_exit(factors, size):
    logits = small_net(InputSpec(1, *size, 7), factors=factors)(torch.randn(5, 1, *size))
    assert [tuple(exit.shape) for exit in logits] == [(5, 7)] * 3


def test_head_averages_the_four_places_left_of_a_cifar_image():
    """The published head pools 2x2 with stride 2: the same as the mean on 32x32 images."""
    head = MSDNet(MSDNetConfig(exits=1, base=1, growth=6), InputSpec(3, 32, 32, 10)).heads[0].eval()
    features = torch.randn(2, 16 * 4 + 6 * 4, 8, 8)
    before_pool = head.conv2(head.conv1(features))
    assert before_pool.shape[2:] == (2, 2)
    pooled = torch.nn.functional.avg_pool2d(before_pool, 2).flatten(1)
    torch.testing.assert_close(head([features]), head.linear(pooled))


def test_state_is_the_features_of_the_scales_kept():
    network = small_net(step=2)  # 6 layers, 3 scales: layers 3 and 5 drop one
    state = torch.randn(2, 1, 8, 8)
    shapes = []
    for stage in network.stages:
        state = stage(state)
        shapes.append([tuple(features.shape[1:]) for features in state])
    # 4 + 2*2 = 8, then (8 + 2)//2 = 5, + 2 = 7, then (7 + 2)//2 = 4, + 2 = 6; times the factors 1, 2, 4.
    assert shapes == [[(8, 8, 8), (16, 4, 4), (32, 2, 2)], [(14, 4, 4), (28, 2, 2)], [(24, 2, 2)]]


def test_an_exit_depends_on_no_deeper_weights_and_on_no_other_head():
    network = small_net()
    for exit, logits in enumerate(network(torch.randn(4, 1, 8, 8))):
        network.zero_grad()
        logits.sum().backward(retain_graph=True)
        used = {name for name, weight in network.named_parameters() if weight.grad is not None}
        reached = {f"stages.{stage}." for stage in range(exit + 1)} | {f"heads.{exit}."}
        assert {".".join(name.split(".")[:2]) + "." for name in used} == reached


def test_initial_weights_have_hes_spread():
    network = MSDNet(CIFAR, InputSpec(3, 32, 32, 10))
    conv = network.heads[0].conv2[0]
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
    assert all((head.linear.bias == 0).all() for head in network.heads)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MSDNetConfig(factors=(1, 1, 2, 2, 4)),
         "factors = (1, 1, 2, 2, 4): 5 scales with stem conv3 need larger images than 8x8, "
         "which have room for 4"),
        (MSDNetConfig(stem="conv7"),
         "factors = (1, 2, 4): 3 scales with stem conv7 need larger images than 8x8, which have room for 2"),
        (MSDNetConfig(growth=3, factors=(1, 1)),
         "growth = 3: must be even when multiplied by each factor after the first of (1, 1)"),
        (MSDNetConfig(channels=1, growth=2, reduction=0.05),
         "reduction = 0.05: must be more: it leaves none of 15 channels"),
    ],
    ids=["scales", "stem", "growth", "reduction"],
)  # fmt: skip
def test_impossible_networks_are_refused(config, message):
    with pytest.raises(ConfigError) as caught:
        MSDNet(config, DIGITS)
    assert str(caught.value) == f"model.msdnet.{message}"
