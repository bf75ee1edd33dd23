"""The table of methods, and what every method in it must do."""

import math
import sys

import pytest
import torch
from tiny_network import (
    CPU,
    bind,
    dataset,
    one_exit,
    owners_of,
    random_batches,
    run_config,
    setting_of,
    three_exits,
)
from torch.testing import assert_close

from raygf.config.run import FusionConfig, LossConfig
from raygf.errors import ConfigError, NonFiniteError
from raygf.methods import registry
from raygf.methods.base import JointSGD, weigh
from raygf.methods.registry import (
    DELTA,
    OWN,
    ROUND_METHODS,
    STEP_METHODS,
    WEIGHTINGS,
    check_method,
    is_step_method,
    make_step_method,
    make_weighting,
    method_names,
    method_title,
    training_operations,
)
from raygf.rounds.step import StepRound
from raygf.training.losses import exit_losses

IMAGES, LABELS = random_batches(1, size=8)[0]
MINE = "raygf.methods.torchjd:mgda"
"""A function as a user's own."""
EQUAL_SCALE = {"pcgrad": 3, "gradvac": 3, "config": 3, "cagrad": 1.4, "fairgrad": math.sqrt(3)}
"""What the weights of three equal unit gradients sum to; 1 where nothing stands here."""


def test_the_table_knows_all_methods_and_names_them_to_who_asks_for_another():
    assert set(method_names()) == {*ROUND_METHODS, *STEP_METHODS} >= {"metagf", "sgd", "delta-mean"}
    for name in method_names():
        check_method(name)
        assert is_step_method(name) is (name in STEP_METHODS)
    assert [is_step_method(prefix + "mine:f") for prefix in ("", "delta-", "fusion:")] == [True, False, False]
    with pytest.raises(ConfigError, match=r"method = 'sgdd': must be one of .*metagf.*sgd"):
        check_method("sgdd")


@pytest.mark.parametrize("name", [*method_names(), MINE, DELTA + MINE, OWN + MINE])
def test_a_rounds_operations_by_hand(name):
    """Backward counts twice, from exit i through what is below; fusing without learning only goes forward."""
    costs, joint, gramian = (10, 30, 60), 60 + 2 * 60, 60 + 2 * (10 + 30 + 60)
    by_name = dict.fromkeys(STEP_METHODS, joint) | dict.fromkeys(WEIGHTINGS, gramian) | {"metagf": 4 * joint}
    known = by_name | {MINE: joint}  # until it is made
    expected, images = known.get(name, 3 * joint + 60), {"train": 9, "val": 4}
    assert training_operations(run_config(method=name), costs, images, 2) == 2 * 9 * expected
    if is_step_method(name):
        made = step_round(bind(), method=name, round_steps=3)  # epochs of 4 and 5 images
        assert made.operations(costs, images, 1) == (9 + 4) * by_name.get(name, gramian)


@pytest.mark.parametrize(
    ("steps", "fusion", "trained", "fused"),
    [
        (None, {"objective": "entropy", "outer": "adam"}, 2 * 10, 2 * 10 * (180 + 60)),
        (2, {}, 4 + 4 + 2 + 4, (4 + 4 + 2 + 4) * 180),  # batches of 4, 4 and 2 an epoch
        (2, {"images": 5}, 4 + 4 + 2 + 4, 2 * 5 * 180),
        (2, {"images": 9, "objective": "val"}, 4 + 4 + 2 + 4, 2 * 7 * 180),
        (1, {"objective": "val"}, 4 + 4, (4 + 3) * 180),  # batches of 4 and 3
        (5, {"objective": "val", "outer": "nesterov"}, 3 * 10 + 4, 2 * 7 * (180 + 60)),  # all of them at most
    ],
)
def test_two_rounds_of_any_length_by_hand(steps, fusion, trained, fused):
    for aux, exits in (("all", 3 * 180), ("none", 3 * (10 + 30 + 60))):
        config = run_config(round_steps=steps, fusion=FusionConfig(**fusion), loss=LossConfig(aux_exits=aux))
        spent = training_operations(config, (10, 30, 60), {"train": 10, "val": 7}, 2)
        assert spent == trained * exits + fused


def direction(name, build=three_exits):
    bound = bind(build)
    method = make_step_method(name, setting_of(bound))
    bound.network.eval()  # so that exits don't share batch statistics
    torch.manual_seed(0)
    method.backward(exit_losses(bound.network(IMAGES), LABELS), bound)
    method.close()
    return bound.grad


def step_round(bound, **changes):
    data = dataset(train=40).open(CPU, 4, 5)
    return StepRound(run_config(**changes), bound, data, owners_of(bound))


def test_every_method_has_a_title_of_its_own():
    titles = [method_title(name) for name in method_names()]
    assert len(set(titles)) == len(titles) and not set(titles) & set(method_names())
    names = ("metagf", "sgd", "delta-mean", "delta-ties", "delta-pcgrad", "mine:rule", "delta-mine:rule")
    assert [method_title(name) for name in names] == [
        *("Meta-GF", "joint SGD", "mean of the deltas", "TIES-Merging", "PCGrad on deltas"),
        *("mine:rule", "mine:rule on deltas"),
    ]


