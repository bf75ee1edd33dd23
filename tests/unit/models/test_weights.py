"""Weights to start from, and backbones that keep theirs."""

from dataclasses import replace

import pytest
import torch
from attached_networks import SPEC, Blocks, refusal
from safetensors.torch import save_file
from tiny_network import CPU, three_exits

from raygf.config.run import ModelConfig, OptimConfig
from raygf.data.base import InputSpec
from raygf.models.attach import attach_exits
from raygf.models.build import build_model
from raygf.models.sdn import MobileNetSDN
from raygf.models.weights import load_weights, read_weights
from raygf.training.network import BoundNetwork
from raygf.training.sgd import FlatOptimizer, train_epoch

IMAGES = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def wrapped(*keys):
    def save(state, path):
        torch.save(dict.fromkeys(keys, state) or state, path)

    return save


@pytest.mark.parametrize("save", [save_file, wrapped(), wrapped("state_dict"), wrapped("model", "epoch")])
def test_a_state_dict_is_loaded_by_name(tmp_path, save):
    source, network = three_exits(), three_exits()
    path = str(tmp_path / ("a.safetensors" if save is save_file else "a.pt"))
    save(source.state_dict(), path)
    load_weights(network, path, 3)
    assert all(torch.equal(own, source.state_dict()[name]) for name, own in network.state_dict().items())


def test_classifiers_for_other_classes_are_drawn_anew(tmp_path):
    small = InputSpec(3, 8, 8, 5)
    source, network = MobileNetSDN(InputSpec(3, 8, 8, 3)), MobileNetSDN(small)
    drawn = network.heads[0].linear.weight.clone()
    path = str(tmp_path / "a.safetensors")
    save_file(source.state_dict(), path)
    load_weights(network, path, 5)
    assert torch.equal(network.heads[0].linear.weight, drawn)
    assert torch.equal(next(network.stages.parameters()), next(source.stages.parameters()))
    message = refusal(lambda: load_weights(three_exits(), path, 3))
    assert message.startswith(f"model.weights = {path!r}: do not fit MultiExitNetwork: ")


def test_an_attached_network_starts_from_its_own_state_dict_too(tmp_path):
    name, path = "torchvision:shufflenet_v2_x0_5@0.5", str(tmp_path / "a.safetensors")
    spec = InputSpec(3, 16, 16, 4)
    source = build_model(ModelConfig(name), spec, seed=1)
    save_file(source.state_dict(), path)
    loaded = build_model(ModelConfig(name, weights=path), spec, seed=2)
    assert all(torch.equal(own, source.state_dict()[name]) for name, own in loaded.state_dict().items())


def test_files_that_hold_no_weights_are_refused(tmp_path):
    (tmp_path / "round-000001.npz").write_bytes(b"no archive")
    message = refusal(lambda: read_weights(str(tmp_path)))
    assert message.startswith(f"model.weights = {str(tmp_path)!r}: can't be read: ")


def test_only_the_exits_of_a_frozen_backbone_learn():
    torch.manual_seed(0)
    network = three_exits()
    network.freeze_backbone(3)
    bound = BoundNetwork(network, CPU)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert all(name.startswith("heads.") for name in bound.space.names)
    optimizer = FlatOptimizer(bound, OptimConfig(weight_decay=0), 0.1, None)
    train_epoch(bound, optimizer, [(IMAGES, LABELS)], lambda losses: sum(losses).backward(), where="here")
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(bound.space.names)


def test_a_frozen_network_without_a_last_head_trains_its_own_classifier():
    attached = attach_exits(Blocks(), SPEC, ["blocks.1"])
    attached.freeze_backbone(SPEC.classes)
    trained = [name for name, weight in attached.named_parameters() if weight.requires_grad]
    ends = ["stages.1.classifier.weight", "stages.1.classifier.bias"]
    assert trained == [*ends, "heads.0.linear.weight", "heads.0.linear.bias"]
    assert not attached.train().stages[0].training and attached.heads.training


def test_freezing_by_the_configuration():
    config = replace(ModelConfig("mobilenet-sdn"), freeze=True)
    network = build_model(config, SPEC, seed=0)
    assert not any(weight.requires_grad for weight in network.stages.parameters())
