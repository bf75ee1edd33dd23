"""Networks cut into stages: where the cuts are, and that the network stays what it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attached_networks import (
    IMAGES,
    SPEC,
    Blocks,
    Branches,
    Functional,
    PlainRow,
    Skips,
    TwoInputs,
    TwoOutputs,
    refusal,
)
from torch import Tensor, nn
from torch.func import functional_call

from raygf.data.base import InputSpec
from raygf.models.attach import attach_exits
from raygf.models.costs import measure_costs
from raygf.models.multi_exit import evaluating


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def top_heavy():
    """Most operations are in the classifier, where no exit can be."""
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


class FreeHead(nn.Module):
    """Logits that cost nothing."""

    def __init__(self, channels, classes):
        super().__init__()

    def forward(self, x):
        return x.flatten(2).mean(2)[:, : SPEC.classes]


def outputs_with_seed(network, x=IMAGES):
    torch.manual_seed(5)
    return network(x)


def test_the_graph_follows_the_mode_however_it_is_set():
    network = Functional()
    attached = attach_exits(network, SPEC, ["into"])
    with evaluating(attached):
        calm = outputs_with_seed(attached)[-1]
    noisy = outputs_with_seed(attached)[-1]  # evaluating() put the training flags back one by one
    torch.testing.assert_close(calm, network.eval()(IMAGES), rtol=0, atol=0)
    torch.testing.assert_close(noisy, outputs_with_seed(network.train()), rtol=0, atol=0)
    assert not torch.equal(calm, noisy)


def test_parameters_keep_their_names_and_are_the_same_tensors():
    network = Blocks()
    attached = attach_exits(network, SPEC, ["blocks.1"])
    found = dict(attached.named_parameters())
    assert found["stages.0.blocks.1.conv.weight"] is network.blocks[1].conv.weight
    assert found["stages.1.blocks.2.conv.weight"] is network.blocks[2].conv.weight
    assert not any("spare" in name for name in found)
    assert next(iter(found)) == "stages.0.stem.weight"
    stages = [name.split(".")[:2] for name in found]
    assert stages == sorted(stages, key=lambda place: (place[0] != "stages", place[1]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("build", "at"), [(Blocks, "blocks.1"), (Functional, "into"), (Skips, "second")])
def test_functional_call_uses_the_given_weights(build, at, training):
    attached = attach_exits(build(), SPEC, [at]).train(training)
    weights = {name: (1.5 * w).detach().requires_grad_() for name, w in attached.named_parameters()}
    buffers = {name: tensor.clone() for name, tensor in attached.named_buffers()}
    torch.manual_seed(5)
    called = functional_call(attached, (weights, {n: b.clone() for n, b in buffers.items()}), (IMAGES,))
    sum(exit.sum() for exit in called).backward()
    assert [name for name, weight in weights.items() if weight.grad is None] == []
    assert all(weight.grad is None for weight in attached.parameters())
    with torch.no_grad():
        for weight in attached.parameters():
            weight.mul_(1.5)
    for one, other in zip(called, outputs_with_seed(attached), strict=True):
        torch.testing.assert_close(one, other)


def test_stages_can_be_walked_and_left_early():
    attached = attach_exits(Skips(), SPEC, ["first", "second"]).eval()
    expected = attached(IMAGES)
    state = attached.stages[0](IMAGES)
    assert isinstance(state, tuple) and [part.shape[1] for part in state] == [6, 3]  # and the image
    assert attached.branch == 0  # the head reads the first
    torch.testing.assert_close(attached.heads[0](state), expected[0])
    state = attached.stages[1](state)
    assert len(state) == 3
    torch.testing.assert_close(attached.heads[1](state), expected[1])
    torch.testing.assert_close(attached.heads[2](attached.stages[2](state)), expected[2])


def test_a_module_means_its_last_node():
    torch.manual_seed(1)
    by_module = attach_exits(Blocks(), SPEC, ["blocks.1"], head=FreeHead)
    torch.manual_seed(1)
    by_node = attach_exits(Blocks(), SPEC, ["blocks.1.relu"], head=FreeHead)
    for one, other in zip(by_module(IMAGES), by_node(IMAGES), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.05, 0.26, 0.5, 0.75])
def test_a_share_is_the_first_block_end_that_reaches_it(share):
    """The stem has 3 * 6 * 9 weights, a block's convolution 6 * 6 * 9; 64 places; ReLU 6 * 64."""
    stem, block = 64 * 162, 64 * 324 + 64 * 6
    total = stem + 4 * block + 6 * 4 + 4
    reached = next(number for number in range(4) if (stem + (number + 1) * block) / total >= share)
    attached = attach_exits(Blocks(), SPEC, [share], head=FreeHead)
    expected = "stem" if stem / total >= share else f"blocks.{reached}"
    assert attached.cuts == (expected,)
    operations = [cost.operations for cost in measure_costs(attached, SPEC)]
    assert operations[-1] == total
    assert operations[0] / total >= share


