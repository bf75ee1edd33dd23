import pytest
import torch
from tiny_network import seeded, three_exits
from torch import nn

from raygf.errors import ConfigError
from raygf.fusion.batchnorm import scaled_layers, weighted_statistics
from raygf.training.space import FlatSpace, Segments


def layer_buffers(mean, var, count):
    found = {"running_mean": mean, "running_var": var, "num_batches_tracked": count}
    return {f"0.{name}": torch.tensor(value) for name, value in found.items()}


LAYER = nn.Sequential(nn.BatchNorm2d(2))  # tensors 0.weight (2,), 0.bias (2,)
ONE, TWO = layer_buffers([1.0, 2.0], [4.0, 8.0], 3), layer_buffers([3.0, 6.0], [2.0, 16.0], 5)


@pytest.mark.parametrize(
    ("kind", "first", "mean", "var"),
    [
        ("tensor", [0.25, 0.9], [2.5, 5.0], [2.5, 14.0]),  # 0.9: that of the shift, which must not be used
        ("channel", [0.25, 0.5, 0.9, 0.9], [2.5, 4.0], [2.5, 12.0]),
        ("network", [0.5], [2.0, 4.0], [3.0, 12.0]),
    ],
)
def test_statistics_by_hand(kind, first, mean, var):
    weights = torch.tensor([first, [1 - weight for weight in first]])
    merged = weighted_statistics(LAYER, [ONE, TWO], weights, Segments(kind, FlatSpace.of(LAYER)))
    assert merged["0.running_mean"].tolist() == pytest.approx(mean)
    assert merged["0.running_var"].tolist() == pytest.approx(var)
    assert merged["0.num_batches_tracked"] == 5  # the last exit's
    for value in merged.values():
        value.add_(100)
    assert TWO["0.num_batches_tracked"] == 5 and TWO["0.running_mean"].tolist() == [3.0, 6.0]


def test_layers_are_found_by_name():
    network = seeded(three_exits)
    names = [name for name, _ in network.named_parameters()]
    assert scaled_layers(network, names) == ["stages.0.1.", "stages.1.1.", "stages.2.1."]
    assert scaled_layers(nn.BatchNorm1d(2), ["weight", "bias"]) == [""]
    assert scaled_layers(nn.BatchNorm1d(2, affine=False, track_running_stats=False), ["0"]) == []


def test_a_layer_without_a_trainable_scale_is_refused_by_name():
    network = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2))
    frozen = nn.Sequential(nn.BatchNorm1d(2))
    frozen[0].weight.requires_grad_(False)
    for layers in (network, frozen):
        with pytest.raises(ConfigError, match=r"fusion\.batchnorm = 'weighted': 0 has no trainable scale"):
            scaled_layers(layers, FlatSpace.of(layers).names)
