"""The chain of stages and heads, what a look at a network leaves as it was, strided convolutions."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from raygf.config.run import ModelConfig
from raygf.data.base import InputSpec
from raygf.models.build import build_model
from raygf.models.multi_exit import MultiExitNetwork, StridedConv2d, evaluating, mend_strides


class Split(nn.Module):
    """A stage whose state is a tuple."""

    def forward(self, x):
        return x, 2 * x


class Difference(nn.Module):
    """A head, or stage, that takes a tuple."""

    def forward(self, state):
        assert isinstance(state, tuple)
        return state[1] - 3 * state[0]


def test_state_is_handed_on_as_it_is_and_exits_come_shallow_to_deep():
    network = MultiExitNetwork([Split(), Difference()], [Difference(), nn.ReLU()])
    x = torch.arange(6.0).reshape(2, 3)
    shallow, deep = network(x)
    torch.testing.assert_close(shallow, -x)
    torch.testing.assert_close(deep, torch.zeros(2, 3))


@pytest.mark.parametrize(("stages", "heads"), [(0, 0), (2, 1), (1, 2)])
def test_there_must_be_one_head_per_stage(stages, heads):
    with pytest.raises(ValueError, match=f"{stages} stages and {heads} heads"):
        MultiExitNetwork([nn.Identity()] * stages, [nn.Identity()] * heads)


class CountsCalls(nn.Module):
    """Changes one buffer in place and replaces another, even in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x):
        self.calls += 1
        self.last = x
        return x


def test_modes_come_back_module_by_module_after_an_error_too():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    network[0].eval()
    with pytest.raises(KeyError), evaluating(network):
        assert not any(module.training for module in network.modules())
        assert not torch.is_grad_enabled()
        raise KeyError
    assert [module.training for module in network.modules()] == [True, False, True]
    assert torch.is_grad_enabled()


def test_buffers_keep_content_and_identity():
    network = CountsCalls()
    calls, last = network.calls, network.last
    with evaluating(network):
        network(torch.ones(2))
        assert calls == 1
    assert network.calls is calls and calls == 0
    assert network.last is last and last.tolist() == [0, 0]


def spoil_memory():
    """Leave NaN in what is handed out next: parts of a gradient that are not written then show."""
    spoiled = [torch.full((size,), torch.nan) for size in (100, 1000, 10_000, 100_000) for _ in range(4)]
    del spoiled


def gradient(conv, images, toward, bf16):
    """The output, and the weight's gradient of its product with ``toward``."""
    conv.weight.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = conv(images)
    spoil_memory()
    output.backward(toward.to(output.dtype))
    assert conv.weight.grad is not None
    return output.detach().float(), conv.weight.grad


@pytest.mark.parametrize("side", [1, 2, 5])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (3, 2), (5, 3), (3, (2, 1))])
@pytest.mark.parametrize(("groups", "bf16"), [(1, False), (16, True)])
def test_outputs_and_gradients_are_those_of_the_definition(side, kernel, stride, groups, bf16):
    torch.manual_seed(0)
    conv = StridedConv2d(16, 16, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    images = torch.randn(4, 16, side, side).contiguous(memory_format=torch.channels_last)
    weight = conv.weight.detach().double().requires_grad_()
    expected = F.conv2d(images.double(), weight, None, stride, kernel // 2, 1, groups)
    toward = torch.randn(expected.shape)
    expected.backward(toward.double())
    output, found = gradient(conv, images, toward, bf16)
    rough = {"rtol": 0.05, "atol": 0.1} if bf16 else {"rtol": 1e-4, "atol": 1e-5}
    assert_close(output, expected.detach().float(), **rough)
    assert_close(found, weight.grad.float(), **rough)


@pytest.mark.parametrize("side", [3, 8])
def test_where_features_are_large_enough_the_bits_are_pytorchs(side):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    images, toward = torch.randn(2, 4, side, side), torch.randn(2, 6, (side + 1) // 2, (side + 1) // 2)
    before = gradient(plain, images, toward, bf16=False)
    mend_strides(plain)
    after = gradient(plain, images, toward, bf16=False)
    assert type(plain) is StridedConv2d
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_mending_takes_strided_convolutions_alone():
    class Mine(nn.Conv2d):
        pass

    network = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, 2), Mine(1, 1, 3, 2), nn.MaxPool2d(2, 2))
    names = list(network.state_dict())
    mend_strides(network)
    assert [type(module) for module in network] == [nn.Conv2d, StridedConv2d, Mine, nn.MaxPool2d]
    assert list(network.state_dict()) == names
    assert type(pickle.loads(pickle.dumps(network[1]))) is StridedConv2d


@pytest.mark.parametrize("name", ["torchvision:resnet18@0.5", "mobilenet-sdn"])
def test_networks_on_small_images_have_finite_gradients(name):
    """Their last strides are on 1x1 features."""
    spec = InputSpec(3, 8, 8, 3)
    network = build_model(ModelConfig(name), spec, seed=0).train()
    spoil_memory()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    sum(out.float().sum() for out in logits).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters())
