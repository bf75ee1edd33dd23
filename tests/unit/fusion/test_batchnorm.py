from __future__ import annotations

import pytest
import torch
from tiny_network import bind, seeded, space_of, three_exits
from torch import nn
from torch.testing import assert_close

from raygf.errors import ConfigError
from raygf.fusion.batchnorm import scaled_layers, weighted_statistics
from raygf.training.space import FlatSpace, Segments


def layer_buffers(mean, var, count=1):
    return {
        "0.running_mean": torch.tensor(mean),
        "0.running_var": torch.tensor(var),
        "0.num_batches_tracked": torch.tensor(count),
    }


LAYER = nn.Sequential(nn.BatchNorm2d(2))  # tensors 0.weight (2,), 0.bias (2,)
ONE, TWO = layer_buffers([1.0, 2.0], [4.0, 8.0], 3), layer_buffers([3.0, 6.0], [2.0, 16.0], 5)


def test_tensor_segments_by_hand():
    segments = Segments("tensor", FlatSpace.of(LAYER))
    weights = torch.tensor([[0.25, 0.9], [0.75, 0.1]])  # the second column, the shift's, must not be used
    merged = weighted_statistics(LAYER, [ONE, TWO], weights, segments)
    assert merged["0.running_mean"].tolist() == [2.5, 5.0]
    assert merged["0.running_var"].tolist() == [2.5, 14.0]
    assert merged["0.num_batches_tracked"] == 5


def test_channel_segments_by_hand():
    segments = Segments("channel", FlatSpace.of(LAYER))
    weights = torch.tensor([[0.25, 0.5, 0.9, 0.9], [0.75, 0.5, 0.1, 0.1]])
    merged = weighted_statistics(LAYER, [ONE, TWO], weights, segments)
    assert merged["0.running_mean"].tolist() == [2.5, 4.0]
    assert merged["0.running_var"].tolist() == [2.5, 12.0]


def test_network_segment_by_hand():
    segments = Segments("network", FlatSpace.of(LAYER))
    merged = weighted_statistics(LAYER, [ONE, TWO], torch.tensor([[0.5], [0.5]]), segments)
    assert merged["0.running_mean"].tolist() == [2.0, 4.0]


def test_inputs_are_not_written():
    segments = Segments("tensor", FlatSpace.of(LAYER))
    merged = weighted_statistics(LAYER, [ONE, TWO], torch.full((2, 2), 0.5), segments)
    merged["0.num_batches_tracked"].add_(100)
    merged["0.running_mean"].add_(100)
    assert TWO["0.num_batches_tracked"] == 5 and TWO["0.running_mean"].tolist() == [3.0, 6.0]


def test_equal_statistics_stay_as_they_are():
    bound = bind()
    segments = Segments("channel", bound.space)
    buffers = {name: torch.rand_like(t.float()) for name, t in bound.network.named_buffers()}
    weights = torch.softmax(torch.randn(3, segments.count), dim=0)
    merged = weighted_statistics(bound.network, [buffers] * 3, weights, segments)
    assert_close(merged, buffers)


def test_permuting_the_exits_changes_no_statistic():
    segments = Segments("channel", FlatSpace.of(LAYER))
    weights = torch.softmax(torch.randn(2, 4), dim=0)
    merged = weighted_statistics(LAYER, [ONE, TWO], weights, segments)
    turned = weighted_statistics(LAYER, [TWO, ONE], weights.flip(0), segments)
    for name in ("0.running_mean", "0.running_var"):
        assert_close(merged[name], turned[name])


def test_layers_are_found_by_name():
    network = seeded(three_exits)
    names = [name for name, _ in network.named_parameters()]
    assert scaled_layers(network, names) == ["stages.0.1.", "stages.1.1.", "stages.2.1."]
    assert scaled_layers(nn.BatchNorm1d(2), ["weight", "bias"]) == [""]


def test_a_layer_without_scale_is_refused_by_name():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
    with pytest.raises(ConfigError, match=r"fusion\.batchnorm = 'weighted': 1 has no trainable scale"):
        scaled_layers(network, ["0.weight", "0.bias"])


def test_a_frozen_scale_is_refused():
    network = nn.Sequential(nn.BatchNorm1d(2))
    network[0].weight.requires_grad_(False)
    with pytest.raises(ConfigError, match="0 has no trainable scale"):
        scaled_layers(network, FlatSpace.of(network).names)


def test_a_layer_without_running_statistics_needs_no_scale():
    network = nn.BatchNorm1d(2, affine=False, track_running_stats=False)
    assert scaled_layers(network, space_of((1,)).names) == []