def test_shares_never_part_a_convolution_from_its_activation():
    shares = [percent / 100 for percent in range(2, 98, 4)]
    names = {attach_exits(PlainRow(), SPEC, [share]).cuts[0] for share in shares}
    assert names == {"features.2", "features.5", "features.8"}


def test_a_function_that_writes_in_place_spares_the_head():
    attached = attach_exits(Functional(), SPEC, ["into"], head="mixed")
    state = attached.stages[0](IMAGES)
    before = state.clone()
    attached.stages[1](state)
    assert torch.equal(state, before)


def test_a_head_sees_the_features_before_they_are_overwritten():
    attached = attach_exits(PlainRow(), SPEC, ["features.1"], head="mixed")
    seen: list[Tensor] = []
    attached.heads[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits = attached(IMAGES)
    assert (seen[0] < 0).any()  # the ReLU that follows has written elsewhere
    sum(exit.sum() for exit in logits).backward()
    assert attached.get_submodule("stages.1.features.5").inplace  # others are left alone


# The network, its images' channels, the exits asked for, and the refusal.
REFUSED: list[tuple[Callable[[], nn.Module], int, Any, str]] = [
    (Blocks, 3, [], "at = []: must be a list of shares of the operations and names of nodes"),
    (Blocks, 3, "stem", "at = 'stem': must be a list"),
    (Blocks, 3, ["blocks.7"], "at = 'blocks.7': must be a node of Blocks; did you mean 'blocks."),
    (Blocks, 3, ["spare"], "at = 'spare': must be a node of Blocks"),
    (Blocks, 3, [0.5, 1.0], "at = 1.0: must be a share of the operations above 0 and below 1"),
    (Blocks, 3, [0], "at = 0: must be a share"),
    (Blocks, 3, [float("nan")], "at = nan: must be a share"),
    (Blocks, 3, [True], "at = True: must be a share"),
    (Blocks, 3, ["x"], "at = 'x': must be a node that gives features"),
    (Blocks, 3, ["classifier"], "at = 'classifier': must be a node before the network's own output"),
    (Blocks, 3, ["blocks.1", "blocks.1.relu"],
     "at = ['blocks.1', 'blocks.1.relu']: blocks.1 and blocks.1.relu are the same place"),
    (Blocks, 3, [0.4, 0.5], "at = [0.4, 0.5]: 0.4 and 0.5 are the same place, blocks.1"),
    # 64 * 2 * 3 operations in the convolution, 128 in the ReLU, 516 in the classifier.
    (top_heavy, 3, [0.9], "at = 0.9: must be at most the share of the last place to cut, 1 (0.498)"),
    (Branches, 3, [0.5], "exits can't be attached to Branches: tracing it failed: TraceError: "),
    (TwoInputs, 3, [0.5], "exits can't be attached to TwoInputs: its forward must take images and nothing"),
    (TwoOutputs, 3, [0.5], "exits can't be attached to TwoOutputs: it must return one tensor of logits"),
    (lambda: Blocks(5), 3, [0.5],
     "Blocks must return logits (2, 4) for 2 images; it returned a tensor (2, 5)"),
    (Blocks, 1, [0.5], "Blocks failed on 2 images of 1x8x8: RuntimeError: "),
]  # fmt: skip


@pytest.mark.parametrize(("build", "channels", "at", "expected"), REFUSED, ids=range(len(REFUSED)))
def test_places_and_networks_that_do_not_fit_are_refused(build, channels, at, expected):
    spec = InputSpec(channels, 8, 8, 4)
    assert refusal(lambda: attach_exits(build(), spec, at)).startswith(expected)
