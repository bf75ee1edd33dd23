"""Counting rules on networks small enough to count by hand, and the costs of every network of the paper."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from raygf.config.recipes import get_recipe
from raygf.config.run import ModelConfig
from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models import costs as counting
from raygf.models.build import build_model
from raygf.models.costs import ExitCost, measure_costs
from raygf.models.multi_exit import MultiExitNetwork


class Network(nn.Module):
    """``parts``, and a function of this network and the images that returns the logits."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.run(self, x)


def one_exit(body):
    return Network(lambda network, x: [network.body(x)], body=body)


def cost_of(network, *shape):
    [cost] = measure_costs(network, torch.zeros(1, *shape))
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
def test_one_module(module, shape, parameters, operations):
    assert cost_of(one_exit(module), *shape) == ExitCost(parameters, operations)


def two_exits(width=4):
    """Linear stages and heads; for a width of 4 an exit adds 20 and 10 parameters and operations."""
    stages = [nn.Linear(4, width), nn.Linear(width, width)]
    return MultiExitNetwork(stages, [nn.Linear(width, 2), nn.Linear(width, 2)])


def with_spare():
    network = two_exits(width=6)
    network.spare = nn.Linear(100, 100)
    return network


def tied():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    return one_exit(nn.Sequential(first, second))


def with_scale():
    """Its own parameter counts from the first exit on; the network inside returns all exits."""
    network = Network(lambda network, x: network.inner(x * network.scale), inner=two_exits())
    network.scale = nn.Parameter(torch.ones(4))
    return network


def views(network, x):
    """A convolution as classifier, flattened; and dropout after the linear layer."""
    first = network.conv(x).flatten(1)
    return [first, network.dropout(network.linear(first))]


def heads_last(network, x):
    """All heads are computed after the backbone."""
    first = network.stages[0](x)
    second = network.stages[1](first)
    return network.heads[0](first), network.heads[1](second)


def bare(*outputs):
    return nn.ModuleList([nn.Linear(4, count, bias=False) for count in outputs])


def functions_last():
    """Transposed, so that PyTorch takes the linear layer apart; the last operator is no module's."""

    def run(network, x):
        end, last = network.children()
        yield (x @ end.weight.T + end.bias) * 2
        turned = x.transpose(1, 2).contiguous().transpose(1, 2)
        yield F.softmax(F.linear(turned, last.weight, last.bias), dim=-1)

    return Network(lambda network, x: list(run(network, x)), end=nn.Linear(4, 2), last=nn.Linear(4, 2))


# The network, the shape of an image, and parameters and operations of every exit.
NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...], list[tuple[int, int]]]] = {
    "earlier stages and heads, no unused module": (with_spare(), (4,), [(30 + 14, 44), (44 + 42 + 14, 100)]),
    "a shared weight": (tied(), (4,), [(16, 32)]),
    "a parameter of the network itself": (with_scale(), (4,), [(34, 30), (64, 60)]),
    "an exit that ends in a view or an identity": (
        Network(views, conv=nn.Conv2d(3, 2, 4, bias=False), linear=nn.Linear(2, 2), dropout=nn.Dropout()),
        (3, 4, 4),
        [(96, 96), (102, 102)],
    ),
    "the last module that writes the logits": (
        Network(lambda net, x: [net.clip(net.end(x))], end=nn.Linear(4, 2), clip=nn.ReLU(inplace=True)),
        (4,),
        [(10, 12)],
    ),
    "exits that end in functions of weights": (functions_last(), (2, 4), [(10, 2 * 10), (20, 2 * 20)]),
    "the order of execution": (
        Network(heads_last, stages=bare(4, 4), heads=bare(2, 2)), (4,), [(40, 40), (48, 48)]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("network", "shape", "costs"), NETWORKS.values(), ids=NETWORKS)
def test_whole_networks(network, shape, costs):
    assert measure_costs(network, torch.zeros(1, *shape)) == [ExitCost(*cost) for cost in costs]


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention(batch_first):
    # The image is (1, 3, 4): three tokens in one sequence, or one token in each of three sequences.
    reads = 3 if batch_first else 1
    four_projections = 4 * (4 * 4 + 4)
    matrix_products = 2 * 3 * reads * 4
    expected = ExitCost(four_projections, 3 * four_projections + matrix_products)
    attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
    network = Network(lambda net, x: [net.attention(query=x, key=x, value=x)[0]], attention=attention)
    assert cost_of(network, 3, 4) == expected


def test_attention_to_another_sequence():
    attention = nn.MultiheadAttention(4, 2, kdim=6, vdim=5, batch_first=True, add_zero_attn=True)
    keys, values = torch.zeros(1, 7, 6), torch.zeros(1, 7, 5)
    network = Network(lambda net, x: [net.attention(x, keys, values)[0]], attention=attention)
    # 3 queries, 7 keys and values, and one zero that is also attended to.
    projections = 3 * (16 + 4) + 7 * (24 + 4) + 7 * (20 + 4) + 3 * (16 + 4)
    assert cost_of(network, 3, 4) == ExitCost(20 + 28 + 24 + 20, projections + 2 * 3 * 8 * 4)


def test_a_transformer_layer_is_counted_whole_although_it_has_a_fused_path():
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, batch_first=True)
    attention = 3 * 80 + 2 * 3 * 3 * 4
    feed_forward = 3 * (4 * 8 + 8) + 3 * (8 * 4 + 4)  # its ReLU is no module
    parameters = sum(weight.numel() for weight in layer.parameters())
    assert cost_of(one_exit(layer), 3, 4) == ExitCost(parameters, attention + feed_forward)


