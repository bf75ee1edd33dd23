"""Exits attached to networks: the network stays what it was; heads, weights from files, torchvision."""

import itertools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from attached_networks import IMAGES, SPEC, Blocks, Functional, PlainRow, Skips, Tokens, refusal
from torch import nn
from torchvision.models import (
    ConvNeXt,
    SwinTransformer,
    VisionTransformer,
    efficientnet_b0,
    mobilenet_v3_small,
    regnet_x_400mf,
    resnet18,
    swin_t,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.feature_extraction import get_graph_node_names

from raygf.config.run import ModelConfig
from raygf.data.base import InputSpec
from raygf.models.attach import AttachedNetwork, attach_exits, describe_features
from raygf.models.build import _names, build_model
from raygf.models.costs import measure_costs
from raygf.models.graph_cut import trace_modes
from raygf.models.sdn import MixedPool
from raygf.training.losses import exit_losses
from raygf.training.space import FlatSpace, find_ownership

PHOTO = InputSpec(channels=3, height=64, width=64, classes=4)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small_vit(image_size=64):
    return VisionTransformer(image_size, 16, 4, 2, hidden_dim=32, mlp_dim=64, num_classes=4)


def small_convnext():
    return ConvNeXt(
        [CNBlockConfig(8, 16, 2), CNBlockConfig(16, 32, 3), CNBlockConfig(32, None, 2)], 0.5, num_classes=4
    )


def small_swin():
    return SwinTransformer([4, 4], 12, [1, 1, 3], [1, 1, 2], [4, 4], num_classes=4)


def timm_network(name, **options):
    return lambda: timm.create_model(name, num_classes=4, **options)


# What builds the network, the images, the exits, and the cuts that they mean.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], InputSpec, list[float | str], tuple[str, str]]] = {
    "list of blocks": (Blocks, SPEC, ["blocks.0", "blocks.2.norm"], ("blocks.0", "blocks.2.norm")),
    "functions": (Functional, SPEC, ["into", "dropout"], ("into", "dropout")),
    "skips, deepest first": (Skips, SPEC, ["second", "first"], ("first", "second")),
    "plain row": (PlainRow, SPEC, [0.3, "features.7"], ("features.5", "features.7")),
    "tokens": (Tokens, SPEC, ["patches", "layers.1"], ("patches", "layers.1")),
    "resnet": (lambda: resnet18(num_classes=4), PHOTO, [0.3, 0.6], ("layer1.1", "layer3.0")),
    "mobilenet": (lambda: mobilenet_v3_small(num_classes=4), PHOTO, [0.3, "features.8"],
                  ("features.5", "features.8")),
    "convnext": (small_convnext, PHOTO, [0.3, 0.6], ("features.1.1", "features.3.1")),
    "vit": (small_vit, PHOTO, ["encoder.layers.encoder_layer_1.add_1", 0.8],
            ("encoder.layers.encoder_layer_1.add_1", "encoder.layers.encoder_layer_2")),
    "regnet": (lambda: regnet_x_400mf(num_classes=4), PHOTO, [0.3, 0.6],
               ("trunk_output.block3.block3-2", "trunk_output.block4.block4-3")),
    "efficientnet": (lambda: efficientnet_b0(num_classes=4), PHOTO, [0.3, 0.6],
               ("features.4.0", "features.5.2")),
    "swin": (small_swin, PHOTO, [0.3, 0.6], ("features.3.0", "features.5.0")),
    "timm resnet": (timm_network("test_resnet", zero_init_last=False), PHOTO, [0.3, 0.6],
               ("act1", "layer1.0")),
    "timm convnext": (timm_network("test_convnext"), PHOTO, [0.3, 0.6], ("stages.0", "stages.1")),
    "timm regnet": (timm_network("regnetx_002", zero_init_last=False), PHOTO, [0.3, 0.6], ("s3.b2", "s4.b2")),
    "timm efficientnet": (timm_network("test_efficientnet"), PHOTO, [0.3, 0.6], ("blocks.0.0", "blocks.1.0")),
    "timm swin": (timm_network("swin_tiny_patch4_window7_224", img_size=64, embed_dim=12, depths=(1, 1, 3, 1),
                               num_heads=(1, 1, 2, 2)), PHOTO, [0.3, 0.6], ("layers.1", "layers.2.blocks.0")),
    "timm vit": (timm_network("test_vit", img_size=64), PHOTO, [0.3, 0.6], ("blocks.1", "blocks.3")),
}  # fmt: skip


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build, spec, at, cuts = NETWORKS[request.param]
    network = build()
    with torch.no_grad():  # where ViT starts with zeros and ConvNeXt almost, no gradient would be seen
        for name, weight in network.named_parameters():
            if name == "heads.head.weight":
                weight.normal_(std=0.02)
            if name.endswith("layer_scale"):
                weight.fill_(1)
    images = torch.randn(2, 3, spec.height, spec.width)
    attached = attach_exits(network, spec, at)
    return SimpleNamespace(network=network, spec=spec, cuts=cuts, attached=attached, images=images)


