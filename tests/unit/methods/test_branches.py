"""Branches: what is changed on the way back. Gradient Equilibrium and Deep Feature Surgery by the chain rule,
BoostNet by its equation."""

import pytest
import torch
from tiny_network import CPU, bind, random_batches, setting_of
from torch import Tensor, nn
from torch.testing import assert_close

from raygf.config.run import MethodConfig
from raygf.errors import ConfigError
from raygf.methods.base import Setting
from raygf.methods.branches import (
    BoostNetRescaling,
    BranchMethod,
    DeepFeatureSurgery,
    GradientEquilibrium,
    equilibrium,
    partition,
)
from raygf.models.multi_exit import ChannelsFirst, MultiExitNetwork
from raygf.training.losses import exit_losses
from raygf.training.network import BoundNetwork

IMAGES, LABELS = random_batches(1, size=8)[0]


@pytest.mark.parametrize(("branch", "onward"), [(0, None), (1, None), (0, 1), (1, 0)])
def test_only_the_parts_that_heads_and_deeper_stages_read_are_scaled(branch, onward):
    """Of a state of two tensors the other one goes on as it is; the next stage may read another one."""

    class Two(nn.Module):
        def forward(self, state):
            one, two = (state, state) if isinstance(state, torch.Tensor) else state
            return (one * 3, two * 5)

    class Read(nn.Module):
        def forward(self, state):
            return state[branch]

    network = MultiExitNetwork([Two(), Two()], [Read(), nn.Identity()])
    network.branch, network.onward = branch, onward
    deeper = branch if onward is None else onward
    x = torch.ones(1, 1, requires_grad=True)
    method = BranchMethod("ge", network, equilibrium)
    shallow, (one, two) = network(x)
    torch.autograd.grad([shallow], [x], retain_graph=True)
    (read,) = torch.autograd.grad([(one, two)[deeper]], [x], retain_graph=True)
    (other,) = torch.autograd.grad([(one, two)[1 - deeper]], [x])
    method.close()
    factors = (9.0, 25.0)
    assert_close(read, torch.full_like(read, factors[deeper] / 2))
    assert_close(other, torch.full_like(other, factors[1 - deeper]))


def test_a_network_without_stages_is_refused_by_the_methods_name():
    with pytest.raises(ConfigError, match="method = 'dfs' needs a network of stages and heads"):
        BranchMethod("dfs", nn.Linear(1, 1), equilibrium)


def test_three_exits_by_the_chain_rule():
    """Each exit's share of a stage's gradient is the mean's: 1/3 at the first stage, 1/2 at the second."""
    linear = [nn.Linear(1, 1, bias=False) for _ in range(6)]
    network = MultiExitNetwork(linear[:3], linear[3:])  # exit i is b_i a_i … a_1 x
    a, b, x = [1.5, 1.75, 2.0], [2.25, 2.5, 2.75], 2.0
    for weight, value in zip(network.parameters(), a + b, strict=True):
        weight.data.fill_(value)
    bound = BoundNetwork(network, CPU)
    method = GradientEquilibrium(Setting(MethodConfig(), network, torch.ones(3, 6) > 0, bound.space))
    method.backward([out.sum() for out in network(torch.tensor([[x]]))], bound)
    first = (b[0] + b[1] * a[1] + b[2] * a[2] * a[1]) * x / 3
    second = (b[1] + b[2] * a[2]) * a[0] * x / 2
    third = b[2] * a[1] * a[0] * x
    heads = [a[0] * x, a[1] * a[0] * x, a[2] * a[1] * a[0] * x]  # plain
    assert bound.grad.tolist() == pytest.approx([first, second, third, *heads])


def features_and_losses(network):
    """What every stage gives, and the exits' losses."""
    seen: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda *args: seen.append(args[2])) for stage in network.stages]
    losses = exit_losses(network(IMAGES), LABELS)
    for hook in hooks:
        hook.remove()
    return seen, losses


def test_boostnets_stages_get_the_mean_of_the_exits_behind_them_as_gradient_equilibriums():
    """dL/db_i = 1/(n − i + 1) Σ_{j ≥ i} dL_j/db_i."""
    bound = bind()
    network = bound.network.eval()
    features, losses = features_and_losses(network)
    plain = [
        [torch.autograd.grad(loss, feature, retain_graph=True)[0] for loss in losses[number:]]
        for number, feature in enumerate(features)
    ]
    found = []
    for make in (BoostNetRescaling, GradientEquilibrium):
        method = make(setting_of(bound))
        features, losses = features_and_losses(network)
        found.append(torch.autograd.grad(sum(losses), features))
        method.close()
    for boostnet, ge, exits in zip(*found, plain, strict=True):
        assert_close(boostnet, torch.stack(exits).mean(dim=0))
        assert torch.equal(boostnet, ge)


