"""Deltas weighed by exits, or merged by elements: every rule by hand, and what all of them must do."""

import sys

import pytest
import torch
from tiny_network import (
    bind,
    buffers_after,
    owners_of,
    pass_over,
    random_batches,
    random_vectors,
    run_config,
    setting_of,
    space_of,
)
from torch.testing import assert_close

from raygf.compute import generator
from raygf.config.run import FusionConfig, MethodConfig
from raygf.errors import ConfigError, NonFiniteError
from raygf.fusion.fuse import FusionTask
from raygf.fusion.merged import RULES, MergedFusion, WeighedFusion, owner_shares
from raygf.methods.registry import MERGED, WEIGHTINGS, make_weighting
from raygf.training.space import Segments

OWNED = owners_of(bind())
BATCHES = random_batches()


def fuse(name, deltas, kind="tensor", epsilon=1.0):
    bound = bind()
    config = run_config(fusion=FusionConfig(epsilon=epsilon))
    weighting = make_weighting(name, setting_of(bound))
    rule = WeighedFusion(config, Segments(kind, bound.space), OWNED, "cpu", weighting)
    torch.manual_seed(0)
    state = bound.state()
    task = FusionTask(bound.tensor(state.vector), deltas, 0.1, "test")
    fused = rule.fuse(task, pass_over(BATCHES, config, bound, state, deltas))
    bound.load(state)
    return bound, fused


def test_shares_sum_to_one_over_the_owners():
    weights = torch.tensor([3.0, 1.0, -0.5])
    owned = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    expected = torch.tensor([[3 / 3.5, 0, 1, 0], [1 / 3.5, 2, 0, 0], [-0.5 / 3.5, -1, 0, 0]])
    assert_close(owner_shares(weights, owned), expected)
    for cancels in ([0.0, 0.0, 1.0], [1.0, -1.0, 0.0], [-2.0, 1.0, 0.0]):  # the owners' mean is taken
        found = owner_shares(torch.tensor(cancels), torch.tensor([[True], [True], [False]]))
        assert_close(found, torch.tensor([[0.5], [0.5], [0.0]]))


def test_the_mean_is_the_mean_of_the_owners_deltas():
    deltas = random_vectors(3, bind().space.size)
    bound, fused = fuse("mean", deltas)
    for slot, owners in zip(bound.space.slots, OWNED.T, strict=True):
        owning = [d[slot.start : slot.stop] for d, owns in zip(deltas, owners, strict=True) if owns]
        expected = bound.vector[slot.start : slot.stop] + torch.stack(owning).mean(dim=0)
        assert_close(fused.vector[slot.start : slot.stop], expected)


@pytest.mark.parametrize("name", ["mean", *WEIGHTINGS])
def test_equal_deltas_give_that_delta(name):
    """Of tensors that all own; where fewer do, what non-owners changed does not count."""
    delta = 0.01 * random_vectors(1, bind().space.size)[0]
    bound, fused = fuse(name, [delta.clone() for _ in range(3)])
    assert_close(fused.vector, bound.vector + delta, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mean", "mgda", "pcgrad"])
@pytest.mark.parametrize("kind", ["tensor", "channel"])
def test_epsilon_scales_the_step(name, kind):
    deltas = random_vectors(3, bind().space.size)
    bound, whole = fuse(name, deltas, kind)
    _, half = fuse(name, deltas, kind, epsilon=0.5)
    assert_close(half.vector - bound.vector, (whole.vector - bound.vector) / 2)


def test_statistics_are_those_of_a_pass_in_train_mode():
    _, fused = fuse("mean", random_vectors(3, bind().space.size, scale=0.01))
    for name, value in buffers_after(fused.vector, BATCHES).items():
        assert_close(fused.buffers[name], value)
    assert fused.score.loss and len(fused.score.accuracy) == 3


def test_a_delta_that_is_not_finite_is_named():
    """A NaN in the Gramian would give ordinary weights under some rules."""
    deltas = random_vectors(3, bind().space.size)
    deltas[1][0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^test: the gradient of exit 2 is not finite; lower optim\.lr"):
        fuse("pcgrad", deltas)


FOUR = space_of((4,), (1,))
OWNERS = torch.tensor([[1, 0], [1, 0], [1, 1]], dtype=torch.bool)
DELTAS = [torch.tensor(row) for row in ([4, -1, 2, 0.5, 9], [2, -6, -3, 0.1, 9], [-3, 5, 0.2, 1, 7])]
MATRICES = space_of((3, 2, 2), (3,), (2, 5), (4, 2))
SHARED = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)


def median(deltas):
    return {name: owners.median(dim=0).values for name, owners in deltas.items()}


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])


