"""Shallow-Deep Networks: where the exits sit, their classifiers, initial weights, other image sizes."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from raygf.config.run import ModelConfig
from raygf.data.base import InputSpec
from raygf.models.build import build_model
from raygf.models.multi_exit import MultiExitNetwork
from raygf.models.sdn import InternalClassifier, MixedPool

CIFAR = InputSpec(3, 32, 32, 10)
EXITS = {"vgg16-sdn": 7, "resnet56-sdn": 7, "wideresnet32-4-sdn": 7, "mobilenet-sdn": 6}


@pytest.fixture(scope="module", params=EXITS)
def network(request):
    torch.set_num_threads(1)
    built = build_model(ModelConfig(request.param), CIFAR, seed=0)
    assert isinstance(built, MultiExitNetwork)
    built.sdn_name = request.param
    return built


@pytest.mark.parametrize("name", ["resnet56-sdn", "wideresnet32-4-sdn"])
def test_inner_exits_read_the_sum_of_a_residual_block_before_its_relu(name):
    """As published; what goes on is the sum after it, where the block has one."""
    network = build_model(ModelConfig(name), CIFAR, seed=0).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        state, logits = images, network(images)
        for stage, head, found in zip(network.stages, network.heads, logits, strict=True):
            state = stage[:-1](state)
            total = stage[-1].convs(state) + stage[-1].shortcut(state)
            state = total.relu() if name == "resnet56-sdn" else total
            inner = isinstance(head, InternalClassifier)
            assert not inner or (total < 0).any()
            assert_close(found, head(total if inner else state))


def test_every_weight_learns_from_the_sum_of_the_losses(network):
    network.train().zero_grad()
    logits = network(torch.randn(2, 3, 32, 32))
    assert [tuple(exit.shape) for exit in logits] == [(2, 10)] * EXITS[network.sdn_name]
    sum(exit.square().sum() for exit in logits).backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


def test_convolutions_start_with_the_published_spread(network):
    convs = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    name, conv = max(convs.items(), key=lambda item: item[1].weight.numel())
    area = conv.kernel_size[0] * conv.kernel_size[1]
    # PyTorch's default is uniform with variance 1 / (3 * fan in).
    default = network.sdn_name == "mobilenet-sdn"
    variance = 1 / (3 * area * conv.in_channels) if default else 2 / (area * conv.out_channels)
    assert conv.weight.std().item() == pytest.approx(variance**0.5, rel=0.03), name


@pytest.mark.parametrize(
    ("name", "linear", "dropout"), [("vgg16-sdn", 6 + 3, [0.5] * 2), ("wideresnet32-4-sdn", 7, [0.3] * 15)]
)
def test_dropout_and_linear_layers_start_as_published(name, linear, dropout):
    modules = list(build_model(ModelConfig(name), CIFAR, seed=0).modules())
    assert [module.p for module in modules if isinstance(module, nn.Dropout)] == dropout
    layers = [module for module in modules if isinstance(module, nn.Linear)]
    assert len(layers) == linear and not any(layer.bias.any() for layer in layers)
    if name == "vgg16-sdn":
        for layer in layers:
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("spec", [InputSpec(1, 28, 28, 7), InputSpec(3, 64, 48, 7)])
@pytest.mark.parametrize("name", ["resnet56-sdn", "mobilenet-sdn"])
def test_image_size_is_free(name, spec):
    network = build_model(ModelConfig(name), spec, seed=0)
    logits = network(torch.zeros(2, spec.channels, spec.height, spec.width))
    assert all(exit.shape == (2, 7) for exit in logits)


@pytest.mark.parametrize(("alpha", "expected"), [(-40.0, 2.5), (40.0, 4.0), (0.0, 3.25)])
def test_mixed_pooling_lies_between_mean_and_maximum_and_is_learned(alpha, expected):
    pool = MixedPool((2, 2))
    nn.init.constant_(pool.alpha, alpha)
    pooled = pool(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert pooled.item() == pytest.approx(expected)
    pooled.backward()
    share = torch.tensor(alpha).sigmoid().item()
    assert pool.alpha.grad.item() == pytest.approx(share * (1 - share) * 1.5)


def test_the_mixture_starts_anywhere():
    torch.manual_seed(0)
    shares = torch.stack([MixedPool((1, 1)).alpha.detach().sigmoid() for _ in range(400)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.05)
    assert shares.var().item() == pytest.approx(1 / 12, abs=0.015)


@pytest.mark.parametrize(
    ("features", "inputs", "pooled"),
    [
        ((3, 32, 32), 3 * 4 * 4, True),
        ((3, 4, 4), 3 * 4 * 4, True),
        ((3, 2, 2), 3 * 2 * 2, False),
        ((3, 7, 7), 3 * 7 * 7, True),
        ((3, 14, 14), 3 * 4 * 4, True),
        ((3, 16, 2), 3 * 4 * 2, True),
    ],
)
def test_internal_classifiers_pool_to_about_four_by_four(features, inputs, pooled):
    head = InternalClassifier(features, 5)
    assert head.linear.in_features == inputs
    assert isinstance(head.pool, MixedPool) == pooled
    assert head(torch.randn(2, *features)).shape == (2, 5)
