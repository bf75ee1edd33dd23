"""The spaces that come with raygf: every end of every axis is a run, and they are what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ray import tune

from raygf.config.recipes import get_recipe
from raygf.errors import ConfigError
from raygf.methods.registry import ROUND_METHODS, STEP_METHODS, method_names
from raygf.sweep.command import parse_sweep
from raygf.sweep.prepare import check_space
from raygf.sweep.space import Choice, Range, ends, grid, known_spaces, load_space

NAMES = ("fusion_lr", "method", "fusion", "joint")


def axes_of(name, *argv):
    command = parse_sweep("", ["--space", name, *argv])
    return check_space(load_space(name, command.run), command)


def test_these_and_no_others_are_shipped():
    shipped = {name for name, file in known_spaces().items() if file.parts[-3:-1] != ("unit", "sweep")}
    assert shipped == set(NAMES)


@pytest.mark.parametrize("recipe", ["digits", "cifar10-msdnet-metagf", "cifar100-vgg16-metagf"])
@pytest.mark.parametrize("name", NAMES)
def test_every_end_of_every_axis_makes_a_run(name, recipe):
    alternatives = axes_of(name, "--recipe", recipe, "--data.val", "50")
    assert sum(len(ends(axes)) for axes in alternatives) >= 4


def test_fusion_lr_is_log_uniform_around_the_papers_value():
    (axes,) = axes_of("fusion_lr")
    assert axes["fusion.lr"] == Range(0.01, 1.0, log=True)
    assert axes["fusion.lr"].points(3)[1] == 0.1
    assert isinstance(axes["fusion.ema"], Range) and isinstance(axes["loss.aux"], Range)


def test_fusion_has_every_combination():
    (axes,) = axes_of("fusion")
    assert len(grid([axes], 3)) == 3 * 2 * 2
    assert load_space("fusion", get_recipe("digits")).search == "grid"


def test_method_covers_the_registry_each_at_settings_of_its_own():
    alternatives = axes_of("method")
    trials = grid(alternatives, 3)
    assert sorted(trial["method"] for trial in trials) == sorted(method_names())
    assert all("optim.lr" in trial for trial in trials)
    assert {trial["method"] for trial in trials if "methods.cagrad_c" in trial} == {"cagrad", "delta-cagrad"}
    assert len({trial["optim.lr"] for trial in trials}) > 1


def test_method_goes_by_the_learning_rate_of_the_recipe():
    run = get_recipe("digits")
    faster = replace(run, optim=replace(run.optim, lr=2 * run.optim.lr))
    for slow, fast in zip(
        load_space("method", run).variants, load_space("method", faster).variants, strict=True
    ):
        assert fast["optim.lr"] == pytest.approx(2 * slow["optim.lr"])


def test_joint_sweeps_the_fusion_only_where_there_is_one():
    alternatives = axes_of("joint")
    by_method = {axes["method"].ends[0]: axes for axes in alternatives}
    assert by_method.keys() == set(method_names())
    assert isinstance(by_method["metagf"]["fusion.lr"], Range)
    assert isinstance(by_method["metagf"]["fusion.segments"], Choice)
    for name in STEP_METHODS:
        assert not [field for field in by_method[name] if field.startswith(("fusion.", "loss."))]
    assert all("loss.aux" in by_method[name] for name in ROUND_METHODS)
    assert all(isinstance(axes["optim.lr"], Range) for axes in alternatives)


@pytest.mark.parametrize("name", ["fusion_lr", "fusion"])
def test_spaces_of_the_fusion_need_a_run_that_learns_it(name):
    with pytest.raises(ConfigError, match="learned fusion weights, which sgd does not have"):
        load_space(name, get_recipe("digits-sgd"))


def test_what_ray_tune_calls_log_uniform_is_what_the_space_has():
    space = load_space("fusion_lr", get_recipe("digits"))
    assert type(space.variables["fusion.lr"]) is type(tune.loguniform(0.1, 1.0))