def merge(method, deltas, space=FOUR, owned=OWNERS, kind="tensor", fisher=(), round=1, **settings):
    config = run_config(method=method, methods=MethodConfig(**settings))
    rule = MergedFusion(config, Segments(kind, space), owned, "cpu")
    return rule.merge(FusionTask(torch.zeros(space.size), deltas, 0.1, "test", round, fisher))


def test_ties_by_hand():
    """Half of each stays: (4, ., 2, .), (., −6, −3, .), (−3, 5, ., .). The last element is exit 3's alone."""
    update, alpha = merge("delta-ties", DELTAS, ties_keep=0.5)
    assert update.tolist() == [4, -6, -3, 0, 7]
    assert_close(alpha, torch.tensor([[1 / 3, 0], [2 / 3, 0], [0, 1]]))
    update, _ = merge("delta-ties", DELTAS, ties_keep=1.0)  # signs of (3, −2, −0.8, 1.6)
    assert_close(update, torch.tensor([3, -3.5, -3, 1.6 / 3, 7]))
    update, alpha = merge("delta-ties", [DELTAS[0], -DELTAS[0], torch.zeros(5)])  # no sign is elected
    assert update.tolist() == [0] * 5 and alpha[:, 0].tolist() == pytest.approx([1 / 3] * 3)


def test_ties_trims_over_all_tensors_of_an_exit():
    """Two tensors of two elements; the larger two of each exit's four are in one of them."""
    deltas = [torch.tensor([5.0, 6, 1, 2]), torch.tensor([1.0, 2, 5, 6])]
    update, _ = merge(
        "delta-ties", deltas, space_of((2,), (2,)), torch.ones(2, 2, dtype=torch.bool), ties_keep=0.5
    )
    assert update.tolist() == [5, 6, 5, 6]


def test_dare_drops_by_seed_round_and_exit_and_keeps_the_expectation():
    space, owned = space_of((50, 40), (9,)), torch.tensor([[1, 0], [1, 1]], dtype=torch.bool)
    deltas = random_vectors(2, space.size)
    update, alpha = merge("delta-dare", deltas, space, owned, round=3, dare_keep=0.2)
    kept = [torch.rand(50, 40, generator=generator(0, "dare", 3, exit)).flatten() < 0.2 for exit in (0, 1)]
    expected = sum(delta[:2000] * mask / 0.2 for delta, mask in zip(deltas, kept, strict=True)) / 2
    assert_close(update, torch.cat([expected, deltas[1][2000:]]))  # a head loses nothing
    assert alpha[:, 0].tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    again, other = (merge("delta-dare", deltas, space, owned, round=r, dare_keep=0.2)[0] for r in (3, 4))
    assert torch.equal(update, again) and not torch.equal(update, other)
    ones, _ = merge("delta-dare", [torch.ones(2009)] * 2, space, owned, dare_keep=0.2)
    assert ones[:2000].mean().item() == pytest.approx(1, abs=0.1)


def test_fisher_by_hand():
    """Quarter and three quarters; nobody had a gradient; halves of exits 1 and 3; exit 3 alone."""
    fisher = [torch.tensor(row) for row in ([1.0, 0, 2, 0, 5], [3.0, 0, 0, 0, 5], [0.0, 0, 2, 6, 0])]
    update, alpha = merge("delta-fisher", DELTAS, fisher=fisher)
    assert_close(update, torch.tensor([2.5, -2 / 3, 1.1, 1, 7]))
    assert_close(alpha[:, 0], torch.tensor([1 / 4 + 1 / 3 + 1 / 2, 3 / 4 + 1 / 3, 1 / 3 + 1 / 2 + 1]) / 4)
    assert alpha[:, 1].tolist() == [0, 0, 1]


def test_iso_by_hand():
    """The mean of (6, 0; 0, −2) and 0 has the singular values 3 and 1; rank 1 stays rank 1, and 0 stays 0."""
    both, shared = space_of((2, 2), (2,)), torch.ones(2, 2, dtype=torch.bool)
    nothing = torch.zeros(6)

    def iso(*matrix):
        return merge("delta-iso", [torch.tensor([*matrix, 4.0, 1]), nothing], both, shared)[0]

    assert_close(iso(6.0, 0, 0, -2), torch.tensor([2.0, 0, 0, -2, 2, 0.5]))
    assert_close(iso(6.0, 0, 0, 0), torch.tensor([3.0, 0, 0, 0, 2, 0.5]))
    assert_close(iso(0.0, 0, 0, 0), torch.tensor([0.0, 0, 0, 0, 2, 0.5]))
    deltas = random_vectors(3, MATRICES.size)
    update, _ = merge("delta-iso", deltas, MATRICES, SHARED)
    mean = torch.linalg.svdvals(torch.stack(deltas).mean(dim=0)[:12].view(3, 4)).mean()
    assert_close(torch.linalg.svdvals(update[:12].view(3, 4)), mean.expand(3))  # a kernel (3, 2, 2)