def test_fused_attention_counts_its_two_products():
    """Four heads, five tokens of eight numbers: a fused operator on every device but for the count."""
    network = Network(
        lambda net, x: [F.scaled_dot_product_attention(x, x, net.keys(x))], keys=nn.Linear(8, 8)
    )
    assert cost_of(network, 4, 5, 8) == ExitCost(72, 4 * 5 * 72 + 2 * 4 * 5 * 5 * 8)
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.cuda.flash_sdp_enabled()


def test_an_image_of_the_spec_is_made():
    body = nn.Sequential(nn.Conv2d(3, 2, 3, bias=False), nn.Flatten(), nn.Linear(2 * 4 * 3, 5))
    assert measure_costs(one_exit(body), InputSpec(3, 6, 5, 5)) == [ExitCost(54 + 125, 24 * 27 + 125)]


def test_the_network_is_left_as_it_was():
    network = one_exit(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))).double()
    network.body[1].eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    measure_costs(network, torch.ones(1, 4))
    assert [module.training for module in network.modules()] == [True, True, True, False]
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]) and value.dtype == state[name].dtype


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (lambda x: x[0], "its forward must return a list of logits"),
        (lambda x: [], "its forward must return a list of logits"),
    ],
    ids=["a tensor", "nothing"],
)
def test_an_output_that_can_not_be_counted_is_refused(output, text):
    network = Network(lambda network, x: output(network.inner(x)), inner=two_exits())
    with pytest.raises(ConfigError, match=text):
        measure_costs(network, torch.zeros(1, 4))


CIFAR10, CIFAR100 = InputSpec(3, 32, 32, 10), InputSpec(3, 32, 32, 100)
# Millions of parameters and operations of every exit: as printed in the paper, or counted where it has none.
TABLES: dict[str, tuple[ModelConfig, InputSpec, list[float], list[float]]] = {
    "Table 1, MSDNet, CIFAR-100": (ModelConfig("msdnet"), CIFAR100,
        [0.90, 1.84, 2.80, 3.76, 4.92, 6.10, 7.36],
        [56.43, 101.00, 155.31, 198.10, 249.53, 298.05, 340.64]),
    "Table 2, MSDNet, ImageNet": (get_recipe("imagenet-msdnet-metagf").model, InputSpec(3, 224, 224, 1000),
        [4.24, 8.77, 13.07, 16.75, 23.96],
        [339.90, 685.46, 1008.16, 1254.47, 1360.53]),
    # The paper prints 285.68 for exit 6; the published definition has 285.60.
    "Table 3, VGG-16, CIFAR-10": (ModelConfig("vgg16-sdn"), CIFAR10,
        [0.05, 0.29, 1.22, 1.85, 5.47, 7.86, 15.47],
        [39.76, 96.52, 153.25, 191.08, 247.81, 285.60, 314.45]),
    "Table 4, ResNet-56, CIFAR-10": (ModelConfig("resnet56-sdn"), CIFAR10,
        [0.02, 0.04, 0.10, 0.18, 0.36, 0.67, 0.89],
        [19.50, 38.54, 56.47, 75.43, 93.32, 112.25, 126.44]),
    "counted, WideResNet-32-4, CIFAR-10": (ModelConfig("wideresnet32-4-sdn"), CIFAR10,
        [0.21, 0.36, 0.91, 1.52, 2.78, 5.18, 7.55],
        [200.16, 351.56, 542.74, 693.96, 885.04, 1036.17, 1187.27]),
    "counted, MobileNet, CIFAR-10": (ModelConfig("mobilenet-sdn"), CIFAR10,
        [0.05, 0.20, 0.68, 1.30, 2.41, 3.48],
        [10.34, 16.99, 23.52, 32.18, 42.91, 47.17]),
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_costs_are_those_published(table):
    torch.set_num_threads(1)
    config, spec, parameters, operations = TABLES[table]
    network = build_model(config, spec, seed=0)
    costs = measure_costs(network, spec)
    assert [round(cost.parameters / 1e6, 2) for cost in costs] == parameters
    assert [round(cost.operations / 1e6, 2) for cost in costs] == operations
    assert costs[-1].parameters == sum(weight.numel() for weight in network.parameters())


# Of families of torchvision that compute differently, the smallest.
FAMILIES = [
    *(
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "maxvit_t",
        "resnext50_32x4d",
    ),
    *("mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x1_0", "swin_t", "swin_v2_t", "vit_b_32"),
]
WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": False}


@pytest.mark.parametrize("name", FAMILIES)
def test_products_are_those_that_torchvision_publishes(name, monkeypatch):
    """Theirs are of products alone, in 10⁹ to three decimals. Shapes suffice to count: the "meta" device."""
    monkeypatch.setattr(counting, "POOLINGS", ())
    monkeypatch.setattr(counting, "PER_INPUT_ELEMENT", ())
    weights = torchvision.models.get_model_weights(name).DEFAULT
    side = weights.transforms().crop_size[0]
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # RegNet computes its widths
        options = WITHOUT_AUXILIARY if name == "googlenet" else {}
        network = torchvision.models.get_model(name, weights=None, **options)
    cost = cost_of(one_exit(network.to("meta")), 3, side, side)
    assert cost.parameters == sum(weight.numel() for weight in network.parameters())
    assert cost.operations / 1e9 == pytest.approx(weights.meta["_ops"], rel=0.01, abs=0.0005)
