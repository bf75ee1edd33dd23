from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raygf.config.fields import flatten, from_dict, to_dict
from raygf.config.recipes import RECIPES, get_recipe
from raygf.config.run import OptimConfig, ResourceConfig, RunConfig
from raygf.errors import ConfigError


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_make_the_round_trip(name):
    run = get_recipe(name)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(run)))) == run


def test_values_are_plain():
    values = to_dict(RunConfig())
    assert values["model"]["msdnet"]["factors"] == [1, 2, 4]
    assert values["optim"]["milestones"] == [0.5, 0.75]
    assert values["stop_after"] is None


def test_fields_left_out_take_their_defaults():
    assert from_dict(RunConfig, {}) == RunConfig()
    run = from_dict(RunConfig, {"optim": {"lr": 0.5}})
    assert run == replace(RunConfig(), optim=OptimConfig(lr=0.5))


def test_whole_numbers_for_floats_become_floats():
    lr = from_dict(OptimConfig, {"lr": 1}).lr
    assert lr == 1.0 and type(lr) is float


def test_optional_floats_too():
    gpus = from_dict(ResourceConfig, {"gpus_per_exit": 1}).gpus_per_exit
    assert gpus == 1.0 and type(gpus) is float
    assert from_dict(ResourceConfig, {"gpus_per_exit": None}).gpus_per_exit is None


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"optimizer": {}}, "optimizer: no such field; known are "),
        ({"optim": {"rate": 1}}, "optim.rate: no such field; known are "),
        ({"model": {"msdnet": {"depth": 1}}}, "model.msdnet.depth: no such field; known are "),
    ],
)
def test_an_unknown_field_is_named(values, start):
    with pytest.raises(ConfigError) as error:
        from_dict(RunConfig, values)
    assert str(error.value).startswith(start)


def test_known_fields_are_listed():
    with pytest.raises(ConfigError, match=r"known are aux, coefficients, distill, gamma, temperature$"):
        from_dict(RunConfig, {"loss": {"x": 1}})


def test_a_section_must_be_a_section():
    with pytest.raises(ConfigError, match=r"^model\.msdnet = 3: must be a section of fields$"):
        from_dict(RunConfig, {"model": {"msdnet": 3}})


@pytest.mark.parametrize(
    "values",
    [{"optim": {"lr": "fast"}}, {"rounds": "many"}, {"rounds": True}, {"optim": {"milestones": ["x"]}}],
)
def test_values_are_checked(values):
    with pytest.raises(ConfigError, match=r" = .*: must be "):
        from_dict(RunConfig, values)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"optim": {"milestones": 0.5}}, "optim.milestones"),
        ({"optim": {"milestones": None}}, "optim.milestones"),
        ({"model": {"msdnet": {"factors": 3}}}, "model.msdnet.factors"),
    ],
)
def test_a_single_value_for_a_list_is_refused_by_field(values, field):
    with pytest.raises(ConfigError, match=field):
        from_dict(RunConfig, values)


def test_flatten():
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": [3]}}, "f": {}}) == {"a": 1, "b.c": 2, "b.d.e": [3]}
    flat = flatten(to_dict(RunConfig()))
    assert flat["model.msdnet.exits"] == 7 and flat["optim.lr"] == 0.1
