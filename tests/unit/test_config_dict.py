from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygf.config import (
    DataConfig,
    FusionConfig,
    ModelConfig,
    MSDNetConfig,
    OptimConfig,
    ResourceConfig,
    RunConfig,
    StorageConfig,
)
from raygf.config_dict import flatten, from_dict, to_dict
from raygf.errors import ConfigError
from raygf.recipes import RECIPES, get_recipe

SHARE = st.floats(0, 1)
RUNS = st.builds(
    RunConfig,
    method=st.sampled_from(["metagf", "sgd"]),
    rounds=st.integers(1, 1000),
    batch_size=st.integers(2, 10_000),
    seed=st.integers(0, 2**40),
    stop_after=st.none() | st.integers(1, 9),
    data=st.builds(
        DataConfig,
        source=st.sampled_from(["digits", "cifar10", "cifar100", "parquet"]),
        path=st.text(max_size=5),
        image_size=st.none() | st.integers(4, 512),
        flip=st.booleans(),
    ),
    model=st.builds(
        ModelConfig,
        msdnet=st.builds(
            MSDNetConfig,
            factors=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
            head_channels=st.none() | st.integers(1, 999),
        ),
    ),
    optim=st.builds(
        OptimConfig,
        lr=st.floats(1e-9, 1e9),
        momentum=SHARE,
        milestones=st.lists(SHARE, max_size=3).map(tuple),
        carry_momentum=st.booleans(),
    ),
    fusion=st.builds(FusionConfig, segments=st.sampled_from(["tensor", "channel", "network"]), ema=SHARE),
    resources=st.builds(ResourceConfig, gpus_per_exit=st.none() | SHARE, max_failures=st.integers(0, 9)),
    storage=st.builds(StorageConfig, keep=st.integers(1, 9), resume=st.booleans()),
)


@settings(deadline=None, max_examples=15)
@given(RUNS)
def test_round_trip(run):
    assert from_dict(RunConfig, to_dict(run)) == run


@settings(deadline=None, max_examples=15)
@given(RUNS)
def test_round_trip_through_json(run):
    again = from_dict(RunConfig, json.loads(json.dumps(to_dict(run))))
    assert again == run
    assert hash(again) == hash(run)  # tuples are tuples again


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
