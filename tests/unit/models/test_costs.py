"""Counting rules on networks small enough to count by hand, and the costs of every network of the paper."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raygf.config.recipes import get_recipe
from raygf.config.run import ModelConfig
from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.build import build_model
from raygf.models.costs import ExitCost, measure_costs
from raygf.models.multi_exit import MultiExitNetwork


class OneExit(nn.Module):
    """``body`` as the only exit."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.body(x)]


def cost_of(body: nn.Module, *shape: int) -> ExitCost:
    [cost] = measure_costs(OneExit(body), torch.zeros(1, *shape))
    return cost


@pytest.mark.parametrize(
    ("module", "shape", "parameters", "operations"),
    [
        # Output 6x5x5; 4*3*3 weights each; the bias is a parameter, but no operation.
        (nn.Conv2d(4, 6, 3), (4, 7, 7), 4 * 6 * 9 + 6, 150 * 36),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 7, 7), 2 * 6 * 9 + 6, 150 * 18),
        (nn.Conv2d(4, 4, (1, 3), groups=4, bias=False), (4, 7, 7), 12, 4 * 7 * 5 * 3),
        (nn.Conv1d(2, 3, 5), (2, 9), 33, 3 * 5 * 2 * 5),
        (nn.Conv3d(2, 3, 2), (2, 3, 3, 3), 51, 3 * 8 * 2 * 8),
        # Every input element meets every kernel weight once per output channel of its group.
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5), 4 * 6 * 9 + 6, 100 * 6 * 9),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5), 4 * 3 * 9 + 6, 100 * 3 * 9),
        (nn.Linear(5, 3), (5,), 18, 18),
        (nn.Linear(5, 3, bias=False), (5,), 15, 15),
        (nn.Linear(5, 3), (7, 5), 18, 7 * 18),
        (nn.ReLU(), (2, 3, 3), 0, 18),
        (nn.PReLU(2), (2, 3, 3), 2, 18),
        (nn.Hardswish(), (2, 3, 3), 0, 18),
        (nn.AvgPool2d(2), (3, 6, 6), 0, 27 * 4),
        (nn.MaxPool2d(3, stride=2, padding=1), (3, 6, 6), 0, 27 * 9),
        (nn.AvgPool1d(2), (3, 6), 0, 9 * 2),
        (nn.MaxPool3d(2), (1, 4, 4, 4), 0, 8 * 8),
        (nn.AdaptiveAvgPool2d(1), (3, 6, 6), 0, 108),
        (nn.BatchNorm2d(3), (3, 6, 6), 6, 0),
        (nn.LayerNorm(6), (3, 6), 12, 0),
        (nn.Sequential(nn.Dropout(), nn.Flatten()), (3, 6), 0, 0),
        # A shared module has its parameters once and its operations every time.
        (nn.Sequential(shared := nn.Linear(4, 4), shared, nn.Linear(4, 2)), (4,), 30, 50),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_one_module(module: nn.Module, shape: tuple[int, ...], parameters: int, operations: int) -> None:
    assert cost_of(module, *shape) == ExitCost(parameters, operations)


def test_costs_include_earlier_stages_and_heads_but_no_unused_module() -> None:
    network = MultiExitNetwork([nn.Linear(4, 6), nn.Linear(6, 6)], [nn.Linear(6, 2), nn.Linear(6, 2)])
    network.spare = nn.Linear(100, 100)
    assert measure_costs(network, torch.zeros(1, 4)) == [ExitCost(30 + 14, 44), ExitCost(44 + 42 + 14, 100)]


def test_a_shared_weight_counts_once() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    assert cost_of(nn.Sequential(first, second), 4) == ExitCost(16, 32)


def test_parameters_held_by_the_network_itself_count_from_the_first_exit_on() -> None:
    class Scaled(MultiExitNetwork):
        def __init__(self) -> None:
            super().__init__([nn.Linear(4, 4), nn.Linear(4, 4)], [nn.Linear(4, 2), nn.Linear(4, 2)])
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> list[Tensor]:
            return super().forward(x * self.scale)

    assert [cost.parameters for cost in measure_costs(Scaled(), torch.zeros(1, 4))] == [34, 64]