def test_cuts_are_block_ends_or_nodes_under_torchvisions_names(case):
    assert case.attached.cuts == case.cuts
    # Here buffers are nodes, and arguments with defaults have them, which torchvision's tracing refuses.
    if isinstance(case.network, Functional | SwinTransformer) or type(case.network).__module__.startswith(
        "timm."
    ):
        return
    train, eval = get_graph_node_names(case.network, suppress_diff_warning=True)
    traces = trace_modes(case.network)
    assert list(traces.train.names.values()) == train
    assert list(traces.eval.names.values()) == eval


@pytest.mark.parametrize("training", [True, False])
def test_the_last_exit_is_the_networks_own(case, training):
    """In training mode, too: dropout and stochastic depth draw the same numbers."""
    with torch.no_grad():
        torch.manual_seed(3)
        expected = case.network.train(training)(case.images)
        torch.manual_seed(3)
        logits = case.attached.train(training)(case.images)
    assert [tuple(exit.shape) for exit in logits] == [(2, 4)] * 3
    torch.testing.assert_close(logits[-1], expected, rtol=0, atol=0)


def test_deeper_exits_cost_more_and_own_the_stages_up_to_them(case):
    costs = measure_costs(case.attached, case.spec)
    for shallow, deep in itertools.pairwise(costs):
        assert shallow.operations < deep.operations and shallow.parameters < deep.parameters
    space = FlatSpace.of(case.attached)
    # Also those of ConvNeXt and ViT that belong to no module that is called.
    assert costs[-1].parameters == space.size
    owned = find_ownership(case.attached, case.images, space)
    for tensor, name in enumerate(space.names):
        part, depth = name.split(".")[0], int(name.split(".")[1])
        owners = [depth] if part == "heads" else list(range(depth, 3))
        assert owned[:, tensor].nonzero().flatten().tolist() == owners, name


def test_every_weight_learns(case):
    case.attached.train().zero_grad()
    sum(exit_losses(case.attached(case.images), torch.tensor([0, 3]))).backward()
    weights = case.attached.named_parameters()
    assert [name for name, weight in weights if weight.grad is None or not weight.grad.any()] == []


def test_the_network_keeps_its_weights_buffers_and_modes():
    network = Blocks()
    network.blocks[1].eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    attached = attach_exits(network, SPEC, [0.2])
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not attached.get_submodule("stages.1.blocks.1.norm").training
    assert attached.get_submodule("stages.1.blocks.2.norm").training


def test_heads_suit_what_the_cut_gives():
    tokens = attach_exits(Tokens(), SPEC, ["layers.1", "patches"])
    assert tokens.heads[1].norm.normalized_shape == (6,) and not tokens.heads[1].class_token
    assert tokens.heads[0].linear.in_features == 6
    vectors = attach_exits(Blocks(), SPEC, ["mean"])
    assert isinstance(vectors.heads[0], nn.Linear)
    mixed = attach_exits(Blocks(), SPEC, ["blocks.0"], head="mixed")
    assert isinstance(mixed.heads[0].pool, MixedPool)
    assert mixed.heads[0].linear.in_features == 6 * 4 * 4


def test_a_head_of_the_users_own_gets_channels_and_classes():
    asked = []

    def head(channels, classes):
        asked.append((channels, classes))
        return nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.LazyLinear(classes))

    attached = attach_exits(Blocks(), SPEC, ["blocks.0", "blocks.1"], head=head)
    assert asked == [(6, 4), (6, 4)]
    assert attached.heads[0] is not attached.heads[1]
    assert len(attached(IMAGES)) == 3


def test_maps_with_the_channels_last():
    attached = attach_exits(swin_t(num_classes=4), PHOTO, ["features.1.1", "features.5.0"]).eval()
    assert [head[1].linear.in_features for head in attached.heads[:-1]] == [96, 384]
    state = attached.stages[0](torch.randn(2, 3, 64, 64))
    assert state.shape == (2, 16, 16, 96)
    torch.testing.assert_close(attached.heads[0](state), attached.heads[0][1].linear(state.mean((1, 2))))