@pytest.mark.parametrize("name", STEP_METHODS)
def test_one_exit_alone_is_sgd(name):
    assert_close(direction(name, one_exit), direction("sgd", one_exit), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", STEP_METHODS)
def test_a_head_gets_its_exits_plain_gradient(name):
    """In Gradient Equilibrium too: the scaling starts at what goes into the head."""
    views, plain = (bind().space.views(direction(n)) for n in (name, "sgd"))
    for exit in range(3):
        assert_close(views[f"heads.{exit}.2.weight"], plain[f"heads.{exit}.2.weight"])


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings_keep_the_direction_of_gradients_that_agree_in_any_order(name):
    """Equal ones at the documented scale; with all products positive the update goes along every one."""

    def weights(gramian):
        return weigh(make_weighting(name, setting_of(bind())), gramian)

    torch.manual_seed(0)
    assert weights(torch.ones(3, 3)).sum().item() == pytest.approx(EQUAL_SCALE.get(name, 1), rel=2e-3)
    stream, order = torch.Generator().manual_seed(0), torch.tensor([2, 0, 1])
    rows = torch.rand(3, 6, generator=stream)
    assert (rows @ rows.T @ weights(rows @ rows.T) > 0).all()
    rows = torch.randn(3, 6, generator=stream.manual_seed(0))
    if name not in ("pcgrad", "gradvac"):  # they project in random order
        turned = weights(rows[order] @ rows[order].T)
        assert_close(weights(rows @ rows.T)[order], turned, rtol=5e-3, atol=5e-3)


def test_a_broken_step_names_method_round_step_and_exit():
    bound = bind()
    state = bound.state()
    slot = next(slot for slot in bound.space.slots if slot.name == "heads.0.2.weight")
    vector = state.vector.copy()
    vector[slot.start : slot.stop] = float("nan")
    with pytest.raises(NonFiniteError, match="pcgrad, round 4, step 1: the gradient of exit 1 is not finite"):
        step_round(bound, method="pcgrad").run(type(state)(vector, state.buffers), 4)


def test_a_solver_that_fails_is_named_with_method_exits_round_and_step(monkeypatch):
    def solve(gramian):
        if gramian[0, 0] != 1.5:  # when it is made it is tried on another one
            raise ArithmeticError("Solver 'CLARABEL' failed.\nTry another solver")
        return torch.ones(3)

    monkeypatch.setitem(registry.METHODS, "cagrad", lambda setting: solve)
    found = (
        r"cagrad, round 4, step 1: no weights of the exits' gradients were found: "
        r"ArithmeticError: Solver .CLARABEL. failed\.; lower"
    )
    with pytest.raises(NonFiniteError, match=found):
        step_round(bind(), method="cagrad").run(bind().state(), 4)


def test_a_missing_solver_names_the_command_that_brings_it(monkeypatch):
    monkeypatch.setitem(registry.METHODS, "cagrad", fails)
    with pytest.raises(ConfigError, match=r"method = 'cagrad'.*pip install 'torchjd\[cagrad,"):
        make_step_method("cagrad", setting_of(bind()))


def wrong(setting):
    return (lambda gramian: 7) if setting.config.cagrad_c else 3


def weighting_fails(setting):
    return lambda gramian: 1 / 0


def fails(setting):
    raise ImportError("no module named cvxpy")


@pytest.mark.parametrize(
    ("name", "cagrad_c", "message"),
    [
        ("wrong", 0.4, r"must return one weight per exit, a tensor \(3,\), not 7"),
        ("wrong", 0.0, "must return a weighting, itself a function, or a StepMethod, not int"),
        ("fails", 0.4, "the function failed: .*no module named cvxpy"),
        ("weighting_fails", 0.4, "the weighting failed: .*division by zero"),
        ("missing", 0.4, "can't be imported"),
    ],
)
def test_a_function_of_the_users_own_is_checked_by_name(monkeypatch, name, cagrad_c, message):
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    setting = setting_of(bind(), cagrad_c=cagrad_c)
    with pytest.raises(ConfigError, match=f"method = 'mine:{name}': .*{message}"):
        make_step_method(f"mine:{name}", setting)


def test_a_step_method_of_the_users_own_can_not_weigh_deltas():
    name = "raygf.methods.base:JointSGD"
    assert isinstance(make_step_method(name, setting_of(bind())), JointSGD)
    with pytest.raises(ConfigError, match="a step method can't weigh deltas; leave out 'delta-'"):
        make_weighting(name, setting_of(bind()))


def test_distillation_goes_with_a_gramian_method():
    state = bind().state()
    plain, distilled = (
        step_round(bind(), method="cagrad", loss=LossConfig(distill=distill)).run(state, 1)
        for distill in (False, True)
    )
    assert plain.state.sha256() != distilled.state.sha256()
