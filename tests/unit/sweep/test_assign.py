"""Trials drawn before the first one starts: the same for the same seed, complete where they say so."""

from __future__ import annotations

from itertools import product

import pytest
from ray import tune

from raygf.errors import ConfigError
from raygf.sweep import Space
from raygf.sweep.space import ends, grid, random, read_axes

RANGES = Space({"fusion.lr": tune.loguniform(0.01, 1.0), "fusion.ema": tune.uniform(0.5, 0.9)})
CHOICES = Space(
    {"fusion.segments": tune.choice(["tensor", "channel"]), "batch_size": tune.choice([8, 16, 32])}
)
VARIANTS = Space(
    {"seed": 3},
    variants=[
        {"method": "sgd", "optim.lr": tune.uniform(0.1, 0.2)},
        {"method": "cagrad", "methods.cagrad_c": 0.4},
        {"method": "metagf"},
    ],
)


def test_draws_depend_on_seed_and_number_alone():
    axes = read_axes(RANGES)
    assert random(axes, 8, 0) == random(axes, 8, 0)
    assert random(axes, 8, 0)[:3] == random(axes, 3, 0)
    assert random(axes, 8, 0) != random(axes, 8, 1)
    assert len({str(trial) for trial in random(axes, 50, 0)}) == 50


def test_choices_are_drawn_without_repetition_and_no_oftener_than_there_are():
    axes = read_axes(CHOICES)
    every = [
        {"fusion.segments": segments, "batch_size": size}
        for segments, size in product(["tensor", "channel"], [8, 16, 32])
    ]
    assert grid(axes, 3) == every
    drawn = random(axes, 4, 0)
    assert len(drawn) == 4 and all(drawn.count(trial) == 1 for trial in drawn)
    assert all(trial in every for trial in drawn)
    assert sorted(map(str, random(axes, 100, 0))) == sorted(map(str, every))


def test_variants_take_turns():
    axes = read_axes(VARIANTS)
    drawn = random(axes, 9, 0)
    for first in range(0, 9, 3):
        assert {trial["method"] for trial in drawn[first : first + 3]} == {"sgd", "cagrad", "metagf"}
    assert all(trial["seed"] == 3 for trial in drawn)
    assert {name for trial in drawn for name in trial} == set(VARIANTS.fields)
    assert [trial["optim.lr"] for trial in drawn if trial["method"] == "sgd"] != []
    assert not [trial for trial in drawn if trial["method"] != "sgd" and "optim.lr" in trial]


def test_a_grid_takes_the_ends_of_ranges():
    trials = grid(read_axes(RANGES), 3)
    assert len(trials) == 9
    assert sorted({trial["fusion.lr"] for trial in trials}) == [0.01, 0.1, 1.0]
    assert sorted({trial["fusion.ema"] for trial in trials}) == [0.5, 0.7, 0.9]
    assert [trial["method"] for trial in grid(read_axes(VARIANTS), 2)] == ["sgd", "sgd", "cagrad", "metagf"]


@pytest.mark.parametrize("space", [RANGES, CHOICES, VARIANTS], ids=["ranges", "choices", "variants"])
def test_ends_have_every_end_of_every_axis(space):
    for axes in read_axes(space):
        trials = ends(axes)
        assert all(trial.keys() == axes.keys() for trial in trials)
        for name, axis in axes.items():
            assert {trial[name] for trial in trials} == set(axis.ends)
        assert len(trials) == 1 + sum(len(axis.ends) - 1 for axis in axes.values())


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (Space(), "space: it is empty"),
        (Space(variants=[]), "space: it is empty"),
        (Space(variants=[{"method": "sgd"}, {}]), "space: it is empty"),
        (Space({"fusion.lr": 0.1}), "space: it holds one run only"),
        (Space({"fusion.lr": tune.choice([])}), "fusion.lr has nothing to choose from"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_empty_spaces(space, says):
    with pytest.raises(ConfigError, match=says):
        read_axes(space)


def test_variants_come_first_in_the_order_of_fields():
    assert VARIANTS.fields == ("method", "optim.lr", "seed", "methods.cagrad_c")
