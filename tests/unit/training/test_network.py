import hashlib
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from tiny_network import CPU, Tied, bind, random_batches, seeded, three_exits
from torch import nn
from torch.testing import assert_close

from raygf.errors import CheckpointError
from raygf.training.losses import exit_losses
from raygf.training.network import BoundNetwork, NetworkState, as_tensor, not_finite, to_numpy

SHAPES = st.lists(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), min_size=1, max_size=6)


def bits(tensor):
    return tensor.detach().numpy().tobytes()


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(-1, 5), st.integers(0, 2**32 - 1))
def test_parameters_are_the_vector_and_gradients_are_grad(shapes, fixed, seed):
    """Scalars, empty tensors, a frozen one and any bits, NaN included: the same memory, seen twice."""
    network = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in [*shapes, (2,)]])
    network.register_buffer("counts", torch.arange(3))
    if 0 <= fixed < len(shapes):
        network[fixed].requires_grad_(False)
    bound = BoundNetwork(network, CPU)
    known = np.random.default_rng(seed).integers(0, 2**32, bound.space.size, np.uint32).view(np.float32)
    bound.vector.copy_(torch.from_numpy(known.copy()))
    trained = [p for p in network.parameters() if p.requires_grad and p.numel()]
    assert b"".join(map(bits, trained)) == known.tobytes() == bound.state().vector.tobytes()
    with torch.no_grad():
        trained[-1].fill_(7)
        for parameter in trained:
            parameter.grad.fill_(2)
    assert bound.vector[-1] == 7
    assert torch.equal(bound.grad, torch.full_like(bound.grad, 2))


def test_binding_leaves_the_network_as_it_was():
    plain, bound = seeded(three_exits).eval(), bind()
    bound.network.eval()
    images = random_batches(1)[0][0]
    assert all(torch.equal(a, b) for a, b in zip(plain(images), bound.network(images), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain(images), bound.forward(images), strict=True))


def test_buffers_are_exchanged_and_put_back():
    bound, other = bind(), bind()
    other.network.train()(random_batches(1)[0][0])
    mine, theirs = bound.buffer_copies(), other.buffer_copies()
    lent = {name: tensor.clone() for name, tensor in theirs.items()}
    for inside, outside in ((theirs, mine), (mine, theirs)):
        bound.exchange(lent)
        assert all(torch.equal(tensor, inside[name]) for name, tensor in bound.network.named_buffers())
        assert all(torch.equal(lent[name], tensor) for name, tensor in outside.items())


def test_gradients_are_views_of_grad():
    bound, reference = bind(), seeded(three_exits)
    images, labels = random_batches(1)[0]
    for _ in range(2):
        for network in (bound.network, reference):
            sum(exit_losses(network(images), labels)).backward()
        assert torch.equal(bound.grad, torch.cat([p.grad.flatten() for p in reference.parameters()]))


def test_state_and_load_round_trip():
    one, two = bind(seed=1), bind(seed=2)
    one.network.train()(random_batches(1)[0][0])
    two.load(one.state())
    assert two.state().sha256() == one.state().sha256()
    expected = one.network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in two.network.state_dict().items())
    assert expected["stages.0.1.num_batches_tracked"] == 1


def test_states_are_copies_and_only_read():
    bound, state = bind(), bind(seed=3).state()
    for array in (state.vector, *state.buffers.values()):
        array.flags.writeable = False
    before = state.sha256()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound.load(state)
    taken = bound.state()
    bound.vector.add_(1)
    bound.network.train()(random_batches(1)[0][0])
    assert taken.sha256() == state.sha256() == before


@pytest.mark.parametrize(
    ("cut", "buffers", "message"),
    [
        (1, {}, "392 parameters .float32., this network 393"),
        (0, {"stages.1.1.running_mean": None}, r"buffer stages\.1\.1\.running_mean"),
        (0, {"stages.1.1.running_mean2": np.zeros(1)}, r"buffer stages\.1\.1\.running_mean2"),
        (0, {"stages.1.1.running_mean": np.zeros(5, np.float32)}, r"buffer stages\.1\.1\.running_mean"),
    ],
    ids=["size", "missing", "extra", "shape"],
)
def test_state_of_another_network_is_refused_by_name_and_changes_nothing(cut, buffers, message):
    bound = bind()
    state = bound.state()
    changed = {name: array for name, array in {**state.buffers, **buffers}.items() if array is not None}
    with pytest.raises(CheckpointError, match=message):
        bound.load(NetworkState(state.vector[cut:] + 1, changed))
    assert bound.state().sha256() == state.sha256()


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


def test_as_tensor_shares_and_to_numpy_copies():
    array = np.zeros(3, np.float32)
    tensor = as_tensor(array)
    array[1] = 5
    assert tensor[1] == 5
    copy = to_numpy(tensor)
    copy[0] = 9
    assert array[0] == 0
    assert to_numpy(torch.ones(2, requires_grad=True)).tolist() == [1, 1]


def test_what_is_not_finite_is_named():
    bound = bind()
    state = bound.state()
    vector, space = state.vector.copy(), bound.space
    bound.check_restored(state)
    assert not_finite(space, as_tensor(vector), state.buffers) == ""
    spoilt = {**state.buffers, "stages.0.1.running_var": np.array([1, np.inf, np.nan, 1], np.float32)}
    assert not_finite(space, as_tensor(vector), spoilt) == "stages.0.1.running_var (2 of 4 values)"
    vector[[0, -1, -2]] = np.nan
    assert (
        not_finite(space, as_tensor(vector)) == "stages.0.0.weight (1 of 36 values), the first of 2 tensors"
    )
    with pytest.raises(CheckpointError, match=r"weights are not finite: stages.* an earlier checkpoint$"):
        bound.check_restored(NetworkState(vector, state.buffers))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 11 * 32 - 1), st.integers(0, 4 * 32 - 1))
def test_hash_changes_with_any_bit_and_any_name_but_not_with_order_and_memory(one, two):
    def state():
        vector = np.linspace(-1, 1, 11, dtype=np.float32)
        return NetworkState(vector, {"bn.mean": np.arange(4.0, dtype=np.float32), "bn.n": np.array(3)})

    plain, vector, buffer, scalar = (state() for _ in range(4))
    vector.vector.view(np.uint8)[one // 8] ^= 1 << (one % 8)
    buffer.buffers["bn.mean"].view(np.uint8)[two // 8] ^= 1 << (two % 8)
    scalar.buffers["bn.n"][...] = 4
    named = NetworkState(plain.vector, {"bn.mean": plain.buffers["bn.mean"], "bn.m": np.array(3)})
    assert plain.sha256() not in {other.sha256() for other in (vector, buffer, scalar, named)}
    spread = np.zeros(22, np.float32)
    spread[::2] = plain.vector
    spread.flags.writeable = False
    assert NetworkState(spread[::2], dict(reversed(plain.buffers.items()))).sha256() == plain.sha256()


def test_hash_is_pinned():
    """SHA-256 of four little-endian floats and one named buffer: anyone can recompute it."""
    vector = np.array([0, 1, -2, 0.5], np.float32)
    expected = hashlib.sha256(bytes.fromhex("000000000000803f000000c00000003f") + b"n" + b"\x07")
    assert NetworkState(vector, {"n": np.array([7], np.uint8)}).sha256() == expected.hexdigest()