def chain(exits, width=2):
    """Stages from ``width`` features to as many, heads to one number, all linear: weights 1.5, 1.6 … ."""
    network = MultiExitNetwork(
        [nn.Linear(1 if exit == 0 else width, width, bias=False) for exit in range(exits)],
        [nn.Linear(width, 1, bias=False) for _ in range(exits)],
    )
    numbers = torch.arange(100) / 10 + 1.5
    for weight in network.parameters():
        weight.data.copy_(numbers[: weight.numel()].view_as(weight))
        numbers = numbers[weight.numel() :]
    return network


def surgery(network, beta):
    bound = BoundNetwork(network, CPU)
    return DeepFeatureSurgery(Setting(MethodConfig(dfs_beta=beta), network, torch.empty(0), bound.space))


def gradients(network, beta):
    """Of the summed outputs for x = 2; ``beta`` None: plain."""
    method = None if beta is None else surgery(network, beta)
    bound = BoundNetwork(network, CPU)
    losses = [out.sum() for out in network(torch.tensor([[2.0]]))]
    if method is None:
        sum(losses).backward()
    else:
        method.backward(losses, bound)
        method.close()
    return bound.space.views(bound.grad)


def test_two_exits_by_the_chain_rule():
    """Exit 1 says x (b1 a1 + b2 a2), exit 2 says d · C a x: a1 learns from exit 2 alone, a2 from exit 1."""
    network = chain(2)
    (a1, a2), (b1, b2), d = (
        network.stages[0].weight[:, 0].tolist(),
        network.heads[0].weight[0].tolist(),
        network.heads[1].weight[0].detach(),
    )
    c, x = network.stages[1].weight.detach(), 2.0
    found = gradients(network, beta=0.5)
    assert_close(found["stages.0.weight"][:, 0], torch.tensor([(d @ c[:, 0]).item() * x, b2 * x]))
    assert_close(found["heads.0.weight"][0], torch.tensor([a1 * x, a2 * x]))  # it reads all features
    assert_close(found["stages.1.weight"], torch.outer(d, torch.tensor([a1 * x, a2 * x])))  # so does stage 2
    assert b1 != b2


def test_three_exits_part_at_every_branch():
    """The middle stage's first feature learns from exit 3, its second from exit 2; exit 3 keeps both."""
    network = chain(3)
    found, plain = gradients(network, beta=0.5), gradients(network, beta=None)
    (_, b2), e = network.heads[1].weight[0].tolist(), network.heads[2].weight[0].detach()
    c3 = network.stages[2].weight.detach()
    features = network.stages[0].weight.detach()[:, 0] * 2.0
    assert_close(found["stages.1.weight"][0], (e @ c3[:, 0]) * features)
    assert_close(found["stages.1.weight"][1], b2 * features)
    assert_close(found["stages.2.weight"], plain["stages.2.weight"])
    assert all(torch.equal(found[name], plain[name]) for name in found if name.startswith("heads"))


def test_beta_is_the_share_that_trains_for_deeper_exits():
    """0: the stage trains for its own exit alone; 1: for the deeper one alone."""
    network = chain(2, width=4)
    from_head = network.heads[0].weight[0].detach() * 2.0
    from_deeper = network.stages[1].weight.detach().T @ network.heads[1].weight[0].detach() * 2.0
    for beta, shared in ((0.0, 0), (0.25, 1), (0.5, 2), (0.9, 4), (1.0, 4)):
        expected = torch.cat([from_deeper[:shared], from_head[shared:]])
        assert_close(gradients(chain(2, width=4), beta)["stages.0.weight"][:, 0], expected)


def test_what_goes_forward_is_unchanged():
    network, images = chain(3), torch.tensor([[2.0]])
    plain = [out.item() for out in network(images)]
    method = surgery(network, 0.5)
    assert [out.item() for out in network(images)] == plain
    method.close()
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("shape", "axis", "head"),
    [
        ((2, 6, 3, 3), 1, nn.Identity()),
        ((2, 3, 3, 6), 3, nn.Sequential(ChannelsFirst(), nn.Identity())),
        ((2, 5, 6), 2, nn.Identity()),
        ((2, 6), 1, nn.Identity()),
    ],
    ids=["maps", "maps, channels last", "tokens", "vectors"],
)
def test_every_channel_learns_from_one_side(shape, axis, head):
    network = MultiExitNetwork([nn.Identity(), nn.Identity()], [head, nn.Identity()])
    branch, gradient = partition(network, 0, 1 / 3), torch.rand(shape) + 1
    deeper, own = branch.from_deeper(gradient), branch.from_head(gradient)
    assert_close(deeper + own, gradient)
    first, rest = gradient.split([2, 4], dim=axis)
    assert torch.equal(deeper.narrow(axis, 0, 2), first) and not deeper.narrow(axis, 2, 4).any()
    assert torch.equal(own.narrow(axis, 2, 4), rest) and not own.narrow(axis, 0, 2).any()
    assert gradient.all(), "the gradient was written to"
