"""Exits attached to networks: their heads, weights from a local file, torchvision's networks by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attached_networks import (
    IMAGES,
    SPEC,
    Blocks,
    Tokens,
    refusal,
)
from torch import nn
from torchvision.models import convnext_tiny, get_model, mobilenet_v3_small, resnet18, swin_t, vit_b_16
from torchvision.models.feature_extraction import get_graph_node_names

from raygf.config.run import ModelConfig
from raygf.data.base import InputSpec
from raygf.errors import ConfigError
from raygf.models.attach import AttachedNetwork, attach_exits
from raygf.models.build import build_model
from raygf.models.costs import measure_costs
from raygf.models.graph_cut import trace_modes
from raygf.models.sdn import MixedPool
from raygf.training.losses import exit_losses
from raygf.training.space import FlatSpace, find_ownership

PHOTO = InputSpec(channels=3, height=64, width=64, classes=4)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_heads_suit_what_the_cut_gives() -> None:
    tokens = attach_exits(Tokens(), SPEC, ["layers.1", "patches"])
    assert tokens.heads[1].norm.normalized_shape == (6,) and not tokens.heads[1].class_token
    assert tokens.heads[0].linear.in_features == 6
    vectors = attach_exits(Blocks(), SPEC, ["mean"])
    assert isinstance(vectors.heads[0], nn.Linear)
    mixed = attach_exits(Blocks(), SPEC, ["blocks.0"], head="mixed")
    assert isinstance(mixed.heads[0].pool, MixedPool)
    assert mixed.heads[0].linear.in_features == 6 * 4 * 4


def test_a_head_of_the_users_own_gets_channels_and_classes() -> None:
    asked = []

    def head(channels: int, classes: int) -> nn.Module:
        asked.append((channels, classes))
        return nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.LazyLinear(classes))

    attached = attach_exits(Blocks(), SPEC, ["blocks.0", "blocks.1"], head=head)
    assert asked == [(6, 4), (6, 4)]
    assert attached.heads[0] is not attached.heads[1]
    assert len(attached(IMAGES)) == 3


def wrong_classes(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes + 1))


def no_module(channels: int, classes: int) -> Any:
    return 3


def for_vectors(channels: int, classes: int) -> nn.Module:
    return nn.Linear(channels, classes)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("max", "head = 'max': must be one of mean, mixed"),
        (wrong_classes, "head at blocks.0: must turn features (2, 6, 8, 8) into logits (2, 4)"),
        (no_module, "head at blocks.0: AttributeError"),
        (for_vectors, "head at blocks.0: RuntimeError: "),
    ],
)
def test_heads_that_do_not_fit_are_refused(head: Any, expected: str) -> None:
    assert refusal(lambda: attach_exits(Blocks(), SPEC, ["blocks.0"], head=head)).startswith(expected)


class Unsafe:
    """Would be run by unpickling."""

    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def save(content: Any, folder: Path) -> str:
    path = folder / "weights.pt"
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("wrap", [dict, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
def test_weights_are_loaded(tmp_path: Path, wrap: Any) -> None:
    source = Blocks()
    path = save(wrap(source.state_dict()), tmp_path)
    attached = attach_exits(Blocks(), SPEC, ["blocks.1"], weights=path).eval()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(attached(images)[-1], source.eval()(images), rtol=0, atol=0)


def test_a_classifier_for_other_classes_is_drawn_anew(tmp_path: Path) -> None:
    source, network = Blocks(classes=9), Blocks()
    drawn = network.classifier.weight.detach().clone()
    attach_exits(network, SPEC, ["blocks.1"], weights=save(source.state_dict(), tmp_path))
    assert torch.equal(network.classifier.weight, drawn)
    assert torch.equal(network.blocks[3].conv.weight, source.blocks[3].conv.weight)


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in Blocks().state_dict().items() if key != name}


def changed(name: str, *shape: int) -> dict[str, torch.Tensor]:
    return {**Blocks().state_dict(), name: torch.ones(shape)}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (without("stem.bias"), "do not fit Blocks: 1 tensors (stem.bias …) missing, none unknown"),
        (changed("more", 1), "do not fit Blocks: none missing, 1 tensors (more …) unknown"),
        (
            changed("stem.weight", 6, 3, 5, 5),
            "do not fit Blocks: stem.weight is (6, 3, 5, 5), not (6, 3, 3, 3)",
        ),
        (changed("classifier.weight", 9, 7), "do not fit Blocks: classifier.weight is (9, 7), not (4, 6)"),
        ([1, 2], "must hold a state dict: names and tensors"),
        ({"stem": "text"}, "must hold a state dict: names and tensors"),
        (Unsafe(), "can't be read: UnpicklingError: "),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, content: Any, expected: str) -> None:
    path = save(content, tmp_path)
    with pytest.raises(ConfigError) as caught:
        attach_exits(Blocks(), SPEC, ["blocks.1"], weights=path)
    message = str(caught.value)
    assert message.startswith(f"weights = {path!r}: {expected}")
    assert "\n" not in message


LABELS = torch.tensor([0, 3])


# The builder, the exits, and the cuts that they mean.
NETWORKS: dict[str, tuple[Any, list[float | str], tuple[str, str]]] = {
    "resnet18": (resnet18, [0.3, 0.6], ("layer1.1", "layer3.0")),
    "mobilenet_v3_small": (mobilenet_v3_small, [0.3, "features.8"], ("features.5", "features.8")),
    "convnext_tiny": (convnext_tiny, [0.3, 0.6], ("features.3.2", "features.5.4")),
    "vit_b_16": (
        lambda num_classes: vit_b_16(image_size=64, num_classes=num_classes),
        ["encoder.layers.encoder_layer_1.add_1", 0.5],
        ("encoder.layers.encoder_layer_1.add_1", "encoder.layers.encoder_layer_5"),
    ),
}


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[str, nn.Module, AttachedNetwork]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build, at, _ = NETWORKS[request.param]
    network = build(num_classes=4)
    with torch.no_grad():  # where ViT starts with zeros and ConvNeXt almost, no gradient would be seen
        for name, weight in network.named_parameters():
            if name == "heads.head.weight":
                weight.normal_(std=0.02)
            if name.endswith("layer_scale"):
                weight.fill_(1)
    yield request.param, network, attach_exits(network, PHOTO, at)


def test_cuts_are_block_ends(case: tuple[str, nn.Module, AttachedNetwork]) -> None:
    name, _, attached = case
    assert attached.cuts == NETWORKS[name][2]


def test_nodes_have_torchvisions_names(case: tuple[str, nn.Module, AttachedNetwork]) -> None:
    _, network, _ = case
    train, eval = get_graph_node_names(network, suppress_diff_warning=True)
    traces = trace_modes(network)
    assert list(traces.train.names.values()) == train
    assert list(traces.eval.names.values()) == eval


@pytest.mark.parametrize("training", [True, False])
def test_the_last_exit_is_the_networks_own(
    case: tuple[str, nn.Module, AttachedNetwork], training: bool
) -> None:
    """In training mode, too: dropout and stochastic depth draw the same numbers."""
    _, network, attached = case
    with torch.no_grad():
        torch.manual_seed(3)
        expected = network.train(training)(images())
        torch.manual_seed(3)
        logits = attached.train(training)(images())
    assert [tuple(exit.shape) for exit in logits] == [(2, 4)] * 3
    torch.testing.assert_close(logits[-1], expected, rtol=0, atol=0)


def test_costs_rise(case: tuple[str, nn.Module, AttachedNetwork]) -> None:
    _, network, attached = case
    costs = measure_costs(attached, PHOTO)
    assert costs[0].operations < costs[1].operations < costs[2].operations
    assert costs[0].parameters < costs[1].parameters < costs[2].parameters
    own = sum(weight.numel() for weight in network.parameters())
    heads = sum(weight.numel() for weight in attached.heads.parameters())
    # Among them those of ConvNeXt and ViT that belong to no module that is called.
    assert costs[2].parameters == own + heads


def test_exits_own_what_they_are_computed_from(case: tuple[str, nn.Module, AttachedNetwork]) -> None:
    _, _, attached = case
    space = FlatSpace.of(attached)
    owned = find_ownership(attached, images(), space)
    for tensor, name in enumerate(space.names):
        part, depth = name.split(".")[0], int(name.split(".")[1])
        owners = [depth] if part == "heads" else list(range(depth, 3))
        assert owned[:, tensor].nonzero().flatten().tolist() == owners, name
    counts = owned.sum(dim=1).tolist()
    assert 0 < counts[0] < counts[1] < counts[2]


def test_one_training_step_changes_all_weights(case: tuple[str, nn.Module, AttachedNetwork]) -> None:
    _, _, attached = case
    attached.train().zero_grad()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(attached.parameters(), lr=0.1)
    before = [weight.detach().clone() for weight in attached.parameters()]
    exit_losses(attached(images()), LABELS).sum().backward()
    optimizer.step()
    names = [name for name, _ in attached.named_parameters()]
    same = [
        name
        for name, old, new in zip(names, before, attached.parameters(), strict=True)
        if torch.equal(old, new)
    ]
    assert same == []


def test_maps_with_the_channels_last() -> None:
    torch.set_num_threads(1)
    attached = attach_exits(swin_t(num_classes=4), PHOTO, ["features.1.1", "features.5.0"])
    assert [head[1].linear.in_features for head in attached.heads[:-1]] == [96, 384]
    attached.eval()
    state = attached.stages[0](images())
    assert state.shape == (2, 16, 16, 96)
    pooled = state.mean((1, 2))
    torch.testing.assert_close(attached.heads[0](state), attached.heads[0][1].linear(pooled))


def test_vit_exits_read_the_class_token() -> None:
    torch.set_num_threads(1)
    network = get_model("vit_b_32", image_size=32, num_classes=4)
    attached = attach_exits(network, InputSpec(3, 32, 32, 4), ["encoder.layers.encoder_layer_0"])
    state = torch.randn(2, 2, 768)
    changed = state.clone()
    changed[:, 1] += 1
    head = attached.heads[0]
    torch.testing.assert_close(head(state), head(changed), rtol=0, atol=0)
    assert not torch.allclose(head(state), head(-state))


def test_by_name() -> None:
    config = ModelConfig("torchvision:resnet18@0.3, layer3.0")
    network = build_model(config, PHOTO, seed=0)
    assert isinstance(network, AttachedNetwork)
    assert network.cuts == ("layer1.1", "layer3.0")
    assert network.training
    again = build_model(config, PHOTO, seed=0).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in network.state_dict().items())
    other = build_model(config, PHOTO, seed=1)
    assert not torch.equal(network.heads[0].linear.weight, other.heads[0].linear.weight)


GREY = InputSpec(1, 28, 28, 4)


ODD = InputSpec(3, 30, 30, 4)


@pytest.mark.parametrize(
    ("name", "spec", "expected"),
    [
        ("resnet18", PHOTO, 'exits must follow "@", as in torchvision:resnet18@0.3,0.6'),
        ("resnet18@", PHOTO, 'exits must follow "@"'),
        ("resnet19@0.5", PHOTO, "torchvision has no classification network resnet19; close matches: resnet1"),
        ("fcn_resnet50@0.5", PHOTO, "torchvision has no classification network fcn_resnet50"),
        ("resnet18@0.5", GREY, "torchvision's networks take images of 3 channels, not 1"),
        ("resnet18@1.5", PHOTO, "at = 1.5: must be a share of the operations above 0 and below 1"),
        ("resnet18@0.5,layer9", PHOTO, "at = 'layer9': must be a node of ResNet; close matches: layer"),
        ("vit_b_16@0.5", ODD, "can't be built: AssertionError: Input shape indivisible by patch size"),
    ],
)
def test_names_that_mean_nothing_are_refused_in_one_line(name: str, spec: InputSpec, expected: str) -> None:
    name = f"torchvision:{name}"
    with pytest.raises(ConfigError) as caught:
        build_model(ModelConfig(name), spec, seed=0)
    assert str(caught.value).startswith(f"model.name = {name!r}: {expected}")
    assert "\n" not in str(caught.value)