def test_vit_exits_read_the_class_token():
    attached = attach_exits(small_vit(), PHOTO, ["encoder.layers.encoder_layer_0"])
    state = torch.randn(2, 17, 32)
    changed = state.clone()
    changed[:, 1:] += 1
    head = attached.heads[0]
    torch.testing.assert_close(head(state), head(changed), rtol=0, atol=0)
    assert not torch.allclose(head(state), head(-state))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("max", "head = 'max': must be one of mean, mixed"),
        (lambda channels, classes: nn.Sequential(nn.Flatten(), nn.LazyLinear(classes + 1)),
         "head at blocks.0: must turn features (2, 6, 8, 8) into logits (2, 4)"),
        (lambda channels, classes: 3, "head at blocks.0: AttributeError"),
        (nn.Linear, "head at blocks.0: RuntimeError: "),
    ],
    ids=["name", "classes", "no module", "for vectors"],
)  # fmt: skip
def test_heads_that_do_not_fit_are_refused(head, expected):
    assert refusal(lambda: attach_exits(Blocks(), SPEC, ["blocks.0"], head=head)).startswith(expected)


def save(content, folder):
    path = folder / "weights.pt"
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"stem.bias": None}, "do not fit Blocks: 1 tensors (stem.bias …) missing, none unknown"),
        ({"more": (1,)}, "do not fit Blocks: none missing, 1 tensors (more …) unknown"),
        ({"classifier.weight": (9, 7)}, "do not fit Blocks: classifier.weight is (9, 7), not (4, 6)"),
        (None, "must hold a state dict: names and tensors"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, expected):
    content: Any = {"stem": "text"}
    if change is not None:
        changed = {name: torch.ones(shape) for name, shape in change.items() if shape}
        content = {**Blocks().state_dict(), **changed}
        content = {name: tensor for name, tensor in content.items() if change.get(name, tensor) is not None}
    path = save(content, tmp_path)
    message = refusal(lambda: attach_exits(Blocks(), SPEC, ["blocks.1"], weights=path))
    assert message.startswith(f"model.weights = {path!r}: {expected}")


@pytest.mark.parametrize("tokens", [16, 17, 18])
def test_as_many_tokens_as_a_map_has_places_are_without_a_class_token(tokens):
    """A network may add its class token after the cut, as CaiT does."""
    network = SimpleNamespace(cls_token=torch.zeros(1, 1, 32))
    features = describe_features(network, torch.Size((2, tokens, 32)), torch.Size((2, 3, 64, 64)))
    assert features.class_token == (tokens > 16)


def test_the_networks_of_a_library_are_known_without_loading_it(monkeypatch):
    assert sorted(_names("torchvision")) == torchvision.models.list_models(torchvision.models)
    expected = timm.list_models()
    monkeypatch.delitem(sys.modules, "timm")
    assert sorted(_names("timm")) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("torchvision:resnet18@0.3, layer3.0", ("layer1.1", "layer3.0")),
        ("timm:test_vit2.r160_in1k@0.3,0.6", ("blocks.1", "blocks.4")),
    ],
)
def test_by_name(name, cuts):
    network = build_model(ModelConfig(name), PHOTO, seed=0)
    assert isinstance(network, AttachedNetwork) and network.training
    assert network.cuts == cuts


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet18@", 64, 'exits must follow "@", as in torchvision:resnet18@0.3,0.6'),
        ("resnet19@0.5", 64, "torchvision has no classification network resnet19; did you mean 'resnet"),
        ("resnet18@1.5", 64, "at = 1.5: must be a share of the operations above 0 and below 1"),
        ("vit_b_16@0.5", 30, "can't be built: AssertionError: Input shape indivisible by patch size"),
        ("timm:resnet19@0.5", 64, "timm has no classification network resnet19; did you mean '"),
        ("timm:test_resnet.none@0.5", 64, "can't be built: RuntimeError: Invalid pretrained tag (none)"),
        ("timm:test_resnet", 64, 'exits must follow "@", as in timm:resnet18@0.3,0.6'),
    ],
)
def test_names_that_mean_nothing_are_refused(name, size, expected):
    name = name if ":" in name else f"torchvision:{name}"
    message = refusal(lambda: build_model(ModelConfig(name), InputSpec(3, size, size, 4), seed=0))
    assert message.startswith(f"model.name = {name!r}: {expected}")