def test_an_exit_may_end_in_a_view_or_an_identity() -> None:
    """A convolution as classifier, flattened; and dropout after the linear layer."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 4, bias=False)
            self.linear = nn.Linear(2, 2)
            self.dropout = nn.Dropout()

        def forward(self, x: Tensor) -> list[Tensor]:
            first = self.conv(x).flatten(1)
            return [first, self.dropout(self.linear(first))]

    assert measure_costs(Views(), torch.zeros(1, 3, 4, 4)) == [ExitCost(96, 96), ExitCost(102, 102)]


def test_an_exit_ends_with_the_last_module_that_writes_its_logits() -> None:
    class Clipped(MultiExitNetwork):
        def forward(self, x: Tensor) -> list[Tensor]:
            [logits] = super().forward(x)
            return [self.clip(logits)]

    network = Clipped([nn.Identity()], [nn.Linear(4, 2)])
    network.clip = nn.ReLU(inplace=True)
    assert measure_costs(network, torch.zeros(1, 4)) == [ExitCost(10, 12)]


def test_all_heads_may_be_computed_after_the_backbone() -> None:
    """Costs follow the order of execution, not that of the list."""

    class HeadsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
            self.heads = nn.ModuleList([nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)])

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            first = self.stages[0](x)
            second = self.stages[1](first)
            return self.heads[0](first), self.heads[1](second)

    assert measure_costs(HeadsLast(), torch.zeros(1, 4)) == [ExitCost(40, 40), ExitCost(48, 48)]


def test_an_inner_network_that_returns_all_exits_is_looked_into() -> None:
    class Wrapper(OneExit):
        def forward(self, x: Tensor) -> Any:
            return self.body(x)

    inner = MultiExitNetwork([nn.Linear(4, 4), nn.Linear(4, 4)], [nn.Linear(4, 2), nn.Linear(4, 2)])
    assert measure_costs(Wrapper(inner), torch.zeros(1, 4)) == measure_costs(inner, torch.zeros(1, 4))


class SelfAttention(nn.Module):
    def __init__(self, by_name: bool, **options: Any) -> None:
        super().__init__()
        self.by_name = by_name
        self.attention = nn.MultiheadAttention(4, 2, **options)
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.by_name:
            return self.last(self.attention(query=x, key=x, value=x)[0])
        return self.last(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention(by_name: bool, batch_first: bool) -> None:
    module = SelfAttention(by_name, batch_first=batch_first)
    # The image is (1, 3, 4): three tokens in one sequence, or one token in each of three sequences.
    reads = 3 if batch_first else 1
    four_projections = 4 * (4 * 4 + 4)
    matrix_products = 2 * 3 * reads * 4
    assert cost_of(module, 3, 4) == ExitCost(four_projections, 3 * four_projections + matrix_products)


def test_attention_to_another_sequence() -> None:
    class CrossAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, kdim=6, vdim=5, batch_first=True, add_zero_attn=True)
            self.last = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.attention(x, torch.zeros(1, 7, 6), torch.zeros(1, 7, 5))[0])

    # 3 queries, 7 keys and values, and one zero that is also attended to.
    projections = 3 * (16 + 4) + 7 * (24 + 4) + 7 * (20 + 4) + 3 * (16 + 4)
    assert cost_of(CrossAttention(), 3, 4) == ExitCost(20 + 28 + 24 + 20, projections + 2 * 3 * 8 * 4)


def test_a_transformer_layer_is_counted_whole_although_it_has_a_fused_path() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, batch_first=True)
    attention = 3 * 80 + 2 * 3 * 3 * 4
    feed_forward = 3 * (4 * 8 + 8) + 3 * (8 * 4 + 4)  # its ReLU is no module
    parameters = sum(weight.numel() for weight in layer.parameters())
    assert cost_of(layer, 3, 4) == ExitCost(parameters, attention + feed_forward)


def test_an_image_of_the_spec_is_made() -> None:
    body = nn.Sequential(nn.Conv2d(3, 2, 3, bias=False), nn.Flatten(), nn.Linear(2 * 4 * 3, 5))
    assert measure_costs(OneExit(body), InputSpec(3, 6, 5, 5)) == [ExitCost(54 + 125, 24 * 27 + 125)]


def test_the_network_is_left_as_it_was() -> None:
    network = OneExit(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))).double()
    network.body[1].eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    measure_costs(network, torch.ones(1, 4))
    assert [module.training for module in network.modules()] == [True, True, True, False]
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]) and value.dtype == state[name].dtype


def test_logits_that_no_module_computed_are_refused() -> None:
    class Functional(MultiExitNetwork):
        def forward(self, x: Tensor) -> list[Tensor]:
            first, second = super().forward(x)
            return [first, second * 2]

    network = Functional([nn.Linear(4, 4), nn.Linear(4, 4)], [nn.Linear(4, 2), nn.Linear(4, 2)])
    with pytest.raises(ConfigError) as caught:
        measure_costs(network, torch.zeros(1, 4))
    assert str(caught.value) == (
        "costs of exit 2: no module's output is its logits; end the exit with a module such as nn.Linear"
    )


@pytest.mark.parametrize("output", [torch.zeros(1, 2), []])
def test_an_output_that_is_no_list_of_logits_is_refused(output: Any) -> None:
    network = nn.Identity()
    network.forward = lambda x: output
    with pytest.raises(ConfigError, match="its forward must return a list of logits"):
        measure_costs(network, torch.zeros(1, 4))


CIFAR10, CIFAR100 = InputSpec(3, 32, 32, 10), InputSpec(3, 32, 32, 100)
# Millions of parameters and operations of every exit: as printed in the paper, or counted where it has none.
TABLES: dict[str, tuple[ModelConfig, InputSpec, list[float], list[float]]] = {
    "Table 1, MSDNet, CIFAR-100": (ModelConfig("msdnet"), CIFAR100,
        [0.90, 1.84, 2.80, 3.76, 4.92, 6.10, 7.36],
        [56.43, 101.00, 155.31, 198.10, 249.53, 298.05, 340.64]),
    "counted, MSDNet, CIFAR-10": (ModelConfig("msdnet"), CIFAR10,
        [0.89, 1.81, 2.76, 3.71, 4.86, 6.03, 7.28],
        [56.41, 100.98, 155.28, 198.05, 249.48, 297.98, 340.56]),
    "Table 2, MSDNet, ImageNet": (get_recipe("imagenet-msdnet-metagf").model, InputSpec(3, 224, 224, 1000),
        [4.24, 8.77, 13.07, 16.75, 23.96],
        [339.90, 685.46, 1008.16, 1254.47, 1360.53]),
    # The paper prints 285.68 for exit 6; the published definition has 285.60.
    "Table 3, VGG-16, CIFAR-10": (ModelConfig("vgg16-sdn"), CIFAR10,
        [0.05, 0.29, 1.22, 1.85, 5.47, 7.86, 15.47],
        [39.76, 96.52, 153.25, 191.08, 247.81, 285.60, 314.45]),
    "counted, VGG-16, CIFAR-100": (ModelConfig("vgg16-sdn"), CIFAR100,
        [0.14, 0.57, 1.86, 2.86, 7.23, 9.79, 17.45],
        [39.85, 96.79, 153.89, 192.09, 249.57, 287.54, 316.43]),
    "Table 4, ResNet-56, CIFAR-10": (ModelConfig("resnet56-sdn"), CIFAR10,
        [0.02, 0.04, 0.10, 0.18, 0.36, 0.67, 0.89],
        [19.50, 38.54, 56.47, 75.43, 93.32, 112.25, 126.44]),
    "counted, ResNet-56, CIFAR-100": (ModelConfig("resnet56-sdn"), CIFAR100,
        [0.04, 0.09, 0.20, 0.32, 0.59, 0.99, 1.22],
        [19.52, 38.59, 56.56, 75.57, 93.56, 112.57, 126.76]),
    "counted, WideResNet-32-4, CIFAR-10": (ModelConfig("wideresnet32-4-sdn"), CIFAR10,
        [0.21, 0.36, 0.91, 1.52, 2.78, 5.18, 7.55],
        [200.16, 351.56, 542.74, 693.96, 885.04, 1036.17, 1187.27]),
    "counted, MobileNet, CIFAR-10": (ModelConfig("mobilenet-sdn"), CIFAR10,
        [0.05, 0.20, 0.68, 1.30, 2.41, 3.48],
        [10.34, 16.99, 23.52, 32.18, 42.91, 47.17]),
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_costs_are_those_published(table: str) -> None:
    torch.set_num_threads(1)
    config, spec, parameters, operations = TABLES[table]
    network = build_model(config, spec, seed=0)
    costs = measure_costs(network, spec)
    assert [round(cost.parameters / 1e6, 2) for cost in costs] == parameters
    assert [round(cost.operations / 1e6, 2) for cost in costs] == operations
    assert costs[-1].parameters == sum(weight.numel() for weight in network.parameters())
