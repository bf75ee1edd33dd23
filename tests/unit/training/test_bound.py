from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from tiny_network import CPU, Tied, bind, random_batches, seeded, three_exits
from torch.testing import assert_close

from raygf.errors import CheckpointError
from raygf.training.losses import exit_losses
from raygf.training.network import BoundNetwork, NetworkState, as_tensor, to_numpy


def test_binding_leaves_the_network_as_it_was():
    plain, bound = seeded(three_exits).eval(), bind()
    bound.network.eval()
    images = random_batches(1)[0][0]
    assert all(torch.equal(a, b) for a, b in zip(plain(images), bound.network(images), strict=True))
    expected = torch.cat([p.detach().flatten() for p in plain.parameters()])
    assert torch.equal(bound.vector, expected)


def test_parameters_are_views_of_the_vector():
    bound = bind()
    bound.vector.zero_()
    assert all(not p.any() for p in bound.network.parameters())
    with torch.no_grad():
        bound.network.heads[2][2].bias.fill_(4)
    assert bound.vector[-3:].tolist() == [4, 4, 4]


def test_gradients_are_views_of_grad():
    bound, reference = bind(), seeded(three_exits)
    images, labels = random_batches(1)[0]
    exit_losses(bound.network(images), labels).sum().backward()
    exit_losses(reference(images), labels).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in reference.parameters()])
    assert torch.equal(bound.grad, expected)
    exit_losses(bound.network(images), labels).sum().backward()
    assert_close(bound.grad, 2 * expected)


def test_state_and_load_round_trip():
    one, two = bind(seed=1), bind(seed=2)
    one.network.train()(random_batches(1)[0][0])
    two.load(one.state())
    assert two.state().sha256() == one.state().sha256()
    expected = one.network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in two.network.state_dict().items())
    assert expected["stages.0.1.num_batches_tracked"] == 1


def test_state_is_a_copy():
    bound = bind()
    state = bound.state()
    before = state.sha256()
    bound.vector.add_(1)
    bound.network.train()(random_batches(1)[0][0])
    assert state.sha256() == before


def test_loading_writes_nothing_into_the_state():
    bound, state = bind(), bind(seed=3).state()
    for array in (state.vector, *state.buffers.values()):
        array.flags.writeable = False
    before = state.sha256()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound.load(state)
    bound.vector.add_(1)
    bound.network.train()(random_batches(1)[0][0])
    assert state.sha256() == before


def test_state_of_another_size_is_refused():
    state = bind().state()
    with pytest.raises(CheckpointError, match=r"392 parameters, this network 393"):
        bind().load(NetworkState(state.vector[1:], state.buffers))


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_state_with_other_buffers_is_refused_by_name(change):
    state = bind().state()
    buffers = dict(state.buffers)
    if change == "missing":
        del buffers["stages.1.1.running_mean"]
    elif change == "extra":
        buffers["stages.1.1.running_mean2"] = np.zeros(1)
    else:
        buffers["stages.1.1.running_mean"] = np.zeros(5, np.float32)
    bound = bind()
    before = bound.state().sha256()
    with pytest.raises(CheckpointError, match=r"buffer stages\.1\.1\.running_mean"):
        bound.load(NetworkState(state.vector + 1, buffers))
    assert bound.state().sha256() == before


def test_frozen_parameters_are_stored_with_the_buffers():
    network = seeded(three_exits)
    network.heads[0][2].weight.requires_grad_(False)
    bound = BoundNetwork(network, CPU)
    assert bound.space.size == 393 - 12
    assert bound.state().buffers["heads.0.2.weight"].shape == (3, 4)


def test_tied_weights_follow_the_vector():
    """Neither stored twice nor left behind: both uses see what is loaded."""
    bound = bind(Tied)
    state = bound.state()
    assert "second.weight" not in state.buffers
    bound.load(NetworkState(state.vector + 1, state.buffers))
    network = bound.network
    assert torch.equal(network.first.weight, network.second.weight)
    assert_close(network.first.weight.detach(), seeded(Tied).first.weight.detach() + 1)


def test_buffer_tensors_are_fresh():
    bound = bind()
    arrays = bound.buffer_arrays()
    tensors = bound.buffer_tensors(arrays)
    tensors["stages.0.1.running_mean"].add_(1)
    assert not arrays["stages.0.1.running_mean"].any()
    assert not bound.network.stages[0][1].running_mean.any()


def test_as_tensor_shares_and_to_numpy_copies():
    array = np.zeros(3, np.float32)
    tensor = as_tensor(array)
    array[1] = 5
    assert tensor[1] == 5
    copy = to_numpy(tensor)
    copy[0] = 9
    assert array[0] == 0
    assert to_numpy(torch.ones(2, requires_grad=True)).tolist() == [1, 1]