@pytest.mark.parametrize("method", [*MERGED, *(RULES.keys() - MERGED), "fusion:mine:median"])
def test_what_every_rule_does(method):
    deltas, fisher = (
        random_vectors(3, MATRICES.size),
        [v.square() for v in random_vectors(3, MATRICES.size, seed=1)],
    )
    more = {"space": MATRICES, "fisher": fisher}
    update, alpha = merge(method, deltas, owned=SHARED, **more)
    assert torch.equal(update[-8:], deltas[2][-8:])  # one owner
    assert_close(alpha.sum(dim=0), torch.ones(4)) and not alpha[~SHARED].any()
    longer, _ = merge(method, [3 * delta for delta in deltas], owned=SHARED, **more)
    assert_close(longer, 3 * update, rtol=1e-4, atol=1e-5)
    alone, _ = merge(method, deltas[:1], owned=torch.ones(1, 4, dtype=torch.bool), **more)
    assert torch.equal(alone, deltas[0])
    if method != "delta-iso":  # which levels singular values; here the others are asked for everything
        equal, _ = merge(method, deltas[:1] * 3, owned=SHARED | True, ties_keep=1.0, dare_keep=1.0, **more)
        assert_close(equal, deltas[0])
    if method != "delta-dare":  # which draws by the number of the exit
        turned = {**more, "fisher": fisher[1:] + fisher[:1]}
        other, shares = merge(method, deltas[1:] + deltas[:1], owned=SHARED[[1, 2, 0]], **turned)
        assert_close(other, update)
        assert_close(shares, alpha[[1, 2, 0]])


def test_shares_of_channels_and_of_the_network():
    """Exit 2 has the first channel of the first tensor, exit 1 the other, and the second tensor alone."""
    space, owned = space_of((2, 1), (4,)), torch.tensor([[1, 1], [1, 0]], dtype=torch.bool)
    deltas = [torch.tensor([0.0, 2, 1, 1, 1, 1]), torch.tensor([3.0, 0, 9, 9, 9, 9])]
    found = {
        kind: merge("delta-ties", deltas, space, owned, kind, ties_keep=0.5)[1]
        for kind in ("channel", "network")
    }
    assert found["channel"].tolist() == [[0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]]
    assert_close(found["network"], torch.tensor([[5 / 6], [1 / 6]]))


@pytest.mark.parametrize("method", ["delta-ties", "fusion:mine:median"])
def test_the_pass_is_run_where_the_merge_ends(method):
    bound, batches = bind(), random_batches()
    config = run_config(method=method, fusion=FusionConfig(epsilon=0.5))
    state, deltas = bound.state(), random_vectors(3, bound.space.size, scale=0.1)
    rule = MergedFusion(config, Segments("tensor", bound.space), owners_of(bound), "cpu")
    task = FusionTask(torch.from_numpy(state.vector), deltas, 0.1, "test")
    fused = rule.fuse(task, pass_over(batches, config, bound, state, deltas))
    assert_close(fused.vector, task.base + 0.5 * rule.merge(task)[0])
    for name, value in buffers_after(fused.vector, batches).items():
        assert_close(fused.buffers[name], value)


def fails(deltas):
    return 1 / 0


def a_list(deltas):
    return [*deltas.values()]


def of_all_exits(deltas):
    return deltas


def infinite(deltas):
    return {name: delta / 0 for name, delta in median(deltas).items()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "the function failed: ZeroDivisionError"),
        ("a_list", r"a dict with a tensor \(4,\) of finite numbers for 0, not \[tensor"),
        ("of_all_exits", r"a dict with a tensor \(4,\) of finite numbers for 0, not a tensor \(3, 4\)"),
        ("infinite", r"a dict with a tensor \(4,\) .* for 0, not a tensor \(4,\) with others"),
        ("nope", "can't be imported"),
    ],
)
def test_a_function_that_does_not_fit_is_refused_before_anything_is_trained(name, message):
    with pytest.raises(ConfigError, match=message) as error:
        MergedFusion(run_config(method=f"fusion:mine:{name}"), Segments("tensor", FOUR), OWNERS, "cpu")
    assert f"mine:{name}" in str(error.value) and "\n" not in str(error.value)
