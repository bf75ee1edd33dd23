"""What every within-step method must do."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_network import CPU, bind, dataset, one_exit, random_batches, run_config
from torch.testing import assert_close

from raygf.config.run import LossConfig, MethodConfig
from raygf.errors import ConfigError, NonFiniteError
from raygf.methods.base import Setting, usable, weigh
from raygf.methods.registry import STEP_METHODS, WEIGHTINGS, make_step_method
from raygf.rounds.step import StepRound
from raygf.training.losses import exit_losses
from raygf.training.space import find_ownership

IMAGES, LABELS = random_batches(1, size=8)[0]
EQUAL_SCALE = {"pcgrad": 3, "gradvac": 3, "config": 3, "cagrad": 1.4, "fairgrad": math.sqrt(3)}
"""What the weights of three equal unit gradients sum to; 1 where nothing stands here."""


def setting_of(bound) -> Setting:
    owned = find_ownership(bound.network, IMAGES[:2], bound.space)
    return Setting(MethodConfig(), bound.network, owned, bound.space)


def direction(name: str, build=None, scale: float = 1.0) -> torch.Tensor:
    bound = bind(build) if build else bind()
    method = make_step_method(name, setting_of(bound))
    bound.network.eval()  # so that exits don't share batch statistics
    torch.manual_seed(0)
    method.backward(scale * exit_losses(bound.network(IMAGES), LABELS), bound)
    method.close()
    return bound.grad


def gramian(exits: int = 3, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(exits, 6, generator=torch.Generator().manual_seed(seed))
    return rows @ rows.T


@pytest.mark.parametrize("name", STEP_METHODS)
def test_one_exit_alone_is_sgd(name):
    assert_close(direction(name, one_exit), direction("sgd", one_exit), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", STEP_METHODS)
def test_a_head_gets_its_exits_plain_gradient(name):
    """In Gradient Equilibrium too: the scaling starts at what goes into the head."""
    views, plain = (bind().space.views(direction(n)) for n in (name, "sgd"))
    for exit in range(3):
        assert_close(views[f"heads.{exit}.2.weight"], plain[f"heads.{exit}.2.weight"])


@pytest.mark.parametrize("name", STEP_METHODS)
def test_a_round_learns_and_repeats_bit_for_bit(name):
    def train():
        config = run_config(method=name)
        bound = bind()
        owned = find_ownership(bound.network, IMAGES[:2], bound.space)
        step = StepRound(config, bound, dataset(train=40).open(CPU, 4, 5), owned)
        state, losses = bound.state(), []
        for round in (1, 2, 3):
            outcome = step.run(state, round)
            state = outcome.state
            losses.append(sum(outcome.train.loss))
        return losses, state.sha256()

    losses, digest = train()
    assert losses[-1] < losses[0]
    assert train()[1] == digest


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_equal_gradients_keep_their_direction_and_the_documented_scale(name):
    weights = weigh(usable(name, lambda: WEIGHTINGS[name](MethodConfig()), 3), torch.ones(3, 3))
    assert weights.sum().item() == pytest.approx(EQUAL_SCALE.get(name, 1), rel=2e-3)


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name not in ("pcgrad", "gradvac")])
def test_the_order_of_the_exits_does_not_matter(name):
    """PCGrad and GradVac project in random order."""
    order = torch.tensor([2, 0, 1])
    base = gramian()
    one, two = (
        weigh(usable(name, lambda: WEIGHTINGS[name](MethodConfig()), 3), g)
        for g in (base, base[order][:, order])
    )
    assert_close(one[order], two, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_gramians_without_conflict_never_raise_a_loss(name):
    """With all products positive the update goes along every gradient."""
    rows = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    base = rows @ rows.T
    torch.manual_seed(0)
    weights = weigh(usable(name, lambda: WEIGHTINGS[name](MethodConfig()), 3), base)
    assert (base @ weights > 0).all()


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_gradients_that_are_all_zero_have_nothing_to_weigh(name):
    weights = weigh(usable(name, lambda: WEIGHTINGS[name](MethodConfig()), 3), torch.zeros(3, 3))
    assert torch.equal(weights, torch.zeros(3))


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named(name, bad):
    broken = gramian()
    broken[1, 1] = bad
    with pytest.raises(NonFiniteError, match="gradient of exit 2 is not finite"):
        weigh(WEIGHTINGS[name](MethodConfig()), broken)


def test_a_broken_step_names_method_round_step_and_exit():
    config = run_config(method="pcgrad")
    bound = bind()
    owned = find_ownership(bound.network, IMAGES[:2], bound.space)
    step = StepRound(config, bound, dataset().open(CPU, 4, 5), owned)
    state = bound.state()
    start, stop = next((s.start, s.stop) for s in bound.space.slots if s.name == "heads.0.2.weight")
    vector = state.vector.copy()
    vector[start:stop] = float("nan")
    with pytest.raises(NonFiniteError, match="pcgrad, round 4, step 1: the gradient of exit 1 is not finite"):
        step.run(type(state)(vector, state.buffers), 4)


def test_a_missing_solver_names_the_command_that_brings_it():
    def make():
        raise ImportError("no module named cvxpy")

    with pytest.raises(ConfigError, match=r"method = 'cagrad'.*pip install 'raygf\[methods\]'"):
        usable("cagrad", make, 3)


def test_distillation_goes_with_a_gramian_method():
    config = run_config(method="cagrad", loss=LossConfig(distill=True))
    bound = bind()
    owned = find_ownership(bound.network, IMAGES[:2], bound.space)
    step = StepRound(config, bound, dataset(train=40).open(CPU, 4, 5), owned)
    plain = StepRound(run_config(method="cagrad"), bind(), dataset(train=40).open(CPU, 4, 5), owned)
    state = bound.state()
    assert step.run(state, 1).state.sha256() != plain.run(state, 1).state.sha256()
