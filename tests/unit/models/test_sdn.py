"""Shallow-Deep Networks: where the exits sit, their classifiers, initial weights, other image sizes."""

import pytest
import torch
from torch import nn

from raygf.config.run import ModelConfig
from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.build import build_model, model_names
from raygf.models.costs import measure_costs
from raygf.models.multi_exit import MultiExitNetwork
from raygf.models.sdn import InternalClassifier, MixedPool
from raygf.training.space import FlatSpace, find_ownership

CIFAR = InputSpec(3, 32, 32, 10)
# Channels and side of the features that every internal classifier gets; the shares are the paper's aims.
FEATURES = {
    "vgg16-sdn": [(64, 16), (128, 8), (256, 8), (256, 4), (512, 4), (512, 2)],
    "resnet56-sdn": [(16, 32), (16, 32), (32, 16), (32, 16), (64, 8), (64, 8)],
    "wideresnet32-4-sdn": [(64, 32), (64, 32), (128, 16), (128, 16), (256, 8), (256, 8)],
    "mobilenet-sdn": [(128, 16), (256, 8), (512, 4), (512, 4), (1024, 2)],
}
NAMES = list(FEATURES)


@pytest.fixture(scope="module", params=NAMES)
def network(request: pytest.FixtureRequest) -> MultiExitNetwork:
    torch.set_num_threads(1)
    built = build_model(ModelConfig(request.param), CIFAR, seed=0)
    assert isinstance(built, MultiExitNetwork)
    built.sdn_name = request.param
    return built


def test_names_are_known() -> None:
    assert set(NAMES) <= set(model_names())


def test_exits_sit_where_published(network: MultiExitNetwork) -> None:
    state, found = torch.zeros(2, 3, 32, 32), []
    with torch.no_grad():
        for stage in network.stages:
            state = stage(state)
            found.append((state.shape[1], state.shape[2]))
    assert found[:-1] == FEATURES[network.sdn_name]
    assert all(isinstance(head, InternalClassifier) for head in network.heads[:-1])
    assert not isinstance(network.heads[-1], InternalClassifier)


@pytest.mark.parametrize("name", ["vgg16-sdn", "resnet56-sdn", "wideresnet32-4-sdn"])
def test_exits_are_near_the_shares_aimed_at(name: str) -> None:
    costs = measure_costs(build_model(ModelConfig(name), CIFAR, seed=0), CIFAR)
    shares = [cost.operations / costs[-1].operations for cost in costs[:-1]]
    assert shares == pytest.approx([0.15, 0.30, 0.45, 0.60, 0.75, 0.90], abs=0.05)


def test_one_tensor_of_logits_per_exit(network: MultiExitNetwork) -> None:
    logits = network.train()(torch.randn(2, 3, 32, 32))
    assert [tuple(exit.shape) for exit in logits] == [(2, 10)] * (len(FEATURES[network.sdn_name]) + 1)


def test_every_weight_learns_from_the_sum_of_the_losses(network: MultiExitNetwork) -> None:
    network.train().zero_grad()
    sum(exit.square().sum() for exit in network(torch.randn(2, 3, 32, 32))).backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


def test_an_exit_owns_the_stages_up_to_it_and_its_own_head(network: MultiExitNetwork) -> None:
    space = FlatSpace.of(network)
    owned = find_ownership(network, torch.zeros(1, 3, 32, 32), space)
    for exit in range(len(network.heads)):
        reached = {("stages", str(depth)) for depth in range(exit + 1)} | {("heads", str(exit))}
        expected = [tuple(name.split(".")[:2]) in reached for name in space.names]
        assert owned[exit].tolist() == expected


def test_convolutions_start_with_the_published_spread(network: MultiExitNetwork) -> None:
    convs = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    name, conv = max(convs.items(), key=lambda item: item[1].weight.numel())
    area = conv.kernel_size[0] * conv.kernel_size[1]
    # PyTorch's default is uniform with variance 1 / (3 * fan in).
    default = network.sdn_name == "mobilenet-sdn"
    variance = 1 / (3 * area * conv.in_channels) if default else 2 / (area * conv.out_channels)
    assert conv.weight.std().item() == pytest.approx(variance**0.5, rel=0.03), name


def test_linear_layers_of_vgg_start_small_and_without_bias() -> None:
    network = build_model(ModelConfig("vgg16-sdn"), CIFAR, seed=0)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 6 + 3
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.5, 0.5]
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert (layer.bias == 0).all()


def test_wideresnet_has_its_dropout_and_linear_layers_without_bias() -> None:
    network = build_model(ModelConfig("wideresnet32-4-sdn"), CIFAR, seed=0)
    modules = list(network.modules())
    assert [module.p for module in modules if isinstance(module, nn.Dropout)] == [0.3] * 15
    biases = [module.bias for module in modules if isinstance(module, nn.Linear)]
    assert len(biases) == 7 and all((bias == 0).all() for bias in biases)


@pytest.mark.parametrize("spec", [InputSpec(1, 28, 28, 7), InputSpec(3, 64, 48, 7)])
@pytest.mark.parametrize("name", ["resnet56-sdn", "mobilenet-sdn"])
def test_image_size_is_free(name: str, spec: InputSpec) -> None:
    network = build_model(ModelConfig(name), spec, seed=0)
    logits = network(torch.zeros(2, spec.channels, spec.height, spec.width))
    assert all(exit.shape == (2, 7) for exit in logits)


def test_vgg_takes_larger_images() -> None:
    network = build_model(ModelConfig("vgg16-sdn"), InputSpec(3, 64, 64, 10), seed=0)
    assert network.heads[-1][1].in_features == 512 * 2 * 2


def test_images_too_small_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(ModelConfig("vgg16-sdn"), InputSpec(1, 8, 8, 10), seed=0)
    assert str(caught.value) == (
        "images of 8x8 are too small for this network, which is made for 32x32: set --data.image-size 32 or "
        "another --model.name"
    )


@pytest.mark.parametrize(("alpha", "expected"), [(-40.0, 2.5), (40.0, 4.0), (0.0, 3.25)])
def test_mixed_pooling_lies_between_mean_and_maximum(alpha: float, expected: float) -> None:
    pool = MixedPool((2, 2))
    nn.init.constant_(pool.alpha, alpha)
    assert pool(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).item() == pytest.approx(expected)


def test_the_mixture_is_learned() -> None:
    pool = MixedPool((2, 2))
    pool(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).sum().backward()
    assert pool.alpha.grad is not None and pool.alpha.grad.item() > 0


def test_the_mixture_starts_anywhere() -> None:
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
def test_internal_classifiers_pool_to_about_four_by_four(
    features: tuple[int, int, int], inputs: int, pooled: bool
) -> None:
    head = InternalClassifier(features, 5)
    assert head.linear.in_features == inputs
    assert isinstance(head.pool, MixedPool) == pooled
    assert head(torch.randn(2, *features)).shape == (2, 5)
