"""Networks by name: reproducible, checked, and the user's own."""

import sys

import pytest
import torch
from attached_networks import refusal

from raygf.config.run import ModelConfig, MSDNetConfig
from raygf.data.base import InputSpec
from raygf.models.build import build_model
from raygf.models.msdnet import MSDNet
from raygf.models.multi_exit import MultiExitNetwork

DIGITS = InputSpec(channels=1, height=8, width=8, classes=10)
SMALL = ModelConfig(msdnet=MSDNetConfig(exits=3, base=2, step=1, channels=4, growth=2, head_channels=8))

USER_CODE = """
import torch
from torch import nn
from raygf.errors import ConfigError
from raygf.models.multi_exit import MultiExitNetwork

def two_exits(spec):
    pixels = spec.channels * spec.height * spec.width
    stages = [nn.Sequential(nn.Flatten(), nn.Linear(pixels, 8)), nn.Linear(8, 8)]
    return MultiExitNetwork(stages, [nn.Linear(8, spec.classes), nn.Linear(8, spec.classes)])

def with_batch_norm(spec):
    network = two_exits(spec)
    network.stages[1] = nn.BatchNorm1d(8)
    return network

def lazy(spec):
    return MultiExitNetwork([nn.Flatten()], [nn.LazyLinear(spec.classes)])

def one_tensor(spec):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(spec.classes))

def wrong_size(spec):
    return MultiExitNetwork([nn.Flatten()], [nn.Linear(5, spec.classes)])

def refuses(spec):
    raise ConfigError("images must be square")

constant = 3
"""


OWN = "raygf_test_user_networks"


@pytest.fixture(autouse=True)
def user_module(tmp_path, monkeypatch):
    (tmp_path / f"{OWN}.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, OWN, raising=False)


def equal_bits(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_equal_seeds_give_equal_bits_and_other_seeds_other_weights():
    first = build_model(SMALL, DIGITS, seed=5)
    assert isinstance(first, MSDNet) and len(first.heads) == 3 and first.training
    before = torch.random.get_rng_state()
    again, other = build_model(SMALL, DIGITS, seed=5), build_model(SMALL, DIGITS, seed=6)
    assert torch.equal(before, torch.random.get_rng_state())
    assert equal_bits(first, again)
    kernels = [name for name, weight in first.named_parameters() if weight.dim() == 4]
    assert kernels
    assert not any(torch.equal(first.get_parameter(name), other.get_parameter(name)) for name in kernels)


@pytest.mark.parametrize("function", ["two_exits", "lazy"])
def test_a_network_of_the_users_own(function):
    config = ModelConfig(name=f"{OWN}:{function}")
    network = build_model(config, DIGITS, seed=0)
    assert isinstance(network, MultiExitNetwork)
    shapes = [tuple(logits.shape) for logits in network(torch.zeros(4, 1, 8, 8))]
    assert shapes == [(4, 10)] * len(network.heads)
    assert equal_bits(network, build_model(config, DIGITS, seed=0))
    assert not equal_bits(network, build_model(config, DIGITS, seed=1))


def test_the_trial_leaves_batch_norm_alone():
    network = build_model(ModelConfig(name=f"{OWN}:with_batch_norm"), DIGITS, seed=0)
    norm = network.stages[1]
    assert norm.training and norm.num_batches_tracked == 0 and not norm.running_mean.any()


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        (f"{OWN}:one_tensor", "the network must return a list of logits (batch, 10), one per exit; ",
         "for 2 images it returned a tensor (2, 10)"),
        (f"{OWN}:wrong_size", "the network failed on 2 images of 1x8x8: RuntimeError: ", ""),
        (f"{OWN}:constant", "constant is not a function", ""),
        ("resnet", "must be one of msdnet", "of your own; did you mean 'resnet56-sdn'?"),
    ],
)  # fmt: skip
def test_networks_and_names_that_do_not_fit_are_refused_in_one_line(name, start, end):
    message = refusal(lambda: build_model(ModelConfig(name), DIGITS, seed=0))
    assert message.startswith(f"model.name = {name!r}: {start}") and message.endswith(end)


def test_a_users_own_config_error_is_passed_on():
    config = ModelConfig(f"{OWN}:refuses")
    assert refusal(lambda: build_model(config, DIGITS, seed=0)) == "images must be square"
